"""The scheduler: what each request gets is what it would get alone; nobody starves; what fails, ends or stops does so alone."""

import threading
import time
import warnings
from functools import partial

import pytest
import torch

from ctm import sampling
from ctm.guidance import ClassifierFree
from ctm.models import load_model
from ctm.noise import karras_grid, to_zero
from ctm.requests import Denoise, Jump
from ctm.sampling.image_noise import ImageNoise
from ctm.sampling.marking import Marks
from ctm.serve.plans import Part, choose, joinable
from ctm.serve.scheduler import Scheduler, shares
from ctm.serve.tickets import CancelledError, Expired, Joinable, QueueFull, Stopped

KINDS = {
    "gamma": lambda steps: (partial(sampling.gamma.steps, gamma=0.3), karras_grid(steps)),
    "consistency": lambda steps: (sampling.consistency.steps, karras_grid(steps)),
    "heun": lambda steps: (sampling.heun.steps, to_zero(karras_grid(steps))),
    "dpmpp_2m": lambda steps: (sampling.dpmpp_2m.steps, to_zero(karras_grid(steps))),
    "ancestral": lambda steps: (sampling.ancestral.steps, to_zero(karras_grid(steps))),
}
SAMPLERS = {
    "gamma": partial(sampling.gamma, gamma=0.3),
    "consistency": sampling.consistency,
    "heun": sampling.heun,
    "dpmpp_2m": sampling.dpmpp_2m,
    "ancestral": sampling.ancestral,
}


@pytest.fixture(scope="module")
def digits():
    return load_model("models/digits-ctm")


@pytest.fixture
def scheduler(digits):
    made = Scheduler(digits, batch_size=16, queue_limit=400)
    yield made
    assert made.stop(finish=False, timeout=10)


def plan(model, num=1, steps=2, seed=0, labels=None, kind="gamma"):
    noise = ImageNoise(seed, range(num))
    make, grid = KINDS[kind](steps)
    return make(80 * noise(torch.empty(num, *model.shape)), grid, condition=labels, noise=noise)


def forty():
    """Forty asks: samplers, numbers of steps and images, seeds, with labels and without."""
    for number in range(40):
        num = 1 + (7 * number) % 5 if number else 20  # the first is larger than a call
        labels = None if number % 4 == 0 else (torch.arange(num) + number) % 10
        yield {
            "num": num,
            "steps": 1 + number % 6,
            "seed": number,
            "labels": labels,
            "kind": list(KINDS)[number % len(KINDS)],
        }


def alone(model, ask):
    """What `ctm.generate` makes of an ask."""
    kind, grid = ask["kind"], KINDS[ask["kind"]](ask["steps"])[1]
    labels = -1 if ask["labels"] is None else ask["labels"]
    options = {"grid": grid, "sampler": SAMPLERS[kind], "seed": ask["seed"], "condition": labels}
    return sampling.generate(model, ask["num"], **options)


def test_forty_mixed_requests_under_load_get_what_generate_makes(digits, scheduler):
    asks = list(forty())
    calls = []
    scheduler._observe = lambda rows, seconds: calls.append(rows)
    tickets = [scheduler.submit(plan(digits, **ask), ask["num"]) for ask in asks]
    for ask, ticket in zip(asks, tickets, strict=True):
        torch.testing.assert_close(ticket.result(60), alone(digits, ask), rtol=1e-4, atol=1e-4)
    assert max(calls) == 16
    assert len(calls) < sum(calls) / 8  # most calls are shared
    assert scheduler.rows == 0


def test_a_request_alone_gets_what_generate_makes(digits, scheduler):
    ask = {"num": 3, "steps": 3, "seed": 5, "labels": torch.tensor([1, 2, 3]), "kind": "heun"}
    torch.testing.assert_close(scheduler.submit(plan(digits, **ask), 3).result(60), alone(digits, ask))


def test_a_row_joins_at_the_next_call(small_ctm):
    """Its calls stand between the calls of one that began long before it."""
    gate, joined, calls = threading.Semaphore(0), threading.Event(), []

    class Slow:
        shape = small_ctm.shape

        def jump(self, x, t, s, condition=None):
            calls.append(len(x))
            joined.set()
            assert gate.acquire(timeout=10)
            return small_ctm.jump(x, t, s, condition)

    scheduler = Scheduler(Slow(), batch_size=8)
    first = scheduler.submit(plan(small_ctm, 2, steps=6), 2)
    joined.wait(10)
    second = scheduler.submit(plan(small_ctm, 3, steps=2), 3)
    for _ in range(6):
        gate.release()
    assert first.result(10).shape[0] == 2
    assert second.result(10).shape[0] == 3
    assert calls == [2, 5, 5, 2, 2, 2]
    scheduler.stop()


