import json
import signal
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from ctm.objectives import Adversarial, DenoisingScoreMatching, Matching
from ctm.objectives.discriminator_player import WinningWatch
from ctm.objectives.player import players_of
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import assembly, train, trainer

from .runs import finish, start

RECIPE = Path(__file__).parents[2] / "recipes" / "digits-ctm-gan.yaml"
SMALL = """data: {name: digits, batch_size: 8}
network: {class_path: ctm.networks.MLP, init_args: {width: 24, blocks: 1, embedding: 16}}"""
TEACHER = f"""{SMALL.replace("16}", "16, s_embedding: false}")}
model: {{kind: diffusion}}
objectives: [{{class_path: ctm.objectives.DenoisingScoreMatching}}]
optimizer: {{class_path: torch.optim.RAdam, init_args: {{lr: 1.0e-3}}}}
steps: 2
"""
STUDENT = f"""{SMALL}
objectives:
  - {{class_path: ctm.objectives.Matching, init_args: {{grid_points: 6}}}}
  - {{class_path: ctm.objectives.DenoisingScoreMatching}}
  - class_path: ctm.objectives.Adversarial
    init_args:
      start: START
      alternate: ALTERNATE
      r1_weight: 0.1
      r1_every: 2
      discriminator:
        class_path: ctm.discriminators.ProjectedDiscriminator
        init_args:
          mixed_channels: 8
          width: 8
          backbones: [{{class_path: ctm.backbones.EfficientNetLite0, init_args: {{side: 32}}}}]
optimizer: {{class_path: torch.optim.RAdam, init_args: {{lr: 1.0e-2}}}}
log_every: 1
"""


@pytest.fixture
def teacher(tmp_path) -> Path:
    file = tmp_path / "teacher.yaml"
    file.write_text(TEACHER)
    train(*in_directory(["--config", str(file)], tmp_path / "teacher"))
    return tmp_path / "teacher"


def arguments(teacher: Path, *extra: str, start: int = 0, alternate: bool = True) -> list[str]:
    file = teacher.parent / f"student-{start}-{alternate}.yaml"
    file.write_text(STUDENT.replace("START", str(start)).replace("ALTERNATE", str(alternate).lower()))
    return ["--config", str(file), "--teacher", str(teacher), *extra]


def in_directory(given: list[str], out: Path):
    recipe, text = parse_recipe(given)
    return recipe, out, text


