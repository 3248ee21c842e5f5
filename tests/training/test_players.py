"""A made-up second player, a fake score that learns on the student's samples, beside the discriminator in real runs."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from ctm import DiffusionModel, TrajectoryModel
from ctm.networks import MLP
from ctm.objectives import Matching, Networks
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import assembly, dry_run, trainer
from ctm.training.dry_run import kinds_of_steps
from ctm.training.engine import EngineSettings
from ctm.training.players import PlayerInTraining, players_in_training
from ctm.training.step import Batch, LossModule, draw_batch, step_generator

from ..conftest import mixture
from .fake_score import FakeScore, MatchDistributions
from .runs import (
    OFTEN,
    assert_same,
    everything,
    finish,
    kill_at_random,
    rows,
    start,
    student_arguments,
    teacher_arguments,
    trained,
    weights,
)

MATCHING = {"class_path": "ctm.objectives.Matching", "init_args": {"grid_points": 10}}
DISCRIMINATOR = {"class_path": "ctm.discriminators.MLPDiscriminator", "init_args": {"width": 16}}
MADE_UP = {"class_path": "tests.training.fake_score.MatchDistributions"}
CRITICISED = {"class_path": "tests.training.normed_critic.Criticised"}
ROOT = Path(__file__).parents[2]


def adversarial(**settings) -> dict:
    return {"class_path": "ctm.objectives.Adversarial", "init_args": {"discriminator": DISCRIMINATOR, **settings}}


@pytest.fixture(autouse=True)
def _allowed(monkeypatch):
    monkeypatch.setenv("CTM_ALLOW", "tests.training.fake_score,tests.training.normed_critic")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("teacher") / "run", teacher_arguments("--steps", "5"))


def arguments(teacher: Path, *extra: str, objectives: list[dict] | None = None) -> list[str]:
    """Matching, a discriminator that learns in every step, and the fake score, unless told otherwise."""
    used = objectives or [MATCHING, adversarial(alternate=False), MADE_UP]
    return student_arguments(teacher, "--objectives", json.dumps(used), *extra)


def prepared(given: list[str]):
    recipe, _ = parse_recipe(given)
    run = assembly.prepare(recipe, Accelerator(cpu=True), assembly.load_data(recipe))
    for group in run.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return run


def checkpoint(out: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / f"{step:08d}" / f"{name}.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def copies(module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


class Sampler(torch.nn.Module):
    """A student whose samples are the mixture's: the component's mean and the noise it is given, at the component's width."""

    def __init__(self, truth):
        super().__init__()
        self.truth, self.network, self.shape = truth, torch.nn.Linear(1, 1), truth.shape
        self.sigma_min, self.sigma_max, self.sigma_data = truth.sigma_min, truth.sigma_max, truth.sigma_data

    def jump(self, x, t, s, labels):
        return self.truth.means[labels] + self.truth.std * x / self.sigma_max


def test_the_fake_score_learns_the_denoiser_of_the_students_samples():
    """The student's samples are a mixture's, whose denoiser under a label is known. The fake score starts from a network that has
    learned nothing. Its error falls to under 0.4 and 0.3 of that (measured with three seeds: 0.24 to 0.26, 0.17 to 0.19), on
    samples that the step's own code makes; the data, all 0, would leave it above."""
    torch.manual_seed(0)
    truth, labels, steps = mixture(2).float(), torch.arange(4000) % 4, 250
    student, objectives = Sampler(truth), [MatchDistributions()]
    network = MLP((2,), 4, width=64, blocks=1, embedding=32, s_embedding=False)
    teacher = DiffusionModel(network, shape=(2,), num_classes=4, sigma_data=truth.sigma_data)
    networks, own = Networks(student, None, teacher), {"fake_score": lambda p: torch.optim.Adam(p, lr=2e-2)}
    player = players_in_training(objectives, networks, Accelerator(cpu=True), EngineSettings(), own)["fake_score"]
    networks, module = replace(networks, players={"fake_score": player.network}), LossModule(student, objectives)

    def missed(level: float) -> float:
        generator, sigma = torch.Generator().manual_seed(1), torch.full((len(labels),), level)
        clean = truth.means[labels] + truth.std * torch.randn(len(labels), 2, generator=generator)
        x = clean + level * torch.randn(clean.shape, generator=generator)
        with torch.no_grad():
            return float(
                (truth.denoise(x, sigma, labels) - player.network.denoise(x, sigma, labels)).square().mean().sqrt()
            )

    before = missed(0.3), missed(1.0)
    for step in range(steps):
        batch = draw_batch(
            objectives, student, torch.zeros(256, 2), labels[:256], total=256, part=slice(0, 256), condition_dropout=0.0,
            generator=step_generator(0, step), step=step,
        )  # fmt: skip
        player.begin(1 - step / steps)
        with torch.no_grad():
            module(batch, None, teacher, networks.players, make_for=[0])
        player.learn(batch, module.made[0], networks, step)
        player.move()
    assert missed(0.3) < 0.4 * before[0]
    assert missed(1.0) < 0.3 * before[1]


