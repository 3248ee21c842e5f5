"""Adapters on the teacher's weights: the weights once in memory, small checkpoints, and a merged model that stands alone."""

import json
import sys

import pytest
import torch
from accelerate import Accelerator

from ctm import DiffusionModel, TrajectoryModel, load_model
from ctm.cli import main
from ctm.networks import ADM, MLP, DDPMpp, DhariwalUNet, NCSNpp
from ctm.networks.adapters import OwnTensors, add_adapters, copy_sharing, is_shared, merged_network, own_tensors
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import assembly, dry_run
from ctm.training.ema import move_average
from ctm.training.engine import set_checkpointing
from ctm.training.student import start_from_teacher

from ..conftest import random_weights
from .runs import (
    assert_same,
    checkpoint_steps,
    everything,
    rows,
    student_arguments,
    teacher_arguments,
    trained,
    weights,
)
from .test_checkpointing import CLASSES, SHAPE, UNET, gradients

LORA = ("--lora.rank", "4")
FAMILIES = {
    "MLP": (MLP, {"width": 48, "blocks": 2, "embedding": 16}),
    "DDPMpp": (DDPMpp, UNET),
    "NCSNpp": (NCSNpp, UNET),
    "DhariwalUNet": (DhariwalUNet, UNET),
    "ADM": (ADM, {**UNET, "channels": 32}),
}


def pair(name: str) -> tuple[DiffusionModel, TrajectoryModel]:
    """A teacher with random weights, and a student that starts from it."""
    kind, options = FAMILIES[name]
    teacher = DiffusionModel(kind(SHAPE, CLASSES, **options, s_embedding=False), shape=SHAPE, num_classes=CLASSES)
    random_weights(teacher).requires_grad_(False)
    student = TrajectoryModel(kind(SHAPE, CLASSES, **options), shape=SHAPE, num_classes=CLASSES)
    start_from_teacher(student, teacher)
    return teacher, student


def moved(model: torch.nn.Module, seed: int) -> None:
    """Other values in all that is trained, as after some steps."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            if not is_shared(tensor):
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator)


@pytest.fixture
def call():
    generator = torch.Generator().manual_seed(5)
    x, t = torch.randn(3, *SHAPE, generator=generator), torch.tensor([0.01, 1.0, 70.0])
    return lambda model: model.jump(x, t, t / 3, torch.tensor([0, 1, -1]))


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_start_at_nothing_share_the_teachers_tensors_and_merge(name, call):
    teacher, student = pair(name)
    before, names = call(student), set(student.network.state_dict())
    layers = add_adapters(student.network, teacher.network, rank=4)
    torch.testing.assert_close(call(student), before, rtol=1e-5, atol=1e-5)
    theirs = {p.data_ptr() for p in teacher.network.parameters()}
    target = copy_sharing(student)
    for model in (student, target):
        shared = [p for p in model.parameters() if is_shared(p)]
        assert {p.data_ptr() for p in shared} <= theirs
        assert len(shared) >= len(theirs) - 2  # all but the last layer's
        assert not any(p.requires_grad for p in shared)
        assert all(p.requires_grad for p in model.parameters() if not is_shared(p)) or model is target
    assert not any(".s_" in f".{layer}" for layer in layers)  # the branch is the student's own
    moved(student, 1)
    assert (call(student) - before).abs().max() > 1e-3
    torch.testing.assert_close(call(target), before, rtol=1e-5, atol=1e-5)
    merged = merged_network(student.network)
    assert set(merged.state_dict()) == names
    found = call(TrajectoryModel(merged, shape=SHAPE, num_classes=CLASSES))
    torch.testing.assert_close(found, call(student), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["MLP", "DDPMpp"])
def test_a_block_that_is_computed_again_sees_its_own_adapters(name):
    """Student and target share their base and have different adapters, and gradients go through both. The gradients are those
    without checkpointing, and others where the target has the student's adapters."""
    teacher, student = pair(name)
    add_adapters(student.network, teacher.network, rank=4)
    moved(student, 1)
    again = copy_sharing(student)
    set_checkpointing(again.network)
    plain, all_bytes = gradients(student, "target", other=lambda target: moved(target, 2))
    found, bytes_kept = gradients(again, "target", other=lambda target: moved(target, 2))
    alone, _ = gradients(student, "target")
    assert found.keys() == plain.keys() == own_tensors(student).keys()
    assert bytes_kept < all_bytes
    assert any(not torch.allclose(alone[key], value, rtol=1e-2) for key, value in plain.items())  # the target matters
    for key, value in plain.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6 * float(value.abs().max() + 1e-12))


