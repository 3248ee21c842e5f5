"""Samples into files as they are made: a directory of PNG files, or an .npz, which a later run goes on with; or one picture."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ctm.files import named_failures, whole_file, write_whole
from ctm.pictures import class_columns, grid_picture, save_picture, to_uint8
from ctm.terminal.paths import suffix_of

__all__ = ["check_output", "finished_samples", "sampling_record", "write_samples"]

_LARGEST_GRID = 4096  # samples of one picture, which is held in memory as a whole
_RECORD = "sample.json"
_ONE_EACH = ("labels", "seed")  # entries of the record that may be lists with one value for each sample


def check_output(out: Path, shape: tuple[int, ...], num: int) -> None:
    """Raises ValueError for a target that cannot hold the samples, before any is made."""
    if suffix_of(out) in (".npz", ".png") and out.is_dir():
        raise ValueError(f"--out {out} is a directory: give another name for the file")
    if suffix_of(out) in (".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".npy"):
        raise ValueError(f"--out {out}: samples are written to a directory, FILE.png or FILE.npz")
    _check_folder(out)
    if suffix_of(out) == ".npz":
        return
    if suffix_of(out) == ".png" and num > _LARGEST_GRID:
        raise ValueError(
            f"--out {out}: one picture shows at most {_LARGEST_GRID} samples, got --num {num}: give a directory or FILE.npz"
        )
    others = [p.name for p in out.glob("*.png") if p.stem.isdigit() and int(p.stem) >= num] if out.is_dir() else []
    if others:
        raise ValueError(f"--out {out} holds more samples than --num {num} (e.g. {others[0]}): use another directory")
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"samples of shape {shape} are no pictures: give --out FILE.npz")
    if suffix_of(out) != ".png" and out.is_file():
        raise ValueError(f"--out {out} is a file: give a directory, FILE.png or FILE.npz")


def _check_folder(out: Path) -> None:
    """Raises OSError or ValueError where `out` cannot be made, before anything is computed for it."""
    if out.absolute().parent == out.absolute():
        raise ValueError(f"--out {out} is the root of the file system: give a directory in it, FILE.png or FILE.npz")
    parent = next(folder for folder in (out, *out.absolute().parents) if folder.exists() and folder != out)
    if not parent.is_dir():
        raise ValueError(f"--out {out}: {parent} is a file, not a directory")
    if not os.access(parent, os.W_OK):
        raise PermissionError(errno.EACCES, "cannot be written to", str(parent))


def finished_samples(out: Path, about: dict[str, Any]) -> int:
    """How many samples, from the first on, an earlier run with the record `about` has written to `out`.

    In a directory --num may have been another; what an .npz was begun with for another number is made anew. Raises ValueError
    for a directory with samples of other settings, or without a record of them."""
    if suffix_of(out) == ".png":
        return 0
    if suffix_of(out) == ".npz":
        kept = _record(_partial(out))
        same = kept is not None and not _differing(kept, about) and kept["num"] == about["num"]
        return _rows(_partial(out) / "arr_0.npy") if same else 0
    if not out.is_dir():
        return 0
    done = {int(p.stem) for p in out.glob("*.png") if p.stem.isdigit() and p.stat().st_size > 0}
    kept = _record(out)
    if kept is None and not done:
        return 0
    if kept is None:
        raise ValueError(
            f"--out {out} holds pictures but no {_RECORD} that says how they were made: use another directory"
        )
    others = _differing(kept, about)
    if others:
        raise ValueError(
            f"--out {out} holds samples made with another {', '.join(others)} (see its {_RECORD}): use another directory"
        )
    return next((index for index in range(about["num"]) if index not in done), about["num"])


def write_samples(
    out: Path,
    batches: Iterable[Tensor],
    labels: Tensor | None,
    about: dict[str, Any],
    start: int = 0,
    columns: int | Literal["class"] | None = None,
) -> None:
    """A directory of 000000.png … and sample.json, one grid, or an .npz with arr_0 and arr_1.

    batches: of the samples from number `start` on, at most finished_samples; of these none is written again. columns: of the
    grid, "class": one for each class; None: ten where the labels fill rows of ten, else as many as rows."""
    if suffix_of(out) == ".png":
        save_picture(_grid(torch.cat(list(batches)), about["labels"] or [], columns), out)
    elif suffix_of(out) == ".npz":
        _write_npz(out, batches, labels, about, start)
    else:
        _write_pictures(out, batches, about, start)


def _grid(images: Tensor, labels: list[int], columns: int | Literal["class"] | None) -> Image.Image:
    if columns == "class":
        places, classes = class_columns(labels)
        return grid_picture(images, columns=len(classes), places=places)
    if columns is None:
        columns = 10 if labels and len(labels) % 10 == 0 else None
    return grid_picture(images, columns=None if columns is None else min(columns, len(images)))


def _write_pictures(out: Path, batches: Iterable[Tensor], about: dict[str, Any], start: int) -> None:
    """The record first, then each picture that is not there, whole under its name or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    _write_record(out, about)
    index = start
    for batch in batches:
        for pixels in to_uint8(batch).numpy():
            path = out / f"{index:06d}.png"
            index += 1
            if path.is_file() and path.stat().st_size > 0:
                continue
            picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
            save_picture(picture, path)


