"""A model's card says what the model was made from, and names no licence unless one is given."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from ctm import DiffusionModel, TrajectoryModel
from ctm.models import ConsistencyModel
from ctm.models.card import card
from ctm.networks import MLP, UNet1d
from ctm.scaling import Scaling

from .runs import student_arguments, teacher_arguments, trained

ROOT = Path(__file__).parents[2]
SHORT = ("--steps", "3", "--seed", "5", "--log_every", "3")


def head(text):
    return yaml.safe_load(text.split("---")[1])


def test_a_model_saved_by_hand_has_a_card_without_licence(small_ctm, tmp_path):
    small_ctm.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert head(text) == {
        "library_name": "ctm-torch",
        "tags": ["ctm-torch", "consistency-trajectory-model", "diffusion"],
    }
    assert "licen" not in text.lower()
    assert "| samples | images 1×8×8 (C×H×W) in [-1, 1] |" in text
    assert "| noise levels | 0.002 to 80, sigma_data 0.5 |" in text


@pytest.mark.parametrize("kind", [DiffusionModel, ConsistencyModel, TrajectoryModel])
def test_the_lines_under_use_draw_images(tmp_path, kind):
    kind(MLP((1, 4, 4), width=8, blocks=1, embedding=8), shape=(1, 4, 4)).save_pretrained(tmp_path / "model")
    lines = (tmp_path / "model" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(lines.replace("directory or hub id", (tmp_path / "model").as_posix()), names)
    assert names["images"].shape == (16, 1, 4, 4)


def test_the_card_of_a_run_names_data_teacher_classes_training_and_numbers(tmp_path):
    teacher = trained(tmp_path / "teacher", teacher_arguments("--steps", "1"))
    out = trained(tmp_path / "run", student_arguments(teacher, *SHORT))
    text = (out / "model" / "README.md").read_text()
    assert "licen" not in head(text)
    for line in (
        "| data | Optical Recognition of Handwritten Digits, UCI (Alpaydin & Kaynak), 1,797 images, CC BY 4.0; 1797 images |",
        f"| teacher | {teacher} |",
        "| objectives | Matching, DenoisingScoreMatching |",
        "| seed | 5 |",
        "0 0, 1 1, 2 2, 3 3, 4 4, 5 5, 6 6, 7 7, 8 8, 9 9",
        "ctm.load_model(",
    ):
        assert line in text
    assert "| training | 3 of 3 steps of 16 images in " in text
    assert json.loads((out / "made_of.json").read_text())["data"]["digest"][:16] in text
    assert ModelCard.load(out / "model" / "README.md").data.library_name == "ctm-torch"
    evaluations = [
        {"step": 2, "frechet": 30.5},
        {"step": 3, "frechet": 20.25, "how": {"num": 16}},
        {"step": 9, "frechet": 1},
    ]
    (out / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evaluations))
    trained(out, student_arguments(teacher, *SHORT))  # published once more: as whole as before, with the newest numbers
    again = (out / "model" / "README.md").read_text()
    numbers = (
        "## Numbers\n\n| measure | value |\n|---|---|\n| frechet (step 3, against the training data) | 20.25 |\n\n"
    )
    assert again == text.replace("## Use", numbers + "## Use")


def test_a_licence_that_is_given_stands_in_the_card(tmp_path):
    out = trained(tmp_path / "run", teacher_arguments(*SHORT, "--license", "cc-by-4.0"))
    assert head((out / "model" / "README.md").read_text())["license"] == "cc-by-4.0"


@pytest.mark.parametrize("name", ["a | b", "line\nbreak", "<script>", "`code`"])
def test_names_of_strangers_stay_in_their_cell(small_ctm, name):
    text = card(small_ctm, {"data": name}, classes=[name] * 30)
    (row,) = [line for line in text.splitlines() if line.startswith("| data |")]
    assert row.replace("\\|", "").count("|") == 3
    assert "<script>" not in text
    assert "(30 in all)" in text


@pytest.fixture(scope="module")
def tool():
    """tools/publish_model.py"""
    spec = importlib.util.spec_from_file_location("publish_model", ROOT / "tools" / "publish_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_published_model_keeps_what_the_card_of_its_run_says(tool, tmp_path):
    teacher = trained(tmp_path / "teacher", teacher_arguments("--steps", "1"))
    out = trained(tmp_path / "run", student_arguments(teacher, *SHORT))
    target = tmp_path / "published"
    tool.publish(out, target, commit="0123456789abcdef")
    told, text = ((path / "README.md").read_text() for path in (out / "model", target))
    assert head(text) == {**head(told), "license": "mit"}
    rows = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    for line in told.splitlines():
        name = line.split(" | ")[0]
        if name in ("| data", "| data digest", "| teacher", "| objectives", "| seed", "| classes", "| parameters"):
            assert rows[name] == line
    assert rows["| training"].startswith("| training | 3 of 3 steps of 16 images in ")
    assert "| made with | ctm-torch, commit 0123456789ab |" in text
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"| loss/Matching (at step 3) | {last['loss/Matching']:.4g} |" in text
    (out / "evaluations.jsonl").write_text('{"step": 3, "frechet": 20.25}\n')
    tool.publish(out, target, commit="0123456789abcdef")
    again = (target / "README.md").read_text()
    assert "| frechet (step 3, against the training data) | 20.25 |" in again
    assert "loss/" not in again


def test_the_cards_of_the_shipped_models_say_what_their_files_say(tool):
    """Written by `python tools/publish_model.py --cards`."""
    names = [path.name for path in tool.published()]
    assert names == [
        "digits-ctm",
        "digits-teacher",
        "fashion-mnist-ctm",
        "fashion-mnist-teacher",
        "maze-ctm",
        "maze-teacher",
    ]
    for path in tool.published():
        text = (path / "README.md").read_text()
        assert text == tool.card_of(path), path.name
        assert head(text)["license"] == "mit"
        made = json.loads((path / "provenance.json").read_text())
        for line in (
            "| data |",
            "| teacher |",
            f"commit {made['commit'][:12]}",
            f"{made['steps']:,} of ",
            "## Numbers",
        ):
            assert line in text


def test_the_card_of_a_model_of_numbers_says_their_units_and_its_condition():
    network = UNet1d((2, 8), arrays={"observation": (10,), "speed": ()}, channels=8, channel_mult=[1], blocks=1)
    model = TrajectoryModel(network, shape=(2, 8))
    model.scaling = Scaling("standard", (7.0, 7.0), (6.0, 0.2))
    text = card(model)
    assert "| samples | 2×8 numbers in the units of the data, by the scaling in config.json |" in text
    assert "| classes | none |" in text
    assert "| condition | observation (10), speed (a number) |" in text
    assert "unconditional" not in text
