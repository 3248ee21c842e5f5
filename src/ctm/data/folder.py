"""A folder of picture files, flat or with one sub-folder for each class. It is decoded once into a cache, then
memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ctm.data.decoded import cache_directory, decoded
from ctm.data.images import Images
from ctm.data.stack import Size
from ctm.data.tree import find_pictures

__all__ = ["cache_directory", "load_folder"]


@dataclass(frozen=True)
class _Files:
    """The files under a folder, as `ctm.data.decoded` takes them."""

    place: Path
    files: list[Path]

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return str(self.files[index])

    def content(self, index: int) -> Path:
        return self.files[index]

    def state(self) -> Iterator[tuple[str, int, int]]:
        for file in self.files:
            stat = file.stat()
            yield str(file.relative_to(self.place)), stat.st_size, stat.st_mtime_ns


def load_folder(root: Path, size: Size | None, channels: int | None = None) -> Images:
    """The images under `root` (`ctm.data.tree.find_pictures`), resized and cropped to the centre, size × size or [height, width].

    size, channels, the cache and the errors: as of `ctm.data.decoded.decoded`. Raises ValueError for a folder without pictures,
    too."""
    tree = find_pictures(root)
    found = decoded(_Files(root, tree.files), size, channels)
    source = f"{len(tree.files)} picture files in {root}"
    return Images(found.pixels, tree.labels, tree.class_names, str(root), source, (*tree.notes, *found.notes))
