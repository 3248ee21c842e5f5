"""`ctm tune`, and sampling and evaluation of what it wrote."""

import json
import shutil

import numpy as np
import pytest
import torch

from ctm import DiffusionModel, generate, load_model
from ctm.data import load_images
from ctm.evaluation.frechet import frechet_distance
from ctm.evaluation.frechet_measure import FrechetMeasure
from ctm.models.grids import TunedGrid
from ctm.networks import MLP
from ctm.pictures import to_uint8
from ctm.sampling import FlowDistance, tune_grid

from .test_cli import run, sentence

GRID = TunedGrid((80.0, 0.3, 0.002), 0.0, "m", 1.0, 0.1, 0.5, 0.1, 0.5, 0.01)
QUICK = ["--num", "16"]


@pytest.fixture(autouse=True)
def _one_classifier(session_cache, monkeypatch, quick_classifier):
    monkeypatch.setenv("CTM_CACHE", str(session_cache))


@pytest.fixture
def model(small_ctm, tmp_path):
    """A saved CTM with an entry that this version does not know."""
    small_ctm.extra_config = {"note": "of mine"}
    small_ctm.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def tuned(small_ctm, tmp_path):
    """A saved CTM with a grid for two steps."""
    small_ctm.grids = {2: GRID}
    small_ctm.save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned"


@pytest.fixture
def digits(tmp_path):
    """120 digits in a file."""
    images = load_images("digits")
    np.savez(tmp_path / "digits.npz", images=images.pixels[:120], labels=images.labels[:120])
    return tmp_path / "digits.npz"


def test_tune_writes_the_grid_and_leaves_the_rest(capsys, model, tmp_path):
    before = json.loads((model / "config.json").read_text())
    weights = (model / "model.safetensors").read_bytes()
    code, printed, err = run(capsys, "tune", model, "--steps", "2,3", *QUICK, "--out", tmp_path / "new" / "model")
    assert code == 0, err
    assert "mean squared distance to the model's flow" in printed
    assert "keeps the grids for 2 and 3 steps; --grid karras gives the plain one" in printed
    assert json.loads((model / "config.json").read_text()) == before
    assert (tmp_path / "new" / "model" / "model.safetensors").read_bytes() == weights
    after = json.loads((tmp_path / "new" / "model" / "config.json").read_text())
    grids = after.pop("grids")
    assert after == before
    assert list(grids) == ["2", "3"]
    again = load_model(tmp_path / "new")
    assert again.grids[2].better
    assert again.grids[2].levels == tuple(grids["2"]["levels"])
    assert f"{grids['2']['levels'][1]:g}" in printed


def test_tune_in_place_keeps_the_grids_of_other_steps(capsys, tuned):
    weights = (tuned / "model.safetensors").stat().st_mtime_ns
    code, printed, err = run(capsys, "tune", tuned, "--steps", "3", *QUICK)
    assert code == 0, err
    assert "keeps the grid for 3 steps" in printed
    model = load_model(tuned)
    assert model.grids[2] == GRID
    assert set(model.grids) == {2, 3}
    assert (tuned / "model.safetensors").stat().st_mtime_ns == weights


def test_sample_uses_the_grid_and_says_so(capsys, tuned, tmp_path):
    out = tmp_path / "x.npz"
    note = "levels tuned for this model: 80, 0.3, 0.002, γ = 0; --grid karras gives the plain ones"

    def sampled(*options):
        code, printed, err = run(capsys, "sample", tuned, "--num", 3, *options, "--out", out)
        assert code == 0, err
        return np.load(out)["arr_0"], note in printed

    model = load_model(tuned)
    expected = to_uint8(generate(model, 3, grid=GRID.grid())).numpy()
    plain, noted = sampled("--steps", 2, "--grid", "karras")
    assert not noted
    assert not np.array_equal(plain, expected)
    for options in ([], ["--gamma", 0]):
        samples, noted = sampled("--steps", 2, *options)
        assert noted
        assert np.array_equal(samples, expected)
    for options in (
        ["--steps", 3],
        ["--steps", 2, "--gamma", 0.5],
        ["--steps", 2, "--cfg", 1],
        ["--grid", "80,3,0.002"],
    ):
        assert not sampled(*options)[1], options
    assert np.array_equal(sampled("--steps", 2, "--cfg", 1)[0], plain)


def test_sample_json_names_the_levels_and_the_gamma(capsys, small_ctm, tmp_path):
    small_ctm.grids = {2: TunedGrid((80.0, 0.3, 0.002), 0.7, "m", 1.0, 0.1, 0.5, 0.1, 0.5, 0.01)}
    small_ctm.save_pretrained(tmp_path / "model")
    for options, gamma, level in (([], 0.7, 0.3), (["--gamma", 0], 0.0, 2.51522)):
        run(capsys, "sample", tmp_path / "model", "--num", 2, "--steps", 2, *options, "--out", tmp_path / f"at{gamma}")
        about = json.loads((tmp_path / f"at{gamma}" / "sample.json").read_text())
        assert (about["gamma"], about["grid"][1]) == (gamma, level)


