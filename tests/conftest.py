"""Shared by all tests: fixed seeds, the mixtures of the ground truth, small models."""

import gc
import itertools
import os
import sys
from collections.abc import Iterable
from functools import partial

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

from ctm import TrajectoryModel
from ctm.networks import MLP
from ctm.teachers import ConditionalGaussian, GaussianMixture

gc.set_threshold(50_000, 20, 100)  # imports and tests make few circles, and looking for them takes a tenth of the time
settings.register_profile("ctm", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("ctm")
_NUMBERS = itertools.count()


def pytest_collection_finish() -> None:
    """What imports and collection have made stays to the end: nothing of it is looked through for garbage again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def _caches(tmp_path_factory):
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(autouse=True)
def _fixed_seed(_caches, monkeypatch):
    """Each test has its own cache, a directory that is made where something is kept in it."""
    torch.manual_seed(0)
    monkeypatch.setenv("CTM_CACHE", str(_caches / str(next(_NUMBERS))))


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory):
    """A CTM_CACHE that modules share where a classifier trained once serves many tests: they set it themselves."""
    return tmp_path_factory.mktemp("cache")


def slow(*values: object) -> object:
    """A case of a test for `make test-all` alone."""
    return pytest.param(*values, marks=pytest.mark.slow)


def mostly_slow(names: Iterable[str], *fast: str) -> list[object]:
    """All cases of a family: those named here for `make test` too, the others slow. A name that is no case is an error."""
    known = list(names)
    assert set(fast) <= set(known), f"{set(fast) - set(known)} are no cases: {known}"
    return [name if name in fast else slow(name) for name in known]


def train_quickly(patch: pytest.MonkeyPatch) -> None:
    """Classifiers whose features an evaluation looks at are trained in 60 steps, not in 600 that take up to ten seconds."""
    from ctm.evaluation import classifier, reference

    patch.setattr(reference, "train_classifier", partial(classifier.train_classifier, steps=60))


@pytest.fixture
def quick_classifier(monkeypatch):
    """`train_quickly`, where how good the classifier is does not matter."""
    train_quickly(monkeypatch)


@pytest.fixture
def few_draws(monkeypatch):
    """`ctm train --dry-run` counts the teacher's evaluations in 400 draws, not 4,000 in a second or two: returns how many."""
    from ctm.training import dry_run

    monkeypatch.setattr(sys.modules[dry_run.__module__], "_DRAWS", 400)
    return 400


def mixture(dimensions: int, components: int = 4, std: float = 0.25, seed: int = 0) -> GaussianMixture:
    """A mixture in float64 with a data standard deviation near 0.6."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(components, dimensions, generator=generator, dtype=torch.float64)
    means = 0.7 * means / means.norm(dim=1, keepdim=True) * dimensions**0.5
    weights = torch.rand(components, generator=generator, dtype=torch.float64) + 0.5
    return GaussianMixture(means, std, weights)


@pytest.fixture
def conditional() -> ConditionalGaussian:
    """Two coordinates given three numbers y, in float64."""
    generator = torch.Generator().manual_seed(0)
    matrix, offset = (
        torch.randn(2, 3, generator=generator).double() / 2,
        torch.randn(2, generator=generator).double() / 2,
    )
    return ConditionalGaussian(matrix, offset, 0.4)


@pytest.fixture
def mixture_2d() -> GaussianMixture:
    return mixture(2)


@pytest.fixture
def mixture_16d() -> GaussianMixture:
    return mixture(16)


def random_weights(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter random, so that no zero-initialised layer hides anything."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def small_ctm() -> TrajectoryModel:
    """A CTM of 8×8 grey images with 10 classes and random weights."""
    network = MLP((1, 8, 8), 10, width=32, blocks=2, embedding=16)
    return random_weights(TrajectoryModel(network, shape=(1, 8, 8), num_classes=10)).eval()
