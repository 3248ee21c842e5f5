"""What strangers pass to public functions: each ends in what they meant, or in a sentence. Nothing else."""

import math

import numpy as np
import pytest
import torch

import ctm
from ctm import ConsistencyModel, DiffusionModel, TrajectoryModel, editing, guidance, likelihood, sampling
from ctm.arguments import as_count, as_labels, as_levels, as_number, as_seed, as_state
from ctm.models.guided import at_guidance
from ctm.networks import MLP
from ctm.teachers import GaussianMixture

from .conftest import random_weights

X = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
GRID = ctm.karras_grid(2)


def model(kind=TrajectoryModel, **options):
    network = MLP((2,), 3, width=8, blocks=1, embedding=8, s_embedding=kind is TrajectoryModel, **options)
    return random_weights(kind(network, shape=(2,), num_classes=3)).eval()


CTM, DIFFUSION, CM = model(), model(DiffusionModel), model(ConsistencyModel)
GUIDED = model(guidance_embedding=True)
MIXTURE = GaussianMixture(torch.randn(3, 2, generator=torch.Generator().manual_seed(1)), 0.5, torch.ones(3))
MODELS = {"CTM": CTM, "diffusion": DIFFUSION, "mixture": MIXTURE, "at guidance": at_guidance(GUIDED, 2.0)}
MODELS |= {
    "classifier-free": guidance.ClassifierFree(CTM, 1.0),
    "limited": guidance.Limited(guidance.ClassifierFree(CTM, 2), 0, 9),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "level",
    [1, 1.0, np.float64(1), np.float32(1), torch.tensor(1.0), [1.0, 1.0], np.array([1.0, 1]), torch.ones(2).double()],
)
def test_case_27_a_level_is_a_number_or_one_for_each_sample(name, level):
    labels = torch.tensor([1, 2])
    for method in ("denoise", "score"):
        call = getattr(MODELS[name], method)
        torch.testing.assert_close(call(X, level, labels), call(X, torch.ones(2), labels))
    if hasattr(MODELS[name], "jump") and name != "diffusion":
        jumped = MODELS[name].jump(X, level, 0.5, labels)
        torch.testing.assert_close(jumped, MODELS[name].jump(X, torch.ones(2), torch.full((2,), 0.5), labels))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "labels", [[1, 2], (1, 2), np.array([1, 2]), np.array([1, 2], np.uint8), torch.tensor([1, 2]).int()]
)
def test_case_27_labels_are_any_whole_numbers(name, labels):
    one, known = torch.ones(2), torch.tensor([1, 2])
    assert torch.equal(MODELS[name].denoise(X, one, labels), MODELS[name].denoise(X, one, known))
    assert torch.equal(MODELS[name].denoise(X, one, 1), MODELS[name].denoise(X, one, torch.tensor([1, 1])))
    assert torch.equal(
        sampling.euler(MODELS[name], X, GRID, condition=labels), sampling.euler(MODELS[name], X, GRID, condition=known)
    )
    if hasattr(MODELS[name], "jump") and name != "diffusion":
        assert torch.equal(
            sampling.gamma(MODELS[name], X, GRID, condition=labels),
            sampling.gamma(MODELS[name], X, GRID, condition=known),
        )
    assert torch.equal(ctm.generate(CTM, 2, condition=labels), ctm.generate(CTM, 2, condition=known))


WRONG_LEVELS = [
    "1",
    None,
    True,
    math.nan,
    math.inf,
    -1.0,
    torch.ones(3),
    torch.ones(2, 1),
    [1.0],
    torch.tensor([True, True]),
    torch.tensor([1.0, math.nan]),
    1j,
    object(),
]
WRONG_LABELS = [
    "1",
    [1.0, 2.0],
    torch.ones(2),
    [True, False],
    [1],
    torch.ones(2, 1).long(),
    torch.zeros(2, dtype=torch.bool),
    {1: 2},
    [None, 1],
]
WRONG_X = [
    None,
    "x",
    [[1.0, 2.0]],
    np.zeros((2, 2)),
    torch.ones(2, 2).long(),
    torch.ones(2, 2, dtype=torch.bool),
    torch.ones(2, 3),
    torch.ones(2, 2, 1),
]


@pytest.mark.parametrize("name", MODELS)
def test_case_27_every_model_refuses_the_rest_in_a_sentence(name):
    made, one = MODELS[name], torch.ones(2)
    for level in WRONG_LEVELS:
        for call in (made.denoise, made.score):
            with pytest.raises(ValueError, match="is a noise level"):
                call(X, level, [1, 2])
    for labels in WRONG_LABELS:
        with pytest.raises(ValueError, match=r"labels must be whole numbers|the condition .?1.? (is none|needs)"):
            made.denoise(X, one, labels)
    for x in WRONG_X:
        with pytest.raises(ValueError, match=r"x must (be|have)"):
            made.denoise(x, one, [1, 2])
    if hasattr(made, "jump") and name != "diffusion":
        for level in WRONG_LEVELS:
            with pytest.raises(ValueError, match="is a noise level"):
                made.jump(X, 1.0, level, [1, 2])


