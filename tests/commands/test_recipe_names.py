"""`ctm recipes`, and recipes by name in `ctm train --config`."""

from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from ctm.terminal.recipe_files import RECIPES, recipe_path

from .test_cli import run, sentence

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("spelling", ["images-teacher", "images-teacher.yaml", "recipes/images-teacher"])
def test_case_30_a_recipe_is_found_by_its_name(capsys, monkeypatch, tmp_path, spelling):
    """Case 30: `images-teacher` without .yaml; also where a run directory has the same name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images-teacher").mkdir()
    code, out, _ = run(capsys, "train", "--config", spelling, "--print_config")
    assert code == 0
    assert yaml.safe_load(out)["steps"] == 50000


def test_case_30_a_wrong_name_names_similar_ones(capsys):
    for command in (["train", "--config"], ["recipes"]):
        err = sentence(capsys, *command, "image-techer")
        assert "there is no recipe image-techer: did you mean images-teacher" in err
        assert "ctm recipes" in err
    assert "there is no recipe qqqq: all that come with the package: ctm recipes" in sentence(capsys, "recipes", "qqqq")


def test_a_file_of_ones_own_goes_first_and_needs_no_suffix_either(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("steps: 3\n")
    (tmp_path / "digits-ctm.yaml").write_text("steps: 4\n")
    assert recipe_path("mine") == Path("mine.yaml")
    assert recipe_path("digits-ctm") == Path("digits-ctm.yaml")
    assert recipe_path("recipes/digits-ctm") == RECIPES / "digits-ctm.yaml"
    with pytest.raises(FileNotFoundError, match="there is no recipe other/digits-ctm"):
        recipe_path("other/digits-ctm")


def test_all_recipes_are_listed_with_a_line_each(capsys):
    code, out, _ = run(capsys, "recipes")
    assert code == 0
    lines = [line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  ")]
    assert sorted(name for name, _ in lines) == NAMES
    for name, words in lines:
        assert (RECIPES / f"{name}.yaml").read_text().startswith(f"# {words}\n")
        assert len(words) <= 120
    assert [name for name, _ in lines][:2] == ["pictures-small-teacher", "pictures-small-ctm"]
    assert "Others" not in out


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_shown_with_its_command(capsys, name):
    """What is printed is the recipe, as YAML that can be kept as one's own, and a command that is read."""
    code, out, _ = run(capsys, "recipes", name)
    assert code == 0
    assert yaml.safe_load(out) == yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    command = out.splitlines()[-1].removeprefix("# Run it: ctm ").split()
    assert command[:3] == ["train", "--config", name]
    assert run(capsys, *command, "--print_config")[0] == 0


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("pictures-small", "images"))])
def test_pictures_of_ones_own_are_asked_for(capsys, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    assert "give --data.name FOLDER, a folder of them" in sentence(capsys, "train", "--config", name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: 3\n", "is no recipe: a recipe has data with a name"),
        ("- 1\n", "is no recipe: a recipe has data with a name"),
        ("data: digits\n", "is no recipe: a recipe has data with a name"),
        ("data: {name: x\n", "is not readable as YAML"),
        ("a: " + "[" * 60 + "]" * 60, "nested deeper than 50"),
        ("a: !!python/name:os.system\n", "asks for an object"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_a_sentence(capsys, tmp_path, text, words):
    (tmp_path / "mine.yaml").write_text(text)
    said = sentence(capsys, "recipes", tmp_path / "mine.yaml")
    assert str(tmp_path / "mine.yaml") in said
    assert words in said


BOMB = "{a: &a [x, x, x, x, x, x, x, x, x], " + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}], " for old, new in pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("config: secret.txt", "r.yaml sets config, which is no setting of a recipe: take it out of the file"),
        ("out: elsewhere", "r.yaml sets out, which"),
        ("dry_run: true", "r.yaml sets dry_run, which"),
        ("dry-run: true", "r.yaml sets dry-run, which"),
        ("list_entry: objectives.0.rho=3", "r.yaml sets list_entry, which"),
        ("print_config: x", "r.yaml sets print_config, which"),
        ("help: x", "r.yaml sets help, which"),
        ("__default_config__: x", "r.yaml sets __default_config__, which"),
        ("config.x: secret.txt", "r.yaml sets config.x, which"),
        ("<<: {config: secret.txt}", "r.yaml sets config, which"),
        ("data: secret.txt", "r.yaml: data must be given by its settings, got 'secret.txt'"),
        ("engine: /etc/passwd", "r.yaml: engine must be given by its settings, got '/etc/passwd'"),
        ("steps: 1\nsteps: 2", "r.yaml gives the key 'steps' twice"),
        (f"steps: '{BOMB}}}'", "has more than 20000 values with its aliases written out"),
        (f"data: {{name: '{BOMB}}}'}}", "has more than 20000 values with its aliases written out"),
    ],
)
def test_a_recipe_includes_nothing_and_stays_within_bounds(capsys, monkeypatch, tmp_path, text, words):
    """What the library for options would read by itself: other files, and texts as YAML."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text("secret-word: 3\n")
    (tmp_path / "r.yaml").write_text(text + "\n")
    for recipe in ("r.yaml", text + "\n"):
        err = sentence(capsys, "train", "--config", recipe, "--print_config")
        assert words.removeprefix("r.yaml") in err
        assert "secret-word" not in err


def test_a_file_whose_name_looks_like_settings_is_checked_as_a_file(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a: b.yaml").write_text("config: secret.txt\n")
    assert "a: b.yaml sets config" in sentence(capsys, "train", "--config", "a: b.yaml", "--print_config")
