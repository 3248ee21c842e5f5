"""A teacher from any source, with one interface."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctm.files import as_source, suffix_of
from ctm.models import AnyModel, ConsistencyModel, load_model
from ctm.teachers.checkpoints import Checkpoint, read_checkpoint
from ctm.teachers.diffusers import Deviation, is_diffusers, read_diffusers

__all__ = ["load_sampled", "load_teacher", "unused_deviation"]

_LOG = logging.getLogger(__name__)
_FILES = (".pkl", ".pickle", ".pt", ".pth")


def load_teacher(
    source: str | Path,
    *,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    sigma_data: Deviation | None = None,
) -> AnyModel:
    """A frozen model in eval mode with denoise, score, shape, conditioner, num_classes, sigma_min, sigma_max and
    sigma_data.

    source: a model directory, a run directory (its model/) or a hub id, of any kind of model; a directory or hub id of diffusers;
    or a checkpoint file: an EDM pickle, an OpenAI consistency-model .pt, an official CTM .pt. Nothing in a file is run. What the
    file, its names and its shapes do not tell comes from a preset or settings (docs/checkpoints.md). sigma_data: gives that of
    data of a shape, and words for where it is from, for a model of diffusers that does not say its own. What is assumed and
    what is left out go to the log as warnings.
    Raises FileNotFoundError and ValueError as `ctm.load_model`, and ValueError for a checkpoint that is damaged, refused, of
    no known kind, or that needs a setting that is not given."""
    source = as_source(source, "a teacher's directory, file or hub id")
    path = Path(source)
    if path.is_file() or (suffix_of(path) in _FILES and not path.is_dir()):
        checkpoint = read_checkpoint(path, preset=preset, settings=settings)
        model = _told(checkpoint, str(path))
    elif preset is None and is_diffusers(source):
        model = _told(read_diffusers(source, settings=settings, sigma_data=sigma_data), str(source))
    elif preset is not None or settings:
        raise ValueError(
            f"{source} is no checkpoint file: a model directory holds its settings, leave preset and settings away"
        )
    else:
        model = load_model(source)
    if isinstance(model, ConsistencyModel):
        _LOG.warning("%s is a consistency model: its weights can start a CTM, but its output is no denoiser", source)
    return model.requires_grad_(False)


def load_sampled(source: str | Path) -> AnyModel:
    """A model to draw samples from: what `ctm.load_model` reads, and a directory or hub id of diffusers. Errors as of both.

    A model of diffusers that does not say the deviation of its data has 0.5 in its place: no sampler uses it."""
    source = as_source(source, "a model's directory or hub id")
    if not is_diffusers(source):
        return load_model(source)
    return _told(read_diffusers(source, sigma_data=unused_deviation), str(source))


def unused_deviation(shape: Sequence[int]) -> tuple[float, str]:
    """What stands for sigma_data where a model is only sampled, for `load_teacher`."""
    return 0.5, "its config does not say; no sampler uses it"


def _told(checkpoint: Checkpoint, place: str) -> AnyModel:
    """The model of a checkpoint, after the log was told what was assumed and left out."""
    for assumed in checkpoint.assumed:
        _LOG.warning("%s: assumed %s", place, assumed)
    for left in checkpoint.left:
        _LOG.warning("%s: left out %s", place, left)
    return checkpoint.model
