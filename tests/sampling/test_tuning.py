"""`tune_grid` against brute force where the best levels can be had, and what becomes of a tuned grid."""

import itertools
import json
import math
import warnings
from dataclasses import dataclass, replace

import pytest
import torch

from ctm import DiffusionModel, generate, karras_grid, load_model, tune_grid
from ctm.guidance import ClassifierFree
from ctm.models.grids import TunedGrid
from ctm.networks import MLP
from ctm.noise import match_dims
from ctm.sampling import FlowDistance, gamma
from ctm.teachers import GaussianMixture

from ..conftest import mixture


class EulerJumps:
    """The mixture with jumps that are wrong in a known way: one Euler step of its exact flow."""

    def __init__(self, mixture: GaussianMixture) -> None:
        self.mixture = mixture
        self.shape, self.num_classes = mixture.shape, mixture.num_classes
        self.sigma_min, self.sigma_max = mixture.sigma_min, mixture.sigma_max

    def denoise(self, x, t, labels=None):
        return self.mixture.denoise(x, t, labels)

    def jump(self, x, t, s, labels=None):
        ratio = match_dims(s / t, x)
        return ratio * x + (1 - ratio) * self.denoise(x, t, labels)


@dataclass(frozen=True)
class Valley:
    """Squared distance in ln σ to known levels, of fewer steps to the first of them, and of γ to a known one; on held-out
    repeats about other levels."""

    best: tuple[float, ...]
    gamma: float = 0.0
    held_out: tuple[float, ...] | None = None
    name: str = "a valley"

    def __call__(self, levels, gamma, *, held_out):
        wanted = self.held_out if held_out and self.held_out is not None else self.best
        away = (levels[1:-1].double().log() - torch.tensor(wanted[: len(levels) - 2]).double().log()).square().sum()
        return away + (gamma - self.gamma) ** 2 + torch.tensor([0.9, 1.0, 1.1])


def lattice(places: int) -> list[float]:
    return torch.logspace(math.log10(0.0025), math.log10(60), places).tolist()


def test_two_steps_are_at_the_level_that_brute_force_finds():
    model = EulerJumps(mixture(4))
    measure = FlowDistance(model, num=64, held_out=200)
    found = tune_grid(model, 2, measure=measure)
    ends = model.sigma_max, model.sigma_min
    tried = {
        level: float(measure(torch.tensor([ends[0], level, ends[1]]), 0.0, held_out=False).mean())
        for level in lattice(80)
    }
    best = min(tried, key=tried.get)
    value = float(measure(found.grid(), 0.0, held_out=False).mean())
    assert value < tried[best] * 1.003
    assert math.log(found.levels[1] / best) == pytest.approx(0, abs=0.2)
    assert found.better
    assert found.gain > 0.1
    assert (found.levels[0], found.levels[-1]) == ends


def test_three_steps_are_as_good_as_brute_force_finds():
    model = EulerJumps(mixture(4))
    measure = FlowDistance(model, num=32, held_out=64)
    places = lattice(12)
    tried = [
        float(measure(torch.tensor([model.sigma_max, high, low, model.sigma_min]), 0.0, held_out=False).mean())
        for i, low in enumerate(places)
        for high in places[i + 1 :]
    ]
    found = tune_grid(model, 3, measure=measure)
    assert float(measure(found.grid(), 0.0, held_out=False).mean()) < min(tried) * 1.01


def test_exact_jumps_have_nothing_to_gain(mixture_2d):
    """What is left is the error of the reference, the same for every grid."""
    found = tune_grid(mixture_2d, 2, measure=FlowDistance(mixture_2d, num=64, held_out=256))
    assert abs(found.gain) < 0.01
    assert found.before < 1e-3 * mixture_2d.sigma_data**2


