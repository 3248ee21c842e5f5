"""Turn an EDM or official checkpoint, or a model of diffusers, into a model directory, or a model directory into an official
.pt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from ctm.data import load_images
from ctm.files import suffix_of, whole_directory
from ctm.models import load_model
from ctm.teachers.checkpoints import Checkpoint, read_checkpoint, write_official
from ctm.teachers.diffusers import is_diffusers, read_diffusers
from ctm.teachers.presets import PRESETS, SETTINGS, parse_settings
from ctm.terminal.parser import Parser, command_parser
from ctm.terminal.paths import check_place
from ctm.training.levels import measured_deviation
from ctm.training.posthoc import Profile, blended, posthoc_weights, profile_miss, profile_of

__all__ = ["parser", "run"]

_OFFICIAL = (".pt", ".pth")


def parser() -> Parser:
    result = command_parser(
        "convert",
        "Read an EDM network pickle, an OpenAI consistency-model .pt, an official CTM .pt, or a directory or hub id of "
        "diffusers, running nothing in it, and write a model directory (config.json, model.safetensors); or write a model "
        "directory as an official .pt, when OUT ends so.",
        "ctm convert edm-cifar10-32x32-cond-vp.pkl models/edm-cifar10",
    )
    result.add_argument(
        "checkpoint",
        type=str,
        help="a .pkl or .pt file, or a directory or hub id of diffusers; or, to write a .pt, a model directory or hub id",
    )
    result.add_argument("out", type=str, help="the model directory to make, or a file ending in .pt")
    result.add_argument(
        "--preset",
        type=str,
        default=None,
        help=f"settings that names and shapes cannot tell, of a released checkpoint: {', '.join(PRESETS)}",
    )
    result.add_argument(
        "--set",
        action="append",
        default=None,
        metavar="KEY=VALUE",
        help=f"one such setting, before the file's and the preset's: {', '.join(SETTINGS)}",
    )
    result.add_argument(
        "--part", type=str, default=None, help="which weights, where a file holds several: ema_0.9999, target, model …"
    )
    result.add_argument(
        "--data",
        type=str,
        default=None,
        help="data by name or path, to measure sigma_data for a model of diffusers, which does not say its own",
    )
    words = (
        "another average of the same run, for --ema; @TIME,SIGMA_REL says which, where its name does not end as EDM2's"
    )
    result.add_argument("--average", action="append", default=None, metavar="FILE", help=words)
    result.add_argument(
        "--ema",
        type=float,
        default=None,
        help="make the average of this relative length from CHECKPOINT and each --average, such as 0.1",
    )
    return result


def run(settings: Namespace) -> None:
    """Convert one way or the other. Print what was found, what the file says, and each value that was set or assumed."""
    source, out = Path(settings.checkpoint), Path(settings.out)
    _check_target(out)
    given = parse_settings(settings["set"] or ())
    if settings.ema is not None or settings.average:
        _write(_posthoc(settings, given), out)
        return
    if not source.is_file() and suffix_of(out) in _OFFICIAL:
        _to_official(settings, given, out)
        return
    if not source.is_file() and is_diffusers(settings.checkpoint):
        _write(_from_diffusers(settings, given), out)
        return
    if settings.data is not None:
        raise ValueError(f"--data measures sigma_data for a model of diffusers, and {source} is none: leave it away")
    if source.is_dir():
        raise ValueError(f"{source} is a directory: OUT must end in .pt, to write its model as an official checkpoint")
    if suffix_of(out) in _OFFICIAL:
        raise ValueError(f"{source} is a checkpoint already: OUT must be the model directory to make, got {out}")
    checkpoint = read_checkpoint(source, preset=settings.preset, settings=given, part=settings.part)
    _write(checkpoint, out)


def _posthoc(settings: Namespace, given: dict[str, object]) -> Checkpoint:
    """The average of length --ema, made of the checkpoint's and those of --average. Raises ValueError for one without the other,
    and for averages that are not of one run."""
    if settings.ema is None or not settings.average:
        raise ValueError("--ema makes an average of two or more stored ones: give --ema 0.1 and --average FILE")
    named = [profile_of(text) for text in (settings.checkpoint, *settings.average)]
    stored = [profile for _, profile in named]
    wanted = Profile(max(profile.time for profile in stored), settings.ema)
    shares = posthoc_weights(stored, wanted)
    read = [read_checkpoint(name, preset=settings.preset, settings=given, part=settings.part) for name, _ in named]
    first = read[0]
    kinds = [(checkpoint.model.network.init_args, checkpoint.model.sigma_data) for checkpoint in read]
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError("the networks of the stored averages are not the same: they are not of one run")
    first.model.load_state_dict(blended([checkpoint.model.state_dict() for checkpoint in read], shares))
    for (name, profile), share in zip(named, shares, strict=True):
        first.chosen.append(f"{share:.4g} of {Path(name).name}, sigma_rel {profile.sigma_rel:g} at {profile.time:g}")
    miss = profile_miss(stored, shares, wanted)
    first.chosen.append(
        f"sigma_rel = {settings.ema:g} at {wanted.time:g}; the profile misses by {miss:.1%} of its length"
    )
    lengths = [profile.sigma_rel for profile in stored]
    if not min(lengths) <= settings.ema <= max(lengths):
        first.chosen.append(
            f"{settings.ema:g} lies outside {min(lengths):g} to {max(lengths):g}, where it is less exact"
        )
    return first


def _from_diffusers(settings: Namespace, given: dict[str, object]) -> Checkpoint:
    """The model of a directory or hub id of diffusers. Raises ValueError for options that belong to checkpoint files."""
    for option in ("preset", "part"):
        if getattr(settings, option) is not None:
            raise ValueError(
                f"--{option} is for checkpoint files, and {settings.checkpoint} is of diffusers: leave it away"
            )
    name = settings.data
    deviation = None if name is None else lambda shape: _measured(name, shape)
    return read_diffusers(settings.checkpoint, settings=given, sigma_data=deviation)


def _measured(name: str, shape: Sequence[int]) -> tuple[float, str]:
    """The deviation of data in the model's size, and words for it. Raises ValueError for a model that takes no pictures."""
    channels, height, width = shape
    if channels not in (1, 3) or height != width:
        raise ValueError(
            f"the model takes {height}×{width} with {channels} channels, and --data measures square pictures: give "
            "--set sigma_data=…, the standard deviation of what it was trained on"
        )
    images = load_images(name, size=height, channels=channels)
    return measured_deviation(images)[0], f"measured, the standard deviation of {name} at {height}×{width}"


