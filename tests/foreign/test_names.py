"""Names in config.json and recipes: ours, and those of modules that the user allows; nothing else is imported."""

import json
import sys

import pytest
import torch
from torch import nn

import ctm
from ctm.cli import main
from ctm.foreign.allowed import allowed_modules, allowing, take_allowed
from ctm.networks import register
from ctm.networks.description import build
from tests.test_security import RECIPE, refused

MODULE = """
import pathlib, os
from torch import nn, optim
from torch.nn import Linear
pathlib.Path({seen!r}).touch()

class Net(nn.Module):
    def __init__(self, shape, num_classes=0):
        super().__init__()
        self.last = nn.Linear(64, 64)

    @property
    def last_layer(self):
        return self.last

    def forward(self, x, t, s, labels=None):
        return self.last(x.flatten(1)).reshape(x.shape)

class Own(optim.SGD):
    pass

def make(params):
    return optim.SGD(params)
"""
DENIED = (
    "asks for strangers.Net, which is not part of ctm.networks: nothing was imported. If you trust it, repeat the command with "
    "--allow strangers (or set CTM_ALLOW=strangers)"
)


@pytest.fixture
def strangers(tmp_path, monkeypatch):
    """A module of a stranger's, that leaves a trace when it is imported."""
    seen = tmp_path / "imported"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "strangers.py").write_text(MODULE.format(seen=str(seen)))
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield seen
    sys.modules.pop("strangers", None)


@pytest.fixture
def model(tmp_path, strangers):
    """A model directory whose config.json names strangers.Net."""
    with allowing("strangers"):
        network = {"class_path": "strangers.Net", "init_args": {"shape": [1, 8, 8]}}
        ctm.DiffusionModel(network, shape=(1, 8, 8)).save_pretrained(tmp_path / "model")
    sys.modules.pop("strangers")
    strangers.unlink()
    return tmp_path / "model"


def test_case_20_a_class_of_a_strangers_module_is_not_imported(model, strangers):
    with pytest.raises(ValueError, match="which is not part of") as caught:
        ctm.load_model(model)
    assert DENIED in str(caught.value)
    assert not strangers.exists()
    assert "strangers" not in sys.modules


def test_allowed_it_is_read_by_flag_and_environment(model, strangers, capsys, tmp_path, monkeypatch):
    sample = ["sample", str(model), "--num", "1", "--steps", "2", "--out"]
    assert DENIED in refused(capsys, [*sample, str(tmp_path / "a.png")])
    assert main([*sample, str(tmp_path / "b.png"), "--allow", "strangers"]) == 0
    assert DENIED in refused(capsys, [*sample, str(tmp_path / "c.png")])
    assert main(["--allow=other,strangers", *sample, str(tmp_path / "d.png")]) == 0
    monkeypatch.setenv("CTM_ALLOW", "other, strangers")
    assert main([*sample, str(tmp_path / "e.png")]) == 0
    assert sorted(path.name for path in tmp_path.glob("?.png")) == ["b.png", "d.png", "e.png"]


def test_what_an_allowed_module_passes_on_is_not_its_own(strangers):
    with allowing("strangers"):
        with pytest.raises(ValueError, match=r"asks for torch\.nn\.modules\.linear\.Linear, which is not part of"):
            build({"class_path": "strangers.Linear", "init_args": {"in_features": 1, "out_features": 1}})
        for path in ("strangers.os.system", "strangers.make", "strangers.pathlib"):
            with pytest.raises(ValueError, match=r"cannot be imported|is not a torch\.nn\.Module"):
                build({"class_path": path})


def test_an_allowed_module_that_is_not_there_says_where_it_is_looked_for():
    with (
        allowing("absent"),
        pytest.raises(ValueError, match=r"cannot be imported .*PYTHONPATH has the directory of absent"),
    ):
        build({"class_path": "absent.Net"})


def test_a_registered_class_is_built_and_nothing_else(tmp_path):
    @register
    class Registered(nn.Module):
        def __init__(self, shape):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(shape))

    path = f"{Registered.__module__}.{Registered.__qualname__}"
    assert type(build({"class_path": path, "init_args": {"shape": [2]}})) is Registered
    with pytest.raises(TypeError, match=r"only a subclass of torch\.nn\.Module can be registered"):
        register(dict)


@pytest.mark.parametrize(
    "path",
    [
        "x; touch ran.Net",
        "a.b\nc.Net",
        "mynets",
        "",
        "mynets..Net",
        "mynéts.Net",
        "m" * 300 + ".Net",
        "../mynets.Net",
        3,
        None,
    ],
)
def test_what_is_no_name_is_not_offered_as_an_option(path):
    with pytest.raises(
        ValueError, match=r"which is no name of a class such as mynets\.Net|a network is given as"
    ) as caught:
        build({"class_path": path})
    assert "--allow" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "a b", "x;y", "-rf", "a..b", "*"])
def test_allow_takes_names_of_modules(text):
    with pytest.raises(ValueError, match="--allow takes modules such as mynets"):
        take_allowed(["sample", "--allow", text])


