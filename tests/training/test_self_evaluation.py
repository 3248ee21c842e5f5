import json

import pytest
import torch
from safetensors.torch import load_file

from ctm import load_model
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import train
from ctm.training.self_evaluation import EvaluationSettings

from .test_trainer import RECIPES, assert_same, weights

SMALL = ["--network.init_args", '{"width": 24, "blocks": 1, "embedding": 16, "s_embedding": false}']
OPTIONS = ["--evaluation.every", "2", "--evaluation.num", "40", "--evaluation.steps", "3"]


def recipe(*extra):
    arguments = ["--config", str(RECIPES / "digits-teacher.yaml"), *SMALL, "--data.batch_size", "16", *extra]
    return parse_recipe(arguments)


def test_a_run_evaluates_itself_and_keeps_the_best(tmp_path, caplog, quick_classifier):
    asked = recipe("--steps", "5", *OPTIONS, "--evaluation.features", "classifier")
    train(asked[0], tmp_path / "run", asked[1])
    rows = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert "40 samples are no more than the 64 features: their covariance is singular" in caplog.text
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert best == {key: min(rows, key=lambda row: row["frechet"])[key] for key in ("step", "frechet")}
    assert load_model(tmp_path / "run" / "best").shape == (1, 8, 8)
    kept = load_file(tmp_path / "run" / "best" / "model.safetensors")
    same = all(torch.equal(kept[name], value) for name, value in weights(tmp_path / "run").items())
    assert same == (best["step"] == 5)
    without = recipe("--steps", "5")
    train(without[0], tmp_path / "without", without[1])
    assert_same(weights(tmp_path / "without"), weights(tmp_path / "run"))


def test_settings_out_of_range_are_a_sentence():
    with pytest.raises(ValueError, match=r"evaluation\.every must be at least 1 .* got 0 and 2000"):
        EvaluationSettings(every=0)
