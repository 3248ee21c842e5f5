"""The whole method against the exact flow: students of a Gaussian mixture, trained for well under a minute each."""

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


def distil(teacher: GaussianMixture, steps: int, learning_rate: float = 3e-3) -> TrajectoryModel:
    """Soft matching on 40 levels, up to 13 Heun steps, and denoising score matching; returns the averaged student."""
    torch.manual_seed(0)
    network = MLP(teacher.shape, width=128, blocks=3, embedding=64)
    student = TrajectoryModel(network, shape=teacher.shape, sigma_data=teacher.sigma_data)
    objectives = [Matching(grid_points=40, max_solver_steps=13), DenoisingScoreMatching()]
    return learn(teacher, student, objectives, steps, teacher=teacher, learning_rate=learning_rate)


@pytest.mark.parametrize(("dimensions", "steps", "share"), [(2, 1000, 0.05), (16, 700, 0.10)])
def test_a_students_one_jump_is_the_exact_flow(dimensions, steps, share):
    """Root mean square error of the jump 80 → 0.002, relative to the data's standard deviation; and the score's."""
    teacher = overlapping_mixture(dimensions)
    started = time.monotonic()
    student = distil(teacher, steps)
    seconds = time.monotonic() - started
    n = 4000
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
