"""`ctm evaluate --caption`: each sample of a model that takes a text gets the caption of a row of the data, by number."""

import json

import numpy as np
import pytest
import torch

from ctm import generate, load_teacher
from ctm.data import load_images, to_model_range
from ctm.evaluation.classifier import Classifier
from ctm.evaluation.frechet import frechet_distance
from ctm.evaluation.passes import Processes
from ctm.evaluation.reference import classifier_of, images_checksum
from ctm.evaluation.sources import label_rows
from ctm.noise import karras_grid, to_zero
from ctm.pictures import to_uint8
from ctm.sampling import heun
from ctm.teachers.load import unused_deviation
from ctm.teachers.pipelines import decoded, embed

from ..commands.test_cli import run, sentence
from ..text_pipeline import WORDS, digits, random_pipeline

COUNT, SAMPLES, SEED = 40, 60, 3  # more samples than rows: rows come again


@pytest.fixture(autouse=True)
def _one_classifier(session_cache, monkeypatch):
    monkeypatch.setenv("CTM_CACHE", str(session_cache))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A pipeline of diffusers with random weights, whose texts count much in its samples."""
    place = tmp_path_factory.mktemp("text") / "sd"
    unet = random_pipeline(place).unet
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "attn2.to_out" in name:
                weight *= 30
    unet.save_pretrained(place / "unet")
    return place


def spoken(labels, words):
    """A caption for each label; every seventh picture has none."""
    return ["" if row % 7 == 0 else f"a {words[label]}" for row, label in enumerate(labels.tolist())]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Digits with classes, right captions in "said", and others in "text", where captions are looked for first."""
    file, images = tmp_path_factory.mktemp("data") / "digits.npz", digits()
    labels = images.labels[:COUNT]
    said, text = (np.array(spoken(labels, words)) for words in (WORDS, WORDS[::-1]))
    np.savez(file, images=images.pixels[:COUNT], labels=labels, said=said, text=text)
    return file


@pytest.fixture(scope="module")
def samples_of(pipeline, data):
    """(words of the ten classes) -> the pixels of the samples under such captions, by ctm.generate."""
    model = load_teacher(pipeline, sigma_data=unused_deviation)
    images, grid = load_images(str(data)), to_zero(karras_grid(2, model.sigma_min, model.sigma_max))
    rows = label_rows(images, SAMPLES, SEED)

    def made(words):
        captions = [spoken(images.labels, words)[row] for row in rows]
        condition = {"text": embed(model, captions), "text_present": torch.tensor([bool(text) for text in captions])}
        return to_uint8(
            decoded(model, generate(model, SAMPLES, grid=grid, sampler=heun, seed=SEED, condition=condition))
        )

    return made


def distance(pixels, data):
    """The Fréchet distance of pixels (N, H, W, C) to the data over their classifier's features."""
    images = load_images(str(data))
    classifier: Classifier = classifier_of(images, images_checksum(images), Processes())
    with torch.no_grad():
        seen, real = (classifier.features(to_model_range(torch.as_tensor(x))) for x in (pixels, images.pixels))
    return frechet_distance(seen, real)


@pytest.mark.parametrize(
    ("options", "words"), [(("--caption", "said"), WORDS), ((), WORDS[::-1])], ids=["named", "text"]
)
def test_samples_stand_under_the_captions_of_the_rows(capsys, pipeline, data, samples_of, tmp_path, options, words):
    """The distance is that of ctm.generate's samples under these captions, and not of those under the other ones."""
    asked = ["--data", data, "--sampler", "heun", "--steps", 3, "--num", SAMPLES, "--seed", SEED, *options]
    code, _, err = run(capsys, "evaluate", pipeline, *asked, "--features", "classifier", "--out", tmp_path)
    assert code == 0, err
    found = json.loads((tmp_path / "result.json").read_text())["rows"][0]["numbers"]["frechet"]["value"]
    right, wrong = (distance(samples_of(said), data) for said in (words, words[::-1]))
    assert found == pytest.approx(right, rel=1e-4)  # a level of 255 of one pixel is 1e-5
    assert abs(found - wrong) > 1e-3 * right


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("text", ("--caption", "nothing"), "its captions are looked for in nothing: name it by --caption"),
        (
            "text",
            ("--caption", "text", "--condition", "none"),
            "--caption text: --condition gives the texts, leave it out",
        ),
        ("models/digits-ctm", ("--caption", "a {}"), "--caption a {}: no model here reads prompts, leave it out"),
    ],
    ids=["no-such-array", "two-sources", "no-text"],
)
def test_captions_that_cannot_be_are_refused(capsys, pipeline, data, tmp_path, model, options, said):
    name = pipeline if model == "text" else model
    asked = ["evaluate", name, "--data", data, *options, "--num", 16, "--out", tmp_path / "out"]
    assert said in sentence(capsys, *asked)
