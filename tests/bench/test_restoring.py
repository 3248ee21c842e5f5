import json

import pytest
import torch

from ctm.bench.restoring import measure
from ctm.bench.restoring_tasks import METHODS, Score, make_tasks
from ctm.cli import main
from ctm.data import load_images
from ctm.models import load_model

DIGITS = ["--model", "models/digits-ctm", "--data", "digits", "--count", "6", "--draws", "2"]


@pytest.fixture(scope="module")
def digits():
    return load_images("digits").batch(range(24))[0]


def tasks(shape=(1, 8, 8), names=("super-resolution", "inpainting")):
    return make_tasks(list(names), shape, 2, 0)


def test_estimates_without_a_model_are_what_they_are_called(digits):
    """Bicubic keeps a straight ramp; the fill is the mean of the known pixels alone; grey is the luma in each channel."""
    enlarging, centre, half = tasks()
    ramp = torch.linspace(-1, 1, 16)[None, None, None, :].expand(1, 1, 16, 16)
    sixteen = make_tasks(["super-resolution"], (1, 16, 16), 2, 0)[0]
    made = sixteen.estimate(sixteen.operator.A(ramp))
    torch.testing.assert_close(made[..., 4:-4], ramp[..., 4:-4])
    filled = centre.estimate(centre.operator.A(digits))
    known = torch.ones(8, 8, dtype=torch.bool)
    known[2:6, 2:6] = False
    torch.testing.assert_close(filled[:, 0][:, known], digits[:, 0][:, known])
    torch.testing.assert_close(filled[0, 0, 3, 3], digits[0, 0][known].mean())
    hidden = half.operator.A(torch.ones(1, 1, 8, 8)) == 0
    assert int(hidden.sum()) == 32
    colour = tasks((3, 8, 8), ["colourisation"])[0]
    grey = colour.estimate(torch.full((1, 1, 8, 8), 0.3))
    assert grey.shape == (1, 3, 8, 8)
    assert enlarging.plain == "bicubic"


def test_psnr_is_the_formula_with_a_floor(digits):
    score = Score(digits)
    far = digits.clamp(-0.5, 0.5)
    expected = 10 * torch.log10(4 / (far - digits).square().mean(dim=(1, 2, 3)))
    torch.testing.assert_close(score.psnr(far), expected)
    torch.testing.assert_close(score.psnr(digits), torch.full((24,), 58.92), atol=0.01, rtol=0)
    found = score(far, digits)
    assert found["psnr"][0] == pytest.approx(float(expected.mean()), abs=1e-3)
    assert found["psnr"][1] == pytest.approx(float(expected.std()) / 24**0.5, abs=1e-3)
    assert found["psnr_gain"][0] == pytest.approx(float(expected.mean()) - 58.92, abs=0.02)


@pytest.mark.slow
def test_a_trained_model_beats_filling_with_the_mean(digits):
    """On digits it was trained on: every method with 18 evaluations, by more than four standard errors, and in LPIPS."""
    task = tasks()[1]
    entry, picture = measure(load_model("models/digits-ctm"), task, Score(digits), [18], draws=2)
    assert [row["method"] for row in entry["rows"][1:]] == list(METHODS)
    for row in entry["rows"][1:]:
        gain, error = row["psnr_gain"]
        assert gain > 4 * error
        assert row["lpips"][0] < entry["rows"][0]["lpips"][0]
        assert row["misfit"] < 1e-5
        assert row["psnr_of_mean"] > 0 < row["spread"]
    assert entry["columns"] == ["known", task.plain, *(f"{name} 18" for name in METHODS), "truth"]
    assert picture.width == 7 * 9 * 12 + 12


@pytest.mark.slow
def test_a_teacher_restores_without_a_jump(digits):
    entry, _ = measure(load_model("models/digits-teacher"), tasks()[1], Score(digits), [18], draws=2)
    assert [row["method"] for row in entry["rows"][1:]] == ["guided", "guided from baseline"]


@pytest.mark.slow
def test_the_command_keeps_what_it_has_measured(tmp_path, capsys):
    out = tmp_path / "r.json"
    options = [*DIGITS, "--evaluations", "1,2", "--tasks", "inpainting", "--out", str(out)]
    assert main(["bench", "restoring", *options]) == 0
    entries = json.loads(out.read_text())
    assert [entry["task"] for entry in entries.values()] == ["inpainting centre", "inpainting random half"]
    assert len(list((tmp_path / "r").glob("*.png"))) == 2
    assert "guided from baseline" in capsys.readouterr().out
    name = next(iter(entries))
    kept = {other: entry for other, entry in entries.items() if other != name}
    out.write_text(json.dumps(kept))
    assert main(["bench", "restoring", *options]) == 2
    assert "add --continue" in capsys.readouterr().err
    assert main(["bench", "restoring", *options, "--continue"]) == 0
    again = json.loads(out.read_text())
    assert {other: entry for other, entry in again.items() if other != name} == kept
    first, second = (found[name]["rows"][1] for found in (entries, again))
    assert first | {"seconds_per_image": 0} == second | {"seconds_per_image": 0}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tasks", "colourisation"], "colourisation needs a model of 3 channels, this one has 1"),
        (["--tasks", "sharpening"], "not sharpening"),
        (["--factor", "9"], "--factor must be from 2 to 8"),
        (["--draws", "1"], "--draws must be at least 2"),
        (["--evaluations", "0"], "--evaluations"),
    ],
)
def test_mistakes_are_sentences(options, sentence, tmp_path, capsys):
    assert main(["bench", "restoring", *DIGITS, "--out", str(tmp_path / "r.json"), *options]) == 2
    assert sentence in capsys.readouterr().err
