"""Consistency tuning: the gap shrinks as told, and in the limit its mean gradient is zero at the exact flow."""

import math

import pytest
import torch

from ctm.noise import match_dims
from ctm.objectives import Matching, Networks, SameNoise, ShrinkingGap, Squared
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training.step import draw_batch, step_generator

from ..training.runs import RECIPES
from .flows import Flow, data, gaussian
from .test_objectives import student


def tuning(times: ShrinkingGap, **settings) -> Matching:
    return Matching(
        kind="local", s="end", target_inner="student", solver=SameNoise(), times=times, gap_power=1.0, **settings
    )


def test_u_is_the_papers():
    """Numbers of r(t) at q = 2, k = 8, b = 1 worked out by hand: 1 + 8/(1 + e) = 3.1515…, 1 + 8/(1 + e⁵) = 1.0535…"""
    times, t = ShrinkingGap(every=100), torch.tensor([1.0, 5.0, 0.1], dtype=torch.float64)
    assert [times.stage(step) for step in (0, 99, 100, 750, 10**6)] == [1, 1, 2, 8, 8]
    assert times.lower(t, 0).tolist() == pytest.approx([0.0, 5 * (1 - 1.0535428 / 2), 0.0], rel=1e-6)
    assert times.lower(t, 750).tolist() == pytest.approx(
        [1 - 3.1515314 / 256, 5 * (1 - 1.0535428 / 256), 0.1 * (1 - 4.8001665 / 256)], rel=1e-6
    )


@pytest.mark.parametrize("step", [0, 150, 10_000])
def test_times_are_ordered_and_log_normal(step):
    n = 20_000
    times = ShrinkingGap(every=100)(n, step, 0.002, 80.0, torch.Generator().manual_seed(0))
    assert times.path.shape == (2, n)
    assert bool(((times.s >= 0.002) & (times.s <= times.u) & (times.u < times.t) & (times.t <= 80.0)).all())
    assert times.t.min().item() >= 0.004
    middle = times.t.log().median().item()  # the ends are kept, and do not move the median
    assert middle == pytest.approx(-1.1, abs=4 * 2.0 * math.sqrt(math.pi / 2 / n))
    assert (times.t < math.exp(-3.1)).double().mean().item() == pytest.approx(0.1587, abs=4 * (0.1335 / n) ** 0.5)


def test_the_draw_goes_by_the_steps_of_the_objective():
    model, x0 = student().double(), torch.zeros(64, 2, dtype=torch.float64)
    way = tuning(ShrinkingGap(every=10, k=0.0), start=5)

    def gap(step: int) -> float:
        rows = {"total": 64, "part": slice(0, 64), "condition_dropout": 0.0}
        draw = draw_batch([way], model, x0, None, generator=step_generator(0, step), step=step, **rows).draws[0]
        assert torch.equal(draw.times.s, torch.full_like(draw.times.s, 0.002))
        return (1 - draw.times.u / draw.times.t).max().item()

    assert [gap(step) for step in (5, 14, 15, 35, 1000)] == pytest.approx([0.5, 0.5, 0.25, 1 / 16, 1 / 256])


def gradients_of_samples(error: float, q: float, n: int = 40_000) -> torch.Tensor:
    """d loss/d error of each sample (n,) at a map with that error: 2/(t − u)·mean((G(x_t) − G(x_u))·dG(x_t)/d error)."""
    truth = gaussian()
    x0, condition = data(truth, n)
    flow, way = Flow(truth, error).requires_grad_(False), tuning(ShrinkingGap(every=1, q=q, stages=1, k=0.0))
    times = way.draw(flow, x0, torch.Generator().manual_seed(0)).times
    noise = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x_t, x_u = (x0 + level[:, None] * noise for level in (times.t, times.u))
    far, near = flow.jump(x_t, times.t, times.s, condition), flow.jump(x_u, times.u, times.s, condition)
    wrong = match_dims((times.t / times.s).log() ** 2 / 20, x_t) * truth.jump(x_t, times.t, times.s, condition)
    return 2 * ((far - near) * wrong).mean(1) / (times.t - times.u)


def test_in_the_limit_of_small_gaps_the_mean_gradient_is_zero_at_the_exact_flow():
    """The target is right in the mean up to the gap. At a relative gap of 1e-4 the mean is within four standard errors, and
    beyond them with the right sign at a wrong map. At a gap of one half the straight line is not the flow: the exact map is
    moved."""
    exact = gradients_of_samples(0.0, q=1e4)
    assert abs(exact.mean().item()) < 4 * exact.std().item() / len(exact) ** 0.5
    for error in (0.1, -0.1):
        wrong = gradients_of_samples(error, q=1e4)
        assert wrong.mean().item() * error > 4 * abs(error) * wrong.std().item() / len(wrong) ** 0.5
    coarse = gradients_of_samples(0.0, q=2.0)
    assert abs(coarse.mean().item()) > 4 * coarse.std().item() / len(coarse) ** 0.5


def test_the_loss_is_the_distance_over_the_gap():
    """And its gradient with respect to the map's error is the one that `gradients_of_samples` averages."""
    truth = gaussian()
    x0, condition = data(truth, 16)
    flow, way = Flow(truth, 0.1), tuning(ShrinkingGap(every=1), distance=Squared())
    draw = way.draw(flow, x0, torch.Generator().manual_seed(0))
    found = way(Networks(flow, flow), x0, condition, draw)
    times = draw.times
    x_t, x_u = (x0 + level[:, None] * draw.noise for level in (times.t, times.u))
    far, near = flow.jump(x_t, times.t, times.s, condition), flow.jump(x_u, times.u, times.s, condition).detach()
    expected = (far - near).square().mean(1) / (times.t - times.u)
    torch.testing.assert_close(found, expected)
    a, b = (torch.autograd.grad(value.sum(), flow.error)[0] for value in (found, expected))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every and stages must be at least 1, got 0 and 8"),
        ({"every": 1, "q": 1.0}, "q divides the gap from stage to stage, so it must be above 1 and finite, got 1.0"),
        ({"every": 1, "k": -1.0}, "k and b must be at least 0 and finite, got -1.0 and 1.0"),
        ({"every": 1, "std": 0.0}, "mean must be finite and std above 0 and finite, got -1.1 and 0.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ShrinkingGap(**settings)


def test_settings_of_the_grid_and_times_are_not_given_together():
    with pytest.raises(ValueError, match=r"times \(ShrinkingGap\) draws t, u and s, one.*set kind to local"):
        Matching(times=ShrinkingGap(every=1))
    with pytest.raises(ValueError, match="at their defaults, got another grid_points, rho"):
        Matching(kind="local", times=ShrinkingGap(every=1), grid_points=10, rho=3.0)
    with pytest.raises(ValueError, match="gap_power must be finite, got inf"):
        Matching(gap_power=math.inf)
    with pytest.raises(ValueError, match="schedule changes the grid of Matching, and with times"):
        tuning(ShrinkingGap(every=1)).on_grid(5)


def test_a_recipe_with_a_schedule_and_times_is_refused_before_it_runs(capsys):
    times = "{class_path: ctm.objectives.ShrinkingGap, init_args: {every: 5}}"
    extra = [
        "--config", str(RECIPES / "digits-ct.yaml"), "--objectives",
        f"[{{class_path: ctm.objectives.Matching, init_args: {{kind: local, s: end, times: {times}}}}}]",
    ]  # fmt: skip
    with pytest.raises((ValueError, SystemExit)) as raised:
        parse_recipe(extra)
    assert "schedule changes the grid of Matching" in str(raised.value) + capsys.readouterr().err
