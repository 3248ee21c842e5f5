"""A model of diffusers, from a directory or the hub, as a `DiffusionModel`: its network, and the preconditioning around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ctm.foreign.text import plain
from ctm.models import DiffusionModel
from ctm.models.pipeline import Pipeline
from ctm.models.reading import check_config, check_fit, check_weights
from ctm.networks.diffusers import TEXT, Kind, known_settings, takes_fractions
from ctm.teachers.checkpoints import Checkpoint
from ctm.teachers.diffusers_files import Parts, find_diffusers, read_config, renamed_attention
from ctm.teachers.diffusers_scheduler import Schedule, read_scheduler
from ctm.teachers.diffusers_text import embedded, text_shape
from ctm.teachers.presets import check_settings

__all__ = ["Deviation", "is_diffusers", "read_diffusers"]

Deviation: TypeAlias = Callable[[Sequence[int]], tuple[float, str]]
_TAKEN = ("sigma_data", "sigma_min", "sigma_max", "image_size", "null_class", "text_tokens")
_MOST_NAMES = 1 << 16
_EMPTY = "network.empty_text"


def is_diffusers(source: str | Path) -> bool:
    """Whether a source is a directory or hub repository of diffusers. Raises ValueError for one that is not read here."""
    return find_diffusers(source) is not None


def read_diffusers(
    source: str | Path, *, settings: Mapping[str, Any] | None = None, sigma_data: Deviation | None = None
) -> Checkpoint:
    """A model of diffusers as a `DiffusionModel` in eval mode, with what was read, kept and left out in sentences.

    source: the directory or hub id of a pipeline, or of a network with its scheduler_config.json beside it. settings:
    sigma_data, which no config of a β schedule or flow has, and what else it does not say: image_size, null_class,
    text_tokens; sigma_min and sigma_max within the schedule's. sigma_data: gives that of data of a shape, and words for where
    it is from; used where neither the settings nor the source have it.
    Nothing in the files is run, and nothing that they name is imported. Raises FileNotFoundError where there is nothing, and
    ValueError, in a sentence, for what is not read here, does not fit, or must be asked for."""
    given = check_settings(settings or {})
    parts = find_diffusers(source)
    if parts is None:
        raise FileNotFoundError(
            f"{source} is no directory of diffusers: it has no model_index.json, and no config.json of one"
        )
    unused = [name for name in given if name not in _TAKEN]
    if unused:
        raise ValueError(f"{unused[0]} has no meaning for a model of diffusers: settings are {', '.join(_TAKEN)}")
    kind, config = read_config(parts)
    schedule = read_scheduler(*parts.scheduler())
    try:
        return _read(parts, cast(Kind, kind), config, schedule, given, sigma_data)
    except SafetensorError as error:
        raise ValueError(f"{source}: its weights are cut short or damaged: {plain(str(error), 200)}") from error


def _read(
    parts: Parts,
    kind: Kind,
    config: dict[str, Any],
    schedule: Schedule,
    given: Mapping[str, Any],
    measured: Deviation | None,
) -> Checkpoint:
    place = f"{parts.source}/{parts.network}".rstrip("/")
    taken, unknown = known_settings(kind, config)
    shape = _shape(kind, taken, given, place)
    network, classes = _description(kind, taken, shape, given, place)
    empty, lines = _text(parts, kind, taken, given, network["init_args"])
    levels, chosen, assumed = _levels(schedule, given, measured, parts.source, shape)
    about: dict[str, Any] = {"shape": shape, "num_classes": classes, **levels, "inner": schedule.inner}
    check_config(DiffusionModel, {**about, "network": network, "inner": schedule.inner.as_json()}, place)
    file, on_weights = parts.weights()
    lines += on_weights
    check_fit(network, file, place, renamed=_renamed, besides=[_EMPTY])
    with init_empty_weights(include_buffers=False):
        model = DiffusionModel(network, **about)
    tensors: dict[str, Tensor] = {_renamed(name): value for name, value in load_file(file).items()}
    check_weights(tensors, place)
    if empty is not None:
        tensors[_EMPTY] = empty()
    model.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    model.extra_config["scheduler"] = schedule.kept
    model.pipeline = _pipeline(parts)
    lines += _name_classes(model, parts)
    lines += [f"the class {given['null_class']} stands for no label"] if "null_class" in given else []
    if parts.latents in parts.travelling:
        lines.append(
            f"its samples are latents; the autoencoder ({parts.latents}) that decodes them goes with the model"
        )
    found = [_words(parts, kind, model), _asked(kind, taken, schedule), *lines]
    left = _left(parts, kind, taken, unknown, schedule)
    return Checkpoint(model.eval(), found, schedule.told, chosen, [*schedule.assumed, *assumed], left)


def _shape(kind: Kind, config: Mapping[str, Any], given: Mapping[str, Any], place: str) -> list[int]:
    """[C, H, W] of one sample. Raises ValueError where the settings do not say the size and nobody does."""
    channels = config.get("in_channels", 3 if kind == "UNet2DModel" else 4)
    size = given.get("image_size", config.get("sample_size"))
    if size is None and kind == "DiTTransformer2DModel":
        size = 32  # diffusers' default, which its table of positions has
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(type(side) is int for side in sides):
        raise ValueError(
            f"{place}: its config does not say how large the samples are (sample_size is {plain(str(size))}). Give "
            "--set image_size=…"
        )
    return [channels, *sides]


def _description(
    kind: Kind, config: dict[str, Any], shape: list[int], given: Mapping[str, Any], place: str
) -> tuple[dict[str, Any], int]:
    """The network as config.json has it, and how many classes a caller gives."""
    arguments: dict[str, Any] = {"shape": shape, "kind": kind, "config": config}
    if kind == "DiTTransformer2DModel":
        classes = _whole(config.get("num_embeds_ada_norm", 1000), "num_embeds_ada_norm", place)
    else:
        classes = _whole(config.get("num_class_embeds") or 0, "num_class_embeds", place)
    null = given.get("null_class")
    if null is not None:
        if kind == "DiTTransformer2DModel" or not classes:
            raise ValueError(f"null_class has no meaning for {place}: it has {'its own' if classes else 'no classes'}")
        arguments["null_class"] = null
        classes -= null == classes - 1
    arguments |= {"num_classes": classes} if classes else {}
    return {"class_path": "ctm.networks.DiffusersNetwork", "init_args": arguments}, classes


def _text(
    parts: Parts, kind: Kind, config: Mapping[str, Any], given: Mapping[str, Any], arguments: dict[str, Any]
) -> tuple[Callable[[], Tensor] | None, list[str]]:
    """Add what the network is told of its text to its arguments. Returns what gives the embedded empty prompt, None without a
    text encoder, and lines. Raises ValueError where the length of a text is not known."""
    if kind != "UNet2DConditionModel":
        if "text_tokens" in given:
            raise ValueError(f"text_tokens has no meaning for {parts.source}: it takes no text")
        return None, []
    width = config.get("cross_attention_dim", 1280)
    widths = set(width) if isinstance(width, list) and all(type(one) is int for one in width) else {width}
    if len(widths) != 1 or type(next(iter(widths))) is not int:
        raise ValueError(f"{parts.source}: cross_attention_dim is one whole number, got {plain(str(width))}")
    tokens, lines = text_shape(parts, given.get("text_tokens"))
    arguments["arrays"] = {TEXT: [tokens, next(iter(widths))]}
    if "text_encoder" not in parts.components:
        return None, ["there is no text encoder: each sample needs a text, since the empty prompt is not known"]
    arguments["knows_empty"] = True
    lines.append("a sample without a text gets the empty prompt, which is kept with the weights")
    return lambda: embedded(parts, [""], tokens), lines


def _whole(value: Any, name: str, place: str) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{place}: {name} is a whole number, got {plain(str(value))}")
    return value


def _levels(
    schedule: Schedule, given: Mapping[str, Any], measured: Deviation | None, source: str, shape: Sequence[int]
) -> tuple[dict[str, float], list[str], list[str]]:
    """sigma_min, sigma_max and sigma_data, with lines on those that were given and those from elsewhere."""
    levels = {"sigma_min": schedule.sigma_min, "sigma_max": schedule.sigma_max}
    assumed: list[str] = []
    low, high = given.get("sigma_min", schedule.sigma_min), given.get("sigma_max", schedule.sigma_max)
    if low < schedule.sigma_min * (1 - 1e-6) or high > schedule.sigma_max * (1 + 1e-6) or not low < high:
        raise ValueError(
            f"sigma_min = {low:g} and sigma_max = {high:g} were set, and the model was trained from {schedule.sigma_min:.6g} to "
            f"{schedule.sigma_max:.6g}: set them within these"
        )
    levels = {"sigma_min": float(low), "sigma_max": float(high)}
    if "sigma_data" in given and schedule.sigma_data is not None and given["sigma_data"] != schedule.sigma_data:
        raise ValueError(f"sigma_data = {given['sigma_data']} was set, and the scheduler says {schedule.sigma_data:g}")
    if "sigma_data" in given:
        levels["sigma_data"] = float(given["sigma_data"])
    elif schedule.sigma_data is not None:
        levels["sigma_data"] = schedule.sigma_data
    elif measured is not None:
        levels["sigma_data"], why = measured(shape)
        assumed.append(f"sigma_data = {levels['sigma_data']:g} ({why})")
    else:
        raise ValueError(
            f"{source} does not say the standard deviation of its data, sigma_data: a config of diffusers has none. Give "
            "--set sigma_data=…, or the data by ctm convert … --data NAME, which measures it"
        )
    return levels, [f"{name} = {value}" for name, value in given.items()], assumed


def _pipeline(parts: Parts) -> Pipeline | None:
    components = parts.travelling
    return Pipeline(parts.source, components) if components else None


def _renamed(name: str) -> str:
    """A tensor's name in our model, by its name in diffusers' file."""
    return f"network.module.{renamed_attention(name)}"


def _name_classes(model: DiffusionModel, parts: Parts) -> list[str]:
    """Give the classes the names that a DiT pipeline's index has, where it has one for each."""
    names = parts.index.get("id2label")
    if not isinstance(names, dict) or not model.num_classes or len(names) > _MOST_NAMES:
        return []
    listed = [names.get(str(number)) for number in range(model.num_classes)]
    if not all(isinstance(name, str) for name in listed):
        return ["the pipeline has no name for some of its classes: they have numbers only"]
    model.class_names = [plain(name, 200) for name in listed]
    return [f"names of {len(listed)} classes"]


