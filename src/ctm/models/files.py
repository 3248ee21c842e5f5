"""A model of any kind from a directory or the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias

from huggingface_hub import hf_hub_download
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError

from ctm.models.base import CONFIG
from ctm.models.consistency import ConsistencyModel
from ctm.models.diffusion import DiffusionModel
from ctm.models.trajectory import TrajectoryModel

__all__ = ["MODELS", "AnyModel", "load_model"]

AnyModel: TypeAlias = DiffusionModel | ConsistencyModel | TrajectoryModel
MODELS: dict[str, type[AnyModel]] = {
    "DiffusionModel": DiffusionModel,
    "ConsistencyModel": ConsistencyModel,
    "TrajectoryModel": TrajectoryModel,
}


def load_model(source: str | Path) -> AnyModel:
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
        return MODELS[kind].from_pretrained(place)
    except (RuntimeError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{place}: the weights or settings do not fit the network: {reason[:500]}") from error
