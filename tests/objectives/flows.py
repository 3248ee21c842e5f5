"""A flow map known in closed form, exact or wrong by a known amount, for the tests of the ways to teach a jump."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctm.noise import match_dims
from ctm.objectives import Networks, Objective
from ctm.objectives.base import Draw
from ctm.teachers import ConditionalGaussian

F64 = torch.float64


def gaussian(size: int = 3, k: int = 2) -> ConditionalGaussian:
    generator = torch.Generator().manual_seed(size)
    matrix, offset = (
        torch.randn(size, k, dtype=F64, generator=generator),
        torch.randn(size, dtype=F64, generator=generator),
    )
    return ConditionalGaussian(matrix / 2, offset / 2, 0.4)


def data(truth: ConditionalGaussian, n: int, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """n samples and their conditions, every third of which is absent."""
    x0, condition = truth.sample(n, seed)
    return x0, condition | {"y_present": torch.arange(n) % 3 != 2}


class Flow(nn.Module):
    """The exact flow of a conditional Gaussian, times 1 + error·(ln t/s)²/20: exact where `error` is 0. A long jump is more
    wrong than two short ones together. The denoiser is exact."""

    def __init__(self, truth: ConditionalGaussian, error: float = 0.0) -> None:
        super().__init__()
        self.truth, self.error = truth, nn.Parameter(torch.tensor(error, dtype=F64))
        self.sigma_min, self.sigma_max, self.sigma_data = truth.sigma_min, truth.sigma_max, truth.sigma_data
        self.shape, self.conditioner = truth.shape, truth.conditioner

    def jump(self, x, t, s, condition=None):
        end = self.truth.jump(x, t, s, condition)
        return end + self.error * match_dims((t / s).log() ** 2 / 20, x) * end

    def denoise(self, x, t, condition=None):
        return self.truth.denoise(x, t, condition)


def losses(way: Objective, error: float = 0.0, n: int = 64, seed: int = 0) -> tuple[Tensor, Tensor, Draw]:
    """Each sample's loss (n,) of a map with that error, the gradient of their mean for the error, and the draw."""
    truth = gaussian()
    x0, condition = data(truth, n, seed)
    student, exact = Flow(truth, error), Flow(truth).requires_grad_(False)
    draw = way.draw(student, x0, torch.Generator().manual_seed(seed))
    found = way(Networks(student, exact, truth), x0, condition, draw)
    (gradient,) = torch.autograd.grad(found.mean(), student.error, allow_unused=True)
    return found.detach(), gradient, draw
