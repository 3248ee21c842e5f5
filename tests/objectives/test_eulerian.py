"""d/dt G = 0 along the flow: against the flow of a conditional Gaussian and finite differences."""

from dataclasses import replace

import pytest
import torch

from ctm.models import ConsistencyModel
from ctm.networks import MLP
from ctm.noise import match_dims
from ctm.objectives import Eulerian, KarrasPairs, Networks
from ctm.training.step import draw_batch, step_generator

from ..conftest import mixture
from .flows import Flow, data, gaussian, losses
from .test_objectives import student


@pytest.mark.parametrize("velocity", ["teacher", "student", "target"])
@pytest.mark.parametrize("normalise", [None, 0.1])
def test_the_exact_flow_has_no_loss_and_a_wrong_map_is_led_back(velocity, normalise):
    way = Eulerian(velocity=velocity, normalise=normalise)
    found, gradient, _ = losses(way)
    assert found.max().item() < 1e-10
    assert abs(gradient.item()) < 1e-10
    for error in (0.03, -0.03):
        wrong, gradient, _ = losses(way, error)
        assert wrong.mean().item() > 1e-5
        assert gradient.item() * error > 0


def gradients_of_samples(error: float, n: int = 40_000) -> torch.Tensor:
    """d loss/d error of each sample (n,) with the data's velocity, at a map with that error: 2w·mean(h·dG/d error)."""
    truth = gaussian()
    x0, condition = data(truth, n)
    flow, way = Flow(truth, error), Eulerian(velocity="data", pairs=KarrasPairs())
    draw = way.draw(flow, x0, torch.Generator().manual_seed(0))
    x_t = draw.noised(x0)
    with torch.no_grad():
        tangent = way.tangent(Networks(flow), x0, x_t, condition, draw)
    wrong = match_dims((draw.t / draw.s).log() ** 2 / 20, x_t) * truth.jump(x_t, draw.t, draw.s, condition)
    return 2 * (tangent * wrong).mean(1)


def test_with_the_datas_velocity_the_mean_gradient_is_zero_at_the_exact_flow():
    """MeanFlow's target is right in the mean: within four standard errors at the exact map, while single samples are far off, and
    beyond them with the right sign at a wrong one. `losses` has the gradient that training sees."""
    exact = gradients_of_samples(0.0)
    standard_error = exact.std().item() / len(exact) ** 0.5
    assert exact.abs().max().item() > 100 * standard_error
    assert abs(exact.mean().item()) < 4 * standard_error
    for error in (0.03, -0.03):
        wrong = gradients_of_samples(error)
        assert wrong.mean().item() * error > 4 * abs(error) * wrong.std().item() / len(wrong) ** 0.5
    _, gradient, _ = losses(Eulerian(velocity="data"), n=40_000)
    assert gradient.item() == pytest.approx(exact.mean().item(), abs=1e-9)


def test_the_tangent_is_the_derivative_along_the_flow():
    """h = t·dG/dt by central differences along v, in float64; and its two parts make the warm-up."""
    model, teacher = student().double(), mixture(2)
    way, x0 = Eulerian(), teacher.sample(8)
    draw = way.draw(model, x0, torch.Generator().manual_seed(0))
    draw = replace(draw, t=draw.t + 0.5, s=draw.s + 0.1)
    t, s, h, x_t = draw.t, draw.s, 1e-6, draw.noised(x0) + 0.4 * draw.noise
    networks = Networks(model, None, teacher)
    denoised = teacher.denoise(x_t, t)
    velocity = (x_t - denoised) / t[:, None]

    def along(function, step):
        return function(x_t + step * velocity, t + step)

    def slope(function):
        return t[:, None] * (along(function, h) - along(function, -h)) / (2 * h)

    with torch.no_grad():
        full = way.tangent(networks, x0, x_t, None, draw)
        torch.testing.assert_close(full, slope(lambda x, t: model.jump(x, t, s)), rtol=1e-5, atol=1e-6)
        for ramp in (0.0, 0.25):
            found = way.tangent(networks, x0, x_t, None, replace(draw, ramp=ramp))
            ratio = (s / t)[:, None]
            expected = ratio * (model.g(x_t, t, s) - denoised) + ramp * (1 - ratio) * slope(
                lambda x, t: model.g(x, t, s)
            )
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        small = replace(way, normalise=0.1).tangent(networks, x0, x_t, None, draw)
        size = full.square().mean(1, keepdim=True).sqrt()
        torch.testing.assert_close(small, full / (size + 0.1))


def test_the_gradient_is_the_limit_of_local_matching():
    """(d/dθ)|G(x_t, t, s) − stopgrad G(x_u, u, s)|² divided by ln t − ln u goes to the gradient, at the gap's order."""
    model, teacher = student().double(), mixture(2)
    way, x0 = Eulerian(), teacher.sample(16)
    draw = way.draw(model, x0, torch.Generator().manual_seed(0))
    draw = replace(draw, s=draw.s * 0.9)
    way(Networks(model, None, teacher), x0, None, draw).sum().backward()
    limit = torch.cat([p.grad.flatten() for p in model.parameters()])
    x_t, t = draw.noised(x0), draw.t
    missed = []
    for gap in (1e-3, 1e-4):
        model.zero_grad()
        u = t * (1 - gap)
        x_u = x_t + (u - t)[:, None] * (x_t - teacher.denoise(x_t, t)) / t[:, None]
        with torch.no_grad():
            target = model.jump(x_u, u, draw.s)
        ((model.jump(x_t, t, draw.s) - target).square().mean(1).sum() / gap).backward()
        missed.append((torch.cat([p.grad.flatten() for p in model.parameters()]) - limit).norm() / limit.norm())
    assert missed[1].item() < 0.02
    assert missed[1].item() < missed[0].item() / 5


def test_the_warm_up_goes_by_steps():
    model, x0, way = student(), torch.zeros(4, 2), Eulerian(warmup=10, start=5)

    def ramp(step: int) -> float:
        rows = {"total": 4, "part": slice(0, 4), "condition_dropout": 0.0}
        return draw_batch([way], model, x0, None, generator=step_generator(0, step), step=step, **rows).draws[0].ramp

    assert [ramp(step) for step in (5, 6, 14, 15, 100)] == [0.0, 0.1, 0.9, 1.0, 1.0]
    assert Eulerian().draw_at(0, model, x0, torch.Generator().manual_seed(0)).ramp == 1.0


def test_a_consistency_model_learns_jumps_to_the_end():
    model = ConsistencyModel(MLP((2,), width=8, blocks=1, embedding=8, s_embedding=False), shape=(2,))
    with pytest.raises(ValueError, match="use model kind trajectory, or pairs with to_end: 1"):
        Eulerian().check(model, None)
    way = Eulerian(pairs=KarrasPairs(to_end=1.0))
    way.check(model, None)
    x0 = torch.randn(4, 2)
    draw = way.draw(model, x0, torch.Generator().manual_seed(0))
    way(Networks(model, None, mixture(2)), x0, None, draw).mean().backward()
    assert model.network.last.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"velocity": "noise"}, "velocity must be one of teacher, student, target, data, got 'noise'"),
        ({"warmup": -1}, "warmup is a number of steps, at least 0, got -1"),
        ({"normalise": 0.0}, r"normalise is the c of h/\(\|h\| \+ c\), above 0 and finite, or null, got 0.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Eulerian(**settings)
