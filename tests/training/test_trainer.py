import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from ctm import load_model
from ctm.data import Images
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import DataSettings, Recipe, train
from ctm.training.ema import frozen_copy, move_average, warmed_decay
from ctm.training.step import step_generator

from .runs import (
    RECIPES,
    SMALL,
    assert_same,
    finish,
    rows,
    start,
    start_torchrun,
    student_arguments,
    teacher_arguments,
    trained,
    weights,
)


def recipe(name: str, *extra: str):
    return parse_recipe(["--config", str(RECIPES / name), *extra])


def teacher_recipe(*extra: str):
    return parse_recipe(teacher_arguments(*extra))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "teacher"
    train(*[teacher_recipe("--steps", "5")[0], out, teacher_recipe("--steps", "5")[1]])
    return out


def test_a_run_directory_holds_what_the_contract_says(teacher, tmp_path):
    out = tmp_path / "student"
    train(
        *_with_out(
            parse_recipe(student_arguments(teacher, "--steps", "6", "--log_every", "2", "--sample_every", "3")), out
        )
    )
    assert sorted(p.name for p in out.iterdir() if not p.name.startswith("events")) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "made_of.json",
        "metrics.jsonl",
        "model",
        "samples",
    ]
    assert list(out.glob("events.out.tfevents.*"))
    assert [p.name for p in sorted((out / "samples").iterdir())] == ["000003.png", "000006.png"]
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["00000006"]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    expected = {"loss/Matching", "loss/DenoisingScoreMatching", "weight/DenoisingScoreMatching", "images_per_second"}
    assert expected | {"seconds", "teacher_evaluations_per_image", "learning_rate"} <= rows[0].keys()
    model = load_model(out)
    assert model.num_classes == 10
    assert not list(out.rglob("*.pkl"))


def _with_out(pair, out):
    return pair[0], out, pair[1]


def test_an_interrupted_run_ends_with_the_same_bits(teacher, tmp_path, monkeypatch):
    arguments = student_arguments(teacher, "--steps", "12", "--checkpoint_every", "4", "--log_every", "2")
    train(*_with_out(parse_recipe(arguments), tmp_path / "whole"))

    from ctm.training import trainer

    original, count = trainer._step, []

    def interrupted(run, step):
        count.append(step)
        if len(count) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return original(run, step)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(*_with_out(parse_recipe(arguments), tmp_path / "parts"))
    assert max(int(p.name) for p in (tmp_path / "parts" / "checkpoints").iterdir()) == 7
    train(*_with_out(parse_recipe(arguments), tmp_path / "parts"))
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    whole, parts = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    )
    assert [row["step"] for row in parts] == [row["step"] for row in whole]
    for a, b in zip(whole[4:], parts[4:], strict=True):
        assert a["loss/Matching"] == b["loss/Matching"]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path):
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        train(*_with_out(teacher_recipe("--steps", "3", "--seed", seed), tmp_path / name))
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not torch.equal(
        weights(tmp_path / "a")["network.first.weight"], weights(tmp_path / "c")["network.first.weight"]
    )


def test_other_settings_in_a_used_directory_are_named(tmp_path):
    train(*_with_out(teacher_recipe("--steps", "2"), tmp_path / "run"))
    with pytest.raises(
        ValueError, match=r"holds a run with other settings \(seed: 0 there, 1 here\). Use another --out"
    ):
        train(*_with_out(teacher_recipe("--steps", "2", "--seed", "1"), tmp_path / "run"))


