"""Bits per dimension of the reference's images under a model."""

from __future__ import annotations

import numpy as np
import torch

from ctm.conditioner import Conditioner
from ctm.data.conditions import fields_for
from ctm.evaluation.conditions import FileFields, with_labels
from ctm.evaluation.number import Number, mean_with_error
from ctm.evaluation.run import Judge, shared_with
from ctm.likelihood import bits_per_dim
from ctm.models.protocol import Denoiser
from ctm.progress import Progress, silent
from ctm.sampling.generation import copy_on

__all__ = ["likelihood_number"]


def likelihood_number(
    judge: Judge, model: Denoiser, count: int, seed: int = 0, batch_size: int = 50, progress: Progress = silent
) -> Number:
    """Bits per dimension of `count` reference images, drawn at random, under the model, with their own classes and fields. Raises
    ValueError if the reference holds no images, or the samples' fields come from a file."""
    data = judge.reference.source
    if data is None:
        raise ValueError("--likelihood needs the data's images, and --data is a file of statistics")
    if isinstance(judge.fields, FileFields):
        raise ValueError(
            "--likelihood is of the data's images under their own fields: it does not go with --condition FILE"
        )
    found, model = [], copy_on(model, judge.processes.device)
    held = data.images.fields if judge.fields == "data" else {}
    fields, _ = fields_for(getattr(model, "conditioner", None) or Conditioner(), held, data=data.images.name)
    shared = shared_with(judge, model, "the model", quiet=True)
    for start in progress(range(0, min(count, data.count), batch_size), "bits per dimension"):
        numbers = data.numbers[start : min(start + batch_size, count)]
        pixels = torch.from_numpy(np.ascontiguousarray(data.images.pixels[numbers])).permute(0, 3, 1, 2)
        labels = None
        if data.images.labels is not None and shared is not None:
            labels = shared.of_model(torch.from_numpy(data.images.labels[numbers].astype(np.int64)))
        condition = with_labels({name: values[numbers] for name, values in fields.items()}, labels)
        found.append(bits_per_dim(model, pixels, condition, seed=seed + start).cpu())
    return mean_with_error(torch.cat(found))
