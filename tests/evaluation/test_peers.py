"""Peers in our tables: objects by import path, and pipelines of diffusers, made here by diffusers with random weights."""

import json
import sys

import diffusers
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ctm.data import Images, load_images
from ctm.evaluation.compare import compare
from ctm.evaluation.frechet import frechet_distance
from ctm.evaluation.passes import Processes
from ctm.evaluation.peers import ObjectModel, peer_plans
from ctm.evaluation.pipelines import PipelineSource, open_pipeline
from ctm.evaluation.reference import classifier_of, images_checksum
from ctm.evaluation.report import read_result
from ctm.foreign.allowed import allowing
from ctm.pictures import to_uint8
from ctm.sampling.image_noise import image_generator, starting_noise

from ..commands.test_cli import run, sentence
from ..diffusers_models import CONDITIONAL, DIT, UNET, made_random

LEVELS = {"num_train_timesteps": 100, "beta_schedule": "linear"}  # to ᾱ = 0.36: rounding is not multiplied
CONSISTENCY = {**UNET, "num_class_embeds": 10}


def pipelines():
    """Name, pipeline, network rows for one image in 2 steps."""
    torch.manual_seed(0)
    network = made_random(diffusers.UNet2DModel(**UNET))
    plain, latent = diffusers.DDPMPipeline, made_random(diffusers.AutoencoderKL(**AUTOENCODER))
    classes = made_random(diffusers.UNet2DModel(**CONSISTENCY), 1)
    transformer = made_random(diffusers.DiTTransformer2DModel(**{**DIT, "num_embeds_ada_norm": 1000}))
    return {
        "ddim": (diffusers.DDIMPipeline(network, diffusers.DDIMScheduler(**LEVELS)), 2),
        "ddpm": (plain(network, diffusers.DDPMScheduler(**LEVELS)), 2),
        "lcm": (plain(network, diffusers.LCMScheduler(**LEVELS, original_inference_steps=50)), 2),
        "tcd": (plain(network, diffusers.TCDScheduler(**LEVELS)), 2),
        "consistency": (diffusers.ConsistencyModelPipeline(classes, diffusers.CMStochasticIterativeScheduler()), 2),
        "dit": (diffusers.DiTPipeline(transformer, latent, diffusers.DDIMScheduler(**LEVELS)), 4),
    }


AUTOENCODER = {
    "block_out_channels": [8],
    "norm_num_groups": 4,
    "latent_channels": 4,
    "in_channels": 1,
    "out_channels": 1,
}
NAMES = ("ddim", "ddpm", "lcm", "tcd", "consistency", "dit")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Each pipeline with its directory and its number of rows."""
    place = tmp_path_factory.mktemp("pipelines")
    found = {}
    for name, (pipeline, rows) in pipelines().items():
        pipeline.set_progress_bar_config(disable=True)
        pipeline.save_pretrained(place / name)
        found[name] = (pipeline, place / name, rows)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_pipelines_pictures_are_those_that_diffusers_makes_from_each_images_seed(made, name):
    """Image i of every batch is the picture that the pipeline, called alone by diffusers with the generator of (seed, i), makes:
    the range [0, 1] as [-1, 1], the classes as given. So neither the batch nor the order counts."""
    pipeline, place, rows = made[name]
    plan = peer_plans([f"{place}@2"], steps=None, seed=3)[0]
    assert plan.record["evaluations"] == rows
    assert plan.record["sampler"] == type(pipeline.scheduler).__name__
    labels = torch.tensor([7, 1, 4, 2]) if name in ("consistency", "dit") else None
    source = plan.source(plan.subject.model, 4, labels, torch.device("cpu"))
    assert isinstance(source, PipelineSource)
    images, found = source.batch(np.array([3, 0, 2]))
    assert (images.shape, plan.subject.model.shape) == ((3, 1, 8, 8), (1, 8, 8))
    assert found is None if labels is None else torch.equal(found, torch.tensor([2, 7, 4]))
    for row, number in enumerate([3, 0, 2]):
        given = {} if labels is None else {"class_labels": [int(labels[number])]}
        alone = pipeline(generator=image_generator(3, number, 0), num_inference_steps=2, output_type="np", **given)
        truth = torch.from_numpy(alone.images[0]).permute(2, 0, 1) * 2 - 1
        assert torch.allclose(images[row], truth, atol=1e-4)
    assert float((images[0] - images[1]).abs().max()) > 1e-2


def test_a_pipeline_starts_from_the_noise_that_ours_start_from():
    from diffusers.utils.torch_utils import randn_tensor

    generators = [image_generator(5, i, 0) for i in (2, 0)]
    assert torch.equal(randn_tensor((2, 3, 8, 8), generator=generators), starting_noise((3, 8, 8), (2, 0), 5))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    images = load_images("digits")
    file = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(file, images=images.pixels[:120], labels=images.labels[:120])
    return file


@pytest.fixture
def program(small_ctm, tmp_path, monkeypatch):
    """A module of a user's with objects, and the model's directory."""
    small_ctm.save_pretrained(tmp_path / "model")
    (tmp_path / "strangers.py").write_text(
        f"""import os