def test_a_player_follows_the_runs_schedule_and_the_discriminator_keeps_its_rate(teacher):
    """Warm-up over 4 steps and a fall over the last half of 8: the student's factors are 1/4, 2/4, 3/4, 1, 1, 3/4, 2/4, 1/4. The
    fake score's rate, Adam's 1e-3, is multiplied by the same; the discriminator's stays at 2e-3."""
    run = prepared(arguments(teacher, "--steps", "8", "--warmup_steps", "4", "--decay_fraction", "0.5"))
    seen = {"fake_score": [], "discriminator": []}
    for step in range(8):
        trainer._step(run, step)
        for name, rates in seen.items():
            rates += [group["lr"] for group in run.players[name].optimizer.param_groups]
    assert seen["fake_score"] == pytest.approx([1e-3 * share / 4 for share in (1, 2, 3, 4, 4, 3, 2, 1)], rel=1e-12)
    assert seen["discriminator"] == [2e-3] * 8


def test_who_moves_in_which_step(teacher):
    """The discriminator in every step, the fake score from its start in every step, the student in the last of each five."""
    run = prepared(arguments(teacher))
    who = {"student": run.student, "average": run.published, **run.player_networks}
    assert list(run.player_networks) == ["discriminator", "fake_score"]
    for step in range(11):
        before = {name: copies(module) for name, module in who.items()}
        trainer._step(run, step)
        moved = {name for name, module in who.items() if not same(before[name], module.state_dict())}
        student = {"student", "average"} if step in (4, 9) else set()
        assert moved == {"discriminator", "fake_score", *student}, step


def test_the_fake_score_starts_from_the_teachers_weights(teacher):
    run = prepared(arguments(teacher))
    assert_same(copies(run.player_networks["fake_score"]), copies(run.teacher))
    assert all(p.requires_grad for p in run.player_networks["fake_score"].parameters())
    assert not any(p.requires_grad for p in run.teacher.parameters())


def test_losses_and_norms_of_players_are_logged(teacher, tmp_path):
    out = trained(tmp_path / "run", arguments(teacher, "--steps", "5", "--log_every", "1"))
    for row in rows(out):
        for name in ("discriminator", "fake_score"):
            assert 0 < row[f"{name}/gradient_norm"] < math.inf
            assert math.isfinite(row[f"{name}/loss"])
    student = ["loss/MatchDistributions" in row for row in rows(out)]
    assert student == [False, False, False, False, True]


@pytest.mark.slow
def test_a_continued_run_with_two_players_has_the_bits_of_an_unbroken_one(teacher, tmp_path):
    """The checkpoint of step 7, between two steps of the student, is the newest that is left."""
    given = arguments(teacher, "--steps", "11", "--checkpoint_every", "7", "--log_every", "1")
    out = trained(tmp_path / "run", given)
    whole = everything(out)
    shutil.rmtree(out / "checkpoints" / "00000011")
    assert everything(out)["checkpoint"] != whole["checkpoint"]
    trained(out, given)
    assert everything(out) == whole
    assert {"fake_score.safetensors", "fake_score.optimizer.pt"} <= whole["checkpoint"].keys()
    assert set(whole["state"]["extra"]["guards"]) == {"student", "discriminator", "fake_score"}


