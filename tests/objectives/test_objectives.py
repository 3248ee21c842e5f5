import pytest
import torch
from torch import nn

from ctm import TrajectoryModel
from ctm.networks import MLP
from ctm.noise import Times, karras_grid, lognormal
from ctm.objectives import DenoisingScoreMatching, Matching, Networks, PseudoHuber, Squared, balance
from ctm.objectives.balance import adaptive_weight
from ctm.objectives.denoising import DenoisingDraw
from ctm.objectives.matching import MatchingDraw
from ctm.solvers import heun_step, walk
from ctm.teachers import GaussianMixture
from ctm.training.ema import frozen_copy
from ctm.training.step import Batch, LossModule, backward

from ..conftest import mixture, random_weights, slow


def student(dimensions: int = 2) -> TrajectoryModel:
    network = MLP((dimensions,), width=16, blocks=2, embedding=16)
    return random_weights(TrajectoryModel(network, shape=(dimensions,)))


class Exact:
    """The mixture's own flow as a student."""

    sigma_min, sigma_max, sigma_data = 0.002, 80.0, 0.5

    def __init__(self, teacher: GaussianMixture) -> None:
        self.teacher = teacher

    def jump(self, x, t, s, labels=None):
        return self.teacher.jump(x, t, s, labels)

    def denoise(self, x, t, labels=None):
        return self.teacher.denoise(x, t, labels)


@pytest.mark.parametrize("distance", [Squared(), PseudoHuber(0.1)])
def test_distances_are_zero_only_at_equality_and_symmetric(distance):
    a, b = torch.randn(2, 5, 1, 4, 4)
    assert distance(a, a).abs().max() == 0
    assert bool((distance(a, b) > 0).all())
    assert torch.equal(distance(a, b), distance(b, a))
    assert distance(a, b).shape == (5,)


def test_pseudo_huber_turns_from_quadratic_to_linear():
    zero = torch.zeros(1, 10, dtype=torch.float64)
    distance, c = PseudoHuber(0.1), 0.1
    assert distance(zero + 1e-3, zero).item() == pytest.approx(1e-6 / (2 * c), rel=1e-3)
    assert distance(zero + 100, zero).item() == pytest.approx(100 - c, rel=1e-5)


@pytest.mark.parametrize(
    ("continuous", "kind"),
    [
        (False, "soft"),
        slow(True, "local"),
        (True, "global"),
        slow(True, "soft"),
        slow(False, "local"),
        slow(False, "global"),
    ],
)
def test_the_exact_flow_has_almost_no_matching_loss(kind, continuous):
    """What is left is Heun's error on a grid of 257 levels; a student off by 1 % of the step is far above it."""
    teacher = mixture(2)
    objective = Matching(kind=kind, grid_points=257, continuous=continuous)
    generator = torch.Generator().manual_seed(0)
    x0 = teacher.sample(32)
    networks = Networks(Exact(teacher), Exact(teacher), teacher)
    draw = objective.draw(networks.student, x0, generator)
    loss = objective(networks, x0, None, draw)
    assert loss.median().item() < 2e-8

    class Off(Exact):
        def jump(self, x, t, s, labels=None):
            exact = super().jump(x, t, s, labels)
            return exact + 0.01 * (exact - x)

    wrong = objective(Networks(Off(teacher), Exact(teacher), teacher), x0, None, draw)
    assert wrong.median().item() > 30 * loss.median().item()


def test_matching_is_the_papers_equation():
    model, teacher = student(), mixture(2)
    model, x0 = model.double(), teacher.sample(4)
    target = frozen_copy(model)
    random_weights(target, seed=1)
    grid = karras_grid(17, dtype=torch.float64)
    path = torch.stack([grid[[2, 5, 9, 0]], grid[[3, 6, 10, 1]], grid[[4, 7, 11, 2]]])
    draw = MatchingDraw(Times(path, grid[[17, 7, 12, 9]]), torch.randn(4, 2, dtype=torch.float64))
    found = Matching()(Networks(model, target, teacher), x0, None, draw)
    x_t = x0 + path[0][:, None] * draw.noise
    x_u = walk(teacher.denoise, x_t, path, heun_step)
    end = torch.full((4,), 0.002, dtype=torch.float64)
    estimate = target.jump(model.jump(x_t, path[0], draw.times.s), draw.times.s, end)
    goal = target.jump(model.jump(x_u, path[2], draw.times.s), draw.times.s, end)
    torch.testing.assert_close(found, (estimate - goal).square().mean(1), rtol=1e-12, atol=0)


def test_gradient_flows_through_the_outer_networks_input_only():
    """The numerical derivative of the loss with the target value held fixed equals the gradient; the EMA gets none."""
    model, teacher = student().double(), mixture(2)
    target, x0 = frozen_copy(model), teacher.sample(8)
    objective = Matching()
    draw = objective.draw(model, x0, torch.Generator().manual_seed(0))
    networks = Networks(model, target, teacher)
    objective(networks, x0, None, draw).mean().backward()
    parameter = model.network.first.weight
    gradient = parameter.grad[0, 0].item()
    assert all(p.grad is None for p in target.parameters())
    times, end = draw.times, torch.full((8,), 0.002, dtype=torch.float64)
    x_t = x0 + times.t[:, None] * draw.noise
    with torch.no_grad():
        x_u = walk(teacher.denoise, x_t, times.path)
        goal = target.jump(model.jump(x_u, times.u, times.s), times.s, end)
        values = []
        for shift in (1e-5, -1e-5):
            parameter[0, 0] += shift
            estimate = target.jump(model.jump(x_t, times.t, times.s), times.s, end)
            values.append((estimate - goal).square().mean().item())
            parameter[0, 0] -= shift
    assert gradient == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-9)


