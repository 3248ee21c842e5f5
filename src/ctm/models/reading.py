"""A model directory's files, looked at before anything is built: what config.json asks for, and whether the weights hold it."""

from __future__ import annotations

import inspect
import logging
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ctm.arguments import whole_number
from ctm.foreign.kinds import foreign_directory, foreign_settings
from ctm.foreign.text import plain, read_json
from ctm.foreign.weights import tensor_shapes
from ctm.networks.arguments import check_shape
from ctm.networks.base import Network
from ctm.networks.description import build, network_class
from ctm.preconditioning import preconditioning_from
from ctm.scaling import Scaling, scaling_from

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "TooLarge",
    "bounded_building",
    "check_config",
    "check_fit",
    "check_names",
    "check_numbers",
    "check_weights",
    "read_config",
    "read_scaling",
    "weights_of",
]

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_LOG = logging.getLogger(__name__)
_MOST_CLASSES = 1 << 22
_OWN = (
    "model",
    "network",
    "class_names",
    "grids",
    "pipeline",
    "scaling",
    "scheduler",
)  # the last: kept for a person to read


def read_config(path: Path) -> dict[str, object]:
    """The settings in a config.json of ours. Raises ValueError in a sentence for a file that is none, and says whose it is."""
    try:
        settings = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a model's configuration: it {str(error).removeprefix(f'{path} ')}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is not a model's configuration: it holds no names with values")
    sentence = foreign_settings(settings, str(path.parent))
    if sentence is not None:
        raise ValueError(sentence)
    if "network" not in settings or "shape" not in settings:
        raise ValueError(f'{path} is not a model\'s configuration: it needs "network" and "shape"')
    return settings


def read_scaling(settings: Mapping[str, Any], place: str) -> Scaling | None:
    """The scaling of the data in the settings of a model; None where they have none. Raises ValueError for a damaged one."""
    try:
        return scaling_from(settings.get("scaling"), settings.get("shape", (1,)))
    except (ValueError, OverflowError) as error:
        raise ValueError(f'{place}: the "scaling" in config.json is damaged: {error}') from error


def weights_of(directory: Path) -> Path:
    """The weights in a model directory. Raises FileNotFoundError where there are none, saying what is there instead."""
    weights = directory / WEIGHTS
    if weights.is_file():
        return weights
    instead = foreign_directory(directory)
    raise FileNotFoundError(
        f"{directory} is no model directory: it needs {CONFIG} and {WEIGHTS}{f'; {instead}' if instead else ''}"
    )


def check_config(kind: type[nn.Module], settings: Mapping[str, Any], place: str) -> None:
    """Raises ValueError where the settings of a model of this kind are out of range, or its network is another one's, of wrong
    arguments, or of another shape or number of classes. Settings that no version here knows are named in a warning."""
    known = inspect.signature(kind).parameters
    try:
        numbers = {name: settings[name] for name in _NUMBERS if name in settings}
        check_numbers(**numbers)
        if "inner" in known and "inner" in settings:
            levels = (numbers.get(name, known[name].default) for name in ("sigma_data", "sigma_min"))
            preconditioning_from(settings["inner"], *levels)
        spec = settings["network"]
        network = network_class(spec)
        if issubclass(network, Network):
            own = {"num_classes": 0, **(spec.get("init_args") or {})}
            for name, of_model in (("shape", list(settings["shape"])), ("num_classes", settings.get("num_classes", 0))):
                if own.get(name) != of_model:
                    raise ValueError(
                        f"the model's {name} is {of_model}, its network's {own.get(name)}: they must be the same"
                    )
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    unknown = [plain(name, 40) for name in settings if name not in (*_OWN, *known)]
    if unknown:
        words = "config.json has settings that this version does not know; they change nothing"
        _LOG.warning("%s: %s: %s", place, words, ", ".join(unknown[:8]))


_NUMBERS = ("shape", "num_classes", "sigma_min", "sigma_max", "sigma_data")


