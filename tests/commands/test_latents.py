"""ctm latents: pictures become latents once, are trained on, and samples come back as pictures."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ctm import load_model
from ctm.cli import main
from ctm.data import encoding
from ctm.data.latents import load_latents
from ctm.noise import karras_grid, to_zero
from ctm.sampling import generate, heun, starting_noise
from ctm.teachers import pipelines
from ctm.teachers.diffusers_text import embed_prompts
from ctm.teachers.pipelines import decoded, find_autoencoder

from ..diffusers_models import made_random
from ..text_pipeline import CAPTIONS, autoencoder, digits, random_pipeline

COUNT = 21
TRAIN = (
    *("--model.kind", "diffusion", "--network.class_path", "MLP", "--objectives", "[DenoisingScoreMatching]"),
    *("--network.init_args", '{"width": 16, "blocks": 1, "embedding": 8, "s_embedding": false}'),
    *("--data.batch_size", "8", "--steps", "2", "--optimizer", "torch.optim.SGD", "--optimizer.init_args.lr", "1e-3"),
)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """An autoencoder alone, with factors of its own, and its directory."""
    torch.manual_seed(0)
    module = made_random(autoencoder())
    module.register_to_config(scaling_factor=0.7, shift_factor=0.1)
    place = tmp_path_factory.mktemp("vae") / "kl"
    module.save_pretrained(place)
    return module, place


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Digits with labels and a field, in an .npz."""
    file, found = tmp_path_factory.mktemp("pictures") / "digits.npz", digits()
    ink = found.pixels[:COUNT].mean((1, 2, 3), dtype=np.float32)
    np.savez(file, images=found.pixels[:COUNT], labels=found.labels[:COUNT], ink=ink)
    return file


def encode(vae, pictures, out, *options):
    return main(
        ["latents", "--vae", str(vae), "--data", str(pictures), "--out", str(out), "--batch_size", "8", *options]
    )


@pytest.fixture(scope="module")
def made(vae, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "latents"
    assert encode(vae[1], pictures, out, "--data_condition", "ink") == 0
    return out


def distribution(module):
    x, _ = digits().batch(np.arange(COUNT))
    with torch.no_grad():
        return module.encode(x).latent_dist


def test_they_are_what_diffusers_encodes_with_all_that_is_beside_them(vae, made):
    found, expected = load_latents(made), 0.7 * (distribution(vae[0]).mean - 0.1)
    x, condition = found.rows(np.arange(COUNT))
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(condition["labels"], digits().batch(np.arange(COUNT))[1])
    assert np.allclose(condition["ink"], digits().pixels[:COUNT].mean((1, 2, 3)))
    assert sorted(path.name for path in made.iterdir()) == ["latents.safetensors", "vae"]
    header = (made / "latents.safetensors").read_bytes()
    about = json.loads(json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]["about"])
    assert (about["posterior"], about["pictures"]) == ("mean", [1, 8, 8])
    assert about["autoencoder"]["scaling_factor"] == 0.7
    assert about["autoencoder"]["shift_factor"] == 0.1


def test_a_draw_comes_from_the_seed_and_the_pictures_number(vae, pictures, tmp_path):
    assert encode(vae[1], pictures, tmp_path / "drawn", "--draw", "3") == 0
    of = distribution(vae[0])
    noise = starting_noise(of.mean.shape[1:], range(COUNT), 3)
    expected = 0.7 * (of.mean + of.std * noise - 0.1)
    torch.testing.assert_close(load_latents(tmp_path / "drawn").all()[0], expected, rtol=1e-5, atol=1e-6)


def test_captions_are_embedded_by_the_pipelines_own_text_encoder(pictures, tmp_path):
    random_pipeline(tmp_path / "sd")
    np.savez(tmp_path / "c.npz", images=digits().pixels[:4], text=np.array([*CAPTIONS[:3], ""]))
    assert encode(tmp_path / "sd", tmp_path / "c.npz", tmp_path / "out", "--caption", "text") == 0
    found = load_latents(tmp_path / "out")
    texts = embed_prompts(tmp_path / "sd", CAPTIONS[:3])
    torch.testing.assert_close(found.condition(np.arange(3))["text"], texts, rtol=1e-5, atol=1e-5)
    assert found.fields["text_present"].tolist() == [True, True, True, False]
    assert found.pipeline.reads_text


