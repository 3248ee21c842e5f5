"""The likelihood of a picture against the closed form of a Gaussian, and its deadline."""

import math

import pytest
import torch

from ctm.likelihood import estimate_bits_per_dim
from ctm.serve.density import bits_of
from ctm.serve.tickets import Expired
from ctm.teachers import GaussianMixture


class _Picture:
    """N(0, c²) as a model of pictures."""

    def __init__(self, c: float, shape: tuple[int, ...]) -> None:
        size = math.prod(shape)
        self.inner = GaussianMixture(torch.zeros(1, size), c, torch.ones(1))
        self.shape, self.sigma_min, self.sigma_max = shape, 0.002, 80.0

    def denoise(self, x, t, condition=None):
        return self.inner.denoise(x.flatten(1), t).reshape(x.shape)


def test_bits_are_those_of_the_gaussian():
    c, shape = 0.5, (1, 4, 4)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # as in a service
        found = bits_of(_Picture(c, shape), image)
    alone = estimate_bits_per_dim(_Picture(c, shape), image[None], probes=1, rtol=1e-6, atol=1e-6)
    x = (image.double() + 0.5) / 128 - 1  # the mean of the uniform dequantisation
    nats = -0.5 * (x.square() / c**2).mean() - 0.5 * math.log(2 * math.pi * c**2)
    assert float(found.value) == pytest.approx(float(7 - nats / math.log(2)), abs=0.02)  # dequantisation: |x|·2⁻⁸/c²
    assert float(found.value) == pytest.approx(float(alone.value), abs=0.02)  # z to 1e-3 of |z| ~ 3: some 0.005 bits
    assert found.standard_error.shape == (1,)


def test_it_ends_at_its_deadline():
    with pytest.raises(Expired, match="ask again later"):
        bits_of(_Picture(0.5, (1, 4, 4)), torch.zeros(1, 4, 4, dtype=torch.uint8), deadline=-1.0)


def test_it_ends_when_it_is_given_up():
    with pytest.raises(Expired, match="given up"):
        bits_of(_Picture(0.5, (1, 4, 4)), torch.zeros(1, 4, 4, dtype=torch.uint8), gone=lambda: True)
