"""Hold models of Gaussian fields to the closed form: jumps, spectra, likelihood, and the posterior given points or averages.

Usage: python -m examples.fields.measure exact
       python -m examples.fields.measure trained TEACHER CTM

`exact` measures the library's solvers of inverse problems with the exact model. `trained` measures a teacher and a CTM. Both
print tables in Markdown.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence

import torch
from examples.fields.data import conditions
from examples.fields.gaussian import GaussianFields
from examples.fields.network import Waves  # importing it lets config.json name it
from examples.fields.posterior import Errors, given
from torch import Tensor

from ctm import karras_grid, load_model
from ctm.editing import LinearOperator, averaging, masking, replace, solve_guided
from ctm.likelihood import estimate_log_density
from ctm.sampling import gamma, heun

__all__ = ["Waves", "bands", "flow_errors", "main", "problems", "spectrum", "table"]

ONE = {"length_scale": 3.0, "variance": 1.0}
LEVELS = torch.tensor([1.5, 0.7, 0.4, 0.25, 0.15, 0.1, 0.002], dtype=torch.float64)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, the numbers to the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows_of(num: int, **values: float) -> dict[str, Tensor]:
    """The condition of `num` samples with the same values."""
    return {name: torch.full((num,), value) for name, value in values.items()}


def problems(model: GaussianFields) -> dict[str, LinearOperator]:
    """What is measured of a field: 40 cells of the first channel, or the averages of both channels over 4×4 cells."""
    _, height, width = model.shape
    known = torch.zeros(model.shape, dtype=torch.bool)
    chosen = torch.randperm(height * width, generator=torch.Generator().manual_seed(0))[:40]
    known[0].view(-1)[chosen] = True
    return {"points": masking(known), "averages": averaging((height, width), (height // 4, width // 4))}


def inverse(exact: GaussianFields, runs: Sequence[tuple[str, torch.nn.Module, str]], num: int = 64) -> str:
    """The tables of the two inverse problems. runs: (name, model, way of WAYS) for each row."""
    parts, condition = [], rows_of(num, **ONE)
    for name, operator in problems(exact).items():
        y = operator.A(exact.sample(rows_of(1, **ONE), seed=7))
        posterior = given(exact, operator, y, ONE)
        found = [("draws of the posterior", posterior.sample(num, seed=8))]
        for label, model, way in runs:
            many = y.expand(num, *y.shape[1:]).to(torch.float64 if model is exact else torch.float32)
            found.append((label + way, WAYS[way](model, operator, many, condition)))
        head = [f"{name} ({int((y != 0).sum())} numbers)", "mean", "spread", "covariance"]
        parts.append(table(head, [[label, *_rounded(posterior.errors(samples))] for label, samples in found]))
    return "\n\n".join(parts)


def _rounded(errors: Errors) -> list[str]:
    return [f"{number:.2f}" for number in (errors.mean, errors.spread, errors.covariance)]


def _guided(steps: int, iterations: int, jumps: bool = False) -> Callable[..., Tensor]:
    return lambda model, operator, y, condition: solve_guided(
        model, operator, y, steps=steps, iterations=iterations, jumps=jumps, clamp=False, condition=condition
    )


def _replaced(rounds: int) -> Callable[..., Tensor]:
    return lambda model, operator, y, condition: replace(
        model, operator, y, grid=LEVELS.to(y), rounds=rounds, clamp=False, condition=condition
    )


WAYS: dict[str, Callable[..., Tensor]] = {
    "solve_guided, 18 steps": _guided(18, 1),
    "solve_guided, 18 steps of 16 iterations": _guided(18, 16),
    "solve_guided, 72 steps": _guided(72, 1),
    "solve_guided, 72 steps of 16 iterations": _guided(72, 16),
    "solve_guided, 18 jumps": _guided(18, 1, jumps=True),
    "solve_guided, 18 jumps of 4 iterations": _guided(18, 4, jumps=True),
    "solve_guided, 18 jumps of 16 iterations": _guided(18, 16, jumps=True),
    "replace, 6 levels": _replaced(1),
    "replace, 6 levels of 40 rounds": _replaced(40),
}


def flow_errors(
    exact: GaussianFields, walk: Callable[..., Tensor], levels: Sequence[float], condition: dict[str, Tensor]
) -> list[float]:
    """|walk(x_t) − G(x_t, t, σ_min)|/|G(x_t, t, σ_min)| from each level t, for fields of this condition.

    walk(x, t, condition): the model's way from level t to σ_min."""
    data, errors = exact.sample(condition, seed=9), []
    generator = torch.Generator().manual_seed(10)
    for level in levels:
        x = data + level * torch.randn(data.shape, dtype=data.dtype, generator=generator)
        true = exact.jump(x, level, exact.sigma_min, condition)
        errors.append(float((walk(x.float(), level, condition) - true).norm() / true.norm()))
    return errors


