"""Consistency distillation and training as settings of Matching, against the consistency function of a Gaussian, which is known:
f(x, t) = μ + (x − μ)·√((σ_min² + c²)/(t² + c²))."""

import pytest
import torch

from ctm import ConsistencyModel, TrajectoryModel, karras_grid
from ctm.networks import MLP
from ctm.objectives import Matching, Networks, PseudoHuber, SameNoise, TeacherWalk
from ctm.solvers import euler_step, heun_step, walk
from ctm.teachers import GaussianMixture
from ctm.training import Doubling, Progressive
from ctm.training.ema import frozen_copy

from ..conftest import mixture, random_weights
from ..learning import learn, one_jump_error

CONSISTENCY = {"kind": "local", "s": "end", "target_inner": "target"}


def gaussian(dtype=torch.float64) -> GaussianMixture:
    return GaussianMixture(torch.tensor([[0.4, -0.2]], dtype=dtype), 0.5, torch.ones(1, dtype=dtype))


def consistency_model(seed: int = 0) -> ConsistencyModel:
    network = MLP((2,), width=16, blocks=2, embedding=16, s_embedding=False)
    return random_weights(ConsistencyModel(network, shape=(2,)), seed).double()


def test_distillation_is_the_papers_equation():
    """d(f(x_t, t), f⁻(x_u, u)), x_u one Heun step of the teacher below x_t: equation 7 written out."""
    model, target, teacher = consistency_model(), consistency_model(1), mixture(2)
    x0, objective = teacher.sample(32), Matching(**CONSISTENCY)
    draw = objective.draw(model, x0, torch.Generator().manual_seed(0))
    t, u = draw.times.path
    grid = karras_grid(17, dtype=torch.float64)
    index = (grid[:, None] == t).nonzero()[:, 0]
    assert bool(torch.isin(t, grid[:-1]).all())
    assert set(index.tolist()) <= set(range(17))
    assert torch.equal(u, torch.stack([grid[(grid < level).nonzero()[0, 0]] for level in t]))
    x_t = x0 + t[:, None] * draw.noise
    expected = (
        (model.denoise(x_t, t) - target.denoise(heun_step(teacher.denoise, x_t, t, u), u)).square().mean(1).detach()
    )
    found = objective(Networks(model, frozen_copy(target), teacher), x0, None, draw)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=0)


def test_training_compares_the_same_data_and_noise():
    """Equation 10: x_u = x0 + u·ε, no teacher."""
    model, target, data = consistency_model(), consistency_model(1), mixture(2)
    x0, objective = data.sample(32), Matching(**CONSISTENCY, solver=SameNoise(), distance=PseudoHuber())
    assert not objective.needs_teacher
    draw = objective.draw(model, x0, torch.Generator().manual_seed(0))
    (t, u), noise = draw.times.path[..., None], draw.noise
    ours = model.denoise(x0 + t * noise, t[:, 0])
    theirs = target.denoise(x0 + u * noise, u[:, 0])
    found = objective(Networks(model, frozen_copy(target)), x0, None, draw)
    torch.testing.assert_close(found, PseudoHuber()(ours, theirs), rtol=1e-9, atol=0)
    assert objective.teacher_evaluations(draw) == 0


def test_the_walk_on_the_same_noise_is_eulers_step_on_average():
    """E[x0 | x_t] in the place of x0 gives Euler's step of the flow: why consistency training has the right limit."""
    teacher, x = mixture(2), torch.randn(8, 2, dtype=torch.float64)
    path = torch.tensor([[2.0], [1.5]], dtype=torch.float64).expand(2, 8)
    mean = teacher.denoise(x, path[0])
    walked = SameNoise()(Networks(None), x, path, None, mean)
    torch.testing.assert_close(walked, euler_step(teacher.denoise, x, *path))
    with pytest.raises(ValueError, match="needs the data x0"):
        SameNoise()(Networks(None), x, path, None)


