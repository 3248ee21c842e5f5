"""A Consistency Trajectory Model (arXiv 2310.02279) as a diffusers pipeline: one step, or more steps for more quality.

Its scheduler does γ-sampling. diffusers' own FlowMapEulerDiscreteScheduler can stand in its place (γ = 0, Karras' levels).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput


class CTMPipeline(DiffusionPipeline):
    """flow_map: u(z, τ, r), the mean velocity. scheduler: CTMScheduler or FlowMapEulerDiscreteScheduler. vae: decodes the samples
    of a model of latents. tokenizer, text_encoder: of a model that takes a text."""

    model_cpu_offload_seq = "text_encoder->flow_map->vae"
    _optional_components: ClassVar[list[str]] = ["vae", "tokenizer", "text_encoder"]

    def __init__(
        self, flow_map: Any, scheduler: Any, vae: Any = None, tokenizer: Any = None, text_encoder: Any = None
    ) -> None:
        super().__init__()
        parts = {"vae": vae, "tokenizer": tokenizer, "text_encoder": text_encoder}
        self.register_modules(flow_map=flow_map, scheduler=scheduler, **parts)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        num_inference_steps: int | None = None,
        *,
        prompt: str | Sequence[str] | None = None,
        guidance_scale: float | None = None,
        class_labels: int | str | Sequence[int | str] | None = None,
        conditions: dict[str, torch.Tensor] | None = None,
        gamma: float | None = None,
        sigmas: Sequence[float] | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, torch.Tensor]], dict[str, Any]] | None = None,
    ) -> Any:
        """Draw images. batch_size: None: one for each prompt. prompt: a text, or several, repeated over the images; "" is no
        text. guidance_scale: of a model that takes one. class_labels: numbers or names, one for all or one each, −1 for none;
        None draws a class for each image where `seed` is given, else from the generator. conditions: fields by name, (B, …).
        seed: one number, and image i depends on (seed, i) alone, as in ctm.generate; or one number for each image. generator: for
        all images, where there is no seed. num_inference_steps: jumps; None: 1, or those of sigmas. sigmas: levels of noise in
        place of Karras', see `_levels`. output_type: "pil", "np" (B, H, W, C) in [0, 1], "pt": (B, C, H, W), not clamped, or
        "latent": (B, *shape) as the model gives it.
        callback_on_step_end(pipeline, index, timestep, {"latents": z}) may return other latents."""
        config, device = self.flow_map.config, self._execution_device
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
        batch_size = max(1, len(prompts)) if batch_size is None else batch_size
        if not isinstance(batch_size, int):
            raise ValueError(f"the first argument is the number of images, got {batch_size!r}: give a text as prompt=…")
        if batch_size < 1:
            raise ValueError(f"batch_size is a number of images, at least 1, got {batch_size}")
        num_inference_steps, sigmas = _levels(num_inference_steps, sigmas, config)
        draw = _Noise(seed, batch_size, generator)
        fields = {**(conditions or {}), **self._texts(batch_size, prompts, guidance_scale)}
        given = self._conditions(batch_size, class_labels, fields, draw, device)
        ends = self._set_levels(num_inference_steps, sigmas, gamma)
        shape = (batch_size, *config.shape)
        dtype = next(self.flow_map.parameters()).dtype
        start = config.sigma_max if sigmas is None else sigmas[0]
        z = (start / (1 + start) * draw(shape)).to(device, dtype)
        for i, (t, r) in enumerate(self.progress_bar(list(zip(self.scheduler.timesteps, ends, strict=True)))):
            u = self.flow_map(z, t, r, *given)
            if hasattr(self.scheduler, "r_timesteps"):
                last = i + 1 == len(self.scheduler.timesteps)
                noise = draw(shape).to(z) if self.scheduler.gamma > 0 and not last else None
                z = self.scheduler.step(u, t, z, noise=noise).prev_sample
            else:
                z = self.scheduler.step(u, t, z, r_timestep=r).prev_sample
            if callback_on_step_end is not None:
                z = callback_on_step_end(self, i, t, {"latents": z}).get("latents", z)
        if self.vae is not None and output_type != "latent":
            about = self.vae.config
            z = self.vae.decode(z.to(self.vae.dtype) / about.scaling_factor + (about.shift_factor or 0.0)).sample
        self.maybe_free_model_hooks()
        images = _as_asked(z, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _set_levels(self, steps: int, sigmas: Sequence[float] | None, gamma: float | None) -> torch.Tensor:
        """Set the scheduler's timesteps, and return where each step ends."""
        config, device = self.flow_map.config, self._execution_device
        if hasattr(self.scheduler, "r_timesteps"):
            self.scheduler.set_timesteps(steps, device=device, sigmas=sigmas, gamma=gamma)
            ends: torch.Tensor = self.scheduler.r_timesteps
            return ends
        if gamma:
            raise ValueError(
                f"{type(self.scheduler).__name__} takes no gamma: use the scheduler that came with the model"
            )
        levels = _karras(steps, config) if sigmas is None else list(sigmas)
        self.scheduler.set_timesteps(sigmas=[level / (1 + level) for level in levels], device=device)
        return torch.cat([self.scheduler.timesteps[1:], self.scheduler.timesteps.new_zeros(1)])

    def _texts(self, n: int, prompts: Sequence[str], guidance: float | None) -> dict[str, torch.Tensor]:
        """The field "text" of n images for prompts that are repeated, where it is there, and the guidance scale."""
        known = self.flow_map.config.conditions
        if guidance is not None and "guidance" not in known:
            raise ValueError("the model takes no guidance_scale: distil it with --guidance LOW,HIGH")
        found = {} if guidance is None else {"guidance": torch.tensor(float(guidance))}
        if not prompts:
            return found
        if "text" not in known or self.text_encoder is None or self.tokenizer is None:
            raise ValueError("the model takes no prompt: it has no text, or no tokenizer and text encoder")
        options = {"padding": "max_length", "max_length": known["text"][1]}
        ids = self.tokenizer(list(prompts), truncation=True, return_tensors="pt", **options).input_ids
        rows = torch.arange(n) % len(prompts)
        there = torch.tensor([bool(text) for text in prompts])
        text = self.text_encoder(ids.to(self._execution_device))[0].cpu()
        return {**found, "text": text[rows], "text_present": there[rows]}

    def _conditions(
        self,
        n: int,
        class_labels: int | str | Sequence[int | str] | None,
        fields: dict[str, torch.Tensor] | None,
        draw: _Noise,
        device: torch.device,
    ) -> list[torch.Tensor]:
        """The inputs of the flow map, in its order."""
        config, left = self.flow_map.config, dict(fields or {})
        if class_labels is not None and "labels" not in config.conditions:
            raise ValueError(f"the model has no classes, leave class_labels out, got {class_labels!r}")
        for name in [name for name in left if name in config.conditions]:
            wanted, left[name] = (n, *config.conditions[name][1:]), torch.as_tensor(left[name])
            sides = left[name].shape
            if sides not in (wanted, wanted[1:], (1, *wanted[1:])):
                raise ValueError(
                    f"conditions[{name!r}] has the shape {wanted}, a row for each image, got {tuple(sides)}"
                )
        found = []
        for name, about in config.conditions.items():
            field = name.removesuffix("_present")
            if name == "labels":
                value = self._labels(n, class_labels, draw)
            elif field in config.conditions and field != name:  # whether the field is there: it is, if it is given
                value = left.pop(name, torch.full((n,), field in (fields or {})))
            else:
                value = torch.as_tensor(left.pop(name, float(about[0]))).float().cpu().expand(n, *about[1:])
            found.append(value.to(device))
        if left:
            raise ValueError(
                f"the model takes no condition {', '.join(left)}: it takes {', '.join(config.conditions) or 'none'}"
            )
        return found

    def _labels(self, n: int, labels: int | str | Sequence[int | str] | None, draw: _Noise) -> torch.Tensor:
        names, classes = self.flow_map.config.class_names or [], self.flow_map.config.num_classes
        if labels is None:
            return draw.classes(classes)
        listed = [labels] * n if np.ndim(labels) == 0 else list(labels)  # type: ignore[arg-type]
        numbers = [_class(one, names) for one in listed]
        if len(numbers) != n or not all(number is not None and -1 <= number < classes for number in numbers):
            raise ValueError(f"class_labels must be one or {n} of −1 … {classes - 1} or of {names}, got {labels!r}")
        return torch.tensor(numbers, dtype=torch.int64)


