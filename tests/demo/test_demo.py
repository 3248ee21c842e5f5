import base64
import io
import json
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from ctm.cli import main
from ctm.demo import run as demo_module
from ctm.demo.measure import Judge, jump_path
from ctm.evaluation.classifier import Classifier


@pytest.fixture
def short(monkeypatch):
    """The demo as it is, with 30 steps of training in each run."""
    original = demo_module.parse_recipe
    monkeypatch.setattr(
        demo_module, "parse_recipe", lambda arguments: original([*arguments, "--steps", "30", "--log_every", "10"])
    )


def test_the_demo_end_to_end_and_again(short, tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert str(out / "report.html") in printed
    assert "two halves of the real data" in printed
    assert "trained for" in printed
    result = json.loads((out / "result.json").read_text())
    rows = result["rows"]
    assert [(row["steps"], row["evaluations"]) for row in rows if row["gamma"] == 0] == [
        (18, 35),
        (1, 1),
        (2, 2),
        (4, 4),
        (8, 8),
    ]
    assert {row["gamma"] for row in rows} == {0.0, 0.5, 1.0}
    assert rows[0]["mse_to_teacher"] == 0
    assert all(row["frechet"] > 0 and row["ms_per_image"] > 0 for row in rows)
    assert result["floor"] > 0
    page = (out / "report.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 4
    for picture in pictures:
        assert Image.open(io.BytesIO(base64.b64decode(picture))).width > 400
    assert not re.search(r"(src|href)=\"(?!data:)", page), "the report must be one file"
    for name in ("teacher", "student"):
        assert (out / name / "model" / "model.safetensors").is_file()
    assert main(["demo", "--out", str(out)]) == 0
    again = json.loads((out / "result.json").read_text())
    assert [row["frechet"] for row in again["rows"]] == pytest.approx([row["frechet"] for row in rows], rel=1e-4)


def test_the_jump_path_ends_at_the_sample(small_ctm):
    levels, states, ends = jump_path(small_ctm, label=3, steps=4)
    assert len(levels) == len(states) == len(ends) == 5
    from ctm import generate

    expected = generate(small_ctm, 1, steps=4, labels=3)[0]
    torch.testing.assert_close(ends[-1], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(ends[0], generate(small_ctm, 1, steps=1, labels=3)[0], rtol=0, atol=1e-4)


def test_the_judge_knows_the_real_images():
    from ctm.data import load_images

    digits = load_images("digits")
    judge = Judge(digits, Classifier(1, 8, 10).eval())
    assert judge.frechet(judge.real) == pytest.approx(0, abs=1e-6)
    assert judge.floor() > 0
    assert judge.frechet(judge.real + 0.3 * torch.randn_like(judge.real)) > judge.floor() / 10


def test_ctrl_c_leaves_a_run_that_the_same_command_continues(tmp_path):
    """The real command, interrupted in its teacher: exit code 130, a checkpoint, no traceback."""
    command = [sys.executable, "-m", "ctm", "demo", "--out", str(tmp_path / "demo")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    metrics = tmp_path / "demo" / "teacher" / "metrics.jsonl"
    while time.monotonic() < deadline and not (metrics.is_file() and metrics.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "The same command goes on from here" in err
    assert "Traceback" not in err
    (checkpoint,) = (tmp_path / "demo" / "teacher" / "checkpoints").iterdir()
    assert 50 <= int(checkpoint.name) < 2000
