"""A number of a recipe that is NaN or infinite is refused by its name, whichever setting it is."""

import pytest

from ctm.cli import main

from .runs import teacher_arguments


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--spike_factor", "spike_factor"),
        ("--sample_minutes", "sample_minutes"),
        ("--decay_fraction", "decay_fraction"),
        ("--model.sigma_max", "model.sigma_max"),
        ("--model.sigma_data", "model.sigma_data"),
        ("--data.max_gb", "data.max_gb"),
        ("--engine.clip_gradient_norm", "engine.clip_gradient_norm"),
        ("--optimizer.init_args.lr", "optimizer.init_args.lr"),
        ("--ema", "ema"),
    ],
)
@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_a_setting_that_is_no_finite_number_is_refused_by_name(tmp_path, capsys, option, name, value):
    assert main(["train", *teacher_arguments(f"{option}={value}"), "--out", str(tmp_path / "run")]) == 2
    assert f"{name} must be a finite number, got " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["[.nan]", "[.inf]"])
def test_a_factor_of_a_loss_that_is_no_finite_number_is_refused(tmp_path, capsys, value):
    assert main(["train", *teacher_arguments("--loss_factors", value), "--out", str(tmp_path / "run")]) == 2
    assert "loss_factors.0 must be a finite number, got " in capsys.readouterr().err


def test_a_program_is_refused_as_the_command_is():
    from ctm.networks import MLP
    from ctm.objectives import Adversarial, Matching
    from ctm.training import Recipe
    from ctm.training.recipe import DataSettings

    def recipe(**settings):
        about = {"data": DataSettings(name="digits"), "network": MLP, "objectives": [Matching()], "optimizer": list}
        return Recipe(**about | settings)

    recipe()
    with pytest.raises(ValueError, match=r"objectives\.0\.rho must be a finite number, got nan"):
        recipe(objectives=[Matching(rho=float("nan"))])
    with pytest.raises(ValueError, match=r"objectives\.1\.r1_weight must be a finite number, got inf"):
        recipe(objectives=[Matching(), Adversarial(r1_weight=float("inf"))])
