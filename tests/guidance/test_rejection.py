import pytest
import torch

from ctm.guidance import rejection_sample
from ctm.noise import karras_grid
from ctm.sampling import heun
from ctm.teachers import GaussianMixture

from ..conftest import mixture
from ..energy import energy_distance, null_bound
from .test_guidance import clean_classifier

FINE = {"grid": karras_grid(30), "sampler": heun, "batch_size": 1000}


def test_keeping_with_the_classifiers_probability_samples_the_conditional():
    teacher, n = mixture(2, std=0.6), 300
    alone = GaussianMixture(teacher.means[2:3], teacher.std, torch.ones(1))
    made = rejection_sample(teacher, torch.full((n,), 2), clean_classifier(teacher), conditional=False, **FINE)
    assert energy_distance(made.samples.double(), alone.sample(n, seed=51)) < null_bound(alone.sample, n)
    weight = float(teacher.weights[2])
    spread = (weight * (1 - weight) / made.candidates) ** 0.5
    assert made.acceptance_rate == pytest.approx(weight, abs=4 * spread)
    assert energy_distance(teacher.sample(n, 3), alone.sample(n, seed=51)) > null_bound(alone.sample, n)


def test_a_threshold_keeps_what_the_classifier_is_sure_of():
    teacher, labels = mixture(2, std=0.6), torch.arange(40) % 4
    classifier = clean_classifier(teacher)
    made = rejection_sample(teacher, labels, classifier, threshold=0.6, **FINE)
    probability = classifier(made.samples.double()).softmax(1).gather(1, labels[:, None])
    assert float(probability.min()) >= 0.6 - 1e-6
    assert 0 < made.acceptance_rate < 1
    again = rejection_sample(teacher, labels[:8], classifier, threshold=0.6, **FINE)
    torch.testing.assert_close(again.samples, made.samples[:8], rtol=0, atol=1e-4)


def test_mistakes_are_said():
    teacher = mixture(2)
    with pytest.raises(ValueError, match="1 of 1 images were not accepted in 3 candidates each"):
        rejection_sample(
            teacher, torch.tensor([1]), lambda x: torch.tensor([[9.0, 0.0]]), threshold=0.9, rounds=3, **FINE
        )
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 2: it is a probability"):
        rejection_sample(teacher, torch.tensor([1]), clean_classifier(teacher), threshold=2)
    with pytest.raises(ValueError, match="labels must be at least one class ≥ 0"):
        rejection_sample(teacher, torch.tensor([-1]), clean_classifier(teacher))
