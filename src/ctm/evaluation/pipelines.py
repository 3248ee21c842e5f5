"""A pipeline of diffusers as a row of an evaluation: sampled by its own scheduler, each image from its own seed."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ctm.conditioner import Conditioner
from ctm.conditions import Condition, labels_of, rows
from ctm.data.notes import tell
from ctm.evaluation.extractors import checksum_of
from ctm.evaluation.pipeline_files import checked_parts, opened_modules
from ctm.evaluation.plans import Plan, Subject
from ctm.foreign.prompts import read_prompts
from ctm.foreign.text import JSONObject, plain
from ctm.hub import asking_hub
from ctm.models.protocol import Denoiser
from ctm.sampling.image_noise import NOISE, image_generator

__all__ = ["PipelineModel", "PipelinePlan", "PipelineSource", "open_pipeline", "pipeline_plans"]

_NETWORKS = ("unet", "transformer", "prior")


class PipelineModel(nn.Module):
    """A pipeline of diffusers with what an evaluation asks of a model: the shape of a picture, classes, weights.

    prompts: of a pipeline that takes text: one for all images, or one for each class; else none."""

    def __init__(self, pipeline: Any, name: str, prompts: Sequence[str] = ()) -> None:
        super().__init__()
        self.pipeline, self.name, self.prompts = pipeline, name, list(prompts)
        self.parts = nn.ModuleDict(
            {key: part for key, part in pipeline.components.items() if isinstance(part, nn.Module)}
        )
        network = next((self.parts[key] for key in _NETWORKS if key in self.parts), None)
        if network is None:
            raise ValueError(f"{name} is a pipeline without {', '.join(_NETWORKS)}: there is nothing whose calls count")
        self.network: nn.Module = network
        self.takes = inspect.signature(type(pipeline).__call__).parameters
        classes = len(self.prompts) if len(self.prompts) > 1 else 0 if self.prompts else self._classes()
        self.conditioner, self.num_classes = Conditioner(classes), classes
        self.class_names: list[str] = []
        self.shape: tuple[int, ...] = ()  # known after the first image
        self.blackened = 0

    def _classes(self) -> int:
        settings = getattr(self.network, "config", {})
        found = settings.get("num_class_embeds") or settings.get("num_embeds_ada_norm") or 0
        return int(found) if "class_labels" in self.takes else 0

    @torch.no_grad()
    def images(self, seed: int, indices: Sequence[int], labels: Tensor | None, steps: int) -> Tensor:
        """The pictures number `indices` under a seed: float32 (B, C, H, W) in [−1, 1] on the CPU. All that the pipeline draws for
        image i comes from the generator of (seed, i), from which ours take their noise too."""
        given: dict[str, Any] = {"num_inference_steps": steps, "output_type": "np"}
        given["generator"] = [image_generator(seed, index, NOISE) for index in indices]
        if self.prompts:
            numbers = [0] * len(indices) if labels is None else labels.tolist()
            given["prompt"] = [self.prompts[number] for number in numbers]
        elif labels is not None:
            given["class_labels"] = labels.tolist()
        if "batch_size" in self.takes:
            given["batch_size"] = len(indices)
        made = self.pipeline(**given)
        self._look_at(getattr(made, "nsfw_content_detected", None))
        pictures = torch.from_numpy(np.asarray(made.images, dtype=np.float32))
        if pictures.dim() != 4 or len(pictures) != len(indices):
            raise ValueError(f"{self.name} gave pictures of shape {tuple(pictures.shape)} for {len(indices)} seeds")
        return pictures.permute(0, 3, 1, 2).mul(2).sub(1).contiguous()

    def _look_at(self, found: Any) -> None:
        """Say once that the pipeline's own checker put black pictures in the place of some."""
        blackened = sum(map(bool, found or ()))
        if blackened and not self.blackened:
            tell(["its safety checker makes pictures black, and they count as they are"], self.name)
        self.blackened += blackened

    def tried(self, steps: int) -> int:
        """The rows that the network computes for one image in so many steps, counted on image 0 of seed 0.

        Raises ValueError where the pipeline cannot make an image so, and where it draws numbers that no seed of an image reaches:
        its images would depend on the batch."""
        counted: list[int] = []

        def count(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            counted.append(len(next(value for value in (*inputs, *named.values()) if isinstance(value, Tensor))))

        hook = self.network.register_forward_pre_hook(count, with_kwargs=True)
        labels = torch.zeros(1, dtype=torch.int64) if self.num_classes else None
        before = torch.get_rng_state()
        try:
            image = self.images(0, [0], labels, steps)
        except Exception as error:  # diffusers and the pipeline's parts raise many kinds
            reason = plain(f"{type(error).__name__}: {error}", 300)
            raise ValueError(f"--peer {self.name} cannot make an image in {steps} steps ({reason})") from error
        finally:
            hook.remove()
            drawn = not torch.equal(before, torch.get_rng_state())
            torch.set_rng_state(before)
        if drawn:
            raise ValueError(
                f"--peer {self.name}: its {type(self.pipeline.scheduler).__name__} draws random numbers that its "
                f"{_kind(self.pipeline)} does not take from the images' seeds: give the pipeline a scheduler that draws none"
            )
        self.shape = tuple(image.shape[1:])
        return sum(counted)


@dataclass(frozen=True)
class PipelineSource:
    """`count` pictures of a pipeline in `steps` steps of its scheduler. Image i depends on (seed, i) and its class only."""

    model: PipelineModel
    count: int
    steps: int
    condition: Condition
    seed: int

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor | None]:
        labels = labels_of(rows(self.condition, torch.from_numpy(indices)))
        return self.model.images(self.seed, indices.tolist(), labels, self.steps), labels


