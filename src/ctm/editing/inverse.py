"""Linear inverse problems: samples of an image given y = A·x0, by replacement or by the gradient of a pseudo-inverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ctm.editing.operators import LinearOperator
from ctm.guidance.base import Guided
from ctm.guidance.gradients import likelihood_gain
from ctm.noise import karras_grid
from ctm.sampling import gamma, heun, restore
from ctm.sampling.common import Callback
from ctm.sampling.generation import ImageNoise

__all__ = ["Measured", "into_range", "replace", "solve_guided"]


class Measured(Guided):
    """Pseudo-inverse guidance (ΠGDM: Song et al., Pseudoinverse-Guided Diffusion Models for Inverse Problems, ICLR 2023):

        D + (t²/r²)·(∂D/∂x)ᵀ A⁺(y − A·D),     r² = t²σ_d²/(t² + σ_d²)

    which takes p(x0 | x_t) to be N(D, r²·I). Exact where the data are one Gaussian N(μ, σ_d²·I); of other data the samples are
    biased, docs/sampling.md says how much on a mixture. model: any model; y: the measurement A(x0) of each sample."""

    def __init__(self, model: Any, operator: LinearOperator, y: Tensor) -> None:
        super().__init__(model)
        self.operator, self.y = operator, y
        self.spread = float(getattr(model, "sigma_data", 0.5))

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, labels: Tensor | None) -> Tensor:
        variance = (t**2 * self.spread**2 / (t**2 + self.spread**2)).to(x.dtype)
        measured = self.operator.A_pinv(self.y.to(x))

        def log_likelihood(at: Tensor, denoised: Callable[[Tensor], Tensor]) -> Tensor:
            missing = measured - self.operator.projection(denoised(at))
            return -missing.flatten(1).square().sum(dim=1) / (2 * variance)

        image = self.unguided(x, t, s, labels)
        return image + likelihood_gain(self.model, labels, x, t, log_likelihood)


def _start(model: Any, y: Tensor, seed: int, device: torch.device) -> tuple[Tensor, ImageNoise]:
    """The first draw of each image, and the source of the later ones."""
    noise = ImageNoise(seed, range(len(y)))
    return noise(torch.empty(len(y), *model.shape, dtype=y.dtype, device=device)), noise


def replace(
    model: Any,
    operator: LinearOperator,
    y: Tensor,
    *,
    steps: int = 8,
    rounds: int = 1,
    clamp: bool = True,
    grid: Tensor | None = None,
    labels: Tensor | None = None,
    seed: int = 0,
    callback: Callback | None = None,
) -> Tensor:
    """Images x with A·x = y exactly, by jumps with replacement (`ctm.sampling.restore`): steps·rounds calls of the model.

    Each round jumps to σ_min, puts the measured part in, and adds new noise. At a small level t one round is a step of
    Langevin's dynamics on the images with A·x = y, of size t², so many rounds at small levels tend to the posterior; few
    rounds are biased. y (B, …); grid: levels instead of karras_grid(steps); image i from (seed, i) alone; clamp: pictures.
    Returns (B, *model.shape) like y. Raises ValueError for steps or rounds < 1 and a model without jump."""
    levels = karras_grid(steps, model.sigma_min, model.sigma_max, dtype=y.dtype) if grid is None else grid
    x, noise = _start(model, y, seed, y.device)
    known = operator.A_pinv(y)
    options: dict[str, Any] = {"labels": labels, "noise": noise, "rounds": rounds, "clamp": clamp, "callback": callback}
    return restore(model, levels[0].to(x) * x, levels, known, operator.projection, **options)


def solve_guided(
    model: Any,
    operator: LinearOperator,
    y: Tensor,
    *,
    steps: int = 18,
    jumps: bool = False,
    labels: Tensor | None = None,
    seed: int = 0,
    callback: Callback | None = None,
) -> Tensor:
    """Images with A·x near y by `Measured`: Heun on `steps` intervals, or as many guided jumps where `jumps` is true. At the
    end the measured part is put in exactly. Other arguments as in `replace`."""
    levels = karras_grid(steps, model.sigma_min, model.sigma_max, dtype=y.dtype)
    x, noise = _start(model, y, seed, y.device)
    sampler = gamma if jumps else heun
    options: dict[str, Any] = {"labels": labels, "noise": noise, "callback": callback}
    made = sampler(Measured(model, operator, y), levels[0] * x, levels, **options)
    return made - operator.projection(made) + operator.A_pinv(y)


def into_range(x: Tensor, operator: LinearOperator, y: Tensor, *, rounds: int = 1000) -> Tensor:
    """Images near x in [−1, 1] with A·x = y as nearly as that allows, by projections on both in turn (von Neumann's alternating
    projections): both hold in the limit where any image has both, else the range is kept. It ends where a round changes
    nothing (1e-5). x (B, *shape), y (B, …)."""
    given = operator.A_pinv(y)
    for _ in range(rounds):
        inside = x.clamp(-1, 1)
        before, x = x, inside - operator.projection(inside) + given
        if bool((x - before).abs().max() <= 1e-5):
            break
    return x.clamp(-1, 1)
