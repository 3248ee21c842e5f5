"""What a model's pipeline does for its user: latents to pictures, pictures to latents, prompts to the field "text"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from ctm.foreign.text import read_json
from ctm.models import AnyModel
from ctm.models.pipeline import Pipeline, pipeline_from
from ctm.models.protocol import Denoiser
from ctm.networks.diffusers import TEXT
from ctm.teachers.diffusers_files import CONFIG, INDEX, Parts, may_be_at_hub
from ctm.teachers.diffusers_latents import Autoencoder, read_autoencoder
from ctm.teachers.diffusers_text import embedded, text_shape

__all__ = [
    "autoencoder_in",
    "autoencoder_of",
    "check_pictures",
    "decoded",
    "embed",
    "embedded_by",
    "encoded",
    "find_autoencoder",
    "picture_shape",
    "reads_prompts",
    "takes_text",
]

_ROWS = 16  # decoded or encoded at once: an autoencoder takes many times the memory of a network on latents


def takes_text(model: object) -> bool:
    """Whether the field "text" is part of a model's condition."""
    return TEXT in getattr(getattr(model, "conditioner", None), "given_fields", {})


def reads_prompts(model: object) -> bool:
    """Whether a model takes a text, and has the tokenizer and text encoder for prompts."""
    pipeline = _pipeline_of(model)
    return takes_text(model) and pipeline is not None and pipeline.reads_text


def _pipeline_of(model: object) -> Pipeline | None:
    found = getattr(model, "pipeline", None)  # a peer's may be one of diffusers, which decodes on its own
    return found if isinstance(found, Pipeline) else None


def autoencoder_of(model: Denoiser) -> Autoencoder | None:
    """The autoencoder whose latents a model's samples are, in eval mode, kept in memory; None for a model without one.

    Raises ValueError where its files are gone, damaged, or of other latents than the model's."""
    pipeline = _pipeline_of(model)
    folder = None if pipeline is None else pipeline.autoencoder
    if pipeline is None or folder is None:
        return None
    found = autoencoder_in(pipeline)
    found.check_latents(model.shape, f"{pipeline.source}/{folder}")
    return found


def autoencoder_in(pipeline: Pipeline) -> Autoencoder:
    """The autoencoder of a pipeline that has one, in eval mode, kept in memory. Raises ValueError where its files are gone or
    damaged, ImportError without diffusers."""
    folder = pipeline.autoencoder
    if folder is None:
        raise ValueError(f"{pipeline.source} has no autoencoder")
    return _autoencoder(_PartsOfModel.of(pipeline), _state(pipeline, folder))


def find_autoencoder(source: str) -> Pipeline:
    """The AutoencoderKL in a directory or hub id of diffusers: of a pipeline, with its text encoder where it has one that is read
    here; of a model directory of ctm; or alone, config.json and weights. Nothing but these settings is read.

    Raises FileNotFoundError where there is neither, and ValueError for settings that name something else."""
    directory = Path(source)
    if not directory.is_dir() and not may_be_at_hub(source):
        raise FileNotFoundError(f"there is no directory {source}: give one with an AutoencoderKL of diffusers")
    place = Parts(source)
    index, config = place.file(INDEX), place.file(CONFIG)
    settings = {} if index is None and config is None else read_json(index or config)  # type: ignore[arg-type]
    if not isinstance(settings, dict):
        settings = {}
    found: Pipeline | None
    if index is not None:
        found = Pipeline(source, Parts(source, settings).travelling)
    elif settings.get("_class_name") == "AutoencoderKL":
        found = Pipeline(source, {"vae": ("diffusers", "AutoencoderKL")}, alone=True)
    else:
        found = pipeline_from(settings.get("pipeline"), source)
    if found is None or found.autoencoder is None:
        raise ValueError(
            f"{source} has no AutoencoderKL of diffusers: give the directory of one (config.json and weights), or of a pipeline "
            "that has one under vae"
        )
    return found


@lru_cache(maxsize=2)
def _autoencoder(parts: Parts, state: tuple[object, ...]) -> Autoencoder:
    return read_autoencoder(parts).requires_grad_(False)


def _state(pipeline: Pipeline, folder: str) -> tuple[object, ...]:
    """What changes when the files of a folder do."""
    found = []
    for name in ("config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"):
        file = pipeline.file(folder, name)
        found.append(None if file is None else (file.stat().st_mtime_ns, file.stat().st_size))
    return tuple(found)