def test_a_model_trained_on_them_gives_pictures(vae, made, tmp_path):
    """In sample grids, in samples and to an evaluation: decoded by the autoencoder beside the latents."""
    out = tmp_path / "run"
    assert main(["train", *TRAIN, "--data.name", str(made), "--out", str(out)]) == 0
    drawn = Image.open(next((out / "samples").glob("*.png")))
    assert drawn.width > drawn.height
    model = load_model(out)
    assert (model.shape, model.sigma_data) == ((4, 4, 4), load_latents(made).deviation())
    grid = to_zero(karras_grid(2, model.sigma_min, model.sigma_max))
    x = generate(model, 2, grid=grid, sampler=heun)
    with torch.no_grad():
        expected = vae[0].decode(x / 0.7 + 0.1).sample
    torch.testing.assert_close(decoded(model, x), expected, rtol=1e-4, atol=1e-5)
    assert main(["sample", str(out), "--num", "2", "--steps", "2", "--out", str(tmp_path / "x.npz")]) == 0
    assert np.load(tmp_path / "x.npz")["arr_0"].shape == (2, 8, 8, 1)


def test_what_was_begun_is_gone_on_with(vae, made, pictures, tmp_path, monkeypatch):
    """Ctrl-C in the second batch: nothing is there by the name; the same call encodes the rest, another begins anew."""
    calls, own = [], encoding.Encoding._encoded

    def counted(self, autoencoder, numbers, shape):
        calls.append(int(numbers[0]))
        if stop and len(calls) == 2:
            raise KeyboardInterrupt
        return own(self, autoencoder, numbers, shape)

    monkeypatch.setattr(encoding.Encoding, "_encoded", counted)
    out, stop = tmp_path / "latents", True
    assert encode(vae[1], pictures, out, "--data_condition", "ink") == 130
    assert [path.name for path in tmp_path.iterdir()] == [".latents.encoding"]
    shutil.copytree(tmp_path, tmp_path.with_name("other"))
    stop = False
    assert encode(vae[1], pictures, out, "--data_condition", "ink") == 0
    assert calls == [0, 8, 8, 16]
    assert [path.name for path in tmp_path.iterdir()] == ["latents"]
    assert (out / "latents.safetensors").read_bytes()[-1000:] == (made / "latents.safetensors").read_bytes()[-1000:]
    assert torch.equal(load_latents(out).all()[0], load_latents(made).all()[0])
    calls.clear()
    assert encode(vae[1], pictures, tmp_path.with_name("other") / "latents", "--draw", "0") == 0
    assert calls == [0, 8, 16]


def test_a_teacher_of_other_factors_is_refused(vae, made, pictures, tmp_path, capsys):
    assert main(["train", *TRAIN, "--data.name", str(made), "--out", str(tmp_path / "run")]) == 0
    config = json.loads((vae[1] / "config.json").read_text())
    shutil.copytree(vae[1], tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    assert encode(tmp_path / "other", pictures, tmp_path / "latents", "--data_condition", "ink") == 0
    capsys.readouterr()
    start = ["--student", str(tmp_path / "run"), "--data.name", str(tmp_path / "latents")]
    assert main(["train", *TRAIN, *start, "--out", str(tmp_path / "b")]) == 2
    assert "were made with scaling 0.5 and shift 0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (None, ["--caption", "a {}"], "has no tokenizer and text encoder that would embed captions"),
        (None, ["--size", "9"], "whose sides are multiples of 2, and these are 1×9×9: give --size"),
        (lambda place: (place / "config.json").unlink(), [], "has no AutoencoderKL of diffusers"),
        (lambda place: shutil.rmtree(place), [], "there is no directory"),
    ],
    ids=["caption", "odd", "none", "gone"],
)
def test_a_mistake_is_a_sentence_and_leaves_nothing(vae, pictures, tmp_path, capsys, change, options, words):
    place = tmp_path / "kl"
    shutil.copytree(vae[1], place)
    if change is not None:
        change(place)
    assert encode(place, pictures, tmp_path / "out", *options) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] in (["kl"], [])


def test_without_diffusers_a_sentence_names_it(vae, pictures, tmp_path, capsys, monkeypatch):
    pipelines._autoencoder.cache_clear()
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert encode(vae[1], pictures, tmp_path / "out") == 2
    assert "needs diffusers: pip install 'ctm-torch[diffusers]'" in capsys.readouterr().err
    assert find_autoencoder(str(vae[1])).alone


def test_latents_whose_autoencoder_is_gone_stay_latents(made, tmp_path, caplog):
    shutil.copytree(made, tmp_path / "alone")
    shutil.rmtree(tmp_path / "alone" / "vae")
    found = load_latents(tmp_path / "alone")
    assert found.pipeline is None
    assert "samples stay latents and are not decoded" in found.notes[0]
