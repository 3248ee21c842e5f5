"""A result.json of another form is refused in a sentence."""

import json

import pytest

from ctm.cli import main
from ctm.evaluation.form import check_result
from ctm.evaluation.report import notes_on

ROW = {"role": "model", "sampler": "jumps", "steps": 1, "gamma": 0.0, "seconds_per_image": 0.1, "evaluations": 1}
ROW |= {"guidance": None, "grid": {"kind": "karras"}, "teacher": None}
ROW |= {"numbers": {"frechet": {"value": 1.5, "error": None}}}


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ([], "it has no protocol and rows"),
        ({"protocol": {}, "rows": 5}, "its rows are no list"),
        ({"protocol": 5, "rows": [1]}, "its protocol is no mapping"),
        ({"protocol": {}, "rows": [1]}, "its row 0 is no mapping"),
        ({"protocol": {}, "rows": [ROW, {}]}, "its row 1 has no role"),
        ({"protocol": {}, "rows": [ROW], "warnings": 5}, "its warnings are no list of texts"),
        ({"protocol": {}, "rows": [{**ROW, "role": 5}]}, "its row 0 has a role that is no text"),
        ({"protocol": {}, "rows": [{**ROW, "grid": 5}]}, "its row 0 has a grid that is no mapping"),
        ({"protocol": {}, "rows": [{**ROW, "grid": "kind"}]}, "its row 0 has a grid that is no mapping"),
        ({"protocol": {}, "rows": [{**ROW, "numbers": 5}]}, "its row 0 has a numbers that is no mapping"),
        ({"protocol": {}, "rows": [{**ROW, "gamma": "a"}]}, "its row 0 has a gamma, guidance or seconds_per_image"),
        (
            {"protocol": {}, "rows": [{**ROW, "numbers": {"kid": {"value": "1"}}}]},
            "its row 0 has a number kid that is no",
        ),
        ({"protocol": {}, "rows": [{**ROW, "numbers": {"kid": {"value": 10**400, "error": 1}}}]}, "has a number kid"),
    ],
)
def test_a_result_of_another_form_is_refused(capsys, tmp_path, result, words):
    file = tmp_path / "result.json"
    file.write_text(json.dumps(result))
    assert main(["compare", str(file), str(file)]) == 2
    error = capsys.readouterr().err
    assert f"{file} is not a result of ctm evaluate: " in error
    assert words in error


def test_what_evaluate_writes_is_taken(capsys, tmp_path):
    check_result({"protocol": {}, "rows": [ROW]})
    file = tmp_path / "result.json"
    file.write_text(json.dumps({"protocol": {}, "rows": [ROW]}))
    assert main(["compare", str(file), str(file)]) == 0
    assert "1.5" in capsys.readouterr().out


def test_bits_per_dim_stand_in_the_table_of_compare(capsys, tmp_path):
    measured = {**ROW, "likelihood_images": 4, "numbers": {"bits_per_dim": {"value": 3.25, "error": 0.5}}}
    (tmp_path / "result.json").write_text(json.dumps({"protocol": {}, "rows": [measured]}))
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "bits/dim" in printed
    assert "3.25" in printed


@pytest.mark.parametrize(
    ("resize", "words"),
    [
        ("none", "over the features of classifier (images at their own size) and compare"),
        (
            "bicubic to 224×224, antialiased",
            "of classifier (images resized bicubic to 224×224, antialiased) and compare",
        ),
    ],
)
def test_the_notes_say_how_images_were_resized(resize, words):
    facts = {"images": 10, "features": {"name": "classifier", "resize": resize}}
    about = {"halves": None, "classifier_accuracy": None}
    assert words in notes_on({"reference": about, "protocol": facts, "rows": []})
