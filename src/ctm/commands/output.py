"""Samples into files while they are made: a directory of PNG files, an .npz, or one picture. A later run continues a
directory or an .npz."""

from __future__ import annotations

import json
import shutil
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ctm.data.notes import tell
from ctm.files import named_failures, suffix_of, whole_file, write_whole
from ctm.foreign.text import JSONObject, parse_json, plain, read_json, text_in
from ctm.pictures import check_numbers, class_columns, grid_picture, save_picture, to_uint8
from ctm.scaling import Scaling
from ctm.terminal.paths import check_place

__all__ = [
    "RECORD",
    "check_output",
    "finished_samples",
    "looked_at",
    "sample_grid",
    "sampling_record",
    "scaling_record",
    "write_record",
    "write_samples",
]

_LARGEST_GRID = 4096  # samples of one picture, which is held in memory as a whole
_FAR, _MUCH = 1.5, 0.01  # a value of a picture, and the share of such values, that a line tells of
RECORD = "sample.json"
_LONGEST = 16 << 20  # bytes of it: it has a label and a seed for each sample
_WHERE_SET = ("churn", "churn_min", "churn_max", "churn_noise", "eta", "noise_stream")  # entries that few records have
_ONE_EACH = ("labels", "seed")  # entries of the record that may be lists with one value for each sample


def check_output(out: Path, shape: tuple[int, ...], num: int, *, values: bool = False) -> None:
    """Raises ValueError for a target that cannot hold the samples. Call it before any sample is made. values: whether they are
    numbers of a stated scale and no pictures."""
    if suffix_of(out) in (".npz", ".npy", ".png") and out.is_dir():
        raise ValueError(f"--out {out} is a directory: give another name for the file")
    if suffix_of(out) in (".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff"):
        raise ValueError(f"--out {out}: samples are written to a directory, FILE.png, FILE.npz or FILE.npy")
    owner = next((name for name in ("config.json", "config.yaml") if (out / name).is_file()), None)
    if owner is not None:
        raise ValueError(
            f"--out {out} is the directory of a model or a run (it has {owner}): give another for the samples"
        )
    check_place(out)
    if suffix_of(out) in (".npz", ".npy"):
        return
    if suffix_of(out) == ".png" and num > _LARGEST_GRID:
        raise ValueError(
            f"--out {out}: one picture shows at most {_LARGEST_GRID} samples, got --num {num}: give a directory or FILE.npz"
        )
    others = (
        [p.name for p in out.glob("*.png") if p.stem.isascii() and p.stem.isdigit() and int(p.stem) >= num]
        if out.is_dir()
        else []
    )
    if others:
        raise ValueError(f"--out {out} holds more samples than --num {num} (e.g. {others[0]}): use another directory")
    if values or len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"samples of shape {shape} are no pictures: give --out FILE.npz or FILE.npy")
    if suffix_of(out) != ".png" and out.is_file():
        raise ValueError(f"--out {out} is a file: give a directory, FILE.png or FILE.npz")


def finished_samples(out: Path, about: JSONObject, withheld: Collection[int] = ()) -> int:
    """Number of samples, from the first on, that an earlier run with the record `about` has written to `out`. withheld: numbers
    of those that it judged and did not write.

    A directory may have been written with another --num. An .npz that was begun with another --num is made again. Raises
    ValueError for a directory with samples of other settings, or with pictures and no record."""
    if suffix_of(out) == ".png":
        return 0
    if suffix_of(out) in (".npz", ".npy"):
        kept = _record(_partial(out))
        same = kept is not None and not _differing(kept, about) and kept.get("num") == about["num"]
        return _rows(_partial(out) / "arr_0.npy") if same else 0
    if not out.is_dir():
        return 0
    done = {int(p.stem) for p in out.glob("*.png") if p.stem.isascii() and p.stem.isdigit() and p.stat().st_size > 0}
    done |= set(withheld)
    kept = _record(out)
    if kept is None and not done:
        return 0
    if kept is None:
        raise ValueError(
            f"--out {out} holds pictures but no {RECORD} that says how they were made: use another directory"
        )
    others = _differing(kept, about)
    if others:
        raise ValueError(
            f"--out {out} holds samples made with another {', '.join(others)} (see its {RECORD}): use another directory"
        )
    return next((index for index in range(about["num"]) if index not in done), about["num"])


