"""Grids, scalings, weightings, distributions of times and the Heun solver against the official numbers."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from torch import Tensor

from ctm import TrajectoryModel, weighting
from ctm.noise import (
    continuous_times,
    draw_solver_steps,
    grid_times,
    half_lognormal,
    half_lognormal_levels,
    karras_grid,
    karras_level,
    lognormal_levels,
)
from ctm.parametrization import denoiser_multiple, input_scaling, outer_scaling, output_scalings, rescaled_time
from ctm.solvers import walk

from . import vectors
from .closed_form import Form, closed_form_ctm, denoised_with, gaussian_mixture, settled
from .vectors import VectorFile

KINDS = ("math_time_scalings_weights", "math_distributions", "math_heun_solver")
# sigma_min, sigma_max and ρ: sample_get_t has them written into it, and the sampler of levels has them for defaults
CODE_GRID = (0.002, 80.0, 7.0)
WEIGHTS = {
    "uniform": weighting.uniform,
    "snr": weighting.snr,
    "snr+1": weighting.snr_plus_one,
    "karras": weighting.karras,
    "karras_weight": weighting.karras,
    "truncated-snr": weighting.truncated_snr,
    "sq-t-inverse": weighting.sq_t_inverse,
}


def numbers(key: str) -> list[float]:
    """The numbers in a tensor's name, such as N18_u5."""
    return [float(found) for found in re.findall(r"\d+(?:\.\d+)?", key)]


def ends(file: VectorFile) -> tuple[float, float, float]:
    return float(file.config["sigma_min"]), float(file.config["sigma_max"]), float(file.config["rho"])


def hold_grids(file: VectorFile) -> None:
    for key in file.keys("get_t/discrete"):
        points, bits = (int(number) for number in numbers(key))
        file.compare(key, karras_grid(points - 1, *ends(file), dtype=getattr(torch, f"float{bits}")))
    file.compare("get_t/continuous_out", karras_level(file["get_t/continuous_in"], *ends(file)))
    for key in file.keys("get_sigmas_karras"):
        points, bits = (int(number) for number in numbers(key))
        dtype = getattr(torch, f"float{bits}")
        file.compare(key, torch.cat([karras_grid(points - 1, *ends(file), dtype=dtype), torch.zeros(1, dtype=dtype)]))
    asked = file["sample_get_t/in"]
    for key in file.keys("sample_get_t/N"):
        grid = karras_grid(int(numbers(key)[0]) - 1, *CODE_GRID, dtype=torch.float64)
        index = asked if len(asked) == len(file[key]) else torch.arange(len(file[key]))
        file.compare(key, grid[index])


def hold_scalings(file: VectorFile) -> None:
    t, s = file["scal/t"], file["scal/s"]
    sigma_data, sigma_min = float(file.config["sigma_data"]), float(file.config["sigma_min"])
    file.compare("c_in", input_scaling(t, sigma_data))
    for inner in sorted({key.split("/")[1] for key in file.keys("inner/")}):
        c_skip, c_out = output_scalings(inner, t, sigma_data, sigma_min)
        file.compare(f"inner/{inner}/c_skip", c_skip)
        file.compare(f"inner/{inner}/c_out", c_out)
    g, x = file["outer/g"].flatten(), file["outer/x"].flatten()
    for outer in sorted({key.split("/")[1] for key in file.keys("outer/") if key.count("/") == 2}):
        file.compare(f"outer/{outer}/c_skip", outer_scaling(outer, t, s, sigma_data, sigma_min))
        file.compare(f"outer/{outer}/c_out", 1 - s / t)
        multiple = denoiser_multiple(outer, t, sigma_data, sigma_min)
        file.compare(f"outer/{outer}/denoised", (g + multiple * x).reshape(file[f"outer/{outer}/denoised"].shape))


def hold_weightings(file: VectorFile) -> None:
    t, s, sigma_data = file["scal/t"], file["scal/s"], float(file.config["sigma_data"])
    for key in file.keys("weights/"):
        name = key.removeprefix("weights/")
        if name.startswith("uniform_g_mult"):
            t_g, s_g, power = file["weights/uniform_g_t"], file["weights/uniform_g_s"], numbers(name)[0]
            file.compare(key, weighting.uniform_g(t_g, s_g, sigma_data, power))
        elif name not in ("uniform_g_t", "uniform_g_s"):
            file.compare(key, WEIGHTS[name](t, s, sigma_data))