class _Noise:
    """Standard normal draws: of image i from (seed, i), the same stream as ctm.generate's; else from one generator."""

    def __init__(self, seed: int | Sequence[int] | None, n: int, generator: torch.Generator | None) -> None:
        if seed is not None and generator is not None:
            raise ValueError("seed and generator are two sources of the same noise: give one of them")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError(
                f"generator is one torch.Generator for all images, got {generator!r}: seed=[…] is one an image"
            )
        self.n, self.generator = n, generator
        who = None if seed is None else [(seed, i) for i in range(n)] if np.ndim(seed) == 0 else [(s, 0) for s in seed]  # type: ignore[union-attr]
        if who is not None and not all(hasattr(one, "__index__") and int(one) >= 0 for one, _ in who):  # type: ignore[arg-type]
            raise ValueError(f"seed is a whole number of at least 0, or one for each image, got {seed!r}")
        if who is not None and len(who) != n:
            raise ValueError(f"a sequence of seeds needs one for each of {n} images, got {len(who)}")
        self.own = None if who is None else [_stream(int(one), i, 0) for one, i in who]  # type: ignore[arg-type]
        self.of_labels = None if who is None else [_stream(int(one), i, 1) for one, i in who]  # type: ignore[arg-type]

    def __call__(self, shape: Sequence[int]) -> torch.Tensor:
        if self.own is not None:
            return torch.stack([torch.empty(tuple(shape[1:])).normal_(generator=one) for one in self.own])
        place = "cpu" if self.generator is None else self.generator.device
        return torch.randn(tuple(shape), generator=self.generator, device=place)

    def classes(self, count: int) -> torch.Tensor:
        if self.of_labels is not None:
            return torch.stack([torch.randint(count, (), generator=one) for one in self.of_labels])
        place = "cpu" if self.generator is None else self.generator.device
        return torch.randint(count, (self.n,), generator=self.generator, device=place).cpu()


