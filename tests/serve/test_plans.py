"""What a request becomes: the images of `ctm.generate`, guidance as the guided model has it, previews, edits, and functions that
call the model back."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ctm import editing, sampling
from ctm.guidance import ClassifierFree
from ctm.models import load_model
from ctm.requests import run
from ctm.sampling.driving import drive
from ctm.sampling.generation import class_labels
from ctm.sampling.marking import Marks
from ctm.serve.plans import SAMPLERS, Part, choose, generation, guided, watched
from ctm.serve.scheduler import Scheduler
from ctm.serve.through import submit_function
from ctm.serve.tickets import CancelledError, Expired


@pytest.fixture(scope="module")
def digits():
    return load_model("models/digits-ctm")


@pytest.mark.parametrize(("steps", "gamma"), [(None, None), (1, 0.0), (4, None), (3, 0.5), (5, 1.0)])
def test_a_plan_makes_the_images_of_generate(digits, steps, gamma):
    method = choose(digits, steps=steps, gamma=gamma)
    labels = class_labels(digits, 3, None, 7)
    made = drive(digits, generation(digits, method, [Part(3, 7, labels)]))
    assert torch.equal(made, sampling.generate(digits, 3, steps=steps or 1, gamma=gamma, seed=7))


def test_a_marked_plan_makes_the_marked_images_of_generate(digits):
    key, nonces = b"k" * 32, [bytes([i]) * 16 for i in range(3)]
    plan = generation(digits, choose(digits), [Part(3, 0, torch.tensor([1, 2, 3]), Marks.of((key, nonces), 3))])
    expected = sampling.generate(digits, 3, condition=torch.tensor([1, 2, 3]), watermark=(key, nonces))
    assert torch.equal(drive(digits, plan), expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_number_of_calls_is_the_plans(digits, sampler):
    method = choose(digits, sampler=sampler, steps=5)
    calls = []
    plan = watched(
        generation(digits, method, [Part(1, 0)]), method.calls, 3, lambda index, images: calls.append((index, images))
    )
    asked = []
    run(plan, lambda request: (asked.append(request), request.x * 0)[1])
    assert len(asked) == method.calls
    assert [index for index, _ in calls] == [0, 1, 2]


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("sampler", ["gamma", "heun"])
def test_guidance_of_a_plan_is_that_of_the_guided_model(digits, scale, sampler):
    labels = torch.tensor([3, 4])
    method = choose(digits, sampler=sampler, steps=4, guidance=scale)
    made = drive(digits, generation(digits, method, [Part(2, 1, labels)]))
    options = {"grid": method.levels, "sampler": getattr(sampling, sampler), "condition": labels, "seed": 1}
    expected = sampling.generate(ClassifierFree(digits, scale), 2, **options)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


def test_guidance_is_exact_on_a_mixture(mixture_2d):
    """In float64, where no rounding hides a wrong combination: jumps and denoisers."""
    x, labels = 80 * torch.randn(5, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    grid = torch.tensor([80.0, 3.0, 0.5, 0.002], dtype=torch.float64)
    plan = guided(sampling.heun.steps(x, grid, condition=labels), 1.7)
    expected = sampling.heun(ClassifierFree(mixture_2d, 1.7), x, grid, condition=labels)
    torch.testing.assert_close(drive(mixture_2d, plan), expected, rtol=1e-12, atol=1e-12)


def test_previews_come_nearer_to_the_image(digits):
    """They are guesses of the clean image: the last one is nearer than the first."""
    seen = {}
    method = choose(digits, sampler="heun", steps=18)
    plan = watched(generation(digits, method, [Part(8, 0, torch.arange(8))]), method.calls, 3, seen.__setitem__)
    made = drive(digits, plan)
    distances = [float((seen[index] - made).square().mean()) for index in range(3)]
    assert distances[0] > distances[1] > distances[2]
    seen.clear()
    method = choose(digits, steps=4)
    made = drive(digits, watched(generation(digits, method, [Part(8, 0)]), method.calls, 3, seen.__setitem__))
    assert len(seen) == 3
    assert float((seen[2] - made).square().mean()) < float((seen[0] - made).square().mean())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "foo"}, "sampler must be one of gamma"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"steps": 129}, "steps must be at most 128 here, got 129"),
        ({"steps": 1, "sampler": "heun"}, "steps must be a whole number of at least 2"),
        ({"gamma": 1.5}, r"gamma must be in \[0, 1\]"),
        ({"gamma": 0.5, "sampler": "heun"}, "gamma belongs to γ-sampling"),
        ({"guidance": float("nan")}, "guidance must be a finite number"),
    ],
)
def test_a_method_that_cannot_be_is_refused(digits, options, words):
    with pytest.raises(ValueError, match=words):
        choose(digits, **options)


def test_a_diffusion_model_is_sampled_by_heun_and_does_not_jump():
    model = load_model("models/digits-teacher")
    assert choose(model).sampler == "heun"
    assert choose(model).calls == 35
    with pytest.raises(ValueError, match="needs a model that jumps"):
        choose(model, sampler="gamma")


def test_an_edit_as_a_plan_is_the_edit(digits):
    image = sampling.generate(digits, 1, condition=3)
    known = torch.ones(1, 8, 8, dtype=torch.bool)
    known[:, :4] = False
    operator = editing.masking(known)
    y = operator.A(image).expand(2, -1, -1, -1)
    options = {"steps": 5, "rounds": 2, "seed": 4, "condition": torch.tensor([3, 3])}
    made = drive(digits, editing.replacing(digits, operator, y, **options))
    assert torch.equal(made, editing.replace(digits, operator, y, **options))


@pytest.mark.slow
def test_a_function_that_calls_the_model_back_shares_its_calls(digits):
    calls = []
    scheduler = Scheduler(digits, observe=lambda rows, seconds: calls.append(rows))
    image = sampling.generate(digits, 1, condition=3)[0]
    with ThreadPoolExecutor(2) as threads:
        work = [
            submit_function(scheduler, threads, lambda m, s=s: editing.variations(m, image, 2, 0.3, label=3, seed=s), 2)
            for s in range(2)
        ]
        assert scheduler.rows == 4
        for seed, future in enumerate(work):
            expected = editing.variations(digits, image, 2, 0.3, label=3, seed=seed)
            torch.testing.assert_close(future.result(60), expected, rtol=2e-3, atol=2e-3)  # of the solver: 1e-4 a step
    assert scheduler.rows == 0
    assert max(calls) > 2
    scheduler.stop()


def test_a_function_ends_when_it_is_cancelled_or_at_its_deadline(digits):
    scheduler = Scheduler(digits)

    def endless(model):
        while True:
            model.denoise(torch.zeros(1, *model.shape), torch.ones(1))

    with ThreadPoolExecutor(2) as threads:
        cancelled = submit_function(scheduler, threads, endless, 3)
        late = submit_function(scheduler, threads, endless, 2, deadline=0.3)
        assert cancelled.cancel()
        assert scheduler.rows == 2
        with pytest.raises(Expired):
            late.result(10)
        with pytest.raises(CancelledError):
            cancelled.result(1)
    assert scheduler.rows == 0
    assert scheduler.stop(timeout=10)
