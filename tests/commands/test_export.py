import copy

import pytest
import torch

from ctm import load_model
from ctm.cli import main
from ctm.scaling import Scaling

from .test_cli import sentence


@pytest.mark.slow
def test_export_for_torch(capsys, small_ctm, tmp_path):
    small_ctm.save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "jump.pt2"), "--to", "torch"]) == 0
    assert ".module()(x, t, s, labels)" in capsys.readouterr().out
    graph = torch.export.load(tmp_path / "jump.pt2").module()
    x, t, s = 80 * torch.randn(3, 1, 8, 8), torch.full((3,), 80.0), torch.full((3,), 0.002)
    labels = torch.tensor([0, -1, 3])
    expected = load_model(tmp_path / "model").jump(x, t, s, labels)
    torch.testing.assert_close(graph(x, t, s, labels), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("out", "to", "words"),
    [
        ("x.bin", "onnx", "--to onnx writes a file ending in .onnx, got"),
        ("x.onnx", "diffusers", "--to diffusers writes a directory, got"),
        ("taken.pt2", "torch", "taken.pt2 is there already: give a new name, or remove it first"),
    ],
)
def test_where_it_cannot_be_written_is_a_sentence(capsys, small_ctm, tmp_path, out, to, words):
    small_ctm.save_pretrained(tmp_path / "model")
    (tmp_path / "taken.pt2").write_text("mine")
    assert words in sentence(capsys, "export", str(tmp_path / "model"), str(tmp_path / out), "--to", to)


def test_a_model_of_numbers_is_no_pipeline_of_pictures(capsys, small_ctm, tmp_path):
    model = copy.deepcopy(small_ctm)
    model.scaling = Scaling("standard", (3.0,), (2.0,))
    model.save_pretrained(tmp_path / "model")
    words = sentence(capsys, "export", str(tmp_path / "model"), str(tmp_path / "x"), "--to", "diffusers")
    assert "makes arrays of numbers, and a pipeline of diffusers makes pictures: give --to onnx or torch" in words
    words = sentence(capsys, "likelihood", str(tmp_path / "model"), "--data", "digits")
    assert "is a model of arrays of numbers, and ctm likelihood works on pictures" in words


def test_a_teacher_is_not_exported(capsys, tmp_path):
    assert "has no jumps to any level: export a CTM distilled from it" in sentence(
        capsys, "export", "models/digits-teacher", str(tmp_path / "x"), "--to", "diffusers"
    )