def _words(parts: Parts, kind: Kind, model: DiffusionModel) -> str:
    channels, height, width = model.shape
    count = sum(parameter.numel() for parameter in model.network.parameters()) / 1e6
    classes = f"{model.num_classes} classes" if model.num_classes else "no classes"
    name = parts.index.get("_class_name")
    where = f" of a {plain(name)}" if isinstance(name, str) else ""
    return (
        f"a diffusion model of diffusers: {kind}{where}, {height}×{width} with {channels} channels, {classes}, {count:.3g} "
        "million parameters"
    )


def _asked(kind: Kind, config: Mapping[str, Any], schedule: Schedule) -> str:
    """How the network is asked between two levels of its table."""
    if schedule.inner.as_json() == "edm" or not hasattr(schedule.inner, "schedule"):
        return "the network embeds any level: nothing lies between two"
    if takes_fractions(kind, config):
        return "between two timesteps the network is asked at a fractional one, linear in ln sigma"
    return (
        "the network has a learned row for each timestep: between two it is asked at both, in one call of twice the rows, and "
        "the answers are mixed linearly in ln sigma"
    )


def _left(parts: Parts, kind: Kind, config: Mapping[str, Any], unknown: list[str], schedule: Schedule) -> list[str]:
    """Sentences on what the source has and the model has not."""
    lines = []
    settings = {name: value for name, value in schedule.kept.items() if name != "name"}
    if settings:
        said = ", ".join(f"{name} = {value}" for name, value in settings.items())
        lines.append(f"settings of diffusers' sampler, kept in config.json and not applied by ours: {said}")
    taken = config.get("in_channels", 3 if kind == "UNet2DModel" else 4)
    if config.get("out_channels") == 2 * taken:
        lines.append(f"the variance that the network predicts too: channels {taken} to {2 * taken - 1} of its output")
    if unknown:
        lines.append(
            f"settings that this version of diffusers does not know: {', '.join(plain(n, 40) for n in unknown[:8])}"
        )
    if parts.latents and parts.latents not in parts.travelling:
        lines.append(
            f"the autoencoder ({parts.latents}, a {plain(parts.components[parts.latents][1])}): what is read here is an "
            "AutoencoderKL, and the model's samples stay latents"
        )
    if parts.left_out:
        lines.append(f"parts of the pipeline: {', '.join(plain(name, 40) for name in parts.left_out)}")
    return lines
