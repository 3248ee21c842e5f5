"""A text-conditioned latent model goes the whole way: distilled on captioned pictures, sampled by prompts, exported."""

import json
import shutil
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline

from ctm import generate, load_model, load_teacher
from ctm.cli import main
from ctm.commands import distill as command
from ctm.data import to_model_range
from ctm.data.latents import load_latents
from ctm.distill import measures
from ctm.evaluation.classifier import train_classifier
from ctm.export import export_diffusers
from ctm.teachers.diffusers_text import embed_prompts
from ctm.teachers.pipelines import decoded, embed, picture_shape

from ..diffusers_models import DIT, made_random
from ..text_pipeline import CAPTIONS, SIDE, TOKENS, captioned, digits, random_pipeline
from ..text_training import train_pipeline
from ..training.runs import everything

FINE, LEVELS = measures.FINE, measures.LEVELS
SHORT = ("--steps", "2", "--batch_size", "4", "--num", "16", "--grid_points", "4")


@pytest.fixture(scope="module", autouse=True)
def short_walks():
    """The teacher's flow is measured on two short walks in place of ten long ones: what is chosen from them is not looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "FINE", 4)
        patch.setattr(measures, "LEVELS", (4,))
        yield


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A pipeline of diffusers with random weights, and its directory."""
    place = tmp_path_factory.mktemp("text") / "sd"
    return random_pipeline(place), place


@pytest.fixture(scope="module")
def distilled(pipeline, tmp_path_factory):
    """A short run on 24 captioned digits, with guidance and a table that needs no feature network."""
    place = tmp_path_factory.mktemp("distilled")
    captioned(place / "digits.npz", 24)
    out = place / "fast"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "feature_network", lambda images, wanted: (None, "none is here"))
        asked = ["--data", str(place / "digits.npz"), "--guidance", "1,5", *SHORT]
        assert main(["distill", str(pipeline[1]), "--out", str(out), *asked]) == 0
    return out


def test_pictures_and_captions_are_encoded_once_as_the_pipeline_encodes_them(pipeline, distilled):
    """Latents are the mean of the pipeline's own encoder, scaled; texts are those of its text encoder, each once."""
    made, place = pipeline
    kept, images = load_latents(distilled / "data" / "latents.safetensors"), digits()
    x, labels = images.batch(np.arange(24))
    with torch.no_grad():
        expected = made.vae.encode(x).latent_dist.mode() * made.vae.config.scaling_factor
    torch.testing.assert_close(kept.batch(np.arange(24))[0], expected, rtol=1e-5, atol=1e-6)
    condition = kept.condition(np.arange(24))
    assert list(condition) == ["text"]
    texts = embed_prompts(place, [CAPTIONS[label] for label in labels])
    torch.testing.assert_close(condition["text"], texts, rtol=1e-5, atol=1e-5)
    assert len(kept.fields["text"].table) == 10
    settings = yaml.safe_load((distilled / "recipe.yaml").read_text())
    assert settings["data"]["name"] == str(distilled / "data" / "latents.safetensors")
    assert settings["model"]["sigma_data"] == pytest.approx(float(expected.std(correction=0)), abs=1e-4)


