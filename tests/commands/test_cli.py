import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ctm import DiffusionModel, TrajectoryModel, generate
from ctm.cli import main
from ctm.console import as_typed
from ctm.data import Images
from ctm.guidance import ClassifierFree
from ctm.networks import MLP
from ctm.noise import index_grid, karras_grid, log_linear_grid
from ctm.pictures import to_uint8
from ctm.terminal.options import parse_grid, parse_labels, parse_seeds
from ctm.training.classes import name_classes

from ..conftest import random_weights
from ..processes import Command

RECIPES = Path(__file__).parents[2] / "recipes"


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `ctm …` in this process."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def sentence(capsys, *arguments) -> str:
    """The one sentence of a user's mistake."""
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    return err


@pytest.fixture
def model(small_ctm, tmp_path) -> Path:
    small_ctm.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("command", [[], ["demo"], ["train"], ["sample"], ["convert"]])
def test_help_with_an_example(capsys, command):
    code, out, _ = run(capsys, *command, "--help")
    assert code == 0
    assert "usage: ctm" in out
    assert not command or "Example: ctm" in out


def test_sample_to_a_directory(capsys, model, small_ctm, tmp_path):
    out = tmp_path / "pictures"
    code, printed, _ = run(
        capsys,
        "sample",
        model,
        "--num",
        5,
        "--steps",
        2,
        "--gamma",
        0.3,
        "--labels",
        "3,3,7",
        "--seed",
        4,
        "--out",
        out,
    )
    assert code == 0
    assert "5 samples" in printed
    assert sorted(p.name for p in out.iterdir()) == [*(f"{i:06d}.png" for i in range(5)), "sample.json"]
    about = json.loads((out / "sample.json").read_text())
    assert about["labels"] == [3, 3, 7, 3, 3]
    assert (about["steps"], about["gamma"], about["seed"], about["sampler"]) == (2, 0.3, 4, "gamma")
    expected = to_uint8(generate(small_ctm, 5, steps=2, gamma=0.3, seed=4, condition=torch.tensor([3, 3, 7, 3, 3])))
    seen = np.stack([np.asarray(Image.open(out / f"{i:06d}.png")) for i in range(5)])
    assert np.abs(seen.astype(int) - expected[..., 0].numpy().astype(int)).max() <= 1


def test_sample_to_npz_and_to_one_picture(capsys, model, tmp_path):
    assert (
        run(capsys, "sample", model, "--num", 7, "--labels", "0-9", "--batch_size", 3, "--out", tmp_path / "s.npz")[0]
        == 0
    )
    with np.load(tmp_path / "s.npz") as stored:
        assert stored["arr_0"].shape == (7, 8, 8, 1)
        assert stored["arr_0"].dtype == np.uint8
        assert stored["arr_1"].tolist() == list(range(7))
    assert run(capsys, "sample", model, "--labels", "0-9", "--out", tmp_path / "grid.png")[0] == 0
    assert Image.open(tmp_path / "grid.png").width > 400


@pytest.mark.parametrize(
    "sampler", ["euler", "heun", "midpoint", "ancestral", "dpmpp_2m", "dpmpp_2m_sde", "consistency"]
)
def test_other_samplers_through_denoise(capsys, model, tmp_path, sampler):
    assert (
        run(capsys, "sample", model, "--sampler", sampler, "--steps", 4, "--num", 3, "--out", tmp_path / "x.npz")[0]
        == 0
    )
    with np.load(tmp_path / "x.npz") as stored:
        assert stored["arr_0"].shape == (3, 8, 8, 1)


