"""Every recipe that ships is read, built, and takes its steps: the large ones at reduced width."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from ctm.cli import main
from ctm.terminal.recipe_files import RECIPES
from ctm.terminal.recipe_parser import parse_recipe

from .conftest import mostly_slow

ALL = sorted(RECIPES.glob("*.yaml"))
LARGE = [path for path in ALL if path.name.startswith(("cifar10", "imagenet64"))]
NARROW = {
    "cifar10": {"channels": 32, "blocks": 1},
    "imagenet64": {"channels": 32, "blocks": 1, "head_channels": 16},
}


def test_the_recipes_the_documentation_names_are_there():
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    assert {path.name for path in ALL} <= {word.strip("`|,.") for word in text.split()}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_recipe_is_read(path):
    recipe, text = parse_recipe(["--config", str(path)])
    assert yaml.safe_load(text)["steps"] == recipe.steps


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_scales_by(path):
    """sigma_data is stated, so that a recipe's results stand; of pictures of one's own it is measured."""
    stated = "sigma_data" in (yaml.safe_load(path.read_text()).get("model") or {})
    assert stated != path.stem.startswith("pictures-small")


def small(objectives):
    """The same objectives, their feature networks at 32 pixels, and without the one that needs torchvision."""
    text = json.dumps(objectives).replace('"side": 224', '"side": 32')
    return text.replace(', {"class_path": "ctm.backbones.DeiT"}', "")


@pytest.mark.parametrize("name", mostly_slow([path.stem for path in LARGE], "cifar10-ctm"))
def test_the_papers_recipes_run_at_reduced_width(name, tmp_path, capsys, few_draws):
    """As `ctm train --dry-run` on random pictures of 32 pixels, with a teacher of the same reduced width."""
    path = RECIPES / f"{name}.yaml"
    name = name.split("-")[0]
    classes = 10 if name == "cifar10" else 1000
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    labels = np.array([0, 1, 2, 3, 4, 5, 6, classes - 1])
    np.savez(tmp_path / "data.npz", images=pixels, labels=labels)
    objectives = yaml.safe_load(path.read_text())["objectives"]
    objectives[0]["init_args"]["max_solver_steps"] = 2
    options = [
        "--data.name",
        str(tmp_path / "data.npz"),
        "--data.size",
        "32",
        "--data.batch_size",
        "2",
        f"--objectives={small(objectives)}",
    ]
    narrow = [word for key, value in NARROW[name].items() for word in (f"--network.init_args.{key}", str(value))]
    options += ["--teacher", "null", "--student", "null", *narrow]
    assert main(["train", "--config", str(path), "--dry-run", *options]) == 0
    printed = capsys.readouterr().out
    assert "parameters" in printed
    assert not (Path.cwd() / "runs" / path.stem).exists()