import pathlib
import torch
import ctm
pathlib.Path({str(tmp_path / "imported")!r}).touch()
student = ctm.load_model({str(tmp_path / "model")!r})
sep = os.sep
class Halving:
    shape = (1, 8, 8)
    sigma_min, sigma_max, rate = 0.01, 10.0, 0.5
    def denoise(self, x, t, condition=None):
        return self.rate * x / (1 + t.reshape(-1, 1, 1, 1))
class Shapeless:
    def denoise(self, x, t, condition=None):
        return x
    def jump(self, x, t, s, condition=None):
        return x
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("strangers", None)


FAST = ["--features", "classifier", "--num", 60]


def test_peers_stand_beside_ours(capsys, made, program, data, session_cache, monkeypatch, quick_classifier):
    """An object that is our model has our model's numbers; pipelines have theirs, computed again from their own pictures."""
    monkeypatch.setenv("CTM_CACHE", str(session_cache))
    asked = ["evaluate", program / "model", "--data", data, "--steps", "2", "--labels", "uniform", *FAST]
    peers = ["--peer", f"{made['lcm'][1]}@4", "--peer", f"{made['consistency'][1]}@2", "--peer", "strangers:student"]
    peers += ["--peer", "strangers.Halving@3", "--allow", "strangers"]
    code, printed, err = run(capsys, *asked, *peers, "--out", program / "out")
    assert code == 0, err
    rows = json.loads((program / "out" / "result.json").read_text())["rows"]
    assert [(row["role"], row["sampler"], row["steps"], row["evaluations"]) for row in rows] == [
        ("model", "gamma", 2, 2),
        ("peer", "LCMScheduler", 4, 4),
        ("peer", "CMStochasticIterativeScheduler", 2, 2),
        ("peer", "gamma", 2, 2),
        ("peer", "heun", 3, 5),
    ]
    assert rows[0]["numbers"] == rows[3]["numbers"]
    assert rows[1]["grid"]["timesteps"] == [99, 75, 49, 25]
    assert "lcm (LCMScheduler), 4" in printed
    assert "lcm (LCMScheduler), 4" in (program / "out" / "report.html").read_text()
    found = compare([(name, read_result(program / "out")) for name in ("a", "b")])
    assert {each.row["name"] for each in found} == {row["name"] for row in rows}
    assert not any(each.verdict for each in found)  # a peer is compared with itself and with no other
    pictures = made["lcm"][0](
        batch_size=60,
        generator=[image_generator(0, i, 0) for i in range(60)],
        num_inference_steps=4,
        output_type="np",
    ).images
    with np.load(data) as stored:
        images = Images(stored["images"], stored["labels"])
    classifier = classifier_of(images, images_checksum(images), Processes())
    seen = [to_uint8(torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1), torch.from_numpy(images.pixels)]
    with torch.no_grad():
        features, real = (classifier.features(x.permute(0, 3, 1, 2).float() / 127.5 - 1) for x in seen)
    assert rows[1]["numbers"]["frechet"]["value"] == pytest.approx(frechet_distance(features, real), rel=1e-3)


