"""∂_s G = v(G, s): against the flow of a conditional Gaussian, finite differences, and on every network."""

from dataclasses import replace

import pytest
import torch

from ctm import TrajectoryModel
from ctm.models import ConsistencyModel
from ctm.networks import ADM, MLP, DDPMpp, NCSNpp
from ctm.objectives import KarrasPairs, Lagrangian, Networks
from ctm.objectives.derivatives import directional_derivative
from ctm.training.ema import frozen_copy

from ..conftest import mixture, random_weights
from .flows import F64, losses
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


NETWORKS = {
    "MLP": lambda: MLP((1, 8, 8), 3, width=16, blocks=1, embedding=16),
    "DDPMpp": lambda: DDPMpp((1, 8, 8), 3, channels=8, channel_mult=[1, 2], blocks=1, attention=[4, 8]),
    "NCSNpp": lambda: NCSNpp((1, 8, 8), 3, channels=8, channel_mult=[1, 2], blocks=1, attention=[4]),
    "ADM": lambda: ADM((1, 8, 8), 3, channels=8, channel_mult=[1, 2], blocks=1, attention=[4]),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_network_has_the_derivative_and_its_gradient(name, channels_last):
    """Against central differences of step 1e-6, and so for the gradient of the derivative, which torch's own norms have wrong by
    1 to 10 %. Labels and attention take part, and every weight gets a gradient."""
    model = random_weights(TrajectoryModel(NETWORKS[name](), shape=(1, 8, 8), num_classes=3)).double()
    if channels_last:
        model.to(memory_format=torch.channels_last)
    x = torch.randn(4, 1, 8, 8, dtype=F64)
    t, s = torch.tensor([2.0, 3.0, 4.0, 5.0], dtype=F64), torch.tensor([1.0, 0.5, 1.5, 2.0], dtype=F64)
    labels, weights = torch.tensor([0, 2, -1, 1]), list(model.parameters())

    def jump(s: torch.Tensor) -> torch.Tensor:
        return model.jump(x, t, s, labels)

    end, slope = directional_derivative(jump, (s,), (torch.ones_like(s),))
    differences = (jump(s + 1e-6) - jump(s - 1e-6)) / 2e-6
    torch.testing.assert_close(end, jump(s))
    assert close(slope, differences)
    found, expected = (torch.autograd.grad(value.square().sum(), weights) for value in (slope, differences))
    assert all(close(a, b) for a, b in zip(found, expected, strict=True))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Within 1e-3 of the norm; 1e-6 where it is zero, such as that of a bias that the next norm takes away."""
    return bool((a - b).norm() <= 1e-3 * b.norm() + 1e-6)


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
