"""The likelihood by the probability flow: the official drift and divergence, and the exact value where the script slips.

The official residual is taken at the level σ^(1/7) instead of σ. The test reproduces its numbers by handing our formula that
level, and shows that ours, at the right level, is another number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ctm.likelihood import (
    elbo,
    flow_log_density,
    hutchinson_trace,
    log_density,
    probability_flow,
    residual,
)
from ctm.noise import karras_level, match_dims
from ctm.parametrization import input_scaling, output_scalings
from ctm.teachers import GaussianMixture

from . import vectors
from .closed_form import Form, closed_form_ctm, denoised_with, gaussian_mixture, settled
from .vectors import VectorFile

KINDS = ("math_bpd",)
SOLVER_BITS = 0.1  # more than RK45's error at 1e-3


def bits(nats: Tensor, x: Tensor) -> Tensor:
    """7 + nats/(n·ln 2) for a negative log density."""
    return 7 + nats / (x[0].numel() * math.log(2))


def hold_within(file: VectorFile, key: str, *ours: Tensor, scatter: Callable[[], list[Tensor]] = list) -> None:
    """The nearest of our values agrees, in bits, to the manifest's tolerance in every image. Where none does, the value lies,
    to that tolerance, between those of `scatter`, which lists some that the official solver can give."""
    bound, stored = file.tolerances["bpd_atol"], file[key].double()
    error = min(float((value - stored).abs().max()) for value in ours)
    file.errors[f"{key} in bits"] = error
    if error <= bound:
        return
    values = torch.stack([*ours, *scatter()])
    low, high = values.amin(dim=0) - bound, values.amax(dim=0) + bound
    if not bool(((low <= stored) & (stored <= high)).all()) or len(values) == len(ours):
        file.failures.append(f"{key}: {error:.2e} bits off, allowed {bound:.2e} or {low.tolist()} … {high.tolist()}")


def plain_denoiser(mixture: GaussianMixture, form: Form | None):
    """The mixture's denoiser in x's precision by the formula of the vectors' README, (c²x + σ²·Σ p_k μ_k)/(c² + σ²); with a
    form as the network and the scalings give it."""

    def plain(x: Tensor, sigma: Tensor) -> Tensor:
        means, variance = mixture.means.to(x), mixture.std**2 + sigma**2
        distance = (x[:, None] - means).flatten(2).square().sum(dim=2)
        p = (mixture.weights.to(x).log() - distance / (2 * variance[:, None])).softmax(dim=1)
        noise, mean = match_dims(sigma**2, x), (p @ means.flatten(1)).reshape(x.shape)
        return (mixture.std**2 * x + noise * mean) / (mixture.std**2 + noise)

    def through(x: Tensor, sigma: Tensor) -> Tensor:
        seen = match_dims(input_scaling(sigma, form.model), x) * x / match_dims(input_scaling(sigma, form.inverted), x)
        c_skip, c_out = (match_dims(c, x) for c in output_scalings("edm", sigma, form.defined, 0.0))
        raw = (plain(seen, sigma) - c_skip * seen) / c_out
        c_skip, c_out = (match_dims(c, x) for c in output_scalings("edm", sigma, form.model, 0.0))
        return c_out * raw + c_skip * x

    return plain if form is None else through


def official_drift(config: dict, denoise, x: Tensor, tau: Tensor) -> Tensor:
    """−½·g²·(D − x)/σ² as the vectors' README writes it, float32 up to the denoiser and float64 after it."""
    top, bottom = (torch.tensor([float(config[name])]) for name in ("sigma_max", "sigma_min"))
    rho = float(config["rho"])
    span = top ** (1 / rho) - bottom ** (1 / rho)
    root = bottom ** (1 / rho) + tau * span
    sigma = root**rho
    squared = 2 * rho * sigma**2 * span / root
    score = (denoise(x, sigma).double() - x) / match_dims(sigma**2, x)
    return -match_dims(squared, x) * score / 2


