"""The files of a model of diffusers, in a directory or at the hub: where its network, scheduler and weights are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils import logging as hub_logging

from ctm.files import suffix_of
from ctm.foreign.text import plain, read_json
from ctm.models.files import not_at_hub
from ctm.models.pipeline import AUTOENCODERS, TEXT_PARTS
from ctm.networks.diffusers import Kind

__all__ = ["CONFIG", "INDEX", "Parts", "find_diffusers", "may_be_at_hub", "read_config", "renamed_attention"]

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
_WEIGHTS = "diffusion_pytorch_model"
_NEW_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_ATTENTION = re.compile(r"(?<=\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)")
_NETWORKS = ("unet", "transformer")


@dataclass(frozen=True)
class Parts:
    """Where the parts of a model are. source: a directory or a hub id. index: of a pipeline, empty for a network alone.
    network: the folder of the network's config.json and weights, "" for the source itself."""

    source: str
    index: dict[str, Any] = field(default_factory=dict)
    network: str = ""

    def file(self, *names: str) -> Path | None:
        """A file of the source by its folder and name; None where there is none."""
        return _file(self.source, "/".join(name for name in names if name))

    @property
    def components(self) -> dict[str, tuple[str, str]]:
        """The pipeline's parts by name: (library, class)."""
        entries = {name: value for name, value in self.index.items() if not name.startswith("_")}
        return {
            name: (value[0], value[1])
            for name, value in entries.items()
            if isinstance(value, list) and len(value) == 2 and all(isinstance(word, str) for word in value)
        }

    @property
    def latents(self) -> str | None:
        """The folder of the autoencoder between pictures and the network's latents, None where it takes pictures."""
        return next((name for name in AUTOENCODERS if name in self.components), None)

    @property
    def travelling(self) -> dict[str, tuple[str, str]]:
        """The parts that go with a model: an autoencoder that is read here, and a tokenizer with its text encoder."""
        own = self.components
        found = {name: own[name] for name in AUTOENCODERS if own.get(name) == ("diffusers", "AutoencoderKL")}
        return found | ({name: own[name] for name in TEXT_PARTS} if set(TEXT_PARTS) <= own.keys() else {})

    @property
    def left_out(self) -> list[str]:
        """The parts of the pipeline that no model is read from."""
        return [name for name in self.components if name not in (*_NETWORKS, *TEXT_PARTS, *AUTOENCODERS, "scheduler")]

    def scheduler(self) -> tuple[Any, str]:
        """The scheduler's settings and the file. Raises ValueError where there is none."""
        for folder in ("scheduler", ""):
            found = self.file(folder, SCHEDULER)
            if found is not None:
                return read_json(found, infinite=True), f"{self.source}/{folder + '/' if folder else ''}{SCHEDULER}"
        raise ValueError(
            f"{self.source} has a network and no {SCHEDULER}, which says what it was trained to predict and at which levels: "
            "give the pipeline's directory, or put the scheduler's file beside it"
        )

    def weights(self, folder: str | None = None) -> tuple[Path, list[str]]:
        """The weights in a folder, None: the network's, and a line on them. Raises ValueError in a sentence where they are
        pickles, in pieces, or not there."""
        folder = self.network if folder is None else folder
        plain_file = self.file(folder, f"{_WEIGHTS}.safetensors")
        if plain_file is not None:
            return plain_file, []
        place = f"{self.source}/{folder}".rstrip("/")
        half = self.file(folder, f"{_WEIGHTS}.fp16.safetensors")
        if half is not None:
            return half, [f"{place} has weights in half precision only ({half.name}): they are kept as float32"]
        if self.file(folder, f"{_WEIGHTS}.safetensors.index.json") is not None:
            raise ValueError(
                f"{place} has its weights in several files, which are not read: save it again by save_pretrained(…, "
                "max_shard_size='100GB') of diffusers"
            )
        if self.file(folder, f"{_WEIGHTS}.bin") is not None:
            raise ValueError(
                f"{place} has its weights as a pickle ({_WEIGHTS}.bin), which is not read: open it where you trust it, and save "
                "it again by save_pretrained of diffusers, which writes safetensors"
            )
        raise ValueError(f"{place} has no {_WEIGHTS}.safetensors, the weights")


