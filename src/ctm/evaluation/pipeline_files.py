"""The files of a pipeline of diffusers for --peer, looked at before its libraries open them, and its weights after that."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ctm.foreign.text import plain, read_json
from ctm.hub import asking_hub
from ctm.models.reading import check_weights
from ctm.teachers.diffusers_files import INDEX, Parts
from ctm.teachers.library_settings import refuse_requests

__all__ = ["checked_parts", "opened_modules"]

_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")  # the last: its safety checker, in diffusers itself
_WORD = re.compile(r"[A-Za-z]\w*", re.ASCII)
_AUTO = re.compile(r"Auto[A-Z]")  # AutoTokenizer, not AutoencoderKL: these take a class that the directory names
_SETTINGS = ("config.json", "scheduler_config.json")
_OF_TRANSFORMERS = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
_ADAPTER = "adapter_config.json"


def checked_parts(source: str) -> tuple[str, dict[str, tuple[str, str]]]:
    """The class of a pipeline, which is one of diffusers', and its parts by name (library, class), of diffusers and transformers.

    Raises FileNotFoundError where there is none, and ValueError, before anything is imported, for other classes and for settings
    of a part that ask for code, kernels, adapters or quantized weights."""
    with asking_hub():
        return _checked(source)


def _checked(source: str) -> tuple[str, dict[str, tuple[str, str]]]:
    file = Parts(source).file(INDEX)
    if file is None:
        raise FileNotFoundError(
            f"--peer {source} is no pipeline of diffusers: it has no {INDEX}. Give the directory or hub id of one, or "
            "MODULE:OBJECT"
        )
    index = read_json(file)
    kind = index.get("_class_name") if isinstance(index, Mapping) else None
    if not isinstance(kind, str) or not _WORD.fullmatch(kind):
        raise ValueError(f"--peer {source}: its {INDEX} asks for code of its own, which is not run")
    refuse_requests(index, f"--peer {source}")
    parts = {}
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or value == [None, None]:
            continue
        words = [word for word in value if isinstance(word, str) and _WORD.fullmatch(word)]
        if len(value) != 2 or len(words) != 2 or words[0] not in _LIBRARIES:
            raise ValueError(
                f"--peer {source}: its {plain(name, 40)} is {plain(str(value), 80)}, and parts are of diffusers or transformers: "
                "nothing was imported"
            )
        if _AUTO.match(words[1]):
            raise ValueError(
                f"--peer {source}: its {plain(name, 40)} is {words[1]}, which takes whatever class the files name: nothing was "
                f"imported. Write the class itself into {INDEX}, such as CLIPTokenizer"
            )
        parts[name] = (words[0], words[1])
        _check_settings(source, name, words[0])
    return kind, parts


def _check_settings(source: str, part: str, library: str) -> None:
    """Raises ValueError for settings of a part that would lead its library elsewhere."""
    files = Parts(source)
    for name in _SETTINGS if library == "diffusers" else _OF_TRANSFORMERS:
        file = files.file(part, name)
        if file is not None:
            refuse_requests(read_json(file, infinite=True), f"--peer {source}, {plain(part, 40)}/{name}")
    if library != "diffusers" and files.file(part, _ADAPTER) is not None:
        raise ValueError(
            f"--peer {source}: {plain(part, 40)} has {_ADAPTER}, which changes its weights by a file from elsewhere: take it out"
        )


def opened_modules(source: str, parts: Mapping[str, tuple[str, str]]) -> dict[str, nn.Module]:
    """The parts that have weights, opened by their libraries in float32. Raises ValueError where weights are missing, which the
    libraries would fill with random numbers, or not finite, and what the libraries raise."""
    import diffusers
    import transformers
    from diffusers.pipelines import stable_diffusion

    libraries = {"diffusers": diffusers, "transformers": transformers, "stable_diffusion": stable_diffusion}
    opened = {}
    for name, (library, word) in parts.items():
        kind: Any = getattr(libraries[library], word, None)
        if not (isinstance(kind, type) and issubclass(kind, nn.Module) and hasattr(kind, "from_pretrained")):
            continue
        options = {
            "subfolder": name,
            "use_safetensors": True,
            "output_loading_info": True,
            "torch_dtype": torch.float32,
        }
        module, told = kind.from_pretrained(source, **options)
        missing = sorted(map(str, told.get("missing_keys") or ()))
        if missing:
            raise ValueError(
                f"{name}: {len(missing)} of its tensors are not in its weights, first {plain(missing[0])}: {word} would "
                "fill them with random numbers"
            )
        numbers = {key: tensor for key, tensor in module.state_dict().items() if tensor.is_floating_point()}
        check_weights(numbers, name)
        opened[name] = module
    return opened