def _write(checkpoint: Checkpoint, out: Path) -> None:
    """Print what was found, and write the model directory."""
    said = {
        "found": checkpoint.found,
        "told by the file": checkpoint.told,
        "set": checkpoint.chosen,
        "assumed": checkpoint.assumed,
        "left out": checkpoint.left,
    }
    for title, lines in said.items():
        for line in lines:
            print(f"{title}: {line}")
    with whole_directory(out) as made:
        checkpoint.model.save_pretrained(made)
    print(f"written: {out}")


def _check_target(out: Path) -> None:
    """Raises ValueError where `out` exists: nothing is overwritten."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir()) and suffix_of(out) not in _OFFICIAL):
        raise ValueError(f"{out} is there already: give a new name, or remove it first")
    check_place(out)


def _to_official(settings: Namespace, given: dict[str, object], out: Path) -> None:
    preset = settings.preset
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}: presets are {', '.join(PRESETS)}")
    others = [name for name in given if name != "qkv_order"]
    if others or settings.part is not None:
        raise ValueError("only --set qkv_order=… and --preset have a meaning when a model directory is written as .pt")
    order = given.get("qkv_order", PRESETS[preset].settings.get("qkv_order") if preset else None)
    model = load_model(settings.checkpoint)
    order = order if type(model.network).__name__ == "ADM" else None
    write_official(model, out, qkv_order=order)
    if order is not None:
        print(
            f"set: qkv_order = {order}" if "qkv_order" in given else f"assumed: qkv_order = {order} (preset {preset})"
        )
    print(f"written: {out}, the weights under their official names. Its users must know what it does not hold:")
    for name in ("sigma_data", "sigma_min", "sigma_max", "inner", "outer", "class_names"):
        if hasattr(model, name):
            print(f"  {name} = {getattr(model, name)}")