NUMBERS = [None, "0.5", True, math.nan, math.inf, -1, 2j, [0.5], torch.tensor([0.5, 0.5])]
COUNTS = [None, "2", True, 0, -1, 1.5, math.nan, [2], torch.tensor([2, 2])]
SEEDS = [None, "0", True, -1, 0.5, math.nan]
SEEDS += [torch.tensor(2.7), torch.tensor(2.0), np.array(2.7), np.float32(2), torch.tensor(True), np.array(True)]
MANY_SEEDS = [
    torch.tensor([1.5, 2.7]),
    torch.tensor([1.0, 2.0]),
    np.array([1.5, 2.7]),
    torch.tensor([True, False]),
    [torch.tensor(1.5), torch.tensor(2)],
    torch.tensor([[1], [2]]),
    {1, 2},
    frozenset((1, 2)),
    {1: 1, 2: 2},
    {1: 1, 2: 2}.keys(),
    iter([1, 2]),
    range(3),
]
IMAGE = torch.zeros(2)

CALLS = {  # what to call with a wrong value, and the wrong values
    "generate num": (lambda v: ctm.generate(CTM, v), COUNTS),
    "generate steps": (lambda v: ctm.generate(CTM, 2, steps=v), COUNTS[1:]),  # None: not given
    "generate batch_size": (lambda v: ctm.generate(CTM, 2, batch_size=v), COUNTS),
    "generate gamma": (lambda v: ctm.generate(CTM, 2, gamma=v), [*NUMBERS[1:], 1.1]),
    "generate seed": (lambda v: ctm.generate(CTM, 2, seed=v), [*SEEDS, [0], ["0", "1"], [0, -1], *MANY_SEEDS]),
    "generate labels": (lambda v: ctm.generate(CTM, 2, condition=v), [*WRONG_LABELS, 3, -2]),
    "generate device": (lambda v: ctm.generate(CTM, 2, device=v), ["nope", "meta", torch.device("meta"), 1.5, "cpu:x"]),
    "generate dtype": (lambda v: ctm.generate(CTM, 2, dtype=v), ["float32", torch.int64, None, float]),
    "generate grid": (
        lambda v: ctm.generate(CTM, 2, grid=v),
        [[80.0, 0.002], "karras", 3, torch.ones(3), torch.tensor([80, 1]), torch.ones(1)],
    ),
    "stream start": (lambda v: list(sampling.stream(CTM, 2, start=v)), [None, "0", True, -1, 3, 0.5]),
    "gamma": (lambda v: sampling.gamma(CTM, X, GRID, gamma=v), [*NUMBERS, 1.1]),
    "gamma form": (lambda v: sampling.gamma(CTM, X, GRID, form=v), ["other", None, 1]),
    "gamma x": (lambda v: sampling.gamma(CTM, v, GRID), WRONG_X),
    "euler x": (lambda v: sampling.euler(CTM, v, GRID), WRONG_X),
    "two_level": (
        lambda v: sampling.two_level(CTM, X, v),
        [None, [80, 1, 2, 0.1], torch.ones(4), torch.ones(2, 2), torch.tensor([80.0, 0.002])],
    ),
    "heun churn": (lambda v: sampling.heun(CTM, X, GRID, churn=v), NUMBERS),
    "heun churn_max": (lambda v: sampling.heun(CTM, X, GRID, churn_max=v), [None, "1", math.nan, -1]),
    "ancestral eta": (lambda v: sampling.ancestral(CTM, X, GRID, eta=v), [*NUMBERS, 1.5]),
    "jump_to_many t": (lambda v: sampling.jump_to_many(CTM, X, v, torch.ones(2) / 9), WRONG_LEVELS),
    "jump_to_many levels": (
        lambda v: sampling.jump_to_many(CTM, X, 1.0, v),
        [None, 0.5, [0.5], torch.ones(0), torch.tensor([2.0])],
    ),
    "jump_to_many batch_size": (lambda v: sampling.jump_to_many(CTM, X, 1.0, torch.ones(2) / 9, batch_size=v), COUNTS),
    "restore rounds": (lambda v: sampling.restore(CTM, X, GRID, X, lambda x: x, rounds=v), COUNTS),
    "restore known": (lambda v: sampling.restore(CTM, X, GRID, v, lambda x: x), WRONG_X),
    "tune steps": (lambda v: ctm.tune_grid(CTM, v), [*COUNTS, 1]),
    "tune gammas": (lambda v: ctm.tune_grid(CTM, 2, gammas=v), [None, "0", (), 0.5, (2.0,), ("0",), (None,)]),
    "tune measure": (lambda v: ctm.tune_grid(CTM, 2, measure=v), [None, "other", 3]),
    "flow num": (lambda v: sampling.FlowDistance(CTM, num=v), [*COUNTS, 1]),
    "karras steps": (lambda v: ctm.karras_grid(v), COUNTS),
    "karras ends": (lambda v: ctm.karras_grid(2, v), [*NUMBERS, 0, 90]),
    "karras rho": (lambda v: ctm.karras_grid(2, rho=v), [*NUMBERS, 0.5]),
    "mixture std": (lambda v: GaussianMixture(torch.zeros(1, 2), v, torch.ones(1)), [*NUMBERS, 0]),
    "mixture n": (lambda v: MIXTURE.sample(v), [None, "2", -1, 0.5]),
    "mixture seed": (lambda v: MIXTURE.sample(2, v), SEEDS),
    "mixture log_prob": (lambda v: MIXTURE.log_prob(X, v), WRONG_LEVELS),
    "log_density x": (lambda v: likelihood.log_density(CTM, v), [*WRONG_X, torch.zeros(2, 2, dtype=torch.uint8)]),
    "log_density labels": (lambda v: likelihood.log_density(CTM, X, v), WRONG_LABELS),
    "log_density rtol": (lambda v: likelihood.log_density(CTM, X, rtol=v), [*NUMBERS, 0]),
    "log_density probes": (lambda v: likelihood.log_density(CTM, X, probes=v), COUNTS),
    "log_density seed": (lambda v: likelihood.log_density(CTM, X, seed=v), SEEDS),
    "bits_per_dim": (lambda v: likelihood.bits_per_dim(CTM, v), [None, np.zeros((2, 2), np.uint8), X]),
    "encode": (lambda v: likelihood.encode(CTM, v), WRONG_X),
    "decode": (lambda v: likelihood.decode(CTM, v), WRONG_X),
    "residual": (lambda v: likelihood.residual(lambda x, t: x, X, v, X), WRONG_LEVELS),
    "guidance scale": (lambda v: guidance.ClassifierFree(CTM, v), [None, "2", True, math.nan, math.inf, [2.0]]),
    "at_guidance": (lambda v: at_guidance(GUIDED, v), [None, "2", True, math.nan, [2.0]]),
    "limited": (lambda v: guidance.Limited(guidance.ClassifierFree(CTM, 2), v, 1), [None, "0", -1, 1, math.nan]),
    "thresholded": (lambda v: guidance.Thresholded(CTM, v), [*NUMBERS, 0, 1.5]),
    "descent": (lambda v: guidance.LossDescent(CTM, lambda x: x.sum(1), rate=v), [None, "1", math.nan]),
    "rejection": (lambda v: guidance.rejection_sample(CTM, v, lambda x: x), [None, [0.5], [-1], "01", []]),
    "rejection threshold": (
        lambda v: guidance.rejection_sample(CTM, [0], lambda x: x, threshold=v),
        [*NUMBERS[1:], 1.5],
    ),
    "edit denoise": (lambda v: editing.denoise(CTM, X, v), [*NUMBERS, 0, 90]),
    "stroke": (lambda v: editing.stroke(CTM, X, v), [*NUMBERS, 0, 90]),
    "interpolate": (lambda v: editing.interpolate(CTM, IMAGE, IMAGE, v), [*COUNTS, 1]),
    "interpolate image": (lambda v: editing.interpolate(CTM, v, IMAGE, 2), WRONG_X),
    "vary amount": (lambda v: editing.variations(CTM, IMAGE, 2, v), [*NUMBERS, 1.5]),
    "vary image": (lambda v: editing.variations(CTM, v, 2, 0.5), WRONG_X),
}


