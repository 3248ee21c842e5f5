"""A consistency trajectory model: jumps from any noise level to any lower one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ctm.arguments import as_levels, checked
from ctm.conditioner import Conditioner
from ctm.conditions import GUIDANCE, Condition, presence, takes_labels, with_field
from ctm.models.base import Model, brief
from ctm.noise import match_dims
from ctm.parametrization import Inner, Outer, denoiser_multiple, jump_from_g, outer_scaling
from ctm.preconditioning import Preconditioning

__all__ = ["TrajectoryModel"]


class TrajectoryModel(Model):
    """A consistency trajectory model (CTM, arXiv 2310.02279): jumps from any noise level to any lower one.

    network: F(x, t, s, condition) -> like x, a module or {"class_path": …, "init_args": …}; it gets c_in·x and the levels
    as the preconditioning has them: with ours, themselves. shape: of one sample. num_classes: of labels, 0 = none.
    conditioner: what else the model is conditioned on (`ctm.conditioner`); None: num_classes labels and the fields of its
    network. sigma_min, sigma_max: the ends of the trajectory. sigma_data: the data's standard deviation that the scalings
    assume. inner: "edm", "cm" or "no" scaling of g, or a teacher's preconditioning, an object of `ctm.preconditioning` or its
    JSON, so that a student of any teacher starts as it. outer: "euler" (the paper's), "variance" or "euler_variance_mixed"
    form of the jump.
    Raises ValueError for levels out of order and for unknown inner and outer.
    """

    def __init__(
        self,
        network: nn.Module | Mapping[str, Any],
        *,
        shape: Sequence[int],
        num_classes: int = 0,
        conditioner: Conditioner | Mapping[str, Any] | None = None,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        inner: Inner | Preconditioning | Mapping[str, Any] = "edm",
        outer: Outer = "euler",
    ) -> None:
        super().__init__(
            network,
            shape=shape,
            num_classes=num_classes,
            conditioner=conditioner,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            sigma_data=sigma_data,
            inner=inner,
        )
        one = torch.ones(1)
        outer_scaling(outer, one, one, self.sigma_data, self.sigma_min)
        self.outer = outer

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "inner": self.preconditioning.as_json(), "outer": self.outer}

    @property
    def takes_guidance(self) -> bool:
        """Whether the guidance scale is an input of the network: those of ctm.networks with guidance_embedding."""
        return GUIDANCE in self.conditioner.fields

    def _g(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition) -> Tensor:
        return self._represented(x, t, s, self._with_known_scale(condition, len(x)))

    def _with_known_scale(self, condition: Condition, count: int) -> Condition:
        """The condition with its guidance scale 1 in rows where nothing is there to be guided to."""
        if not isinstance(condition, Mapping) or GUIDANCE not in condition:
            return condition
        scale = condition[GUIDANCE]
        known = torch.zeros(count, dtype=torch.bool, device=scale.device)
        for name in self.conditioner.may_be_absent:
            known = known | presence(condition, name, count, scale.device)
        return with_field(condition, GUIDANCE, torch.where(known, scale, 1.0))

    @takes_labels
    def g(self, x: Tensor, t: Tensor | float, s: Tensor | float, condition: Condition = None) -> Tensor:
        """What the network represents, in data space: g = c_skip(t)·x + c_out(t)·F(c_in(t)·x, level(t), level(s), condition).

        x (B, *shape) at levels t (B,); s (B,) the level aimed at, each also one number for all. condition: labels int64 (B,) with
        −1 for none, where a list, an array or one number for all serves, too; or a mapping of fields (`ctm.conditions`); or None.
        Its field "guidance", where the network takes it, is the scale w of the classifier-free guidance that was distilled into
        the network: 1 where it is not given, and where a sample's condition is absent.
        Returns like x. Raises ValueError for unfitting shapes, dtypes and conditions."""
        t, condition = self._checked(x, t, condition)
        return self._g(x, t, as_levels(s, x, "s", zero=True).to(x.dtype), condition)

    def check_levels(self, t: Tensor, s: Tensor) -> None:
        """Raises ValueError unless sigma_min ≤ s ≤ t for every sample; t, s (B,)."""
        lowest = self.sigma_min * (1 - 1e-6)  # a grid rounded to float32 may end a little below sigma_min
        if not bool(((s <= t) & (s >= lowest)).all()):  # so that NaN is refused too
            raise ValueError(
                f"a jump needs sigma_min = {self.sigma_min} ≤ s ≤ t for every sample, got t = {brief(t)}, s = {brief(s)}"
            )

    @takes_labels
    def jump(self, x: Tensor, t: Tensor | float, s: Tensor | float, condition: Condition = None) -> Tensor:
        """G(x, t, s), the state at level s ≤ t of the trajectory through x at level t (arXiv 2310.02279); x where s = t.

        Shapes as in `g`; sigma_min ≤ s ≤ t, for each sample. Returns like x. Raises ValueError for levels outside that."""
        t, condition = self._checked(x, t, condition)
        s = as_levels(s, x, "s", zero=True).to(x.dtype)
        if checked():
            self.check_levels(t, s)
        return jump_from_g(self.outer, x, self._g(x, t, s, condition), t, s, self.sigma_data, self.sigma_min)

    @takes_labels
    def denoise(self, x: Tensor, t: Tensor | float, condition: Condition = None) -> Tensor:
        """D(x, t): g(x, t, t), plus for the outers other than euler the multiple of x that makes ∂G/∂s at s = t equal
        (x − D)/t. Shapes as in `g`."""
        level, condition = self._checked(x, t, condition)
        multiple = match_dims(denoiser_multiple(self.outer, level, self.sigma_data, self.sigma_min), x)
        return self._g(x, level, level, condition) + multiple * x
