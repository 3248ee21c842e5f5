"""The Fréchet distance of numbers that are no pictures: held to the closed form of Gaussians, and by the command."""

import json

import numpy as np
import pytest
import torch

from ctm import DiffusionModel
from ctm.cli import main
from ctm.conditioner import Labels
from ctm.data import scaled_values
from ctm.evaluation.plans import make_plans, subject_of
from ctm.evaluation.values import ValueJudge, evaluate_values, few_values, sample_values
from ctm.networks import MLP
from ctm.scaling import Scaling

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 2, 3)], ids=str)
def test_the_distance_is_the_closed_form_of_gaussians(shape):
    """Independent numbers of deviation 5 about 100 against ones moved by 1 deviation and twice as wide: in units of the data's
    deviation (1² + (2 − 1)²)·F for F numbers, but for the draw: the relative error of 20,000 rows is 3 % at three deviations."""
    data = (RANDOM.normal(size=(20_000, *shape)) * 5 + 100).astype(np.float32)
    samples = torch.from_numpy((RANDOM.normal(size=(20_000, *shape)) * 10 + 105).astype(np.float32))
    judge = ValueJudge(scaled_values(data, "range"))
    found = judge.distance(samples)
    assert found.value == pytest.approx(2 * np.prod(shape), rel=0.05)
    assert judge.distance(torch.from_numpy(data)).value == pytest.approx(0, abs=1e-6)
    assert 0 < judge.halves < 0.02


def test_few_items_are_said_and_too_many_numbers_are_refused():
    judge = ValueJudge(scaled_values(RANDOM.normal(size=(9, 12)).astype(np.float32), None))
    assert "their covariance is singular" in few_values(judge, 100)[0]
    assert judge.halves is None
    with pytest.raises(ValueError, match="measured over at most 4096"):
        ValueJudge(scaled_values(RANDOM.normal(size=(2, 5000)).astype(np.float32), None))
    with pytest.raises(ValueError, match=r"samples must be \(N, 12\)"):
        judge.distance(torch.zeros(5, 3))


def test_the_command_measures_a_model_and_given_samples(tmp_path, capsys):
    data = (RANDOM.normal(size=(500, 2)) * [3, 0.1] + 7).astype(np.float32)
    np.savez(tmp_path / "d.npz", data=data)
    np.savez(tmp_path / "s.npz", data=data[::-1] + np.float32([3, 0]))
    model = DiffusionModel(MLP((2,), width=8, blocks=1, s_embedding=False), shape=(2,))
    model.scaling = Scaling("standard", (7.0, 7.0), (6.0, 0.2))
    model.save_pretrained(tmp_path / "m")
    given = ["evaluate", str(tmp_path / "m"), "--data", str(tmp_path / "d.npz"), "--num", "50", "--steps", "3"]
    assert main([*given, "--samples", str(tmp_path / "s.npz"), "--out", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "result.json").read_text())["rows"]
    assert [row["role"] for row in rows] == ["model", "samples"]
    assert rows[1]["frechet"]["value"] == pytest.approx(9 / data[:, 0].var(), rel=1e-4)
    assert "samples: Fréchet 1." in capsys.readouterr().out
    assert main([*given, "--likelihood", "3"]) == 2
    assert "bits per dimension of pictures" in capsys.readouterr().err


class Points(torch.nn.Module):
    """The exact denoiser of points: class i is i + 1 in every number, no class is 0."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.class_names, self.num_classes, self.shape = names, len(names), (2,)
        self.sigma_min, self.sigma_max = 0.002, 80.0
        self.conditioner, self.scaling = Labels(len(names)), Scaling("none")
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def denoise(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return (condition + 1.0)[:, None].expand_as(x)


def pairs(names: list[str], labels: np.ndarray):
    """Items at the places that `Points(["ant", "bee"])` gives their classes."""
    places = {"ant": 1.0, "bee": 2.0}
    x = np.array([[places.get(names[label], 9.0)] * 2 for label in labels], dtype=np.float32)
    return scaled_values(x, None, name="d.npz", labels=labels, class_names=names)


def of_points() -> list:
    return make_plans(subject_of("model", "m", Points(["ant", "bee"])), steps=[2], sampler="euler")


def test_classes_are_those_of_the_same_name(tmp_path, caplog):
    """The data number their classes the other way round, and an unused one stands between."""
    data = pairs(["bee", "cow", "ant"], np.array([0] * 30 + [2] * 10))
    judge, [plan] = ValueJudge(data), of_points()
    made = sample_values(judge, plan, 40, torch.device("cpu"))
    assert sorted(made[:, 0].round().tolist()) == [1.0] * 10 + [2.0] * 30
    result = evaluate_values(judge, [plan], tmp_path, num=40, device=torch.device("cpu"))
    assert result["rows"][0]["frechet"]["value"] < 1e-3
    assert result["labels"] == "data"
    assert "classes are matched with those of the model by name: bee 0 → 1, ant 2 → 0" in caplog.text


def test_classes_that_the_model_does_not_know_are_refused_or_drawn_uniformly(tmp_path):
    judge = ValueJudge(pairs(["bee", "zebra"], np.array([0, 1] * 20)))
    given = {"num": 400, "device": torch.device("cpu")}
    with pytest.raises(ValueError, match=r"the class zebra, which the model does not know: .*--labels uniform"):
        evaluate_values(judge, of_points(), tmp_path, **given)
    evaluate_values(judge, of_points(), tmp_path, labels="uniform", **given)
    few = ValueJudge(pairs(["ant", "bee"], np.array([0] * 39 + [1])))
    made = sample_values(few, of_points()[0], 400, torch.device("cpu"), labels="uniform")
    assert 140 < int((made[:, 0] > 1.5).sum()) < 260  # six deviations of 400 fair draws


def test_options_of_pictures_are_refused(tmp_path, capsys):
    np.savez(tmp_path / "d.npz", data=np.arange(8, dtype=np.float32).reshape(4, 2))
    given = ["evaluate", "--data", str(tmp_path / "d.npz"), "--samples", str(tmp_path / "d.npz"), "--num", "4"]
    given += ["--out", str(tmp_path / "o")]
    for option, value in (("features", "efficientnet"), ("rows", "5"), ("side", "3"), ("split", "test")):
        assert main([*given, f"--{option}", value]) == 2
        assert f"--{option} {value}" in capsys.readouterr().err
    for option, value in (("caption", "text"), ("labels", "nonsense")):
        assert main([*given, f"--{option}", value]) == 2
        assert value in capsys.readouterr().err
