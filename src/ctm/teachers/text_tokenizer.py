"""The tokenizer of a pipeline of diffusers: a CLIPTokenizer of transformers, which sees the known files alone."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ctm.foreign.text import plain, read_json
from ctm.models.pipeline import TOKENIZER_FILES
from ctm.teachers.diffusers_files import Parts
from ctm.teachers.library_settings import refuse_requests

__all__ = ["TOKENIZER_CONFIG", "read_tokenizer", "token_ids"]

TOKENIZER_CONFIG = "tokenizer_config.json"
_LOG = logging.getLogger(__name__)
_MOST_BYTES = 64 << 20  # tokenizer.json of Stable Diffusion has 4 MB
_TOKENS = ("unk_token", "bos_token", "eos_token", "pad_token", "sep_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens", "added_tokens_decoder")
_FLAGS = ("add_prefix_space", "do_lower_case", "clean_up_tokenization_spaces", "split_special_tokens")
_WORDS = ("padding_side", "truncation_side", "errors", "tokenizer_class")
_TAKEN = (*_TOKENS, *_LISTS, *_FLAGS, *_WORDS, "model_max_length")
_CHANGE_NOTHING = (
    *("name_or_path", "special_tokens_map_file", "processor_class", "chat_template", "backend", "is_local"),
    *("local_files_only", "auto_map", "model_input_names", "use_fast"),
)


def read_tokenizer(parts: Parts) -> Any:
    """The CLIPTokenizer of a pipeline. transformers is given copies of the files that it needs, and of the settings those that a
    tokenizer has, so that no setting leads to another file. Raises ValueError in a sentence where that fails."""
    from transformers import CLIPTokenizer

    place = f"{parts.source}/tokenizer"
    files = [file for name in TOKENIZER_FILES if (file := parts.file("tokenizer", name)) is not None]
    if not any(file.name != TOKENIZER_CONFIG for file in files):
        raise ValueError(f"{place} has no files of a tokenizer: {', '.join(TOKENIZER_FILES[1:3])} or tokenizer.json")
    with TemporaryDirectory(prefix="ctm-tokenizer-") as folder:
        for file in files:
            _copy(file, Path(folder), place)
        try:
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # a tokenizer's own library raises that, and no kind of it
            reason = plain(f"{type(error).__name__}: {error}", 200)
            raise ValueError(f"{place} cannot be read: {reason}") from error


def _copy(file: Path, folder: Path, place: str) -> None:
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{file} is longer than {_MOST_BYTES >> 20} MB, more than such a file has")
    if file.name != TOKENIZER_CONFIG:
        shutil.copyfile(file, folder / file.name)
        return
    settings = read_json(file, infinite=True)
    if not isinstance(settings, dict):
        raise ValueError(f"{file} holds no names with values")
    refuse_requests(settings, place)
    unknown = [plain(name, 40) for name in settings if name not in (*_TAKEN, *_CHANGE_NOTHING)]
    if unknown:
        words = f"{TOKENIZER_CONFIG} has settings that are not used here"
        _LOG.warning("%s: %s: %s", place, words, ", ".join(unknown[:8]))
    taken = {name: value for name, value in settings.items() if name in _TAKEN}
    (folder / file.name).write_text(json.dumps(taken), encoding="utf-8")


def token_ids(tokenizer: Any, texts: Sequence[str], tokens: int, most: int, place: str) -> tuple[Tensor, list[int]]:
    """The tokens of texts (n, tokens), int64, padded and cut to that length, and how many each text has, its start and end
    counted. most: the tokens that the text encoder knows. Raises ValueError for a token that it does not know."""
    given = list(texts)
    try:
        lengths = [len(row) for row in tokenizer(given, verbose=False).input_ids]
        rows = tokenizer(given, padding="max_length", max_length=tokens, truncation=True, verbose=False).input_ids
    except Exception as error:  # as above
        reason = plain(f"{type(error).__name__}: {error}", 200)
        raise ValueError(f"{place}/tokenizer cannot read {plain(given[0], 40)!r}: {reason}") from error
    largest = max(map(max, rows))
    if largest >= most:
        raise ValueError(
            f"{place}: its tokenizer gives the token {largest}, and its text encoder knows those from 0 to {most - 1}: they do "
            "not belong together"
        )
    return torch.tensor(rows, dtype=torch.int64), lengths
