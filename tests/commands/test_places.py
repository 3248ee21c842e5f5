"""A place that cannot be written is refused before anything is computed for it: an hour's work would be lost."""

import json
import os
from pathlib import Path

import pytest

from ctm.files import write_whole
from ctm.terminal.paths import check_place

from .test_cli import model, run, sentence  # noqa: F401

MODELS = Path(__file__).parents[2] / "models"
COMMANDS = {
    "sample": ["--num", "4"],
    "likelihood": ["--data", "digits", "--num", "4"],
    "evaluate": ["--data", "digits", "--num", "8", "--features", "classifier"],
    "tune": ["--steps", "2", "--num", "4"],
}


class Computed(AssertionError):
    """A network was evaluated."""


@pytest.fixture
def _no_work(monkeypatch):
    """Whoever evaluates a network fails."""
    import torch

    def refuse(*arguments):
        raise Computed

    monkeypatch.setattr(torch.nn.Linear, "forward", refuse)


@pytest.mark.parametrize(
    ("place", "words"),
    [("a-file/x", "a-file is a file, not a directory"), ("/proc/x", "No such file or directory")],
)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("_no_work")
def test_case_16_before_anything_is_computed(capsys, model, tmp_path, command, place, words):  # noqa: F811
    (tmp_path / "a-file").write_text("kept")
    out = f"{tmp_path / place}{'.json' if command == 'likelihood' else ''}"
    said = sentence(capsys, command, model, *COMMANDS[command], "--out", out)
    assert said.startswith(f"ctm: {out}")
    assert words in said
    assert (tmp_path / "a-file").read_text() == "kept"


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo"],
        *(["bench", name] for name in ("teach", "evaluate", "restoring", "samplers", "overhead")),
    ],
    ids=lambda arguments: arguments[-1],
)
@pytest.mark.usefixtures("_no_work")
def test_case_16_demo_and_benchmarks_too(capsys, tmp_path, arguments):
    (tmp_path / "a-file").write_text("kept")
    said = sentence(capsys, *arguments, "--out", tmp_path / "a-file" / "x.json")
    assert "a-file is a file, not a directory" in said


@pytest.mark.parametrize("out", ["a-file/x", "/proc/x"])
def test_case_16_convert_too(capsys, tmp_path, out):
    (tmp_path / "a-file").write_text("kept")
    said = sentence(capsys, "convert", tmp_path / "a-file", tmp_path / out)
    assert said.startswith(f"ctm: {tmp_path / out}")


def test_a_place_that_can_be_written_is_left_as_it_was(capsys, model, tmp_path):  # noqa: F811
    check_place(tmp_path / "new" / "deep" / "x.json")
    assert not (tmp_path / "new").exists()
    place = tmp_path / "there"
    place.mkdir()
    check_place(place / "x.json")
    assert not list(place.iterdir())
    options = ["--data", "digits", "--num", "2", "--rtol", "1e-1", "--atol", "1e-1"]
    assert run(capsys, "likelihood", model, *options, "--out", place / "x.json")[0] == 0
    assert json.loads((place / "x.json").read_text())["num"] == 2


def test_a_device_is_not_replaced_by_a_file(tmp_path, capsys):
    """A pipe here, which stands for /dev/null: as root a file would take its place, for every process of the machine."""
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match="is a device or a pipe, which a file would replace"):
        write_whole(pipe, b"content")
    assert "is a device or a pipe" in sentence(capsys, "sample", MODELS / "digits-ctm", "--num", 1, "--out", pipe)
    assert pipe.is_fifo()
