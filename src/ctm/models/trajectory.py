"""A consistency trajectory model: jumps from any noise level to any lower one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ctm.arguments import as_levels, checked, words_for
from ctm.models.base import Guidance, Model, brief
from ctm.noise import match_dims
from ctm.parametrization import Inner, Outer, denoiser_multiple, jump_from_g, outer_scaling, output_scalings

__all__ = ["TrajectoryModel"]


class TrajectoryModel(Model):
    """A consistency trajectory model (CTM, arXiv 2310.02279): jumps from any noise level to any lower one.

    network: F(x, t, s, labels) -> like x, a module or {"class_path": …, "init_args": …}; it gets c_in·x and the levels
    themselves. shape: of one sample. num_classes: 0 = unconditional. sigma_min, sigma_max: the ends of the trajectory.
    sigma_data: the data's standard deviation that the scalings assume. inner: "edm", "cm" or "no" scaling of g. outer:
    "euler" (the paper's), "variance" or "euler_variance_mixed" form of the jump.
    Raises ValueError for levels out of order and for unknown inner and outer.
    """

    def __init__(
        self,
        network: nn.Module | Mapping[str, Any],
        *,
        shape: Sequence[int],
        num_classes: int = 0,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        inner: Inner = "edm",
        outer: Outer = "euler",
    ) -> None:
        super().__init__(
            network,
            shape=shape,
            num_classes=num_classes,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            sigma_data=sigma_data,
        )
        one = torch.ones(1)
        output_scalings(inner, one, self.sigma_data, self.sigma_min)
        outer_scaling(outer, one, one, self.sigma_data, self.sigma_min)
        self.inner, self.outer = inner, outer

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "inner": self.inner, "outer": self.outer}

    @property
    def takes_guidance(self) -> bool:
        """Whether the guidance scale is an input of the network: those of ctm.networks with guidance_embedding."""
        return getattr(self.network, "guidance_embedding", None) is not None

    def _scale(self, guidance: Guidance, x: Tensor, labels: Tensor | None) -> Tensor | None:
        """The guidance scale (B,) that the network gets: 1 where there is no label, None where none was given."""
        if guidance is None:
            return None
        if not self.takes_guidance:
            raise ValueError(
                "guidance was given, but this model's network does not take it: train one with guidance_embedding: true "
                "(recipe digits-ctm-guided), or use classifier-free guidance of the undistilled kind"
            )
        try:
            scale = torch.as_tensor(guidance, dtype=torch.float32, device=x.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"guidance must be a finite number, or a tensor of them, got {words_for(guidance)}"
            ) from error
        fits = scale.shape in ((), (len(x),))
        if checked() and not (fits and (scale.is_meta or bool(scale.isfinite().all()))):
            raise ValueError(
                f"guidance must be a finite number, or a tensor of them of shape ({len(x)},), got {guidance}"
            )
        known = torch.zeros(len(x), dtype=torch.bool, device=x.device) if labels is None else labels >= 0
        return torch.where(known, scale, 1.0)

    def _g(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None, guidance: Guidance) -> Tensor:
        c_skip, c_out = output_scalings(self.inner, t, self.sigma_data, self.sigma_min)
        output = self._call_network(x, t, s, labels, self._scale(guidance, x, labels))
        return match_dims(c_skip, x) * x + match_dims(c_out, x) * output

    def g(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, labels: Tensor | None = None, guidance: Guidance = None
    ) -> Tensor:
        """What the network represents, in data space: g = c_skip(t)·x + c_out(t)·F(c_in(t)·x, t, s, labels).

        x (B, *shape) at levels t (B,); s (B,) the level aimed at, each also one number for all; labels int64 (B,) with −1 =
        unconditional, or None; one whole number for all, a list or an array serve, too.
        guidance: the scale w of the classifier-free guidance that was distilled into the network, a number or (B,); samples
        without a label are at 1, and None is 1.
        Returns like x. Raises ValueError for unfitting shapes, dtypes and labels, and for guidance where the network has no
        such input."""
        t, labels = self._checked(x, t, labels)
        return self._g(x, t, as_levels(s, x, "s", zero=True).to(x.dtype), labels, guidance)

    def check_levels(self, t: Tensor, s: Tensor) -> None:
        """Raises ValueError unless sigma_min ≤ s ≤ t for every sample; t, s (B,)."""
        lowest = self.sigma_min * (1 - 1e-6)  # a grid rounded to float32 may end a little below sigma_min
        if not bool(((s <= t) & (s >= lowest)).all()):  # so that NaN is refused too
            raise ValueError(
                f"a jump needs sigma_min = {self.sigma_min} ≤ s ≤ t for every sample, got t = {brief(t)}, s = {brief(s)}"
            )

    def jump(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, labels: Tensor | None = None, guidance: Guidance = None
    ) -> Tensor:
        """G(x, t, s), the state at level s ≤ t of the trajectory through x at level t (arXiv 2310.02279); x where s = t.

        Shapes as in `g`; sigma_min ≤ s ≤ t, for each sample. Returns like x. Raises ValueError for levels outside that."""
        t, labels = self._checked(x, t, labels)
        s = as_levels(s, x, "s", zero=True).to(x.dtype)
        if checked():
            self.check_levels(t, s)
        g = self._g(x, t, s, labels, guidance)
        return jump_from_g(self.outer, x, g, t, s, self.sigma_data, self.sigma_min)

    def denoise(self, x: Tensor, t: Tensor | float, labels: Tensor | None = None, guidance: Guidance = None) -> Tensor:
        """D(x, t): g(x, t, t), plus for the outers other than euler the multiple of x that makes ∂G/∂s at s = t equal
        (x − D)/t. Shapes as in `g`."""
        level, labels = self._checked(x, t, labels)
        multiple = match_dims(denoiser_multiple(self.outer, level, self.sigma_data, self.sigma_min), x)
        return self._g(x, level, level, labels, guidance) + multiple * x
