"""The player of distribution matching: the denoiser of the student's own samples, and, where it is asked for, the ratio of the
teacher's density to theirs."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ctm.conditions import Condition
from ctm.models.autoguided import AutoGuided
from ctm.models.protocol import Diffusion, taken_by
from ctm.models.wrapper import Wrapper
from ctm.noise import match_dims
from ctm.objectives.base import Networks
from ctm.objectives.player import Lesson, Player, Rhythm, trainable_copy
from ctm.parametrization import input_scaling

if TYPE_CHECKING:
    from ctm.objectives.distribution_matching import DistributionMatching

__all__ = ["NAME", "FakeScore", "ScoreAndRatio"]

NAME = "fake_score"
_WIDTH = 64


class ScoreAndRatio(Wrapper):
    """A denoiser, and ln(p_data/p_samples) at its noised input, from what its network encodes on the way down.

    model: its network has encode(x, t, condition) -> maps (B, C, …). A head of two layers sees the means of all maps over space.
    Raises ValueError for a network without `encode`."""

    model: Any

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        if not hasattr(model.network, "encode"):
            raise ValueError(
                "the divergences other than reverse_kl need the teacher's encode(x, t, condition), and "
                f"{type(model.network).__name__} has none: use divergence reverse_kl"
            )
        device = next(model.parameters()).device
        with torch.no_grad():
            x, t = torch.zeros(1, *model.shape, device=device), torch.ones(1, device=device)
            channels = self._encoded(x, t, None).shape[1]
        self.head = nn.Sequential(nn.Linear(channels, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, 1)).to(device)

    @property
    def autocast(self) -> torch.dtype | None:
        """The precision of the denoiser's network; the head computes in float32."""
        found: torch.dtype | None = self.model.autocast
        return found

    @autocast.setter
    def autocast(self, dtype: torch.dtype | None) -> None:
        self.model.autocast = dtype

    def denoise(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """D(x, t) of the samples. x (B, *shape) at levels t (B,), condition: of the B samples, or None -> like x."""
        found: Tensor = self.model.denoise(x, t, condition)
        return found

    def log_ratio(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """ln of the data's density over the samples', both noised to t (B,), at x (B, *shape) -> (B,). Only the head gets a
        gradient, so that the denoiser stays the samples' own."""
        with torch.no_grad():
            encoded = self._encoded(x, t, condition)
        found: Tensor = self.head(encoded)[:, 0]
        return found.to(x.dtype)

    def _encoded(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The means over space of the network's maps, (B, channels)."""
        network = self.model.network
        scaled = match_dims(input_scaling(t, self.model.sigma_data), x) * x
        weights = next(network.parameters())
        known = taken_by(self.model, condition)
        lower = nullcontext() if self.autocast is None else torch.autocast(x.device.type, self.autocast)
        with lower:
            maps = network.encode(scaled.to(weights.dtype), t.to(weights.dtype), known)
        return torch.cat([found.flatten(2).mean(2) for found in maps], dim=1).float()


class FakeScore(Player):
    """Learns by denoising score matching on the student's samples; its ratio, where it has one, by logistic regression between
    data and samples, noised alike."""

    name = NAME
    learns_from = ("sample",)

    def __init__(self, objective: DistributionMatching) -> None:
        self.objective = objective

    @property
    def rhythm(self) -> Rhythm:  # type: ignore[override]
        return Rhythm.ahead(self.objective.fake_steps, self.objective.start)

    def build(self, networks: Networks) -> nn.Module:
        teacher = networks.teacher.model if isinstance(networks.teacher, AutoGuided) else networks.teacher
        if not isinstance(teacher, nn.Module):
            raise ValueError(
                "DistributionMatching copies the teacher for its fake score: give a network as the teacher"
            )
        copy = trainable_copy(teacher)
        return ScoreAndRatio(copy) if self.objective.weighs else copy

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.objective.fake_learning_rate)

    def loss(self, networks: Networks, lesson: Lesson) -> tuple[Tensor, dict[str, Tensor]]:
        fake = cast(ScoreAndRatio, networks.player(self.name))
        sample, draw = lesson.made["sample"], lesson.draw.fake
        condition = taken_by(fake, lesson.condition)
        loss = self.objective.denoising(Networks(cast(Diffusion, fake)), sample, condition, draw).mean()
        if not self.objective.weighs:
            return loss, {}
        noise = match_dims(draw.sigma, sample) * draw.noise
        of_data, of_samples = (fake.log_ratio(x + noise, draw.sigma, condition) for x in (lesson.x0, sample))
        ratio = softplus(-of_data).mean() + softplus(of_samples).mean()
        right = ((of_data > 0).float().mean() + (of_samples < 0).float().mean()) / 2
        return loss + ratio, {"loss": loss.detach(), "ratio_loss": ratio.detach(), "accuracy": right}
