import json

import numpy as np
import pytest
import torch

from ctm.likelihood import bits_per_dim

from .test_cli import model, run, sentence  # noqa: F401

LOOSE = ["--rtol", "1e-2", "--atol", "1e-2", "--data", "digits"]


def test_the_table_and_the_file(capsys, model, small_ctm, tmp_path):  # noqa: F811
    out = tmp_path / "bits.json"
    code, printed, _ = run(capsys, "likelihood", model, *LOOSE, "--num", 4, "--batch_size", 4, "--out", out)
    assert code == 0
    assert "bits/dim   model " in printed
    assert "PNG files" in printed
    result = json.loads(out.read_text())
    from ctm.data import load_images

    images, drawn = load_images("digits"), result["drawn"]
    assert len(set(drawn)) == 4
    assert max(drawn) > 4  # a draw, not the first
    pixels = torch.from_numpy(images.pixels[drawn]).permute(0, 3, 1, 2)
    labels = torch.from_numpy(images.labels[drawn])
    expected = bits_per_dim(small_ctm, pixels, labels, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(result["images"]["bits_per_dim"], expected, rtol=1e-4)
    assert result["bits_per_dim"] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert result["labels"] is True
    assert result["evaluations"] > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trace", "half"], "trace must be hutchinson or exact, got 'half'"),
        (["--probe", "half"], "probe must be rademacher or gaussian, got 'half'"),
        (["--num", "0"], "--num and --batch_size must be at least 1"),
        (["--labels", "3,4"], "--labels must be own, none or one class that the model knows, got '3,4'"),
        (["--out", "x.txt"], "--out x.txt must name a .json file"),
        (["--out", "x.JSON", "--labels", "3,4"], "--labels must be own, none or one class"),  # the ending is right
    ],
)
def test_mistakes_are_one_sentence(capsys, model, arguments, message):  # noqa: F811
    assert message in sentence(capsys, "likelihood", model, *LOOSE, *arguments)


@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
def test_a_folder_whose_decoded_pictures_are_read_only(capsys, model, tmp_path, monkeypatch):  # noqa: F811
    from PIL import Image

    from ctm.data import load_images

    monkeypatch.setenv("CTM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pictures").mkdir()
    for index, pixels in enumerate(load_images("digits").pixels[:2, :, :, 0]):
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{index}.png")
    options = ["--rtol", "1e-1", "--atol", "1e-1", "--data", tmp_path / "pictures"]
    code, printed, _ = run(capsys, "likelihood", model, *options)
    assert code == 0
    assert "2 images without classes" in printed
