import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ctm.bench import lessons
from ctm.bench.images import ImageBench
from ctm.bench.learners import RecipeLearner, learner_of, recipe_of
from ctm.bench.lessons import Cell, run_cell
from ctm.bench.mixture import Budget, Truth, mixture, run_mixture
from ctm.bench.results import Results
from ctm.bench.teach_table import curves, picture, report
from ctm.bench.ways import REFERENCE, WAYS
from ctm.cli import main
from ctm.data import load_images
from ctm.lock import DirectoryInUse
from ctm.noise import karras_grid
from ctm.sampling import heun
from ctm.training.run_directory import RunDirectory

from ..conftest import slow

TEACHER = Path("models/digits-teacher")


def test_the_exact_model_makes_no_error():
    """The mixture itself as the student: its jumps are the flow and its denoiser is the denoiser."""
    teacher = mixture()
    errors = Truth(teacher, count=64).errors(teacher)
    assert errors["1"] < 1e-6
    assert errors["8"] < 1e-6
    assert errors["denoiser"] == 0


def test_a_solver_makes_the_error_it_is_known_for():
    """Heun on few levels misses the flow; on many it does not: the measure sees the difference."""
    truth = Truth(mixture(), count=64)

    def missed(steps):
        return float((heun(truth.teacher, truth.start, karras_grid(steps)) - truth.end).square().mean().sqrt())

    assert missed(9) > 10 * missed(60)


@pytest.fixture(scope="module")
def on_mixture(tmp_path_factory):
    results = Results(tmp_path_factory.mktemp("bench") / "teach.json", go_on=False)
    ways = ["soft", "eulerian", "semigroup"]
    run_mixture(results, ways, budget=Budget(evaluations=20, seconds=0.05), seeds=[0], count=64)
    return results


def test_each_way_uses_its_budgets(on_mixture):
    assert list(on_mixture.entries) == ["mixture/soft/0", "mixture/eulerian/0", "mixture/semigroup/0"]
    for entry in on_mixture.entries.values():
        assert entry["equal_seconds"]["seconds"] >= 0.05
        assert entry["measured"]["torch"] == torch.__version__
        assert " at 0x" not in entry["settings"]
    assert on_mixture.entries["mixture/soft/0"]["equal_evaluations"]["evaluations"] >= 20
    assert on_mixture.entries["mixture/eulerian/0"]["equal_evaluations"]["steps"] == 20
    assert "equal_evaluations" not in on_mixture.entries["mixture/semigroup/0"]


def test_finished_runs_are_kept(on_mixture):
    """Only the run that is missing is made again."""
    entries = json.loads(on_mixture.path.read_text())
    del entries["mixture/soft/0"]
    on_mixture.path.write_text(json.dumps(entries))
    again = Results(on_mixture.path, go_on=True)
    made = []

    def watched(runs):
        made.extend(runs)
        return runs

    run_mixture(again, ["soft", "semigroup"], budget=Budget(20, 0.05), seeds=[0], count=64, progress=watched)
    assert made == [("soft", 0)]
    assert {name: entry for name, entry in again.entries.items() if name in entries} == entries


def test_processes_add_to_one_file(tmp_path):
    """Each began before the other had added its entry."""
    one, two = (Results(tmp_path / "teach.json", go_on=True) for _ in range(2))
    one.add("a", {"value": 1})
    two.add("b", {"value": 2})
    one.add("c", {"value": 3})
    assert set(json.loads(one.path.read_text())) == {"a", "b", "c"}


def small(seed=0):
    """The digits' recipe with a batch of 8."""
    recipe = recipe_of("digits", TEACHER, seed)
    return replace(recipe, data=replace(recipe.data, batch_size=8))


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


VARIANTS = {
    "soft-multistep",
    "eulerian-data",
    "lagrangian-student",
    "trajectory-tuning",
    "global",
    "consistency-distillation",
}


@pytest.mark.parametrize(
    "way", [REFERENCE, *(slow(name) if name in VARIANTS else name for name, way in WAYS.items() if not way.tried)]
)
def test_a_way_trains(way, digits):
    """Four steps, in which the teacher is asked where it should be and the student's weights move."""
    learner = learner_of(way, small(), digits, 4)
    modules, _ = learner.parts()
    before = {name: value.clone() for name, value in modules["student"].state_dict().items()}
    evaluations = [learner.step(1.0) for _ in range(4)]
    assert all(count % 8 == 0 for count in evaluations)
    if way != REFERENCE:
        asks = any(objective.needs_teacher for objective in learner.run.recipe.objectives)
        assert (sum(evaluations) > 0) == asks
    after = modules["student"].state_dict()
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("way", [REFERENCE, "soft-multistep"])
def test_a_training_goes_on_as_if_it_had_not_stopped(way, digits, tmp_path):
    """Four steps, and two and two in another object: the same calls, so the same bits."""
    whole, first, second = (learner_of(way, small(), digits) for _ in range(3))
    for _ in range(4):
        whole.step(0.5)
    for _ in range(2):
        first.step(0.5)
    directory = RunDirectory(tmp_path / "run")
    directory.claim("{}")
    directory.save(first.steps, *first.parts(), {"state": first.state()}, 0.0)
    kept = directory.load(first.steps, *second.parts())
    second.take_up(kept.step, kept.extra["state"])
    directory.release()
    for _ in range(2):
        second.step(0.5)
    for name, module in whole.parts()[0].items():
        other = second.parts()[0][name].state_dict()
        assert all(torch.equal(value, other[key]) for key, value in module.state_dict().items()), name


