"""Foreign checkpoint files as our models, and our models as official files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor

from ctm.files import whole_file
from ctm.models import AnyModel, ConsistencyModel, DiffusionModel, TrajectoryModel
from ctm.networks import EDM2
from ctm.networks.unet import UNet
from ctm.teachers.files import StateFile, read_state
from ctm.teachers.official import OfficialNetwork, from_official, recognise, to_official
from ctm.teachers.official_edm2 import UNTOLD, from_edm2
from ctm.teachers.presets import PRESETS, check_settings

__all__ = ["Checkpoint", "read_checkpoint", "write_official"]

_MODELS: dict[str, type[AnyModel]] = {
    "diffusion": DiffusionModel,
    "consistency": ConsistencyModel,
    "trajectory": TrajectoryModel,
}
_KINDS = {
    "song": "EDM's SongUNet",
    "dhariwal": "EDM's DhariwalUNet (ADM)",
    "adm": "the ADM U-Net",
    "edm2": "EDM2's UNet",
}
_EDM: dict[str, tuple[float, str]] = {  # what holds for EDM pickles that do not say otherwise
    "sigma_min": (0.002, "EDM's sampling range; the file gives no end"),
    "sigma_max": (80.0, "EDM's sampling range; the file gives no end"),
    "sigma_data": (0.5, "EDMPrecond's default"),
    "head_channels": (64, "DhariwalUNet's own, and EDM2's"),
}
_RANKS = {
    r"(time_embed|map_layer|map_label|emb_layers|affine)\w*\..*weight$": 2,
    r"(_conv|conv[01]|s\.0\.0)\.weight$": 4,
}
_NETWORK = ("image_size", "head_channels", "qkv_order", "resample_filter")  # what `recognise` may still need


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as a model in eval mode. found: sentences that say what the file is. told: settings that the file itself
    gives. chosen: settings that the caller gave. assumed: settings from elsewhere, each with its origin. left: what the source
    has and the model has not."""

    model: AnyModel
    found: list[str]
    told: list[str]
    chosen: list[str]
    assumed: list[str]
    left: list[str] = field(default_factory=list)


def read_checkpoint(
    path: str | Path,
    *,
    preset: str | None = None,
    settings: Mapping[str, object] | None = None,
    part: str | None = None,
) -> Checkpoint:
    """An EDM or EDM2 pickle, an OpenAI consistency-model .pt or an official CTM .pt as a model. Nothing in the file is run.

    The kind and the sizes of the network come from names and shapes. Other settings come from `settings`, else from what the
    file stores, else from the preset (a name in `presets.PRESETS`). part: which state dict, if the file holds several.
    Raises FileNotFoundError. Raises ValueError for a file that is damaged, refused or of no known kind, for missing and
    unexpected keys, for settings that are needed and not given, and for a preset of another kind."""
    given = check_settings(settings or {})
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}: presets are {', '.join(PRESETS)}")
    state = read_state(path, part)
    try:
        return _checkpoint(state, preset, given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (KeyError, IndexError, ZeroDivisionError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} has the names of an official network, but not its shapes ({reason}): it is damaged or of another kind"
        ) from error