class _PartsOfModel(Parts):
    """The parts beside a model, wherever the model was read from."""

    pipeline: Pipeline

    @classmethod
    def of(cls, pipeline: Pipeline) -> _PartsOfModel:
        found = cls(pipeline.source, {name: list(pair) for name, pair in pipeline.components.items()})
        object.__setattr__(found, "pipeline", pipeline)
        return found

    def __hash__(self) -> int:
        return hash((self.source, *sorted(self.index)))

    def file(self, *names: str) -> Path | None:
        folder, name = names
        return self.pipeline.file(folder, name)


def picture_shape(model: Denoiser) -> tuple[int, ...]:
    """The shape of what a model's samples stand for: (C, H, W) of the decoded picture for latents, else the model's own."""
    autoencoder = autoencoder_of(model)
    return tuple(model.shape) if autoencoder is None else autoencoder.picture_shape(model.shape)


def decoded(model: Denoiser, samples: Tensor) -> Tensor:
    """Samples (B, *shape) of a model as pictures: what its autoencoder makes of latents, on the model's device; other samples as
    they are. On the samples' device, in float32 where they were decoded."""
    autoencoder = autoencoder_of(model)
    if autoencoder is None:
        return samples
    return _in_pieces(autoencoder, autoencoder.decode, samples, model)


def encoded(model: Denoiser, pictures: Tensor) -> Tensor:
    """Pictures (B, C, H, W) in [-1, 1] as latents of a model, computed on its device: the mean of what its autoencoder gives,
    scaled. Raises ValueError for a model without an autoencoder."""
    autoencoder = autoencoder_of(model)
    if autoencoder is None:
        raise ValueError("the model has no autoencoder, so that pictures have no latents")
    return _in_pieces(autoencoder, autoencoder.encode, pictures, model)


def _in_pieces(autoencoder: Autoencoder, call: Callable[[Tensor], Tensor], rows: Tensor, model: Denoiser) -> Tensor:
    weights = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    place = rows.device if weights is None else weights.device
    autoencoder.to(place)
    pieces = [call(piece.to(place, torch.float32)).to(rows.device) for piece in rows.split(_ROWS)]
    return torch.cat(pieces)


def embed(model: AnyModel, prompts: Sequence[str]) -> Tensor:
    """Prompts as the field "text" of a model's condition, (len(prompts), tokens, dim) float32, by its own text encoder. Raises
    ValueError, in a sentence, for a model without a text or a text encoder."""
    if not takes_text(model):
        raise ValueError("this model takes no text: leave the prompts out")
    if model.pipeline is None or not reads_prompts(model):
        raise ValueError(
            "this model takes a text and has no tokenizer and text encoder beside it, so that prompts cannot be read: convert it "
            "again from a pipeline with both, or give the embedded texts by --condition FILE.npz"
        )
    parts = _PartsOfModel.of(model.pipeline)
    tokens, width = model.conditioner.fields[TEXT]
    text_shape(parts, tokens)
    found = embedded(parts, prompts, tokens)
    if found.shape[1:] != (tokens, width):
        raise ValueError(
            f"{parts.source}: its text encoder gives {list(found.shape[1:])} for a text, and the model takes {[tokens, width]}"
        )
    return found


def embedded_by(pipeline: Pipeline, prompts: Sequence[str]) -> Tensor:
    """Prompts embedded by a pipeline's text encoder, (len(prompts), tokens, dim) float32; tokens as its tokenizer says. Raises
    ValueError for a text encoder that is not read here, ImportError without transformers."""
    parts = _PartsOfModel.of(pipeline)
    return embedded(parts, prompts, text_shape(parts, None)[0])


def check_pictures(model: object, name: str, what: str) -> None:
    """Raises ValueError for a model of latents, or of numbers that are no pictures, which `what` does not take. name: of the
    model, as a user gave it."""
    if getattr(model, "scaling", None) is not None:
        raise ValueError(
            f"{name} is a model of arrays of numbers, and {what} works on pictures: use ctm sample and ctm evaluate, or the "
            "Python interface"
        )
    pipeline = _pipeline_of(model)
    if pipeline is not None and pipeline.autoencoder is not None:
        raise ValueError(
            f"{name} is a model of latents, and {what} works on the pictures themselves: give a model of pictures, or use ctm "
            "sample, ctm evaluate and ctm export, which decode"
        )
