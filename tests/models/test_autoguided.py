"""A teacher guided by a weaker one, against the formula and against a Gaussian of which the guided flow is known."""

import math

import pytest
import torch

from ctm import DiffusionModel
from ctm.models.autoguided import AutoGuided
from ctm.networks import MLP
from ctm.noise import karras_grid
from ctm.objectives import DistributionMatching, MultistepWalk, Networks
from ctm.teachers import GaussianMixture

from ..conftest import mixture, random_weights

F64 = torch.float64


def gaussian(std: float) -> GaussianMixture:
    return GaussianMixture(torch.zeros(1, 2, dtype=F64), std, torch.ones(1, dtype=F64))


def test_it_is_its_formula_with_labels_too():
    strong, weak = mixture(2), GaussianMixture(mixture(2).means, 0.9, torch.ones(4, dtype=F64))
    x, t, labels = torch.randn(6, 2, dtype=F64), torch.full((6,), 0.7, dtype=F64), torch.tensor([0, 1, 2, 3, -1, -1])
    own, weaker = (model.denoise(x, t, labels) for model in (strong, weak))
    torch.testing.assert_close(AutoGuided(strong, weak, 2.5).denoise(x, t, labels), weaker + 2.5 * (own - weaker))
    once = AutoGuided(strong, weak, 1.0)
    assert torch.equal(once.denoise(x, t, labels), own)
    assert (once.evaluations, AutoGuided(strong, weak, 2.0).evaluations) == (1, 2)


def test_the_guided_flow_of_two_gaussians():
    """Denoisers x·c²/(c² + t²) of N(0, c²), and with b: with L_c = ½·ln((c² + s²)/(c² + t²)), ln x changes by w·L_c − (w − 1)·L_b
    from t to s. The walk of 200 steps is within a thousandth."""
    c, b, w = 0.5, 0.8, 2.0
    guided = AutoGuided(gaussian(c), gaussian(b), w)
    path = karras_grid(200, 0.01, 20.0, dtype=F64)[:, None].expand(-1, 4)
    x = 20 * torch.randn(4, 2, dtype=F64)
    found = MultistepWalk()(Networks(None, None, guided), x, path, None)

    def logarithm(std: float) -> float:
        return 0.5 * math.log((std**2 + 0.01**2) / (std**2 + 20.0**2))

    torch.testing.assert_close(found, x * math.exp(w * logarithm(c) - (w - 1) * logarithm(b)), rtol=1e-3, atol=0)


def test_the_fake_score_is_a_copy_of_the_teacher_alone():
    strong, weak = (random_weights(DiffusionModel(MLP((2,), width=8, blocks=1), shape=(2,)), seed=n) for n in (0, 1))
    copy = DistributionMatching().player().build(Networks(strong, None, AutoGuided(strong, weak, 2.0)))
    assert isinstance(copy, DiffusionModel)
    assert all(torch.equal(a, b) for a, b in zip(copy.parameters(), strong.parameters(), strict=True))


def test_what_cannot_guide_is_refused():
    with pytest.raises(ValueError, match="the scale of autoguidance must be at least 1"):
        AutoGuided(mixture(2), mixture(2), 0.5)
    with pytest.raises(ValueError, match=r"the model makes samples of shape \(2,\) and its guide \(3,\)"):
        AutoGuided(mixture(2), mixture(3), 2.0)