def test_without_peft_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    teacher, student = pair("MLP")
    with pytest.raises(ImportError, match=r"need peft: pip install 'ctm-torch\[lora\]'"):
        add_adapters(student.network, teacher.network, rank=4)


def test_an_average_moves_what_is_trained_and_nothing_else():
    teacher, student = pair("MLP")
    add_adapters(student.network, teacher.network, rank=4)
    average = copy_sharing(student)
    start, base = own_tensors(average), {n: p.clone() for n, p in teacher.network.state_dict().items()}
    start = {name: tensor.clone() for name, tensor in start.items()}
    moved(student, 1)
    move_average(average, student, 0.75)
    for name, tensor in own_tensors(average).items():
        torch.testing.assert_close(tensor, 0.75 * start[name] + 0.25 * own_tensors(student)[name])
    assert_same(teacher.network.state_dict(), base)


def test_a_checkpoint_of_other_adapters_is_refused():
    teacher, student = pair("MLP")
    add_adapters(student.network, teacher.network, rank=4)
    with pytest.raises(ValueError, match="are not those of these adapters"):
        OwnTensors(student).load_state_dict({"network.nothing": torch.zeros(1)})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("teacher") / "teacher", teacher_arguments("--steps", "30"))


def arguments(teacher, *extra):
    every = ("--checkpoint_every", "4", "--log_every", "2", "--decay_fraction", "0")
    return student_arguments(teacher, *LORA, *every, *extra)