@pytest.mark.slow
def test_bench_samplers_has_a_line_for_each_peer(capsys, made, program, data, session_cache, monkeypatch):
    monkeypatch.setenv("CTM_CACHE", str(session_cache))
    out = program / "bench.json"
    asked = [
        "bench",
        "samplers",
        "--model",
        "strangers:student",
        "--data",
        data,
        "--features",
        "classifier",
        "--count",
        40,
    ]
    asked += ["--samplers", "gamma", "--gammas", "0", "--steps", "1,2", "--peer", f"{made['tcd'][1]}@1,3"]
    code, printed, err = run(capsys, *asked, "--allow", "strangers", "--out", out)
    assert code == 0, err
    entries = json.loads(out.read_text())
    del entries["about"]
    found = {(entry["sampler"], entry["evaluations"]) for entry in entries.values()}
    assert found == {("gamma", 1), ("gamma", 2), ("tcd (TCDScheduler)", 1), ("tcd (TCDScheduler)", 3)}
    assert "tcd (TCDScheduler)" in printed
    assert (program / "bench.png").read_bytes().startswith(b"\x89PNG")
    before = out.read_text()
    assert run(capsys, *asked, "--allow", "strangers", "--out", out, "--continue")[0] == 0
    assert out.read_text() == before


def test_an_object_is_imported_only_where_its_module_is_allowed(capsys, program, data):
    asked = ["evaluate", "--data", data, *FAST, "--out", program / "out", "--peer"]
    said = sentence(capsys, *asked, "strangers:student")
    assert "--peer asks for strangers.student, which is not part of ctm's own models: nothing was imported" in said
    assert "repeat the command with --allow strangers" in said
    assert not (program / "imported").exists()
    allow = ["--allow", "strangers"]
    assert "strangers:nothing cannot be imported (AttributeError" in sentence(
        capsys, *asked, "strangers:nothing", *allow
    )
    assert "does not say the shape of a sample" in sentence(capsys, *asked, "strangers:Shapeless", *allow)
    assert "strangers:sep does not say the shape" in sentence(capsys, *asked, "strangers:sep", *allow)
    assert "is a module: name an object in it" in sentence(capsys, *asked, "strangers:os", *allow)
    assert "asks for os.popen, which is not part of ctm's own" in sentence(capsys, *asked, "strangers:os.popen", *allow)
    wrong = ["--sampler", "gamma"]
    said = sentence(
        capsys, "evaluate", "strangers:Halving", "--data", data, *FAST, *wrong, "--out", program / "o", *allow
    )
    assert "strangers:Halving cannot jump: choose --sampler heun" in said


