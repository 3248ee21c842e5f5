"""The flow map of a Consistency Trajectory Model (arXiv 2310.02279), as a component of a diffusers pipeline.

Where ctm-torch is installed, the model itself computes; else the graph beside this file, which needs torch alone. Both give
u(z, τ, r) = (z_τ − z_r)/(τ − r) with z = x/(1 + σ) and τ = σ/(1 + σ).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

try:
    import ctm.export as _ctm
    from ctm.models import load_model as _load_model
except ImportError:
    _ctm = None


class FlowMap(ModelMixin, ConfigMixin):
    """forward(sample, timestep, r_timestep, *condition) -> mean velocity like sample.

    sample (B, *shape), timestep = 1000·τ and r_timestep = 1000·r ≤ timestep (B,). condition: as `conditions` of the config names
    them, in that order: labels int64 (B,) with −1 for none; each field (B, …) float and its NAME_present bool (B,)."""

    config_name = "flow_map.json"  # config.json is the model's own

    @register_to_config
    def __init__(
        self,
        shape: list[int],
        conditions: dict[str, list[Any]],
        num_classes: int = 0,
        class_names: list[str] | None = None,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
    ) -> None:
        super().__init__()
        self.body: torch.nn.Module = torch.nn.Identity()
        self.register_parameter("place", torch.nn.Parameter(torch.zeros(()), requires_grad=False))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **options: Any) -> FlowMap:
        folder = Path(pretrained_model_name_or_path)
        subfolder = options.get("subfolder")
        folder = folder / subfolder if subfolder else folder
        config = json.loads((folder / cls.config_name).read_text(encoding="utf-8"))
        found = cls(**{name: value for name, value in config.items() if not name.startswith("_")})
        if _ctm is not None:
            found.body = _ctm.MeanVelocity(_load_model(folder))
        else:
            found.body = torch.export.load(folder / "flow_map.pt2").module()
        dtype = options.get("torch_dtype")
        return found.to(dtype) if isinstance(dtype, torch.dtype) else found

    def train(self, mode: bool = True) -> FlowMap:
        self.training = mode  # a graph has one mode, and a model for sampling too
        return self

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, r_timestep: torch.Tensor, *condition: torch.Tensor
    ) -> torch.Tensor:
        timestep, r_timestep = (level.expand(len(sample)).to(sample.device) for level in (timestep, r_timestep))
        if _ctm is not None:
            named = dict(zip(self.config.conditions, condition, strict=True))
            given: Any = named.get("labels") if set(named) <= {"labels"} else named
            return self.body(sample, timestep, r_timestep, given)
        return self.body(sample, timestep.float(), r_timestep.float(), *condition)
