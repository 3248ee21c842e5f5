"""Shared by all tests: fixed seeds, the mixtures of the ground truth, small models."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

from ctm import TrajectoryModel
from ctm.networks import MLP
from ctm.teachers import ConditionalGaussian, GaussianMixture

settings.register_profile("ctm", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("ctm")


@pytest.fixture(autouse=True)
def _fixed_seed(tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setenv("CTM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory):
    """A CTM_CACHE that modules share where a classifier trained once serves many tests: they set it themselves."""
    return tmp_path_factory.mktemp("cache")


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