@pytest.mark.parametrize("name", CALLS)
def test_case_27_every_public_function_refuses_in_a_sentence(name):
    call, values = CALLS[name]
    for value in values:
        try:
            call(value)
        except ValueError as error:
            words = str(error)
            assert len(words.split()) > 4, f"{name} with {value!r} is no sentence: {words}"
            assert "\n" not in words
            continue
        pytest.fail(f"{name} took {value!r}")


def test_case_27_numbers_of_any_library_are_taken():
    expected = ctm.generate(CTM, 2, steps=2, gamma=0.5, seed=3)
    for kind in (np.float64, np.float32, torch.tensor):
        assert torch.equal(
            ctm.generate(CTM, np.int64(2), steps=np.int32(2), gamma=kind(0.5), seed=np.int64(3)), expected
        )
    for several in (np.array([3, 4]), torch.tensor([3, 4]), (3, 4), range(3, 5), [torch.tensor(3), np.int16(4)]):
        assert torch.equal(ctm.generate(CTM, 2, seed=several), ctm.generate(CTM, 2, seed=[3, 4]))
    for one in (torch.tensor(3), np.array(3), np.uint8(3)):
        assert torch.equal(ctm.generate(CTM, 2, seed=one), ctm.generate(CTM, 2, seed=3))


