"""The data that samples are compared with: images that each feature network sees once, kept by their content, or a file of
statistics."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ctm.data import Images, tell
from ctm.data.archive import Archive
from ctm.data.folder import cache_directory
from ctm.evaluation.classifier import Classifier, train_classifier
from ctm.evaluation.extractors import Extractor, file_checksum
from ctm.evaluation.frechet import frechet
from ctm.evaluation.kernels import own_kernel
from ctm.evaluation.moments import Gaussian
from ctm.evaluation.neighbours import NEIGHBOURS, Training, radii
from ctm.evaluation.passes import Processes, run_pass
from ctm.evaluation.scores import ClassSums
from ctm.evaluation.sources import ImageSource
from ctm.evaluation.statistics import Layout, Statistics
from ctm.files import mapped_array, suffix_of, sync, whole_file
from ctm.progress import Progress, silent

__all__ = [
    "QUERIES",
    "Reference",
    "classifier_of",
    "images_checksum",
    "is_statistics",
    "reference_of",
    "statistics_file",
]

_VERSION = 3
_TABLE_ROWS = 50_000  # of features kept on the disk for the memorisation check
_CLASSIFIER_IMAGES = 50_000
_STATISTICS = ("mu", "sigma", "mu_s", "sigma_s", "activations")
_INFLATES_TO, _INFLATES_BY = 64 << 20, 20  # bytes; times the size of the file
CLASSIFIER_HINT = (
    "label_accuracy, inception_score and diversity need it; ctm evaluate --classifier none does without them and it"
)
QUERIES = 500  # samples of the memorisation check


@dataclass(frozen=True)
class Reference:
    """What is known of the data: name, checksum of the content, number of images (0: the file does not say), and the
    Gaussians of features and of spatial features.

    If the data are images, not a file of statistics, also: the kept rows (K, F), class sums, all features on the disk in the
    order of `source`, the classifier's accuracy on the data, and the Fréchet distance between the two halves of the data."""

    name: str
    checksum: str
    count: int
    gaussian: Gaussian
    spatial: Gaussian | None = None
    rows: Tensor | None = None
    classes: ClassSums | None = None
    table: np.ndarray | None = None
    source: ImageSource | None = None
    accuracy: float | None = None
    halves: float | None = None

    @cached_property
    def radii(self) -> Tensor:
        """Squared distances of the kept rows to their fifth neighbours."""
        if self.rows is None:
            raise ValueError(f"{self.name} holds no rows of features, only their statistics")
        return radii(self.rows.double(), NEIGHBOURS)

    @cached_property
    def own_kernel(self) -> float:
        """The mean of CMMD's kernel over the kept rows."""
        if self.rows is None:
            raise ValueError(f"{self.name} holds no rows of features, only their statistics")
        return own_kernel(self.rows)

    @cached_property
    def training(self) -> Training | None:
        """The features for the memorisation check; None if there are no images or fewer than four."""
        few = self.table is None or len(self.table) < 4
        return None if few else Training(torch.from_numpy(np.asarray(self.table)))

    def prepare(self, rows: int) -> None:
        """Compute once what all samples are compared with. rows: number of features kept of the samples."""
        for gaussian in (self.gaussian, self.spatial):
            _ = None if gaussian is None else gaussian.root
        if self.rows is not None:
            _ = self.own_kernel
            _ = self.radii if len(self.rows) > NEIGHBOURS else None
        if self.rows is not None and self.training is not None:
            self.training.expected(min(rows, QUERIES))

    def record(self) -> dict[str, str | int]:
        """What a reader needs to use the same data."""
        return {"name": self.name, "checksum": self.checksum, "images": self.count}


def images_checksum(images: Images) -> str:
    """The first 16 digits of the SHA-256 of the pixels and labels."""
    digest = hashlib.sha256(str(images.pixels.shape).encode())
    for start in range(0, len(images), 4096):
        digest.update(np.ascontiguousarray(images.pixels[start : start + 4096]).tobytes())
    digest.update(b"" if images.labels is None else images.labels.astype(np.int64).tobytes())
    return digest.hexdigest()[:16]


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps([_VERSION, *parts], sort_keys=True).encode()).hexdigest()[:32]


def classifier_of(
    images: Images, checksum: str, processes: Processes, progress: Progress = silent
) -> Classifier | None:
    """The classifier trained on these images (at most 50,000), from the cache if it was trained before. None for images
    without labels. One process trains."""
    if images.labels is None:
        return None
    path = cache_directory() / f"classifier-{_key('classifier', checksum, images.num_classes)}.safetensors"
    if processes.index == 0 and _whole_weights(path) is None:
        tell(
            [f"a classifier of its {images.num_classes} classes is trained once, in 600 steps. {CLASSIFIER_HINT}"],
            images.name,
        )
        chosen = ImageSource(images, min(len(images), _CLASSIFIER_IMAGES))
        x, labels = chosen.batch(np.arange(chosen.count))
        assert labels is not None
        known = labels >= 0
        trained = train_classifier(x[known], labels[known], classes=images.num_classes, progress=progress)
        with whole_file(path) as temporary:
            save_file(trained.state_dict(), temporary)
            sync(temporary)
    processes.wait()
    weights = _whole_weights(path)
    if weights is None:
        raise ValueError(f"{path} was written and cannot be read back: look at the disk, or set CTM_CACHE to another")
    classifier = Classifier(images.shape[0], images.shape[1:], len(weights["head.bias"]))
    classifier.load_state_dict(weights)
    return classifier.eval().requires_grad_(False).to(processes.device)


