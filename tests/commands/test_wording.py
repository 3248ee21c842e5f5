"""What the parser says: whole names of settings, what was given and what could be given, and no words of a library."""

import re

import numpy as np
import pytest

from ctm.cli import main
from ctm.terminal.options import check_steps

from .test_cli import run, sentence

MODEL = "models/digits-ctm"  # no file is read before the arguments are
TRAIN = ("train", "--config", "digits-ctm")
LIBRARY = re.compile(
    r"class '|typing|Namespace|NestedArg|Union|Parser key|subclass|import path|\[options\]|SUPPRESS|null\)"
)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", MODEL, "--steps", "x"], "ctm sample: --steps must be a whole number, got x"),
        (["sample", MODEL, "--gamma", "x"], "--gamma must be a finite number, got x"),
        (["sample", MODEL, "--steps"], "--steps needs a value after it: --steps VALUE"),
        (["sample", MODEL, "--stpes", "3"], "there is no option --stpes: did you mean --steps?"),
        (["sample", MODEL, "extra"], "extra is one argument too many"),
        (["sample"], "ctm: sample needs MODEL (see ctm sample --help)"),
        (["likelihood"], "likelihood needs MODEL and --data DATA (see ctm likelihood --help)"),
        (["edit"], "edit needs a task after it: inpaint, superresolve,"),
        (["edit", "inpaint", MODEL], "edit inpaint needs IMAGE (see ctm edit inpaint --help)"),
        (["edit", "inpaint", MODEL, "a.png", "--num", "x"], "ctm edit inpaint: --num must be a whole number, got x"),
        (["bench", "teahc"], "there is no benchmark teahc: did you mean teach?"),
        (["sampel"], "there is no command sampel: did you mean sample?"),
        (["zzz"], "there is no command zzz: there are demo, distill, train,"),
        ([], "there is no command: give one of demo, distill, train,"),
        (["train"], "train needs a recipe: --config RECIPE, a file or a name that ctm recipes lists"),
        ([*TRAIN, "--data.size", "x"], "--data.size must be a whole number or a list such as [a, b] or null, got x"),
        (
            [*TRAIN, "--data", "digits"],
            "--data is a group of settings: give each by its own name, as --data.name digits",
        ),
        ([*TRAIN, "--data.flip", "maybe"], "--data.flip must be true or false, got maybe"),
        ([*TRAIN, "--dry-run=3"], "--dry-run takes no value, got 3"),
        ([*TRAIN, "--engine.precision", "fp8"], "--engine.precision must be one of fp32, bf16, fp16, got fp8"),
        ([*TRAIN, "--ema", "x"], "--ema must be a finite number or a list such as [a, b], got x"),
        ([*TRAIN, "--loss_factors", "[x]"], "an entry of --loss_factors must be a finite number, got x"),
        ([*TRAIN, "--trackers", "[foo]"], "an entry of --trackers must be one of wandb, trackio, got foo"),
        ([*TRAIN, "--target_ema", "null"], "--target_ema must be a finite number, got null"),
        ([*TRAIN, "--network", "null"], "--network must be a class with its settings, got null"),
        ([*TRAIN, "--optimizer", "Adm"], "--optimizer Adm: there is no such class: did you mean Adam or RAdam?"),
        ([*TRAIN, "--network", "Foo"], "there is no such class: there are ADM, DDPMpp, DhariwalUNet, DiT, Diffusers"),
        ([*TRAIN, "--schedule", "3"], "--schedule 3: there is no such class: there are Doubling, Progressive"),
        (
            [*TRAIN, "--network.class_path", "ctm.networks.MPL"],
            "ctm.networks.MPL: there is no such class: did you mean MLP?",
        ),
        ([*TRAIN, "--optimizer.init_args.lr", "x"], "--optimizer.init_args.lr must be a finite number, got x"),
        (
            [*TRAIN, "--optimizer.init_args.betas", "3"],
            "--optimizer.init_args.betas must be a list such as [a, b], got 3",
        ),
        ([*TRAIN, "--network.init_args.widht", "3"], "MLP has no setting widht: did you mean width?"),
        (
            [*TRAIN, "--evaluation", "3"],
            "--evaluation must be given by its settings, as --evaluation.NAME VALUE, got 3",
        ),
        ([*TRAIN, "--evaluation.every", "x"], "--evaluation.every must be a whole number, got x"),
        (
            [*TRAIN, "--evaluation.evry", "3"],
            "--evaluation.evry: EvaluationSettings has no setting evry: did you mean every?",
        ),
        (
            [*TRAIN, "--objectives", "[{class_path: Matchin}]"],
            "--objectives Matchin: there is no such class: did you mean Match",
        ),
        (
            [*TRAIN, "--objectives", "[{class_path: Matching, init_args: {kind: nope}}]"],
            "--objectives.Matching.kind must be one of soft, local, global, got nope",
        ),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else None,
)
def test_a_mistake_names_the_setting_what_came_and_what_could_come(capsys, arguments, words):
    said = sentence(capsys, *arguments)
    assert words in said
    assert not LIBRARY.search(said)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("steps: many\n", "--steps must be a whole number, got many"),
        ("stps: 3\n", "the recipe sets stps, which is no setting: did you mean steps?"),
        ("data: {name: digits, siez: 3}\n", "the recipe sets data.siez, which is no setting: did you mean data.size?"),
        ("hello\n", "the recipe holds no settings, such as steps: 1000, but hello"),
        ("", "the recipe holds no settings, such as steps: 1000, but nothing"),
    ],
)
def test_a_mistake_in_a_recipes_file(capsys, tmp_path, recipe, words):
    (tmp_path / "own.yaml").write_text(recipe)
    assert words in sentence(capsys, "train", "--config", str(tmp_path / "own.yaml"))


