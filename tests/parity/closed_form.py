"""The closed-form networks of the reference vectors: the mixture as teacher, and as the network of a CTM.

The network F is defined by  c_skip·x + c_out·F = D(x; √(t·s))  with EDM's scalings for σ_d = 0.5, and √(t·s) → t without s.
"""

from __future__ import annotations

from torch import Tensor, nn

from ctm import TrajectoryModel
from ctm.noise import match_dims
from ctm.parametrization import denoiser_multiple, input_scaling, output_scalings
from ctm.teachers import GaussianMixture

from .vectors import VectorFile

NETWORK_SIGMA_DATA = 0.5  # of the definition of F, whatever the model's


def gaussian_mixture(file: VectorFile, prefix: str = "", std: float | None = None) -> GaussianMixture:
    """The mixture of a file: tensors gmm/mu and gmm/w, std from the tensor gmm_sd or the configuration."""
    if std is None:
        std = float(file[f"{prefix}gmm_sd"]) if f"{prefix}gmm_sd" in file else float(file.config["gmm_sd"])
    config = file.config
    levels = {name: float(config[name]) for name in ("sigma_min", "sigma_max") if name in config}
    return GaussianMixture(file[f"{prefix}gmm/mu"].double(), std, file[f"{prefix}gmm/w"].double(), **levels)


class ClosedFormNetwork(nn.Module):
    """F(c_in·x, t, s), which gives D(x; √(t·s)) through EDM's scalings."""

    def __init__(self, mixture: GaussianMixture, sigma_data: float) -> None:
        super().__init__()
        self.mixture, self.sigma_data = mixture, sigma_data

    def forward(self, scaled: Tensor, t: Tensor, s: Tensor | None, labels: Tensor | None) -> Tensor:
        x = scaled / match_dims(input_scaling(t, self.sigma_data), scaled)
        denoised = self.mixture.denoise(x, t if s is None else (t * s).sqrt())
        c_skip, c_out = output_scalings("edm", t, NETWORK_SIGMA_DATA, 0.0)
        return (denoised - match_dims(c_skip, x) * x) / match_dims(c_out, x)


def closed_form_ctm(
    mixture: GaussianMixture, config: dict, inner: str = "edm", outer: str = "euler"
) -> TrajectoryModel:
    """The CTM around the closed-form network, with the configuration's levels, σ_d and scalings."""
    sigma_data = float(config.get("sigma_data", 0.5))
    return TrajectoryModel(
        ClosedFormNetwork(mixture, sigma_data),
        shape=mixture.shape,
        sigma_min=float(config["sigma_min"]),
        sigma_max=float(config["sigma_max"]),
        sigma_data=sigma_data,
        inner=inner,
        outer=outer,
    ).double()


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
