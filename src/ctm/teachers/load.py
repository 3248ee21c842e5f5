"""A teacher from any source, with one interface."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from ctm.files import as_source, suffix_of
from ctm.models import AnyModel, ConsistencyModel, load_model
from ctm.models.files import check_model
from ctm.teachers.checkpoints import read_checkpoint

__all__ = ["check_source", "load_teacher"]

_LOG = logging.getLogger(__name__)
_FILES = (".pkl", ".pickle", ".pt", ".pth")


def load_teacher(
    source: str | Path, *, preset: str | None = None, settings: Mapping[str, object] | None = None
) -> AnyModel:
    """A frozen model in eval mode with denoise, score, shape, conditioner, num_classes, sigma_min, sigma_max and
    sigma_data.

    source: a model directory, a run directory (its model/) or a hub id, of any kind of model; or a checkpoint file: an EDM
    pickle, an OpenAI consistency-model .pt, an official CTM .pt. Nothing in a file is run. What the file, its names and its
    shapes do not tell comes from a preset or settings (docs/checkpoints.md); what is assumed goes to the log as a warning.
    Raises FileNotFoundError and ValueError as `ctm.load_model`, and ValueError for a checkpoint that is damaged, refused, of
    no known kind, or that needs a setting that is not given."""
    source = as_source(source, "a teacher's directory, file or hub id")
    path = Path(source)
    if path.is_file() or (suffix_of(path) in _FILES and not path.is_dir()):
        checkpoint = read_checkpoint(path, preset=preset, settings=settings)
        for assumed in checkpoint.assumed:
            _LOG.warning("%s: assumed %s", path, assumed)
        model = checkpoint.model
    elif preset is not None or settings:
        raise ValueError(
            f"{source} is no checkpoint file: a model directory holds its settings, leave preset and settings away"
        )
    else:
        model = load_model(source)
    if isinstance(model, ConsistencyModel):
        _LOG.warning("%s is a consistency model: its weights can start a CTM, but its output is no denoiser", source)
    return model.requires_grad_(False)


def check_source(source: str | Path) -> None:
    """Return where `load_teacher` finds a file or a configuration; weights are not read. Raises FileNotFoundError and ValueError
    as `load_teacher`."""
    path = Path(as_source(source, "a teacher's directory, file or hub id"))
    if suffix_of(path) in _FILES and not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        check_model(path if path.is_dir() else source)
