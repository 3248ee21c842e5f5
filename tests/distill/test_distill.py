"""The command from end to end on a small teacher of digits: goes on when killed, and its recipe is what ctm train runs."""

import json
import shutil

import pytest
import torch
import yaml

from ctm import DiffusionModel, load_model
from ctm.cli import main
from ctm.commands import distill as command
from ctm.distill.record import Record
from ctm.networks import MLP

from ..conftest import train_quickly
from ..processes import Command
from ..training.runs import assert_same, checkpoint_steps, everything, wait_for, weights


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """An untrained denoiser of digits with weights that are not zero."""
    torch.manual_seed(0)
    model = DiffusionModel(
        MLP((1, 8, 8), 10, width=24, blocks=1, embedding=16, s_embedding=False), shape=(1, 8, 8), num_classes=10
    )
    torch.nn.init.normal_(model.network.last.weight, std=0.1)
    model.class_names = [str(number) for number in range(10)]
    place = tmp_path_factory.mktemp("teacher") / "small-teacher"
    model.save_pretrained(place)
    return place


@pytest.fixture(autouse=True)
def shared_cache(session_cache, monkeypatch, quick_classifier):
    monkeypatch.setenv("CTM_CACHE", str(session_cache))  # the digits' classifier is trained once for all modules


def arguments(teacher, out, *extra):
    return ["distill", str(teacher), "--out", str(out), *extra]


@pytest.fixture
def no_features(monkeypatch):
    """As on a machine without a feature network, and data without labels to train one on."""
    monkeypatch.setattr(command, "feature_network", lambda images, wanted: (None, "none is here"))


SHORT = ("--steps", "12", "--batch_size", "16", "--num", "64")


@pytest.fixture(scope="module")
def finished(teacher, session_cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("distil") / "fast"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTM_CACHE", str(session_cache))
        train_quickly(patch)
        assert main(arguments(teacher, out, "--data", "digits", *SHORT)) == 0
    return out


def test_it_ends_with_table_report_and_a_model(finished):
    rows = json.loads((finished / "result.json").read_text())["rows"]
    assert [(row["role"], row["evaluations"]) for row in rows] == [
        ("teacher", 35),
        ("teacher", 4),
        ("model", 1),
        ("model", 2),
        ("model", 4),
    ]
    assert all(row["numbers"]["frechet"]["value"] > 0 for row in rows)
    page = (finished / "report.html").read_text()
    assert "grid_points" in page
    assert "small-teacher in few steps" in page
    assert load_model(finished).shape == (1, 8, 8)


@pytest.mark.slow
def test_the_recipe_it_wrote_is_run_by_train_to_the_same_bits(finished, tmp_path):
    again = tmp_path / "again"
    assert main(["train", "--config", str(finished / "recipe.yaml"), "--out", str(again)]) == 0
    assert everything(finished) == everything(again)


def test_again_it_reads_and_computes_nothing(finished, teacher, capsys, monkeypatch):
    before = everything(finished)
    monkeypatch.setattr(command, "teacher_walks", None)  # it is not measured again
    assert main(arguments(teacher, finished, "--data", "digits", *SHORT)) == 0
    printed = capsys.readouterr().out
    assert "goes on with what" in printed
    assert "grid_points: " in printed
    assert "there is nothing left to train" in printed
    assert everything(finished) == before


def test_other_options_and_another_teacher_are_refused(finished, teacher, tmp_path, capsys):
    assert main(arguments(teacher, finished, "--data", "digits", *SHORT, "--learning_rate", "1e-3")) == 2
    assert "learning_rate: None there, 0.001 now" in " ".join(capsys.readouterr().err.split())
    other = tmp_path / "small-teacher"
    shutil.copytree(teacher, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"sigma_max": 70.0}))
    assert main(arguments(other, finished, "--data", "digits", *SHORT)) == 2
    assert "was begun with another teacher" in " ".join(capsys.readouterr().err.split())