def test_allow_is_of_one_command():
    assert take_allowed(["sample", "--allow", "a.b", "dir", "--allow=c"]) == ["sample", "dir"]
    assert allowed_modules() == ("a.b", "c")
    assert take_allowed(["sample"]) == ["sample"]
    assert allowed_modules() == ()


SYSTEM = '{class_path: os.system, init_args: {command: "touch ran"}}'
CONTINUED = [
    ("optimizer: " + SYSTEM, "asks for os.system"),
    ("optimizer: os.system", "asks for os.system"),
    ("optimizer: {class_path: ctm.cli.importlib.import_module, init_args: {name: strangers}}", "ctm.cli.importlib"),
    ("optimizer: {class_path: torch.optim.optimizer.functools.reduce, init_args: {}}", "asks for _functools.reduce"),
    (
        "optimizer: {class_path: ctm.commands.train.torch.load, init_args: {f: x}}",
        "asks for ctm.commands.train.torch.load",
    ),
    (
        "optimizer: {class_path: ctm.networks.register, init_args: {network: x}}",
        "asks for ctm.foreign.allowed.register",
    ),
    ("optimizer: {class_path: ctm.training.train, init_args: {}}", "names no public class|required"),
    ("optimizer: {class_path: ctm.objectives.Squared}", "subclass"),
    ("optimizer: {class_path: strangers.Own, init_args: {lr: 0.1}}", "--allow strangers"),
    ("network: {class_path: strangers.Net}", "--allow strangers"),
    ("schedule: {class_path: strangers.Own}", "--allow strangers"),
    ("ema: [{class_path: strangers.Own}]", "--allow strangers"),
    ("allow: strangers\nnetwork: {class_path: strangers.Net}", "--allow strangers|allow"),
    (
        "objectives: [{class_path: ctm.objectives.Matching, init_args: {distance: {class_path: strangers.Own}}}]",
        "strangers",
    ),
    ("objectives: [{class_path: ctm.objectives.Matching, init_args: {weight: os.system}}]", "asks for os.system"),
    (
        "objectives: [{class_path: ctm.objectives.Matching, init_args: {weight: ctm.training.train}}]",
        "ctm.training.train",
    ),
    ("objectives: !!python/object/apply:os.system ['touch ran']", "asks for an object"),
    ("steps: !run 3", "asks for an object"),
]


@pytest.mark.parametrize(("text", "message"), CONTINUED)
def test_case_21_a_recipe_names_classes_of_their_kind(text, message, tmp_path, strangers, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = text.partition(":")[0]
    names = (name, "network") if "\nnetwork" in text else (name,)
    lines = [line for line in RECIPE.splitlines() if not line.startswith(names)]
    (tmp_path / "recipe.yaml").write_text("\n".join([*lines, text]))
    sentence = refused(capsys, ["train", "--config", "recipe.yaml", "--out", "run"])
    assert any(part in sentence for part in message.split("|")), sentence
    assert not strangers.exists()
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--optimizer", "strangers.Own"],
        ["--optimizer.class_path", "strangers.Own"],
        ["--objectives+=strangers.Own"],
        ["--optimizer.help", "strangers.Own"],
        ["--network", '{"class_path": "strangers.Net"}'],
        ["--config", '{"network": {"class_path": "strangers.Net"}}'],
    ],
)
def test_the_command_line_names_as_a_recipe_does(options, tmp_path, strangers, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert "--allow strangers" in refused(capsys, ["train", "--config", "recipe.yaml", *options])
    assert not strangers.exists()


def test_allowed_a_recipe_trains_with_own_parts(tmp_path, strangers, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("torch.optim.RAdam", "strangers.Own"))
    own = ["--network", '{"class_path": "strangers.Net", "init_args": {}}', "--sample_every", "100"]
    assert main(["train", "--config", "recipe.yaml", "--out", "run", *own, "--allow", "strangers"]) == 0
    assert json.loads((tmp_path / "run/model/config.json").read_text())["network"]["class_path"] == "strangers.Net"
    function = ["--optimizer", '{"class_path": "strangers.os.system", "init_args": {"command": "touch ran"}}']
    sentence = refused(capsys, ["train", "--config", "recipe.yaml", "--out", "x", "--allow", "strangers", *function])
    assert "system" in sentence
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def (", "SyntaxError: "),
        ("x = y", "NameError: "),
        ("raise RuntimeError('no')", "RuntimeError: no"),
        ("raise SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_an_allowed_module_that_cannot_be_imported(model, capsys, tmp_path, monkeypatch, code, words):
    """By a model's config.json and by a recipe."""
    (tmp_path / "strangers.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    train = ["train", "--config", "digits-teacher", "--network", "strangers.Net", "--print_config"]
    for command in (["sample", str(model), "--num", "1", "--out", str(tmp_path / "a.png")], train):
        said = refused(capsys, ["--allow", "strangers", *command])
        assert f"cannot be imported ({words}" in said
        assert "strangers" in said


def test_an_allowed_module_may_have_the_name_of_a_command(capsys, tmp_path):
    said = refused(capsys, ["--allow", "demo", "sample", str(tmp_path / "none"), "--out", str(tmp_path / "a.png")])
    assert str(tmp_path / "none") in said