@dataclass(frozen=True)
class PipelinePlan(Plan):
    """A pipeline in a number of steps. It has no levels and no method of ours."""

    def source(self, model: Denoiser, count: int, condition: Condition, device: torch.device) -> PipelineSource:
        assert isinstance(model, PipelineModel)
        return PipelineSource(model, count, self.record["steps"], condition, self.record["seed"])


def pipeline_plans(model: PipelineModel, name: str, steps: Sequence[int], seed: int) -> list[Plan]:
    """A plan for each number of steps, each tried on one image. name: as the user gave it. Raises ValueError as
    `PipelineModel.tried`."""
    subject = Subject("peer", name, model, _checksum(model), None)  # type: ignore[arg-type]
    plans: list[Plan] = []
    for count in steps:
        evaluations = model.tried(count)
        record = _record(subject, model, count, evaluations, seed)
        plans.append(PipelinePlan(subject, torch.empty(0), _no_method, record))
    return plans


def _record(subject: Subject, model: PipelineModel, steps: int, evaluations: int, seed: int) -> JSONObject:
    """What a reader needs to repeat the samples, with the timesteps that the scheduler chose."""
    scheduler = model.pipeline.scheduler
    timesteps = [float(f"{float(step):.6g}") for step in scheduler.timesteps]
    scale = model.takes.get("guidance_scale")
    return {
        "role": subject.role,
        "name": subject.name,
        "checksum": subject.checksum,
        "ema": None,
        "sampler": type(scheduler).__name__,
        "steps": steps,
        "evaluations": evaluations,
        "gamma": None,
        "form": None,
        "grid": {"kind": "scheduler", "pipeline": _kind(model.pipeline), "timesteps": timesteps},
        "guidance": None if scale is None else scale.default,
        "rejection": False,
        "seed": seed,
        "precision": str(next(model.network.parameters()).dtype).removeprefix("torch."),
        **({"prompts": model.prompts} if model.prompts else {}),
    }


def _no_method(*_: Any, **__: Any) -> Tensor:
    raise NotImplementedError("a pipeline samples by its own scheduler")


def _checksum(model: PipelineModel) -> str:
    """16 digits of the SHA-256 of the weights and of the scheduler's settings."""
    settings = sorted(dict(model.pipeline.scheduler.config).items())
    return hashlib.sha256(f"{checksum_of(model)} {_kind(model.pipeline)} {settings!r}".encode()).hexdigest()[:16]


def _kind(pipeline: Any) -> str:
    return type(pipeline).__name__


def open_pipeline(source: str, prompts: str | None = None) -> PipelineModel:
    """A pipeline of diffusers in a directory or at the hub, with its own scheduler, in eval mode and float32.

    Only classes of diffusers and transformers are taken, weights only from safetensors and whole, and no code of the pipeline's
    own is run. prompts: a text file with one prompt, or one for each class, as `read_prompts` takes it.
    Raises FileNotFoundError where there is no pipeline, ValueError in a sentence for one that is not taken, for a pipeline that
    needs prompts and has none, and for prompts that it does not take."""
    kind, parts = checked_parts(source)
    try:
        import diffusers
    except ImportError as error:
        raise ValueError("--peer with a pipeline needs diffusers: pip install 'ctm-torch[diffusers]'") from error
    found = getattr(diffusers, kind, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise ValueError(f"--peer {source} is a {kind}, which this version of diffusers does not have")
    from diffusers.utils import logging as diffusers_logging

    opener: Any = found
    loud = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(logging.CRITICAL)  # what goes wrong is one sentence, below
    diffusers_logging.disable_progress_bar()
    try:
        with asking_hub():
            modules = opened_modules(source, parts)
            pipeline = opener.from_pretrained(source, use_safetensors=True, trust_remote_code=False, **modules)
    except Exception as error:  # of diffusers, transformers, safetensors and the hub
        reason = plain(f"{type(error).__name__}: {error}", 300)
        raise ValueError(f"--peer {source} cannot be opened by diffusers ({reason})") from error
    finally:
        diffusers_logging.set_verbosity(loud)
        diffusers_logging.enable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)
    takes_text = "prompt" in inspect.signature(found.__call__).parameters
    if takes_text and prompts is None:
        raise ValueError(
            f"--peer {source} makes pictures of text: give --prompts FILE, with one prompt, or a line for each class"
        )
    if prompts is not None and not takes_text:
        tell([f"its pipeline takes no text: the prompts of {prompts} are not read for it"], source)
    return PipelineModel(pipeline, source, read_prompts(Path(prompts)) if takes_text and prompts else ()).eval()