def test_a_directory_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="is not a run directory"):
        train(*_with_out(teacher_recipe("--steps", "2"), tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_matching_without_a_teacher_is_a_sentence(tmp_path):
    arguments = ["--config", str(RECIPES / "digits-ctm.yaml"), *SMALL, "--teacher", "null"]
    with pytest.raises(ValueError, match="names none: give --teacher MODEL"):
        train(*_with_out(parse_recipe(arguments), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "name", "words"),
    [
        ("--teacher", "runs/nowhere", r"the teacher \(--teacher MODEL\): there is no directory runs/nowhere"),
        ("--teacher", "nowhere.pkl", r"the teacher \(--teacher MODEL\): there is no file nowhere.pkl"),
        ("--student", "runs/nowhere", r"the student \(--student MODEL\): there is no directory runs/nowhere"),
    ],
)
def test_a_missing_teacher_is_refused_before_the_data_are_read(monkeypatch, tmp_path, option, name, words):
    """Reading a folder of a million pictures takes an hour."""
    monkeypatch.setattr("ctm.training.trainer.load_data", lambda recipe: pytest.fail("the data were read"))
    arguments = [
        "--config",
        str(RECIPES / "digits-ctm.yaml"),
        *SMALL,
        "--teacher",
        "models/digits-teacher",
        option,
        name,
    ]
    with pytest.raises(FileNotFoundError, match=words):
        train(*_with_out(parse_recipe(arguments), tmp_path / "run"))


def test_a_teacher_of_other_shape_is_a_sentence(teacher, tmp_path):
    with pytest.raises(ValueError, match=r"the teacher makes samples of shape \(1, 8, 8\), the data are \(1, 6, 6\)"):
        train(*_with_out(parse_recipe(student_arguments(teacher, "--data.size", "6")), tmp_path / "run"))


def test_a_student_starts_from_its_teachers_weights(tmp_path):
    made, text = teacher_recipe("--steps", "3")
    train(made, tmp_path / "teacher", text)
    student = parse_recipe(student_arguments(tmp_path / "teacher", "--steps", "1", "--optimizer.init_args.lr", "0"))
    train(*_with_out(student, tmp_path / "student"))
    from_teacher, kept = weights(tmp_path / "teacher"), weights(tmp_path / "student")
    for name, value in from_teacher.items():
        torch.testing.assert_close(kept[name], value)


def test_training_on_unlabelled_images_in_memory(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    made, text = teacher_recipe("--steps", "2")
    train(made, tmp_path / "run", text, images=Images(pixels))
    model = load_model(tmp_path / "run")
    assert (model.shape, model.num_classes) == ((3, 4, 4), 0)


def test_labels_are_dropped_at_the_stated_rate(tmp_path):
    from ctm.training.step import draw_batch

    labels, x0 = torch.arange(10).repeat(2000), torch.zeros(20_000, 1)
    generator = step_generator(0, 0)
    batch = draw_batch(
        [], None, x0, labels, total=20_000, part=slice(0, 20_000), condition_dropout=0.1, generator=generator
    )
    dropped = batch.condition < 0
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(batch.condition[~dropped], labels[~dropped])


def test_processes_take_the_rows_of_one_common_batch():
    """What two processes draw is what one draws, cut in two."""
    from ctm.objectives import DenoisingScoreMatching, Matching
    from ctm.teachers import GaussianMixture
    from ctm.training.step import draw_batch

    model = GaussianMixture(torch.zeros(1, 2), 0.5, torch.ones(1))
    objectives, x0, labels = [Matching(), DenoisingScoreMatching()], torch.randn(8, 2), torch.zeros(8).long()

    def draw(part):
        generator = step_generator(5, 17)
        rows = x0[part], labels[part]
        return draw_batch(objectives, model, *rows, total=8, part=part, condition_dropout=0.5, generator=generator)

    whole, halves = draw(slice(0, 8)), [draw(slice(0, 4)), draw(slice(4, 8))]
    assert torch.equal(torch.cat([half.condition for half in halves]), whole.condition)
    for index in (0, 1):
        assert torch.equal(torch.cat([half.draws[index].noise for half in halves]), whole.draws[index].noise)
    assert torch.equal(torch.cat([half.draws[0].times.path for half in halves], dim=1), whole.draws[0].times.path)


def test_learning_rate_rises_and_falls():
    made = Recipe(
        data=DataSettings(name="digits"),
        network=lambda shape, classes: None,
        objectives=[object()],
        optimizer=torch.optim.SGD,
        steps=100,
        warmup_steps=10,
        decay_fraction=0.2,
    )
    assert made.learning_rate_factor(0) == pytest.approx(0.1)
    assert made.learning_rate_factor(50) == 1
    assert made.learning_rate_factor(90) == pytest.approx(0.5)
    assert made.learning_rate_factor(99) == pytest.approx(0.05)


def test_moving_average_is_the_formula():
    model, average = torch.nn.Linear(2, 2), frozen_copy(torch.nn.Linear(2, 2))
    before = average.weight.clone()
    move_average(average, model, 0.9)
    torch.testing.assert_close(average.weight, 0.9 * before + 0.1 * model.weight.detach())
    assert not average.weight.requires_grad
    assert [warmed_decay(0.999, n) for n in (0, 90)] == [0.1, 0.91]
    assert warmed_decay(0.5, 1000) == 0.5


@pytest.mark.slow
def test_steps_leave_no_tensors_behind(teacher):
    """The target and the average are copies of the student and must not keep what the student's hook keeps."""
    import gc

    from accelerate import Accelerator

    from ctm.training import assembly, trainer

    made, _ = parse_recipe(student_arguments(teacher))
    run = assembly.prepare(made, Accelerator(), assembly.load_data(made))
    for group in run.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    counts = []
    for step in range(6):
        trainer._step(run, step)
        gc.collect()
        counts.append(sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()))
    assert counts[-1] <= counts[2] + 5


@pytest.mark.parametrize("pieces", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_two_processes_make_the_step_of_one(teacher, tmp_path, pieces):
    """The same global batch in one process and, through gloo, in two (torchrun starts them once): weights agree to float
    tolerance, with the batch whole and in pieces, adaptive weights included."""
    arguments = student_arguments(teacher, "--steps", "4", "--seed", "2", "--engine.accumulate", pieces)
    started = start_torchrun(arguments, tmp_path / "two") if pieces == "2" else start(arguments, tmp_path / "two", 2)
    finish(started)
    train(*_with_out(parse_recipe(arguments), tmp_path / "one"))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("name", ["digits-cm.yaml", "digits-ct.yaml", "digits-scratch.yaml"])
def test_the_recipes_of_comparisons_train(name, tmp_path):
    """Consistency distillation, consistency training and a CTM from scratch: a few steps of each, then samples."""
    plain = '{"width": 24, "blocks": 1, "embedding": 16, "s_embedding": false}'
    sizes = SMALL if name == "digits-scratch.yaml" else ["--network.init_args", plain, *SMALL[2:]]
    extra = []
    if name == "digits-cm.yaml":
        train(*_with_out(teacher_recipe("--steps", "2"), tmp_path / "teacher"))
        extra = ["--teacher", str(tmp_path / "teacher")]
    train(*_with_out(recipe(name, *sizes, *extra, "--steps", "3", "--log_every", "1"), tmp_path / "run"))
    model = load_model(tmp_path / "run")
    assert type(model).__name__ == ("TrajectoryModel" if name == "digits-scratch.yaml" else "ConsistencyModel")
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["teacher_evaluations_per_image"] == (2 if name == "digits-cm.yaml" else 0)
    assert (tmp_path / "run" / "samples" / "000003.png").is_file()


def test_a_recipe_may_compare_through_the_teachers_encoder(teacher, tmp_path):
    distance = (
        "{class_path: ctm.objectives.FeatureDistance, init_args: {backbones: "
        "[{class_path: ctm.backbones.TeacherEncoder, init_args: {level: 0.2}}]}}"
    )
    objectives = f"[{{class_path: ctm.objectives.Matching, init_args: {{distance: {distance}}}}}]"
    made = parse_recipe(student_arguments(teacher, "--objectives", objectives, "--steps", "2", "--log_every", "1"))
    train(*_with_out(made, tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss/Matching"] > 0


def test_matching_starts_when_it_is_told_to(tmp_path):
    """Score matching alone before: no teacher is needed for the walk's denoiser to become one."""
    objectives = [
        {
            "class_path": "ctm.objectives.Matching",
            "init_args": {"grid_points": 5, "start": 3, "solver": {"class_path": "ctm.objectives.TargetJumps"}},
        },
        {"class_path": "ctm.objectives.DenoisingScoreMatching"},
    ]
    arguments = ["--config", str(RECIPES / "digits-scratch.yaml"), *SMALL, "--objectives", json.dumps(objectives)]
    out = trained(tmp_path / "run", [*arguments, "--steps", "5", "--log_every", "1"])
    assert [("loss/Matching" in row, "loss/DenoisingScoreMatching" in row) for row in rows(out)] == [
        *[(False, True)] * 3,
        *[(True, True)] * 2,
    ]