def test_states_of_any_layout_and_precision():
    """Half precision, strides, gradients and no samples at all."""
    for x in (X.half(), X.double(), torch.randn(2, 4)[:, ::2], X.clone().requires_grad_(), X[:0]):
        for made in (CTM, DIFFUSION, MIXTURE):
            if x.dtype == torch.float16 and made is MIXTURE:
                continue
            out = made.denoise(x, 1.0)
            assert (out.shape, out.dtype) == (x.shape, x.dtype)
            assert sampling.euler(made, x, GRID).shape == x.shape
        assert CTM.jump(x, 1, 0.5).shape == x.shape
        assert sampling.gamma(CTM, x, GRID, gamma=0.5).shape == x.shape


def test_what_is_right_already_is_returned_as_it_is():
    """No copy, and nothing to wait for on a device: a meta tensor holds nothing that could be looked at."""
    t, labels = torch.ones(2), torch.tensor([0, 1])
    assert as_levels(t, X) is t
    assert as_labels(labels, X) is labels
    assert as_state(X) is X
    far = torch.empty(2, 2, device="meta")
    assert as_levels(torch.empty(2, device="meta"), far).device.type == "meta"
    assert as_levels(1.0, far).device.type == "meta"
    assert as_labels([0, 1], far).device.type == "meta"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: as_number("0.5", "gamma", 0, 1, why="0 is none"),
            "gamma must be a finite number in [0, 1], got '0.5' (str): 0 is none",
        ),
        (lambda: as_number(1.2, "gamma", 0, 1), "gamma must be in [0, 1], got 1.2"),
        (lambda: as_number(0, "std", 0, above=True), "std must be above 0, got 0"),
        (lambda: as_count(1.5, "steps", 2), "steps must be a whole number of at least 2, got 1.5"),
        (lambda: as_count(None, "steps"), "steps must be a whole number of at least 1, got None"),
        (lambda: as_seed(0.5), "seed must be a whole number, got 0.5 (float)"),
        (
            lambda: as_seed(torch.tensor(2.5)),
            "seed must be a whole number, got 2.5: torch.float32 of shape () (Tensor)",
        ),
        (
            lambda: ctm.generate(CTM, 3, seed={1, 2, 3}),
            "seeds must be in an order: a list, a tuple, a range, an array or a tensor, got {1, 2, 3} (set)",
        ),
        (
            lambda: ctm.generate(CTM, 3, condition=1, steps=3, grid=ctm.karras_grid(5)),
            "grid gives the 6 levels themselves: leave steps out, got 3 (int)",
        ),
        (
            lambda: sampling.stream(CTM, 3, steps=2, grid=ctm.karras_grid(2)),
            "grid gives the 3 levels themselves: leave steps out, got 2 (int)",
        ),
        (
            lambda: as_levels("1", X),
            "t is a noise level: one number, or a tensor of shape (2,), one for each sample; got '1' (str)",
        ),
        (
            lambda: as_levels(np.ones(3), X),
            "t is a noise level: one number, or a tensor of shape (2,), one for each sample; "
            "got float64 of shape (3,) (ndarray)",
        ),
        (
            lambda: as_labels(np.ones(2), X),
            "labels must be whole numbers (int64): one for all, or 2 of them, one for each sample; "
            "got float64 of shape (2,) (ndarray)",
        ),
        (
            lambda: as_state(np.ones(2)),
            "x must be a tensor (B, …), got float64 of shape (2,) (ndarray): torch.as_tensor makes one",
        ),
    ],
)
def test_the_sentences(call, sentence):
    with pytest.raises(ValueError, match=r"must|is|gives") as caught:
        call()
    assert str(caught.value) == sentence


def test_a_number_keeps_the_digits_of_the_state():
    """0.1 as a level of a float64 state is Python's 0.1, not float32's."""
    x = torch.zeros(2, 3, dtype=torch.float64)
    for value in (0.1, [0.1, 0.1], np.float64(0.1), torch.tensor(0.1, dtype=torch.float64)):
        assert as_levels(value, x).tolist() == [0.1, 0.1]


@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["large", "small"])
def test_whole_numbers_beyond_floating_point_are_refused_in_a_sentence(value):
    for take, words in ((as_count, "a whole number of at least 1"), (as_number, "a finite number")):
        with pytest.raises(ValueError, match=f"n must be {words}, got -?10000000") as caught:
            take(value, "n")
        assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match=r"n must be (below 2\^64|at least 0), got -?1000") as caught:
        as_seed(value, "n")
    assert len(str(caught.value)) < 200
