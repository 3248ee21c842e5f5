"""Which settings may change when a run goes on, and how a run is made longer."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from ctm import load_model
from ctm.models.grids import TunedGrid
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import DataSettings, Recipe, train
from ctm.training.settings import FREE, SOURCES, check_settings, decided

from ..conftest import slow
from .runs import (
    RECIPES,
    SMALL_TEACHER,
    checkpoint_steps,
    everything,
    rows,
    student_arguments,
    teacher_arguments,
    trained,
    weights,
)

GRID = TunedGrid((80.0, 0.3, 0.002), 0.0, "m", 1.0, 0.1, 0.5, 0.1, 0.5, 0.01)
# What every step or every draw depends on.
COMPUTED = frozenset(
    {
        "adaptive_balance",
        "condition_dropout",
        "data.augment",
        "data.batch_size",
        "data.flip",
        "data.scaling",
        "decay_fraction",
        "discriminator_optimizer",
        "ema",
        "engine",
        "label_dropout",  # the older name of condition_dropout
        "lora",
        "loss_factors",
        "model",
        "network",
        "objectives",
        "optimizer",
        "schedule",
        "seed",
        "spike_factor",
        "start_from",
        "teacher_guidance",
        "target_ema",
        "warmup_steps",
    }
)
LONG = ("--decay_fraction", "0", "--log_every", "5", "--checkpoint_every", "10", "--sample_every", "1000")


def fields():
    """Every setting of a recipe by its path; of data, whose settings are decided one by one, each."""
    names = [field.name for field in dataclasses.fields(Recipe) if field.name != "data"]
    return names + [f"data.{field.name}" for field in dataclasses.fields(DataSettings)]


@pytest.mark.parametrize("name", fields())
def test_it_is_decided_for_every_setting_whether_it_may_change(name):
    """A new setting is named in ctm.training.settings, or above where a step or a draw depends on it."""
    assert [name in FREE, name in SOURCES, name in COMPUTED, name == "steps"].count(True) == 1


def test_a_setting_within_another_is_decided_by_that():
    assert decided("objectives[0].init_args.grid_points") == "computed"
    assert decided("evaluation.every") == "free"
    assert decided("data.name") == "data"
    assert decided("engine.compile") == "computed"
    assert decided("a_setting_of_a_later_version") == "computed"


FREELY = {
    "log_every": "7",
    "sample_every": "3",
    "sample_minutes": "null",
    "checkpoint_every": "2",
    "keep_checkpoints": "1",
    "skip_limit": "3",
    "evaluation": "{every: 1000, num: 16}",
    "license": "cc0-1.0",
    "trackers": "[]",
}


def test_case_10_settings_that_compute_nothing_may_change_and_are_named(tmp_path, capsys):
    assert FREELY.keys() == FREE
    out = trained(tmp_path / "run", teacher_arguments(*LONG, "--steps", "10"))
    whole = trained(tmp_path / "whole", teacher_arguments(*LONG, "--steps", "12"))
    capsys.readouterr()
    changed = [word for name, value in FREELY.items() if name != "evaluation" for word in (f"--{name}", value)]
    trained(out, teacher_arguments(*LONG, "--steps", "12", *changed))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "other settings" in line]
    assert "which change nothing computed so far" in line
    assert "log_every: 5 there, 7 here" in line
    assert "steps: 10 there, 12 here" in line
    assert (out / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()
    assert yaml.safe_load((out / "config.yaml").read_text())["log_every"] == 7


@pytest.mark.parametrize("last", [slow(20), 17])
def test_case_10_a_finished_run_made_longer_is_the_longer_run(tmp_path, last):
    """Bit for bit, its log included: also where it ended between two lines of the log and two checkpoints."""
    out = trained(tmp_path / "run", teacher_arguments(*LONG, "--steps", str(last)))
    assert checkpoint_steps(out)[-1] == last
    assert rows(out)[-1]["step"] == last
    trained(out, teacher_arguments(*LONG, "--steps", "33"))
    whole = trained(tmp_path / "whole", teacher_arguments(*LONG, "--steps", "33"))
    assert everything(out) == everything(whole)


def test_a_run_that_goes_on_says_from_where_and_a_finished_one_that_nothing_is_left(tmp_path, capsys):
    def printed(steps: int) -> str:
        trained(tmp_path / "run", teacher_arguments(*LONG, "--steps", str(steps)))
        return capsys.readouterr().out

    first, again, longer = printed(10), printed(10), printed(12)
    assert "goes on" not in first
    assert "nothing left" not in first
    assert "all 10 steps were taken before: there is nothing left to train" in again
    assert "goes on from step 10 of 12" in longer


def test_case_10_where_the_steps_taken_would_be_others_the_way_is_named(tmp_path):
    falling = ("--decay_fraction", "0.5", "--steps", "10")
    out = trained(tmp_path / "run", teacher_arguments(*falling))
    before = weights(out)
    with pytest.raises(ValueError, match="the learning rate falls over its last steps") as refused:
        trained(out, teacher_arguments("--decay_fraction", "0.5", "--steps", "11"))
    assert f"Start a new run from its weights: --student {out} with a new --out" in str(refused.value)
    assert yaml.safe_load((out / "config.yaml").read_text())["steps"] == 10
    unmoved = teacher_arguments(*falling, "--student", str(out), "--optimizer.init_args.lr", "0")
    way = trained(tmp_path / "new", unmoved)
    assert all((weights(way)[name] - value).abs().max() < 1e-6 for name, value in before.items())


def test_case_10_a_run_stopped_before_its_learning_rate_falls_may_become_longer():
    recipe, text = parse_recipe(teacher_arguments("--decay_fraction", "0.5", "--steps", "200"))
    now = yaml.safe_load(text)
    before = now | {"steps": 100}
    options = {"place": "runs/x", "equal": set()}
    assert check_settings(before, now, recipe, reached=50, **options)
    with pytest.raises(ValueError, match="step 52 of the 52 taken would have been another"):
        check_settings(before, now, recipe, reached=52, **options)


def test_case_10_fewer_steps_than_taken(tmp_path):
    out = trained(tmp_path / "run", teacher_arguments(*LONG, "--steps", "10"))
    with pytest.raises(ValueError, match=r"has taken 10 steps already, and --steps 9 are fewer: give 10 or more"):
        trained(out, teacher_arguments(*LONG, "--steps", "9"))


def test_case_10_a_schedule_over_all_steps(tmp_path):
    name, plain = str(RECIPES / "digits-ct.yaml"), SMALL_TEACHER
    recipe, text = parse_recipe(["--config", name, *plain, "--steps", "40", "--decay_fraction", "0"])
    assert recipe.schedule is not None
    now = yaml.safe_load(text)
    with pytest.raises(ValueError, match="its schedule spreads over all steps"):
        check_settings(now | {"steps": 20}, now, recipe, place="runs/x", reached=20, equal=set())


def test_a_run_of_an_older_version_goes_on(tmp_path, capsys):
    """Its config.yaml lacks the settings that came since, and it has no made_of.json: one line says so."""
    out, arguments = tmp_path / "run", teacher_arguments(*LONG, "--steps", "10")
    trained(out, arguments)
    settings = yaml.safe_load((out / "config.yaml").read_text())
    for name in ("start_from", "sample_minutes", "license"):
        del settings[name]
    del settings["data"]["split"], settings["engine"]["compile"]
    (out / "config.yaml").write_text(yaml.safe_dump(settings))
    (out / "made_of.json").unlink()
    for path in out.glob("checkpoints/*/state.json"):
        state = json.loads(path.read_text())
        del state["extra"]["log"], state["extra"]["closed"]
        path.write_text(json.dumps(state))
        (path.parent / "manifest.json").write_text(json.dumps({"files": {}}))
    capsys.readouterr()
    trained(out, arguments)
    printed = capsys.readouterr().out
    assert (
        "is from a version that kept no made_of.json: whether data and teacher are those of before is not known"
        in printed
    )
    assert "other settings" not in printed
    assert Path(out / "made_of.json").is_file()


def test_the_measured_levels_stand_in_config_yaml_and_decide(tmp_path):
    """Going on takes the same numbers; another value is another run."""
    arguments = [*teacher_arguments(*LONG, "--steps", "4"), "--model.sigma_data", "null"]
    out = trained(tmp_path / "run", arguments)
    model = yaml.safe_load((out / "config.yaml").read_text())["model"]
    assert (model["sigma_min"], model["sigma_max"], model["sigma_data"]) == (0.002, 80.0, 0.7518)
    train(*[parse_recipe(arguments)[0], out, parse_recipe(arguments)[1]])
    with pytest.raises(ValueError, match=r"other settings \(model.sigma_data: 0.7518 there, 0.5 here\)"):
        trained(out, [*arguments, "--model.sigma_data", "0.5"])


@pytest.mark.slow
def test_tuned_grids_stay_with_the_weights_they_were_tuned_for(tmp_path, capsys):
    """The same command once more keeps them; more steps leave them out, and a line says so."""
    teacher = trained(tmp_path / "teacher", teacher_arguments("--steps", "1"))
    arguments = student_arguments(teacher, "--decay_fraction", "0", "--steps", "2")
    out = trained(tmp_path / "run", arguments)
    grid = {"2": {**dataclasses.asdict(GRID), "levels": list(GRID.levels)}}
    config = out / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"grids": grid}))
    trained(out, arguments)
    assert load_model(out).grids == {2: GRID}
    capsys.readouterr()
    trained(out, [*arguments[:-1], "3"])
    assert "model/ has tuned grids of step 2, the next has none: ctm tune makes them again" in capsys.readouterr().out
    assert load_model(out).grids == {}