def _write_npz(out: Path, batches: Iterable[Tensor], labels: Tensor | None, about: dict[str, Any], start: int) -> None:
    """arr_0: uint8 (N, H, W, C) for pictures, float for other data; arr_1: labels where there are any; sample.json, which
    np.load passes over. The rows are gathered in FILE.npz.partial/arr_0.npy and packed at the end."""
    partial = _partial(out)
    if start == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_record(partial, about)
    for batch in batches:
        rows = to_uint8(batch).numpy() if batch.dim() == 4 else batch.numpy()
        with named_failures(partial):
            _append(partial / "arr_0.npy", np.ascontiguousarray(rows), start, about["num"])
        start += len(rows)
    with whole_file(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as target, (partial / "arr_0.npy").open("rb") as source:
            shutil.copyfileobj(source, target, 2**20)
        if labels is not None:
            with archive.open("arr_1.npy", "w", force_zip64=True) as target:
                np.lib.format.write_array(target, labels.numpy())
        archive.writestr(
            zipfile.ZipInfo(_RECORD), json.dumps(about)
        )  # without the time of writing, so the bits are the same
    shutil.rmtree(partial)


def sampling_record(source: Path) -> dict[str, Any]:
    """How `ctm sample` made a directory or .npz, by the names of an evaluation's record; nothing for samples of others."""
    try:
        if source.is_dir():
            about = json.loads((source / _RECORD).read_text(encoding="utf-8"))
        else:
            with zipfile.ZipFile(source) as archive:
                about = json.loads(archive.read(_RECORD))
        known = {name: about[name] for name in ("sampler", "steps", "gamma", "form", "seed")}
        made_by = {"model": about["model"], "checksum": about["weights"], "version": about["version"]}
        grid = {"kind": "list", "levels": about["grid"]}
        return known | {"grid": grid, "guidance": about["cfg"], "precision": about["dtype"], "made_by": made_by}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return {}


def _append(path: Path, rows: np.ndarray, start: int, num: int) -> None:
    """Put rows at number `start` of an .npy file of num rows, cutting off what may lie behind."""
    if start == 0:
        with path.open("wb") as file:
            description = np.lib.format.header_data_from_array_1_0(rows)
            np.lib.format.write_array_header_1_0(file, description | {"shape": (num, *rows.shape[1:])})
            file.write(rows.tobytes())
        return
    with path.open("r+b") as file:
        _header(file)
        file.seek(file.tell() + start * rows[0].nbytes)
        file.truncate()
        file.write(rows.tobytes())


def _header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an .npy file; the file then stands at its first row."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype


def _rows(path: Path) -> int:
    """How many whole rows an unfinished .npy file holds; 0 for one with no whole header."""
    try:
        with path.open("rb") as file:
            shape, dtype = _header(file)
            held = path.stat().st_size - file.tell()
    except (FileNotFoundError, ValueError):
        return 0
    return held // (dtype.itemsize * int(np.prod(shape[1:])))


def _partial(out: Path) -> Path:
    """Where the samples of an .npz are gathered."""
    return out.with_name(f"{out.name}.partial")


def _record(folder: Path) -> dict[str, Any] | None:
    """What sample.json in a folder says; None where there is none. Raises ValueError for one that cannot be read."""
    try:
        kept = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / _RECORD} cannot be read ({error}): use another directory") from error
    if not isinstance(kept, dict):
        raise ValueError(f"{folder / _RECORD} is no record of samples: use another directory")
    return kept


def _write_record(folder: Path, about: dict[str, Any]) -> None:
    write_whole(folder / _RECORD, (json.dumps(about, indent=2) + "\n").encode())


def _differing(kept: dict[str, Any], about: dict[str, Any]) -> list[str]:
    """The entries in which two records make other samples. Their number does not count, nor the name of the model, whose
    weights do; lists with a value for each sample are compared as far as both go."""
    asked = json.loads(json.dumps(about))
    differing = []
    for name in asked:
        if name in ("num", "model"):
            continue
        one, other = kept.get(name), asked[name]
        if name in _ONE_EACH and isinstance(one, list) and isinstance(other, list):
            common = min(len(one), len(other))
            one, other = one[:common], other[:common]
        if one != other or name not in kept:
            differing.append(name)
    return differing
