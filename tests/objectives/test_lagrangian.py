"""∂_s G = v(G, s): against the flow of a conditional Gaussian and finite differences."""

from dataclasses import replace

import pytest
import torch

from ctm.models import ConsistencyModel
from ctm.networks import MLP
from ctm.objectives import KarrasPairs, Lagrangian, Networks
from ctm.training.ema import frozen_copy

from ..conftest import mixture
from .flows import losses
from .test_objectives import student

VELOCITIES = ["teacher", "student", "target"]


@pytest.mark.parametrize("velocity", VELOCITIES)
@pytest.mark.parametrize("through", [False, True])
def test_the_exact_flow_has_no_loss_and_a_wrong_map_is_led_back(velocity, through):
    way = Lagrangian(velocity=velocity, through_velocity=through)
    found, gradient, _ = losses(way)
    assert found.max().item() < 1e-10
    assert abs(gradient.item()) < 1e-10
    for error in (0.03, -0.03):
        wrong, gradient, _ = losses(way, error)
        assert wrong.mean().item() > 1e-5
        assert gradient.item() * error > 0


def test_it_is_the_papers_equation_and_its_gradient_stops_at_the_velocity():
    """w·s²·|∂_s G − v(G, s)|² by central differences in float64, whose error is 1e-7 here, and so for the gradient."""
    model, teacher = student().double(), mixture(2)
    way, x0 = Lagrangian(), teacher.sample(8)
    draw = way.draw(model, x0, torch.Generator().manual_seed(0))
    draw = replace(draw, t=draw.t + 0.5, s=draw.s + 0.1)  # away from the ends, where differences are exact enough
    found = way(Networks(model, None, teacher), x0, None, draw)
    t, s, h = draw.t, draw.s, 1e-5
    x_t = x0 + t[:, None] * draw.noise
    slope = (model.jump(x_t, t, s + h) - model.jump(x_t, t, s - h)) / (2 * h)
    end = model.jump(x_t, t, s).detach()
    velocity = (end - teacher.denoise(end, s)) / s[:, None]
    expected = (s[:, None] * (slope - velocity)).square().mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
    weights = list(model.parameters())
    for a, b in zip(
        torch.autograd.grad(found.sum(), weights), torch.autograd.grad(expected.sum(), weights), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"velocity": "data"}, "velocity must be one of teacher, student, target, got 'data'"),
        ({"start": -1}, "start must be at least 0, got -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Lagrangian(**settings)


def test_students_and_pairs_without_a_path_to_follow_are_refused():
    model = student()
    Lagrangian().check(model, None)
    with pytest.raises(ValueError, match="pairs with to_end 1 draw no s but the end: use a smaller to_end"):
        Lagrangian(pairs=KarrasPairs(to_end=1.0)).check(model, None)
    consistency = ConsistencyModel(MLP((2,), width=8, blocks=1, embedding=8, s_embedding=False), shape=(2,))
    with pytest.raises(
        ValueError, match="Lagrangian teaches jumps to any level, and a consistency model jumps to sigma_min"
    ):
        Lagrangian().check(consistency, None)


def test_the_average_and_the_teacher_get_no_gradient():
    model, teacher = student(), frozen_copy(student())
    way, x0 = Lagrangian(velocity="target"), torch.randn(4, 2)
    assert (way.needs_target, way.needs_teacher, way.chains_student) == (True, False, True)
    draw = way.draw(model, x0, torch.Generator().manual_seed(0))
    way(Networks(model, teacher), x0, None, draw).mean().backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert way.teacher_evaluations(draw) == 0
    assert Lagrangian().teacher_evaluations(draw) == 1