@pytest.mark.slow
def test_a_run_with_two_players_killed_at_a_random_moment_ends_with_the_same_bits(teacher, tmp_path):
    """SIGKILL and the same command again: weights, averages, optimisers, guards, log."""
    given = [*arguments(teacher), *OFTEN, "--steps", "60"]
    kill_at_random(start(given, tmp_path / "parts"), tmp_path / "parts", 30)
    finish(start(given, tmp_path / "parts"))
    trained(tmp_path / "whole", given)
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(teacher, tmp_path):
    """To rounding: sums over other rows."""
    given = arguments(teacher, "--steps", "5", "--log_every", "1", "--checkpoint_every", "5")
    finish(start(given, tmp_path / "two", 2))
    trained(tmp_path / "one", given)
    for name in ("student", "fake_score", "discriminator"):
        one, two = (checkpoint(tmp_path / run, 5, name) for run in ("one", "two"))
        for key, value in one.items():
            torch.testing.assert_close(
                two[key], value, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
            )
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert b["fake_score/loss"] == pytest.approx(a["fake_score/loss"], rel=1e-3)


def test_buffers_that_training_moves_are_kept_with_a_player(teacher, tmp_path):
    """Running means move in the two calls of the critic's own loss, in each of two steps. The student's pass through it, in eval
    mode, moves none."""
    out = trained(tmp_path / "run", arguments(teacher, "--steps", "2", objectives=[MATCHING, CRITICISED]))
    assert int(checkpoint(out, 2, "critic")["1.num_batches_tracked"]) == 2 * 2


@pytest.mark.slow
def test_buffers_of_a_player_are_the_same_in_all_processes(teacher, tmp_path):
    """A run that goes on takes them from the main process's checkpoint: it has the bits of an unbroken one only if the processes
    had them equal before."""
    objectives = [MATCHING, CRITICISED]
    given = arguments(teacher, "--steps", "6", "--checkpoint_every", "3", "--log_every", "1", objectives=objectives)
    out = tmp_path / "run"
    finish(start(given, out, 2))
    whole = everything(out)
    shutil.rmtree(out / "checkpoints" / "00000006")
    finish(start(given, out, 2))
    assert everything(out) == whole


