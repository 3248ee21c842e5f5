"""A CTM for other programs: a diffusers pipeline, an ONNX graph, a graph of torch.export."""

from ctm.export.diffusers_directory import SHIPPED, export_diffusers
from ctm.export.flow_map import MeanVelocity
from ctm.export.graphs import JumpGraph, condition_inputs, export_onnx, export_torch
from ctm.export.hub import hub_card, write_hub_folder

__all__ = [
    "SHIPPED",
    "JumpGraph",
    "MeanVelocity",
    "condition_inputs",
    "export_diffusers",
    "export_onnx",
    "export_torch",
    "hub_card",
    "write_hub_folder",
]
