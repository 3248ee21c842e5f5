"""A teacher whose pictures are not square: distilled from an .npz of its size, and from its own samples."""

import json

import numpy as np
import pytest
import torch

from ctm import DiffusionModel, load_model
from ctm.cli import main
from ctm.data.latents import load_latents
from ctm.networks import MLP

SHORT = ("--steps", "2", "--batch_size", "4", "--num", "16", "--grid_points", "4")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """An untrained denoiser of grey pictures 4×6 of two classes."""
    torch.manual_seed(0)
    network = MLP((1, 4, 6), 2, width=16, blocks=1, embedding=8, s_embedding=False)
    torch.nn.init.normal_(network.last.weight, std=0.1)
    place = tmp_path_factory.mktemp("oblong") / "teacher"
    DiffusionModel(network, shape=(1, 4, 6), num_classes=2).save_pretrained(place)
    return place


@pytest.fixture
def pictures(tmp_path):
    random = np.random.default_rng(0)
    file = tmp_path / "pictures.npz"
    np.savez(file, images=random.integers(0, 256, (12, 4, 6), dtype=np.uint8), labels=np.arange(12) % 2)
    return file


def distil(teacher, out, *options):
    return main(["distill", str(teacher), "--out", str(out), *SHORT, *options])


def test_from_an_npz_of_its_size(teacher, pictures, tmp_path):
    out = tmp_path / "fast"
    assert distil(teacher, out, "--data", str(pictures)) == 0
    kept, pixels = load_latents(out / "data" / "latents.safetensors"), np.load(pictures)["images"]
    assert (kept.shape, kept.num_classes) == ((1, 4, 6), 2)
    assert np.allclose(kept.pixels[:, 0], pixels / 127.5 - 1, atol=1e-6)
    assert load_model(out).shape == (1, 4, 6)
    assert json.loads((out / "result.json").read_text())["rms_to_teacher"].keys() == {"1", "2", "4"}


@pytest.mark.slow
def test_from_its_own_samples(teacher, tmp_path):
    out = tmp_path / "fast"
    assert distil(teacher, out, "--samples", "16") == 0
    kept = load_latents(out / "data" / "latents.safetensors")
    assert (kept.shape, kept.labels.tolist()) == ((1, 4, 6), [0, 1] * 8)


def test_what_does_not_fit_is_refused_in_a_sentence(teacher, pictures, tmp_path, capsys):
    assert distil(teacher, tmp_path / "a", "--data", "digits") == 2
    assert "the teacher's pictures are 4×6, and digits is no .npz" in capsys.readouterr().err
    np.savez(tmp_path / "other.npz", images=np.zeros((4, 6, 4), dtype=np.uint8))
    assert distil(teacher, tmp_path / "b", "--data", str(tmp_path / "other.npz")) == 2
    assert "bring them to that size" in capsys.readouterr().err
    assert distil(teacher, tmp_path / "c", "--data", str(pictures), "--features", "classifier") == 2
    assert "feature networks look at square pictures" in capsys.readouterr().err
