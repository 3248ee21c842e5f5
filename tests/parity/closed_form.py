"""The closed-form networks of the reference vectors: the mixture as teacher, and as the network of a CTM.

The network F is defined by  c_skip·x + c_out·F = D(x; √(t·s))  with EDM's scalings, and √(t·s) → t without s. Those scalings
have σ_d = 0.5; where the model has another, the files alone tell whether F follows it (`Form`, `settled`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ctm import TrajectoryModel
from ctm.noise import match_dims
from ctm.parametrization import denoiser_multiple, input_scaling, jump_from_g, output_scalings
from ctm.teachers import GaussianMixture

from .vectors import VectorFile


@dataclass(frozen=True)
class Form:
    """The σ_d of the model, of F's inversion of c_in, and of F's definition."""

    model: float
    inverted: float
    defined: float


def settled(file: VectorFile, error: Callable[[Form], float]) -> Form:
    """The form with the smallest error among those that the file's configuration admits. Whether it agrees is for the
    comparisons to say."""
    forms = []
    for model in file.stated("sigma_data", 0.5):
        forms += [Form(model, model, 0.5), Form(model, model, model), Form(model, 0.5, 0.5)]
    return forms[0] if len(set(forms)) == 1 else min(forms, key=error)


def gaussian_mixture(file: VectorFile, prefix: str = "", std: float | None = None) -> GaussianMixture:
    """The mixture of a file: tensors gmm/mu and gmm/w, std from the tensor gmm_sd or the configuration."""
    if std is None:
        std = float(file[f"{prefix}gmm_sd"]) if f"{prefix}gmm_sd" in file else float(file.config["gmm_sd"])
    config = file.config
    levels = {name: float(config[name]) for name in ("sigma_min", "sigma_max") if name in config}
    return GaussianMixture(file[f"{prefix}gmm/mu"].double(), std, file[f"{prefix}gmm/w"].double(), **levels)


class ClosedFormNetwork(nn.Module):
    """F(c_in·x, t, s), which gives D(x; √(t·s)) through EDM's scalings."""

    def __init__(self, mixture: GaussianMixture, form: Form) -> None:
        super().__init__()
        self.mixture, self.form = mixture, form

    def forward(self, scaled: Tensor, t: Tensor, s: Tensor | None, labels: Tensor | None) -> Tensor:
        x = scaled / match_dims(input_scaling(t, self.form.inverted), scaled)
        denoised = self.mixture.denoise(x, t if s is None else (t * s).sqrt())
        c_skip, c_out = output_scalings("edm", t, self.form.defined, 0.0)
        return (denoised - match_dims(c_skip, x) * x) / match_dims(c_out, x)


def closed_form_ctm(
    mixture: GaussianMixture, config: dict, form: Form, inner: str = "edm", outer: str = "euler"
) -> TrajectoryModel:
    """The CTM around the closed-form network, with the configuration's levels, σ_d and scalings."""
    return TrajectoryModel(
        ClosedFormNetwork(mixture, form),
        shape=mixture.shape,
        sigma_min=float(config["sigma_min"]),
        sigma_max=float(config["sigma_max"]),
        sigma_data=form.model,
        inner=inner,
        outer=outer,
    ).double()


def jump_with(ctm: TrajectoryModel, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """G by its formula for any s: official samplers stop at 0.002 also where the model's sigma_min is larger."""
    raw = ctm.network(match_dims(input_scaling(t, ctm.sigma_data), x) * x, t, s, None)
    c_skip, c_out = output_scalings(ctm.inner, t, ctm.sigma_data, ctm.sigma_min)
    g = match_dims(c_skip, x) * x + match_dims(c_out, x) * raw
    return jump_from_g(ctm.outer, x, g, t, s, ctm.sigma_data, ctm.sigma_min)


def denoised_with(ctm: TrajectoryModel, path: str, x: Tensor, t: Tensor, s: Tensor | None) -> Tensor:
    """The denoised image as the official code makes it of F(x, t, s), for whatever s it passes. path: "ctm" (from g by the
    outer's rule), "teacher" (EDM's scalings) or "cm" (neither CTM nor teacher: consistency models' scalings)."""
    raw = ctm.network(match_dims(input_scaling(t, ctm.sigma_data), x) * x, t, s, None)
    inner = {"ctm": ctm.inner, "teacher": "edm", "cm": "cm"}[path]
    c_skip, c_out = output_scalings(inner, t, ctm.sigma_data, ctm.sigma_min)
    g = match_dims(c_skip, x) * x + match_dims(c_out, x) * raw
    if path != "ctm":
        return g
    return g + match_dims(denoiser_multiple(ctm.outer, t, ctm.sigma_data, ctm.sigma_min), x) * x