def test_pieces_of_a_batch_give_the_gradient_of_the_whole(teacher):
    """Two pieces of eight against one of sixteen: losses are means over samples, so are the gradients."""
    gradients = []
    for pieces in ("1", "2"):
        run = prepared(arguments(teacher, "--engine.accumulate", pieces))
        trainer._step(run, 0)
        gradients.append([p.grad for p in run.player_networks["fake_score"].parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)


def test_a_player_whose_loss_is_not_finite_stays_as_it_is(teacher, tmp_path, monkeypatch, caplog):
    """In step 4 the fake score's loss is nan, once: it stays, the discriminator moves, the step counts as skipped."""
    original = FakeScore.loss

    def loss(self, networks, lesson):
        found, numbers = original(self, networks, lesson)
        return found * math.nan if lesson.step == 3 else found, numbers

    monkeypatch.setattr(FakeScore, "loss", loss)
    out = trained(tmp_path / "run", arguments(teacher, "--log_every", "1", "--steps", "4", "--checkpoint_every", "3"))
    assert [row["skipped"] for row in rows(out)] == [0, 0, 0, 1]
    assert "skipped step 4: the loss of the fake_score is nan" in caplog.text
    assert "the gradient of fake_score.network." in caplog.text
    assert same(checkpoint(out, 3, "fake_score"), checkpoint(out, 4, "fake_score"))
    assert not same(checkpoint(out, 3, "discriminator"), checkpoint(out, 4, "discriminator"))


def test_a_step_that_the_student_skips_moves_no_player(teacher, monkeypatch):
    run = prepared(arguments(teacher))
    original = MatchDistributions.__call__
    monkeypatch.setattr(MatchDistributions, "__call__", lambda *given: original(*given) * math.nan)
    before = {name: copies(network) for name, network in run.player_networks.items()}
    trainer._step(run, 4)
    assert run.guards["student"].skipped == 1
    for name, network in run.player_networks.items():
        assert_same(before[name], copies(network))


def test_players_know_spikes_unless_they_say_otherwise(teacher):
    run = prepared(arguments(teacher))
    factors = {name: guard.spike_factor for name, guard in run.guards.items()}
    assert factors == {"student": 30, "discriminator": None, "fake_score": 30}


def test_a_players_gradient_is_clipped_to_its_own_norm(teacher, monkeypatch):
    """SGD with rate 1 moves the weights by the clipped gradient: its length is the limit."""
    monkeypatch.setattr(FakeScore, "clip_gradient_norm", 1e-3)
    monkeypatch.setattr(FakeScore, "optimizer", lambda self, parameters: torch.optim.SGD(parameters, lr=1.0))
    run = prepared(arguments(teacher))
    network = run.player_networks["fake_score"]
    before = torch.nn.utils.parameters_to_vector(network.parameters()).double()
    numbers = trainer._step(run, 0)
    moved = torch.nn.utils.parameters_to_vector(network.parameters()).double() - before
    assert float(numbers["fake_score/gradient_norm"]) > 0.1
    assert float(moved.detach().norm()) == pytest.approx(1e-3, rel=2e-2)  # float32 weights near 1 round steps near 1e-4


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_player_that_is_a_model_computes_in_the_engines_precision(teacher, precision):
    """In fp16 its loss is scaled, and its gradient is that of float32 to the precision's rounding."""
    runs = [prepared(arguments(teacher, "--engine.precision", kind)) for kind in ("fp32", precision)]
    numbers = [trainer._step(run, 0) for run in runs]
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    assert runs[1].player_networks["fake_score"].autocast == kinds[precision]
    assert ("fake_score/loss_scale" in numbers[1]) == (precision == "fp16")
    norms = [float(found["fake_score/gradient_norm"]) for found in numbers]
    assert norms[1] == pytest.approx(norms[0], rel=0.05)
    assert norms[1] != norms[0]
    assert "discriminator/loss_scale" not in numbers[1]


def test_a_checkpoint_without_a_player_is_refused(teacher, tmp_path):
    """As a run whose objective had no player when the checkpoint was written, or has none any more."""
    kinds = [arguments(teacher, "--steps", "2", objectives=kind) for kind in ([MATCHING], [MATCHING, MADE_UP])]
    runs = [trained(tmp_path / name, given) for name, given in zip(("without", "with"), kinds, strict=True)]
    texts = [(out / "config.yaml").read_text() for out in runs]
    for out, text in zip(runs, reversed(texts), strict=True):
        (out / "config.yaml").write_text(text)
    words = (
        r"does not fit this recipe \(it has no fake_score\.safetensors, the weights of the fake_score that this recipe"
    )
    with pytest.raises(ValueError, match=words):
        trained(runs[0], kinds[1])
    with pytest.raises(
        ValueError, match=r"its fake_score\.safetensors are weights of a fake_score that this recipe does"
    ):
        trained(runs[1], kinds[0])


def test_two_players_of_one_name_are_refused(teacher, tmp_path):
    words = "MatchDistributions and MatchDistributions both train a player of the name 'fake_score'"
    with pytest.raises(ValueError, match=words):
        trained(tmp_path / "run", arguments(teacher, objectives=[MADE_UP, MADE_UP]))


def test_divided_weights_and_players_are_refused_in_a_sentence(teacher):
    class Two(Accelerator):
        num_processes = 2

    recipe, _ = parse_recipe(arguments(teacher, "--engine.sharding", "fsdp2"))
    with pytest.raises(
        ValueError, match="fsdp2 does not go with Adversarial, MatchDistributions, which trains a network"
    ):
        assembly._players(recipe, None, Two(cpu=True), [])


def test_an_optimizer_for_a_discriminator_that_is_not_there_is_said(teacher):
    own = ["--discriminator_optimizer", '{"class_path": "torch.optim.SGD", "init_args": {"lr": 0.25}}']
    without, with_it = (
        prepared(arguments(teacher, *own, objectives=given)) for given in ([MATCHING], [MATCHING, adversarial()])
    )
    line = "discriminator_optimizer is not used: no objective trains a discriminator"
    assert [line in run.begun.lines for run in (without, with_it)] == [True, False]
    assert with_it.players["discriminator"].optimizer.param_groups[0]["lr"] == 0.25


def lesson_of(**changes) -> PlayerInTraining:
    """A fake score in training, some of it replaced."""
    kind = type("Changed", (FakeScore,), changes)
    student = TrajectoryModel(MLP((2,), 0, width=8, blocks=1, embedding=8), shape=(2,))
    return PlayerInTraining(kind(), 0, Networks(student, None, student), Accelerator(cpu=True), EngineSettings())


def test_what_a_player_lacks_is_a_sentence():
    batch = Batch(torch.zeros(2, 2), None, [None])
    player = lesson_of()
    with pytest.raises(
        ValueError, match=r"fake_score learns from the 'sample' of a step, which was not made \(there is: estimate"
    ):
        player.learn(batch, {"estimate": torch.zeros(2, 2)}, Networks(None), 0)
    constant = lesson_of(loss=lambda self, networks, lesson: (torch.ones(()), {}))
    with pytest.raises(ValueError, match="the loss of the player fake_score has no gradient"):
        constant.learn(batch, {"sample": torch.zeros(2, 2)}, Networks(None), 0)


def test_a_network_with_dropout_drops_in_its_own_loss_alone():
    """In train mode while it learns; in eval mode while the student learns through it."""
    seen = []

    def loss(self, networks, lesson):
        seen.append(player.network.training)
        return next(player.network.parameters()).sum(), {}

    player = lesson_of(loss=loss)
    network = player.network
    player.begin()
    assert not network.training
    player.learn(Batch(torch.zeros(2, 2), None, [None]), {"sample": torch.zeros(2, 2)}, Networks(None), 0)
    assert (seen, network.training) == ([True], False)


def test_the_example_of_the_docs_is_the_fake_score_of_these_tests():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.DOTALL)
    assert (Path(__file__).parent / "fake_score.py").read_text() in blocks