@pytest.fixture(scope="module")
def bench():
    return ImageBench("digits", TEACHER, 20)


@pytest.fixture(scope="module")
def cell_entry(bench, tmp_path_factory):
    """A cell of a second that was killed in its middle: the entry, and the steps at which it was killed."""
    runs, cell = tmp_path_factory.mktemp("cells"), Cell("digits", "soft", 0.02, seed=0, points=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ctm.bench.images.STEPS", (1,))
        patch.setattr(lessons, "_SAVE_SECONDS", 0.0)
        child = multiprocessing.get_context("fork").Process(target=killed_in_training, args=(cell, bench, runs))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        with pytest.MonkeyPatch.context() as other:
            other.setitem(WAYS, "soft", WAYS["local"])
            with pytest.raises(ValueError, match="begun with other settings"):
                run_cell(cell, bench, TEACHER, runs)
        saved = RunDirectory(runs / "images-digits-soft-0.02min-0").latest()
        return run_cell(cell, bench, TEACHER, runs), saved, runs


def killed_in_training(cell, bench, runs):
    def step(self, factor, taken=RecipeLearner.step):
        if self.steps == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return taken(self, factor)

    RecipeLearner.step = step
    run_cell(cell, bench, TEACHER, runs)


@pytest.mark.slow
def test_a_killed_cell_goes_on(cell_entry):
    entry, saved, runs = cell_entry
    assert saved == 3
    assert entry["steps"] > 3
    assert entry["diverged"] is None
    assert [point["seconds"] >= moment for point, moment in zip(entry["curve"], [0.69, 1.2], strict=True)] == [
        True,
        True,
    ]
    assert entry["curve"][-1]["steps"] == entry["steps"]
    assert entry["teacher_evaluations"] % 128 == 0
    assert (runs / "images-digits-soft-0.02min-0" / "model" / "model.safetensors").is_file()


def test_a_cell_is_trained_by_one_process(bench, tmp_path):
    holder = RunDirectory(tmp_path / "images-digits-soft-0.02min-0")
    holder.claim("{}")
    with pytest.raises(DirectoryInUse):
        run_cell(Cell("digits", "soft", 0.02, points=2), bench, TEACHER, tmp_path)
    holder.release()


def stored(cell_entry, on_mixture):
    """Results as a benchmark leaves them: the cell with two seeds, at other distances."""
    entry = json.loads(json.dumps(cell_entry[0]))
    for point in entry["curve"]:
        point["jumps"] = {str(k): {"frechet": 60.0 + k, "error": 3.0, "mse_to_teacher": 0.1} for k in (1, 2, 4, 8)}
    other = json.loads(json.dumps(entry).replace("61.0", "65.0"))
    teacher = {"part": "images", "data": "digits", "way": "teacher", "protocol": entry["protocol"], "evaluations": 35}
    teacher |= {"floor": 58.2, "35": {"frechet": 64.3, "error": 3.1}}
    cells = {"images/digits/teacher": teacher, "images/digits/soft/0.02min/0": entry}
    return dict(on_mixture.entries) | cells | {"images/digits/soft/0.02min/1": {**other, "seed": 1}}


@pytest.mark.slow
def test_tables_and_curves_come_from_the_file(cell_entry, on_mixture, tmp_path, capsys):
    entries = stored(cell_entry, on_mixture)
    lines = report(entries)
    assert any(line.startswith("| soft | 0.02 | 2 |") and "| 63.0 ± 2.0 | 62.0 ± 0.0 |" in line for line in lines)
    assert any(line.startswith("| semigroup | 1 |") for line in lines)
    points = curves(entries, "digits", 1)["soft", 0.02]
    assert [(value, bar) for _, value, bar in points] == [(63.0, 2.0), (63.0, 2.0)]
    assert picture({}) is None
    path = tmp_path / "teach.json"
    path.write_text(json.dumps(entries))
    assert main(["bench", "teach", "--show", "--out", str(path)]) == 0
    assert "63.0 ± 2.0" in capsys.readouterr().out
    assert (tmp_path / "teach.png").read_bytes().startswith(b"\x89PNG")


def test_the_mixtures_table_comes_from_the_file(on_mixture):
    """And a picture of the pictures' curves, of which there are none here, is none."""
    assert any(line.startswith("| semigroup | 1 |") for line in report(on_mixture.entries))
    assert picture({}) is None


def test_results_files_are_brought_together(on_mixture, tmp_path, capsys):
    out = tmp_path / "all.json"
    out.write_text(json.dumps({"mixture/global/0": on_mixture.entries["mixture/soft/0"] | {"way": "global"}}))
    assert main(["bench", "teach", "--merge", str(on_mixture.path), "--out", str(out)]) == 0
    assert set(json.loads(out.read_text())) == {"mixture/global/0", *on_mixture.entries}


def test_results_are_not_overwritten_by_accident(on_mixture, capsys):
    assert main(["bench", "teach", "--part", "mixture", "--out", str(on_mixture.path)]) == 2
    assert "add --continue" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ways", "soft,hard"], "not hard"),
        (["--ways", ","], "not an empty list"),
        (["--show"], "there is no"),
        (["--minutes", "0"], "--minutes must be positive"),
        (["--merge", "nothing.json"], "nothing.json"),
    ],
)
def test_mistakes_are_named(options, words, tmp_path, capsys):
    assert main(["bench", "teach", *options, "--out", str(tmp_path / "a.json")]) == 2
    assert words in capsys.readouterr().err