def listed(directory):
    """Each file of a directory, and its bytes."""
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (("notes.txt", "recipe.yaml"), "holds notes.txt, which ctm distill did not write: use another --out"),
        (("recipe.yaml",), "holds recipe.yaml, which ctm distill did not write"),
        (("data/teacher-samples.npz",), "holds data, which ctm distill did not write"),
        (("config.yaml", "recipe.yaml"), "holds config.yaml, which ctm distill did not write"),
        (("distill.json", "recipe.yaml", "notes.txt"), "exists and is not a run directory (no config.yaml)"),
    ],
    ids=["strangers", "recipe", "data", "train", "damaged"],
)
def test_a_directory_that_is_not_its_own_keeps_its_bytes(teacher, tmp_path, capsys, monkeypatch, there, words):
    """It is refused before a teacher is read and anything is measured or written."""
    monkeypatch.setattr(command, "load_teacher", None)
    out = tmp_path / "taken"
    for name in there:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(f"mine: {name}")
    before = listed(tmp_path)
    assert main(arguments(teacher, out, "--data", "digits", *SHORT)) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert listed(tmp_path) == before


@pytest.mark.slow
def test_a_dry_run_writes_nothing(teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["distill", str(teacher), "--minutes", "0.5", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "whole run: " in printed
    assert "objectives:" in printed
    assert "s are for training" in printed
    assert list(tmp_path.iterdir()) == [tmp_path / "cache"] or list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_without_data_it_uses_the_teachers_own_samples_and_goes_on_when_killed(teacher, tmp_path, no_features):
    """Killed while it samples, then while it trains: the end has the bits of an unbroken run."""
    own = (*SHORT[:4], "--samples", "3000", "--num", "64")
    whole, broken = tmp_path / "whole" / "fast", tmp_path / "broken" / "fast"
    assert main(arguments(teacher, whole, *own)) == 0
    process = Command(arguments(teacher, broken, *own))
    wait_for(process, broken / "data", "*.partial/arr_0.npy")
    process.kill()
    process.communicate(timeout=60)
    assert not (broken / "recipe.yaml").exists()
    process = Command(arguments(teacher, broken, *own))
    wait_for(process, broken / "checkpoints", "0*")
    process.kill()
    process.communicate(timeout=60)
    assert main(arguments(teacher, broken, *own)) == 0
    samples = "data/teacher-samples.npz"
    assert (broken / samples).read_bytes() == (whole / samples).read_bytes()
    assert_same(weights(broken), weights(whole))
    assert load_model(whole).class_names == [str(number) for number in range(10)]
    assert Record.load(broken).samples["digest"] == Record.load(whole).samples["digest"]
    assert yaml.safe_load((whole / "recipe.yaml").read_text())["data"]["name"] == str(whole / samples)


def test_changed_samples_are_refused(teacher, tmp_path, capsys, no_features):
    out, own = tmp_path / "fast", (*SHORT[:4], "--samples", "40", "--num", "16")
    assert main(arguments(teacher, out, *own)) == 0
    file = out / "data" / "teacher-samples.npz"
    file.write_bytes(file.read_bytes() + b"x")
    assert main(arguments(teacher, out, *own)) == 2
    assert "teacher-samples.npz has changed" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_labels_that_the_teacher_does_not_know_are_left_out(tmp_path, no_features):
    """The student of an unconditional teacher is unconditional; the table still uses the data's labels for its features. Where no
    feature network is there, the table is the distance to the teacher's samples."""
    torch.manual_seed(0)
    model = DiffusionModel(MLP((1, 8, 8), width=16, blocks=1, embedding=16, s_embedding=False), shape=(1, 8, 8))
    model.save_pretrained(tmp_path / "free")
    out = tmp_path / "fast"
    assert main(arguments(tmp_path / "free", out, "--data", "digits", *SHORT)) == 0
    assert yaml.safe_load((out / "recipe.yaml").read_text())["data"]["unlabelled"] is True
    assert load_model(out).num_classes == 0
    found = json.loads((out / "result.json").read_text())["rms_to_teacher"]
    assert found.keys() == {"1", "2", "4"}
    assert "There is no Fréchet distance" in (out / "report.html").read_text()
    assert checkpoint_steps(out)[-1] == 12


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("--guidance", "5"), "--guidance takes LOW,HIGH"),
        (("--minutes", "0"), "--minutes must be above 0"),
        (("--steps", "0"), "--steps must be at least 1"),
        (("--data", "digits", "--samples", "50"), "--samples is the number of the teacher's own samples"),
        (("--network", "MLP"), "--network takes"),
    ],
)
def test_mistakes_are_sentences(teacher, tmp_path, capsys, extra, words):
    assert main(arguments(teacher, tmp_path / "fast", *extra)) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "fast").exists()
