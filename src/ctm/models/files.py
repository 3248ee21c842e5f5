"""A model of any kind from a directory or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from huggingface_hub import hf_hub_download
from safetensors import SafetensorError

from ctm.files import as_source, suffix_of
from ctm.foreign.kinds import foreign_directory, what_file
from ctm.foreign.text import plain
from ctm.hub import asking_hub
from ctm.models.consistency import ConsistencyModel
from ctm.models.diffusion import DiffusionModel
from ctm.models.reading import CONFIG, read_config
from ctm.models.trajectory import TrajectoryModel

__all__ = ["MODELS", "AnyModel", "check_model", "load_model", "not_at_hub"]

AnyModel: TypeAlias = DiffusionModel | ConsistencyModel | TrajectoryModel
MODELS: dict[str, type[AnyModel]] = {
    "DiffusionModel": DiffusionModel,
    "ConsistencyModel": ConsistencyModel,
    "TrajectoryModel": TrajectoryModel,
}


def load_model(source: str | Path) -> AnyModel:
    """The model, of any kind, in a model directory, a run directory (its model/) or a hub repository; eval mode.

    Raises FileNotFoundError where there is none, ValueError where config.json or the weights do not fit, and TypeError for
    anything but a text or a path.
    """
    config_file, place = _found(as_source(source, "a model's directory or hub id"))
    kind = read_config(config_file).get("model", "TrajectoryModel")
    if not isinstance(kind, str) or kind not in MODELS:
        raise ValueError(f"{config_file} names the model {plain(kind)!r}; this version reads {', '.join(MODELS)}")
    try:
        return MODELS[kind].from_pretrained(place)
    except (RuntimeError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{place}: the weights or settings do not fit the network: {reason[:500]}") from error


def check_model(source: str | Path) -> None:
    """Return where `load_model` finds a configuration, which is read and nothing else. Raises FileNotFoundError and ValueError as
    `load_model`."""
    read_config(_found(as_source(source, "a model's directory or hub id"))[0])


def _found(source: str | Path) -> tuple[Path, str]:
    """config.json of a model, and the place of the model for `from_pretrained`. Raises as `load_model`."""
    directory = Path(source)
    if directory.is_file():
        raise ValueError(f"{source} is a file and no model directory: {_what_to_do(directory)}")
    if directory.is_dir():
        found = next((d for d in (directory, directory / "model") if (d / CONFIG).is_file()), None)
        if found is None:
            raise FileNotFoundError(
                foreign_directory(directory)
                or f"no {CONFIG} in {source} nor in {directory / 'model'}. Give a model or run directory, or a hub id."
            )
        config_file, place = found / CONFIG, str(found)
    else:
        if str(source).startswith((".", "/", "~", "runs/", "models/")) or (
            directory.parent.is_dir() and directory.parent != Path()
        ):
            raise FileNotFoundError(f"there is no directory {source}. Give a model or run directory, or a hub id.")
        try:
            with asking_hub():
                config_file, place = Path(hf_hub_download(str(source), CONFIG)), str(source)
        except Exception as error:  # hub errors are many kinds: no such repository, no network, an ill-formed id
            raise not_at_hub(source, error) from error
    return config_file, place


def not_at_hub(source: str | Path, error: Exception) -> FileNotFoundError:
    """What is raised for a name that is no directory here and that the hub does not give."""
    near = next((place for place in ("models", "runs") if (Path(place) / source / "").is_dir()), None)
    return FileNotFoundError(
        f"{source} is no directory, and the hub does not give it ({type(error).__name__}). "
        + ("Give a model or run directory, or a hub id." if near is None else f"Did you mean {near}/{source}?")
    )


def _what_to_do(file: Path) -> str:
    """What a file is that stands where a model directory should, and what to do with it."""
    if suffix_of(file) in (".pkl", ".pickle", ".pt", ".pth"):
        return f"a checkpoint becomes one by ctm convert {file} DIRECTORY"
    return what_file(file)
