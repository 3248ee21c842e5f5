"""Settings that a checkpoint's names and shapes cannot tell: named sets of them, and settings given by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["PRESETS", "SETTINGS", "Preset", "check_settings", "parse_settings"]

_EDM = {"model": "diffusion", "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}
_CM = {**_EDM, "model": "consistency"}
_CTM = {**_EDM, "model": "trajectory", "inner": "edm", "outer": "euler"}
_IMAGENET = {"image_size": 64, "head_channels": 64, "qkv_order": "three-heads-dim", "resample_filter": [1, 1]}


@dataclass(frozen=True)
class Preset:
    """kinds: of networks (as `official.recognise` names them) that the preset is for. settings: by the names in SETTINGS."""

    kinds: tuple[str, ...]
    settings: Mapping[str, Any]


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "edm-cifar10": Preset(("song",), {**_EDM, "resample_filter": [1, 1]}),
        "edm-imagenet64": Preset(("adm", "dhariwal"), {**_EDM, **_IMAGENET}),
        "cm-imagenet64": Preset(("adm",), {**_CM, **_IMAGENET}),
        "ctm-cifar10": Preset(("song",), {**_CTM, "resample_filter": [1, 1]}),
        "ctm-imagenet64": Preset(("adm", "dhariwal"), {**_CTM, **_IMAGENET}),
    }
)
"""The released checkpoints' settings."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "model": ("diffusion", "consistency", "trajectory"),
    "qkv_order": ("three-heads-dim", "heads-three-dim"),
    "inner": ("edm", "cm", "no"),
    "outer": ("euler", "variance", "euler_variance_mixed"),
}
_NUMBERS = ("sigma_data", "sigma_min", "sigma_max")
_WHOLE = ("image_size", "head_channels", "text_tokens")
SETTINGS: tuple[str, ...] = (*_CHOICES, *_NUMBERS, *_WHOLE, "null_class", "resample_filter")
"""The settings' names. model: what the network was trained as. qkv_order: of the ADM U-Net's attention channels. The others: as
the arguments of models and networks; null_class, image_size and text_tokens (the length of a text) for models of diffusers."""


def parse_settings(given: Iterable[str]) -> dict[str, Any]:
    """The settings in ["key=value", …]. Raises ValueError for an unknown key, a value that does not fit, or a key given
    twice."""
    parsed: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name in parsed:
            raise ValueError(f"--set takes key=value, each key once, got {text!r}: keys are {', '.join(SETTINGS)}")
        try:
            parsed[name] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name] = value
    return check_settings(parsed)


def check_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, each checked. Raises ValueError for an unknown name or an impossible value."""
    for name, value in given.items():
        if name not in SETTINGS:
            raise ValueError(f"{name!r} is no setting of a checkpoint: settings are {', '.join(SETTINGS)}")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(_CHOICES[name])}, got {value!r}")
        if name in _NUMBERS and not (type(value) in (int, float) and math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a number above 0, got {value!r}")
        if name in _WHOLE and not (type(value) is int and value > 0):
            raise ValueError(f"{name} must be a whole number above 0, got {value!r}")
        if name == "null_class" and not (type(value) is int and value >= 0):
            raise ValueError(f"null_class must be the number of a class, from 0 on, got {value!r}")
        if name == "resample_filter" and not _is_filter(value):
            raise ValueError(f"resample_filter must be a list of numbers above 0 such as [1,3,3,1], got {value!r}")
    return dict(given)


def _is_filter(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= 16 and all(type(v) in (int, float) and v > 0 for v in value)
