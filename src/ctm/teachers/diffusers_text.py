"""The text encoder of a pipeline of diffusers: prompts as the condition "text" of its model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctm.foreign.text import plain, read_json
from ctm.foreign.weights import tensor_shapes
from ctm.models.pipeline import TOKENIZER_FILES
from ctm.models.reading import TooLarge, bounded_building
from ctm.teachers.diffusers_files import Parts, find_diffusers

__all__ = ["embed_prompts", "embedded", "text_shape"]

_ENCODERS = ("CLIPTextModel",)
_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_MOST_TOKENS = 4096
_WEIGHTS = "model.safetensors"
_AT_ONCE = 64


def embed_prompts(source: str | Path, prompts: Sequence[str]) -> Tensor:
    """Prompts as the text encoder of a pipeline of diffusers embeds them, (len(prompts), tokens, dim) float32: the field "text"
    of the condition of its model. "" is the empty prompt. Nothing in the files is run, and nothing that they name is imported.

    Raises ValueError for a pipeline without a text encoder that is read here, and ImportError without transformers."""
    parts = find_diffusers(source)
    if parts is None or not parts.network:
        raise ValueError(f"{source} is no pipeline of diffusers: it has no text encoder")
    return embedded(parts, prompts, text_shape(parts, None)[0])


def text_shape(parts: Parts, tokens: int | None) -> tuple[int, list[str]]:
    """How many tokens a text has, and a line for it. tokens: as a caller gives it. Raises ValueError where nobody says it, and
    for a tokenizer or text encoder that is not read here."""
    for name, known in (("text_encoder", _ENCODERS), ("tokenizer", _TOKENIZERS)):
        library, kind = parts.components.get(name, ("", ""))
        if (kind or tokens is None) and (library != "transformers" or kind not in known):
            shown = f"{plain(kind)} of {plain(library)}" if kind else "none"
            raise ValueError(
                f"{parts.source}: its {name} is {shown}; what is read here is {', '.join(known)} of transformers"
            )
    if tokens is not None:
        return tokens, []
    found = parts.file("tokenizer", "tokenizer_config.json")
    settings = read_json(found, infinite=True) if found is not None else {}
    length = settings.get("model_max_length") if isinstance(settings, dict) else None
    if type(length) is not int or not 1 <= length <= _MOST_TOKENS:
        raise ValueError(f"{parts.source}: its tokenizer does not say how long a text is: give --set text_tokens=…")
    return length, [f"a text has {length} tokens (model_max_length of its tokenizer)"]


@torch.no_grad()
def embedded(parts: Parts, prompts: Sequence[str], tokens: int) -> Tensor:
    """Prompts (n, tokens, dim) as the pipeline's text encoder embeds them; padded to its length, as Stable Diffusion does."""
    tokenizer, encoder = _read(parts)
    found = []
    for start in range(0, len(prompts), _AT_ONCE):
        some = list(prompts[start : start + _AT_ONCE])
        ids = tokenizer(some, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt")
        found.append(encoder(ids.input_ids)[0].float())
    return torch.cat(found)


def _read(parts: Parts) -> tuple[Any, Any]:
    """The tokenizer and the text encoder, the weights looked at before anything is built."""
    try:
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise ImportError("a pipeline with a text needs transformers: pip install transformers") from error
    place = f"{parts.source}/text_encoder"
    config, weights = parts.file("text_encoder", "config.json"), parts.file("text_encoder", _WEIGHTS)
    if config is None or weights is None:
        raise ValueError(f"{place} needs config.json and {_WEIGHTS}, weights that are no pickle")
    settings = read_json(config)
    numbers = [value for value in settings.values() if type(value) is int] if isinstance(settings, dict) else []
    if not numbers or "auto_map" in settings or any(abs(number) > 1 << 20 for number in numbers):
        raise ValueError(
            f"{place}: its config is none of a CLIPTextModel, asks for code of its own, or for sizes above 2^20"
        )
    disable_progress_bar()
    try:
        with bounded_building(tensor_shapes(weights)), torch.device("meta"):
            CLIPTextModel(
                CLIPTextConfig(**{name: value for name, value in settings.items() if not name.startswith("_")})
            )
        tokenizer = CLIPTokenizer.from_pretrained(_tokenizer_folder(parts))
        encoder = CLIPTextModel.from_pretrained(config.parent, use_safetensors=True)
    except TooLarge as error:
        raise ValueError(f"{place}: its config asks for more than its weights hold") from error
    except Exception as error:  # a tokenizer's own library raises that, and no kind of it
        reason = plain(f"{type(error).__name__}: {error}", 200)
        raise ValueError(f"{place} or the tokenizer beside it cannot be read: {reason}") from error
    return tokenizer, encoder.float().eval()


def _tokenizer_folder(parts: Parts) -> Path:
    """The folder of the tokenizer's files, all of them there. Raises ValueError where there are none."""
    found = [parts.file("tokenizer", name) for name in TOKENIZER_FILES]
    first = next((file for file in found if file is not None), None)
    if first is None:
        raise ValueError("its tokenizer has no files")
    return first.parent
