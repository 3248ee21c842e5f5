"""A model's card, README.md: what the model is, and what a run says it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ctm.models.base import Model

__all__ = ["card", "use_and_limits"]

_WORDS = {
    "TrajectoryModel": "a consistency trajectory model (CTM): it jumps from any noise level to any lower one",
    "ConsistencyModel": "a consistency model: it jumps to the lowest noise level from any other",
    "DiffusionModel": "a diffusion model: it denoises, and is sampled by a solver",
}
_JUMPS = "images = ctm.generate(model, 16)"
_SOLVES = """grid = ctm.karras_grid(18, model.sigma_min, model.sigma_max)
images = ctm.generate(model, 16, sampler=ctm.sampling.heun, grid=grid)"""
_CLASSES = 20  # named in a card; of more the first
_USE = """```python
import ctm

model = ctm.load_model("directory or hub id")
{draw}
```

`ctm sample` draws from it; a CTM in one jump or more, a diffusion model with Heun."""


def card(
    model: Model,
    facts: Mapping[str, str] | None = None,
    *,
    classes: Sequence[str] = (),
    numbers: Mapping[str, float] | None = None,
    license: str | None = None,
) -> str:
    """The whole text of README.md for the hub: a head in YAML, then words.

    facts: what is known of how the model was made, by name. classes: the classes by number. numbers: of an evaluation.
    license: an identifier of the hub's; a card names none where none is given, for a user's model is the user's own."""
    head = ["library_name: ctm-torch", "tags: [ctm-torch, consistency-trajectory-model, diffusion]"]
    if license is not None:
        head.append(f"license: {json.dumps(license)}")
    kind = type(model).__name__
    shape = "×".join(str(side) for side in model.shape)
    fields = _fields(model)
    rows = {"samples": _samples(model, shape)}
    rows["classes"] = str(model.num_classes) if model.num_classes else "none" if fields else "none (unconditional)"
    rows |= {"condition": fields} if fields else {}
    rows["noise levels"] = f"{model.sigma_min:g} to {model.sigma_max:g}, sigma_data {model.sigma_data:g}"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows["parameters"] = f"{parameters:,} ({type(model.network).__name__})"
    rows |= facts or {}
    parts = [
        "---\n" + "\n".join(head) + "\n---",
        f"# {kind}",
        f"This is {_WORDS.get(kind, 'a model')}. It is a model of ctm-torch, Consistency Trajectory Models "
        "([arXiv 2310.02279](https://arxiv.org/abs/2310.02279)). `config.json` names its network, sizes and noise levels; the "
        "weights are `model.safetensors`.",
        _table({"": ""} | rows),
    ]
    if classes:
        named = [f"{number} {_plain(name)}" for number, name in enumerate(classes[:_CLASSES])]
        more = f", … ({len(classes)} in all)" if len(classes) > _CLASSES else ""
        parts += ["## Classes", ", ".join(named) + more]
    if numbers:
        parts += [
            "## Numbers",
            _table({"measure": "value"} | {name: f"{value:.4g}" for name, value in numbers.items()}),
        ]
    use = _USE.format(draw=_SOLVES if kind == "DiffusionModel" else _JUMPS)
    return "\n\n".join([*parts, "## Use", use]) + "\n"


def _samples(model: Model, shape: str) -> str:
    if getattr(model, "scaling", None) is not None:
        return f"{shape} numbers in the units of the data, by the scaling in config.json"
    return f"{shape} numbers in [-1, 1]" if len(model.shape) != 3 else f"images {shape} (C×H×W) in [-1, 1]"


def _fields(model: Model) -> str:
    """The fields of the condition that a user gives, with their shapes; empty without any."""
    given: Mapping[str, Sequence[int]] = getattr(getattr(model, "conditioner", None), "given_fields", {})
    return ", ".join(f"{_plain(name)} ({'×'.join(map(str, shape)) or 'a number'})" for name, shape in given.items())


def use_and_limits(model: Model) -> str:
    """Two sections of a card: what a model of this kind is meant for, and what its samples are not."""
    size = "×".join(str(side) for side in model.shape)
    classes = f", of its {model.num_classes} classes only" if model.num_classes else ""
    use = [
        "## Intended use",
        "Drawing samples that look like the data it was trained on, studying samplers and few-step models, and starting another "
        "training. Who publishes samples says that a machine made them.",
    ]
    limits = [
        "## Limits",
        f"* Samples have the size {size}{classes}. It knows no other.",
        "* It has the gaps and the prejudices of its data, and can repeat single training images.",
        "* Samples are no records of anything: nobody in them need exist, and nothing in them need have happened.",
        "* Nothing in the model refuses a request. A service needs a policy and filters of its own (`ctm serve --policy`).",
        "* Numbers in this card hold for the data and the protocol beside them, and for no others.",
    ]
    return "\n\n".join(use) + "\n\n" + limits[0] + "\n\n" + "\n".join(limits[1:]) + "\n"


def _table(rows: Mapping[str, str]) -> str:
    """The first row is the head."""
    (name, value), *others = rows.items()
    lines = [f"| {name} | {value} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {_plain(name)} | {_plain(value)} |" for name, value in others)])


def _plain(text: str) -> str:
    """On one line, and without what ends a cell of a table or begins other markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
