"""A CTM for other programs: a diffusers pipeline, an ONNX graph, a graph of torch.export."""

from ctm.export.diffusers_directory import export_diffusers
from ctm.export.flow_map import MeanVelocity
from ctm.export.graphs import JumpGraph, export_onnx, export_torch

__all__ = ["JumpGraph", "MeanVelocity", "export_diffusers", "export_onnx", "export_torch"]