def test_a_recipe_that_lacks_a_part(capsys, tmp_path):
    (tmp_path / "own.yaml").write_text(
        "data: {name: digits}\nnetwork: {class_path: ctm.networks.MLP}\nobjectives: [{class_path: DenoisingScoreMatching}]\n"
    )
    said = sentence(capsys, "train", "--config", str(tmp_path / "own.yaml"))
    assert "the recipe lacks optimizer: set it in the file, or give --optimizer VALUE" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["train", "--help", "all"],
        ["train", "--help", "Matching"],
        ["sample", "--help"],
        ["edit", "--help"],
        ["edit", "vary", "--help"],
        ["bench", "teach", "--help"],
        ["evaluate", "--help"],
    ],
    ids=" ".join,
)
def test_no_help_has_words_of_a_library(capsys, arguments):
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert not LIBRARY.search(out)
    assert not re.search(r"\(type:|type: |default: (null|None)\b|CONFIG\s+Path|=flags|\+ \[", out)


def test_the_help_says_defaults_in_words(capsys):
    _, out, _ = run(capsys, "train", "--help", "Matching")
    assert "solver SOLVER       (default: ctm.objectives.TeacherWalk with step" in out
    _, out, _ = run(capsys, "train", "--help", "all")
    assert re.search(r"--steps N +optimiser steps of the whole run \(default: 10000\)", out)
    assert re.search(r"--data.size SIZE +side of square images, or", out)
    assert "--data.name NAME" in out


def test_a_text_that_begins_with_a_negative_number_is_a_value(capsys, small_ctm, tmp_path):
    small_ctm.save_pretrained(tmp_path / "model")
    for number, text in enumerate(("-1,0", "-1", "0,-1", "−1,0")):
        out = tmp_path / f"{number}.npz"
        assert main(["sample", str(tmp_path / "model"), "--labels", text, "--out", str(out)]) == 0
        assert out.is_file()
    for option, words in (("--seeds", "--seeds takes numbers such as 0-9"), ("--grid", "finite levels that decrease")):
        assert words in sentence(capsys, "sample", str(tmp_path / "model"), option, "-1,0")


def test_many_steps_are_said_to_cost_much(capsys, caplog, small_ctm, tmp_path):
    """The line comes before anything is drawn, here 1,001 jumps of one sample; 1,000 pass in silence."""
    small_ctm.save_pretrained(tmp_path / "model")
    out = str(tmp_path / "out.npz")
    assert main(["sample", str(tmp_path / "model"), "--num", "1", "--steps", "1001", "--out", out]) == 0
    check_steps([1, 1000])
    words = "each sample takes 1,001 calls of the network, one after another; 1 to 4 jumps, or 18 levels"
    (said,) = [message for message in caplog.messages if "calls of the network" in message]
    assert f"--steps 1,001: {words}" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", MODEL, "--data", "digits", "--steps", "1,2000000"],
        ["evaluate", MODEL, "--data", "digits", "--teacher", MODEL, "--teacher_steps", "2000000"],
        ["tune", MODEL, "--steps", "2000000"],
        ["edit", "stroke", MODEL, "absent.png", "--sigma", "5", "--steps", "2000000"],
        ["edit", "inpaint", MODEL, "absent.png", "--steps", "1000", "--rounds", "2000"],
    ],
    ids=lambda value: " ".join(value),
)
def test_every_command_with_steps_bounds_them(capsys, arguments):
    said = sentence(capsys, *arguments)
    assert "takes at most 1,000,000 steps, got 2,000,000" in said


