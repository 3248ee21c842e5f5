import base64
import io
import json
import re
import signal
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image

from ctm.cli import main
from ctm.demo import run as demo_module
from ctm.demo.run import jump_path
from ctm.evaluation.report import read_result

from ..processes import Command


@pytest.fixture
def short(monkeypatch, quick_classifier):
    """The demo as it is, with 300 digits, 100 samples, narrow networks and 30 steps of training in each run."""
    parse_recipe, load_images = demo_module.parse_recipe, demo_module.load_images
    small = ["--steps", "30", "--log_every", "10", "--network.init_args.width", "64"]

    def few(name):
        images = load_images(name)
        return replace(images, pixels=images.pixels[:300], labels=images.labels[:300])

    monkeypatch.setattr(demo_module, "parse_recipe", lambda arguments: parse_recipe([*arguments, *small]))
    monkeypatch.setattr(demo_module, "load_images", few)
    monkeypatch.setattr(demo_module, "SAMPLES", 100)


def test_the_demo_end_to_end_and_again(short, tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert str(out / "report.html") in printed
    assert "Two halves of the data" in printed
    assert "The teacher trained for" in printed
    result = read_result(out)  # the form of ctm evaluate, so that ctm compare takes it
    rows = result["rows"]
    assert [(row["steps"], row["evaluations"]) for row in rows if not row["gamma"]] == [
        (18, 35),
        (1, 1),
        (2, 2),
        (4, 4),
        (8, 8),
    ]
    assert [row["role"] for row in rows] == ["teacher"] + ["model"] * 10
    assert {row["gamma"] for row in rows[1:]} == {0.0, 0.5, 1.0}
    assert result["protocol"]["features"]["name"] == "classifier"
    assert all(row["numbers"]["frechet"]["value"] > 0 and row["seconds_per_image"] > 0 for row in rows)
    assert all(row["numbers"]["mse_to_teacher"]["value"] > 0 for row in rows[1:])
    assert result["reference"]["halves"] > 0
    assert result["seconds"].keys() == {"teacher", "student", "measuring"}
    page = (out / "report.html").read_text()
    scale = rows[0]["numbers"]["frechet"]["value"]
    assert f"{rows[1]['numbers']['frechet']['value'] / scale:.2f} in 1, " in page
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 5  # quality, samples, nearest training images; the way of one sample, the losses
    for picture in pictures:
        assert Image.open(io.BytesIO(base64.b64decode(picture))).width > 400
    assert not re.search(r"(src|href)=\"(?!data:)", page), "the report must be one file"
    for name in ("teacher", "student"):
        assert (out / name / "model" / "model.safetensors").is_file()
    assert main(["demo", "--out", str(out)]) == 0
    assert read_result(out)["rows"] == rows, "rows that are there are read, not measured again"


def test_the_jump_path_ends_at_the_sample(small_ctm):
    levels, states, ends = jump_path(small_ctm, label=3, steps=4)
    assert len(levels) == len(states) == len(ends) == 5
    from ctm import generate

    expected = generate(small_ctm, 1, steps=4, condition=3)[0]
    torch.testing.assert_close(ends[-1], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(ends[0], generate(small_ctm, 1, steps=1, condition=3)[0], rtol=0, atol=1e-4)


def interrupted_demo(out, after_step: int) -> tuple[int, str]:
    """The real command, sent SIGINT once its teacher has logged a step beyond `after_step`: exit code and stderr."""
    process = Command(["demo", "--out", str(out)])
    metrics, deadline = out / "teacher" / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline:
        lines = metrics.read_text().splitlines() if metrics.is_file() else []
        if lines and json.loads(lines[-1])["step"] > after_step:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_the_same_command_continues(tmp_path):
    """Interrupted twice in its teacher: exit code 130, no traceback, and the second run goes on from the first's checkpoint."""
    out = tmp_path / "demo"
    reached = [0]
    for _ in range(2):
        code, err = interrupted_demo(out, after_step=reached[-1])
        assert code == 130
        assert "The same command goes on from here" in err
        assert "Traceback" not in err
        reached.append(max(int(p.name) for p in (out / "teacher" / "checkpoints").iterdir()))
    assert 0 < reached[1] < reached[2] < 2000
    steps = [json.loads(line)["step"] for line in (out / "teacher" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(50, steps[-1] + 1, 50)), (
        "each step is logged once: none was trained again from the start"
    )