@vectors.each("which", vectors.names("math_time_scalings_weights"))
def test_grids_scalings_and_weightings(which):
    with vectors.open_file(which) as file:
        hold_grids(file)
        hold_scalings(file)
        hold_weightings(file)
        file.compare("rescaling_t/out", rescaled_time(file["scal/t"]))
        file.compare("rescaling_t/out_f32", rescaled_time(file["scal/t"].float()))


@vectors.each("which", vectors.names("math_heun_solver"))
def test_the_solver_and_the_walks_without_a_teacher(which):
    """k Heun steps of the teacher, the student's one jump over them, and its k jumps along the grid."""
    with vectors.open_file(which) as file:
        config, mixture = file.config, gaussian_mixture(file)
        walks = sorted({key.rsplit("/", 1)[0] for key in file.keys("N") if "/u" in key})

        def model(form: Form) -> TrajectoryModel:
            return closed_form_ctm(mixture, config, form, config["inner"], config["outer"])

        def error(form: Form) -> float:
            places = [[file[f"{prefix}/{key}"] for key in ("x", "t", "t_dt")] for prefix in walks]
            jumps = [model(form).jump(*place) for place in places]
            stored = [file[f"{prefix}/self_learn_out"] for prefix in walks]
            return max(vectors.relative_error(ours, other) for ours, other in zip(jumps, stored, strict=True))

        ctm = model(settled(file, error))

        def teacher(x: Tensor, t: Tensor) -> Tensor:
            return denoised_with(ctm, "teacher", x, t, None)

        for prefix in walks:
            points, steps = (int(number) for number in numbers(prefix))
            grid = karras_grid(points - 1, *ends(file), dtype=torch.float64)
            index, x = file[f"{prefix}/idx"], file[f"{prefix}/x"]
            path = grid[index + torch.arange(steps + 1)[:, None]]
            file.compare(f"{prefix}/t", path[0])
            file.compare(f"{prefix}/t_dt", path[-1])
            file.compare(f"{prefix}/teacher_out", walk(teacher, x, path))
            file.compare(f"{prefix}/self_learn_out", ctm.jump(x, path[0], path[-1]))
            jumped = walk(teacher, x, path, lambda _, x, t, s: ctm.jump(x, t, s))
            file.compare(f"{prefix}/self_learn_iterative_out", jumped)
        for key in file.keys("N"):
            if "/in/" in key and key.endswith("/t"):
                points = int(numbers(key)[0])
                grid = karras_grid(points - 1, *ends(file), dtype=torch.float64)
                file.compare(key, grid[file[key.replace("/t", "/idx")]])
                assert file[key.replace("/t", "/x")].isfinite().all()


def expect_histogram(counts: Tensor, probabilities: Tensor, what: str) -> None:
    """Each count within 5 standard deviations of the multinomial's (and 4, for the rare ones), none where the probability
    is 0."""
    total = int(counts.sum())
    spread = (total * probabilities * (1 - probabilities)).sqrt()
    assert bool(((counts - total * probabilities).abs() <= 5 * spread + 4).all()), what
    assert bool((counts[probabilities == 0] == 0).all()), what


def hold_index_distributions(file: VectorFile, generator: torch.Generator) -> None:
    """The official probabilities are ours: our draws fit them, and the official draws fit them too."""
    for key in file.keys("num_heun_step"):
        if not key.endswith("/prob_exact"):
            continue
        prefix = key.rsplit("/", 1)[0]
        power, largest = numbers(prefix)
        power = 0.0 if prefix.split("/")[1].startswith("uniform") else power
        draws = [draw_solver_steps(int(largest), power, generator=generator) for _ in range(2000)]
        ours = torch.bincount(torch.tensor(draws), minlength=int(largest) + 1)
        expect_histogram(ours, file[key], f"ours against {key}")
        expect_histogram(file[f"{prefix}/hist"], file[key], prefix)
        weights = torch.arange(int(largest) + 1, dtype=torch.float64) ** power
        weights[0] = 0
        file.compare(key, weights / weights.sum())
    for prefix in sorted({key.rsplit("/", 1)[0] for key in file.keys("sample_t/")}):
        points, steps = (int(number) for number in numbers(prefix))
        times = grid_times(20000, torch.arange(points).flip(0).double(), steps, generator=generator)
        index = (points - 1 - times.t).long()
        expect_histogram(torch.bincount(index, minlength=points), file[f"{prefix}/prob"], prefix)
        expect_histogram(file[f"{prefix}/hist"], file[f"{prefix}/prob"], prefix)
        assert bool((file[f"{prefix}/importance_weight"] == 1).all()), "a uniform draw needs no weight"
    for prefix in sorted({key.rsplit("/", 1)[0] for key in file.keys("sample_s/")}):
        points, steps, first = (int(number) for number in numbers(prefix))
        times = grid_times(300000, torch.arange(points).flip(0).double(), steps, generator=generator)
        chosen = (points - 1 - times.s).long()[(points - 1 - times.t).long() == first]
        expect_histogram(torch.bincount(chosen, minlength=points), file[f"{prefix}/prob_exact"], prefix)
        expect_histogram(file[f"{prefix}/hist"], file[f"{prefix}/prob_exact"], prefix)
    for key in file.keys("sample_s_smallest/"):
        assert bool((file[key] == int(numbers(key)[0]) - 1).all()), "`smallest` is the last index: a jump to sigma_min"