def test_a_run_goes_on_to_the_same_bits_and_publishes_a_whole_model(teacher, tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole", arguments(teacher, "--steps", "8"))
    broken = trained(tmp_path / "broken", arguments(teacher, "--steps", "4"))
    trained(broken, arguments(teacher, "--steps", "8"))
    assert everything(whole) == everything(broken)
    assert rows(whole)[-1]["loss/Matching"] > 0
    checkpoint = whole / "checkpoints" / f"{checkpoint_steps(whole)[-1]:08d}"
    names = {file.name for file in checkpoint.glob("*.safetensors")}
    assert names == {"student.safetensors", "ema.safetensors", "target.safetensors"}
    monkeypatch.setitem(sys.modules, "peft", None)  # the model loads without it, and without the teacher
    model = load_model(whole)
    assert not any("lora" in name or "base_layer" in name for name in model.state_dict())
    start = load_model(teacher).network.state_dict()
    changed = [name for name, tensor in start.items() if not torch.equal(tensor, model.network.state_dict()[name])]
    assert "blocks.0.rise.weight" in changed
    assert weights(whole).keys() == {f"network.{name}" for name in model.network.state_dict()}


def test_the_adapters_alone_and_the_teacher_make_the_published_model(teacher, tmp_path, capsys):
    """adapter/ is small, and `ctm merge` gives model/ to the bit. Other teachers, networks and ranks are refused."""
    out = trained(tmp_path / "run", arguments(teacher, "--steps", "4"))
    adapter, merged = out / "adapter", tmp_path / "merged"
    assert main(["merge", str(teacher), str(adapter), str(merged)]) == 0
    assert_same(load_model(merged).state_dict(), load_model(out).state_dict())
    assert json.loads((merged / "config.json").read_text()) == json.loads((out / "model" / "config.json").read_text())
    assert main(["merge", str(teacher), str(adapter), str(merged)]) == 2
    assert "is there already" in capsys.readouterr().err
    other = trained(tmp_path / "other", teacher_arguments("--steps", "2"))
    assert main(["merge", str(other), str(adapter), str(tmp_path / "no")]) == 2
    assert "was trained on another teacher" in " ".join(capsys.readouterr().err.split())
    about = json.loads((adapter / "adapter.json").read_text())
    wide = {**about["network"], "init_args": {**about["network"]["init_args"], "width": 100_000}}
    for change, words in (
        ({"lora": {"rank": 10**9, "alpha": None}}, "says rank 1000000000, and the tensors have [4]"),
        ({"network": wide}, "describes another network than the teacher's"),
        ({"model": "os.system"}, "is no record of adapters"),
        ({"class_names": [1, {}]}, "is no record of adapters"),
        ({"teacher": {"name": [], "digest": {}}}, "is no record of adapters"),
        ({"lora": {}}, "lora.rank must be at least 1, a whole number, got None"),
        ({"lora": {"rank": "4", "alpha": None}}, "lora.rank must be at least 1, a whole number, got '4' (str)"),
        ({"lora": {"rank": [4], "alpha": None}}, "lora.rank must be at least 1, a whole number, got [4] (list)"),
        ({"lora": {"rank": True, "alpha": None}}, "lora.rank must be at least 1, a whole number, got True (bool)"),
        ({"lora": {"rank": 4, "alpha": "x"}}, "lora.alpha must be a finite number above 0, got 'x' (str)"),
        ({"lora": {"rank": 4, "alpha": 10**400}}, "lora.alpha must be a finite number above 0, got 1"),
        ({"settings": {}}, "its settings need shape and sigma_data"),
        (
            {"settings": {**about["settings"], "sigma_data": 10**400}},
            "adapter.json: sigma_data must be a finite number above 0",
        ),
        ({"settings": {**about["settings"], "shape": "x"}}, "adapter.json: shape must be a list of whole numbers"),
        ({"settings": {**about["settings"], "inner": [{}]}}, "adapter.json: "),
        ({"network": {"class_path": "os.system", "init_args": {}}}, "describes another network than the teacher's"),
        ({"network": {"init_args": []}}, "these are no adapters for that teacher, or they are damaged"),
    ):
        (adapter / "adapter.json").write_text(json.dumps(about | change))
        assert main(["merge", str(teacher), str(adapter), str(tmp_path / "no")]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "no").exists()


def test_memory_has_the_teachers_weights_once(teacher, few_draws):
    recipe, _ = parse_recipe(arguments(teacher, "--steps", "12"))
    run = assembly.prepare(recipe, Accelerator(cpu=True), assembly.load_data(recipe))
    storages = {
        p.untyped_storage().data_ptr(): p.numel()
        for model in (run.student, run.target, run.teacher, *run.averages)
        for p in model.parameters()
    }
    own = sum(t.numel() for t in own_tensors(run.student).values())
    theirs = sum(p.numel() for p in run.teacher.parameters())
    assert sum(storages.values()) == theirs + 3 * own
    assert sum(p.numel() for group in run.optimizer.param_groups for p in group["params"]) == own
    found = dry_run(recipe)
    assert found.parameter_bytes == 4 * (theirs + 3 * own)
    assert found.gradient_bytes == 4 * own
    assert any(line.startswith("lora: ") and "once in memory" in line for line in found.lines())


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("--start_from", "random"), "lora adapts the teacher's own weights"),
        (("--engine.compile", "eager"), "lora goes with engine.sharding none and without compile"),
        (("--lora.rank", "0"), "rank must be at least 1"),
    ],
)
def test_what_it_does_not_go_with_is_refused(teacher, extra, words):
    with pytest.raises((ValueError, SystemExit), match=words if words.startswith("lora") else None):
        dry_run(parse_recipe(arguments(teacher, *extra))[0])


def test_the_settings_are_kept(teacher, tmp_path):
    out = trained(tmp_path / "run", arguments(teacher, "--steps", "1"))
    assert "rank: 4" in (out / "config.yaml").read_text()
    assert json.loads((out / "made_of.json").read_text())["teacher"]["digest"]
