"""Samplers as generators: many driven together give what each gives alone, and none reads anything back from the device."""

import contextlib
import inspect
from functools import partial

import pytest
import torch

from ctm import sampling
from ctm.arguments import inside
from ctm.editing import averaging
from ctm.guidance import ClassifierFree
from ctm.noise import karras_grid
from ctm.requests import Denoise, Jump, run
from ctm.sampling.driving import drive, drive_together
from ctm.sampling.generation import draw
from ctm.sampling.image_noise import ImageNoise
from ctm.sampling.replacement import restore

from ..reads import Dtypes, Reads

GRID = karras_grid(5)
WITH_ZERO = torch.cat([karras_grid(4), torch.zeros(1)])
TWO = torch.tensor([80.0, 0.5, 2.0, 0.002])
PLANS = {
    "gamma": (partial(sampling.gamma.steps, gamma=0.5), GRID),
    "the code's form": (partial(sampling.gamma.steps, gamma=0.5, form="code"), karras_grid(3)),
    "one jump": (sampling.gamma.steps, karras_grid(1)),
    "consistency": (sampling.consistency.steps, GRID),
    "two_level": (sampling.two_level.steps, TWO),
    "euler": (sampling.euler.steps, WITH_ZERO),
    "heun": (partial(sampling.heun.steps, churn=2.0), WITH_ZERO),
    "midpoint": (sampling.midpoint.steps, GRID),
    "dpmpp_2m": (sampling.dpmpp_2m.steps, WITH_ZERO),
    "ancestral": (sampling.ancestral.steps, WITH_ZERO),
    "dpmpp_2m_sde": (sampling.dpmpp_2m_sde.steps, GRID),
    "restore": (
        partial(restore.steps, known=torch.zeros(1, 1, 8, 8), projection=averaging((8, 8), (2, 2)).projection),
        karras_grid(3),
    ),
}


def forty(shape, dtype):
    """Forty plans: all kinds of samplers, one to three rows, with labels and without, each with noise of its own."""
    for number in range(40):
        name = list(PLANS)[number % len(PLANS)]
        steps, grid = PLANS[name]
        rows = 1 + number % 3
        labels = None if number % 4 == 0 else torch.arange(rows) % 4 - (number % 2)
        noise = ImageNoise(number, range(rows))
        x = 80 * noise(torch.empty(rows, *shape, dtype=dtype))
        if name == "restore":
            steps = partial(steps, known=torch.zeros(rows, *shape, dtype=dtype))
        yield steps(x, grid.to(dtype), condition=labels, noise=noise)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("batch_size", [7, 64])
def test_forty_plans_driven_together_give_what_each_gives_alone(small_ctm, dtype, tolerance, batch_size):
    model = small_ctm.to(dtype)
    alone = [drive(model, steps) for steps in forty(model.shape, dtype)]
    together = drive_together(model, list(forty(model.shape, dtype)), batch_size=batch_size)
    assert len(together) == 40
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance)


def test_plans_share_the_calls_of_the_network(small_ctm):
    calls = []
    small_ctm.network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    plans = [sampling.gamma.steps(80 * torch.randn(2, *small_ctm.shape), karras_grid(4)) for _ in range(8)]
    drive_together(small_ctm, plans, batch_size=64)
    assert calls == [16] * 4


def test_requests_are_what_the_sampler_needs():
    x = torch.randn(3, 2)
    steps = sampling.heun.steps(x, torch.tensor([2.0, 1.0, 0.0]), condition=torch.tensor([0, 1, 1]))
    first = next(steps)
    assert isinstance(first, Denoise)
    assert torch.equal(first.t, torch.full((3,), 2.0))
    assert torch.equal(first.condition, torch.tensor([0, 1, 1]))
    jump = next(sampling.gamma.steps(x, torch.tensor([2.0, 1.0]), gamma=0.0))
    assert isinstance(jump, Jump)
    assert torch.equal(jump.s, torch.ones(3))


def test_a_sampler_shows_the_arguments_of_a_function_of_a_model():
    names = list(inspect.signature(sampling.heun).parameters)
    assert names[:3] == ["model", "x", "grid"]
    assert "churn" in names
    assert "Heun" in sampling.heun.__doc__


