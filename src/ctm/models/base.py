"""What every model has: a network with its settings, checks of a stranger's call, and files in the Hugging Face manner."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ctm.arguments import as_levels, as_state, checked
from ctm.conditioner import Conditioner
from ctm.conditions import GUIDANCE, Condition, takes_labels, without_augment
from ctm.files import as_source, whole_file
from ctm.foreign.text import with_article
from ctm.hub import asking_hub, not_given, pushing
from ctm.models.card import card
from ctm.models.conditions import conditioner_for
from ctm.models.grids import TunedGrid, grids_as_json, read_grids
from ctm.models.pipeline import Pipeline, pipeline_from
from ctm.models.protocol import score_of
from ctm.models.reading import (
    CONFIG,
    WEIGHTS,
    check_config,
    check_fit,
    check_numbers,
    check_weights,
    read_config,
    read_scaling,
    weights_of,
)
from ctm.networks.description import build, describe
from ctm.noise import match_dims
from ctm.parametrization import Inner
from ctm.preconditioning import NoiseAndSample, Own, Preconditioning, preconditioning_from
from ctm.scaling import Scaling

__all__ = ["CONFIG", "WEIGHTS", "Model", "brief"]

Self = TypeVar("Self", bound="Model")


class Model(nn.Module, PyTorchModelHubMixin, library_name="ctm-torch"):
    """What both models share: the network, its settings, the EDM denoiser interface, and files.

    `autocast`: the dtype in which torch.autocast lets the network compute, None: as its weights are. No part of a file.
    `class_names`: one for each class where they are known, else empty; kept in config.json.
    `scaling`: how the numbers of its data became x, kept in config.json; None for pictures. `ctm.generate` undoes it; all methods
    here are of x.
    `grids`: the grids of `ctm.tune_grid` by number of steps, which sampling uses; `extra_config`: what else config.json held.
    `pipeline`: the autoencoder and text encoder that belong to the model, which `save_pretrained` copies beside it."""

    autocast: torch.dtype | None = None
    scaling: Scaling | None = None

    def __init__(
        self,
        network: nn.Module | Mapping[str, Any],
        *,
        shape: Sequence[int],
        num_classes: int = 0,
        conditioner: Conditioner | Mapping[str, Any] | None = None,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        inner: Inner | Preconditioning | Mapping[str, Any] = "edm",
    ) -> None:
        super().__init__()
        check_numbers(shape, num_classes, sigma_min, sigma_max, sigma_data)
        self.shape = tuple(int(side) for side in shape)
        self.sigma_min, self.sigma_max, self.sigma_data = float(sigma_min), float(sigma_max), float(sigma_data)
        self.preconditioning = preconditioning_from(inner, self.sigma_data, self.sigma_min)
        self.network = network if isinstance(network, nn.Module) else build(network)
        self.conditioner = conditioner_for(self.network, conditioner, int(num_classes))
        self._class_names: list[str] = []
        self.grids: dict[int, TunedGrid] = {}
        self.extra_config: dict[str, object] = {}
        self.pipeline: Pipeline | None = None

    @property
    def num_classes(self) -> int:
        """How many classes the model knows, 0 where it takes no labels."""
        return self.conditioner.num_classes

    @property
    def class_names(self) -> list[str]:
        """One name for each class, empty where they are not known. Setting it raises ValueError for another number of names."""
        return self._class_names

    @class_names.setter
    def class_names(self, names: Sequence[str]) -> None:
        listed = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        if not listed or len(names) not in (0, self.num_classes):
            got = f"{len(names)} names" if listed else "something else"
            raise ValueError(f"class_names must be {self.num_classes} texts, one for each class, or none: got {got}")
        self._class_names = list(names)

    @takes_labels
    def forward(self, x: Tensor, t: Tensor | float, condition: Condition = None) -> Tensor:
        """Calling a model means denoise."""
        return self.denoise(x, t, condition)

    def denoise(self, x: Tensor, t: Tensor | float, condition: Condition = None) -> Tensor:
        """D(x, t) = E[x_0 | x_t = x] as the model knows it; shapes as in `g`."""
        raise NotImplementedError

    @takes_labels
    def score(self, x: Tensor, t: Tensor | float, condition: Condition = None) -> Tensor:
        """∇ log p_t(x) = (D(x, t) − x)/t²; shapes as in `denoise`."""
        t = as_levels(t, as_state(x))
        return score_of(self.denoise(x, t, condition), x, t)

    @property
    def inner(self) -> Inner | Preconditioning:
        """The scalings around the network: their name where they are ours, else the `Preconditioning`."""
        own = self.preconditioning
        return own.inner if isinstance(own, Own) else own

    def _represented(self, x: Tensor, t: Tensor, s: Tensor | None, condition: Condition) -> Tensor:
        """c_skip(t)·x + c_out(t)·F(c_in(t)·x, level(t), level(s), condition), by the model's preconditioning."""
        c_skip, c_out, c_in = self.preconditioning.scalings(t)
        return match_dims(c_skip, x) * x + match_dims(c_out, x) * self._call_network(c_in, x, t, s, condition)

    def _call_network(self, c_in: Tensor, x: Tensor, t: Tensor, s: Tensor | None, condition: Condition) -> Tensor:
        """F, with the network in the precision of its weights or of `autocast`, and the scalings in the precision of x.
        Raises ValueError for a network that returns another shape than x has."""
        scaled = match_dims(c_in, x) * x
        weights = next(self.network.parameters(), x)
        level_dtype = torch.promote_types(weights.dtype, torch.float32)
        levels = [None if level is None else self._embedded(level, level_dtype) for level in (t, s)]
        lower = nullcontext() if self.autocast is None else torch.autocast(x.device.type, self.autocast)
        condition, augment = without_augment(condition)
        more = {} if augment is None else {"augment": augment}
        with lower:
            output = self.network(scaled.to(weights.dtype), *levels, condition, **more)
        own = self.preconditioning
        two = isinstance(own, NoiseAndSample)
        expected = (x.shape[0], 2 * x.shape[1], *x.shape[2:]) if two else tuple(x.shape)
        if not isinstance(output, Tensor) or tuple(output.shape) != expected:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            words = "two outputs for each channel" if two else "a tensor of the shape of x"
            raise ValueError(f"{type(self.network).__name__} must return {words}, {expected}: got {got}")
        return own.mixed(output.to(x.dtype), t) if isinstance(own, NoiseAndSample) else output.to(x.dtype)

    def _embedded(self, sigma: Tensor, dtype: torch.dtype) -> Tensor:
        """What the network embeds at levels sigma (B,), in this dtype; computed in float32 at least."""
        return self.preconditioning.level(sigma.to(torch.promote_types(sigma.dtype, torch.float32))).to(dtype)

    def _checked(self, x: Tensor, t: Tensor | float, condition: Any) -> tuple[Tensor, Condition]:
        """The public boundary: levels (B,) in x's dtype and the condition as networks get it, from what a caller gives. Raises
        ValueError for shapes, dtypes, levels and conditions that do not fit; looks at none `inside` a checked method."""
        if not checked():
            return as_levels(t, x).to(x.dtype), condition
        if as_state(x).shape[1:] != self.shape:
            raise ValueError(f"x must have shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        place = next((weights.device for weights in self.parameters()), x.device)
        if place.type != x.device.type:
            raise ValueError(f"x is on {x.device} and the model on {place}: bring x there by x.to({str(place)!r})")
        condition = self.conditioner.check(condition, x)
        return as_levels(t, x).to(x.dtype), condition

    def _settings(self) -> dict[str, object]:
        """The constructor's arguments other than the network."""
        names = ("shape", "num_classes", "sigma_min", "sigma_max", "sigma_data")
        beside_labels = set(self.conditioner.fields) - {GUIDANCE}  # the guidance scale is in the network's arguments
        conditioner = {"conditioner": self.conditioner.as_json()} if beside_labels else {}
        return {name: getattr(self, name) for name in names} | conditioner

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write config.json, model.safetensors and a card; options as of PyTorchModelHubMixin (push_to_hub …). Raises
        ValueError, writing nothing, for a network that config.json cannot describe."""
        self._description()
        return super().save_pretrained(save_directory, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Put config.json, model.safetensors and a card into a repository of the hub; options as of PyTorchModelHubMixin (token,
        private, branch …), with model_card_kwargs: what `ctm.models.card.card` is to say, such as facts and numbers. The address
        of the commit. `ctm export --to hub` sends a run's own card, numbers and pictures.

        Raises PermissionError without a token that may write, ValueError for a name that is none, ConnectionError."""
        with pushing(repo_id):
            return str(super().push_to_hub(repo_id, **options))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card of this model with what is said of it, arguments as of `ctm.models.card.card`; a training run writes a fuller
        one."""
        return ModelCard(card(self, **kwargs))

    def _description(self) -> dict[str, object]:
        """class_path and init_args of the network. Raises ValueError where there are none."""
        described = describe(self.network)
        if described is None:
            raise ValueError(
                f"cannot save this model: its network is {with_article(type(self.network).__name__)} object, which config.json "
                "cannot describe. Give the network as {'class_path': 'package.Class', 'init_args': {…}} instead"
            )
        return described

    def _save_pretrained(self, save_directory: Path) -> None:
        config = {"model": type(self).__name__, "network": self._description(), **self._settings(), **self.extra_config}
        config |= {"class_names": self.class_names} if self.class_names else {}
        config |= {"grids": grids_as_json(self.grids)} if self.grids else {}
        config |= {} if self.scaling is None else {"scaling": self.scaling.as_json()}
        if self.pipeline is not None:
            config["pipeline"] = self.pipeline.as_json()
            self.pipeline.copy_to(save_directory)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with whole_file(save_directory / CONFIG) as new_config, whole_file(save_directory / WEIGHTS) as new_weights:
            new_config.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            save_file(weights, new_weights, metadata={"format": "pt"})  # no second copy in memory, but mode 0600
            new_weights.chmod(new_config.stat().st_mode)

    @classmethod
    def from_pretrained(cls: type[Self], pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """The model in a directory or at the hub, in eval mode; options as of PyTorchModelHubMixin. Both files are checked before
        anything is built (docs/security.md). Raises FileNotFoundError, and ValueError where they are not a model of this kind."""
        pretrained_model_name_or_path = as_source(pretrained_model_name_or_path, "a model's directory or hub id")
        place = Path(pretrained_model_name_or_path)
        if (place / CONFIG).is_file():
            read_config(place / CONFIG)
        elif not place.is_dir():
            names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            chosen = {name: options[name] for name in names if name in options}
            with asking_hub():
                try:
                    read_config(Path(hf_hub_download(str(pretrained_model_name_or_path), CONFIG, **chosen)))
                    return super().from_pretrained(pretrained_model_name_or_path, **options)
                except Exception as error:  # of the hub: a sentence for each kind; others as they are
                    raise not_given(str(place), error, options.get("revision")) from error
        return super().from_pretrained(pretrained_model_name_or_path, **options)

    @classmethod
    def _from_pretrained(
        cls: type[Self],
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        strict: bool = True,
        config: dict[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> Self:
        """Builds from config.json's settings and loads model.safetensors, never a pickle; eval mode. Raises ValueError for the
        configuration of another kind of model."""
        kind = (config or {}).get("model", cls.__name__)
        if kind != cls.__name__:
            raise ValueError(f"{model_id} holds a {kind}, not a {cls.__name__}: use ctm.{kind} or ctm.load_model")
        if Path(model_id).is_dir():
            weights = weights_of(Path(model_id))
            if "network" not in model_kwargs:
                raise FileNotFoundError(f"{model_id} is no model directory: it needs {CONFIG} and {WEIGHTS}")
        else:
            weights = Path(
                hf_hub_download(
                    model_id,
                    WEIGHTS,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        check_config(cls, {**(config or {}), **model_kwargs}, model_id)
        if strict:
            check_fit(model_kwargs["network"], weights, model_id)
        model = cls(**model_kwargs)
        tensors = load_file(weights)
        check_weights(tensors, model_id)
        model.load_state_dict(tensors, strict=strict)
        known = {"model", "network", "class_names", "grids", "scaling", "conditioner", "pipeline", *model._settings()}
        model.extra_config = {name: value for name, value in (config or {}).items() if name not in known}
        model.class_names = (config or {}).get("class_names", [])
        model.scaling = read_scaling(config or {}, model_id)
        model.grids = read_grids((config or {}).get("grids", {}), model.sigma_min, model.sigma_max, model_id)
        asked = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        model.pipeline = pipeline_from((config or {}).get("pipeline"), str(model_id), asked)
        return model.to(map_location).eval()


def brief(levels: Tensor) -> str:
    """A few of the levels, for an error."""
    shown = ", ".join(f"{value:g}" for value in levels.flatten()[:4].tolist())
    return f"[{shown}{', …' if levels.numel() > 4 else ''}]"
