"""`ctm evaluate` and `ctm compare` where stderr is no terminal, and where stdout takes nothing."""

import contextlib
import errno
import io
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from ctm import progress
from ctm.cli import main
from ctm.data import load_images

MODEL = Path(__file__).parents[2] / "models" / "digits-ctm"
LINE = re.compile(r"^(.+): (\d+)/(\d+) parts, ([0-9.e+]+) parts/s, (\d+) s left$", re.MULTILINE)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The folder of a small evaluation whose lines come as often as they can, and what it printed and said. Its data have no
    labels, so that no classifier is trained."""
    folder = tmp_path_factory.mktemp("redirected")
    np.savez(folder / "digits.npz", images=load_images("digits").pixels[:80])
    sizes = ["--num", "80", "--batch_size", "20", "--steps", "1", "--side", "32"]
    asked = ["evaluate", str(MODEL), "--data", str(folder / "digits.npz"), *sizes, "--out", str(folder / "out")]
    printed, said = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        patch.setenv("CTM_CACHE", str(folder / "cache"))
        patch.setattr(progress, "_LINE_SECONDS", 0.0)
        assert main(asked) == 0
    return folder / "out", printed.getvalue(), said.getvalue()


def test_case_24_an_evaluation_says_how_far_it_is_at_what_rate_and_what_is_left(evaluated):
    _, printed, said = evaluated
    lines = LINE.findall(said)
    assert [(done, of) for title, done, of, _, _ in lines if "CTM" in title or "model" in title][:4] == [
        (str(done), "4") for done in range(1, 5)
    ], said
    assert all(float(rate) > 0 for *_, rate, _ in lines)
    for code in ("\x1b", "\r"):
        assert code not in said + printed


class Full(io.StringIO):
    """A stream to a full disk."""

    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_case_16_a_comparison_that_cannot_be_printed(evaluated, capfd, monkeypatch):
    result = str(evaluated[0] / "result.json")
    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["compare", result, result]) == 2
    assert capfd.readouterr().err.strip() == (
        "ctm: the output, or a file: No space left on device: make room, or name another place"
    )
