"""A directory that diffusers' DiffusionPipeline.from_pretrained loads: weights, graph, and the code that runs them."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctm.conditions import LABELS
from ctm.export.flow_map import TIME_SCALE, MeanVelocity
from ctm.export.graphs import condition_inputs, free_batch, from_inputs, on_cpu
from ctm.files import whole_directory
from ctm.models import TrajectoryModel
from ctm.models.grids import grids_as_json

__all__ = ["SHIPPED", "export_diffusers"]

SHIPPED = Path(__file__).parent / "shipped"
_RHO = 7.0


class _Graph(nn.Module):
    """The mean velocity with its condition as single inputs, to be traced."""

    def __init__(self, model: TrajectoryModel) -> None:
        super().__init__()
        self.velocity = MeanVelocity(model)

    def forward(self, sample: Tensor, timestep: Tensor, r_timestep: Tensor, *inputs: Tensor) -> Tensor:
        return self.velocity(sample, timestep, r_timestep, from_inputs(self.velocity.model.conditioner, inputs))


def export_diffusers(model: TrajectoryModel, out: Path) -> None:
    """Write the pipeline's directory: model_index.json, pipeline.py, scheduler/, flow_map/ with the model's config.json and
    model.safetensors, and the graph flow_map.pt2, which runs where ctm-torch is not installed; vae/, tokenizer/ and
    text_encoder/ where the model has them.

    Raises FileExistsError for a directory that is not empty; ModuleNotFoundError, with what to install, without diffusers."""
    if find_spec("diffusers") is None:
        raise ModuleNotFoundError("diffusers is not installed: pip install 'ctm-torch[diffusers]'", name="diffusers")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is there already and not empty: give a new name, or remove it first")
    model = on_cpu(model)
    with whole_directory(out) as made:
        index = {
            "_class_name": ["pipeline", "CTMPipeline"],
            "_diffusers_version": version("diffusers"),
            "flow_map": ["flow_map", "FlowMap"],
            "scheduler": ["scheduler", "CTMScheduler"],
            **_write_pipeline(model, made),
        }
        _write(made / "model_index.json", index)
        shutil.copy(SHIPPED / "pipeline.py", made / "pipeline.py")
        _write_flow_map(model, made / "flow_map")
        _write_scheduler(model, made / "scheduler")


def _write_pipeline(model: TrajectoryModel, made: Path) -> dict[str, list[str]]:
    """Copy the autoencoder, tokenizer and text encoder that belong to the model, and return their entries of the index. The
    model itself is then written without them."""
    pipeline, model.pipeline = model.pipeline, None
    if pipeline is None:
        return {}
    pipeline.copy_to(made)
    index = pipeline.as_json()
    if "vqvae" in index:  # as the pipeline's argument is called
        (made / "vqvae").rename(made / "vae")
        index["vae"] = index.pop("vqvae")
    return index


def _write_flow_map(model: TrajectoryModel, place: Path) -> None:
    """The component: our model directory, whose config.json also says what the pipeline needs to know, code and graph."""
    model.save_pretrained(place)
    rows = condition_inputs(model.conditioner, 1)
    about = {
        name: [0 if name == LABELS else float(value.flatten()[0]), *value.shape[1:]] for name, value in rows.items()
    }
    own = {
        "_class_name": "FlowMap",
        "shape": list(model.shape),
        "conditions": about,
        "num_classes": model.num_classes,
        "class_names": model.class_names or None,
        "sigma_min": model.sigma_min,
        "sigma_max": model.sigma_max,
        "rho": _RHO,
    }
    _write(place / "flow_map.json", own)
    shutil.copy(SHIPPED / "flow_map.py", place / "flow_map.py")
    sample = torch.randn(2, *model.shape)
    times = torch.tensor([900.0, 500.0]), torch.tensor([300.0, 500.0])
    inputs = (sample, *times, *condition_inputs(model.conditioner, 2).values())
    with torch.no_grad():
        program = torch.export.export(_Graph(model), inputs, dynamic_shapes=free_batch(inputs))
    torch.export.save(program, place / "flow_map.pt2")


def _write_scheduler(model: TrajectoryModel, place: Path) -> None:
    place.mkdir()
    shutil.copy(SHIPPED / "scheduler.py", place / "scheduler.py")
    settings: dict[str, Any] = {
        "_class_name": "CTMScheduler",
        "_diffusers_version": version("diffusers"),
        "num_train_timesteps": int(TIME_SCALE),
        "sigma_min": model.sigma_min,
        "sigma_max": model.sigma_max,
        "rho": _RHO,
        "gamma": 0.0,
        "grids": grids_as_json(model.grids) or None,
    }
    _write(place / "scheduler_config.json", settings)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