def looked_at(batches: Iterable[Tensor], start: int = 0, *, values: bool = False) -> Iterator[Tensor]:
    """The batches. A line at the end says if much of the pictures was cut off at the ends of their range.

    start: the number of the first sample. values: they are no pictures. Raises ValueError for samples that are no numbers, before
    they are written."""
    far = seen = 0
    for batch in batches:
        check_numbers(batch, range(start, start + len(batch)))
        start += len(batch)
        if batch.dim() == 4 and not values:
            far, seen = far + int((batch.abs() > _FAR).sum()), seen + batch.numel()
        yield batch
    if far > _MUCH * seen:
        tell(
            [f"{far / seen:.0%} of the values of the pictures lie outside [-{_FAR}, {_FAR}] and are cut off at [-1, 1]"]
        )


def write_samples(
    out: Path,
    batches: Iterable[Tensor],
    labels: Tensor | None,
    about: JSONObject,
    start: int = 0,
    columns: int | Literal["class"] | None = None,
    class_names: Sequence[str] = (),
) -> None:
    """Write the samples: a directory of 000000.png … and sample.json, one grid of pictures, or an .npz with arr_0 and arr_1.

    batches: the samples from number `start` on. start may be less than `finished_samples`; a picture that is there already
    is not written again. columns: of the grid; "class" gives one column to each class; None gives ten columns where the
    labels fill rows of ten, else a square. class_names: kept in an .npz as its array class_names."""
    if suffix_of(out) == ".png":
        save_picture(sample_grid(torch.cat(list(batches)), about["labels"] or [], columns), out)
    elif suffix_of(out) in (".npz", ".npy"):
        _write_npz(out, batches, labels, about, start, class_names)
    else:
        _write_pictures(out, batches, about, start)


def sample_grid(
    images: Tensor, labels: list[int], columns: int | Literal["class"] | None, withheld: Collection[int] = ()
) -> Image.Image:
    """One picture of all samples, as `write_samples` makes it. withheld: numbers of samples whose cells stay empty."""
    if columns == "class":
        places, classes = class_columns(labels)
        columns = len(classes)
    else:
        places = list(range(len(images)))
        if columns is None:
            columns = 10 if labels and len(labels) % 10 == 0 else None
        columns = None if columns is None else min(columns, len(images))
    return grid_picture(images, columns=columns, places=[None if each in withheld else each for each in places])


def _write_pictures(out: Path, batches: Iterable[Tensor], about: Mapping[str, object], start: int) -> None:
    """Write the record, then each picture that is missing. A picture appears under its name only when it is whole."""
    out.mkdir(parents=True, exist_ok=True)
    write_record(out, about)
    index = start
    for batch in batches:
        for pixels in to_uint8(batch).numpy():
            path = out / f"{index:06d}.png"
            index += 1
            if path.is_file() and path.stat().st_size > 0:
                continue
            picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
            save_picture(picture, path)


