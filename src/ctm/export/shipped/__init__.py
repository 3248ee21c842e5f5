"""Files that an export puts beside the weights. They import torch, numpy, diffusers or onnxruntime, and nothing of ctm."""
