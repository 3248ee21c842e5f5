"""A data set of pictures or of values, by name, path or hub id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ctm.data.images import Images
from ctm.data.load import NAMES, load_images
from ctm.data.notes import option
from ctm.data.stack import Size
from ctm.data.stored import ARRAY_FILES
from ctm.data.value_files import load_values, main_array
from ctm.data.values import Values
from ctm.files import as_source, suffix_of
from ctm.scaling import Rule

__all__ = ["holds_values", "load_dataset"]


def load_dataset(
    name: str,
    size: Size | None = None,
    channels: int | None = None,
    split: str | None = None,
    *,
    image: str | None = None,
    label: str | None = None,
    condition: Sequence[str] | None = None,
    max_gb: float | None = None,
    scaling: Rule | None = None,
) -> Images | Values:
    """The data called `name`: values where it is a file of arrays that are no pictures (`ctm.data.value_files.main_array`), else
    pictures, as `ctm.data.load_images` takes them. scaling: the rule for values. The others are as of `load_images` and
    `ctm.data.value_files.load_values`. Raises ValueError or FileNotFoundError with a sentence, also for options that the data
    cannot have."""
    if not holds_values(name, image):
        if scaling is not None:
            raise ValueError(
                f"{option('scaling', scaling)} is for arrays of numbers, and {name} is pictures, whose 0 … 255 is [-1, 1]: leave "
                "it out"
            )
        return load_images(name, size, channels, split, image=image, label=label, condition=condition, max_gb=max_gb)
    for word, given in (("size", size), ("channels", channels)):
        if given is not None:
            raise ValueError(
                f"{option(word, str(given))} is for pictures, and {name} holds arrays, taken in their shape: leave it out"
            )
    return load_values(Path(name), scaling, image=image, label=label, condition=condition, max_gb=max_gb)


def holds_values(name: str, image: str | None = None) -> bool:
    """Whether the data of that name are a file of arrays that are no pictures. Raises ValueError for a damaged file."""
    path = Path(as_source(name, "a data set"))
    if str(name) in NAMES or suffix_of(path) not in ARRAY_FILES or not path.is_file():
        return False
    return main_array(path, image) == "values"