def find_diffusers(source: str | Path) -> Parts | None:
    """The parts of a model of diffusers, None where the source is none. Raises ValueError for one whose network is not read,
    and FileNotFoundError for a hub id that the hub does not give."""
    name = str(source)
    if Path(name).is_dir():
        config = _file(name, CONFIG)
    elif may_be_at_hub(name):
        config = None if isinstance(try_to_load_from_cache(name, INDEX), str) else _config_at_hub(name)
    else:
        return None
    if config is not None:
        try:
            settings = _mapping(config)
        except ValueError:  # load_model says what it is
            return None
        if not isinstance(settings.get("_class_name"), str) or "network" in settings:
            return None
        return Parts(name)
    index = _file(name, INDEX)
    if index is None:
        return None
    found = Parts(name, _mapping(index))
    twice = [part for part in found.components if part.rstrip("_0123456789") == "text_encoder"]
    if len(twice) > 1:
        raise ValueError(
            f"{name} is a pipeline with {len(twice)} text encoders ({', '.join(map(plain, twice))}): models of one are read here"
        )
    networks = [part for part in _NETWORKS if part in found.components]
    if len(networks) != 1:
        raise ValueError(
            f"{name} is a pipeline {_words(found.index)} without one unet or transformer: there is no model to read in it"
        )
    library, kind = found.components[networks[0]]
    if library != "diffusers" or kind not in get_args(Kind):
        raise ValueError(
            f"{name}: its {networks[0]} is a {plain(kind)} of {plain(library)}; what is read here is {', '.join(get_args(Kind))}"
        )
    return Parts(name, found.index, networks[0])


def may_be_at_hub(name: str) -> bool:
    """Whether a name is that of a hub repository: OWNER/NAME, and none that looks like a path here."""
    here = Path(name).exists() or (Path(name).parent.is_dir() and Path(name).parent != Path())
    path = name.startswith((".", "/", "~", "runs/", "models/")) or suffix_of(Path(name)) in (
        ".pkl",
        ".pickle",
        ".pt",
        ".pth",
    )
    return name.count("/") == 1 and not here and not path


def _config_at_hub(name: str) -> Path | None:
    """config.json of a hub repository, None for one without. Raises FileNotFoundError where the hub does not give it."""
    hub_logging.set_verbosity_error()  # its retries would stand before our one sentence
    try:
        return Path(hf_hub_download(name, CONFIG))
    except Exception as error:  # hub errors are many kinds
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise not_at_hub(name, error) from error


def read_config(parts: Parts) -> tuple[str, dict[str, Any]]:
    """The kind of the network and its settings, as its config.json has them. Raises ValueError for another kind, and for a file
    that asks for code of its own."""
    place = "/".join(part for part in (parts.source, parts.network, CONFIG) if part)
    found = parts.file(parts.network, CONFIG)
    if found is None:
        raise ValueError(f"{place} is not there: it has the settings of the network")
    settings = _mapping(found)
    kind = settings.get("_class_name")
    if not isinstance(kind, str) or kind not in get_args(Kind):
        shown = plain(kind) if isinstance(kind, str) else "no network"
        raise ValueError(f"{place} is of a diffusers {shown}: what is read here is {', '.join(get_args(Kind))}")
    if parts.network and parts.components[parts.network][1] != kind:
        raise ValueError(f"{place} is of a {kind}, and {INDEX} names a {plain(parts.components[parts.network][1])}")
    asks = [name for name in ("auto_map", "custom_pipelines") if name in settings]
    if asks:
        raise ValueError(
            f"{place} asks for code of its own ({asks[0]}): nothing of it was imported, and it is not read"
        )
    return kind, {name: value for name, value in settings.items() if not name.startswith("_")}


def renamed_attention(name: str) -> str:
    """A tensor's name, where attention has the names that it had before diffusers 0.14: query, key, value, proj_attn."""
    return _ATTENTION.sub(lambda found: _NEW_NAMES[found.group()], name)


def _words(index: Mapping[str, Any]) -> str:
    name = index.get("_class_name")
    return plain(name) if isinstance(name, str) else "of its own code"


def _mapping(file: Path) -> dict[str, Any]:
    settings = read_json(file)
    if not isinstance(settings, dict):
        raise ValueError(f"{file} holds no names with values")
    return settings


def _file(source: str, name: str) -> Path | None:
    directory = Path(source)
    if directory.is_dir():
        return directory / name if (directory / name).is_file() else None
    try:
        return Path(hf_hub_download(source, name))
    except Exception:  # hub errors are many kinds; what is needed is asked for in a sentence
        return None
