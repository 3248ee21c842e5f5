"""Damaged lines and files of a run directory are named; what is whole in them counts."""

import json

import pytest

from ctm.cli import main
from ctm.training.rows import read_rows

from .runs import rows, teacher_arguments, trained

SHORT = ("--steps", "4", "--log_every", "1", "--checkpoint_every", "2", "--decay_fraction", "0")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"", "line 2 is empty"),
        (b"   ", "line 2 is empty"),
        (b'{"step": 2, "loss', "line 2 is damaged"),
        (b"\x00\x00\xff\xfe", "line 2 is damaged"),
        (b"[1, 2]", "line 2 is damaged"),
        (b'{"loss": 1}', "line 2 is damaged"),
        (b'{"step": null}', "line 2 is damaged"),
        (b"[" * 100_000 + b"]" * 100_000, "line 2 is damaged"),
    ],
)
def test_case_14_a_damaged_line_is_left_out_with_a_warning(tmp_path, caplog, line, what):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n{"step": 4')
    assert [row["step"] for row in read_rows(file)] == [1, 3]
    assert [record.getMessage() for record in caplog.records] == [f"{file}: {what}: it is left out"]


def test_case_14_a_run_goes_on_after_a_damaged_line(tmp_path, caplog):
    out = trained(tmp_path / "run", teacher_arguments(*SHORT))
    text = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join([text[0], "\n", "junk\n", *text[1:]]))
    trained(out, teacher_arguments(*SHORT[2:], "--steps", "6"))
    assert [row["step"] for row in rows(out)] == [1, 2, 3, 4, 5, 6]
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"{out}/metrics.jsonl: line 2 is empty: it is left out",
        f"{out}/metrics.jsonl: line 3 is damaged: it is left out",
    ]


@pytest.mark.parametrize("content", [b"data: {na", b"", b"\xff\xfe\x00", b"- 1\n- 2\n"])
def test_case_14_a_damaged_config_is_named(tmp_path, capsys, content):
    out = trained(tmp_path / "run", teacher_arguments(*SHORT))
    (out / "config.yaml").write_bytes(content)
    assert main(["train", *teacher_arguments(*SHORT), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ctm: {out}/config.yaml is damaged: it is no recipe in YAML")
    assert len(said.splitlines()) == 1


def test_a_damaged_made_of_is_named(tmp_path, capsys):
    out = trained(tmp_path / "run", teacher_arguments(*SHORT))
    for content in ("{", "[]", json.dumps({"data": 3}), "[" * 100_000):
        (out / "made_of.json").write_text(content)
        assert main(["train", *teacher_arguments(*SHORT), "--out", str(out)]) == 2
        assert f"{out}/made_of.json is damaged" in capsys.readouterr().err