@pytest.mark.parametrize(("solver", "order"), [(heun_step, 2), (euler_step, 1)])
def test_the_exact_consistency_function_has_no_loss_on_fine_grids(solver, order):
    """What is left is the solver's local error, of order h^(p+1): squared, a grid twice as fine leaves 4^(p+1) times less."""
    teacher, x0 = gaussian(), gaussian().sample(2000)

    def loss(points):
        objective = Matching(**CONSISTENCY, grid_points=points, solver=TeacherWalk(solver))
        draw = objective.draw(teacher, x0, torch.Generator().manual_seed(0))
        return objective(Networks(_with_levels(teacher), teacher, teacher), x0, None, draw).mean().item()

    coarse, fine = loss(65), loss(129)
    assert coarse / fine == pytest.approx(4 ** (order + 1), rel=0.25)
    assert fine < 1e-5


def _with_levels(teacher):
    teacher.sigma_data = 0.5
    return teacher


def test_distillation_ends_at_the_solvers_walk():
    """Its fixed point on a grid is the whole walk t → σ_min by the teacher's solver: no loss there, though the grid is
    coarse; the exact flow, which the walk misses, has some."""
    teacher, grid = mixture(2), karras_grid(17, dtype=torch.float64)

    class Walked:
        sigma_min, sigma_max, sigma_data = 0.002, 80.0, 0.5

        def jump(self, x, t, s, labels=None):
            result = x.clone()
            for row, level in enumerate(t):
                path = grid[grid <= level][:, None]
                result[row] = walk(teacher.denoise, x[row : row + 1], path)[0]
            return result

    x0, objective = teacher.sample(16), Matching(**CONSISTENCY)
    draw = objective.draw(teacher, x0, torch.Generator().manual_seed(0))
    walked = objective(Networks(Walked(), Walked(), teacher), x0, None, draw)
    exact = objective(Networks(teacher, teacher, teacher), x0, None, draw)
    assert walked.max().item() < 1e-20
    assert exact.mean().item() > 1e-5


@pytest.mark.slow
def test_a_distilled_student_is_the_consistency_function():
    """A jump of an untrained student misses by 1. Heun on these 18 levels misses by 0.055 itself."""
    torch.manual_seed(0)
    teacher = gaussian(torch.float32)
    model = TrajectoryModel(MLP((2,), width=64, blocks=2, embedding=32), shape=(2,))
    student = learn(teacher, model, [Matching(**CONSISTENCY)], 400, teacher=teacher, target_ema=0.5)
    error = one_jump_error(student, teacher)
    print(f"consistency distillation, one jump: {error:.4f}")
    assert error < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [Progressive(end=40, start_decay=0.1), Doubling(5, 40)])
def test_a_student_trained_without_teacher_is_the_consistency_function(schedule):
    torch.manual_seed(0)
    data = gaussian(torch.float32)
    model = ConsistencyModel(MLP((2,), width=64, blocks=2, embedding=32, s_embedding=False), shape=(2,))
    student = learn(data, model, [Matching(**CONSISTENCY, solver=SameNoise())], 600, schedule=schedule)
    error = one_jump_error(student, data)
    print(f"consistency training, {type(schedule).__name__}, one jump: {error:.4f}")
    assert error < 0.25


def test_schedules_are_the_papers():
    """Progressive: N from 2 to 151 levels, decay 0.9^(2/intervals). Doubling: 10, 20, … 1,280 intervals in eight stages."""
    progressive, doubling = Progressive(), Doubling()
    assert progressive(0, 800) == (pytest.approx(0.9**2), 2)
    assert progressive(799, 800)[1] in (150, 151)
    assert [doubling(step, 800) for step in (0, 99, 100, 699, 700, 799)] == [
        (0.0, n + 1) for n in (10, 10, 20, 640, 1280, 1280)
    ]
    with pytest.raises(ValueError, match="1 ≤ start ≤ end, got 5 and 4"):
        Doubling(5, 4)
    with pytest.raises(ValueError, match="start_decay must be between 0 and 1"):
        Progressive(start_decay=1.0)


def test_an_objective_moves_to_another_grid():
    objective = Matching(max_solver_steps=13, grid_points=18).on_grid(5)
    assert (objective.grid_points, objective.max_solver_steps) == (5, 4)
    assert Matching(solver_steps=3).on_grid(3).solver_steps == 2