def test_what_a_pipeline_cannot_do_is_said_in_a_sentence(capsys, made, data, tmp_path):
    asked = ["evaluate", "--data", data, *FAST, "--out", tmp_path / "out", "--peer"]
    lcm = made["lcm"][1]
    assert f"say how many steps it takes, as --peer {lcm}@1,2,4" in sentence(capsys, *asked, lcm)
    assert "cannot make an image in 400 steps (ValueError" in sentence(capsys, *asked, f"{lcm}@400")
    said = sentence(capsys, *asked, f"{tmp_path / 'nothing'}@1")
    assert "is no pipeline of diffusers: it has no model_index.json" in said
    pipeline, place, _ = made["dit"]
    stochastic = diffusers.DiTPipeline(pipeline.transformer, pipeline.vae, diffusers.DDPMScheduler(**LEVELS))
    stochastic.save_pretrained(tmp_path / "stochastic")
    said = sentence(capsys, *asked, f"{tmp_path / 'stochastic'}@2")
    assert "its DDPMScheduler draws random numbers that its DiTPipeline does not take from the images' seeds" in said
    index = place / "model_index.json"
    text = index.read_text()
    try:
        index.write_text(text.replace('"vae": [\n    "diffusers"', '"vae": [\n    "strangers"'))
        said = sentence(capsys, *asked, f"{place}@2")
    finally:
        index.write_text(text)
    assert "parts are of diffusers or transformers: nothing was imported" in said
    assert "--prompts belongs to a --peer" in sentence(
        capsys, "evaluate", "--samples", data, "--data", data, "--prompts", "x", *FAST
    )


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A Stable Diffusion pipeline with the sampler of LCM, tiny and random, and its directory."""
    place = tmp_path_factory.mktemp("texts")
    torch.manual_seed(0)
    words = [*"aehnorstv", *(f"{letter}</w>" for letter in "aehnorstv"), "<|startoftext|>", "<|endoftext|>"]
    (place / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(place / "vocab.json"), str(place / "merges.txt"), model_max_length=8)
    sizes = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=8, **sizes, **marks))
    pipeline = diffusers.StableDiffusionPipeline(
        vae=made_random(diffusers.AutoencoderKL(**AUTOENCODER)),
        text_encoder=made_random(encoder),
        tokenizer=tokenizer,
        unet=made_random(diffusers.UNet2DConditionModel(**CONDITIONAL)),
        scheduler=diffusers.LCMScheduler(**LEVELS, original_inference_steps=50),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(place / "pipe")
    return pipeline, place / "pipe"


def test_a_pipeline_of_texts_has_a_prompt_for_each_class(texts, tmp_path):
    """The pictures are the pipeline's own for the class's prompt; guidance asks the network twice in each step."""
    pipeline, place = texts
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffseven\r\n  three \n".encode())
    plan = peer_plans([f"{place}@2"], steps=None, seed=1, prompts=str(file))[0]
    assert (plan.record["evaluations"], plan.record["guidance"], plan.record["prompts"]) == (4, 7.5, ["seven", "three"])
    assert plan.subject.model.num_classes == 2
    images, _ = plan.source(plan.subject.model, 4, torch.tensor([0, 1, 1, 0]), torch.device("cpu")).batch(np.arange(3))
    for row, prompt in enumerate(["seven", "three", "three"]):
        given = {"generator": image_generator(1, row, 0), "num_inference_steps": 2, "output_type": "np"}
        truth = torch.from_numpy(pipeline(prompt, **given).images[0]).permute(2, 0, 1) * 2 - 1
        assert torch.allclose(images[row], truth, atol=1e-4)
    with pytest.raises(
        ValueError, match="makes pictures of text: give --prompts FILE, with one prompt, or a line for each"
    ):
        peer_plans([f"{place}@2"], steps=None)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        peer_plans([f"{place}@2"], steps=None, prompts=str(tmp_path / "absent.txt"))


def test_a_pipelines_prompts_are_read_as_all_prompts_are(texts, tmp_path):
    """A blank line is the empty prompt of its class: the classes after it keep their numbers."""
    file = tmp_path / "prompts.txt"
    file.write_text("seven\n\nthree\n")
    assert open_pipeline(str(texts[1]), str(file)).prompts == ["seven", "", "three"]
    file.write_bytes(b"se\xffven\n")
    with pytest.raises(ValueError, match=r"is no text in UTF-8 .invalid start byte at byte 2"):
        open_pipeline(str(texts[1]), str(file))


def test_an_objects_checksum_follows_its_weights_its_numbers_and_its_code(program):
    with allowing("strangers"):
        first, second, other = (
            peer_plans([f"strangers:{name}"], steps=None)[0] for name in ("Halving", "Halving", "student")
        )
    assert first.record["checksum"] == second.record["checksum"] != other.record["checksum"]
    first.subject.model.model.rate = 0.25
    assert first.subject.model.checksum() != second.record["checksum"]


def test_a_function_and_an_object_that_only_jumps_are_models_too():
    class Jumps:
        shape, num_classes = (2,), 3

        def jump(self, x, t, s, condition=None):
            return x

    model = ObjectModel(Jumps(), "mine:Jumps")
    assert (model.num_classes, model.conditioner.num_classes) == (3, 3)
    assert model.assumed == ["sigma_min = 0.002", "sigma_max = 80"]

    def denoised(x, t, condition=None):
        return 0 * x

    denoised.shape = (2,)
    assert float(ObjectModel(denoised, "mine:denoised").denoise(torch.ones(1, 2), torch.ones(1)).sum()) == 0


def test_prompts_for_a_pipeline_without_a_text_are_said_to_be_left(tmp_path, caplog):
    network = made_random(diffusers.UNet2DModel(**UNET))
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler(**LEVELS)).save_pretrained(tmp_path / "ddpm")
    assert open_pipeline(str(tmp_path / "ddpm"), "prompts.txt").prompts == []
    assert "its pipeline takes no text: the prompts of prompts.txt are not read for it" in caplog.text
