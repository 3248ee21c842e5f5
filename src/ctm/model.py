"""The models: TrajectoryModel, which jumps anywhere, ConsistencyModel, which jumps to the end, and DiffusionModel, which only
denoises. All save as config.json and model.safetensors in the Hugging Face manner."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ctm.networks.description import build, describe
from ctm.noise import match_dims
from ctm.parametrization import (
    Inner,
    Outer,
    denoiser_multiple,
    input_scaling,
    jump_from_g,
    outer_scaling,
    output_scalings,
)
from ctm.tuned import TunedGrid, grids_as_json, read_grids

__all__ = ["ConsistencyModel", "DiffusionModel", "TrajectoryModel", "build", "describe", "load_model"]

WEIGHTS, CONFIG = "model.safetensors", "config.json"
Guidance: TypeAlias = float | Tensor | None
Self = TypeVar("Self", bound="_Model")


_CARD = """---
{{ card_data }}
---

A model of ctm-torch, Consistency Trajectory Models ([arXiv 2310.02279](https://arxiv.org/abs/2310.02279)). `config.json`
names its network, sizes and noise levels; the weights are `model.safetensors`.

```python
import ctm

model = ctm.load_model("directory or hub id")
```

`ctm sample` draws from it; a CTM in one jump or more, a diffusion model with Heun.
"""


class _Model(nn.Module, PyTorchModelHubMixin, library_name="ctm-torch", license="mit", model_card_template=_CARD):
    """What both models share: the network, its settings, the EDM denoiser interface, and files.

    `autocast`: the dtype in which torch.autocast lets the network compute, None: as its weights are. No part of a file.
    `grids`: those of `ctm.tune_grid` by number of steps, which sampling uses; `further`: what else config.json held."""

    autocast: torch.dtype | None = None

    def __init__(
        self,
        network: nn.Module | Mapping[str, Any],
        *,
        shape: Sequence[int],
        num_classes: int = 0,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 < sigma_min < sigma_max or sigma_data <= 0:
            raise ValueError(
                f"a model needs 0 < sigma_min < sigma_max and sigma_data > 0, got {sigma_min}, {sigma_max}, {sigma_data}"
            )
        self.shape = tuple(int(side) for side in shape)
        self.num_classes = int(num_classes)
        self.sigma_min, self.sigma_max, self.sigma_data = float(sigma_min), float(sigma_max), float(sigma_data)
        self.network = network if isinstance(network, nn.Module) else build(network)
        self.grids: dict[int, TunedGrid] = {}
        self.further: dict[str, Any] = {}

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Calling a model means denoise."""
        return self.denoise(x, t, labels)

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """D(x, t) = E[x_0 | x_t = x] as the model knows it; shapes as in `g`."""
        raise NotImplementedError

    def score(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """∇ log p_t(x) = (D(x, t) − x)/t²; shapes as in `denoise`."""
        return (self.denoise(x, t, labels) - x) / match_dims(t, x) ** 2

    def _call_network(
        self, x: Tensor, t: Tensor, s: Tensor | None, labels: Tensor | None, guidance: Tensor | None = None
    ) -> Tensor:
        """F, with the network in the precision of its weights or of `autocast`, and the scalings in that of x."""
        scaled = match_dims(input_scaling(t, self.sigma_data), x) * x
        weights = next(self.network.parameters(), x)
        level_dtype = torch.promote_types(weights.dtype, torch.float32)
        levels = [None if level is None else level.to(level_dtype) for level in (t, s)]
        lower = nullcontext() if self.autocast is None else torch.autocast(x.device.type, self.autocast)
        with lower:
            further = {} if guidance is None else {"guidance": guidance.to(level_dtype)}
            output = self.network(scaled.to(weights.dtype), *levels, labels, **further)
        return output.to(x.dtype)

    def _check(self, x: Tensor, t: Tensor, labels: Tensor | None) -> None:
        """The public boundary's checks on shapes and dtypes."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x must have shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"x must be floating point, got {x.dtype}: images are in [-1, 1]")
        if t.shape != (len(x),):
            raise ValueError(
                f"a noise level is a tensor of shape ({len(x)},), one for each sample, got {tuple(t.shape)}"
            )
        if labels is not None:
            if labels.shape != (len(x),) or labels.dtype != torch.int64:
                raise ValueError(
                    f"labels must be int64 of shape ({len(x)},), got {labels.dtype} of shape {tuple(labels.shape)}"
                )
            if len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < max(self.num_classes, 0):
                bad = int(labels.max()) if int(labels.max()) >= self.num_classes else int(labels.min())
                known = f"0 … {self.num_classes - 1}" if self.num_classes else "none, the model is unconditional"
                raise ValueError(f"label {bad} is not known to this model (classes: {known}); −1 is no label")

    def _settings(self) -> dict[str, Any]:
        """The constructor's arguments other than the network."""
        names = ("shape", "num_classes", "sigma_min", "sigma_max", "sigma_data")
        return {name: getattr(self, name) for name in names}

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write config.json, model.safetensors and a card; options as of PyTorchModelHubMixin (push_to_hub …). Raises
        ValueError, writing nothing, for a network that config.json cannot describe."""
        self._description()
        return super().save_pretrained(save_directory, **options)

    def _description(self) -> dict[str, Any]:
        """class_path and init_args of the network. Raises ValueError where there are none."""
        described = describe(self.network)
        if described is None:
            raise ValueError(
                f"cannot save this model: its network is a {type(self.network).__name__} object, which config.json cannot "
                "describe. Give the network as {'class_path': 'package.Class', 'init_args': {…}} instead"
            )
        return described

    def _save_pretrained(self, save_directory: Path) -> None:
        config = {"model": type(self).__name__, "network": self._description(), **self._settings(), **self.further}
        config |= {"grids": grids_as_json(self.grids)} if self.grids else {}
        (save_directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(
            weights, save_directory / WEIGHTS, metadata={"format": "pt"}
        )  # no second copy in memory, but mode 0600
        (save_directory / WEIGHTS).chmod((save_directory / CONFIG).stat().st_mode)

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
            weights = Path(model_id) / WEIGHTS
            if not weights.is_file() or "network" not in model_kwargs:
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
        model = cls(**model_kwargs)
        model.load_state_dict(load_file(weights), strict=strict)
        known = {"model", "network", "grids", *model._settings()}
        model.further = {name: value for name, value in (config or {}).items() if name not in known}
        model.grids = read_grids((config or {}).get("grids", {}), model.sigma_min, model.sigma_max)
        return model.to(map_location).eval()


class DiffusionModel(_Model):
    """An EDM denoiser: D(x, t) = c_skip(t)·x + c_out(t)·F(c_in(t)·x, t, labels), EDM eq. 7. It has no `jump`.

    Arguments as TrajectoryModel's. The network is called as network(x, t, None, labels).
    """

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """D(x, t): x (B, *shape) at levels t (B,) > 0, labels int64 (B,) with −1 = unconditional, or None -> like x.

        Raises ValueError for unfitting shapes, dtypes and labels."""
        self._check(x, t, labels)
        level = t.to(x.dtype)
        c_skip, c_out = output_scalings("edm", level, self.sigma_data, self.sigma_min)
        return match_dims(c_skip, x) * x + match_dims(c_out, x) * self._call_network(x, level, None, labels)


class ConsistencyModel(_Model):
    """A consistency model (arXiv 2303.01469): f(x, t) = c_skip·x + c_out·F with the "cm" scalings, so that f(x, σ_min) = x.

    It jumps from any level to sigma_min and to no other. f is an end of the trajectory, not the mean E[x_0 | x_t]: its
    `denoise` and `score` are those of a denoiser only where the two agree, at low noise. Arguments as TrajectoryModel's.
    """

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """f(x, t): shapes and errors as DiffusionModel's."""
        self._check(x, t, labels)
        level = t.to(x.dtype)
        c_skip, c_out = output_scalings("cm", level, self.sigma_data, self.sigma_min)
        return match_dims(c_skip, x) * x + match_dims(c_out, x) * self._call_network(x, level, None, labels)

    def jump(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        """f(x, t) where s = sigma_min. Raises ValueError for any other s, and for shapes as `denoise`."""
        if not bool(torch.isclose(s.double(), torch.full_like(s, self.sigma_min).double(), rtol=1e-6, atol=0).all()):
            raise ValueError(
                f"a consistency model jumps to sigma_min = {self.sigma_min} only, got s = {_brief(s)}: sample it in one "
                "step, with gamma = 1, or with sampling.consistency"
            )
        return self.denoise(x, t, labels)


class TrajectoryModel(_Model):
    """A consistency trajectory model (CTM, arXiv 2310.02279): jumps from any noise level to any lower one.

    network: F(x, t, s, labels) -> like x, a module or {"class_path": …, "init_args": …}; it gets c_in·x and the levels
    themselves. shape: of one sample. num_classes: 0 = unconditional. sigma_min, sigma_max: the ends of the trajectory.
    sigma_data: the data's standard deviation that the scalings assume. inner: "edm", "cm" or "no" scaling of g. outer:
    "euler" (the paper's), "variance" or "euler_variance_mixed" form of the jump.
    Raises ValueError for levels out of order and for unknown inner and outer.
    """

    def __init__(
        self,
        network: nn.Module | Mapping[str, Any],
        *,
        shape: Sequence[int],
        num_classes: int = 0,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        inner: Inner = "edm",
        outer: Outer = "euler",
    ) -> None:
        super().__init__(
            network,
            shape=shape,
            num_classes=num_classes,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            sigma_data=sigma_data,
        )
        one = torch.ones(1)
        output_scalings(inner, one, self.sigma_data, self.sigma_min)
        outer_scaling(outer, one, one, self.sigma_data, self.sigma_min)
        self.inner, self.outer = inner, outer

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "inner": self.inner, "outer": self.outer}

    @property
    def takes_guidance(self) -> bool:
        """Whether the guidance scale is an input of the network: those of ctm.networks with guidance_embedding."""
        return getattr(self.network, "guidance_embedding", None) is not None

    def _scale(self, guidance: Guidance, x: Tensor, labels: Tensor | None) -> Tensor | None:
        """The guidance scale (B,) that the network gets: 1 where there is no label, None where none was given."""
        if guidance is None:
            return None
        if not self.takes_guidance:
            raise ValueError(
                "guidance was given, but this model's network does not take it: train one with guidance_embedding: true "
                "(recipe digits-ctm-guided), or use classifier-free guidance of the undistilled kind"
            )
        scale = torch.as_tensor(guidance, dtype=torch.float32, device=x.device)
        if scale.shape not in ((), (len(x),)) or not bool(scale.isfinite().all()):
            raise ValueError(
                f"guidance must be a finite number, or a tensor of them of shape ({len(x)},), got {guidance}"
            )
        known = torch.zeros(len(x), dtype=torch.bool, device=x.device) if labels is None else labels >= 0
        return torch.where(known, scale, 1.0)

    def _g(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None, guidance: Guidance) -> Tensor:
        c_skip, c_out = output_scalings(self.inner, t, self.sigma_data, self.sigma_min)
        output = self._call_network(x, t, s, labels, self._scale(guidance, x, labels))
        return match_dims(c_skip, x) * x + match_dims(c_out, x) * output

    def g(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None, guidance: Guidance = None) -> Tensor:
        """What the network represents, in data space: g = c_skip(t)·x + c_out(t)·F(c_in(t)·x, t, s, labels).

        x (B, *shape) at levels t (B,); s (B,) the level aimed at; labels int64 (B,) with −1 = unconditional, or None.
        guidance: the scale w of the classifier-free guidance that was distilled into the network, a number or (B,); samples
        without a label are at 1, and None is 1.
        Returns like x. Raises ValueError for unfitting shapes, dtypes and labels, and for guidance where the network has no
        such input."""
        self._check(x, t, labels)
        return self._g(x, t.to(x.dtype), s.to(x.dtype), labels, guidance)

    def jump(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None, guidance: Guidance = None) -> Tensor:
        """G(x, t, s), the state at level s ≤ t of the trajectory through x at level t (paper eq. 5); x where s = t.

        Shapes as in `g`; sigma_min ≤ s ≤ t, for each sample. Returns like x. Raises ValueError for levels outside that."""
        self._check(x, t, labels)
        lowest = self.sigma_min * (1 - 1e-6)  # a grid rounded to float32 may end a little below sigma_min
        t, s = t.to(x.dtype), s.to(x.dtype)
        if s.shape != t.shape or not bool(((s <= t) & (s >= lowest)).all()):  # so that NaN is refused too
            raise ValueError(
                f"a jump needs sigma_min = {self.sigma_min} ≤ s ≤ t for every sample, got t = {_brief(t)}, s = {_brief(s)}"
            )
        g = self._g(x, t, s, labels, guidance)
        return jump_from_g(self.outer, x, g, match_dims(t, x), match_dims(s, x), self.sigma_data, self.sigma_min)

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None, guidance: Guidance = None) -> Tensor:
        """D(x, t): g(x, t, t), plus for the outers other than euler the multiple of x that makes ∂G/∂s at s = t equal
        (x − D)/t. Shapes as in `g`."""
        self._check(x, t, labels)
        level = t.to(x.dtype)
        multiple = match_dims(denoiser_multiple(self.outer, level, self.sigma_data, self.sigma_min), x)
        return self._g(x, level, level, labels, guidance) + multiple * x


def _brief(levels: Tensor) -> str:
    """A few of the levels, for an error."""
    shown = ", ".join(f"{value:g}" for value in levels.flatten()[:4].tolist())
    return f"[{shown}{', …' if levels.numel() > 4 else ''}]"


Model: TypeAlias = DiffusionModel | ConsistencyModel | TrajectoryModel
MODELS: dict[str, type[_Model]] = {
    "DiffusionModel": DiffusionModel,
    "ConsistencyModel": ConsistencyModel,
    "TrajectoryModel": TrajectoryModel,
}


def load_model(source: str | Path) -> Model:
    """The model, of any kind, in a model directory, a run directory (its model/) or a hub repository; eval mode.

    Raises FileNotFoundError where there is none, ValueError where config.json or the weights do not fit.
    """
    directory = Path(source)
    if directory.is_dir():
        found = next((d for d in (directory, directory / "model") if (d / CONFIG).is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"no {CONFIG} in {source} nor in {directory / 'model'}. Give a model or run directory, or a hub id."
            )
        config_file, place = found / CONFIG, str(found)
    else:
        if str(source).startswith((".", "/", "~", "runs/", "models/")) or (
            directory.parent.is_dir() and directory.parent != Path()
        ):
            raise FileNotFoundError(f"there is no directory {source}. Give a model or run directory, or a hub id.")
        try:
            hub_logging.set_verbosity_error()  # its retries would stand before our one sentence
            config_file, place = Path(hf_hub_download(str(source), CONFIG)), str(source)
        except Exception as error:  # hub errors are many kinds: no such repository, no network, an ill-formed id
            raise FileNotFoundError(
                f"{source} is no directory, and the hub does not give it ({type(error).__name__}). "
                "Give a model or run directory, or a hub id."
            ) from error
    try:
        kind = json.loads(config_file.read_text()).get("model", "TrajectoryModel")
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{config_file} is not a model's configuration: {error}") from error
    if kind not in MODELS:
        raise ValueError(f"{config_file} names the model {kind!r}; this version reads {', '.join(MODELS)}")
    try:
        return MODELS[kind].from_pretrained(place)  # type: ignore[return-value]
    except (RuntimeError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{place}: the weights or settings do not fit the network: {reason[:500]}") from error
