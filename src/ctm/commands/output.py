"""Samples into files: a directory of PNG files, one picture, or an .npz."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ctm.pictures import grid_picture, to_uint8

__all__ = ["check_output", "write_samples"]


def check_output(out: Path, shape: tuple[int, ...], num: int) -> None:
    """Raises ValueError for a target that cannot hold the samples, before any is made."""
    if out.suffix in (".npz", ".png") and out.is_dir():
        raise ValueError(f"--out {out} is a directory: give another name for the file")
    if out.suffix.lower() in (".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".npy"):
        raise ValueError(f"--out {out}: samples are written to a directory, FILE.png or FILE.npz")
    if out.suffix == ".npz":
        return
    others = [p.name for p in out.glob("*.png") if p.stem.isdigit() and int(p.stem) >= num] if out.is_dir() else []
    if others:
        raise ValueError(f"--out {out} holds more samples than --num {num} (e.g. {others[0]}): use another directory")
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"samples of shape {shape} are no pictures: give --out FILE.npz")
    if out.suffix != ".png" and out.is_file():
        raise ValueError(f"--out {out} is a file: give a directory, FILE.png or FILE.npz")


def write_samples(out: Path, batches: Iterable[Tensor], labels: Tensor | None, about: dict[str, Any]) -> None:
    """A directory of 000000.png … and sample.json, one grid, or an .npz with arr_0 and arr_1."""
    (out.parent if out.suffix in (".png", ".npz") else out).mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        columns = 10 if about["labels"] and len(about["labels"]) % 10 == 0 else None
        grid_picture(torch.cat(list(batches)), columns=columns).save(out)
    elif out.suffix == ".npz":
        _write_npz(out, batches, labels)
    else:
        index = 0
        for batch in batches:
            for pixels in to_uint8(batch).numpy():
                picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
                picture.save(out / f"{index:06d}.png")
                index += 1
        (out / "sample.json").write_text(json.dumps(about, indent=2) + "\n")


def _write_npz(out: Path, batches: Iterable[Tensor], labels: Tensor | None) -> None:
    """arr_0: uint8 (N, H, W, C) for pictures, float32 for other data; arr_1: labels where there are any."""
    parts = [to_uint8(batch).numpy() if batch.dim() == 4 else batch.numpy() for batch in batches]
    arrays = [np.concatenate(parts)] + ([] if labels is None else [labels.numpy()])
    temporary = out.with_name(f".{out.name}.writing")
    with temporary.open("wb") as file:
        np.savez(file, *arrays)
    os.replace(temporary, out)
