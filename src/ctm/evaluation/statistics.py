"""Everything that is kept of a stream of images, in memory that does not grow with the stream, and its file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ctm.evaluation.moments import BLOCKS, BlockMoments
from ctm.evaluation.scores import ClassSums, ProbabilitySums
from ctm.evaluation.sums import Sums, zeros
from ctm.files import whole_file

__all__ = ["Layout", "Statistics"]


@dataclass(frozen=True)
class Layout:
    """Sizes. features: F. spatial: S (0: none). classes: C (0: no classifier and no labels). rows: number of kept rows of
    features. pixels: number of kept images. shape: (H, W, C) of an image."""

    features: int
    spatial: int
    classes: int
    rows: int
    pixels: int
    shape: tuple[int, int, int]


class Statistics(Sums):
    """Sums over a stream, its first rows of features and its first images. All of these add: the parts of several processes
    or sessions are zero where they did not look, and merge to the whole.

    moments, spatial (None without), probabilities and classes (None without classes). rows (K, F) float32. pixels (P, H, W,
    C) uint8. seconds (3,): in the generator, in the feature networks, in these sums. done: the chunks that are included."""

    def __init__(self, layout: Layout) -> None:
        self.moments = BlockMoments(layout.features)
        self.spatial = BlockMoments(layout.spatial) if layout.spatial else None
        self.probabilities = ProbabilitySums(layout.classes, BLOCKS) if layout.classes else None
        self.classes = ClassSums(layout.classes, layout.features) if layout.classes else None
        self.rows = torch.zeros(layout.rows, layout.features)
        self.pixels = torch.zeros(layout.pixels, *layout.shape, dtype=torch.uint8)
        self.seconds = zeros(3)
        self.done: set[int] = set()

    @property
    def count(self) -> int:
        """Number of images seen."""
        return int(self.moments.count.sum())

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name. The tensors of inner sums have the name of the sum before their own."""
        found = super().tensors()
        for name, inner in vars(self).items():
            if isinstance(inner, Sums):
                found |= {f"{name}.{key}": value for key, value in inner.tensors().items()}
        return found

    def merge(self, others: dict[str, Tensor]) -> None:
        """Add the `tensors()` of other statistics to these."""
        for name, mine in super().tensors().items():
            mine += others[name]
        for name, inner in vars(self).items():
            if isinstance(inner, Sums):
                inner.merge(
                    {key.removeprefix(f"{name}."): value for key, value in others.items() if key.startswith(f"{name}.")}
                )

    def finish(self) -> None:
        """Call it after the last image. It multiplies the rows that wait, so that the file holds sums only."""
        for moments in (self.moments, self.spatial):
            if moments is not None:
                _ = moments.outer

    def add(
        self,
        indices: Tensor,
        pixels: Tensor,
        features: Tensor,
        spatial: Tensor | None,
        logits: Tensor | None,
        labels: Tensor | None,
    ) -> None:
        """Add images number indices (N,): pixels uint8 (N, H, W, C), features (N, F), and, if any, spatial (N, S), logits
        (N, C) and labels (N,). All are on the CPU."""
        self.moments.add(features, indices)
        if self.spatial is not None and spatial is not None:
            self.spatial.add(spatial, indices)
        if self.probabilities is not None and logits is not None:
            self.probabilities.add(logits, indices, labels)
        if self.classes is not None and labels is not None:
            self.classes.add(features, labels)
        for kept, values in ((self.rows, features), (self.pixels, pixels)):
            early = indices < len(kept)
            kept[indices[early]] = values[early].to(kept.dtype)

    def save(self, path: Path, key: str) -> None:
        """Write to a file, with the key of what was evaluated. The file appears when it is whole."""
        metadata = {"key": key, "done": json.dumps(sorted(self.done))}
        with whole_file(path) as temporary:
            save_file({name: value.contiguous() for name, value in self.tensors().items()}, temporary, metadata)

    def merge_file(self, path: Path, key: str) -> bool:
        """Whether the statistics in a file were added. False, with nothing added, if the file is damaged, has another key or
        other sizes, or holds chunks that are included already."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                done = set(json.loads(metadata.get("done", "[]")))
                others = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it has no __iter__)
        except (OSError, SafetensorError, TypeError, ValueError, RecursionError):
            return False
        if metadata.get("key") != key or not self._fits(others) or done & self.done:
            return False
        self.merge(others)
        self.done |= done
        return True

    def _fits(self, others: dict[str, Tensor]) -> bool:
        """Whether these are tensors of statistics with the same sizes. The number of waiting rows may be any."""
        mine = self.tensors()
        return others.keys() == mine.keys() and all(
            other.shape == mine[name].shape or (".waiting" in name and other.shape[1:] == mine[name].shape[1:])
            for name, other in others.items()
        )
