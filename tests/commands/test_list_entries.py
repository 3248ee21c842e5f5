"""`--objectives.0.grid_points 10`: one setting of one entry of a list."""

import pytest
import yaml

from ctm.objectives import Matching
from ctm.terminal.recipe_parser import parse_recipe

from .test_cli import run, sentence


def recipe(*arguments: str, name: str = "digits-ctm"):
    return parse_recipe(["--config", name, *arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--objectives.0.grid_points", "12"],
        ["--objectives.0.grid_points=12"],
        ["--objectives.0.init_args.grid_points", "12"],
        ["--objectives.Matching.grid_points", "12"],
        ["--objectives.0.grid_points", "5", "--objectives.0.grid_points", "12"],
        ["--objectives.0", "{class_path: ctm.objectives.Matching, init_args: {kind: soft, grid_points: 12}}"],
    ],
)
def test_one_objective_of_the_list_is_changed(arguments):
    """Only that setting; it is in the run's config.yaml, and what that holds gives the same recipe."""
    before, made = recipe()[0], recipe(*arguments)
    assert made[0].objectives == [Matching(kind="soft", grid_points=12), before.objectives[1]]
    assert yaml.safe_load(made[1])["objectives"][0]["init_args"]["grid_points"] == 12
    assert "list_entry" not in made[1]


def test_later_options_win():
    whole = "--objectives=[{class_path: ctm.objectives.Matching, init_args: {grid_points: 7}}]"
    assert recipe("--objectives.0.grid_points", "12", whole)[0].objectives[0].grid_points == 7
    assert recipe(whole, "--objectives.0.grid_points", "12")[0].objectives[0].grid_points == 12


def test_lists_within_entries_and_other_lists():
    options = ["--objectives.2.discriminator.backbones.0.side", "64", "--objectives.Adversarial.start", "9"]
    adversarial = recipe(*options, name="digits-ctm-gan")[0].objectives[2]
    assert (adversarial.discriminator.backbones[0].side, adversarial.start) == (64, 9)
    averages = "--ema=[{class_path: ctm.training.Decay, init_args: {decay: 0.9}}]"
    assert recipe(averages, "--ema.Decay.decay", "0.8")[0].averages[0].decay == 0.8
    assert recipe("--loss_factors=[1, 1]", "--loss_factors.1", "0.5")[0].loss_factors == [1, 0.5]


def test_print_config_shows_it(capsys):
    code, out, _ = run(capsys, "train", "--config", "digits-ctm", "--objectives.Matching.rho", "5", "--print_config")
    assert code == 0
    assert yaml.safe_load(out)["objectives"][0]["init_args"]["rho"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--objectives.0.grid_pionts", "3"],
            "Matching has no setting grid_pionts (did you mean grid_points?): it has kind,",
        ),
        (["--objectives.2.start", "3"], "there is no entry 2, there is: 0 Matching, 1 DenoisingScoreMatching"),
        (["--objectives.Adversarial.start", "3"], "there is no entry Adversarial, there is: 0 Matching"),
        (["--objectives.0.grid_points"], "--objectives.0.grid_points needs a value"),
        (["--objectives.0.grid_points=null"], "a setting of the recipe has a value of a wrong kind, such as null: '<'"),
        (["--objectives.0.grid_points="], "--objectives.0.grid_points= needs a value after it, got none"),
        (["--objectives.0.grid_points", ""], "--objectives.0.grid_points needs a value after it, got none"),
        (["--objectives.0.grid_points", "many"], "--objectives.0.grid_points must be a whole number, got many"),
        (["--objectives.0.grid_points", "1"], "grid_points must be at least 2, got 1"),
        (["--objectives.0.kind", "["], "--objectives.0.kind [: while parsing"),
        (["--objectives.0.class_path", "os.system"], "class_path comes with all of an entry"),
        (["--objectives.0.distance.side", "3"], "the recipe gives no distance that has settings: give it whole"),
        (["--ema.0.decay", "0.5"], "--ema.0.decay: ema is no list here"),
        (["--objectives.0", "{class_path: os.system}"], "os.system"),
    ],
)
def test_mistakes_are_one_sentence(capsys, arguments, message):
    assert message in sentence(capsys, "train", "--config", "digits-ctm", *arguments)


def test_two_entries_of_a_class_need_a_number(capsys):
    twice = "--objectives=[{class_path: ctm.objectives.Matching}, {class_path: ctm.objectives.Matching}]"
    err = sentence(capsys, "train", "--config", "digits-ctm", twice, "--objectives.Matching.rho", "5")
    assert "2 entries are called Matching, give the number: 0 Matching, 1 Matching" in err


def test_a_list_needs_a_recipe_before_it(capsys):
    err = sentence(capsys, "train", "--objectives.0.rho", "5", "--config", "digits-ctm")
    assert "objectives is no list here: give --config before it" in err


def test_a_run_goes_on_with_the_same_value_and_refuses_another(capsys, tmp_path):
    small = ["--network.init_args.width", 16, "--network.init_args.blocks", 1, "--data.batch_size", 4]
    scratch = ["train", "--config", "digits-scratch", *small, "--out", tmp_path / "run", "--steps", 2]
    assert run(capsys, *scratch, "--objectives.Matching.rho", "5")[0] == 0
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert kept["objectives"][0]["init_args"]["rho"] == 5
    assert run(capsys, *scratch, "--objectives.0.rho", "5")[0] == 0
    assert "objectives" in sentence(capsys, *scratch, "--objectives.0.rho", "6")
