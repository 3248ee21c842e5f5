"""A Stable Diffusion pipeline made here, tiny and with random weights, as a teacher of latents with a text."""

import json
import shutil

import diffusers
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ctm import load_model, load_teacher
from ctm.guidance import ClassifierFree
from ctm.teachers.diffusers import read_diffusers
from ctm.teachers.diffusers_latents import load_autoencoder
from ctm.teachers.diffusers_text import embed_prompts
from tests.diffusers_models import CONDITIONAL, made_random

DATA = {"sigma_data": 1.0}
TOKENS = 8


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The pipeline and its directory."""
    place = tmp_path_factory.mktemp("sd")
    letters = "aeghnorstv"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (place / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(place / "vocab.json"), str(place / "merges.txt"), model_max_length=TOKENS)
    sizes = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    config = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=TOKENS, **sizes, **marks)
    torch.manual_seed(0)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=[8], norm_num_groups=4, latent_channels=4),
        text_encoder=CLIPTextModel(config).eval(),
        tokenizer=tokenizer,
        unet=made_random(diffusers.UNet2DConditionModel(**CONDITIONAL)),
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(place / "pipe")
    return pipeline, place / "pipe"


def by_pipeline(pipeline, prompts):
    return pipeline.encode_prompt(prompts, "cpu", 1, False)[0]


def test_prompts_are_embedded_as_the_pipeline_embeds_them(made):
    pipeline, place = made
    prompts = ["a seven", "", "three seven a three seven a three"]
    assert torch.allclose(embed_prompts(place, prompts), by_pipeline(pipeline, prompts), atol=1e-6)
    assert len({tuple(row.flatten().tolist()) for row in embed_prompts(place, prompts)}) == 3


def test_texts_that_are_there_and_absent_and_guidance_between_them(made, tmp_path):
    """An absent text is the empty prompt; classifier-free guidance goes between the two, as the pipeline's does."""
    pipeline, place = made
    model = load_teacher(place, settings=DATA)
    assert (model.shape, dict(model.conditioner.fields)) == ((4, 8, 8), {"text": (TOKENS, 12)})
    text = embed_prompts(place, ["a seven", "three"])
    x, sigma = torch.randn(2, 4, 8, 8), torch.tensor([0.7, 5.0])
    z, level = x / (1 + sigma**2).sqrt()[:, None, None, None], model.preconditioning.level(sigma)
    empty = by_pipeline(pipeline, ["", ""])
    with torch.no_grad():
        noises = [pipeline.unet(z, level, words).sample for words in (empty, text)]
        none, there = (x - sigma[:, None, None, None] * noise for noise in noises)
        assert torch.allclose(model.denoise(x, sigma, {"text": text}), there, atol=1e-5)
        assert torch.allclose(model.denoise(x, sigma), none, atol=1e-5)
        flags = torch.tensor([True, False])
        mixed = model.denoise(x, sigma, {"text": text, "text_present": flags})
        assert torch.allclose(mixed, torch.stack([there[0], none[1]]), atol=1e-5)
        guided = ClassifierFree(model, 3.0).denoise(x, sigma, {"text": text})
        assert torch.allclose(guided, none + 3 * (there - none), atol=1e-4)
        assert float((there - none).abs().max()) > 1e-3


def test_it_is_kept_with_its_empty_prompt(made, tmp_path):
    original = tmp_path / "pipe"
    shutil.copytree(made[1], original)
    checkpoint = read_diffusers(original, settings=DATA)
    checkpoint.model.save_pretrained(tmp_path / "ours")
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        before = checkpoint.model.denoise(x, 1.0)
        shutil.rmtree(original)
        assert torch.equal(load_model(tmp_path / "ours").denoise(x, 1.0), before)
    said = " ".join([*checkpoint.found, *checkpoint.left])
    assert "UNet2DConditionModel of a StableDiffusionPipeline, 8×8 with 4 channels" in said
    assert f"a text has {TOKENS} tokens" in said
    assert "the autoencoder (vae)" in said


def changed(made, tmp_path, **entries):
    place = tmp_path / "pipe"
    shutil.copytree(made[1], place)
    index = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps({**index, **entries}))
    return place


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, "2 text encoders"),
        (
            {"text_encoder": ["evil", "Encoder"]},
            "its text_encoder is Encoder of evil; what is read here is CLIPTextModel",
        ),
        ({"tokenizer": ["transformers", "BertTokenizer"]}, "its tokenizer is BertTokenizer of transformers"),
    ],
    ids=["two", "evil", "bert"],
)
def test_other_text_encoders_are_refused_in_a_sentence(made, tmp_path, entries, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_teacher(changed(made, tmp_path, **entries), settings=DATA)


@pytest.mark.parametrize(
    "change", [{"hidden_size": 1 << 19}, {"num_hidden_layers": 60000}, {"auto_map": {"a": "evil.B"}}]
)
def test_a_hostile_text_encoder_is_refused_before_it_is_built(made, tmp_path, change):
    place = changed(made, tmp_path)
    file = place / "text_encoder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=r"asks for more than its weights hold|asks for code of its own"):
        load_teacher(place, settings=DATA)


def test_a_text_encoder_of_pickles_is_refused(made, tmp_path):
    place = changed(made, tmp_path)
    (place / "text_encoder" / "model.safetensors").rename(place / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="weights that are no pickle"):
        load_teacher(place, settings=DATA)


def test_latents_are_the_autoencoders_with_its_scaling(made):
    pipeline, place = made
    autoencoder, pictures = load_autoencoder(place), torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = autoencoder.encode(pictures)
        expected = pipeline.vae.encode(pictures).latent_dist.mode() * pipeline.vae.config.scaling_factor
        assert torch.allclose(latents, expected, atol=1e-6)
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        assert torch.allclose(autoencoder.decode(latents), decoded, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"block_out_channels": [65536]}, "asks for more than its weights hold"),
        ({"layers_per_block": 60000}, "asks for more than its weights hold"),
        ({"block_out_channels": [10**9]}, "numbers of at most 65,536"),
        ({"latents_mean": [0.0]}, "its config has others"),
        ({"down_block_types": ["os.system"]}, "does not exist|do not fit"),
        ({"_class_name": "evil.Net"}, "is not one of an AutoencoderKL"),
    ],
    ids=["wide", "many", "wider", "mean", "name", "class"],
)
def test_another_autoencoder_is_refused_in_a_sentence(made, tmp_path, change, sentence):
    place = changed(made, tmp_path)
    file = place / "vae" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=sentence):
        load_autoencoder(place)
