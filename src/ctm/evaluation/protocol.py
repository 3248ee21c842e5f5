"""What must be equal before two numbers are compared, and where two protocols differ."""

from __future__ import annotations

import os

import torch

from ctm.evaluation.conditions import PAIRED
from ctm.evaluation.extractors import Extractor
from ctm.evaluation.moments import BLOCKS
from ctm.evaluation.neighbours import NEIGHBOURS
from ctm.evaluation.reference import Reference
from ctm.foreign.text import JSONObject
from ctm.version import __version__

__all__ = ["differences", "environment", "protocol"]

_ABSENT = {"condition": PAIRED}  # what an entry means where it is missing: samples without fields compare with these
_VERSION = 1  # of the metrics' definitions: raised when a number would come out otherwise


def protocol(
    extractor: Extractor,
    classifier: str | None,
    reference: Reference,
    *,
    images: int,
    rows: int,
    labels: str,
    condition: str | None = None,
) -> JSONObject:
    """The record of how numbers were made. classifier: its checksum, for Inception score and label accuracy. labels: how the
    samples' classes were chosen. condition: how the fields of their conditions were (`rule_of`), None where there are none."""
    return {
        "metrics": _VERSION,
        "features": extractor.record(),
        "features_precision": "float32",
        "classifier": classifier,
        "reference": reference.record(),
        "images": images,
        "rows": rows,
        "neighbours": NEIGHBOURS,
        "blocks": BLOCKS,
        "pixels": "uint8",
        "labels": labels,
        **({} if condition is None else {"condition": condition}),
    }


def environment(device: torch.device, processes: int) -> dict[str, object]:
    """The version, and the machine it ran on, which should make no difference."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
    return {
        "version": __version__,
        "torch": torch.__version__,
        "device": f"{device.type}, {name}",
        "threads": torch.get_num_threads(),
        "processes": processes,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _flat(record: object, path: str = "") -> dict[str, object]:
    if not isinstance(record, dict):
        return {path: record}
    return {
        key: value for name, inner in record.items() for key, value in _flat(inner, f"{path}.{name}".strip(".")).items()
    }


def differences(a: JSONObject, b: JSONObject, *, ignore: tuple[str, ...] = ("reference.name",)) -> list[str]:
    """Each entry in which two protocols differ, such as 'images: 5000 and 10000'. For a reference the content counts, not
    the name."""
    absent = {name: value for name, value in _ABSENT.items() if name in a or name in b}
    first, second = _flat(absent | a), _flat(absent | b)
    names = sorted((first.keys() | second.keys()) - set(ignore))
    return [
        f"{name}: {first.get(name)} and {second.get(name)}" for name in names if first.get(name) != second.get(name)
    ]