def _stream(seed: int, image: int, purpose: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, image, purpose]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def _class(one: Any, names: Sequence[str]) -> int | None:
    """The number of a class that is given by its name or its number, None for anything else."""
    if one in names:
        return names.index(one)
    try:
        return int(one) if int(one) == float(one) else None
    except (TypeError, ValueError):
        return None


def _levels(steps: int | None, sigmas: Sequence[float] | None, config: Any) -> tuple[int, list[float] | None]:
    """(number of jumps, levels of noise that they start from, falling, or None for those of the scheduler).

    The last jump ends at sigma_min: this level may stand as the last of `sigmas`, or be left out, which is the same.
    Raises ValueError for other levels, and where `steps` is another number of jumps."""
    if steps is not None and not (hasattr(steps, "__index__") and steps >= 1):
        raise ValueError(f"num_inference_steps is a number of jumps, at least 1, got {steps!r}")
    if sigmas is None:
        return (1 if steps is None else int(steps)), None
    low, high, given = config.sigma_min, config.sigma_max, [float(level) for level in sigmas]
    levels = given[:-1] if given and abs(given[-1] - low) <= 1e-6 * low else given
    falls = all(above > below for above, below in itertools.pairwise(levels))
    if not levels or not falls or not (levels[-1] > low and levels[0] <= high * (1 + 1e-6)):
        raise ValueError(
            f"sigmas are levels of noise from which jumps start: they fall, from at most {high}, and stay above {low}, where the "
            f"last jump ends (it may stand as the last of them). Got {given}"
        )
    if steps is not None and steps != len(levels):
        raise ValueError(
            f"sigmas={given} are {len(levels)} jumps, the last of which ends at {low}, and num_inference_steps={steps} asks for "
            f"{steps}: leave one of the two out"
        )
    return len(levels), levels


def _karras(steps: int, config: Any) -> list[float]:
    """The levels that jumps start from: N of the N + 1 of Karras' grid."""
    high, low = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
    return [(high + i / steps * (low - high)) ** config.rho for i in range(steps)]


def _as_asked(z: torch.Tensor, output_type: str) -> Any:
    if output_type in ("pt", "latent"):
        return z.float().cpu()
    pixels = ((z.float().cpu().clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()
    if output_type == "np":
        return pixels
    if output_type != "pil":
        raise ValueError(f'output_type is "pil", "np", "pt" or "latent", got {output_type!r}')
    from PIL import Image

    rounded = (pixels * 255).round().astype("uint8")
    return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in rounded]
