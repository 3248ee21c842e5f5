"""What stands beside a model's network and travels with its directory: an autoencoder for latents, a tokenizer and a text encoder
for prompts, as diffusers writes them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from ctm.files import file_digest
from ctm.foreign.text import plain

__all__ = ["AUTOENCODERS", "TEXT_PARTS", "TOKENIZER_FILES", "Pipeline", "pipeline_from"]

AUTOENCODERS, TEXT_PARTS = ("vae", "vqvae"), ("text_encoder", "tokenizer")
_READ = {"AutoencoderKL", "CLIPTextModel", "CLIPTokenizer", "CLIPTokenizerFast"}
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
TOKENIZER_FILES = (
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
)
_FILES = ("config.json", *TOKENIZER_FILES)
_NAMES = (*AUTOENCODERS, *TEXT_PARTS)


@dataclass(frozen=True)
class Pipeline:
    """Where a model's autoencoder and text encoder are. source: the directory or hub id with their folders. components: by the
    folder's name (library, class), as model_index.json of diffusers has them. options: of hf_hub_download, such as revision.
    alone: the files of the one component stand in the source itself, not in a folder."""

    source: str
    components: Mapping[str, tuple[str, str]]
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    alone: bool = False

    @property
    def autoencoder(self) -> str | None:
        """The folder of the autoencoder, None where the model's samples are what it was trained on."""
        return next((name for name in AUTOENCODERS if name in self.components), None)

    @property
    def reads_text(self) -> bool:
        """Whether prompts can be embedded."""
        return all(name in self.components for name in TEXT_PARTS)

    def file(self, folder: str, name: str) -> Path | None:
        """A file of one of the folders, None where there is none."""
        directory, place = Path(self.source), name if self.alone else f"{folder}/{name}"
        if directory.is_dir():
            return directory / place if (directory / place).is_file() else None
        try:
            return Path(hf_hub_download(self.source, place, **self.options))
        except Exception:  # hub errors are many kinds; what is needed is asked for in a sentence
            return None

    @property
    def missing(self) -> list[str]:
        """The folders of which there is no file."""
        return [name for name in self.components if not any(self.file(name, file) for file in _FILES)]

    def copy_to(self, place: Path) -> None:
        """Copy the folders into a model's directory, but not onto themselves; weights of half precision under the usual name.
        Raises FileNotFoundError where a folder is gone."""
        for folder in self.components:
            found = [self.file(folder, name) for name in _FILES]
            weights = next((file for name in _WEIGHTS if (file := self.file(folder, name)) is not None), None)
            files = [file for file in (*found, weights) if file is not None]
            if not files:
                raise FileNotFoundError(f"{self.source}/{folder}, which belongs to the model, is gone: put it back")
            (place / folder).mkdir(parents=True, exist_ok=True)
            for file in files:
                target = place / folder / file.name.replace(".fp16", "")
                if not (target.exists() and target.samefile(file)):
                    shutil.copyfile(file, target)

    def only(self, *folders: str) -> Pipeline:
        """The pipeline with these of its components."""
        return replace(self, components={name: pair for name, pair in self.components.items() if name in folders})

    def digest(self, folder: str) -> str:
        """The SHA-256 of a folder's settings and weights. Raises FileNotFoundError where they are gone."""
        files = [self.file(folder, "config.json")]
        files.append(next((file for name in _WEIGHTS if (file := self.file(folder, name)) is not None), None))
        if None in files:
            raise FileNotFoundError(f"{self.source}/{folder}, which belongs to the model, is gone: put it back")
        joined = "".join(file_digest(file) for file in files if file is not None)
        return hashlib.sha256(joined.encode()).hexdigest()

    def as_json(self) -> dict[str, list[str]]:
        """The components as config.json keeps them; `pipeline_from` reads them."""
        return {name: list(pair) for name, pair in self.components.items()}


def pipeline_from(settings: object, source: str, options: Mapping[str, Any] | None = None) -> Pipeline | None:
    """The pipeline of a model's config.json, whose folders are beside it; None where there is none. Raises ValueError for parts
    that are not read here."""
    if settings is None:
        return None
    pairs: list[tuple[Any, Any]] = list(settings.items()) if isinstance(settings, Mapping) else [(None, None)]
    for name, pair in pairs:
        known = name in _NAMES and isinstance(pair, list | tuple) and len(pair) == 2
        if not known or not all(isinstance(word, str) for word in pair) or pair[1] not in _READ:
            raise ValueError(
                f"{source}: its pipeline has {plain(f'{name}: {pair}')}, and what is read here is {', '.join(sorted(_READ))} "
                f"under {', '.join(_NAMES)}"
            )
    return Pipeline(source, {name: (pair[0], pair[1]) for name, pair in pairs}, options or {})