def test_pictures_far_outside_their_range_are_said_to_be_cut_off(capsys, caplog, small_ctm, tmp_path):
    small_ctm.save_pretrained(tmp_path / "model")
    for name, cfg in (("far", "900"), ("near", "1")):
        out = tmp_path / f"{name}.npz"
        assert main(["sample", str(tmp_path / "model"), "--num", "4", "--cfg", cfg, "--out", str(out)]) == 0
    said = [message for message in caplog.messages if "are cut off at [-1, 1]" in message]
    assert len(said) == 1, said


def test_a_class_of_the_name_minus_one(capsys, small_ctm, tmp_path):
    """−1 means no class; where a class has that name, the message offers a spelling for each meaning, and both are taken."""
    small_ctm.class_names = ["-1", *"abcdefghi"]
    small_ctm.save_pretrained(tmp_path / "model")
    sample = ["sample", str(tmp_path / "model"), "--num", "1"]
    said = sentence(capsys, *sample, "--labels", "-1", "--out", "x.npz")
    assert (
        "--labels -1: is it no class, or the class named -1, whose number is 0? Give 0, or '\"-1\"' in quotes" in said
    )
    assert "or −1, with the other minus sign, for no class" in said
    for text, label in (("0", 0), ('"-1"', 0), ("−1", -1)):
        out = tmp_path / "x.npz"
        assert main([*sample, f"--labels={text}", "--out", str(out)]) == 0
        with np.load(out) as stored:
            assert stored["arr_1"].tolist() == [label]
        out.unlink()


@pytest.mark.parametrize(
    "command", [["recipes"], ["sample", MODEL], ["compare", "a", "b"], ["convert", "a", "b"], ["demo"]]
)
def test_every_command_looks_at_ctm_allow(capsys, monkeypatch, command):
    monkeypatch.setenv("CTM_ALLOW", "a b;c")
    said = sentence(capsys, *command)
    assert (
        said == "ctm: CTM_ALLOW takes modules such as mynets or mypackage.nets, with commas between them, got 'a b;c'\n"
    )
    assert run(capsys, *command, "--help")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "1-100000000000"], "1-100000000000 is a range of more than 10,000,000 numbers"),
        (["--labels", "0-100000000000"], "0-100000000000 is a range of more than 10,000,000 numbers"),
        (["--labels", "1,,2"], "--labels has nothing between two commas, or at an end"),
        (["--labels", "1,"], "--labels has nothing between two commas, or at an end"),
        (["--grid", "index:10000000000"], "a discrete model has at most 10,000,000 levels"),
        (
            ["--form", "code", "--sampler", "heun"],
            "--form belongs to γ-sampling, and the sampler here is heun: leave it out",
        ),
        (["--sampler", "ancestral", "--eta", "2"], "--eta must be in [0, 1], got 2"),
        (["--sampler", "heun", "--churn", "-1"], "--churn must be at least 0, got -1"),
        (["--cfg", "1e30"], "--cfg must be in [-1000, 1000], got 1e+30: 1 is the conditional model, 2 to 10 are usual"),
        (["--cfg", "-1e30"], "--cfg must be in [-1000, 1000]"),
        (["--steps", "100000000"], "--steps takes at most 1,000,000 steps, got 100,000,000: 1 to 4 jumps"),
        (
            ["--sampler", "heun", "--steps", "3", "--churn", "9", "--churn_noise", "1e38"],
            "image 0 is no numbers (NaN or infinite): a setting of the sampler is too large",
        ),
        (["--out", "MODEL"], "is the directory of a model or a run (it has config.json): give another for the samples"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_odd_values_of_sample(capsys, small_ctm, tmp_path, monkeypatch, arguments, words):
    small_ctm.save_pretrained(tmp_path / "MODEL")
    monkeypatch.chdir(tmp_path)
    out = [] if "--out" in arguments else ["--out", "x.png"]
    assert words in sentence(capsys, "sample", "MODEL", "--num", "2", *arguments, *out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MODEL"]