def test_kinds_draw_what_their_names_say():
    model, x0, generator = student(), torch.zeros(64, 2), torch.Generator().manual_seed(0)
    for _ in range(20):
        local = Matching(kind="local").draw(model, x0, generator).times
        assert len(local.path) == 2
        whole = Matching(kind="global").draw(model, x0, generator).times
        assert torch.equal(whole.u, whole.s)
    lengths = {len(Matching(max_solver_steps=3).draw(model, x0, generator).times.path) for _ in range(60)}
    assert lengths == {2, 3, 4}


def test_evaluations_of_the_teacher_are_counted():
    model, x0, calls = student(), torch.zeros(4, 2), []

    class Counting:
        def denoise(self, x, t, labels=None):
            calls.append(1)
            return torch.zeros_like(x)

    objective = Matching(max_solver_steps=5)
    draw = objective.draw(model, x0, torch.Generator().manual_seed(3))
    objective(Networks(model, frozen_copy(model), Counting()), x0, None, draw)
    assert objective.teacher_evaluations(draw) == len(calls)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "hard"}, "kind must be soft, local or global, got 'hard'"),
        ({"grid_points": 1}, "grid_points must be at least 2"),
        ({"max_solver_steps": 18}, r"max_solver_steps must be in 1 … grid_points − 1 = 17, got 18"),
    ],
)
def test_matching_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Matching(**arguments)


def test_denoising_is_edms_loss():
    model, x0 = student(), torch.randn(3, 2)
    draw = DenoisingDraw(torch.tensor([0.1, 1.0, 10.0]), torch.randn(3, 2))
    found = DenoisingScoreMatching()(Networks(model), x0, None, draw)
    x = x0 + draw.sigma[:, None] * draw.noise
    weight = (draw.sigma**2 + 0.25) / (draw.sigma * 0.5) ** 2
    torch.testing.assert_close(found, weight * (model.denoise(x, draw.sigma) - x0).square().mean(1))


def test_the_exact_denoiser_minimises_denoising():
    teacher = mixture(2)
    x0 = teacher.sample(20_000)
    objective = DenoisingScoreMatching(levels=lognormal)
    draw = objective.draw(Exact(teacher), x0, torch.Generator().manual_seed(0))
    best = objective(Networks(Exact(teacher)), x0, None, draw).mean()

    class Off(Exact):
        def __init__(self, teacher, factor):
            super().__init__(teacher)
            self.factor = factor

        def denoise(self, x, t, labels=None):
            return super().denoise(x, t) * self.factor

    for factor in (0.9, 1.1):
        assert objective(Networks(Off(teacher, factor)), x0, None, draw).mean() > best


@pytest.mark.parametrize(
    ("first", "second", "weight"), [(3.0, 1.5, 2.0), (1.0, 0.0, 1e4), (0.0, 2.0, 0.0), (1e9, 1e-9, 1e4)]
)
def test_adaptive_weight_is_the_clamped_ratio_of_norms(first, second, weight):
    a, b = torch.tensor([first, 0.0]), torch.tensor([0.0, second])
    assert adaptive_weight(a, b).item() == pytest.approx(weight, rel=1e-3)


def test_balance_finds_the_gradients_of_the_last_layer():
    """Weights equal the ratio computed the plain way; the gradients equal those of the weighted sum, in one backward."""
    module = LossModule(student().double(), [])
    model = module.student
    x, t = torch.randn(6, 2, dtype=torch.float64), torch.rand(6, dtype=torch.float64) + 0.1

    weight = model.network.last.weight
    with module.watching():
        first, second = model.jump(x, t, t / 2).square().mean(), (model.denoise(x, t) - x).square().mean()
    simple = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (first, second)]
    weights, at_outputs = balance([first, second], module.outputs, weight)
    assert weights[0].item() == 1
    assert weights[1].item() == pytest.approx((simple[0].norm() / (simple[1].norm() + 1e-4)).item(), rel=1e-9)
    model.zero_grad()
    torch.autograd.backward(module.outputs, at_outputs)
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    first, second = model.jump(x, t, t / 2).square().mean(), (model.denoise(x, t) - x).square().mean()
    (first + weights[1].detach() * second).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-9, atol=1e-12)


def test_one_loss_has_weight_one_and_the_plain_gradient():
    objective = DenoisingScoreMatching()
    module = LossModule(student(), [objective])
    x0 = torch.randn(5, 2)
    batch = Batch(x0, None, [objective.draw(module.student, x0, torch.Generator().manual_seed(0))])
    weights = backward(module, module(batch, None, None))
    found = [p.grad.clone() for p in module.student.parameters() if p.grad is not None]
    module.student.zero_grad()
    module(batch, None, None)[0].backward()
    assert weights[0].item() == 1
    for a, b in zip(found, [p.grad for p in module.student.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(a, b)


def test_a_network_that_names_no_last_layer_is_searched():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.out = nn.Linear(2, 4), nn.Linear(4, 2)

        def forward(self, x, t, s, labels):
            return self.out(self.inside(x))

    network = Own()
    module = LossModule(TrajectoryModel(network, shape=(2,)), [])
    assert module.last_layer is network.out
