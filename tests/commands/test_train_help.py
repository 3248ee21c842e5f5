"""`ctm train --help` is short, `--help all` has every setting, `--help CLASS` the settings of a class."""

import re
from dataclasses import fields

import pytest

from ctm.commands.train import parser
from ctm.training import Recipe
from ctm.training.engine import EngineSettings
from ctm.training.recipe import DataSettings, ModelSettings

from .test_cli import run, sentence


def printed(capsys, *arguments: str) -> str:
    code, out, _ = run(capsys, "train", *arguments)
    assert code == 0
    return out


@pytest.mark.parametrize("spelling", [["--help"], ["-h"], ["--config", "digits-ctm", "--help"]])
def test_the_help_fits_on_a_screen_or_two(capsys, spelling):
    lines = printed(capsys, *spelling).splitlines()
    assert len(lines) <= 50  # it had 513
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("usage: ctm train --config RECIPE")
    assert lines[-1].startswith("Example: ctm train")


def test_each_option_of_the_short_help_is_there(capsys):
    """Named by the parser, or by a class that a recipe names."""
    known = set(parser()._option_string_actions)
    options = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", printed(capsys, "--help")))
    settings = {
        option for option in options if re.match(r"--(network\.init_args|optimizer\.init_args|objectives\.)", option)
    }
    assert options - settings <= known
    assert len(settings) >= 3


def test_no_setting_is_left_out_of_the_full_help(capsys):
    """Each field of a recipe, and of the settings in it, by its option."""
    out = printed(capsys, "--help", "all")
    names = [f"--{field.name}" for field in fields(Recipe)]
    parts = {"data": DataSettings, "model": ModelSettings, "engine": EngineSettings}
    names += [f"--{part}.{field.name}" for part, settings in parts.items() for field in fields(settings)]
    missing = [name for name in names if not re.search(rf"^  {re.escape(name)}\b", out, re.MULTILINE)]
    assert not missing
    assert "torch.nn.modules" not in out
    assert "ctm.networks: ADM, DDPMpp, DhariwalUNet, DiT, DiffusersNetwork, EDM2, MLP, NCSNpp" in out
    assert len(out.splitlines()) < 300


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Matching", ["ctm.objectives.matching.Matching", "  grid_points", "  max_solver_steps", "default: 18"]),
        ("ctm.objectives.Matching", ["compared in data space", "  kind {soft,local,global}", "step\n", "heun_step"]),
        ("torch.optim.AdamW", ["AdamW algorithm", "  lr", "  weight_decay", "default: 1e-2"]),
        ("ctm.networks.DDPMpp", ["channels of one attention head", "  channels", "  patch"]),
        ("ctm.training.PowerFunction", ["  sigma_rel"]),
    ],
)
def test_a_class_shows_its_settings(capsys, name, words):
    out = printed(capsys, "--help", name)
    assert [word for word in words if word not in out] == []
    assert "known subclasses" not in out
    assert "0x" not in out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Matchin", "there is no such class: did you mean Matching"),
        ("ctm.networks.DDPM", "there is no such class: did you mean DDPMpp"),
        (
            "ctm.networks.Zebra",
            "there is no such class: ADM, DDPMpp, DhariwalUNet, DiT, DiffusersNetwork, EDM2, MLP, NCSNpp, UNet1d is there",
        ),
        ("ctm.absent.Net", "there is no module ctm.absent here"),
        ("os.path", "classes of ctm, torch, schedulefree can be shown"),
    ],
)
def test_a_class_that_is_not_there_is_a_sentence(capsys, name, message):
    assert message in sentence(capsys, "train", "--help", name)