def bands(shape: Sequence[int], edges: Sequence[float] = (0.0, 0.15, 0.35, 0.7, 1.4, 4.5)) -> list[Tensor]:
    """Masks (H, W) of the modes by wave number |k| = π·|(i/H, j/W)|."""
    _, height, width = shape
    i, j = torch.arange(height) / height, torch.arange(width) / width
    wave = torch.pi * (i[:, None] ** 2 + j**2).sqrt()
    return [(wave >= low) & (wave < high) for low, high in itertools.pairwise(edges)]


def spectrum(exact: GaussianFields, samples: Tensor, condition: dict[str, Tensor]) -> list[float]:
    """The samples' power over the exact power in each band of `bands`: 1 is right."""
    unit = exact.modes(samples.double() - exact.offset[:, None, None]).square() / exact.variances(condition)
    return [float(unit[..., mask].mean()) for mask in bands(exact.shape)]


def walks(teacher: torch.nn.Module, student: torch.nn.Module) -> dict[str, Callable[..., Tensor]]:
    """The ways from level t to σ_min that are compared: walk(x, t, condition)."""

    def by_teacher(x: Tensor, t: float, condition: dict[str, Tensor]) -> Tensor:
        return heun(teacher, x, karras_grid(18, 0.002, t), condition=condition)

    def by_jumps(jumps: int) -> Callable[..., Tensor]:
        return lambda x, t, condition: gamma(student, x, karras_grid(jumps, 0.002, t), condition=condition)

    return {"teacher, Heun, 36 evaluations": by_teacher} | {
        f"CTM, {jumps} jump{'s' * (jumps > 1)}": by_jumps(jumps) for jumps in (1, 2, 4)
    }


def trained(teacher: torch.nn.Module, student: torch.nn.Module, num: int = 64) -> str:
    """The tables of a teacher and a CTM against the closed form, in the numbers that they learned."""
    exact = GaussianFields().scaled(teacher.scaling)
    ways, scales = walks(teacher, student), (1.5, 3.0, 6.0)
    parts, levels = [], (80.0, 5.0, 0.5)
    rows = []
    for name, walk in ways.items():
        found = [flow_errors(exact, walk, levels, rows_of(num, length_scale=scale, variance=1.0)) for scale in scales]
        rows.append([name, *(" / ".join(f"{error:.3f}" for error in errors) for errors in found)])
    parts.append(table(["distance to the flow from t = 80 / 5 / 0.5", *(f"ℓ = {scale:g}" for scale in scales)], rows))
    rows = []
    for name, walk in ways.items():
        for scale in scales:
            condition = rows_of(num, length_scale=scale, variance=1.0)
            noise = 80 * torch.randn(num, *exact.shape, generator=torch.Generator().manual_seed(11))
            powers = spectrum(exact, walk(noise, 80.0, condition), condition)
            rows.append([f"{name}, ℓ = {scale:g}", *(f"{power:.2f}" for power in powers)])
    parts.append(table(["power over the exact power, |k| below", "0.15", "0.35", "0.7", "1.4", "4.5"], rows))
    parts.append(likelihoods(exact, {"teacher": teacher, "CTM": student}))
    runs = [
        ("teacher: ", teacher, "solve_guided, 18 steps"),
        ("CTM: ", student, "solve_guided, 18 jumps"),
        ("CTM: ", student, "solve_guided, 18 jumps of 4 iterations"),
        ("CTM: ", student, "replace, 6 levels of 40 rounds"),
    ]
    parts.append(inverse(exact, runs, num))
    return "\n\n".join(parts)


def likelihoods(exact: GaussianFields, models: dict[str, torch.nn.Module], num: int = 8) -> str:
    """ln p of held-out fields in nats a number: exact, and by each model's flow."""
    condition = conditions(num, seed=12)
    x = exact.sample(condition, seed=12)
    x = (x + 0.002 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(13))).float()
    truth = exact.log_prob(x.double(), 0.002, condition) / x[0].numel()
    rows = [["exact", f"{float(truth.mean()):.4f}", ""]]
    for name, model in models.items():
        found = estimate_log_density(model, x, condition, rtol=1e-3, atol=1e-3).value / x[0].numel()
        rows.append([name, f"{float(found.mean()):.4f}", f"{float((found - truth).mean()):+.4f}"])
    return table(["ln p, nats a number", "mean", "− exact"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["exact", "trained"])
    parser.add_argument("models", nargs="*", help="the teacher's and the CTM's directory")
    parser.add_argument("--num", type=int, default=64, help="samples of each row")
    settings = parser.parse_args()
    if settings.part == "exact":
        exact = GaussianFields()
        print(inverse(exact, [("", exact, way) for way in WAYS], settings.num))
    else:
        if len(settings.models) != 2:
            parser.error("trained needs two directories: the teacher's and the CTM's")
        print(trained(*(load_model(path) for path in settings.models), num=settings.num))


if __name__ == "__main__":
    main()
