"""What `ctm evaluate` says on a stderr that is no terminal: a line now and then, as plain text."""

import re

import numpy as np
import pytest

from ctm import progress
from ctm.data import load_images

from ..commands.test_cli import run

LINE = re.compile(r"^(.+): (\d+)/(\d+) parts, ([0-9.e+]+) parts/s, (\d+) s left$", re.MULTILINE)


@pytest.fixture
def asked(small_ctm, tmp_path):
    """A small evaluation: 80 samples of a saved CTM against 80 digits without labels, so that no classifier is trained."""
    np.savez(tmp_path / "digits.npz", images=load_images("digits").pixels[:80])
    small_ctm.save_pretrained(tmp_path / "model")
    sizes = ["--num", 80, "--batch_size", 20, "--steps", 1, "--side", 32]
    return ["evaluate", tmp_path / "model", "--data", tmp_path / "digits.npz", *sizes, "--out", tmp_path / "out"]


def test_case_24_an_evaluation_says_how_far_it_is_at_what_rate_and_what_is_left(capsys, monkeypatch, asked):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    code, printed, said = run(capsys, *asked)
    assert code == 0, said
    lines = LINE.findall(said)
    assert [(done, of) for title, done, of, _, _ in lines if title.startswith("model")][:4] == [
        (str(done), "4") for done in range(1, 5)
    ]
    assert all(float(rate) > 0 for *_, rate, _ in lines)
    assert "\x1b" not in said + printed
    assert "\r" not in said + printed
