"""The known posterior of a mixture given y = A·x0, and how far samples are from it.

With P the projection on what is measured and Q = I − P, the posterior of a mixture with covariance c²·I is one again: weights
w_k·exp(−|P(A⁺y − μ_k)|²/(2c²)), means A⁺y + Q·μ_k and covariance c²·Q (c²·I is the same in each direction, so that P·x0 and Q·x0
of one component are independent).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ctm.editing import LinearOperator
from ctm.teachers import GaussianMixture

from ..sampling.test_limits import Flow


@dataclass(frozen=True)
class Posterior:
    """weights (K,), means (K, d), hidden: Q (d, d)."""

    weights: Tensor
    means: Tensor
    hidden: Tensor
    std: float

    @property
    def mean(self) -> Tensor:
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        centred = self.means - self.mean
        return self.std**2 * self.hidden + centred.T @ (self.weights[:, None] * centred)

    def sample(self, n: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[chosen] + self.std * noise @ self.hidden

    def errors(self, made: Tensor) -> tuple[float, float]:
        """Of samples (n, d): the distance of their mean in standard deviations, |m̂ − m|/√(tr C), and that of their covariance,
        ‖Ĉ − C‖/‖C‖ (Frobenius)."""
        truth = self.covariance
        mean_error = (made.mean(0) - self.mean).norm() / truth.trace().sqrt()
        return float(mean_error), float((made.T.cov() - truth).norm() / truth.norm())


def posterior(teacher: GaussianMixture, operator: LinearOperator, y: Tensor) -> Posterior:
    """y: one measurement, (1, …)."""
    dimensions = teacher.means.shape[1]
    measured = operator.projection(torch.eye(dimensions, dtype=torch.float64))
    point = operator.A_pinv(y)[0]
    distance = ((teacher.means - point) @ measured).square().sum(1)
    weights = (teacher.weights.log() - distance / (2 * teacher.std**2)).softmax(0)
    hidden = torch.eye(dimensions, dtype=torch.float64) - measured
    return Posterior(weights, point + teacher.means @ hidden, hidden, teacher.std)


class Jumps:
    """A mixture with the quick flow of the sampler tests as its jump."""

    def __init__(self, teacher: GaussianMixture, steps: int) -> None:
        self.shape, self.sigma_min, self.sigma_max = teacher.shape, teacher.sigma_min, teacher.sigma_max
        self.sigma_data, self.denoise, self.jump = teacher.sigma_data, teacher.denoise, Flow(teacher, steps).jump