def test_before_and_after_are_of_the_held_out_samples(mixture_2d):
    """Against the exact flow in place of Heun's."""
    model = EulerJumps(mixture_2d)
    found = tune_grid(model, 2, measure=FlowDistance(model, num=64, held_out=300, seed=5, levels=120))
    for grid, value, error in (
        (karras_grid(2), found.before, found.before_error),
        (found.grid(), found.after, found.after_error),
    ):
        ours = generate(model, 300, grid=grid, gamma=0.0, seed=6)
        exact = generate(mixture_2d, 300, grid=karras_grid(1), seed=6)
        distances = (ours - exact).square().mean(dim=1).double()
        assert value == pytest.approx(float(distances.mean()), rel=0.02)
        assert error == pytest.approx(float(distances.std()) / math.sqrt(300), rel=0.05)


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_levels_and_gamma_at_a_known_minimum(mixture_2d, steps):
    best = (7.0, 0.4, 0.03)[: steps - 1]
    found = tune_grid(mixture_2d, steps, measure=Valley(best, gamma=0.5), gammas=(0.0, 0.5, 1.0))
    assert found.gamma == 0.5
    assert found.levels[1:-1] == pytest.approx(best, rel=0.1)
    assert found.after == pytest.approx(1, abs=0.02)
    assert found.better
    assert found.steps == steps


def test_what_helps_on_the_tuning_noise_alone_is_no_gain(mixture_2d):
    found = tune_grid(mixture_2d, 2, measure=Valley((0.1,), held_out=(float(karras_grid(2)[1]),)))
    assert found.levels[1] == pytest.approx(0.1, rel=0.1)
    assert found.before == pytest.approx(1)
    assert found.gain < 0
    assert not found.better


def test_levels_without_a_finite_value_are_passed_by(mixture_2d):
    """A model may make samples that are not finite below some level; the search goes on above it, without a warning."""

    class Cliff(Valley):
        def __call__(self, levels, gamma, *, held_out):
            value = super().__call__(levels, gamma, held_out=held_out)
            return torch.full_like(value, torch.nan) if levels[1] < 0.3 else value

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tune_grid(mixture_2d, 2, measure=Cliff((0.5,)))
    assert found.levels[1] == pytest.approx(0.5, rel=0.1)


def test_the_plain_grid_stays_where_it_is_best(mixture_2d):
    plain = karras_grid(2, dtype=torch.float64).tolist()
    found = tune_grid(mixture_2d, 2, measure=Valley((plain[1],)))
    assert found.levels == pytest.approx(plain, rel=1e-3)
    assert not found.better


def test_a_gain_below_two_standard_errors_is_none():
    grid = TunedGrid((80.0, 1.0, 0.002), 0.0, "m", 1.0, 0.1, 0.9, 0.1, 0.1, 0.06)
    assert not grid.better
    assert replace(grid, gain_error=0.04).better
    assert replace(grid, gain_error=None).better


def test_the_same_again_and_no_randomness_of_the_callers(small_ctm):
    before = torch.get_rng_state()
    calls = []
    measure = FlowDistance(small_ctm, num=8, held_out=16, levels=6)
    first = tune_grid(small_ctm, 3, measure=measure, progress=lambda count, best: calls.append((count, best)))
    assert tune_grid(small_ctm, 3, measure=FlowDistance(small_ctm, num=8, held_out=16, levels=6)) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert [count for count, _ in calls] == list(range(1, len(calls) + 1))
    assert all(later <= earlier for (_, earlier), (_, later) in itertools.pairwise(calls))
    assert len(calls) < 60


def test_the_teachers_flow_is_another_reference(small_ctm):
    teacher = DiffusionModel(MLP((1, 8, 8), width=8, blocks=1, embedding=8), shape=(1, 8, 8))
    own = FlowDistance(small_ctm, num=8, held_out=8, levels=4)
    other = FlowDistance(small_ctm, teacher, num=8, held_out=8, levels=4)
    grid = karras_grid(2)
    assert not torch.allclose(own(grid, 0.0, held_out=False), other(grid, 0.0, held_out=False))
    with pytest.raises(ValueError, match="the teacher's samples are"):
        FlowDistance(small_ctm, mixture(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 1}, "steps must be a whole number of at least 2, got 1"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"gammas": ()}, "gammas must be numbers in"),
        ({"gammas": (0.0, 1.5)}, r"gammas must be in \[0, 1\], got 1.5"),
        ({"gammas": (0.5,)}, "samples without added noise"),
    ],
)
def test_mistakes_are_sentences(small_ctm, arguments, message):
    with pytest.raises(ValueError, match=message):
        tune_grid(small_ctm, **{"steps": 2, **arguments})