@pytest.mark.parametrize(
    ("left", "most", "expected"),
    [
        ([5], 8, [5]),
        ([100], 8, [8]),
        ([100, 1], 8, [7, 1]),
        ([1, 100, 1], 8, [1, 6, 1]),
        ([100, 100], 8, [4, 4]),
        ([1] * 12, 8, [1] * 8 + [0] * 4),
        ([3, 3, 3], 8, [3, 3, 2]),
    ],
)
def test_a_call_is_shared_fairly(left, most, expected):
    assert shares(left, most) == expected


def test_a_small_request_passes_a_large_one_and_the_large_one_goes_on(digits, scheduler):
    """One image beside 300: it is in each next call. And 300 beside a stream of small ones are done all the same."""
    ended = []
    large = scheduler.submit(plan(digits, 300, steps=6), 300)
    large.future.add_done_callback(lambda _: ended.append("large"))
    small = scheduler.submit(plan(digits, 1, steps=6), 1)
    small.future.add_done_callback(lambda _: ended.append("small"))
    small.result(60)
    assert ended == ["small"]
    asked = 0
    while not large.future.done():
        batch = [scheduler.submit(plan(digits, 1, steps=1), 1) for _ in range(16)]
        for ticket in batch:
            ticket.result(60)
        asked += 1
        assert asked < 500
    assert large.result(0).shape[0] == 300


def test_a_full_queue_refuses_with_a_time_and_takes_again_when_it_is_free(digits):
    scheduler = Scheduler(digits, queue_limit=4)
    with pytest.raises(ValueError, match="5 images are more than the queue holds, 4: ask for fewer"):
        scheduler.submit(plan(digits, 5), 5)
    tickets = [scheduler.submit(plan(digits, 2, steps=40, kind="heun"), 2) for _ in range(2)]
    with pytest.raises(QueueFull, match="1 more images do not fit in the queue of 4") as refused:
        scheduler.submit(plan(digits, 1), 1)
    assert refused.value.retry_after >= 1
    for ticket in tickets:
        ticket.result(60)
    assert scheduler.submit(plan(digits, 4), 4).result(60).shape[0] == 4
    assert scheduler.stop(timeout=10)


def test_a_cancelled_request_frees_its_rows_and_ends_its_plan(digits):
    scheduler = Scheduler(digits, queue_limit=8)
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield Denoise(torch.zeros(8, *digits.shape), torch.ones(8))
        finally:
            closed.set()

    ticket = scheduler.submit(endless(), 8)
    with pytest.raises(QueueFull):
        scheduler.submit(plan(digits), 1)
    assert ticket.cancel()
    assert scheduler.rows == 0
    assert scheduler.submit(plan(digits, 8), 8).result(60).shape[0] == 8
    assert closed.wait(10)
    with pytest.raises(CancelledError):
        ticket.result(1)
    scheduler.stop()


def test_a_request_ends_at_its_deadline(digits, scheduler):
    def endless():
        while True:
            yield Denoise(torch.zeros(1, *digits.shape), torch.ones(1))

    started = time.monotonic()
    with pytest.raises(Expired, match="was not done at its deadline"):
        scheduler.submit(endless(), 1, deadline=0.2).result(30)
    assert 0.2 <= time.monotonic() - started < 5
    assert scheduler.rows == 0


def test_a_call_that_fails_fails_its_own_requests_only(digits, scheduler):
    """A label that the network does not know, in the same call as nine others; and a plan that raises."""
    held = scheduler.submit(plan(digits, 100, steps=4), 100)  # so that the next ones meet in a call
    good = [scheduler.submit(plan(digits, seed=seed, labels=torch.tensor([seed])), 1) for seed in range(9)]
    bad = scheduler.submit(plan(digits, labels=torch.tensor([77])), 1)

    def broken():
        yield Jump(torch.zeros(1, *digits.shape), torch.ones(1), torch.ones(1) / 2)
        raise ArithmeticError("a fault of the plan")

    broke = scheduler.submit(broken(), 1)
    wrong = scheduler.submit((number for number in [3]), 1)
    with pytest.raises(ValueError, match="label 77"):
        bad.result(60)
    with pytest.raises(ArithmeticError, match="a fault of the plan"):
        broke.result(60)
    with pytest.raises(TypeError, match="a plan yields requests"):
        wrong.result(60)
    for seed, ticket in enumerate(good):
        expected = sampling.generate(digits, 1, steps=2, gamma=0.3, seed=seed, condition=seed)
        torch.testing.assert_close(ticket.result(60), expected, rtol=1e-4, atol=1e-4)
    assert held.result(60).shape[0] == 100
    assert scheduler.rows == 0


