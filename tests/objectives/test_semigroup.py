"""G(t → s) = G(u → s)∘G(t → u): against the flow of a conditional Gaussian, and against `Matching`."""

import pytest
import torch

from ctm.noise import Times
from ctm.objectives import Matching, Networks, Semigroup, TargetJump
from ctm.objectives.matching import MatchingDraw

from ..conftest import mixture, random_weights
from .flows import losses
from .test_objectives import student


@pytest.mark.parametrize("middle", ["half", "drawn"])
@pytest.mark.parametrize("by", ["student", "target"])
def test_the_exact_flow_has_no_loss_and_a_wrong_map_is_led_back(middle, by):
    """By the student the wrong map's own two jumps are the target, and they are less wrong than its one jump."""
    way = Semigroup(middle=middle, by=by)
    found, gradient, _ = losses(way)
    assert found.max().item() < 1e-10
    assert abs(gradient.item()) < 1e-10
    for error in (0.03, -0.03):
        wrong, gradient, _ = losses(way, error)
        assert wrong.mean().item() > 1e-5
        assert gradient.item() * error > 0


def test_u_lies_halfway_or_anywhere_between():
    x0 = torch.zeros(4000, 1, dtype=torch.float64)
    for way, deviation in ((Semigroup(), 0.0), (Semigroup(middle="drawn"), (1 / 12) ** 0.5)):
        draw = way.draw(student().double(), x0, torch.Generator().manual_seed(0))
        u = way.between(draw)
        assert bool(((draw.s <= u) & (u <= draw.t)).all())
        top, middle, bottom = (level ** (1 / 7) for level in (draw.t, u, draw.s))
        share = ((top - middle) / (top - bottom))[top - bottom > 1e-3]
        assert share.mean().item() == pytest.approx(0.5, abs=max(1e-9, 4 * deviation / len(share) ** 0.5))
        assert share.std().item() == pytest.approx(deviation, rel=0.05, abs=1e-9)


def test_at_the_same_levels_it_is_matching_compared_at_s_with_jumps_of_the_target():
    model, target, x0 = student().double(), random_weights(student(), seed=1).double(), mixture(2).sample(8)
    way = Semigroup(by="target")
    draw = way.draw(model, x0, torch.Generator().manual_seed(0))
    networks = Networks(model, target)
    times = Times(torch.stack([draw.t, way.between(draw)]), draw.s)
    matching = Matching(compare="s", solver=TargetJump(), target_inner="target", kind="local")
    expected = matching(networks, x0, None, MatchingDraw(times, draw.noise))
    torch.testing.assert_close(way(networks, x0, None, draw), expected)


def test_no_gradient_goes_to_the_two_jumps():
    """The gradient is the one of the long jump with the short ones' end held fixed."""
    model, x0 = student().double(), mixture(2).sample(8)
    way = Semigroup(by="student")
    draw = way.draw(model, x0, torch.Generator().manual_seed(0))
    x_t, u = draw.noised(x0), way.between(draw)
    fixed = model.jump(model.jump(x_t, draw.t, u), u, draw.s).detach()
    expected = (model.jump(x_t, draw.t, draw.s) - fixed).square().mean()
    found = way(Networks(model), x0, None, draw).mean()
    weights = list(model.parameters())
    for a, b in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(a, b)
    assert (way.needs_target, way.needs_teacher, way.teacher_evaluations(draw)) == (False, False, 0)
    assert Semigroup().needs_target


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"middle": "end"}, "middle must be one of half, drawn, got 'end'"),
        ({"by": "teacher"}, "by must be one of student, target, got 'teacher'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Semigroup(**settings)


def test_a_network_that_is_not_there_is_named():
    way, x0 = Semigroup(by="target"), torch.zeros(2, 2)
    draw = way.draw(student(), x0, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="there is no target here: give one in Networks"):
        way(Networks(student()), x0, None, draw)
