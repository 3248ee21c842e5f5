"""The Allen–Cahn solver of examples/fields against another solver and closed forms, its pairs, and their residual."""

import itertools
import math

import numpy as np
import pytest
import torch
from examples.fields import allen_cahn
from examples.fields.allen_cahn import defect, energy, evolve, initial, pairs, residual
from examples.fields.allen_cahn_residuals import known
from scipy.integrate import solve_ivp

HEIGHT, WIDTH = allen_cahn.SIDES
ROWS = torch.arange(HEIGHT, dtype=torch.float64)[:, None]
COLUMNS = torch.arange(WIDTH, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def second_derivative(n):
    """The matrix (n, n) of the trigonometric interpolant's second derivative, n even (Trefethen 2000, eq. 3.12)."""
    h = 2 * math.pi / n
    j = np.arange(1, n)
    first = np.concatenate([[-(math.pi**2) / (3 * h**2) - 1 / 6], -((-1.0) ** j) / (2 * np.sin(h * j / 2) ** 2)])
    return first[np.abs(np.subtract.outer(np.arange(n), np.arange(n)))] * h**2  # of cells of side 1


def test_the_error_falls_with_the_square_of_the_step():
    """Truth: scipy's Runge–Kutta method of order 8 on the equation with differentiation matrices, so no splitting and no FFT."""
    u, epsilon = initial(1, generator()), torch.tensor([1.3])
    rows, columns = second_derivative(HEIGHT), second_derivative(WIDTH)

    def rate(_, flat):
        v = flat.reshape(HEIGHT, WIDTH)
        return (float(epsilon) ** 2 * (rows @ v + v @ columns) + v - v**3).ravel()

    solved = solve_ivp(rate, (0, 1), u[0].numpy().ravel(), method="DOP853", rtol=1e-9, atol=1e-10).y[:, -1]
    truth = torch.from_numpy(solved).reshape(1, HEIGHT, WIDTH)
    errors = [float((evolve(u, epsilon, 1.0, step) - truth).norm()) for step in (0.2, 0.1, 0.05)]
    assert errors[-1] < 1e-3 * float(truth.norm())
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(2, abs=0.1)


def test_small_waves_grow_as_the_linear_equation_says():
    """u = a·cos(k·x) becomes u·exp((1 − ε²|k|²)t) where u³ does not count: a² = 1e-12 of it."""
    for i, j in ((0, 0), (1, 0), (0, 3), (5, 7), (11, 19)):
        wave = 1e-6 * torch.cos(2 * math.pi * (i * ROWS / HEIGHT + j * COLUMNS / WIDTH))[None]
        square = 4 * math.pi**2 * ((i / HEIGHT) ** 2 + (j / WIDTH) ** 2)
        grown = wave * math.exp((1 - 1.2**2 * square) * 0.7)
        torch.testing.assert_close(
            evolve(wave, torch.tensor([1.2], dtype=torch.float64), 0.7), grown, rtol=1e-9, atol=1e-18
        )


def test_straight_walls_stand_still_and_have_their_energy():
    """Of a wall tanh(x/(ε√2)) the energy is ε·2√2/3 a cell of its length; two of length 24 stand 20 cells apart. The grid and the
    step are wrong by 2e-4 and 1e-4."""
    epsilon = 1.2
    wall = epsilon * math.sqrt(2)
    u = (((COLUMNS - 10) / wall).tanh() - ((COLUMNS - 30) / wall).tanh() - 1).expand(1, HEIGHT, WIDTH)
    later = evolve(u, torch.tensor([epsilon]), 10.0)
    torch.testing.assert_close(later, u, rtol=0, atol=2e-3)
    expected = 2 * HEIGHT * epsilon * 2 * math.sqrt(2) / 3 / (HEIGHT * WIDTH)
    assert float(energy(u, torch.tensor([epsilon]))) == pytest.approx(expected, rel=2e-3)


def test_a_disc_shrinks_by_its_curvature():
    """Walls move at ε²/R, so a disc loses the area 2πε² in a unit of time; corrections are of order (ε/R)², 3 % here."""
    epsilon, radius = 1.0, 8.0
    distance = ((ROWS - 12) ** 2 + (COLUMNS - 20) ** 2).sqrt() - radius
    u = evolve(-(distance / math.sqrt(2)).tanh()[None], torch.tensor([epsilon]), 1.0)  # the wall finds its form
    lost = float((u - evolve(u, torch.tensor([epsilon]), 8.0)).sum()) / 2
    assert lost / 8 == pytest.approx(2 * math.pi * epsilon**2, rel=0.06)


@pytest.mark.parametrize("step", [0.02, allen_cahn.STEP, 0.5])
def test_energy_falls_in_every_step(step):
    epsilon = allen_cahn.epsilons(16, generator(1))
    u = initial(16, generator(2))
    before = energy(u, epsilon)
    for _ in range(20):
        u = evolve(u, epsilon, step, step)
        after = energy(u, epsilon)
        assert (after < before).all()
        before = after


def test_the_way_in_parts_is_the_way():
    """Half steps of reaction that meet are one step, so two times are the sum of the times, to rounding."""
    u, epsilon = initial(3, generator(3)), torch.tensor([1.0, 1.7, 2.5])
    once = evolve(u, epsilon, 1.0)
    torch.testing.assert_close(evolve(evolve(u, epsilon, 0.4), epsilon, 0.6), once, rtol=0, atol=1e-12)
    assert torch.equal(evolve(u, epsilon, 0.0), u)
    with pytest.raises(ValueError, match=r"the time must be at least 0 and the step above 0, got -1.0 and 0.1"):
        evolve(u, epsilon, -1.0)


def test_the_residual_sees_what_is_wrong():
    """The solver's own is the error of its step, a quarter at half the step. An offset of 0.1 is a residual of 0.1."""
    epsilon = torch.full((16,), 1.6)
    solved = pairs(epsilon, generator(5))
    assert solved.shape == (16, *allen_cahn.SHAPE)
    moved = solved.clone()
    moved[:, 1] += 0.1
    assert residual(moved, epsilon).numpy() == pytest.approx(0.1, abs=1e-3)
    assert float((defect(moved, epsilon) - 0.1).abs().max()) < 5e-3
    found = {name: residual(made, epsilon) for name, made in known(16, 1.6).items()}
    whole, half, larger, second, first, twice, shuffled = (float(values.mean()) for values in found.values())
    assert float(found["solver, steps of 0.1"].max()) < 1e-3
    assert whole / half == pytest.approx(5, abs=0.3)  # (1 - 1/16)/(1/4 - 1/16): it is measured by steps of a quarter
    assert second == pytest.approx(0.1, abs=5e-3)
    assert first > 30 * whole
    assert 30 * whole < larger < twice < 0.5 * shuffled


def test_the_file_holds_pairs_and_their_epsilon(tmp_path):
    assert allen_cahn.write(tmp_path / "new" / "train.npz", 5, seed=6) == allen_cahn.SHAPE
    with np.load(tmp_path / "new" / "train.npz") as file:
        data, epsilon = torch.from_numpy(file["data"]), torch.from_numpy(file["epsilon"])
    assert data.dtype == epsilon.dtype == torch.float32
    assert float(epsilon.min()) >= 1
    assert float(epsilon.max()) <= 2.5
    assert float(residual(data, epsilon).max()) < 1e-3
    assert (energy(data[:, 1], epsilon) < energy(data[:, 0], epsilon)).all()
