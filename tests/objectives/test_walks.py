"""The way t → u: which solver, how many steps, how often the teacher is asked."""

import pytest
import torch

from ctm.noise import karras_grid
from ctm.objectives import Adversarial, Matching, MultistepWalk, Networks, Squared, TargetJump, TargetJumps, TeacherWalk
from ctm.objectives.discriminator_player import fake_maker
from ctm.sampling import dpmpp_2m
from ctm.solvers import dpmpp_2m_walk, euler_step, heun_step, midpoint_step

from ..conftest import mixture
from .test_objectives import Exact, student

SOLVERS = {
    "heun": (TeacherWalk(heun_step), 2, 2),
    "midpoint": (TeacherWalk(midpoint_step), 2, 2),
    "euler": (TeacherWalk(euler_step), 1, 1),
    "dpmpp_2m": (MultistepWalk(), 2, 1),
}


def missed(solver, steps: int) -> float:
    """Error of the walk 2 → 0.2 against the exact flow."""
    teacher = mixture(2)
    path = karras_grid(steps, 0.2, 2.0, dtype=torch.float64)[:, None].expand(-1, 64)
    x = teacher.sample(64) + 2 * torch.randn(64, 2, dtype=torch.float64)
    walked = solver(Networks(None, None, teacher), x, path, None)
    return (walked - teacher.jump(x, path[0], path[-1])).square().mean().sqrt().item()


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_reach_the_exact_flow_at_their_order(name):
    solver, order, _ = SOLVERS[name]
    torch.manual_seed(0)
    coarse = missed(solver, 32)
    torch.manual_seed(0)
    assert coarse / missed(solver, 64) == pytest.approx(2**order, rel=0.3)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("continuous", [False, True])
def test_evaluations_of_every_solver_are_counted(name, continuous):
    solver, _, each = SOLVERS[name]
    calls = []

    class Counting:
        def denoise(self, x, t, labels=None):
            calls.append(1)
            return torch.zeros_like(x)

    model, x0 = student(), torch.zeros(4, 2)
    objective = Matching(solver_steps=4, solver=solver, continuous=continuous)
    draw = objective.draw(model, x0, torch.Generator().manual_seed(0))
    objective(Networks(model, model, Counting()), x0, None, draw)
    assert objective.teacher_evaluations(draw) == len(calls) == 4 * each


@pytest.mark.parametrize("solver", [TargetJump(), TargetJumps()])
def test_the_targets_own_jumps_need_no_teacher(solver):
    """With the exact flow as its target, the walk is exact in one jump or many, and no evaluation is counted."""
    teacher = mixture(2)
    path = karras_grid(6, 0.2, 2.0, dtype=torch.float64)[:, None].expand(-1, 16)
    x = teacher.sample(16) + 2 * torch.randn(16, 2, dtype=torch.float64)
    walked = solver(Networks(None, Exact(teacher)), x, path, None)
    torch.testing.assert_close(walked, teacher.jump(x, path[0], path[-1]), rtol=1e-7, atol=1e-8)
    assert not solver.needs_teacher
    assert solver.teacher_evaluations(6) == 0


def test_the_multistep_walk_is_the_sampler_on_each_rows_levels():
    teacher, grid = mixture(2), karras_grid(8, dtype=torch.float64)
    x = teacher.sample(8) + 80 * torch.randn(8, 2, dtype=torch.float64)
    walked = dpmpp_2m_walk(teacher.denoise, x, grid[:, None].expand(-1, 8))
    torch.testing.assert_close(walked, dpmpp_2m(teacher, x, grid))