def test_stop_finishes_what_runs_and_takes_no_more(digits):
    scheduler = Scheduler(digits)
    ticket = scheduler.submit(plan(digits, 30, steps=30, kind="heun"), 30)
    assert scheduler.stop(timeout=60)
    assert ticket.future.done()
    assert ticket.result(0).shape[0] == 30
    with pytest.raises(Stopped, match="takes no more requests"):
        scheduler.submit(plan(digits), 1)


def test_stop_at_once_fails_what_runs(digits):
    scheduler = Scheduler(digits)

    def endless():
        while True:
            yield Denoise(torch.zeros(1, *digits.shape), torch.ones(1))

    ticket = scheduler.submit(endless(), 1)
    assert scheduler.stop(finish=False, timeout=10)
    with pytest.raises(Stopped):
        ticket.result(1)


def test_a_guided_model_is_scheduled_as_any_other(digits):
    model = ClassifierFree(digits, 2.0)
    scheduler = Scheduler(model)
    labels = torch.tensor([3, 4])
    made = scheduler.submit(plan(digits, 2, labels=labels), 2).result(60)
    expected = sampling.generate(model, 2, steps=2, gamma=0.3, condition=labels)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    scheduler.stop()


def joined_plan(model, num=1, steps=2, seed=0, label=None, gamma=0.3, guidance=None, marks=None):
    """A plan that can be made with others, as a request's is."""
    method = choose(model, steps=steps, gamma=gamma, guidance=guidance)
    labels = None if label is None else torch.full((num,), label)
    return joinable(model, method, Part(num, seed, labels, marks), torch.device("cpu"))


class Counted:
    """Plans of a model's requests, with a list of how many requests each plan was made of."""

    def __init__(self):
        self.made = []

    def __call__(self, model, **ask):
        plan = joined_plan(model, **ask)

        def make(parts):
            self.made.append(len(parts))
            return plan.make(parts)

        return Joinable(plan.kind, plan.part, make)


def meeting(scheduler, model, asks, rows=16):
    """Tickets of plans that wait at the same time, behind a request that holds the network up."""
    entered, go_on = threading.Event(), threading.Event()

    def holding():
        yield Jump(torch.zeros(rows, *model.shape), torch.ones(rows), torch.ones(rows) / 2)
        entered.set()
        assert go_on.wait(30)
        return torch.zeros(rows)

    scheduler.submit(holding(), rows)
    assert entered.wait(30)
    tickets = [scheduler.submit(plan, count) for plan, count in asks]
    scheduler.met = tickets
    go_on.set()
    return tickets