def _check_ranks(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError where the layers that give the sizes are not matrices or convolutions."""
    for name, tensor in tensors.items():
        rank = next((rank for pattern, rank in _RANKS.items() if re.search(pattern, name)), tensor.ndim)
        if tensor.ndim != rank:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, where an official network has {rank} axes: "
                "the file is damaged or of another kind"
            )


def _checkpoint(state: StateFile, preset: str | None, given: Mapping[str, object]) -> Checkpoint:
    _check_ranks(state.tensors)
    seen = recognise(state.tensors)
    choice = _Choice(given, _stored(state, seen), PRESETS[preset].settings if preset else {}, f"preset {preset}")
    _check_kind(seen, preset, choice)
    network = {name: choice.take(name) for name in _NETWORK if name in seen.missing}
    kind = choice.take("model")
    names = ["sigma_data", "sigma_min", "sigma_max", *(("inner", "outer") if kind == "trajectory" else ())]
    about = {name: choice.take(name) for name in names}
    if choice.missing:
        raise ValueError(_untold(seen, choice.missing))
    _check_unused({name: value for name, value in given.items() if name not in choice.taken}, seen)
    whole = recognise(state.tensors, **network)
    if whole.missing:
        raise ValueError(_untold(seen, whole.missing))
    if whole.kind == "edm2":
        untold = [name for name in UNTOLD if name not in state.arguments.get("edm2", {})]
        choice.assumed.extend([f"{', '.join(untold)} as EDM2 has them (the file does not say)"] if untold else [])
    model = _build(whole, state, _MODELS[kind], about)
    found = [*state.notes, _description(whole, model, kind)]
    return Checkpoint(model, found, choice.told, choice.chosen, choice.assumed, _left(whole, state))


def _left(seen: OfficialNetwork, state: StateFile) -> list[str]:
    """Sentences on what the file has and the model has not."""
    lines = ["the head that estimates the uncertainty in training (logvar)"] if seen.kind == "edm2" else []
    encoder = state.arguments.get("encoder")
    if encoder is not None:
        lines.append(
            f"the file's encoder ({encoder}): the model's samples are what it makes of pictures, scaled latents"
        )
    return lines


@dataclass
class _Choice:
    """Takes each setting from the user, else from the file, else from the preset, and records where it came from."""

    given: Mapping[str, Any]
    stored: Mapping[str, Any]
    preset: Mapping[str, Any]
    preset_name: str
    taken: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)

    def take(self, name: str) -> Any:
        self.taken.add(name)
        if name in self.given:
            self.chosen.append(f"{name} = {self.given[name]}")
            return self.given[name]
        if name in self.stored:
            self.told.append(f"{name} = {self.stored[name]}")
            return self.stored[name]
        if name in self.preset:
            self.assumed.append(f"{name} = {self.preset[name]} ({self.preset_name})")
            return self.preset[name]
        if name in _EDM and self.stored.get("edm"):
            value, reason = _EDM[name]
            self.assumed.append(f"{name} = {value:g} ({reason})")
            return value
        self.missing.append(name)
        return None


def _stored(state: StateFile, seen: OfficialNetwork) -> dict[str, object]:
    """The settings that the file gives: by its s layers, and by what an EDM pickle stores."""
    arguments = state.arguments
    stored: dict[str, object] = {"model": "trajectory"} if seen.init_args.get("s_embedding") else {}
    if not arguments:
        return stored
    stored = {"model": "diffusion", "edm": True, **stored}
    for name in ("sigma_data", "sigma_min", "sigma_max"):
        value = arguments.get(name)
        if isinstance(value, int | float) and 0 < value < float("inf"):
            stored[name] = float(value)
    if isinstance(arguments.get("resample_filter"), list):
        stored["resample_filter"] = arguments["resample_filter"]
    if len(arguments["head_channels"]) == 1:
        stored["head_channels"] = arguments["head_channels"][0]
    return stored


def _check_kind(seen: OfficialNetwork, preset: str | None, choice: _Choice) -> None:
    """Raises ValueError if the file holds another network or another kind of model than the preset or the user says."""
    if preset is not None and seen.kind not in PRESETS[preset].kinds:
        kinds = " or ".join(_KINDS[kind] for kind in PRESETS[preset].kinds)
        raise ValueError(f"preset {preset} is for {kinds}, but these are the keys of {_KINDS[seen.kind]}")
    said, where = choice.given.get("model"), "--set model"
    if said is None:
        said, where = choice.preset.get("model"), choice.preset_name
    has_s = bool(seen.init_args.get("s_embedding"))
    if said == "trajectory" and not has_s:
        example = "time_embed_s.0.weight" if seen.kind == "adm" else "map_layer0_s.weight"
        raise ValueError(
            f"this looks like a consistency or diffusion model, not a CTM as {where} says: {_KINDS[seen.kind]} without s "
            f"layers ({example} and the others ending in _s are missing). Convert it with {_fitting(seen)}; a CTM trained "
            "with it as teacher starts from its weights"
        )
    if said in ("diffusion", "consistency") and has_s:
        raise ValueError(
            f"this has s layers, so it is a CTM, not the {said} model that {where} says: use {_fitting(seen)}"
        )
    if said == "consistency" and choice.stored.get("edm"):
        raise ValueError(f"this EDM pickle holds a diffusion model, not the consistency model that {where} says")


def _check_unused(given: Mapping[str, object], seen: OfficialNetwork) -> None:
    """Raises ValueError for a setting that was given and is not needed, unless names and shapes say the same."""
    shape = seen.init_args.get("shape")
    said = {"image_size": shape and shape[1], "resample_filter": seen.init_args.get("resample_filter")}
    for name, value in given.items():
        if said.get(name) is None:
            raise ValueError(f"{name} has no meaning for {_KINDS[seen.kind]} as this kind of model: leave it away")
        if said[name] != value:
            raise ValueError(f"{name} = {value} was set, but the file's names and shapes say {said[name]}")


def _fitting(seen: OfficialNetwork) -> str:
    """The presets for a network like this."""
    has_s = bool(seen.init_args.get("s_embedding"))
    if seen.kind == "edm2":
        return "no preset"
    fitting = [
        name
        for name, preset in PRESETS.items()
        if seen.kind in preset.kinds and (preset.settings["model"] == "trajectory") == has_s
    ]
    return f"--preset {' or '.join(fitting)}"


def _untold(seen: OfficialNetwork, missing: Any) -> str:
    s = "with" if seen.init_args.get("s_embedding") else "without"
    return (
        f"this is {_KINDS[seen.kind]} {s} s layers; its names and shapes do not tell {', '.join(missing)}. "
        f"Give {_fitting(seen)}, or --set {missing[0]}=… and so on"
    )


def _build(seen: OfficialNetwork, state: StateFile, kind: type[AnyModel], about: Mapping[str, Any]) -> AnyModel:
    """The model with the file's own tensors. The network is made without memory for weights and then gets them."""
    arguments = dict(seen.init_args) | dict(state.arguments.get("edm2", {}))
    dropout = state.arguments.get("dropout")
    if isinstance(dropout, int | float) and 0 <= dropout < 1:
        arguments["dropout"] = float(dropout)
    with init_empty_weights(include_buffers=False):
        model = kind(
            {"class_path": seen.class_path, "init_args": arguments},
            shape=arguments["shape"],
            num_classes=arguments.get("num_classes", 0),
            **about,
        )
    network = model.network
    if isinstance(network, EDM2):
        ours = from_edm2(state.tensors, network)
    else:
        assert isinstance(network, UNet)
        ours = from_official(state.tensors, network, qkv_order=seen.qkv_order)
    wrong = [name for name, value in ours.items() if not value.is_floating_point() or not bool(value.isfinite().all())]
    if wrong:
        raise ValueError(f"these weights are not finite numbers: {', '.join(wrong[:4])}. The file is damaged")
    network.load_state_dict({name: value.float() for name, value in ours.items()}, assign=True)
    return model.eval()


def _description(seen: OfficialNetwork, model: AnyModel, kind: str) -> str:
    channels, height, width = model.shape
    count = sum(parameter.numel() for parameter in model.network.parameters()) / 1e6
    classes = f"{model.num_classes} classes" if model.num_classes else "no classes"
    s = "s layers" if seen.init_args.get("s_embedding") else "no s layers"
    name = {"diffusion": "a diffusion model", "consistency": "a consistency model", "trajectory": "a CTM"}[kind]
    return (
        f"{name}: {_KINDS[seen.kind]} ({seen.class_path.rpartition('.')[2]}), {height}×{width} with {channels} channels, "
        f"{classes}, {s}, {count:.3g} million parameters"
    )


def write_official(model: AnyModel, path: str | Path, *, qkv_order: Any = None) -> None:
    """Write the network's weights as an official .pt, a state dict under the official names. The file appears whole or not
    at all.

    qkv_order: of the ADM U-Net's attention channels; needed for the ADM U-Net. Raises ValueError for a network without
    official form."""
    target = Path(path)
    network = model.network
    if not isinstance(network, UNet):
        raise ValueError(
            f"a {type(network).__name__} has no official form: DDPMpp, NCSNpp, DhariwalUNet and ADM can be written as .pt"
        )
    weights: dict[str, Tensor] = to_official(network, qkv_order=qkv_order)
    with whole_file(target) as temporary, temporary.open("wb") as file:
        torch.save(weights, file)
