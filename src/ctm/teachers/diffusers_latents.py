"""The autoencoder of a pipeline of diffusers: pictures to the latents that its model denoises, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ctm.foreign.text import plain, read_json
from ctm.foreign.weights import tensor_shapes
from ctm.models.reading import TooLarge, bounded_building, check_weights
from ctm.networks.arguments import fits_settings
from ctm.teachers.diffusers_files import Parts, find_diffusers, renamed_attention

__all__ = ["Autoencoder", "load_autoencoder", "read_autoencoder"]

_KIND = "AutoencoderKL"


class Autoencoder(nn.Module):
    """An AutoencoderKL of diffusers with its scaling: a model's latents are scaling·(z − shift) of what it encodes.

    module: the AutoencoderKL; scaling, shift: of its config (latent diffusion, arXiv 2112.10752, section 4.3)."""

    def __init__(self, module: nn.Module, scaling: float, shift: float = 0.0) -> None:
        super().__init__()
        self.module, self.scaling, self.shift = module, scaling, shift

    @torch.no_grad()
    def encode(self, pictures: Tensor, noise: Tensor | None = None) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1] to latents (B, c, h, w) of the model: the mean of the normal distribution that the
        encoder gives, or a draw from it, mean + deviation·noise. noise: standard normal (B, c, h, w)."""
        module: Any = self.module
        found = module.encode(pictures).latent_dist
        z = found.mode() if noise is None else found.mean + found.std * noise
        return self.scaling * (z - self.shift)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, c, h, w) of the model to pictures (B, C, H, W), in [-1, 1] but for what the decoder goes beyond."""
        module: Any = self.module
        return module.decode(latents / self.scaling + self.shift, return_dict=False)[0]

    def picture_shape(self, latents: Sequence[int]) -> tuple[int, int, int]:
        """(C, H, W) of the picture that latents (c, h, w) stand for."""
        return int(self._settings.out_channels), latents[1] * self._times, latents[2] * self._times

    def latent_shape(self, pictures: Sequence[int]) -> tuple[int, int, int]:
        """(c, h, w) of the latents of pictures (C, H, W). Raises ValueError for pictures of other channels than the encoder's,
        and for sides that it does not divide."""
        channels, height, width = pictures
        if channels != self.channels or height % self._times or width % self._times:
            raise ValueError(
                f"the autoencoder takes pictures of {self.channels} channels whose sides are multiples of {self._times}, and "
                f"these are {channels}×{height}×{width}: give --size"
            )
        return int(self._settings.latent_channels), height // self._times, width // self._times

    @property
    def channels(self) -> int:
        """Of the pictures that it encodes."""
        return int(self._settings.in_channels)

    @property
    def _times(self) -> int:
        """How many times a picture's side is that of its latents."""
        return int(2 ** (len(self._settings.block_out_channels) - 1))

    @property
    def _settings(self) -> Any:
        return self.module.config

    def check_latents(self, shape: Sequence[int], place: str) -> None:
        """Raises ValueError where a model of that shape is not of this autoencoder's latents."""
        channels = self._settings.latent_channels
        if len(shape) != 3 or shape[0] != channels:
            raise ValueError(
                f"{place}: its autoencoder has latents of {channels} channels, and the model's are {tuple(shape)}"
            )


def load_autoencoder(source: str | Path) -> Autoencoder:
    """The autoencoder of a pipeline of diffusers, in eval mode, float32. Its model's samples, `decode`d, are pictures.

    Nothing in the files is run, and nothing is built beyond its weights. Raises ValueError for a pipeline without an
    AutoencoderKL, and for settings or weights that do not fit; ImportError without diffusers."""
    parts = find_diffusers(source)
    if parts is None:
        raise ValueError(f"{source} has no {_KIND} of diffusers: what is read here has one under vae")
    return read_autoencoder(parts)


def read_autoencoder(parts: Parts) -> Autoencoder:
    """The autoencoder among the parts of a pipeline, as `load_autoencoder` gives it. Raises as that."""
    folder = parts.latents
    if folder is None or parts.components[folder] != ("diffusers", _KIND):
        raise ValueError(f"{parts.source} has no {_KIND} of diffusers: what is read here has one under vae")
    place = f"{parts.source}/{folder}"
    file = parts.file(folder, "config.json")
    settings = None if file is None else read_json(file)
    named = isinstance(settings, dict) and settings.get("_class_name") == _KIND
    own = (
        {name: value for name, value in settings.items() if not name.startswith("_")}
        if isinstance(settings, dict)
        else {}
    )
    if not named or not fits_settings(own):
        raise ValueError(f"{place}: its config is not one of an {_KIND} with numbers of at most 65,536")
    scaling, shift = _scaling(own, place)
    weights, _ = parts.weights(folder)
    shapes = tensor_shapes(weights)
    try:
        with bounded_building(shapes), torch.device("meta"):
            _build(own)
        module = _build(own)
        tensors = {renamed_attention(name): value.float() for name, value in load_file(weights).items()}
        check_weights(tensors, place)
        module.load_state_dict(tensors)
    except TooLarge as error:
        raise ValueError(f"{place}: its config asks for more than its weights hold") from error
    except (SafetensorError, RuntimeError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"{place}: its weights do not fit its config: {plain(str(error), 200)}") from error
    return Autoencoder(module.eval(), scaling, shift)


def _build(settings: Mapping[str, Any]) -> nn.Module:
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ImportError(f"an {_KIND} needs diffusers: pip install 'ctm-torch[diffusers]'") from error
    module: Any = AutoencoderKL(**settings)
    return module


def _scaling(settings: Mapping[str, Any], place: str) -> tuple[float, float]:
    """(scaling_factor, shift_factor) of its config. Raises ValueError for other scalings of latents."""
    scaling, shift = settings.get("scaling_factor", 0.18215), settings.get("shift_factor") or 0.0
    numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in (scaling, shift))
    others = [name for name in ("latents_mean", "latents_std") if settings.get(name) is not None]
    if not numbers or not scaling > 0 or others:
        raise ValueError(
            f"{place}: latents are scaled by one scaling_factor and shift_factor here, and its config has others"
        )
    return float(scaling), float(shift)
