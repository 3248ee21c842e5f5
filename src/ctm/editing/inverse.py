"""Linear inverse problems: samples of an image given y = A·x0, by replacement or by the gradient of a pseudo-inverse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctm.arguments import as_count, as_state, words_for
from ctm.conditions import Condition, takes_labels
from ctm.editing.operators import LinearOperator
from ctm.models.guided import Guided
from ctm.models.protocol import RangedDenoiser, denoiser_of
from ctm.noise import karras_grid, match_dims
from ctm.requests import Steps
from ctm.sampling import euler, gamma, restore
from ctm.sampling.common import Callback
from ctm.sampling.image_noise import ImageNoise

__all__ = ["Measured", "into_range", "replace", "replacing", "restoring_levels", "solve_guided"]


class Measured(Guided):
    """Guidance by the pseudo-inverse, with the covariance the model itself has. With m = A⁺(y − A·D), what D lacks, and
    Σ = t²·∂D/∂x, the covariance of x0 given x_t (Tweedie's second formula):

        D + Σm·⟨m, m⟩/⟨m, Σm⟩,     its measured part then put in exactly

    ΠGDM (Song et al., Pseudoinverse-Guided Diffusion Models for Inverse Problems, ICLR 2023) has 1/r², r² = t²σ_d²/(t² + σ_d²),
    in place of the quotient. That is the same for data N(μ, σ_d²·I), where both are exact; in pictures, whose pixels go together,
    Σ is far larger along m than r² and ΠGDM overshoots at high levels. This is the first step of the conjugate gradients by which
    Rozet et al. (arXiv 2405.13712) solve the Gaussian case Σ(PΣP)⁺m, P = A⁺A; `iterations` takes more of them. One is enough for
    one measured number. A Gaussian of many measured numbers that go together needs more, and with as many as are measured it is
    exact. Many need a precise model, for an error of ∂D/∂x counts t² times in Σ. Of other data the samples are biased,
    docs/sampling.md says how much on a mixture.

    model: any model; y: the measurement A(x0) of each sample; clamp: the guided image to [−1, 1], for pictures. One call is an
    evaluation of the denoiser and a gradient for each iteration, and for a jump one more of the jump, whose g stands in D's
    place. Raises ValueError for iterations < 1."""

    def __init__(
        self,
        model: RangedDenoiser,
        operator: LinearOperator,
        y: Tensor,
        *,
        clamp: bool = False,
        iterations: int = 1,
    ) -> None:
        super().__init__(model)
        self.operator, self.y, self.clamp = operator, y, clamp
        self.iterations = as_count(iterations, "iterations")

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, condition: Condition) -> Tensor:
        measured = self.operator.A_pinv(self.y.to(x))
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            denoised = denoiser_of(self.model, condition)(at, t)
            image = denoised.detach() if s is None else self.unguided(x, t, s, condition)
            missing = measured - self.operator.projection(image)
            image = image + self._correction(missing, denoised, at, match_dims(t, x) ** 2)
        image = image.clamp(-1, 1) if self.clamp else image
        return image - self.operator.projection(image) + measured

    def _correction(self, missing: Tensor, denoised: Tensor, at: Tensor, square: Tensor) -> Tensor:
        """Σ(PΣP)⁺m by `iterations` of conjugate gradients, like m. denoised: D at `at`; square: t²."""
        direction, correction = missing, torch.zeros_like(missing)
        for left in reversed(range(self.iterations)):
            along = square * torch.autograd.grad(denoised, at, direction, retain_graph=left > 0)[0]
            step = match_dims(_quotient(missing, direction, along), at)
            correction = correction + step * along
            before, missing = missing, missing - step * self.operator.projection(along)
            direction = missing + match_dims(_quotient(missing, before, before), at) * direction
        return correction


def _quotient(m: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """⟨m, m⟩/⟨left, right⟩ (B,); 0 where nothing is missing, or where a model's Σ is not positive along m."""
    above = m.flatten(1).square().sum(dim=1)
    below = (left * right).flatten(1).sum(dim=1)
    usable = below > torch.finfo(below.dtype).tiny
    return torch.where(usable, above / below.where(usable, torch.ones_like(below)), torch.zeros_like(above))


def _start(model: RangedDenoiser, y: Tensor, seed: int, device: torch.device) -> tuple[Tensor, ImageNoise]:
    """The first draw of each image, and the source of the later ones."""
    noise = ImageNoise(seed, range(len(y)))
    return noise(torch.empty(len(y), *model.shape, dtype=y.dtype, device=device)), noise


@takes_labels
def replace(
    model: RangedDenoiser,
    operator: LinearOperator,
    y: Tensor,
    *,
    steps: int | None = None,
    rounds: int = 1,
    clamp: bool = True,
    grid: Tensor | None = None,
    guess: Tensor | None = None,
    condition: Condition = None,
    seed: int = 0,
    callback: Callback | None = None,
) -> Tensor:
    """Images x with A·x = y exactly, by jumps with replacement (`ctm.sampling.restore`): steps·rounds calls of the model.

    It starts from a first guess under noise of three times the data's deviation, the model's sigma_data. Each round jumps to
    σ_min, puts the measured part in, and adds new noise. At a small level t one round is a step of Langevin's dynamics on the
    images with A·x = y, of size t², so many rounds at small levels tend to the posterior; few are biased towards the guess.
    y (B, …); steps: None is 8; grid: levels instead of `steps` on a Karras grid from 3·sigma_data down; guess (B, *model.shape):
    what is not measured at the start, e.g. the mean of the known pixels, None for A⁺y; image i from (seed, i) alone; clamp: to
    [−1, 1], for pictures. Returns (B, *model.shape) like y. Raises ValueError for steps or rounds < 1, steps beside a grid, a
    guess of another shape, and a model without jump."""
    start, noise = _restoration(model, operator, y, steps, grid, guess, seed)
    options: dict[str, Any] = {"rounds": rounds, "clamp": clamp, "condition": condition, "noise": noise}
    return restore(model, *start, operator.projection, **options, callback=callback)


def replacing(
    model: RangedDenoiser,
    operator: LinearOperator,
    y: Tensor,
    *,
    steps: int = 8,
    rounds: int = 1,
    clamp: bool = True,
    condition: Condition = None,
    seed: int = 0,
) -> Steps:
    """`replace` as a generator of requests (`ctm.requests`), for a loop that drives many at once. The model is asked for its
    levels and shape only. Raises ValueError as `replace`, but for a model without jump."""
    (x, levels, known), noise = _restoration(model, operator, y, steps, None, None, seed)
    options: dict[str, Any] = {"rounds": rounds, "clamp": clamp, "condition": condition, "noise": noise}
    return restore.steps(x, levels, known, operator.projection, **options)


def _restoration(
    model: RangedDenoiser,
    operator: LinearOperator,
    y: Tensor,
    steps: int | None,
    grid: Tensor | None,
    guess: Tensor | None,
    seed: int,
) -> tuple[tuple[Tensor, Tensor, Tensor], ImageNoise]:
    """(x, levels, known) that `restore` starts from, x being the first guess under noise, and the source of later noise."""
    known = operator.A_pinv(as_state(y, "y"))
    if grid is not None and steps is not None:
        raise ValueError(f"grid gives the levels themselves: leave steps out, got {words_for(steps)}")
    levels = restoring_levels(model, 8 if steps is None else steps, y.dtype) if grid is None else grid
    first = known if guess is None else _fitted(guess, operator, known)
    x, noise = _start(model, y, seed, y.device)
    return (first + levels[0].to(x) * x, levels, known), noise


def _fitted(guess: Tensor, operator: LinearOperator, known: Tensor) -> Tensor:
    """The guess with the measured part put in. Raises ValueError for a guess of another shape than the images."""
    if guess.shape != known.shape:
        raise ValueError(f"a guess has the shape of the images, {tuple(known.shape)}, got {tuple(guess.shape)}")
    guess = guess.to(known)
    return guess - operator.projection(guess) + known


def restoring_levels(model: RangedDenoiser, steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The levels (steps + 1,) of `replace`: the Karras grid from 3·sigma_data, at most sigma_max, down to sigma_min."""
    return karras_grid(steps, model.sigma_min, _first_level(model), dtype=dtype)


def _first_level(model: RangedDenoiser) -> float:
    """3·sigma_data, at most the model's highest level: above it a guess counts for nothing, far below it its faults stay."""
    return min(3 * float(getattr(model, "sigma_data", 0.5)), float(model.sigma_max))


@takes_labels
def solve_guided(
    model: RangedDenoiser,
    operator: LinearOperator,
    y: Tensor,
    *,
    steps: int = 18,
    jumps: bool = False,
    iterations: int = 1,
    clamp: bool = True,
    guess: Tensor | None = None,
    condition: Condition = None,
    seed: int = 0,
    callback: Callback | None = None,
) -> Tensor:
    """Images with A·x = y by `Measured` on karras_grid(steps): Euler's steps, one evaluation of the denoiser with its gradient
    each, or as many guided jumps where `jumps` is true. iterations: of conjugate gradients in each, a gradient more for each; one
    is too few where many numbers that go together are measured. guess: start from it as `replace` does, which is better on one
    or two steps and biased on many; None: from noise of sigma_max. Other arguments as in `replace`.

    Euler and not Heun: the guided denoiser changes faster than Heun's second evaluation can tell on few levels."""
    known = operator.A_pinv(as_state(y, "y"))
    top = model.sigma_max if guess is None else _first_level(model)
    levels = karras_grid(steps, model.sigma_min, top, dtype=y.dtype)
    x, noise = _start(model, y, seed, y.device)
    x = levels[0].to(x) * x
    x = x if guess is None else x + _fitted(guess, operator, known)
    sampler = gamma if jumps else euler
    options: dict[str, Any] = {"condition": condition, "noise": noise, "callback": callback}
    made = sampler(Measured(model, operator, y, clamp=clamp, iterations=iterations), x, levels, **options)
    return made - operator.projection(made) + known


def into_range(x: Tensor, operator: LinearOperator, y: Tensor, *, rounds: int = 1000) -> Tensor:
    """Images near x in [−1, 1] with A·x = y as nearly as that allows, by projections on both in turn (von Neumann's alternating
    projections): both hold in the limit where any image has both, else the range is kept. It ends where a round changes
    nothing (1e-5). x (B, *shape), y (B, …)."""
    given = operator.A_pinv(as_state(y, "y"))
    for _ in range(as_count(rounds, "rounds")):
        inside = x.clamp(-1, 1)
        before, x = x, inside - operator.projection(inside) + given
        if bool((x - before).abs().max() <= 1e-5):
            break
    return x.clamp(-1, 1)