def state(out: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint's networks."""
    newest = max((out / "checkpoints").glob("0*"))
    return {f"{file.name}:{key}": v for file in newest.glob("*.safetensors") for key, v in load_file(file).items()}


def rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def prepared(given: list[str]):
    recipe, _ = parse_recipe(given)
    run = assembly.prepare(recipe, Accelerator(cpu=True), assembly.load_data(recipe))
    for group in run.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return run


def copies(module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(before, module) -> bool:
    return any(not torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_even_steps_move_the_student_and_its_averages_odd_ones_the_discriminator(teacher):
    run = prepared(arguments(teacher, start=2))
    who = {
        "student": run.student,
        "average": run.published,
        "target": run.target,
        "opponent": run.players["discriminator"].network,
    }
    seen = []
    for step in range(5):
        before = {name: copies(module) for name, module in who.items()}
        trainer._step(run, step)
        seen.append({name for name, module in who.items() if moved(before[name], module)})
    generator, discriminator = {"student", "average", "target"}, {"opponent"}
    assert seen == [generator, generator, generator, discriminator, generator]


def test_without_alternation_a_step_moves_both(teacher):
    run = prepared(arguments(teacher, start=1, alternate=False))
    before = copies(run.players["discriminator"].network), copies(run.student)
    trainer._step(run, 0)
    assert [moved(before[0], run.players["discriminator"].network), moved(before[1], run.student)] == [False, True]
    before = copies(run.players["discriminator"].network), copies(run.student)
    numbers = trainer._step(run, 1)
    assert [moved(before[0], run.players["discriminator"].network), moved(before[1], run.student)] == [True, True]
    assert {"loss/Adversarial", "discriminator/accuracy"} <= numbers.keys()


def test_pieces_of_a_batch_give_the_discriminators_gradient_of_the_whole(teacher):
    """Two pieces of four against one of eight: losses are means over samples, so are the gradients."""
    gradients = []
    for pieces in ("1", "2"):
        run = prepared(arguments(teacher, "--engine.accumulate", pieces))
        trainer._step(run, 1)
        gradients.append([parameter.grad for parameter in run.players["discriminator"].network.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)


def test_what_a_step_says_of_the_discriminator_is_logged(teacher, tmp_path):
    train(*in_directory(arguments(teacher, "--steps", "4", start=2), tmp_path / "run"))
    logged = rows(tmp_path / "run")
    quiet, generator, discriminator = logged[1], logged[2], logged[3]
    assert not [name for name in quiet if "iscriminator" in name or "Adversarial" in name]
    assert {"loss/Adversarial", "weight/Adversarial", "last_layer_gradient/Adversarial"} <= generator.keys()
    numbers = ("logit_real", "logit_fake", "logit_gap", "accuracy", "loss", "gradient_norm")
    assert {f"discriminator/{name}" for name in numbers} <= discriminator.keys()
    assert not [name for name in discriminator if name.startswith("loss/")]
    assert discriminator["discriminator/gradient_norm"] > 0


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits_mid_gan(teacher, tmp_path):
    """SIGKILL of the real command after a checkpoint between two steps of the discriminator; the same command then ends it."""
    given = arguments(teacher, "--steps", "30", "--checkpoint_every", "5", "--sample_every", "500", start=2)
    process = start(given, tmp_path / "parts")
    checkpoints = tmp_path / "parts" / "checkpoints"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(checkpoints.glob("0*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = max(int(p.name) for p in checkpoints.glob("0*"))
    assert 5 <= reached < 30, "the run was over before it was killed"
    finish(start(given, tmp_path / "parts"))
    train(*in_directory(given, tmp_path / "whole"))
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert any(name.startswith("discriminator.safetensors") for name in whole)
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
    for a, b in zip(rows(tmp_path / "whole")[-5:], rows(tmp_path / "parts")[-5:], strict=True):
        assert a.get("discriminator/loss") == b.get("discriminator/loss")


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(teacher, tmp_path):
    """A step of the student and one of the discriminator, twice, with augmentation and penalty: every weight agrees, and so do
    the numbers said of the discriminator."""
    given = arguments(teacher, "--steps", "4", "--seed", "2")
    finish(start(given, tmp_path / "two", 2))
    train(*in_directory(given, tmp_path / "one"))
    one, two = state(tmp_path / "one"), state(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        named = [name for name in a if name.startswith("discriminator/")]
        assert [b[name] for name in named] == pytest.approx([a[name] for name in named], rel=1e-3, abs=1e-4)


def test_the_shipped_recipe_is_the_second_stage_of_the_shipped_ctm():
    recipe, _ = parse_recipe(["--config", str(RECIPE)])
    assert [type(objective) for objective in recipe.objectives] == [Matching, DenoisingScoreMatching, Adversarial]
    assert 0 < recipe.objectives[2].start < recipe.steps


def test_recipes_that_cannot_be_are_sentences():
    with pytest.raises(ValueError, match="at most one Adversarial"):
        players_of([Matching(), Adversarial(), Adversarial()])
    with pytest.raises(ValueError, match="give a Matching before it"):
        players_of([Adversarial(), Matching()])
    assert players_of([Matching()]) == {}


def test_a_long_win_is_told_once_and_again_after_a_recovery():
    watch = WinningWatch(steps=4, limit=0.9)
    told = [watch.tell(accuracy, 2.0) for accuracy in (1, 1, 1, 1, 1, 0.2, 0.5, 1, 1, 1, 1)]
    assert [sentence is not None for sentence in told] == [False] * 3 + [True] + [False] * 6 + [True]
    assert "told 100% of data and samples apart" in told[3]
    assert "Lower discriminator_optimizer's lr" in told[3]