def official_solver(
    file: VectorFile, denoise, x: Tensor, probe: Tensor, start: float, first_step: float | None = None
) -> Tensor:
    """−ln p(x) by the official procedure: scipy's RK45 at 1e-3 in both tolerances and one state for the batch, whose x and
    clock are rounded to float32, the denoiser and the divergence with them. At that tolerance the error is as large as 0.03
    bits, and through the first steps' sizes the rounding decides which it is: first_step takes their place."""
    config, shape, n = file.config, x.shape, len(x)
    tolerance, sigma_max = float(config["ode"].rsplit("=", 1)[1]), float(config["sigma_max"])
    probe = probe.float()

    def slope(time, state):
        at = torch.from_numpy(state[:-n]).reshape(shape).float().requires_grad_()
        drift = official_drift(config, denoise, at, torch.ones(n) * time)
        gradient = torch.autograd.grad((drift * probe).sum(), at)[0]
        divergence = (gradient * probe).flatten(1).sum(dim=1)
        return torch.cat([drift.detach().flatten(), divergence.double()]).numpy()

    state = torch.cat([x.float().flatten(), torch.zeros(n, dtype=torch.float64)]).numpy()
    options = {"rtol": tolerance, "atol": tolerance, "first_step": first_step}
    end = solve_ivp(slope, (start, 1.0), state, method="RK45", **options).y[:, -1]
    last, gained = torch.from_numpy(end[:-n]).reshape(n, -1), torch.from_numpy(end[-n:])
    prior = (last.square().sum(1) / sigma_max**2 + last.shape[1] * math.log(2 * math.pi * sigma_max**2)) / 2
    return prior - gained


def form_of(file: VectorFile, part: str) -> Form:
    """The form of the closed-form network with which the stored drift is met best."""
    mixture, key = gaussian_mixture(file, f"{part}/"), f"{part}/ctm/drift"
    tau, x = file[f"{key}/t"].double(), file[f"{key}/x"].double()
    sigma = karras_level(1 - tau, mixture.sigma_min, mixture.sigma_max, float(file.config["rho"]))

    def error(form: Form) -> float:
        toward = x - closed_form_ctm(mixture, file.config, form).denoise(x, sigma)
        rate = file[f"{key}/drift"].flatten(1).norm(dim=1) / toward.flatten(1).norm(dim=1)
        return vectors.relative_error(match_dims(rate, x) * toward, file[f"{key}/drift"])

    return settled(file, error)


def hold_part(file: VectorFile, part: str, kind: str) -> None:
    config, mixture, form = file.config, gaussian_mixture(file, f"{part}/"), form_of(file, part)
    model = closed_form_ctm(mixture, config, form)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return model.denoise(x, sigma) if kind == "ctm" else denoised_with(model, "teacher", x, sigma, None)

    drift, divergence = probability_flow(
        denoise,
        file[f"{part}/{kind}/drift/x"].double(),
        file[f"{part}/{kind}/drift/t"].double(),
        float(config["sigma_min"]),
        float(config["sigma_max"]),
        hutchinson_trace(file[f"{part}/in/rademacher"].double()[None]),
        rho=float(config["rho"]),
    )
    hint = file.tolerances["drift_rtol"]
    file.compare(f"{part}/{kind}/drift/drift", drift, hint=hint)
    file.compare(f"{part}/{kind}/drift/hutchinson_div", divergence, hint=hint)
    hold_bits(file, part, kind, denoise, form)