def test_an_error_of_the_model_comes_through(mixture_2d):
    with pytest.raises(ValueError, match=r"has no jump\(x, t, s, condition\)"):
        drive(lambda x, sigma: x, sampling.gamma.steps(torch.randn(2, 2), GRID))
    with pytest.raises(ValueError, match="labels must be"):
        drive(mixture_2d, sampling.heun.steps(torch.randn(2, 2).double(), GRID, condition=torch.tensor([7, 9])))


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_a_sampler_reads_nothing_back_after_its_start(small_ctm, name, guided):
    """After the first answer, which is checked, no number comes from a tensor, with labels and under guidance."""
    steps, grid = PLANS[name]
    model = ClassifierFree(small_ctm, 2.0) if guided else small_ctm
    x, labels = 80 * torch.randn(2, *small_ctm.shape), torch.tensor([1, -1])
    if name == "restore":
        steps = partial(steps, known=torch.zeros_like(x))
    seen, reads = [], Reads()

    def noise(like):
        return torch.ones_like(like)

    plan = steps(x, grid, condition=labels, noise=noise)
    with torch.no_grad(), contextlib.suppress(StopIteration):
        request = next(plan)
        with inside(), reads:
            while True:
                seen.append(request)
                kind = model.jump if isinstance(request, Jump) else model.denoise
                levels = (request.t, request.s) if isinstance(request, Jump) else (request.t,)
                request = plan.send(kind(request.x, *levels, request.condition))
    assert len(seen) >= (1 if name == "one jump" else 2)
    assert reads.count == 0, reads.places


@pytest.mark.parametrize("name", PLANS)
def test_a_sampler_runs_where_nothing_can_be_read(small_ctm, name):
    """Tensors on the meta device have no values: reading one raises."""
    steps, grid = PLANS[name]
    model = small_ctm.to("meta")
    x = torch.empty(2, *small_ctm.shape, device="meta")
    if name == "restore":
        steps = partial(steps, known=torch.zeros(2, 1, 8, 8))
    with inside():
        result = drive(model, steps(x, grid, condition=torch.zeros(2, dtype=torch.int64, device="meta")))
    assert result.shape == x.shape
    assert result.device.type == "meta"


@pytest.mark.parametrize("sampler", [sampling.gamma, sampling.heun, sampling.ancestral])
def test_no_float64_comes_to_the_device_of_the_model(small_ctm, sampler):
    """As on a Mac, whose GPU has none."""
    model, labels = small_ctm.to("meta"), torch.zeros(2, dtype=torch.int64)
    with Dtypes("meta") as kinds, inside():
        draw(model, range(2), levels=GRID, sampler=sampler, condition=labels, seed=0, device=torch.device("meta"))
    assert not kinds.double


def test_the_first_request_is_checked_and_only_that(small_ctm, monkeypatch):
    seen = []
    check = type(small_ctm).check_levels
    monkeypatch.setattr(type(small_ctm), "check_levels", lambda *args: (seen.append(1), check(*args))[1])
    sampling.gamma(small_ctm, 80 * torch.randn(2, *small_ctm.shape), karras_grid(6))
    assert len(seen) == 2  # the grid's ends, and the first of six jumps


def test_mixture_is_driven_with_labels_beside_none(mixture_2d):
    """A plan without labels among plans with: its rows count as unconditional."""
    x = 80 * torch.randn(2, 2, dtype=torch.float64)
    grid = karras_grid(8, dtype=torch.float64)
    plans = lambda: [sampling.heun.steps(x, grid), sampling.heun.steps(x, grid, condition=torch.tensor([0, 1]))]  # noqa: E731
    together = drive_together(mixture_2d, plans())
    for one, other in zip(plans(), together, strict=True):
        torch.testing.assert_close(other, drive(mixture_2d, one), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("grid", [[80.0, 1.0, 0.0001], [80.0, 0.0001]])
def test_a_grid_that_ends_below_sigma_min_is_refused_wherever_it_does(small_ctm, grid):
    """Not by the first jump alone, whose levels are the only ones that are checked."""
    x = 80 * torch.randn(2, *small_ctm.shape)
    with pytest.raises(ValueError, match=r"a jump needs sigma_min = 0\.002 ≤ s"):
        sampling.gamma(small_ctm, x, torch.tensor(grid))
    with pytest.raises(ValueError, match=r"a jump needs sigma_min = 0\.002 ≤ s"):
        sampling.two_level(small_ctm, x, torch.tensor([80.0, 0.5, 2.0, 0.0001]))


@pytest.mark.parametrize("call", [1, 3])
def test_a_models_own_stop_iteration_is_no_end(call):
    """It would look like a sampler that is done, with None for its samples."""

    class Model:
        def __init__(self):
            self.answers = iter([torch.zeros(2, 1)] * (call - 1))

        def denoise(self, x, t, labels=None):
            return next(self.answers)

    plan = sampling.euler.steps
    for drives in (
        lambda model, steps: drive(model, steps),
        lambda model, steps: drive_together(model, [steps]),
        lambda model, steps: run(steps, lambda request: model.denoise(request.x, request.t)),
    ):
        with pytest.raises(StopIteration):
            drives(Model(), plan(torch.ones(2, 1), GRID))
