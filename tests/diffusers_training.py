"""A model of diffusers trained on digits by diffusers' own means: its scheduler's add_noise, its loss, its pipeline's files."""

from __future__ import annotations

from pathlib import Path

import torch

from ctm.data import epoch_order, load_images

DIGITS = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
}


def train_ddpm(out: Path, steps: int, *, batch: int = 64, rate: float = 1e-3, config: dict | None = None) -> Path:
    """A DDPMPipeline of digits, after `steps` steps of the loop in diffusers' training example (ε-prediction, AdamW, cosine
    decay, an average of the weights), written by save_pretrained."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    unet, scheduler = UNet2DModel(**(config or DIGITS)), DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=rate)
    decay = get_cosine_schedule_with_warmup(optimizer, max(1, steps // 20), steps)
    average = EMAModel(unet.parameters(), decay=0.995)
    images, generator = load_images("digits"), torch.Generator().manual_seed(0)
    for step in range(steps):
        clean, _ = images.batch(epoch_order(len(images), step * batch, batch, 0))
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (batch,), generator=generator)
        predicted = unet(scheduler.add_noise(clean, noise, timesteps), timesteps, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(predicted, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        decay.step()
        optimizer.zero_grad()
        average.step(unet.parameters())
        if step % 200 == 0:
            print(step, f"{loss.item():.4f}", flush=True)
    average.copy_to(unet.parameters())
    DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(out)
    return out