def test_what_cannot_jump_is_refused(small_ctm):
    with pytest.raises(ValueError, match="has no jump"):
        tune_grid(DiffusionModel(small_ctm.network, shape=(1, 8, 8)), 2)
    with pytest.raises(
        ValueError, match="num must be a whole number of at least 2, got 1: a distance to the flow needs two samples"
    ):
        FlowDistance(small_ctm, num=1)


def kept(model, gamma=0.0):
    """The model with a grid for two steps."""
    model.grids = {2: TunedGrid((80.0, 0.3, 0.002), gamma, "m", 1.0, 0.1, 0.5, 0.1, 0.5, None)}
    return model


def test_generate_uses_the_models_grid_unless_told_otherwise(small_ctm):
    plain = {steps: generate(small_ctm, 3, steps=steps) for steps in (1, 2, 3)}
    noisy = generate(small_ctm, 3, steps=2, gamma=0.5)
    tuned = generate(small_ctm, 3, grid=torch.tensor([80.0, 0.3, 0.002]))
    model = kept(small_ctm)
    assert not torch.allclose(tuned, plain[2])
    assert torch.equal(generate(model, 3, steps=2), tuned)
    assert torch.equal(generate(model, 3, steps=2, gamma=0.0), tuned)
    assert torch.equal(generate(model, 3, steps=2, gamma=0.5), noisy)
    assert torch.equal(generate(model, 3, grid=karras_grid(2)), plain[2])
    for steps in (1, 3):
        assert torch.equal(generate(model, 3, steps=steps), plain[steps])


def test_a_tuned_gamma_is_used_unless_another_is_given(small_ctm):
    plain, levels = generate(small_ctm, 3, steps=2, gamma=0.0), torch.tensor([80.0, 0.3, 0.002])
    tuned = generate(small_ctm, 3, grid=levels, gamma=0.7)
    model = kept(small_ctm, gamma=0.7)
    assert torch.equal(generate(model, 3, steps=2), tuned)
    assert torch.equal(generate(model, 3, steps=2, gamma=0.0), plain)
    direct = gamma(model, 80 * torch.ones(1, 1, 8, 8), levels, gamma=0.0)
    assert direct.shape == (1, 1, 8, 8)


def test_a_guided_model_is_not_the_one_that_was_tuned(small_ctm):
    labels = torch.tensor([1, 2, 3])
    guided = generate(ClassifierFree(small_ctm, 2.0), 3, steps=2, condition=labels)
    assert torch.equal(generate(ClassifierFree(kept(small_ctm), 2.0), 3, steps=2, condition=labels), guided)


def test_grids_and_unknown_entries_survive_saving(small_ctm, tmp_path):
    kept(small_ctm).save_pretrained(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["grids"]["2"]["levels"] == [80.0, 0.3, 0.002]
    config["of another version"] = {"some": [1, 2]}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    load_model(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == config
    again = load_model(tmp_path / "b")
    assert again.grids == small_ctm.grids
    assert torch.equal(generate(again, 3, steps=2), generate(small_ctm, 3, steps=2))


def test_a_model_without_grids_is_saved_as_before(small_ctm, tmp_path):
    small_ctm.save_pretrained(tmp_path / "a")
    assert "grids" not in json.loads((tmp_path / "a" / "config.json").read_text())
    assert load_model(tmp_path / "a").grids == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": [80.0, 0.3, 0.5, 0.002]}, "must decrease strictly"),
        ({"levels": [80.0, 3.0, 0.3, 0.002]}, "for 2 steps it needs 3 levels from 80.0 to 0.002"),
        ({"levels": [40.0, 0.3, 0.002]}, "for 2 steps it needs 3 levels from 80.0 to 0.002"),
        ({"levels": "abc"}, "damaged"),
        ({"gamma": 1.2}, r"gamma must be in \[0, 1\]"),
        ({"other": 1}, "damaged"),
    ],
)
def test_damaged_grids_are_a_sentence(small_ctm, tmp_path, change, message):
    kept(small_ctm).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["grids"]["2"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as error:
        load_model(tmp_path)
    assert '"grids" in config.json are damaged' in str(error.value)
