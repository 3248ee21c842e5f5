"""What a run is made from: digests of its data, its teacher and the student it started from, kept in made_of.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ctm.data import Dataset
from ctm.data.digest import digest_of
from ctm.foreign.text import JSONObject, read_json
from ctm.models import AnyModel
from ctm.networks.description import describe

__all__ = ["MADE_OF", "Origin", "compare_origins", "model_digest", "origin_of", "read_origin"]

MADE_OF = "made_of.json"
_WORDS = {"data": "data", "teacher": "teacher", "teacher_guide": "teacher's guide", "student": "starting student"}


@dataclass(frozen=True)
class Origin:
    """By the name of each source (data, teacher, student): its digest, what the digest is of, and what else a person wants to
    know of it."""

    sources: dict[str, JSONObject] = field(default_factory=dict)

    def text(self) -> str:
        return json.dumps(self.sources, indent=2, ensure_ascii=False) + "\n"


def origin_of(images: Dataset, models: Mapping[str, tuple[str, AnyModel]]) -> Origin:
    """The origin of a run on these images. models: under teacher, teacher_guide and student, the name it was given by
    and the model."""
    digest = digest_of(images)
    data: JSONObject = {"name": images.name, "source": images.source, "images": len(images)}
    data |= {"classes": images.num_classes, "digest": digest.value, "of": digest.of}
    sources = {"data": data}
    for kind, (name, model) in models.items():
        sources[kind] = {"name": name, "digest": model_digest(model), "of": "weights and settings"}
    return Origin(sources)


def model_digest(model: AnyModel) -> str:
    """SHA-256 of a model's kind, settings, network and weights, equal on all machines. Tuned grids do not count: training does
    not use them."""
    settings = {"model": type(model).__name__, **getattr(model, "_settings", dict)()}
    network = getattr(model, "network", None)
    settings["network"] = None if network is None else describe(network)
    scaling = getattr(model, "scaling", None)
    settings |= {} if scaling is None else {"scaling": scaling.as_json()}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(np.ascontiguousarray(raw.numpy()).data)
    return digest.hexdigest()


def read_origin(directory: Path) -> Origin | None:
    """What a run directory says it was made from, None where it is from before that was kept. Raises ValueError naming the file
    where it is damaged."""
    file = directory / MADE_OF
    try:
        sources = read_json(file)
        texts = [about[name] for about in sources.values() for name in ("digest", "of")]
        if "data" in sources and all(isinstance(text, str) for text in texts):
            return Origin(sources)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(
        f"{file} is damaged, so that it cannot be told whether data and teacher are those of this run: restore it, or "
        "remove it to go on without that"
    )


def compare_origins(
    before: Origin | None, now: Origin, place: str, settings: Mapping[str, list[str]] | None = None
) -> tuple[set[str], list[str]]:
    """The sources that are the same, and lines about those that could not be compared.

    place: the run directory, for the sentences. settings: those of each source that differ, in words. Raises ValueError naming
    the sources that changed."""
    if before is None:
        line = f"{place} is from a version that kept no {MADE_OF}: whether data and teacher are those of before is not known"
        return set(), [line]
    equal, changed = set(), []
    absent = sorted(now.sources.keys() - before.sources.keys())
    lines = [f"{place}/{MADE_OF} says nothing of the {_WORDS[kind]}: not compared" for kind in absent]
    for kind in sorted(before.sources.keys() & now.sources.keys()):
        then, here = before.sources[kind], now.sources[kind]
        if then["of"] != here["of"]:
            lines.append(f"the digest of the {_WORDS[kind]} was of {then['of']}, now of {here['of']}: not compared")
        elif then["digest"] == here["digest"]:
            equal.add(kind)
        else:
            how = (settings or {}).get(kind) or [str(here["name"])]
            digests = f"digest {then['digest'][:12]} then, {here['digest'][:12]} now"
            changed.append(f"the {_WORDS[kind]} ({'; '.join([*how, digests])})")
    if changed:
        raise ValueError(
            f"{place} was made from something else than what is there now: changed since is {' and '.join(changed)}. Put back "
            f"what it was made from to go on, or start a new run: another --out, with --student {place} to begin from its weights"
        )
    return equal, lines
