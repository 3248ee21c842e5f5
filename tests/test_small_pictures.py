"""Case 31: pictures of one's own on a small machine, by the recipes pictures-small-teacher and pictures-small-ctm."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.utils.flop_counter import FlopCounterMode

import ctm
from ctm.cli import main
from ctm.conditioner import Labels
from ctm.objectives import DenoisingScoreMatching, Matching
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import Recipe
from ctm.training.dry_run import expected_teacher_evaluations

SHAPE, CLASSES = (3, 32, 32), 10
# Floating-point operations in ten minutes of two cores of an Intel Xeon, which made 65 to 70 GFLOP/s of these networks.
BUDGET = 4.5e13


def recipe(stage: str, *options: str) -> Recipe:
    return parse_recipe(["--config", f"pictures-small-{stage}", *options])[0]


@pytest.fixture
def pictures(tmp_path):
    """Something like emoji: a coloured disc with eyes, and a flag, 64×64 with transparency, 12 of each."""
    random = np.random.default_rng(0)
    for name in ("faces", "flags"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for number in range(12):
            image = Image.new("RGBA", (64, 64))
            draw, (first, second) = ImageDraw.Draw(image), random.integers(0, 256, (2, 3)).tolist()
            if name == "faces":
                draw.ellipse((4, 4, 60, 60), fill=(*first, 255))
                draw.ellipse((20, 22, 28, 30), fill=(*second, 255))
                draw.ellipse((36, 22, 44, 30), fill=(*second, 255))
            else:
                draw.rectangle((2, 12, 61, 51), fill=(*first, 255))
                draw.rectangle((2, 12, 20 + number, 51), fill=(*second, 255))
            image.save(tmp_path / "mine" / name / f"{number}.png")
    return tmp_path / "mine"


def test_case_31_a_folder_becomes_a_teacher_a_ctm_and_pictures(pictures, tmp_path, monkeypatch, capsys):
    """The README's commands on a folder of pictures, cut to two steps of a narrow network; the recipes are found by name from
    anywhere."""
    monkeypatch.chdir(tmp_path)
    few = ["--steps", "2", "--data.batch_size", "2", "--sample_every", "2", "--network.init_args.channels", "16"]
    data = ["--data.name", str(pictures)]
    teacher = ["--config", "pictures-small-teacher", *data, "--out", "runs/teacher"]
    student = ["--config", "pictures-small-ctm", *data, "--teacher", "runs/teacher", "--out", "runs/ctm"]
    assert main(["train", *teacher, *few]) == 0
    assert main(["train", *student, *few]) == 0
    assert main(["sample", "runs/ctm", "--num", "6", "--columns", "class", "--out", "samples.png"]) == 0
    assert capsys.readouterr().err.count("ctm:") == 0
    for run in ("teacher", "ctm"):
        assert ctm.load_model(f"runs/{run}").shape == SHAPE
        assert Image.open(f"runs/{run}/samples/000002.png").mode == "RGB"
    assert Image.open("samples.png").mode == "RGB"


def operations(stage: str) -> float:
    """Of a whole run, counted in forward passes: a backward pass is two of them, one where only the input's gradient is asked."""
    made = recipe(stage) if stage in ("teacher", "ctm") else parse_recipe(["--config", stage])[0]
    network = made.network(SHAPE, CLASSES)
    level = torch.ones(1)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *SHAPE), level, level, torch.zeros(1, dtype=torch.int64))
    forwards = 0.0
    for objective in made.objectives:
        if isinstance(objective, DenoisingScoreMatching):
            forwards += 3
        elif isinstance(objective, Matching):
            model = made.model.build(made.network, SHAPE, Labels(CLASSES))
            walk = expected_teacher_evaluations(made, model, SHAPE)
            forwards += 3 + 2 + 1 + 1 + walk  # estimate and its last jump, target and its last jump, the teacher
    return forwards * counter.get_total_flops() * made.data.batch_size * made.steps


@pytest.mark.parametrize("stage", ["teacher", "ctm"])
def test_case_31_a_small_recipe_is_for_small_machines(stage, few_draws):
    """What a run computes stays within ten minutes of two cores: and uses them."""
    assert 0.5 * BUDGET < operations(stage) < BUDGET
    assert operations(f"images-{stage}") > 100 * BUDGET  # 19 days on two cores when it was tried


def test_case_31_the_first_grid_comes_early():
    """Grids of samples every two minutes of about ten, and the student's network is the teacher's."""
    for stage in ("teacher", "ctm"):
        assert recipe(stage).sample_minutes == 2.0
    settings = {stage: recipe(stage).network.init_args for stage in ("teacher", "ctm")}
    assert settings["teacher"] == {**settings["ctm"], "s_embedding": False}