def test_a_diffusion_model_is_sampled_with_heun(capsys, tmp_path):
    network = random_weights(MLP((1, 8, 8), width=16, blocks=1, embedding=8, s_embedding=False))
    DiffusionModel(network, shape=(1, 8, 8)).save_pretrained(tmp_path / "run" / "model")
    assert run(capsys, "sample", tmp_path / "run", "--num", 2, "--out", tmp_path / "out")[0] == 0
    assert json.loads((tmp_path / "out" / "sample.json").read_text())["sampler"] == "heun"
    err = sentence(capsys, "sample", tmp_path / "run", "--sampler", "gamma")
    assert "is a diffusion model and cannot jump: use --sampler heun" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gamma", "1.2"], "ctm: gamma must be in [0, 1], got 1.2: 0 jumps deterministically"),
        (["--labels", "12"], "label 12 is not known to this model (classes: 0 … 9"),
        (["--labels", "a"], "--labels takes classes such as 0-9 or 3,3,7, got 'a'"),
        (["--steps", "0.5"], "steps"),
        (["--num", "0"], "num must be a whole number of at least 1, got 0"),
        (["--form", "other"], "form must be one of paper, code"),
        (["--sampler", "magic"], "--sampler must be one of gamma, euler, heun, dpmpp_2m"),
        (["--unheard-of", "1"], "unheard-of"),
        (["--grid", "magic"], "--grid takes karras or karras:RHO"),
        (["--grid", "karras:x"], "--grid karras:x: 'x' is no number"),
        (["--grid", "80,1,0.002", "--steps", "2"], "--grid gives the 3 levels themselves: leave --steps out"),
        (["--grid", "80,1,2"], "levels that decrease strictly"),
        (["--sampler", "two_level"], "--sampler two_level needs --grid t0,s,s',t_end"),
        (["--seeds", "1-"], "--seeds takes numbers such as 0-9 or 3,5,8, got '1-'"),
        (["--seeds", "1,2", "--num", "3"], "--seeds gives 2 seeds, one sample each, but --num is 3"),
        (["--seeds", "1,2", "--seed", "3"], "--seed 3 and --seeds exclude each other"),
        (["--dtype", "float16"], "--dtype must be one of float32, float64, got 'float16'"),
    ],
)
def test_sample_mistakes_are_one_sentence(capsys, model, tmp_path, arguments, message):
    assert message in sentence(capsys, "sample", model, *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_model_is_the_contracts_sentence(capsys, tmp_path):
    (tmp_path / "a").mkdir()
    err = sentence(capsys, "sample", tmp_path / "a")
    where = tmp_path / "a"
    assert (
        err.strip()
        == f"ctm: no config.json in {where} nor in {where}/model. Give a model or run directory, or a hub id."
    )


def test_labels_are_parsed():
    assert parse_labels("0-3") == [0, 1, 2, 3]
    assert parse_labels("3,3,7") == [3, 3, 7]
    assert parse_labels("9,0-1") == [9, 0, 1]
    assert parse_labels("-1,2") == [-1, 2]
    for wrong in ("", "3-1", "1;2", "-2"):
        with pytest.raises(ValueError, match="--labels takes classes"):
            parse_labels(wrong)


NAMES = ["T-shirt/top", "Ankle boot", "tench, Tinca tinca", "2", "Flags", "flags", "Food", 'a "b" c']


def test_case_05_labels_are_parsed_by_name(caplog):
    def parsed(text):
        return parse_labels(text, len(NAMES), NAMES)

    assert parsed("T-shirt/top,Ankle boot") == [0, 1]
    assert parsed(" Food , Flags,flags,7") == [6, 4, 5, 7]
    assert parsed("tench, Tinca tinca") == [2]
    assert parsed('"tench, Tinca tinca",Food,0-1,-1') == [2, 6, 0, 1, -1]
    assert parsed('"a ""b"" c"') == [7]
    assert parsed('"2"') == [3]
    assert parsed("all") == list(range(8))
    assert not caplog.records
    assert parsed("ANKLE BOOT") == [1]
    assert [record.getMessage() for record in caplog.records] == ["--labels ANKLE BOOT is taken as 1 Ankle boot"]
    wrong = {
        "Fod": r"this model has no class 'Fod'; it knows 0 T-shirt/top, 1 Ankle boot, .*double quotes",
        "FLAGS": r"could be 4 Flags and 5 flags: give the number",
        "2": r"--labels 2: is it the class number 2, or the class named 2, whose number is 3\? Give '\"2\"' in quotes",
        '"Food': r"a quote in text that does not end",
        "Food,": r"--labels has nothing between two commas, or at an end: 'Food,'",
    }
    for text, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            parsed(text)
    assert parse_labels("10", 3, ["1", "2", "10"]) == [2]  # no number of a class, so a name
    with pytest.raises(ValueError, match="this model keeps no names of classes"):
        parse_labels("Flags", 10)
    with pytest.raises(ValueError, match=r"is it every class, or the class named all\? Give 0-1, or"):
        parse_labels("all", 2, ["all", "some"])


ODD_NAMES = ["007", " leading", "tench, Tinca tinca", 'a "b"', "", "trailing ", '"', "plain"]


def test_a_list_of_odd_names_is_printed_as_labels_takes_them(caplog):
    with pytest.raises(ValueError, match="this model has no class 'none'") as caught:
        parse_labels("none", len(ODD_NAMES), ODD_NAMES)
    told = 'it knows 0 007, 1 " leading", 2 "tench, Tinca tinca", 3 "a ""b""", 4 "", 5 "trailing ", 6 """", 7 plain. A name'
    assert told in str(caught.value)
    for number, name in enumerate(ODD_NAMES[1:], 1):
        assert parse_labels(f"{as_typed(name)},-1", len(ODD_NAMES), ODD_NAMES) == [number, -1]
    assert caplog.messages == []
    with pytest.raises(ValueError, match=r"""Its blanks count: --labels '" leading"'$"""):
        parse_labels("leading", len(ODD_NAMES), ODD_NAMES)
    images = Images(np.zeros((8, 1, 1, 1), np.uint8), np.arange(8), ODD_NAMES)
    (line,) = name_classes(TrajectoryModel(MLP((1,), 8, width=8, blocks=1), shape=(1,), num_classes=8), images)
    assert line.removeprefix("classes: ") in told


def test_columns_class_means_all_classes_by_number(capsys, small_ctm, tmp_path):
    small_ctm.class_names = ["all", *"abcdefgh", "-1"]
    small_ctm.save_pretrained(tmp_path / "named")
    asked = ("sample", tmp_path / "named", "--columns", "class", "--out", tmp_path / "x.png")
    assert run(capsys, *asked)[0] == 0
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width > 8 * picture.height  # ten columns, one row


def test_case_05_samples_of_classes_by_name(capsys, small_ctm, tmp_path):
    small_ctm.class_names = [*"abcdefgh", "Ankle boot", "T-shirt/top"]
    small_ctm.save_pretrained(tmp_path / "named")
    run(capsys, "sample", tmp_path / "named", "--labels", "T-shirt/top,Ankle boot,b", "--out", tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as stored:
        assert stored["arr_1"].tolist() == [9, 8, 1]
    message = sentence(capsys, "sample", tmp_path / "named", "--labels", "Trouser", "--out", tmp_path / "y.npz")
    assert "this model has no class 'Trouser'; it knows 0 a, 1 b, 2 c" in message


def test_grids_are_parsed():
    ends = (0.002, 80.0)
    double = {"dtype": torch.float64}
    assert torch.equal(parse_grid("karras", 4, *ends), karras_grid(4, **double))
    assert torch.equal(parse_grid("karras:3", 4, *ends), karras_grid(4, rho=3, **double))
    assert torch.equal(parse_grid("log", 4, *ends), log_linear_grid(4, **double))
    assert torch.equal(parse_grid("index:18", 4, *ends), index_grid(4, 18, **double))
    assert parse_grid("80, 2.5,0.002", 99, *ends).tolist() == [80, 2.5, 0.002]
    assert parse_seeds("3,5-7") == [3, 5, 6, 7]
    assert parse_labels("all", 3) == [0, 1, 2]
    with pytest.raises(ValueError, match="this model has no classes"):
        parse_labels("all")
    with pytest.raises(ValueError, match="rho must be at least 1"):
        parse_grid("karras:0.5", 4, *ends)


def test_grids_seeds_and_guidance_do_what_they_say(capsys, model, small_ctm, tmp_path):
    out = tmp_path / "x.npz"

    def sampled(*arguments):
        assert run(capsys, "sample", model, *arguments, "--out", out)[0] == 0
        with np.load(out) as stored:
            return torch.from_numpy(stored["arr_0"]), stored["arr_1"].tolist()

    pixels, labels = sampled("--labels", "all", "--seeds", "2-11", "--grid", "80,0.6,0.002", "--dtype", "float64")
    grid = torch.tensor([80, 0.6, 0.002], dtype=torch.float64)
    options = {"labels": torch.arange(10), "dtype": torch.float64}
    expected = to_uint8(generate(small_ctm, 10, seed=list(range(2, 12)), grid=grid, **options))
    assert labels == list(range(10))
    assert int((pixels.int() - expected.int()).abs().max()) <= 1
    guided, _ = sampled("--labels", "all", "--cfg", 3, "--steps", 2)
    expected = to_uint8(generate(ClassifierFree(small_ctm, 3), 10, condition=torch.arange(10), steps=2))
    assert int((guided.int() - expected.int()).abs().max()) <= 1
    assert not torch.equal(guided, sampled("--labels", "all", "--steps", 2)[0])
    assert sampled("--sampler", "two_level", "--grid", "80,0.5,2,0.002", "--num", 2)[0].shape == (2, 8, 8, 1)


def test_guidance_needs_classes(capsys, tmp_path):
    network = random_weights(MLP((1, 8, 8), width=16, blocks=1, embedding=8, s_embedding=False))
    DiffusionModel(network, shape=(1, 8, 8)).save_pretrained(tmp_path / "plain")
    assert "--cfg needs a model with classes" in sentence(capsys, "sample", tmp_path / "plain", "--cfg", 2)


NETWORK = '{"width": 16, "blocks": 1, "embedding": 8, "s_embedding": false}'
SMALL = ["--network.init_args", NETWORK, "--steps", "3", "--data.batch_size", "8"]


def test_train_on_ones_own_folder_and_sample(capsys, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "mine" / name / f"{i}.jpg")
    data = ["--data.name", tmp_path / "mine", "--data.size", 8]
    out = tmp_path / "run"
    code, printed, _ = run(capsys, "train", "--config", RECIPES / "digits-teacher.yaml", *data, *SMALL, "--out", out)
    assert code == 0
    assert str(out / "model") in printed
    student = ["--network.init_args", '{"width": 16, "blocks": 1, "embedding": 8}', *SMALL[2:], "--teacher", out]
    made = run(capsys, "train", "--config", RECIPES / "digits-ctm.yaml", *data, *student, "--out", tmp_path / "ctm")
    assert made[0] == 0
    assert run(capsys, "sample", tmp_path / "ctm", "--labels", "0,1", "--out", tmp_path / "x.npz")[0] == 0
    with np.load(tmp_path / "x.npz") as stored:
        assert stored["arr_0"].shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.name", "EMPTY"], "holds no pictures"),
        (["--data.name", "BAD"], "bad.png cannot be read as a picture"),
        (["--data.name", "nothing-of-that-name"], "nothing-of-that-name"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--steps", "many"], "steps"),
        (["--objectives", "[{class_path: ctm.objectives.Matching, init_args: {kind: hard}}]"], "kind"),
        (["--network.class_path", "ctm.networks.Nothing"], "ctm.networks.Nothing"),
        (["--network.class_path", "pathlib.Path"], "pathlib.Path"),
        (["--teacher", "EMPTY"], "no config.json in"),
    ],
)
def test_train_mistakes_are_one_sentence(capsys, tmp_path, arguments, message):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "BAD").mkdir()
    (tmp_path / "BAD" / "bad.png").write_bytes(b"not a picture")
    given = [str(tmp_path / a) if a in ("EMPTY", "BAD") else a for a in arguments]
    err = sentence(
        capsys, "train", "--config", RECIPES / "digits-teacher.yaml", *SMALL, *given, "--out", tmp_path / "run"
    )
    assert message in err
    assert not (tmp_path / "run").exists()