def hold_bits(file: VectorFile, part: str, kind: str, denoise, form: Form) -> None:
    """`bpd_wrong` is the density at the start level, at the images themselves; `bpd_correct` and the bound add a residual."""
    config, mixture = file.config, gaussian_mixture(file, f"{part}/")
    images, probe = (file[f"{part}/in/{name}"].double() for name in ("images", "rademacher"))
    z0, z1, z2 = (file[f"{part}/in/z{index}"].double() for index in range(3))
    start = float(config["t_min"])
    clock = torch.tensor(1 - start, dtype=torch.float64)
    level = karras_level(clock, mixture.sigma_min, mixture.sigma_max, float(config["rho"])).expand(len(images))
    slipped, ends = level ** (1 / float(config["rho"])), (float(level[0]), mixture.sigma_max)

    def official(x: Tensor, added: Tensor | float) -> list[Tensor]:
        """What the official solver gives with denoisers that differ in their rounding."""
        roundings = (plain_denoiser(mixture, form), plain_denoiser(mixture, None), denoise)
        return [bits(official_solver(file, rounded, x, probe, start) + added, images) for rounded in roundings]

    def scatter(x: Tensor, added: Tensor | float) -> list[Tensor]:
        first = torch.logspace(-6, -0.5, 20, dtype=torch.float64).tolist()
        return [bits(official_solver(file, denoise, x, probe, start, step) + added, images) for step in first]

    hold_within(file, f"{part}/{kind}/bpd_wrong", *official(images, 0.0), scatter=lambda: scatter(images, 0.0))
    file.compare(f"{part}/{kind}/residual", residual(denoise, images, slipped, z0))
    noisy, added = images + match_dims(level, images) * z0, residual(denoise, images, slipped, z1)
    key = f"{part}/{kind}/bpd_correct"
    hold_within(file, key, *official(noisy, added), scatter=lambda: scatter(noisy, added))
    accurate = -flow_log_density(denoise, noisy, *ends, hutchinson_trace(probe[None]), rtol=1e-7, atol=1e-7)
    away = float((bits(accurate + added, images) - file[key]).abs().max())
    assert away < SOLVER_BITS, f"{part}: the accurate integral is {away:.2e} bits away"
    sigma = ends[0] * (ends[1] / ends[0]) ** file[f"{part}/in/elbo_u"].double()
    bound = elbo(denoise, images, *ends, sigma, z0, z1, hutchinson_trace(probe[None]))
    hold_within(file, f"{part}/{kind}/elbo_bpd", bits(bound + residual(denoise, images, slipped, z2), images))
    right = residual(denoise, images, level, z0)
    assert float((right - residual(denoise, images, slipped, z0)).abs().max()) > 0.1, "the slip is no rounding error"


@vectors.each("which", vectors.names("math_bpd"), fast=())
def test_drift_divergence_and_bits(which):
    with vectors.open_file(which) as file:
        parts = {key.split("/")[0] for key in file.tensors}
        for part in sorted(parts):
            for kind in ("ctm", "teacher"):
                hold_part(file, part, kind)
            mixture = gaussian_mixture(file, f"{part}/")
            images = file[f"{part}/in/images"].double()
            start = torch.tensor(1 - float(file.config["t_min"]), dtype=torch.float64)
            ends = (mixture.sigma_min, mixture.sigma_max)
            mixture.sigma_min = float(karras_level(start, *ends, float(file.config["rho"])))
            exact = bits(-mixture.log_prob(images, mixture.sigma_min), images)
            key = f"{part}/exact_bpd_of_smoothed_density_at_images"
            file.compare(key, exact)
            ours = bits(-log_density(mixture, images, trace="exact", rtol=1e-7, atol=1e-7), images)
            # the flow ends in N(0, σ_max²) and not in the mixture at that level, whose means μ and variance c² it leaves out:
            # the density at a point differs by about |μ|/σ_max and √(n/2)·c²/σ_max² nats, times standard normal numbers
            size, ratio = images[0].numel(), 1 / mixture.sigma_max
            means = float(mixture.means.flatten(1).norm(dim=1).max())
            nats = means * ratio + math.sqrt(size / 2) * (mixture.std * ratio) ** 2 + (means * ratio) ** 2
            bound = 4 * nats / (size * math.log(2)) + 1e-4
            assert float((ours - file[key]).abs().max()) < bound, f"{part}: ours is the exact density"
