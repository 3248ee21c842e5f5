"""A pipeline made here like Stable Diffusion's, tiny: digits as latents, captions such as "a seven"."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ctm.data import load_images
from ctm.data.images import Images

from .diffusers_models import made_random

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CAPTIONS = [f"a {word}" for word in WORDS]
TOKENS = 8
SIDE = 8
UNET = {
    "sample_size": SIDE // 2,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 4,
}


def tokenizer_in(place: Path) -> CLIPTokenizer:
    """A CLIP tokenizer with a token for each letter and for each word of the captions, its files written to a folder."""
    place.mkdir(parents=True, exist_ok=True)
    letters = sorted({letter for word in WORDS for letter in word} | {"a"})
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[str] = []
    for word in WORDS:  # merged letter by letter from the left
        for end in range(2, len(word) + 1):
            last = "</w>" if end == len(word) else ""
            merges.append(f"{word[: end - 1]} {word[end - 1]}{last}")
            tokens.append(word[:end] + last)
    words = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    (place / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (place / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n")
    return CLIPTokenizer(str(place / "vocab.json"), str(place / "merges.txt"), model_max_length=TOKENS)


def text_encoder_for(tokenizer: CLIPTokenizer, width: int = 16) -> CLIPTextModel:
    """A CLIP text encoder with random weights, one vector for each token."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    return CLIPTextModel(
        CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=TOKENS, **sizes, **marks)
    ).eval()


def autoencoder(width: int = 8, height: int = SIDE) -> diffusers.AutoencoderKL:
    """Grey pictures to latents of 4 channels at half their sides."""
    blocks: dict[str, Any] = {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    }
    return diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=[width, width],
        norm_num_groups=4,
        latent_channels=4,
        sample_size=height,
        **blocks,
    )


def random_pipeline(place: Path, *, text: bool = True, **unet: Any) -> diffusers.StableDiffusionPipeline:
    """A pipeline with random weights, written by save_pretrained."""
    torch.manual_seed(0)
    tokenizer = tokenizer_in(place.with_name(f"{place.name}-words"))
    pipeline = diffusers.StableDiffusionPipeline(
        vae=made_random(autoencoder()),
        text_encoder=text_encoder_for(tokenizer),
        tokenizer=tokenizer,
        unet=made_random(
            diffusers.UNet2DConditionModel(
                **UNET, block_out_channels=[8, 16], norm_num_groups=4, cross_attention_dim=16, **unet
            )
        ),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False, prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(place)
    return pipeline


def digits() -> Images:
    """The digits."""
    return load_images("digits")


def captioned(file: Path, count: int | None = None) -> Path:
    """Digits with captions in an .npz: images, and text."""
    images = digits()
    chosen = np.arange(len(images) if count is None else count)
    np.savez(file, images=images.pixels[chosen], text=np.array([CAPTIONS[label] for label in images.labels[chosen]]))
    return file