def test_print_config_and_shipped_recipe_by_name(capsys):
    code, out, _ = run(capsys, "train", "--config", "digits-ctm.yaml", "--print_config")
    assert code == 0
    assert "grid_points: 10" in out


def test_a_recipe_that_is_not_there(capsys):
    assert "absent.yaml" in sentence(capsys, "train", "--config", "absent.yaml")


def test_the_installed_command_and_its_exit_codes(tmp_path):
    """The real process: exit 2 without a traceback, and with one under --debug."""
    command = [sys.executable, "-m", "ctm"]
    mistake = subprocess.run([*command, "sample", str(tmp_path)], capture_output=True, text=True)
    assert (mistake.returncode, "Traceback" in mistake.stderr) == (2, False)
    shown = Command(["--debug", "sample", str(tmp_path)])
    assert "Traceback" in shown.communicate(60)[1]
    assert shown.returncode == 1
    assert Command(["--version"]).communicate(60)[0].startswith("ctm-torch ")


def test_our_own_fault_exits_with_one(capsys, model, monkeypatch):
    from ctm.commands import sample

    def broken(source):
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(sample, "load_sampled", broken)
    code, _, err = run(capsys, "sample", model)
    assert code == 1
    assert "ZeroDivisionError: inside" in err
    assert "Traceback" not in err