def test_the_run_has_pictures_and_a_model_with_its_own_decoder(pipeline, distilled):
    student = load_model(distilled)
    assert student.shape == (4, SIDE // 2, SIDE // 2)
    assert picture_shape(student) == (1, SIDE, SIDE)
    assert sorted(student.pipeline.components) == ["text_encoder", "tokenizer", "vae"]
    assert (distilled / "samples" / "000002.png").is_file()
    assert json.loads((distilled / "result.json").read_text())["rms_to_teacher"].keys() == {"1", "2", "4"}
    assert torch.allclose(embed(student, ["a seven"]), embed_prompts(pipeline[1], ["a seven"]), atol=1e-6)


@pytest.mark.slow
def test_its_recipe_is_run_by_train_to_the_same_bits(distilled, tmp_path):
    assert main(["train", "--config", str(distilled / "recipe.yaml"), "--out", str(tmp_path / "again")]) == 0
    assert everything(tmp_path / "again") == everything(distilled)
    assert (tmp_path / "again" / "model" / "vae" / "config.json").is_file()


@pytest.fixture(scope="module")
def moved(distilled, tmp_path_factory):
    """The model alone, copied elsewhere: nothing of the teacher's directory is asked for."""
    place = tmp_path_factory.mktemp("moved") / "model"
    shutil.copytree(distilled / "model", place)
    return place


def sampled(model, tmp_path, *options):
    """The pixels that ctm sample writes, (N, H, W, C) uint8."""
    out = tmp_path / "samples.npz"
    assert main(["sample", str(model), "--out", str(out), *options]) == 0
    return np.load(out)["arr_0"]


def by_hand(model, prompts, num, **options):
    """Samples under prompts in turn, decoded."""
    text = embed(model, prompts)[torch.arange(num) % len(prompts)]
    return decoded(model, generate(model, num, condition={"text": text, **options.pop("more", {})}, **options))


def test_prompts_are_sampled_in_turn_and_decoded(moved, tmp_path):
    model = load_model(moved)
    found = sampled(
        moved, tmp_path, "--prompt", "a seven", "--prompt", "a two", "--num", "4", "--steps", "2", "--seed", "3"
    )
    expected = by_hand(model, ["a seven", "a two"], 4, steps=2, seed=3)
    assert (
        np.abs(found.astype(int) - ((expected + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()).max()
        <= 1
    )
    file = tmp_path / "prompts.txt"
    file.write_text("a seven\na two\n")
    again = sampled(moved, tmp_path, "--prompts", str(file), "--num", "4", "--steps", "2", "--seed", "3")
    assert np.array_equal(again, found)
    assert main(["sample", str(moved), "--prompts", str(file), "--num", "6", "--out", str(tmp_path / "grid.png")]) == 0


def test_an_empty_prompt_is_no_text(moved, tmp_path):
    model = load_model(moved)
    found = sampled(moved, tmp_path, "--prompt", "", "--num", "2")
    expected = decoded(model, generate(model, 2))
    assert (
        np.abs(found.astype(int) - ((expected + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()).max()
        <= 1
    )


@pytest.mark.slow
def test_the_exported_pipeline_makes_the_same_pictures(moved, tmp_path, monkeypatch):
    """With ctm-torch, to 1e-4 of a range of 2, under prompts and a guidance scale; diffusers reads the whole directory."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model, out = load_model(moved), tmp_path / "pipeline"
    export_diffusers(model, out)
    assert not (out / "flow_map" / "vae").exists()
    loaded = DiffusionPipeline.from_pretrained(out, trust_remote_code=True)
    loaded.set_progress_bar_config(disable=True)
    found = loaded(prompt=["a seven", "a two"], num_inference_steps=2, seed=3, output_type="pt").images
    torch.testing.assert_close(found, by_hand(model, ["a seven", "a two"], 2, steps=2, seed=3), rtol=0, atol=1e-4)
    more = {"guidance": torch.full((3,), 4.0)}
    found = loaded(3, prompt="a seven", guidance_scale=4, seed=1, output_type="pt").images
    torch.testing.assert_close(found, by_hand(model, ["a seven"], 3, seed=1, more=more), rtol=0, atol=1e-4)
    plain = loaded(2, prompt="", seed=1, output_type="pt").images
    torch.testing.assert_close(plain, decoded(model, generate(model, 2, seed=1)), rtol=0, atol=1e-4)
    assert loaded(prompt="a seven", output_type="latent").images.shape == (1, *model.shape)
    assert loaded(prompt="a seven").images[0].size == (SIDE, SIDE)
    with pytest.raises(ValueError, match="the first argument is the number of images"):
        loaded("a seven")


WITHOUT = """
import sys
sys.modules["ctm"] = None  # as where ctm-torch is not installed
import numpy
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
images = pipeline(prompt=["a seven", "a two", ""], num_inference_steps=2, seed=3, output_type="pt").images
numpy.save(sys.argv[2], images.numpy())
"""


def without_ctm(directory, place):
    """The pictures of the exported pipeline in a process that cannot import ctm."""
    environment = {"HF_HOME": str(place / "hub"), "HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", WITHOUT, str(directory), str(place / "x.npy")]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return np.load(place / "x.npy")


@pytest.mark.slow
def test_without_ctm_torch_the_pictures_are_the_same(moved, tmp_path):
    model, out = load_model(moved), tmp_path / "pipeline"
    export_diffusers(model, out)
    texts = {"text": embed(model, ["a seven", "a two", ""]), "text_present": torch.tensor([True, True, False])}
    expected = decoded(model, generate(model, 3, steps=2, seed=3, condition=texts))
    np.testing.assert_allclose(without_ctm(out, tmp_path), expected.numpy(), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_without_data_it_takes_the_teachers_samples_under_the_prompts(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "feature_network", lambda images, wanted: (None, "none is here"))
    (tmp_path / "prompts.txt").write_text("\n".join(CAPTIONS[:3]) + "\n")
    out = tmp_path / "fast"
    asked = ["--prompts", str(tmp_path / "prompts.txt"), "--samples", "16", *SHORT]
    assert main(["distill", str(pipeline[1]), "--out", str(out), *asked]) == 0
    kept = load_latents(out / "data" / "latents.safetensors")
    assert kept.shape == (4, SIDE // 2, SIDE // 2)
    assert kept.fields["text"].numbers.tolist() == [0, 1, 2] * 5 + [0]
    before = (out / "recipe.yaml").read_text()
    assert main(["distill", str(pipeline[1]), "--out", str(out), *asked]) == 0  # goes on, and there is nothing to do
    assert (out / "recipe.yaml").read_text() == before


@pytest.mark.slow
def test_a_dry_run_writes_nothing(pipeline, tmp_path, capsys):
    asked = ["--data", "digits", "--caption", "a {}", "--out", str(tmp_path / "fast"), *SHORT, "--dry-run"]
    assert main(["distill", str(pipeline[1]), *asked]) == 0
    assert not (tmp_path / "fast").exists()
    assert "UNet2DConditionModel" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "the teacher takes a text: give --data with captions, or --prompts FILE"),
        (("--data", "digits"), "digits has no captions: give --caption 'a {}'"),
        (("--data", "digits", "--caption", "a {}", "--prompts", "x"), "--prompts is for the teacher's own samples"),
        (("--prompts", "nothing-there.txt"), "there is no file nothing-there.txt"),
    ],
    ids=["nothing", "no-captions", "both", "no-file"],
)
def test_what_it_cannot_take_is_refused_in_a_sentence(pipeline, tmp_path, capsys, options, sentence):
    assert main(["distill", str(pipeline[1]), "--out", str(tmp_path / "fast"), *SHORT, *options]) == 2
    assert sentence in capsys.readouterr().err


def test_a_latent_model_without_its_decoder_is_refused(pipeline, tmp_path, capsys):
    place = tmp_path / "sd"
    shutil.copytree(pipeline[1], place)
    index = json.loads((place / "model_index.json").read_text())
    del index["vae"]
    (place / "model_index.json").write_text(json.dumps(index))
    assert main(["distill", str(place), "--data", "digits", "--caption", "a {}", "--out", str(tmp_path / "fast")]) == 2
    assert "no AutoencoderKL is beside it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["edit", "vary", "MODEL", "x.png", "--out", "y.png"], "is a model of latents"),
        (["likelihood", "MODEL", "--data", "digits"], "is a model of latents"),
        (["serve", "MODEL"], "is a model of latents"),
        (["sample", "models/digits-ctm", "--prompt", "a seven"], "this model takes no text"),
        (["distill", "models/digits-teacher", "--data", "digits", "--caption", "a {}"], "the teacher takes no text"),
    ],
    ids=["edit", "likelihood", "serve", "sample", "distill"],
)
def test_models_and_prompts_that_do_not_go_together(moved, capsys, arguments, sentence):
    assert main([str(moved) if word == "MODEL" else word for word in arguments]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_a_teacher_is_sampled_by_prompts_too(pipeline, tmp_path):
    teacher = load_teacher(pipeline[1], settings={"sigma_data": 1.0})
    assert dict(teacher.conditioner.fields) == {"text": (TOKENS, 16)}
    found = sampled(pipeline[1], tmp_path, "--prompt", "a seven", "--num", "2", "--steps", "3", "--cfg", "3")
    assert found.shape == (2, SIDE, SIDE, 1)


@pytest.mark.slow
def test_a_class_conditional_dit_takes_the_same_way(tmp_path):
    """DiTPipeline: latents with labels and no text, on its own samples; random weights."""
    vae = made_random(diffusers.AutoencoderKL(block_out_channels=[8], norm_num_groups=4, latent_channels=4))
    network = made_random(diffusers.DiTTransformer2DModel(**DIT))
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction")  # random weights then leave latents small
    diffusers.DiTPipeline(network, vae, scheduler).save_pretrained(tmp_path / "dit")
    out = tmp_path / "fast"
    asked = ["--samples", "20", "--guidance", "1,4", "--features", "classifier", *SHORT]
    assert main(["distill", str(tmp_path / "dit"), "--out", str(out), *asked]) == 0
    kept = load_latents(out / "data" / "latents.safetensors")
    assert (kept.shape, kept.labels.tolist()) == ((4, 8, 8), [*range(10)] * 2)
    assert len(json.loads((out / "result.json").read_text())["rows"]) == 5
    pixels = sampled(out, tmp_path, "--labels", "3", "--num", "2", "--cfg", "2")
    assert pixels.shape == (2, 8, 8, 3)


@pytest.mark.slow
def test_a_trained_text_model_goes_the_whole_way(tmp_path, monkeypatch):
    """Trained by diffusers' own means, distilled with guidance, sampled by prompts, exported: pictures equal to 1e-4, with and
    without ctm-torch. A classifier of the digits reads the prompt's digit in most pictures of one jump (chance: a tenth)."""
    monkeypatch.setattr(measures, "FINE", FINE)
    monkeypatch.setattr(measures, "LEVELS", LEVELS)
    teacher, out = train_pipeline(tmp_path / "digits-sd"), tmp_path / "fast"
    data = captioned(tmp_path / "digits.npz")
    asked = ["--data", str(data), "--steps", "600", "--batch_size", "64", "--num", "1000", "--guidance", "1,4"]
    assert main(["distill", str(teacher), "--out", str(out), *asked]) == 0
    rows = {(row["role"], row["evaluations"]): row for row in json.loads((out / "result.json").read_text())["rows"]}
    print({key: row["numbers"]["frechet"]["value"] for key, row in rows.items()})
    (tmp_path / "prompts.txt").write_text("\n".join(CAPTIONS) + "\n")
    options = ["--prompts", str(tmp_path / "prompts.txt"), "--num", "500", "--cfg", "3"]
    pixels = sampled(out, tmp_path, *options)
    x, labels = digits().all()
    seen = train_classifier(x, labels, classes=10)(to_model_range(torch.from_numpy(pixels))).argmax(1)
    right = float((seen == torch.arange(500) % 10).float().mean())
    print("prompts read back:", right)
    assert right > 0.6
    model = load_model(out)
    export_diffusers(model, tmp_path / "pipeline")
    texts = {"text": embed(model, ["a seven", "a two", ""]), "text_present": torch.tensor([True, True, False])}
    expected = decoded(model, generate(model, 3, steps=2, seed=3, condition=texts))
    np.testing.assert_allclose(without_ctm(tmp_path / "pipeline", tmp_path), expected.numpy(), rtol=0, atol=1e-4)
