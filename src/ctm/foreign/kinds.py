"""What a file or directory is that cannot be read as a model, in one sentence, by its first bytes and its names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ctm.files import suffix_of
from ctm.foreign.text import plain, read_json

__all__ = ["foreign_directory", "foreign_settings", "what_file"]

_LFS = b"version https://git-lfs.github.com/spec/"
_STARTS = {
    b"GGUF": "it is a GGUF file of llama.cpp",
    b"\x89HDF": "it is an HDF5 file, as Keras writes them",
    b"\x93NUMPY": "it is a NumPy array",
    b"\x89PNG": "it is a PNG picture",
    b"\xff\xd8\xff": "it is a JPEG picture",
    b"\x1f\x8b": "it is packed by gzip: unpack it first",
    b"Rar!": "it is a RAR archive: unpack it first",
    b"7z\xbc\xaf": "it is a 7z archive: unpack it first",
    b"PK\x03\x04": "it is a zip file",
}


def what_file(path: Path) -> str:
    """The end of a sentence that says what a file is, by its first bytes: "it is a pointer of git-lfs …"."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "it is empty"
    if start.startswith(_LFS):
        return "it is a pointer of git-lfs, not the file itself: run git lfs pull in its repository"
    known = next((words for magic, words in _STARTS.items() if start.startswith(magic)), None)
    if known is not None:
        return known
    if start[8:10] == b'{"' and int.from_bytes(start[:8], "little") < 1 << 27:
        return "it is a safetensors file, weights alone: give the directory that has its config.json too"
    if suffix_of(path) == ".onnx" or (start[:1] == b"\x08" and re.search(rb"\x12.{0,2}(pytorch|tf2onnx|onnx)", start)):
        return "it is an ONNX file, from which no model is read here"
    if start.lstrip()[:1] in (b"<", b"{"):
        return "it begins like a web page or a text: the download went wrong, or it is another file"
    return f"it begins with the bytes {start[:7].hex(' ')}"


def foreign_settings(settings: dict[str, Any], place: str) -> str | None:
    """The sentence for a config.json of another library; None for a file that may be ours."""
    if "network" in settings:
        return None
    if isinstance(settings.get("_class_name"), str):
        return _diffusers(place, settings["_class_name"])
    if "peft_type" in settings:
        return f"{place} is an adapter of PEFT, a change to another model and none by itself: no model is read from it"
    if "model_type" in settings or "architectures" in settings:
        kind = settings.get("model_type") or settings.get("architectures")
        named = kind[0] if isinstance(kind, list) and kind else kind
        return f"{place} is a model of transformers ({plain(named)}), not a diffusion model of images"
    return None


def _diffusers(place: str, name: str) -> str:
    return (
        f"{place} is a diffusers {plain(name)} and no model directory: ctm convert {place} DIRECTORY --set sigma_data=… makes "
        "one, where sigma_data is the standard deviation of its data"
    )


def foreign_directory(directory: Path) -> str | None:
    """The sentence for a directory of another library without our config.json; None if nothing is recognised."""
    index = directory / "model_index.json"
    if index.is_file():
        settings = read_json(index)
        name = settings.get("_class_name") if isinstance(settings, dict) else None
        return _diffusers(str(directory), name if isinstance(name, str) else "pipeline")
    if (directory / "adapter_config.json").is_file():
        return foreign_settings({"peft_type": None}, str(directory))
    files = sorted(entry for entry in directory.iterdir() if entry.is_file())
    for endings, words in (
        ((".bin",), "holds weights as pickles (.bin) without a config.json of ctm"),
        ((".onnx",), "holds an ONNX model, from which no model is read here"),
        ((".ckpt",), "holds a checkpoint of Lightning (.ckpt), which is not read here"),
        ((".pkl", ".pt", ".pth"), "holds a checkpoint file: give that file itself, or convert it with ctm convert"),
        ((".safetensors",), "holds weights without the config.json that says what network they are of"),
    ):
        named = next((file for file in files if suffix_of(file) in endings), None)
        if named is not None:
            return f"{directory} {words} ({plain(named.name)})"
    return None