def check_numbers(
    shape: Sequence[int],
    num_classes: int = 0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_data: float = 0.5,
) -> None:
    """Raises ValueError for the numbers of no model: sides below 1, negative classes, levels that are not finite, above 0 and in
    order, and for booleans and texts in place of numbers."""
    check_shape(shape)
    classes = whole_number(num_classes)
    if classes is None or not 0 <= classes <= _MOST_CLASSES:
        raise ValueError(
            f"num_classes must be a whole number from 0 to {_MOST_CLASSES}, got {plain(str(num_classes), 40)}"
        )
    levels = (sigma_min, sigma_max, sigma_data)
    numbers = all(not isinstance(level, bool | str) and hasattr(level, "__float__") for level in levels)
    if (
        not numbers
        or not all(abs(level) <= sys.float_info.max for level in levels)
        or not (0 < sigma_min < sigma_max and sigma_data > 0)
    ):
        raise ValueError(
            "a model needs finite numbers 0 < sigma_min < sigma_max and sigma_data > 0, got "
            f"{', '.join(plain(str(level), 40) for level in levels)}"
        )


def check_weights(tensors: Mapping[str, Tensor], place: str) -> None:
    """Raises ValueError for weights that are no real floating-point numbers, or not finite: each sample would be none."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{place}: the weight {plain(name)} is {tensor.dtype}: weights are floating-point numbers")
        if not bool(tensor.isfinite().all()):
            raise ValueError(
                f"{place}: the weight {plain(name)} is not finite: the file was written by a run that failed"
            )


class TooLarge(Exception):
    """More parameters than the weights hold."""


@contextmanager
def bounded_building(shapes: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """Meanwhile modules are built no further than tensors of these shapes go. Raises TooLarge beyond them."""
    left = [len(shapes), sum(math.prod(shape) for shape in shapes.values())]

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        left[0] -= 1
        left[1] -= parameter.numel()
        if min(left) < 0:
            raise TooLarge

    counting = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        counting.remove()


def check_fit(
    spec: Mapping[str, Any],
    weights: Path,
    place: str,
    *,
    renamed: Callable[[str], str] = str,
    besides: Collection[str] = (),
) -> None:
    """Raises ValueError where the weights are not those of the network described. It is built without memory for its numbers, and
    no further than the weights go: a config.json that asks for more than they hold costs what they cost.

    renamed: from the file's names to the model's. besides: the model's tensors that come from elsewhere. A network of the user's
    own, allowed by name, is not looked at: its code is trusted."""
    shapes = {renamed(name): shape for name, shape in tensor_shapes(weights).items()}
    if not issubclass(network_class(spec), Network):
        return
    try:
        with bounded_building(shapes), torch.device("meta"):
            described = {f"network.{name}": tuple(value.shape) for name, value in build(spec).state_dict().items()}
            described = {name: shape for name, shape in described.items() if name not in besides}
    except TooLarge as error:
        numbers = sum(math.prod(shape) for shape in shapes.values())
        raise ValueError(
            f"{place}: the weights do not fit the network: config.json asks for more than their {len(shapes)} tensors with "
            f"{numbers} numbers"
        ) from error
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    check_names(described, shapes, place)


def check_names(described: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], place: str) -> None:
    """Raises ValueError, naming the first of them, where weights have not the names and shapes of the network described."""
    missing, unexpected = sorted(described.keys() - shapes.keys()), sorted(shapes.keys() - described.keys())
    unlike = sorted(name for name in described.keys() & shapes.keys() if described[name] != shapes[name])
    complaints = [
        f"{len(names)} {words}, first {plain(names[0])}"
        for words, names in (("tensors are missing", missing), ("are not of it", unexpected))
        if names
    ]
    complaints += [
        f"{plain(name)} is {list(shapes[name])[:8]}, the network's {list(described[name])}" for name in unlike[:1]
    ]
    if complaints:
        raise ValueError(
            f"{place}: the weights do not fit the network that config.json describes: {'; '.join(complaints)}"
        )