def _whole_weights(path: Path) -> dict[str, Tensor] | None:
    """The classifier's weights in the cache; None where they are not there, or damaged."""
    try:
        weights = load_file(path)
    except (OSError, SafetensorError):
        return None
    return weights if "head.bias" in weights else None


def _is_table(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a file is a table of features of that shape, and whole."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return found.shape == shape and found.dtype == np.float32


def reference_of(
    images: Images,
    checksum: str,
    extractor: Extractor,
    classifier: Classifier | None,
    *,
    rows: int,
    processes: Processes,
    progress: Progress = silent,
) -> Reference:
    """The reference of these images, computed now or read from the cache. The cache's key is the content and the network."""
    layout = _layout(images, extractor, classifier, rows)
    source = ImageSource(images, len(images))
    key = _key("reference", checksum, extractor.record(), layout.rows, _TABLE_ROWS, classifier is not None)
    path = cache_directory() / f"reference-{key}.safetensors"
    table_path = path.with_suffix(".npy")
    shape = (min(len(images), _TABLE_ROWS), extractor.features)
    if processes.index == 0 and not _is_table(table_path, shape):
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in path.parent.glob(f"{path.stem}*.safetensors"):  # seen without the table
            file.unlink()
        mapped_array(table_path, np.float32, shape).flush()
    processes.wait()
    table = np.load(table_path, mmap_mode="r+")
    seen = run_pass(
        source,
        extractor,
        classifier,
        layout,
        path=path,
        key=key,
        processes=processes,
        table=table,
        progress=progress,
        words=f"looking at {images.name}",
    )
    return _from_statistics(images, checksum, seen, source, table)


def _layout(images: Images, extractor: Extractor, classifier: Classifier | None, rows: int) -> Layout:
    _, height, width, channels = images.pixels.shape
    classes = images.num_classes if classifier is not None else 0
    return Layout(extractor.features, extractor.spatial, classes, min(rows, len(images)), 0, (height, width, channels))


def _from_statistics(
    images: Images, checksum: str, seen: Statistics, source: ImageSource, table: np.ndarray
) -> Reference:
    halves = None
    if len(images) >= 16:
        even, odd = (seen.moments.gaussian(range(start, len(seen.moments.count), 2)) for start in (0, 1))
        halves = frechet(even, odd)
    return Reference(
        name=images.name,
        checksum=checksum,
        count=len(images),
        gaussian=seen.moments.gaussian(),
        spatial=None if seen.spatial is None else seen.spatial.gaussian(),
        rows=seen.rows,
        classes=seen.classes,
        table=table,
        source=source,
        accuracy=_accuracy(seen),
        halves=halves,
    )


def _accuracy(seen: Statistics) -> float | None:
    """The share of labelled images on which the classifier is right."""
    if seen.probabilities is None or seen.classes is None:
        return None
    return seen.probabilities.accuracy(float(seen.classes.count.sum())).value


def is_statistics(name: str, features: int) -> bool:
    """Whether `name` is an .npz of statistics over that number of features: mu and sigma (EDM, ADM) or activations.

    Raises ValueError for statistics over another number of features, unless the file has images (arr_0) too."""
    path = Path(name)
    if suffix_of(path) != ".npz" or not path.is_file():
        return False
    shapes = {name: header.shape for name, header in Archive(path).headers.items()}
    if not {"mu", "sigma"} <= shapes.keys() and "activations" not in shapes:
        return False
    axes = {"mu": 1, "activations": 2}
    kept = "mu" if "mu" in shapes else "activations"
    if len(shapes[kept]) != axes[kept]:
        raise ValueError(f"{path}: {kept} must have {axes[kept]} axes, got the shape {shapes[kept]}")
    found = shapes[kept][-1]
    if found != features and len(shapes.get("arr_0", shapes.get("images", ()))) < 3:
        raise ValueError(
            f"{path} holds statistics of {found} features and the feature network gives {features}: choose by --features the "
            "network that made them (Inception: 2048), or give the images themselves"
        )
    return found == features


def statistics_file(path: Path, rows: int) -> Reference:
    """The reference in an .npz file: mu (F,) and sigma (F, F) as EDM and ADM write them, with mu_s and sigma_s if present;
    or activations (N, F), whose first `rows` are kept for the metrics that need features.

    The file does not tell its feature network. Raises ValueError for shapes that do not fit, and for a file that would
    inflate to more than 64 MB and more than 20 times its size."""
    archive = Archive(path)
    names = [name for name in _STATISTICS if name in archive.headers]
    size, stored = sum(archive.headers[name].nbytes for name in names), path.stat().st_size
    if size > max(_INFLATES_TO, _INFLATES_BY * stored):
        raise ValueError(
            f"{path} would inflate to {size >> 20} MB from {stored >> 10} kB, which statistics do not: it was not read"
        )
    arrays = {name: torch.from_numpy(np.asarray(archive.read(name), dtype=np.float64)) for name in names}
    spatial = None
    if "mu" in arrays:
        gaussian = _checked(path, arrays["mu"], arrays["sigma"])
        if {"mu_s", "sigma_s"} <= arrays.keys():
            spatial = _checked(path, arrays["mu_s"], arrays["sigma_s"])
        return Reference(str(path), file_checksum(path), 0, gaussian, spatial)
    activations = arrays["activations"]
    kept = activations[:rows].float()
    return Reference(str(path), file_checksum(path), len(activations), Gaussian.of(activations), rows=kept)


def _checked(path: Path, mean: Tensor, covariance: Tensor) -> Gaussian:
    if mean.dim() != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{path}: mu must be (F,) and sigma (F, F), got {tuple(mean.shape)} and {tuple(covariance.shape)}"
        )
    return Gaussian(mean, covariance)
