"""The whole method against the exact flow: students of a Gaussian mixture, a small one here and two exact ones as soaks."""

import time

import pytest
import torch

from ctm import TrajectoryModel, karras_grid
from ctm.networks import MLP
from ctm.objectives import DenoisingScoreMatching, Matching
from ctm.sampling import gamma
from ctm.teachers import GaussianMixture

from .learning import learn


def overlapping_mixture(dimensions: int) -> GaussianMixture:
    """Three components about four standard deviations apart: modes and borders, no gaps that the flow would jump over."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, dimensions, generator=generator)
    means = means / means.norm(dim=1, keepdim=True) * (0.7 if dimensions == 2 else 1.0)
    return GaussianMixture(means, 0.35, torch.rand(3, generator=generator) + 0.5)


def distil(teacher: GaussianMixture, steps: int, small: bool) -> TrajectoryModel:
    """Soft matching and denoising score matching; returns the averaged student. On 40 levels with up to 13 Heun steps, or
    small: on 16 levels with up to 4."""
    torch.manual_seed(0)
    sizes = {"width": 64, "blocks": 2, "embedding": 32} if small else {"width": 128, "blocks": 3, "embedding": 64}
    student = TrajectoryModel(MLP(teacher.shape, **sizes), shape=teacher.shape, sigma_data=teacher.sigma_data)
    matching = Matching(grid_points=16, max_solver_steps=4) if small else Matching(grid_points=40, max_solver_steps=13)
    rate = 5e-3 if small else 3e-3
    return learn(teacher, student, [matching, DenoisingScoreMatching()], steps, teacher=teacher, learning_rate=rate)


@pytest.mark.parametrize(
    ("dimensions", "steps", "share"),
    [
        (2, 400, 0.2),  # half of it was measured: the bound leaves room for another processor's rounding
        pytest.param(2, 1000, 0.05, marks=pytest.mark.slow),
        pytest.param(16, 700, 0.10, marks=pytest.mark.slow),
    ],
)
def test_a_students_one_jump_is_the_exact_flow(dimensions, steps, share):
    """Root mean square error of the jump 80 → 0.002, relative to the data's standard deviation; and the score's."""
    teacher = overlapping_mixture(dimensions)
    started = time.monotonic()
    student = distil(teacher, steps, small=steps < 500)
    seconds = time.monotonic() - started
    n = 4000 if steps >= 500 else 1000
    x = teacher.sample(n, seed=10**6) + 80 * torch.randn(n, dimensions)
    top, bottom = torch.full((n,), 80.0), torch.full((n,), 0.002)
    truth = teacher.jump(x, top, bottom)
    with torch.no_grad():
        error = (student.jump(x, top, bottom) - truth).square().mean().sqrt().item() / teacher.sigma_data
        four = (gamma(student, x, karras_grid(4)) - truth).square().mean().sqrt().item() / teacher.sigma_data
        levels = karras_grid(8)[:-1].repeat(n // 8)
        noisy = teacher.sample(n, seed=10**6) + levels[:, None] * torch.randn(n, dimensions)
        missed = (student.denoise(noisy, levels) - teacher.denoise(noisy, levels)).square().mean().sqrt().item()
    print(f"{dimensions} dimensions: one jump {error:.4f}, four {four:.4f}, denoiser {missed:.4f}, {seconds:.0f} s")
    assert error < share
    assert four < 2 * share
    assert missed < 2 * share * teacher.sigma_data
