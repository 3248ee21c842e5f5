"""One pass over a stream of images. Its chunks are shared among processes and kept in files, so an interrupted pass can
continue."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ctm.data import to_model_range
from ctm.evaluation.classifier import Classifier
from ctm.evaluation.extractors import Extractor
from ctm.evaluation.sources import Source
from ctm.evaluation.statistics import Layout, Statistics
from ctm.pictures import check_numbers, to_uint8
from ctm.progress import Progress, silent

__all__ = ["Processes", "forget", "run_pass"]

_SAVE_SECONDS = 30.0  # between two savings, or more where saving itself takes long
_SAVE_SHARE = 0.02


@dataclass(frozen=True)
class Processes:
    """This process's number, the number of processes, the device, and how to wait for the others."""

    index: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wait: Callable[[], None] = lambda: None


def run_pass(
    source: Source,
    extractor: Extractor,
    classifier: Classifier | None,
    layout: Layout,
    *,
    path: Path,
    key: str,
    batch_size: int = 250,
    processes: Processes | None = None,
    table: np.ndarray | None = None,
    progress: Progress = silent,
    words: str = "",
    keep: bool = True,
) -> Statistics:
    """Statistics of all images of `source`. They are read from the file `path` if it holds them under the same key.

    Images are looked at as a picture file holds them: clamped, with 256 values. Chunk c is images c·batch_size …, done by
    one process. Each process keeps its part in a file beside `path`, now and then and when it is stopped. A later call, with
    any number of processes, does the chunks that are missing. The folder must be one that all processes see. table: if
    given, the features of image i < len(table) are written to its row i. keep: False if the caller itself keeps what it
    makes of the statistics and then calls `forget`; a single process then does not write the whole to `path`.

    In one process the bits do not depend on where a pass was interrupted. Several processes add in another order, and agree
    with one process to rounding."""
    processes = processes or Processes()
    whole = Statistics(layout) if path.exists() else None
    if whole is not None and whole.merge_file(path, key):
        return whole
    path.parent.mkdir(parents=True, exist_ok=True)
    mine, done = _earlier_parts(layout, path, key, processes)
    part = _part(path, processes.index)
    chunks = [c for c in range(-(-source.count // batch_size)) if c not in done][processes.index :: processes.count]
    next_save = time.monotonic() + _SAVE_SECONDS
    try:
        for chunk in progress(chunks, words):
            indices = np.arange(chunk * batch_size, min((chunk + 1) * batch_size, source.count))
            _look(source, extractor, classifier, indices, mine, table, processes.device)
            mine.done.add(chunk)
            if time.monotonic() > next_save:
                started = time.monotonic()
                mine.save(part, key)
                ended = time.monotonic()
                next_save = ended + max(_SAVE_SECONDS, (ended - started) / _SAVE_SHARE)
    except BaseException:
        mine.save(part, key)
        raise
    if processes.count == 1:
        mine.finish()
        if keep:
            mine.save(path, key)
            part.unlink(missing_ok=True)
        return mine
    mine.save(part, key)
    return _gathered(layout, path, key, processes)


def _gathered(layout: Layout, path: Path, key: str, processes: Processes) -> Statistics:
    """The parts of all processes together. The first process writes them to `path`."""
    processes.wait()
    if processes.index == 0:
        merged = _merged(layout, path, key)[0]
        merged.finish()
        merged.save(path, key)
        for file in path.parent.glob(f"{path.stem}.part*"):
            file.unlink()
    processes.wait()
    whole = Statistics(layout)
    if not whole.merge_file(path, key):
        raise RuntimeError(f"{path} was written and cannot be read back")
    return whole


def forget(path: Path) -> None:
    """Remove the statistics at `path` and their parts, if present."""
    for file in (path, *path.parent.glob(f"{path.stem}.part*")):
        file.unlink(missing_ok=True)


def _part(path: Path, index: int) -> Path:
    return path.with_name(f"{path.stem}.part{index}.safetensors")


def _merged(layout: Layout, path: Path, key: str) -> tuple[Statistics, list[Path]]:
    """(all parts together, their files). A part whose chunks are in an earlier part (an interrupted merge) is left out."""
    merged, files = Statistics(layout), sorted(path.parent.glob(f"{path.stem}.part*"))
    for file in files:
        merged.merge_file(file, key)
    return merged, files


def _earlier_parts(layout: Layout, path: Path, key: str, processes: Processes) -> tuple[Statistics, set[int]]:
    """(the statistics from which this process starts, the chunks that are done). The first process starts with everything
    that earlier processes left."""
    merged, files = _merged(layout, path, key)
    processes.wait()
    if processes.index == 0 and files:
        merged.save(_part(path, 0), key)
        for file in files:
            if file != _part(path, 0):
                file.unlink()
    processes.wait()
    return (merged if processes.index == 0 else Statistics(layout)), set(merged.done)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _look(
    source: Source,
    extractor: Extractor,
    classifier: Classifier | None,
    indices: np.ndarray,
    statistics: Statistics,
    table: np.ndarray | None,
    device: torch.device,
) -> None:
    """Make the images `indices`, look at them, and add what is seen."""
    clock = [time.perf_counter()]
    images, labels = source.batch(indices)
    _synchronise(device)
    clock.append(time.perf_counter())
    check_numbers(images, indices)
    pixels = to_uint8(images)
    seen = to_model_range(pixels).to(device)
    pooled, spatial = extractor(seen)
    logits: Tensor | None = None
    if classifier is not None:
        with torch.no_grad():
            logits = classifier(seen).cpu()
    pooled, spatial = pooled.cpu(), None if spatial is None else spatial.cpu()
    clock.append(time.perf_counter())
    statistics.add(torch.from_numpy(indices), pixels.cpu(), pooled, spatial, logits, labels)
    if table is not None:
        early = indices < len(table)
        table[indices[early]] = pooled[torch.from_numpy(early)].numpy()
    clock.append(time.perf_counter())
    statistics.seconds += torch.tensor(clock, dtype=torch.float64).diff()