def test_like_requests_are_made_together_and_get_what_generate_makes(digits, scheduler):
    """Of one method they are one plan, up to a call's rows; those of another number of steps, or with guidance, are others."""
    plans, key = Counted(), bytes(range(32))
    asks = [{"num": 1 + seed % 3, "seed": seed, "label": seed % 10} for seed in range(12)]
    asks += [{"num": 2, "seed": 20 + seed, "steps": 4, "label": seed} for seed in range(3)]
    asks += [{"num": 2, "seed": 30 + seed, "guidance": 2.0, "label": seed} for seed in range(3)]
    asks += [{"seed": 40, "label": 4, "marks": Marks.of((key, [bytes(16)]), 1)}]
    asks += [{"seed": 40, "label": 5, "marks": Marks.of((key, [bytes(15) + b"a"]), 1)}]
    tickets = meeting(scheduler, digits, [(plans(digits, **ask), ask.get("num", 1)) for ask in asks])
    for ask, ticket in zip(asks, tickets, strict=True):
        guided = ClassifierFree(digits, ask["guidance"]) if "guidance" in ask else digits
        watermark = None if "marks" not in ask else (key, [bytes(16) if ask["label"] == 4 else bytes(15) + b"a"])
        options = {"steps": ask.get("steps", 2), "gamma": 0.3, "seed": ask["seed"], "condition": ask["label"]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of γ beside a mark
            expected = sampling.generate(guided, ask.get("num", 1), **options, watermark=watermark)
        torch.testing.assert_close(ticket.result(60), expected, rtol=1e-4, atol=1e-4)
    assert sorted(plans.made) == [2, 3, 3, 4, 8]  # 16 rows a call: 8 requests of 1, 2, 3 … images have 15, the others 9
    assert scheduler.rows == 0


def test_a_request_of_several_that_is_given_up_costs_the_network_nothing(digits, scheduler):
    """Its rows are in no call after the next, also those that guidance asks for twice; the others' images stay as they are."""
    calls = []

    def observe(rows, seconds):
        calls.append(rows)
        if rows == 8:  # the first call of the four: two of them are given up
            scheduler.met[1].cancel()
            scheduler.met[2].cancel()

    scheduler._observe = observe
    asks = [(joined_plan(digits, seed=seed, label=seed, steps=5, guidance=2.0), 1) for seed in range(4)]
    tickets = meeting(scheduler, digits, asks)
    for seed in (0, 3):
        options = {"steps": 5, "gamma": 0.3, "seed": seed, "condition": seed}
        expected = sampling.generate(ClassifierFree(digits, 2.0), 1, **options)
        torch.testing.assert_close(tickets[seed].result(60), expected, rtol=1e-4, atol=1e-4)
    assert calls == [16, 8, 4, 4, 4, 4]
    with pytest.raises(CancelledError):
        tickets[1].result(1)
    assert scheduler.rows == 0


def test_of_requests_that_are_made_together_the_wrong_one_fails_alone(digits, scheduler):
    """A label that the network does not know, and a part that no plan can be made of."""
    plans = Counted()
    asks = [(plans(digits, seed=seed, label=seed), 1) for seed in range(4)]
    bad = joined_plan(digits, label=77)
    broken = Joinable(bad.kind, None, bad.make)
    tickets = meeting(scheduler, digits, [*asks[:2], (bad, 1), *asks[2:]])
    others = meeting(scheduler, digits, [*asks[:2], (broken, 1), *asks[2:]])
    with pytest.raises(ValueError, match="label 77"):
        tickets[2].result(60)
    with pytest.raises(AttributeError):
        others[2].result(60)
    for found in (tickets, others):
        for seed, ticket in enumerate(found[:2] + found[3:]):
            expected = sampling.generate(digits, 1, steps=2, gamma=0.3, seed=seed, condition=seed)
            torch.testing.assert_close(ticket.result(60), expected, rtol=1e-4, atol=1e-4)
    assert plans.made.count(5) == 2
    assert scheduler.rows == 0


def test_one_of_several_ends_at_its_deadline_and_the_others_go_on(digits, scheduler):
    entered, go_on = threading.Event(), threading.Event()

    def make(parts):
        x = torch.zeros(len(parts), *digits.shape)
        yield Denoise(x, torch.ones(len(x)))
        entered.set()
        assert go_on.wait(30)
        yield Denoise(x, torch.ones(len(x)))
        return torch.tensor(parts)

    plans = [(Joinable("one", number, make), 1) for number in range(3)]
    blocked, free = threading.Event(), threading.Event()

    def holding():
        yield Denoise(torch.zeros(1, *digits.shape), torch.ones(1))
        blocked.set()
        assert free.wait(30)
        return torch.zeros(1)

    scheduler.submit(holding(), 1)
    assert blocked.wait(30)
    tickets = [scheduler.submit(plan, rows, 0.3 if number == 1 else None) for number, (plan, rows) in enumerate(plans)]
    free.set()
    assert entered.wait(30)
    time.sleep(0.4)
    go_on.set()
    with pytest.raises(Expired):
        tickets[1].result(30)
    assert [int(tickets[number].result(30)) for number in (0, 2)] == [0, 2]


def test_many_small_ones_that_are_made_together_do_not_shut_a_large_one_out():
    assert shares([64, 300], 64, [64, 1]) == [64, 0]
    assert shares([300, 64], 64, [1, 64]) == [1, 63]
    assert shares([300, 8], 64, [1, 8]) == [56, 8]
