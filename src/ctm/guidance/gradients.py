"""Guidance by a gradient: of a classifier, or of any differentiable loss of the denoised image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ctm.arguments import as_count, as_number, checked, words_for
from ctm.conditions import Condition, labels_of
from ctm.models.guided import Guided
from ctm.models.protocol import Model, denoiser_of
from ctm.noise import match_dims

__all__ = ["ClassifierGuided", "LossDescent", "LossGuided", "likelihood_gain"]

Loss = Callable[[Tensor], Tensor]


class ClassifierGuided(Guided):
    """Classifier guidance (arXiv 2105.05233): D + scale·t²·∇ₓ log p(y | x), the model itself being called without a condition.

    classifier(x, t) -> logits (B, K) of noisy images where noisy is true: with scale 1 and p exact, D is exactly the
    conditional model's. Else classifier(x0) -> logits of clean images, taken at the denoised image, with the gradient
    through it: p(y | D(x, t)) stands for p(y | x), which holds as t → 0. Samples with label −1 are not guided.
    A jump holds the correction at its value at t: exact as s → t, with an error of order (t − s)² a jump.
    """

    def __init__(
        self, model: Model, classifier: Callable[..., Tensor], scale: float = 1.0, *, noisy: bool = False
    ) -> None:
        super().__init__(model)
        self.classifier, self.scale, self.noisy = classifier, as_number(scale, "scale"), noisy
        self.num_classes = getattr(model, "num_classes", None) or None  # the classes are the classifier's: not said

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, condition: Condition) -> Tensor:
        labels = labels_of(condition)
        if labels is None:
            raise ValueError("classifier guidance needs labels: give int64 (B,), −1 where a sample has none")

        def log_probability(at: Tensor, denoised: Callable[[Tensor], Tensor]) -> Tensor:
            logits = self.classifier(at, t) if self.noisy else self.classifier(denoised(at))
            if logits.dim() != 2 or (checked() and int(labels.max()) >= logits.shape[1]):
                raise ValueError(
                    f"the classifier gives logits of shape {tuple(logits.shape)}, and (B, K) with a column for each of the "
                    "labels given is needed"
                )
            chosen = logits.log_softmax(dim=1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
            return torch.where(labels >= 0, chosen, torch.zeros_like(chosen))

        return self.unguided(x, t, s, None) + self.scale * likelihood_gain(self.model, None, x, t, log_probability)

    def unguided(self, x: Tensor, t: Tensor, s: Tensor | None, condition: Condition) -> Tensor:
        return super().unguided(x, t, s, None)


class LossGuided(Guided):
    """Loss guidance (arXiv 2302.07121): D − scale·t²·∇ₓ loss(D(x, t)), with the gradient through the denoiser.

    loss(x0 like x) -> (B,), at the data's scale; exp(−scale·loss) plays the likelihood's part. The same approximations as of
    ClassifierGuided on clean images, in jumps too. With a quadratic loss of a linear measurement it is DPS."""

    def __init__(self, model: Model, loss: Loss, scale: float = 1.0) -> None:
        super().__init__(model)
        self.loss, self.scale = loss, as_number(scale, "scale")

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, condition: Condition) -> Tensor:
        def log_likelihood(at: Tensor, denoised: Callable[[Tensor], Tensor]) -> Tensor:
            return -_checked(self.loss(denoised(at)), at)

        return self.unguided(x, t, s, condition) + self.scale * likelihood_gain(
            self.model, condition, x, t, log_likelihood
        )


class LossDescent(Guided):
    """Descent along the trajectory: the denoised image, or g, goes `steps` gradient steps of size `rate` down its loss before
    it is used. No gradient goes through the network. It pulls towards low loss and samples no known distribution.

    Raises ValueError for steps < 1."""

    def __init__(self, model: Model, loss: Loss, *, steps: int = 1, rate: float) -> None:
        super().__init__(model)
        self.loss, self.steps, self.rate = loss, as_count(steps, "steps of descent"), as_number(rate, "rate")

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, condition: Condition) -> Tensor:
        image = self.unguided(x, t, s, condition)
        for _ in range(self.steps):
            with torch.enable_grad():
                at = image.detach().requires_grad_()
                gradient = _gradient(_checked(self.loss(at), at), at)
            image = image - self.rate * gradient
        return image


def likelihood_gain(
    model: Model, condition: Condition, x: Tensor, t: Tensor, likelihood: Callable[[Tensor, Callable], Tensor]
) -> Tensor:
    """t²·∇ₓ likelihood(x, D), the change of the denoised image, like x."""
    denoise = denoiser_of(model, condition)
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        gradient = _gradient(likelihood(at, lambda y: denoise(y, t)), at)
    return match_dims(t, x) ** 2 * gradient


def _gradient(values: Tensor, at: Tensor) -> Tensor:
    """∇ of the sum of values. Raises ValueError where they do not depend on `at`."""
    if not values.requires_grad:
        raise ValueError(
            "guidance needs a gradient, and the loss or classifier gives values that do not depend on the image"
        )
    return torch.autograd.grad(values.sum(), at)[0]


def _checked(loss: Tensor, x: Tensor) -> Tensor:
    """Raises ValueError for a loss that is not one number for each sample."""
    if not isinstance(loss, Tensor):
        raise ValueError(f"a loss gives one number for each of {len(x)} samples, got {words_for(loss)}")
    if loss.shape != (len(x),):
        raise ValueError(f"a loss gives one number for each of {len(x)} samples, got shape {tuple(loss.shape)}")
    return loss