def lengths(objective: Matching, draws: int) -> torch.Tensor:
    """The number of steps in each draw."""
    generator, x0, model = torch.Generator().manual_seed(0), torch.zeros(2, 2), student()
    return torch.tensor([len(objective.draw(model, x0, generator).times.path) - 1 for _ in range(draws)])


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_number_of_steps_has_the_stated_distribution(power):
    """P(k) ∝ k^power on 1 … 4; each share within four standard deviations of n draws."""
    n = 600
    found = lengths(Matching(max_solver_steps=4, solver_steps_power=power), n).bincount(minlength=5)[1:] / n
    expected = torch.arange(1, 5.0) ** power
    expected /= expected.sum()
    assert bool(((found - expected).abs() < 4 * (expected * (1 - expected) / n).sqrt()).all()), found


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_continuous_walks_have_the_stated_lengths(power):
    """The span in the Karras coordinate, density ∝ span^power up to M/N: mean (power + 1)/(power + 2) of it."""
    n, generator, model = 600, torch.Generator().manual_seed(0), student().double()
    objective = Matching(max_solver_steps=8, grid_points=16, solver_steps_power=power, continuous=True)
    x0 = torch.zeros(1, 2, dtype=torch.float64)
    spans = []
    for _ in range(n):
        times = objective.draw(model, x0, generator).times
        top, bottom = 80 ** (1 / 7), 0.002 ** (1 / 7)
        spans.append((times.t ** (1 / 7) - times.u ** (1 / 7)) / (top - bottom))
        assert len(times.path) - 1 == max(1, round(spans[-1].item() * 16))
    spans = torch.cat(spans)
    mean = 0.5 * (power + 1) / (power + 2)
    assert spans.max().item() <= 0.5 + 1e-9
    assert spans.mean().item() == pytest.approx(mean, abs=4 * spans.std().item() / n**0.5)


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize(("settings", "steps"), [({"solver_steps": 3}, 3), ({"kind": "local"}, 1)])
def test_a_fixed_number_of_steps_is_fixed(settings, steps, continuous):
    """Always k steps, over k spacings of the grid in the Karras coordinate."""
    assert set(lengths(Matching(**settings, continuous=continuous), 30).tolist()) == {steps}
    draw = Matching(**settings, continuous=continuous, grid_points=18).draw(
        student().double(), torch.zeros(64, 2, dtype=torch.float64), torch.Generator().manual_seed(0)
    )
    spans = (draw.times.t ** (1 / 7) - draw.times.u ** (1 / 7)) / (80 ** (1 / 7) - 0.002 ** (1 / 7))
    torch.testing.assert_close(spans, torch.full_like(spans, steps / 17))


@pytest.mark.parametrize("kind", ["soft", "local", "global"])
@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("settings", [{"solver_steps_power": 0.0}, {"solver_steps_power": 1.0}, {"solver_steps": 1}])
@pytest.mark.parametrize("end", ["drawn", "end"])
def test_all_combinations_draw_ordered_times(kind, continuous, settings, end):
    if kind == "global" and end == "end":
        with pytest.raises(ValueError, match="choose one of them"):
            Matching(kind=kind, s=end)
        return
    objective = Matching(kind=kind, continuous=continuous, s=end, max_solver_steps=5, **settings)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        times = objective.draw(student(), torch.zeros(16, 2), generator).times
        assert 2 <= len(times.path) <= 6
        assert bool((times.path.diff(dim=0) < 0).all())
        assert bool((times.s <= times.u).all())
        assert bool((times.t <= 80).all())
        assert bool((times.s >= torch.tensor(0.002)).all())
        assert kind != "global" or torch.equal(times.s, times.u)
        assert end != "end" or torch.equal(times.s, torch.full((16,), 0.002))


def test_comparison_at_s_has_no_last_jumps():
    """estimate = G(x_t, t, s), target = G⁻(x_u, u, s)."""
    model, teacher = student().double(), mixture(2)
    objective, x0 = Matching(compare="s", target_inner="target", distance=Squared()), teacher.sample(8)
    draw = objective.draw(model, x0, torch.Generator().manual_seed(0))
    times, other = draw.times, student().double()
    x_t = x0 + times.t[:, None] * draw.noise
    x_u = TeacherWalk()(Networks(None, None, teacher), x_t, times.path, None)
    expected = (model.jump(x_t, times.t, times.s) - other.jump(x_u, times.u, times.s)).square().mean(1)
    torch.testing.assert_close(objective(Networks(model, other, teacher), x0, None, draw), expected)
    exact = objective(Networks(Exact(teacher), Exact(teacher), Exact(teacher)), x0, None, draw)
    assert exact.mean().item() > 0
    walked = Matching(compare="s", solver=TargetJumps())
    assert walked(Networks(Exact(teacher), Exact(teacher)), x0, None, draw).max().item() < 1e-12


def test_a_discriminator_is_given_no_estimate_at_s():
    with pytest.raises(ValueError, match="Adversarial judges data, but with compare: s"):
        fake_maker([Matching(compare="s"), Adversarial()], 1)
    assert fake_maker([Matching(compare="s", s="end"), Adversarial()], 1) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"s": "start"}, "s must be drawn or end and compare data or s, got 'start' and 'data'"),
        ({"compare": "s", "target_inner": "none"}, "compare: s needs both sides at s"),
        ({"compare": "s", "estimate_at": "u"}, "compare: s needs both sides at s"),
        ({"kind": "local", "solver_steps": 2}, "kind local is one solver step, got solver_steps 2"),
        ({"solver_steps": 18}, "solver_steps must be in 1 … grid_points − 1 = 17, got 18"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Matching(**settings)
