"""A text-conditioned latent model of digits, trained by diffusers' own means: AutoencoderKL, scheduler, pipeline's files."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
from torch import nn

from ctm.data import epoch_order

from .text_pipeline import CAPTIONS, TOKENS, UNET, autoencoder, digits, text_encoder_for, tokenizer_in

_EMPTY = 0.1  # of the texts are left out, so that the empty prompt is learned


def train_pipeline(out: Path, *, vae_steps: int = 500, steps: int = 1200, batch: int = 64) -> Path:
    """A StableDiffusionPipeline of digits with captions such as "a seven", by save_pretrained. First the autoencoder, then
    text encoder and U-Net together are trained: v-prediction, by the loop of diffusers' text-to-image example."""
    torch.manual_seed(0)
    vae = _autoencoder(vae_steps, batch)
    tokenizer = tokenizer_in(out.with_name(f"{out.name}-words"))
    encoder = text_encoder_for(tokenizer, 32)
    unet = diffusers.UNet2DConditionModel(
        **UNET, block_out_channels=[32, 64], norm_num_groups=8, cross_attention_dim=32
    )
    scheduler = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False, prediction_type="v_prediction")
    images, generator = digits(), torch.Generator().manual_seed(1)
    x, labels = images.all()
    with torch.no_grad():
        latents = vae.encode(x).latent_dist
        vae.register_to_config(scaling_factor=float(1 / latents.mode().std()))
    words = tokenizer(
        [*CAPTIONS, ""], padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    both = nn.ModuleList([unet, encoder])
    optimizer = torch.optim.AdamW(both.parameters(), lr=1.5e-3)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, steps, pct_start=0.05)
    average = diffusers.training_utils.EMAModel(both.parameters(), decay=0.995)
    for step in range(steps):
        rows = torch.from_numpy(epoch_order(len(images), step * batch, batch, 0))
        clean = (latents.mean + latents.std * torch.randn(latents.mean.shape, generator=generator))[rows]
        clean = clean * vae.config.scaling_factor
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (batch,), generator=generator)
        said = torch.where(torch.rand(batch, generator=generator) < _EMPTY, 10, labels[rows])
        text = encoder(words)[0][said]
        noisy, wanted = scheduler.add_noise(clean, noise, timesteps), scheduler.get_velocity(clean, noise, timesteps)
        loss = nn.functional.mse_loss(unet(noisy, timesteps, text, return_dict=False)[0], wanted)
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        decay.step()
        optimizer.zero_grad()
        average.step(both.parameters())
        if step % 200 == 0:
            print("unet", step, f"{loss.item():.4f}", flush=True)
    average.copy_to(both.parameters())
    diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(out)
    return out


def _autoencoder(steps: int, batch: int) -> diffusers.AutoencoderKL:
    """An autoencoder of digits: squared error, and a little of the divergence from a standard normal distribution."""
    vae, images = autoencoder(16), digits()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.05)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        x, _ = images.batch(epoch_order(len(images), step * batch, batch, 0))
        posterior = vae.encode(x).latent_dist
        restored = vae.decode(posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator))
        error = nn.functional.mse_loss(restored.sample, x)
        loss = error + 1e-3 * posterior.kl().mean() / posterior.mean[0].numel()
        loss.backward()
        optimizer.step()
        decay.step()
        optimizer.zero_grad()
        if step % 200 == 0:
            print("vae", step, f"{error.item():.4f}", flush=True)
    return vae.eval()
