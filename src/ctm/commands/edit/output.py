"""Edited pictures into files: a strip with captions, or a directory of PNG files."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ctm.commands.edit.common import Edited
from ctm.commands.output import RECORD, check_output
from ctm.files import named_failures, suffix_of, whole_directory, write_whole
from ctm.pictures import save_picture, to_uint8

__all__ = ["check_target", "strip", "write_edit"]

_SIDE, _GAP, _COLUMNS, _TEXT = 128, 8, 10, 14
_GROUND, _INK = 32, 224


def check_target(out: Path, shape: tuple[int, ...], num: int, inputs: Sequence[str]) -> None:
    """Raises ValueError for a target that cannot hold the results, that holds samples, or that would overwrite an input
    picture."""
    if suffix_of(out) == ".npz":
        raise ValueError(f"--out {out}: edits are written to FILE.png or to a directory")
    check_output(out, shape, num)
    if (out / RECORD).is_file():
        raise ValueError(f"--out {out} holds samples (it has {RECORD}): use another directory for the edit")
    for given in (Path(name) for name in inputs):
        same = given.resolve() == out.resolve() or (
            suffix_of(out) != ".png" and given.resolve().parent == out.resolve()
        )
        if same:
            raise ValueError(f"--out {out} would write over {given}, which is read: give another name")


def write_edit(
    out: Path, edited: Edited, about: Mapping[str, object], whole: Callable[[Image.Image], bytes] | None = None
) -> None:
    """Write the results. FILE.png is one strip. A directory gets input.png, known.png and so on, the results as 000000.png
    …, and edit.json: all of them or none, and no result of an earlier edit stays. whole: makes the file of the strip; None
    writes its pixels alone."""
    if suffix_of(out) == ".png" and whole is not None:
        write_whole(out, whole(strip(edited)))
        return
    if suffix_of(out) == ".png":
        save_picture(strip(edited), out)
        return
    if not out.is_dir():
        with whole_directory(out) as made:
            _fill(made, edited, about)
        return
    with named_failures(out), tempfile.TemporaryDirectory(prefix=".edit.", dir=out) as made:
        _fill(Path(made), edited, about)  # all of it, before anything in the directory is replaced
        whole_set = sorted(path.name for path in Path(made).iterdir())
        for name in whole_set:
            os.replace(Path(made) / name, out / name)
        for old in out.glob("[0-9]*.png"):  # of an earlier edit, where a policy now withholds that number
            if old.name not in whole_set and old.stem.isascii() and old.stem.isdigit():
                old.unlink()


def _fill(folder: Path, edited: Edited, about: Mapping[str, object]) -> None:
    for name, pixels in (*edited.before, *edited.after):
        save_picture(_picture(pixels), folder / f"{name}.png")
    numbers = range(len(edited.results)) if edited.numbers is None else edited.numbers
    for place, (index, pixels) in enumerate(zip(numbers, edited.results, strict=True)):
        path = folder / f"{index:06d}.png"
        if edited.files is None:
            save_picture(_picture(pixels), path)
        else:
            write_whole(path, edited.files[place])
    write_whole(folder / "edit.json", (json.dumps(about, indent=2) + "\n").encode())


def strip(edited: Edited) -> Image.Image:
    """All pictures in rows of up to ten, each with its name above it. Pictures are enlarged by whole pixels to about 128;
    smaller ones are stretched to the same square."""
    results = zip(edited.captions, edited.results, strict=True)
    panels = [*edited.before, *results, *edited.after]
    side = edited.results.shape[-1]
    cell = side * max(1, round(_SIDE / side))
    columns = min(len(panels), _COLUMNS)
    width, height = cell + _GAP, cell + _GAP + _TEXT
    sheet = Image.new(
        "L" if edited.results.shape[1] == 1 else "RGB",
        (columns * width + _GAP, math.ceil(len(panels) / columns) * height + _GAP),
        _GROUND if edited.results.shape[1] == 1 else (_GROUND,) * 3,
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT - 2)
    ink = _INK if sheet.mode == "L" else (_INK,) * 3
    for index, (caption, pixels) in enumerate(panels):
        left, top = (index % columns) * width + _GAP, (index // columns) * height + _GAP // 2
        draw.text((left, top), caption, fill=ink, font=font)
        picture = _picture(pixels).resize((cell, cell), Image.Resampling.NEAREST)
        sheet.paste(picture if picture.mode == sheet.mode else picture.convert(sheet.mode), (left, top + _TEXT + 2))
    return sheet


def _picture(pixels: Tensor) -> Image.Image:
    """(C, h, w) in [-1, 1] as a picture of mode L or RGB."""
    values = to_uint8(pixels[None].detach().cpu()).numpy()[0]
    return Image.fromarray(values.squeeze(-1) if values.shape[-1] == 1 else values)