def _write_npz(
    out: Path,
    batches: Iterable[Tensor],
    labels: Tensor | None,
    about: JSONObject,
    start: int,
    class_names: Sequence[str],
) -> None:
    """Write an .npz, or the array alone and its record beside it as an .npy. arr_0 is uint8 (N, H, W, C) for pictures; for other
    data, whose record has a scaling, it is called data and is float (N, *shape). arr_1 holds the labels, if any; np.load
    ignores sample.json.

    The rows are gathered in FILE.npz.partial/arr_0.npy and packed at the end."""
    partial, values = _partial(out), "scaling" in about
    if start == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_record(partial, about)
    for batch in batches:
        rows = to_uint8(batch).numpy() if batch.dim() == 4 and not values else batch.numpy()
        with named_failures(partial):
            _append(partial / "arr_0.npy", np.ascontiguousarray(rows), start, about["num"])
        start += len(rows)
    if suffix_of(out) == ".npy":
        (partial / "arr_0.npy").replace(out)
        write_whole(out.with_name(f"{out.name}.json"), (json.dumps(about, indent=2) + "\n").encode())
        shutil.rmtree(partial)
        return
    with whole_file(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with (
            archive.open("data.npy" if values else "arr_0.npy", "w", force_zip64=True) as target,
            (partial / "arr_0.npy").open("rb") as source,
        ):
            shutil.copyfileobj(source, target, 2**20)
        if labels is not None:
            with archive.open("labels.npy" if values else "arr_1.npy", "w", force_zip64=True) as target:
                np.lib.format.write_array(target, labels.numpy())
        if class_names:
            with archive.open("class_names.npy", "w", force_zip64=True) as target:
                np.lib.format.write_array(target, np.array(list(class_names)))
        archive.writestr(
            zipfile.ZipInfo(RECORD), json.dumps(about)
        )  # without the time of writing, so the bits are the same
    shutil.rmtree(partial)


def sampling_record(source: Path) -> dict[str, object]:
    """The settings with which `ctm sample` made a directory or .npz, under the names of an evaluation's record. Empty for
    other samples.

    Raises ValueError for a record that is not JSON, is longer than 16 MB or is nested deeper than 50."""
    try:
        about = _record(source, "give the samples without it") if source.is_dir() else _packed_record(source)
        if about is None:
            return {}
        known = {name: about[name] for name in ("sampler", "steps", "gamma", "form", "seed")}
        made_by = {"model": about["model"], "checksum": about["weights"], "version": about["version"]}
        grid = {"kind": "list", "levels": about["grid"]}
        known |= {"fields": about["condition"]} if "condition" in about else {}
        known |= {name: about[name] for name in _WHERE_SET if name in about}
        return known | {"grid": grid, "guidance": about["cfg"], "precision": about["dtype"], "made_by": made_by}
    except KeyError:
        return {}


def scaling_record(model: object) -> JSONObject:
    """What the record of a model's samples says of numbers that are no pictures: their shape, and the scaling that was undone.
    Empty for a model of pictures."""
    scaling: Scaling | None = getattr(model, "scaling", None)
    return {} if scaling is None else {"shape": list(model.shape), "scaling": scaling.as_json()}  # type: ignore[attr-defined]


def _packed_record(source: Path) -> dict[str, object] | None:
    """The contents of sample.json in an .npz, None where there is none. At most 16 MB of it are inflated."""
    name = f"{source} ({RECORD})"
    try:
        with zipfile.ZipFile(source) as archive:
            if RECORD not in archive.namelist():
                return None
            with archive.open(RECORD) as file:
                about = parse_json(text_in(file, name, _LONGEST), name)
    except FileNotFoundError:
        return None  # reading the samples says so
    except zipfile.BadZipFile:
        return None
    except (RuntimeError, EOFError, zlib.error) as error:
        raise ValueError(f"{name} cannot be read ({plain(str(error))}): it is encrypted or damaged") from error
    return about if isinstance(about, dict) else None


def _append(path: Path, rows: np.ndarray, start: int, num: int) -> None:
    """Write rows at number `start` of an .npy file of num rows. Anything behind them is cut off."""
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
    """(shape, dtype) of an .npy file. The file then stands at its first row."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype


def _rows(path: Path) -> int:
    """Number of whole rows in an unfinished .npy file; 0 where its header is not whole."""
    try:
        with path.open("rb") as file:
            shape, dtype = _header(file)
            held = path.stat().st_size - file.tell()
    except (FileNotFoundError, ValueError):
        return 0
    return held // (dtype.itemsize * int(np.prod(shape[1:])))


def _partial(out: Path) -> Path:
    """The directory in which the samples of an .npz are gathered."""
    return out.with_name(f"{out.name}.partial")


def _record(folder: Path, remedy: str = "use another directory") -> JSONObject | None:
    """The contents of sample.json in a folder, None where there is none. Raises ValueError for a file that cannot be read."""
    try:
        kept = read_json(folder / RECORD, _LONGEST)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{folder / RECORD} cannot be read ({plain(str(error), 200)}): {remedy}") from error
    if not isinstance(kept, dict):
        raise ValueError(f"{folder / RECORD} is no record of samples: {remedy}")
    return kept


def write_record(folder: Path, about: Mapping[str, object]) -> None:
    """Write sample.json into a folder, which is made."""
    write_whole(folder / RECORD, (json.dumps(about, indent=2) + "\n").encode())


def _differing(kept: Mapping[str, object], about: Mapping[str, object]) -> list[str]:
    """Names of the entries in which two records would give other samples: of either record, where one that is left out is null.
    `num` does not count. `model` does not count either, because the weights do. Lists with one value for each sample are
    compared up to the shorter length."""
    asked = json.loads(json.dumps(about))
    differing = []
    for name in dict.fromkeys([*asked, *kept]):  # what only the earlier run was given counts as well
        if name in ("num", "model"):
            continue
        one, other = kept.get(name), asked.get(name)
        if name in _ONE_EACH and isinstance(one, list) and isinstance(other, list):
            common = min(len(one), len(other))
            one, other = one[:common], other[:common]
        if one != other:
            differing.append(name)
    return differing