@pytest.mark.slow
def test_the_recipe_of_the_docs_trains_the_fake_score(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.DOTALL)
    (recipe,) = [block for block in blocks if "fake_score.MatchDistributions" in block]
    own = tmp_path / "mine.yaml"
    own.write_text(recipe.replace("fake_score.", "tests.training.fake_score."))
    trained(tmp_path / "run", ["--config", str(own), "--steps", "5", "--log_every", "5"])
    assert math.isfinite(rows(tmp_path / "run")[-1]["fake_score/loss"])


def test_a_watch_is_asked_for_the_numbers_it_reads(caplog):
    class Told:
        reads = ("loss",)

        def tell(self, loss):
            return f"the loss is {loss}"

    given = {
        "watch": lambda self: Told(),
        "loss": lambda self, networks, lesson: (3 + 0 * next(player.network.parameters()).sum(), {}),
    }
    player = lesson_of(**given)
    player.begin()
    player.learn(Batch(torch.zeros(2, 2), None, [None]), {"sample": torch.zeros(2, 2)}, Networks(None), 0)
    player.move()
    assert "the loss is 3.0" in caplog.text


def test_a_dry_run_measures_each_kind_of_step(teacher, few_draws):
    """The student learns in one of five steps, and the teacher is evaluated in these alone. Two solver steps of Heun are four
    evaluations, and the fake score's loss is one more."""
    matching = {**MATCHING, "init_args": {"grid_points": 10, "solver_steps": 2}}
    recipe, _ = parse_recipe(arguments(teacher, "--steps", "100", objectives=[matching, MADE_UP]))
    found = dry_run(recipe)
    assert [(kind.learners, kind.share) for kind in found.kinds] == [
        (("student", "fake_score"), 0.2),
        (("fake_score",), 0.8),
    ]
    assert [kind.evaluations["teacher"] for kind in found.kinds] == [5, 0]
    assert (found.evaluations, found.seconds) == (found.kinds[0].evaluations, found.kinds[0].seconds)
    assert found.expected_teacher == pytest.approx(5 / 5)
    assert 0 < found.expected_seconds < max(kind.seconds for kind in found.kinds)
    assert "who learns: student and fake_score in 20% of the steps" in " ".join(found.lines())
    assert {"student", "fake_score", "teacher"} <= found.parameters.keys()


def test_a_dry_run_of_an_alternating_recipe_tells_the_students_step(teacher, few_draws):
    recipe, _ = parse_recipe(arguments(teacher, "--steps", "10", objectives=[MATCHING, adversarial(start=3)]))
    found = dry_run(recipe)
    assert [kind.learners for kind in found.kinds] == [("student",), ("discriminator",)]
    assert found.evaluations["teacher"] > 0
    assert [kind.learners for kind in kinds_of_steps([Matching()], 5)] == [("student",)]


def test_averages_of_the_student_move_in_its_own_steps_alone(teacher, tmp_path):
    out = trained(tmp_path / "run", arguments(teacher, "--steps", "4", objectives=[MADE_UP]))
    assert_same(weights(out), checkpoint(out, 4, "student"))
