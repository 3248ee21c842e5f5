"""Screening: thresholds, small pictures, and filters that fail in every way: the answer is then no."""

import math
import threading
import time

import numpy as np
import pytest

from ctm.safety import Policy, Screen
from ctm.safety.filters import Limits


def picture(side=64, value=0):
    return np.full((side, side, 3), value, np.uint8)


class Brightness:
    """A filter with a closed form: its score is the mean of the pixels over 255."""

    name, checksum, categories = "bright", "0", ("light",)

    def __init__(self, smallest=1, batch=4):
        self.limits, self.calls = Limits(smallest, batch), []

    def __call__(self, images):
        self.calls.append(len(images))
        return [{"light": float(image.mean() / 255)} for image in images]


class Broken(Brightness):
    """`act` of the first pixel's value instead of a score."""

    name = "broken"

    def __init__(self, act):
        super().__init__()
        self.act = act

    def __call__(self, images):
        self.calls.append(len(images))
        return [{"light": self.act(int(image[0, 0, 0]))} for image in images]


def policy_for(name, **values):
    return Policy.of({"thresholds": {name: {"light": {"hold": 0.2, "block": 0.8}}}, **values})


def test_thresholds_pass_hold_and_block_from_their_value_on():
    screen = Screen(policy_for("bright"), [Brightness()])
    verdicts = screen.images([picture(value=value) for value in (0, 50, 51, 203, 204, 255)])
    assert [verdict.decision for verdict in verdicts] == ["pass", "pass", "hold", "hold", "block", "block"]
    assert verdicts[2].scores == {"bright": {"light": 0.2}}
    assert verdicts[2].reason == "bright: light 0.2, from 0.2 on: hold"
    assert not any(verdict.unseen for verdict in verdicts)
    assert screen.counts["bright", "ran"] == 2  # six pictures, at most four a call


def test_a_threshold_left_out_never_decides():
    policy = Policy.of({"thresholds": {"bright": {"light": {"hold": 0.2}}}})
    assert Screen(policy, [Brightness()]).images([picture(value=255)])[0].decision == "hold"


def test_without_a_filter_everything_passes_unseen():
    verdict = Screen(Policy.of({"thresholds": {}}), []).images([picture()])[0]
    assert (verdict.decision, verdict.unseen) == ("pass", True)


@pytest.mark.parametrize("rule", ["pass", "hold", "block"])
def test_small_pictures_go_by_the_policy_and_are_marked_unseen(rule):
    screen = Screen(policy_for("bright", small_images=rule), [Brightness(smallest=64)])
    small, large = screen.images([picture(63, 255), picture(64, 0)])
    assert (small.decision, small.unseen) == (rule, True)
    assert "judges no picture under 64 px" in small.reason
    assert (large.decision, large.unseen) == ("pass", False)


def test_the_strictest_filter_decides():
    policy = Policy.of({"thresholds": {name: {"light": {"hold": 0.2}} for name in ("bright", "dark")}})
    dark = Brightness()
    dark.name = "dark"
    dark_screen = Screen(policy, [Brightness(smallest=64), dark])
    verdict = dark_screen.images([picture(32, 255)])[0]
    assert (verdict.decision, verdict.unseen) == ("hold", True)
    assert verdict.reason == "dark: light 1, from 0.2 on: hold"


def test_uploads_are_judged_alike_and_the_reason_says_so():
    screen = Screen(policy_for("bright"), [Brightness()])
    assert screen.images([picture(value=255)], upload=True)[0].reason.startswith("the upload: bright")
    assert screen.images([picture(value=255)], upload=True)[0].decision == "block"


def no_number(value):
    return {1: math.nan, 2: math.inf, 3: -0.1, 4: 1.1, 5: None, 6: "high", 7: np.float32("nan")}.get(value, 0.0)


@pytest.mark.parametrize("value", range(1, 8))
def test_what_is_no_score_blocks_its_own_picture_only(value):
    screen = Screen(policy_for("broken"), [Broken(no_number)])
    good, bad = screen.images([picture(), picture(value=value)])
    assert good.decision == "pass"
    assert bad.decision == "block"
    assert bad.reason.startswith("broken gave")
    assert screen.counts["broken", "invalid"] == 1


@pytest.mark.parametrize(
    "result", [None, [], [{"light": 0.0}] * 3, {"light": 0.0}, iter([]), [{}, {}], "ab", [None, 5]]
)
def test_an_answer_of_another_form_blocks_all(result):
    broken = Broken(None)
    type(broken).__call__, kept = (lambda self, images: result), type(broken).__call__
    try:
        verdicts = Screen(policy_for("broken"), [broken]).images([picture(), picture()])
    finally:
        type(broken).__call__ = kept
    assert [verdict.decision for verdict in verdicts] == ["block", "block"]


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, SystemExit, KeyboardInterrupt])
def test_a_filter_that_throws_blocks_the_picture_that_it_threw_for(error):
    def act(value):
        if value == 9:
            raise error("private words")
        return 0.0

    screen = Screen(policy_for("broken"), [Broken(act)])
    verdicts = screen.images([picture(), picture(value=9), picture()])
    assert [verdict.decision for verdict in verdicts] == ["pass", "block", "pass"]
    assert verdicts[1].reason == f"broken failed ({error.__name__})"  # not its words, which may quote anything
    assert screen.counts == {("broken", "failed"): 2, ("broken", "ran"): 2}


def test_a_filter_that_hangs_blocks_and_is_used_again_when_it_ends():
    """The second call waits behind the first, which hangs: it is late as well, and no thread is added."""
    release = threading.Event()

    def act(value):
        if value == 9:
            release.wait()
        return 0.0

    screen = Screen(policy_for("broken", filter_deadline=0.1), [Broken(act)])
    threads = threading.active_count()
    begun = time.monotonic()
    assert screen.images([picture(value=9)])[0].reason == "broken did not answer within 0.1 s"
    assert screen.images([picture()])[0].decision == "block"
    assert time.monotonic() - begun < 5
    assert threading.active_count() == threads
    assert screen.counts["broken", "late"] == 2
    release.set()
    deadline = time.monotonic() + 5
    while screen.images([picture()])[0].decision == "block" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert screen.images([picture()])[0].decision == "pass"


def test_a_filter_cannot_change_the_picture():
    def act(images):
        images[0][:] = 0
        return [{"light": 0.0}]

    class Writing(Brightness):
        def __call__(self, images):
            return act(images)

    image = picture(value=7)
    assert Screen(policy_for("bright"), [Writing()]).images([image])[0].decision == "block"
    assert (image == 7).all()
    assert image.flags.writeable


def test_metrics_are_told_of_each_call():
    told = []

    class Told:
        def filtered(self, name, outcome, seconds):
            told.append((name, outcome, seconds >= 0))

    Screen(policy_for("bright"), [Brightness()], metrics=Told()).images([picture()])
    assert told == [("bright", "ran", True)]


def test_a_policy_that_names_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"thresholds for the filter 'nowhere', which is not there \(there: bright\)"):
        Screen(policy_for("nowhere"), [Brightness()])
    policy = Policy.of({"thresholds": {"bright": {"lite": {"hold": 0.1}}}})
    with pytest.raises(ValueError, match="the filter bright knows light, and the policy has a threshold for 'lite'"):
        Screen(policy, [Brightness()])


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_picture_is_refused(image):
    with pytest.raises(ValueError, match=r"a picture to screen is uint8 \(H, W, 3\)"):
        Screen(policy_for("bright"), [Brightness()]).images([image])
