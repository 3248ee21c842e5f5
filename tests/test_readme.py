"""What the README shows works as it stands."""

import re
from pathlib import Path

import pytest
import torch
import yaml

import ctm
from ctm.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs(monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(example, names)
    assert names["one"].shape == (16, 1, 8, 8)
    assert names["half"].shape == names["same"].shape == (16, 1, 8, 8)


def test_the_sample_commands_run(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"^ctm (sample models/\S+ .*?)(?:\s+#.*)?$", README, flags=re.MULTILINE)
    assert len(commands) == 3
    for number, command in enumerate(commands):
        arguments = command.split()
        arguments[arguments.index("--out") + 1] = str(tmp_path / f"{number}.png")
        assert main(arguments) == 0
        assert (tmp_path / f"{number}.png").is_file()


def test_the_train_commands_are_read(monkeypatch, capsys):
    """Each with its recipe, its options and a folder of one's own; tests/test_small_pictures.py runs the first two."""
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"^ctm (train .*?)(?:\s+#.*)?$", README, flags=re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            main([*command.split(), "--print_config"])
        assert stop.value.code == 0
        assert yaml.safe_load(capsys.readouterr().out)["data"]["name"] == "path/to/folder"


def test_the_options_named_are_there(capsys):
    """In running text: --option and `ctm command`."""
    with pytest.raises(SystemExit):
        main(["train", "--help", "all"])
    known = capsys.readouterr().out
    for option in re.findall(r"`(--[a-z][\w.-]*)", README):
        assert option.startswith("--objectives.0.") or option in known or option in ("--out", "--allow"), option


def test_links_and_named_files_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for recipe in re.findall(r"recipes/\S+\.yaml", README):
        assert (ROOT / recipe).is_file(), recipe


@pytest.mark.parametrize("name", ["digits-teacher", "digits-ctm", "fashion-mnist-teacher", "fashion-mnist-ctm"])
def test_shipped_models_are_small_and_whole(name):
    directory = ROOT / "models" / name
    assert (directory / "model.safetensors").stat().st_size <= 4_000_000
    for file in ("config.json", "recipe.yaml", "metrics.jsonl", "provenance.json"):
        assert (directory / file).is_file()
    assert ctm.load_model(directory).num_classes == 10


def test_the_shipped_ctm_agrees_with_its_teacher():
    """One jump of the shipped CTM lands near its teacher's 35 evaluations from the same noise (0.0095 when it was made)."""
    student, teacher = (ctm.load_model(ROOT / "models" / name) for name in ("digits-ctm", "digits-teacher"))
    labels = torch.arange(100) % 10
    grid = torch.cat([ctm.karras_grid(17), torch.zeros(1)])
    slow = ctm.generate(teacher, 100, condition=labels, grid=grid, sampler=ctm.sampling.heun)
    fast = ctm.generate(student, 100, condition=labels)
    assert (slow - fast).square().mean().item() < 0.02
