"""The jump of a CTM as one graph: for torch.export and for ONNX. The number of samples stays free."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from ctm.arguments import inside
from ctm.conditioner import Conditioner
from ctm.conditions import LABELS, PRESENT, Condition
from ctm.files import whole_file
from ctm.models import TrajectoryModel
from ctm.networks.diffusers_parts import free_of_batch_size

__all__ = ["JumpGraph", "condition_inputs", "export_onnx", "export_torch", "free_batch", "from_inputs", "on_cpu"]

_OPSET = 20


class JumpGraph(nn.Module):
    """forward(x, t, s, *inputs of the condition) -> G(x, t, s), without checks, to be traced. The inputs are those of
    `condition_inputs`, in its order."""

    def __init__(self, model: TrajectoryModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, s: Tensor, *inputs: Tensor) -> Tensor:
        with inside():
            return self.model.jump(x, t, s, from_inputs(self.model.conditioner, inputs))


def condition_inputs(conditioner: Conditioner, rows: int) -> dict[str, Tensor]:
    """The inputs of a graph for a condition of `rows` samples, by name, with values that stand for none: labels −1, fields of
    zeros whose NAME_present is False, and the fields that are never absent at the number that stands for them."""
    found: dict[str, Tensor] = {}
    if conditioner.num_classes:
        found[LABELS] = torch.full((rows,), -1, dtype=torch.int64)
    for name, shape in conditioner.fields.items():
        found[name] = torch.full((rows, *shape), conditioner.always.get(name, 0.0))
        if name not in conditioner.always:
            found[name + PRESENT] = torch.zeros(rows, dtype=torch.bool)
    return found


def from_inputs(conditioner: Conditioner, inputs: tuple[Tensor, ...]) -> Condition:
    """The condition that the inputs of a graph stand for."""
    if not inputs:
        return None
    named = dict(zip(condition_inputs(conditioner, 0), inputs, strict=True))
    return named[LABELS] if list(named) == [LABELS] else named


def on_cpu(model: TrajectoryModel) -> TrajectoryModel:
    """A copy of the model on the CPU in eval mode, whose layers do not ask for the number of samples. The caller's stays as it
    is."""
    copied = copy.deepcopy(model).cpu().eval()
    free_of_batch_size(copied.network)
    return copied


def _example(model: TrajectoryModel) -> tuple[tuple[Tensor, ...], list[str]]:
    """Inputs of two samples, whose first dimension stays free, and their names."""
    x = torch.randn(2, *model.shape)
    own = {"x": x, "t": torch.tensor([80.0, 1.0]), "s": torch.tensor([0.5, 0.1])}
    own |= condition_inputs(model.conditioner, 2)
    return tuple(own.values()), list(own)


def free_batch(inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """For each input of a graph, three and those of the condition: its first dimension is the same free number."""
    batch = {0: Dim("batch", min=1, max=1 << 20)}
    conditions = tuple(batch for _ in inputs[3:])
    return (batch, batch, batch, *((conditions,) if conditions else ()))


def _about(model: TrajectoryModel) -> dict[str, Any]:
    """What a program needs to sample from the graph."""
    return {
        "shape": list(model.shape),
        "sigma_min": model.sigma_min,
        "sigma_max": model.sigma_max,
        "num_classes": model.num_classes,
        "class_names": model.class_names,
        "always": dict(model.conditioner.always),
    }


def exported(model: TrajectoryModel) -> torch.export.ExportedProgram:
    """The jump as a program of torch.export."""
    inputs, _ = _example(model)
    with torch.no_grad():
        return torch.export.export(JumpGraph(on_cpu(model)), inputs, dynamic_shapes=free_batch(inputs))


def export_torch(model: TrajectoryModel, out: Path) -> None:
    """Write the jump as a .pt2 file, which torch.export.load reads without ctm. Its call is jump(x, t, s, *inputs of the
    condition)."""
    program = exported(model)
    with whole_file(out) as new, new.open("wb") as file:  # as a file: it warns of a name that does not end in .pt2
        torch.export.save(program, file)


def export_onnx(model: TrajectoryModel, out: Path) -> list[str]:
    """Write the jump as an ONNX graph and return the names of its inputs: x, t, s, then those of the condition. Weights are in
    the file. Raises ModuleNotFoundError, with what to install, without onnx and onnxscript."""
    for name in ("onnx", "onnxscript"):
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f"an ONNX graph is written by {name}, which is not installed: pip install 'ctm-torch[onnx]'", name=name
            )
    inputs, names = _example(model)
    with torch.no_grad(), whole_file(out) as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own parts
        logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(
            logging.ERROR
        )  # torchvision is not here
        program = torch.onnx.export(
            JumpGraph(on_cpu(model)).eval(),
            inputs,
            dynamo=True,
            input_names=names,
            output_names=["jumped"],
            dynamic_shapes=free_batch(inputs),
            opset_version=_OPSET,
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props["ctm"] = json.dumps(_about(model))
        program.save(str(new), external_data=False)
    return names
