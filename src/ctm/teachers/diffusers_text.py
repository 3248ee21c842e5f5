"""The text encoder of a pipeline of diffusers: prompts as the condition "text" of its model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ctm.foreign.text import plain, read_json
from ctm.teachers.diffusers_files import Parts, find_diffusers
from ctm.teachers.text_encoder import read_text_encoder
from ctm.teachers.text_tokenizer import TOKENIZER_CONFIG, read_tokenizer, token_ids

__all__ = ["embed_prompts", "embedded", "text_shape"]

_LOG = logging.getLogger(__name__)
_ENCODERS = ("CLIPTextModel",)
_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_MOST_TOKENS = 4096
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
    found = parts.file("tokenizer", TOKENIZER_CONFIG)
    settings = read_json(found, infinite=True) if found is not None else {}
    length = settings.get("model_max_length") if isinstance(settings, dict) else None
    if type(length) is not int or not 1 <= length <= _MOST_TOKENS:
        raise ValueError(f"{parts.source}: its tokenizer does not say how long a text is: give --set text_tokens=…")
    return length, [f"a text has {length} tokens (model_max_length of its tokenizer)"]


@torch.no_grad()
def embedded(parts: Parts, prompts: Sequence[str], tokens: int) -> Tensor:
    """Prompts (n, tokens, dim) as the text encoder of the pipeline embeds them; padded and cut to its length, as Stable Diffusion
    does. A line says which are cut. Raises ValueError as `read_text_encoder` and `read_tokenizer`, and where they do not fit."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise ImportError("a pipeline with a text needs transformers: pip install transformers") from error
    tokenizer, encoder = read_tokenizer(parts), read_text_encoder(parts)
    most, longest = encoder.config.vocab_size, encoder.config.max_position_embeddings
    if tokens > longest:
        raise ValueError(f"{parts.source}: a text has {tokens} tokens, and its text encoder takes {longest} at most")
    found, lengths = [], list[int]()
    for start in range(0, len(prompts), _AT_ONCE):
        ids, of_these = token_ids(tokenizer, prompts[start : start + _AT_ONCE], tokens, most, parts.source)
        found.append(encoder(ids)[0].float())
        lengths += of_these
    line = _cut(prompts, lengths, tokens)
    if line:
        _LOG.warning("%s", line)
    return torch.cat(found)


def _cut(prompts: Sequence[str], lengths: Sequence[int], tokens: int) -> str:
    """A line on the texts that are longer than a text can be; "" where there are none."""
    beyond = [(length - tokens, prompt) for prompt, length in zip(prompts, lengths, strict=True) if length > tokens]
    if not beyond:
        return ""
    first = f"{plain(beyond[0][1], 40)!r}"
    if len(beyond) == 1:
        return f"the text {first} is too long for the text encoder: the last {beyond[0][0]} of its tokens are left out"
    return (
        f"{len(beyond)} of {len(prompts)} texts are too long for the text encoder: the last {min(beyond)[0]} to "
        f"{max(beyond)[0]} of their tokens are left out; the first is {first}"
    )