def expect_quantiles(draws: Tensor, levels: Tensor, stored: Tensor, n_stored: int, what: str) -> None:
    """Stored quantiles hold the part of our draws that they should, within 5 standard deviations of both samples."""
    part = (draws[:, None] <= stored).double().mean(0)
    spread = (levels * (1 - levels) * (1 / len(draws) + 1 / n_stored)).sqrt()
    inner = (levels > 0) & (levels < 1)
    assert bool(((part - levels).abs() <= 5 * spread + 2e-4)[inner].all()), f"{what}: {part.tolist()}"


def hold_continuous(file: VectorFile, generator: torch.Generator) -> None:
    """u ~ U(0, M/N), t ~ U(0, 1 − u), s ~ U(t + u, 1) in the Karras coordinate."""
    n = 100_000
    for key in file.keys("continuous/"):
        stored = file[key]
        levels = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0], dtype=torch.float64)
        if "num_heun_step" in key:
            draws = torch.rand(n, generator=generator, dtype=torch.float64) * float(stored[-1])
            assert 0 < float(stored[-1]) <= 1
            expect_quantiles(draws, levels, stored, file.config["draws_u"], key)
            continue
        span = numbers(key)[-1]
        times = continuous_times(n, 1, span, *ends(file), dtype=torch.float64, generator=generator)
        xi_t, xi_u, xi_s = (coordinate(level, *ends(file)) for level in (times.t, times.u, times.s))
        draws = xi_t if "sample_t" in key else (xi_s - xi_u) / (1 - xi_u)
        expect_quantiles(draws, levels, stored, file.config["draws_t_s"], key)


def coordinate(level: Tensor, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """The Karras coordinate of a level."""
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (level ** (1 / rho) - top) / (bottom - top)


def hold_denoising_levels(file: VectorFile, generator: torch.Generator) -> None:
    z, u = file["dsm/z"], file["dsm/u"]
    mean, std = float(file.config["P_mean"]), float(file.config["P_std"])
    for key in file.keys("dsm/"):
        if key.endswith("/weights"):
            assert bool((file[key] == 1).all()), "the levels are drawn as they are to be weighed"
        if not key.endswith("/sigmas"):
            continue
        n = len(file[key])
        if "/lognormal" in key:
            file.compare(key, lognormal_levels(z[:n], mean, std))
            continue
        high = numbers(key)[1]
        half = n // 2
        file.compare(key, half_lognormal_levels(z[:half], u[: n - half], mean, std, high, *ends(file)))
    low, high, rho = CODE_GRID  # the official sampler's own defaults, whatever the file's configuration
    draw = partial(half_lognormal, mean=mean, std=std, sigma_min=low, sigma_max=high, rho=rho)
    draws = draw(200_000, generator=generator)
    quantiles, stored = file["dsm/quantile_levels"], file["dsm/halflognormal_default_log_quantiles"]
    expect_quantiles(draws.double().log(), quantiles, stored, file.config["draws_u"], "halflognormal")
    low, high = file["dsm/halflognormal_default_second_half_min_max"].tolist()
    ours = draws[len(draws) // 2 :]
    assert float(ours.min()) == pytest.approx(low, rel=0.02)
    assert float(ours.max()) == pytest.approx(high, rel=0.02)


@vectors.each("which", vectors.names("math_distributions"))
def test_distributions_of_times_and_levels(which):
    generator = torch.Generator().manual_seed(0)
    with vectors.open_file(which) as file:
        hold_index_distributions(file, generator)
        hold_continuous(file, generator)
        hold_denoising_levels(file, generator)
