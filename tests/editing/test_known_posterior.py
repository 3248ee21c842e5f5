"""Every method of ctm.editing against the mixture's known posterior, in 2 and 64 dimensions: mean, covariance, and its bias.

The errors are those that docs/results.md reports: `pytest tests/editing/test_known_posterior.py -s` prints them.
"""

from pathlib import Path

import pytest
import torch

from ctm.editing import LinearOperator, masking, replace, solve_guided
from ctm.teachers import GaussianMixture

from ..conftest import mixture, slow
from .posterior import Jumps, posterior

N = 1000
MANY = torch.tensor([80.0, 1.0, 0.25, 0.002], dtype=torch.float64)


def near(dimensions):
    """Two modes at distance 1.2 with standard deviation 0.4: they overlap."""
    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(dimensions, generator=generator, dtype=torch.float64)
    direction = 0.6 * direction / direction.norm()
    return GaussianMixture(torch.stack([direction, -direction]), 0.4, torch.tensor([0.4, 0.6]))


def inpainting(dimensions):
    """Every other coordinate is known."""
    return masking(torch.arange(dimensions) % 2 == 0)


def linear(dimensions):
    """A quarter as many random linear combinations as there are coordinates, at least one."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(max(1, dimensions // 4), dimensions, generator=generator, dtype=torch.float64)
    inverse = torch.linalg.pinv(matrix)
    return LinearOperator(lambda x: x @ matrix.T, lambda y: y @ inverse.T)


CASES = {
    f"{dimensions}-d {name} {ask.__name__}": (teacher, ask(dimensions))
    for dimensions in (2, 64)
    for name, teacher in (("near", near(dimensions)), ("far", mixture(dimensions)))
    for ask in (inpainting, linear)
}


def replacement(steps):
    return lambda model, operator, y: replace(model, operator, y, steps=steps, clamp=False)


def many_rounds(model, operator, y):
    """From 80 down to 0.25, 25 rounds at each level: at the last a round is a Langevin step of size 0.06."""
    return replace(model, operator, y, grid=MANY, rounds=25, clamp=False)


def guided(steps, jumps=False):
    return lambda model, operator, y: solve_guided(model, operator, y, steps=steps, jumps=jumps, clamp=False)


METHODS = {
    "replacement, 1 evaluation": replacement(1),
    "replacement, 4": replacement(4),
    "replacement, 75: 25 rounds at each level": many_rounds,
    "guided, 1": guided(1),
    "guided, 4": guided(4),
    "guided, 18": guided(18),
    "guided, 100": guided(100),
    "guided jumps, 8": guided(4, jumps=True),
    "guided jumps, 36": guided(18, jumps=True),
}


def asked(case):
    """The teacher, the operator, and the measurement of one draw."""
    teacher, operator = CASES[case]
    return teacher, operator, operator.A(teacher.sample(1, seed=11))


def documented():
    """{(case, row): (mean, covariance)} from the tables in docs/results.md."""
    text = (Path(__file__).parents[2] / "docs" / "results.md").read_text().split("## Inverse problems against")[1]
    found, columns = {}, []
    for line in text.split("\n## ")[0].splitlines():
        first, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if first in ("2-d", "64-d"):
            columns = [f"{first} {cell}" for cell in cells]
        elif cells and "/" in cells[0]:
            pairs = [tuple(float(part) for part in cell.split("/")) for cell in cells]
            found |= {(case, first): pair for case, pair in zip(columns, pairs, strict=True)}
    return found


def check(case, row, made):
    """The errors of samples are those in the docs, to the scatter of samples on another machine."""
    teacher, operator, y = asked(case)
    torch.testing.assert_close(operator.A(made), y.expand(len(made), *y.shape[1:]))
    truth = posterior(teacher, operator, y)
    mean, covariance = truth.errors(made)
    print(
        f"\n{case}: {row}: {mean:.2f} / {covariance:.2f}, variance {made.T.cov().trace() / truth.covariance.trace():.2f}"
    )
    expected = documented()[case, row]
    assert mean == pytest.approx(expected[0], abs=0.05, rel=0.15)
    assert covariance == pytest.approx(expected[1], abs=0.08, rel=0.2)


@pytest.mark.parametrize("case", CASES)
def test_true_samples_give_the_scale(case):
    """Draws of the posterior itself have the errors of N samples; draws of the prior with the measured part put in are what a
    method must be better than."""
    teacher, operator, y = asked(case)
    truth, plain = posterior(teacher, operator, y), teacher.sample(N, 7)
    check(case, "draws of the posterior", truth.sample(N, 5))
    check(case, "draws of the prior, the measured part put in", plain - operator.projection(plain) + operator.A_pinv(y))
    assert truth.errors(truth.sample(N, 5))[0] < 4 / N**0.5


ROUNDS = "replacement, 75: 25 rounds at each level"
TWO = [case for case in CASES if case.startswith("2-d")]


@pytest.mark.parametrize(
    ("case", "row"),
    [
        (case, row) if case in TWO and (row != ROUNDS or case == "2-d near linear") else slow(case, row)
        for row in METHODS
        for case in CASES
    ],
)
def test_the_bias_of_each_method_is_the_documented_one(case, row):
    teacher, operator, y = asked(case)
    n = 250 if case.startswith("64-d far") and "75" in row else N
    model = Jumps(teacher, 32 if case.startswith("64-d far") else 8)
    check(case, row, METHODS[row](model, operator, y.expand(n, *y.shape[1:])))


def test_the_errors_see_a_wrong_mean_and_a_wrong_covariance():
    teacher, operator, y = asked("2-d near linear")
    truth = posterior(teacher, operator, y)
    drawn = truth.sample(N, 5)
    shift = 0.5 * truth.hidden[0] / truth.hidden[0].norm() * truth.covariance.trace().sqrt()
    assert truth.errors(drawn + shift)[0] == pytest.approx(0.5, abs=0.1)
    assert truth.errors(truth.mean + 2 * (drawn - truth.mean))[1] == pytest.approx(3, abs=0.3)
