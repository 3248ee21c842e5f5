import json

import pytest
import torch

from ctm.bench.mixture import KINDS, Budget, Truth, mixture, run_mixture
from ctm.bench.results import Results
from ctm.cli import main
from ctm.noise import karras_grid
from ctm.sampling import heun


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
def finished(tmp_path_factory):
    results = Results(tmp_path_factory.mktemp("bench") / "matching.json", go_on=False)
    run_mixture(results, budget=Budget(evaluations=40, seconds=0.05), seeds=1)
    return results


def test_each_run_uses_both_budgets(finished):
    assert len(finished.entries) == 2 * len(KINDS)
    for entry in finished.entries.values():
        assert entry["equal_evaluations"]["evaluations"] >= 40
        assert entry["equal_seconds"]["seconds"] >= 0.05
        assert entry["measured"]["torch"] == torch.__version__


def test_finished_runs_are_kept(finished):
    """Only the run that is missing is made again."""
    entries = json.loads(finished.path.read_text())
    del entries["mixture/soft/0"]
    finished.path.write_text(json.dumps(entries))
    again = Results(finished.path, go_on=True)
    made = []
    run_mixture(again, budget=Budget(40, 0.05), seeds=1, progress=lambda runs: made.extend(runs) or runs)
    assert made == [("soft", True, 0)]
    assert {name: entry for name, entry in again.entries.items() if name in entries} == entries


def test_results_are_not_overwritten_by_accident(finished, capsys):
    assert main(["bench", "matching", "--part", "mixture", "--out", str(finished.path)]) == 2
    assert "add --continue" in capsys.readouterr().err


def test_an_unknown_method_is_named(tmp_path, capsys):
    assert main(["bench", "matching", "--methods", "soft,hard", "--out", str(tmp_path / "a.json")]) == 2
    assert "not hard" in capsys.readouterr().err


def test_images_are_compared_by_their_recipes(tmp_path, capsys, monkeypatch):
    """The whole of it on the smallest set: the digits' own recipes, 20 steps each, measured at one and at two jumps.
    (A budget so small that an odd measurement of a step's seconds cannot make them hundreds.)"""
    monkeypatch.setattr("ctm.bench.images._PROBE", (1, 2))
    monkeypatch.setattr("ctm.bench.images.STEPS", (1, 2))
    out = tmp_path / "digits.json"
    options = ["--part", "images", "--data", "digits", "--teacher", "models/digits-teacher", "--out", str(out)]
    options += ["--minutes", "1e-5", "--count", "20", "--methods", "soft,without DSM,CM"]
    assert main(["bench", "matching", *options]) == 0
    entries = json.loads(out.read_text())
    soft, consistency = entries["images/digits/soft"], entries["images/digits/CM"]
    assert set(soft["frechet"]) == {"1", "2"}
    assert set(consistency["frechet"]) == {"1"}
    assert set(consistency["frechet_gamma_1"]) == {"2"}
    assert consistency["teacher_evaluations"] == 2 * consistency["images"]
    assert entries["images/digits/teacher"]["frechet"]["35"] > 0
    assert "without DSM" in capsys.readouterr().out
    assert main(["bench", "matching", *options, "--continue", "--methods", "soft", "--image_seeds", "2"]) == 0
    entries = json.loads(out.read_text())
    assert entries["images/digits/soft"] == soft
    assert entries["images/digits/soft/1"]["frechet"] != soft["frechet"]
    assert entries["images/digits/soft/1"]["steps"] == soft["steps"]
    assert " ± " in capsys.readouterr().out
