"""The ways to teach a jump as docs/ways.md has them: each entry trains, and two processes make the step of one."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import train

from .runs import RECIPES, SMALL, finish, rows, start, teacher_arguments, trained, weights

PAGE = Path(__file__).parents[2] / "docs" / "ways.md"
ENTRIES = dict(re.findall(r"## ([^\n]+)\n[^#]*?```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("teacher"), teacher_arguments("--steps", "2"))


def arguments(name: str, teacher: Path, place: Path, *extra: str) -> list[str]:
    """The recipe digits-ctm with the page's objectives in place of its own, small."""
    text = yaml.safe_load((RECIPES / "digits-ctm.yaml").read_text(encoding="utf-8")) | yaml.safe_load(ENTRIES[name])
    (place / "recipe.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
    own = ["--config", str(place / "recipe.yaml"), *SMALL, "--teacher", str(teacher)]
    return [*own, "--condition_dropout", "0.3", *extra]


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_of_the_page_trains(name, teacher, tmp_path):
    """With classes: labels go to student and teacher."""
    out = trained(tmp_path / "run", arguments(name, teacher, tmp_path, "--steps", "10", "--log_every", "1"))
    last = rows(out)[-1]
    losses = [value for key, value in last.items() if key.startswith("loss/")]
    assert len(losses) == len(yaml.safe_load(ENTRIES[name])["objectives"])
    assert all(0 < value < 1e4 for value in losses)
    assert last["skipped"] == 0


@pytest.mark.parametrize("name", ["Lagrangian"])
def test_two_processes_make_the_step_of_one(name, teacher, tmp_path):
    """Through gloo, with adaptive weights: to float tolerance the weights of one process."""
    given = arguments(name, teacher, tmp_path, "--steps", "3", "--seed", "2")
    finish(start(given, tmp_path / "two", 2))
    recipe, text = parse_recipe(given)
    train(recipe, tmp_path / "one", text)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["Lagrangian", "Eulerian"])
def test_compilation_that_would_not_take_place_is_refused(name, teacher, tmp_path):
    recipe, text = parse_recipe(arguments(name, teacher, tmp_path, "--engine.compile", "eager"))
    with pytest.raises(
        ValueError, match=f"engine.compile does not go with {name}: torch.compile leaves a network uncompiled"
    ):
        train(recipe, tmp_path / "run", text)
