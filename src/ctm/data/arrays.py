"""Images and labels in a file of arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ctm.data.archive import Archive
from ctm.data.classes import could_be_labels, read_labels, text_of
from ctm.data.conditions import read_fields
from ctm.data.files import Picture
from ctm.data.images import Images
from ctm.data.limits import check_size
from ctm.data.notes import option
from ctm.data.resize import fit
from ctm.data.stack import Frame, Size, in_words, sides_of
from ctm.data.stored import ArrayFile, ArrayHeader, chosen_array, open_arrays
from ctm.files import suffix_of

__all__ = ["fit_arrays", "load_npz", "read_class_names", "without_labels"]

_CHANNELS = 16  # more are taken for a width: channels stand last
_IMAGES, _LABELS, _NAMES = ("images", "arr_0"), ("labels", "arr_1"), "class_names"


def load_npz(
    path: Path,
    image: str | None = None,
    label: str | None = None,
    max_gb: float | None = None,
    condition: Sequence[str] = (),
) -> Images:
    """The images in an .npz, .npy or .safetensors: uint8 (N, H, W, C), mostly of 1 or 3 channels, or (N, H, W), and labels, whole
    numbers or texts (N,). The last two are memory-mapped; beside an .npy, arrays are files (`ctm.data.stored`).

    image, label: names of the arrays; None: images or arr_0, and labels or arr_1 where they are there. Texts in an array
    class_names are the names of the classes. condition: names of arrays of real numbers (N, …) that are fields of the
    condition; NAME_present, true or false (N,), says in which rows NAME is there. max_gb: as in `ctm.data.limits`. Raises as
    `Archive`, and ValueError for arrays that are not there or no images or labels."""
    packed = suffix_of(path) == ".npz"
    archive: ArrayFile = Archive(path, max_gb) if packed else open_arrays(path, max_gb)
    alone = suffix_of(path) == ".npy"
    image_name = chosen_array(archive, "image", path.stem if image is None and alone else image, _IMAGES)
    if image_name is None:
        raise ValueError(
            f"{path} holds the arrays {', '.join([*archive.headers, *archive.objects]) or 'none'}: the images must be called "
            f"images or arr_0, or named by {option('image')}"
        )
    count = _check_images(path, image_name, archive.headers[image_name])
    label_name = chosen_array(archive, "label", label, () if alone else _LABELS)
    pixels = archive.read(image_name) if packed else archive.map(image_name)
    labels: np.ndarray | None = None
    names: list[str] = []
    notes: list[str] = []
    if label_name is not None:
        labels, names, notes = read_labels(_read_small(archive, label_name, count), count, f"{path} ({label_name})")
    asked = [str(chosen_array(archive, "condition", name, ())) for name in condition]
    fields, absences = read_fields(archive, asked, count)
    notes += absences
    used = {image_name, label_name, *fields}
    if labels is not None and not names and _NAMES in archive.headers:
        names, used = read_class_names(archive, int(labels.max())), used | {_NAMES}
    notes += [] if alone else _others(archive, used, count, label_name is None)
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    return Images(pixels, labels, names, str(path), f"{len(pixels)} images in {path}", tuple(notes), fields)


def _check_images(path: Path, name: str, header: ArrayHeader) -> int:
    """Number of images in an array, by its header."""
    shape = header.shape
    fronted = len(shape) == 4 and shape[3] > _CHANNELS
    if header.dtype != np.uint8 or len(shape) not in (3, 4) or fronted or min(shape) < 1:
        raise ValueError(
            f"{path}: images must be uint8 (N, H, W, C) with up to {_CHANNELS} channels, most often 1 or 3, or (N, H, W), got "
            f"{header.dtype} {shape} ({name})"
        )
    return shape[0]


def _read_small(archive: ArrayFile, name: str, count: int) -> np.ndarray:
    """The labels, read if their header allows it."""
    header = archive.headers[name]
    if not could_be_labels(header.shape, "i" if header.dtype.kind == "f" else header.dtype.kind, count):
        raise ValueError(
            f"{archive.path}: labels must be {count} whole numbers, got {header.dtype} {header.shape} ({name})"
        )
    return archive.read(name)


def read_class_names(archive: ArrayFile, largest: int) -> list[str]:
    """The texts of the array `class_names`. Raises ValueError for anything but one text for each class 0 … largest."""
    header = archive.headers[_NAMES]
    if header.dtype.kind not in "US" or len(header.shape) != 1 or header.shape[0] <= largest:
        raise ValueError(
            f"{archive.path}: class_names must be texts, one for each class 0 … {largest}, got {header.dtype} {header.shape}"
        )
    return [text_of(name, f"{archive.path}: class_names[{row}]") for row, name in enumerate(archive.read(_NAMES))]


def _others(archive: ArrayFile, used: set[str | None], count: int, unlabelled: bool) -> list[str]:
    """Lines that name the arrays that are not read."""
    left = {name: header for name, header in archive.headers.items() if name not in used}
    able = [name for name, header in left.items() if could_be_labels(header.shape, header.dtype.kind, count)]
    lines = []
    if unlabelled and able:
        lines.append(without_labels(able))
        left = {name: header for name, header in left.items() if name not in able}
    shown = [f"{name} ({header})" for name, header in left.items()] + [f"{name} (objects)" for name in archive.objects]
    return lines + ([f"not read: {', '.join(shown)}"] if shown else [])


def without_labels(able: list[str]) -> str:
    """The line for a file whose labels have an unknown name."""
    return (
        f"used without labels; the file has {', '.join(able)}; {option('label', able[0])} takes "
        f"{'it' if len(able) == 1 else 'the first'}"
    )


def fit_arrays(images: Images, size: Size | None, channels: int | None, max_gb: float | None = None) -> Images:
    """The same set at another size or channel count, each image by the rule of `ctm.data.resize`.

    Raises ValueError for images that are not square where no size is given, for another channel count of images that are neither
    grey nor in colour, and for a result larger than the limit of `ctm.data.limits`."""
    own, height, width = images.shape
    if size is None and height != width:
        raise ValueError(
            f"{images.name}: images are {height} high and {width} wide, not square: give --data.size '[{height}, {width}]' to "
            "take them as they are, or one number for squares, to which they are resized and cropped"
        )
    wanted, sides = own if channels is None else channels, (height, width) if size is None else sides_of(size)
    if sides == (height, width) and wanted == own:
        return images
    if own not in (1, 3) and wanted != own:
        raise ValueError(
            f"{images.name}: images have {own} channels, which are taken as they are: leave {option('channels')} out"
        )
    frame = Frame(*sides, wanted == 3)
    shape = (len(images), *sides, wanted)
    what = f"{images.name} as {shape[0]} images {sides[0]} high and {sides[1]} wide"
    check_size(what, math.prod(shape), images.pixels.nbytes, max_gb)
    pixels = np.empty(shape, dtype=np.uint8)
    for index, picture in enumerate(images.pixels):
        if own in (1, 3):
            whole = Image.fromarray(picture.squeeze(-1) if own == 1 else picture)
            pixels[index] = frame.pixels(Picture(whole), images.name)[0]
        else:  # each channel as a grey picture
            planes = [np.asarray(fit(Image.fromarray(picture[..., channel]), sides)) for channel in range(own)]
            pixels[index] = np.stack(planes, axis=-1)
    cropped = width * sides[0] != height * sides[1]
    notes = (
        [f"all images are {height} high and {width} wide: cropped to the form of {in_words(sides)}"] if cropped else []
    )
    return replace(images, pixels=pixels, notes=(*images.notes, *notes))