def test_evaluate_records_the_grid_that_it_used(capsys, tuned, digits, tmp_path):
    base = ["evaluate", tuned, "--data", digits, "--features", "classifier", "--num", 60, "--out", tmp_path / "out"]
    values = {}
    for options in ([], ["--grid", "karras"], ["--gamma", "0.5"]):
        code, printed, err = run(capsys, *base, "--steps", "2,3", *options)
        assert code == 0, err
        rows = json.loads((tmp_path / "out" / "result.json").read_text())["rows"]
        values[" ".join(options)] = rows[0]["numbers"]["frechet"]["value"]
        expected = {"kind": "tuned", "levels": [80.0, 0.3, 0.002], "sigma_min": 0.002, "sigma_max": 80.0}
        assert (rows[0]["grid"] == expected) == (options == [])
        assert ("model, 2, tuned grid" in printed) == (options == [])
        assert rows[1]["grid"]["kind"] == "karras"
    model, images = load_model(tuned), load_images(str(digits))
    assert len(set(values.values())) == 3
    labels = torch.from_numpy(images.labels)
    assert generate(model, 2, steps=2, condition=labels[:2]).shape == (2, 1, 8, 8)
    assert sentence(capsys, *base, "--grid", "log").startswith("ctm: --grid must be karras")


def test_compare_says_where_grids_differ(capsys, tuned, digits, tmp_path):
    for name, options in (("a", ["--grid", "karras"]), ("b", [])):
        base = ["evaluate", tuned, "--data", digits, "--features", "classifier", "--num", 60, "--steps", "2"]
        assert run(capsys, *base, *options, "--out", tmp_path / name)[0] == 0
    code, printed, err = run(capsys, "compare", tmp_path / "a", tmp_path / "b")
    assert code == 0, err
    assert "model, 2, tuned grid" in printed
    from ctm.evaluation.compare import compare
    from ctm.evaluation.report import read_result

    found = compare([(name, read_result(tmp_path / name)) for name in ("a", "b")])
    assert {each.other for each in found} == {"b (tuned grid)"}


def test_tune_by_frechet_distance_with_gamma(capsys, model, digits, tmp_path):
    options = ["--measure", "frechet", "--data", digits, "--features", "classifier", "--gamma", "0,1", "--num", 30]
    code, printed, err = run(capsys, "tune", model, "--steps", "2", *options, "--out", tmp_path / "new")
    assert code == 0, err
    assert "Fréchet distance, classifier features" in printed
    assert ("keeps the grid" in printed) == (tmp_path / "new").exists()
    assert ("nothing was written" in printed) != (tmp_path / "new").exists()


def test_the_frechet_measure_is_the_distance_to_one_half(small_ctm, digits):
    images = load_images(str(digits))
    measure = FrechetMeasure(small_ctm, images, features="classifier", num=40, repeats=3)
    grid = GRID.grid()
    tuning, held_out = (measure(grid, 0.5, held_out=flag) for flag in (False, True))
    assert (len(tuning), len(held_out)) == (1, 3)
    assert torch.equal(measure(grid, 0.5, held_out=True), held_out)
    halves = [set(map(bytes, half.pixels)) for half in measure._halves]
    assert len(measure._halves[0]) == len(measure._halves[1]) == 60
    assert not halves[0] & halves[1]
    classes = np.bincount(measure._halves[0].labels[:60], minlength=10)
    drawn = measure._samples(grid, 0.5, 0)
    look = measure._look
    real, _ = measure._halves[0].all()
    from ctm.data import to_model_range

    seen = look(to_model_range(to_uint8(drawn)))[0]
    assert float(tuning) == pytest.approx(frechet_distance(seen, look(real)[0]), rel=1e-6)
    assert classes.sum() == 60


def test_a_grid_that_is_no_better_is_not_written(capsys, tmp_path):
    """Two samples choose a grid that eight others do not confirm."""
    model = tmp_path / "model"
    shutil.copytree("models/digits-ctm", model)
    before = (model / "config.json").read_text()
    loaded = load_model(model)
    found = tune_grid(loaded, 2, measure=FlowDistance(loaded, num=2, held_out=8, seed=5))
    assert found.gain < 0
    assert not found.better
    code, printed, _ = run(capsys, "tune", model, "--steps", "2", "--num", "2", "--seed", "5")
    assert code == 0
    assert "no grid is better than the plain one by more than two standard errors: nothing was written" in printed
    assert (model / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "1"], "steps must be a whole number of at least 2, got 1"),
        (["--steps", "two"], "--steps takes numbers such as 1,2,4, got 'two'"),
        (["--measure", "fid"], "--measure must be flow or frechet, got 'fid'"),
        (["--measure", "frechet"], "--measure frechet needs --data"),
        (["--data", "digits"], "--data belongs to --measure frechet"),
        (["--gamma", "tune"], "--gamma belongs to --measure frechet"),
        (["--measure", "frechet", "--data", "digits", "--teacher", "x"], "--teacher belongs to --measure flow"),
        (["--measure", "frechet", "--data", "digits", "--gamma", "2"], "gammas must be in [0, 1], got 2.0"),
        (["--measure", "frechet", "--data", "digits", "--features", "vgg"], "--features must be one of classifier"),
        (["--measure", "frechet", "--data", "digits", "--num", "1"], "2 samples"),
        (["--num", "1"], "num must be a whole number of at least 2, got 1"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--out", "."], "--out . is there already: give a new directory"),
        (["--teacher", "runs/absent"], "runs/absent"),
    ],
)
def test_mistakes_are_one_sentence(capsys, model, options, message):
    assert message in sentence(capsys, "tune", model, *options)


def test_a_diffusion_model_cannot_be_tuned(capsys, tmp_path):
    DiffusionModel(MLP((1, 8, 8), width=8, blocks=1, embedding=8), shape=(1, 8, 8)).save_pretrained(tmp_path / "d")
    assert "has no jump" in sentence(capsys, "tune", tmp_path / "d")
    assert "there is no directory" in sentence(capsys, "tune", tmp_path / "absent")


def test_help_has_an_example(capsys):
    code, out, _ = run(capsys, "tune", "--help")
    assert code == 0
    assert "Example: ctm tune" in out
