"""What is said of an image's making: the fields of its PNG text and of its manifest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

from torch import Tensor

from ctm.arguments import as_count, as_number, as_seed, words_for
from ctm.conditions import Condition

__all__ = ["Claim", "claimed"]

_TEXTS = ("model", "digest", "created", "sampler")
_LONG_FIELD = 4096  # numbers of a field that a claim has in full
_LEFT_OUT = ("record", "sampler", "guidance")  # fields that a claim may lack


@dataclass(frozen=True)
class Claim:
    """How an image was made, enough to make it again with the model and the watermark's key.

    model: name of the model; digest: of its weights; seed, index: the random numbers are those of image `index` under `seed`;
    steps, gamma, grid: jumps, γ in [0, 1], and the steps + 1 noise levels; condition: a label, a mapping of fields as JSON
    has them, or None; nonce: the watermark's, in hexadecimal digits, or None if the image has none; created: a time in ISO
    8601 with its zone; record: id of the image in the service's record, or None; sampler: its name in `ctm.sampling`;
    guidance: the scale of classifier-free guidance, or None. Raises ValueError for values of other kinds."""

    model: str
    digest: str
    seed: int
    index: int
    steps: int
    gamma: float
    grid: tuple[float, ...]
    condition: int | Mapping[str, Any] | None
    nonce: str | None
    created: str
    record: str | None = None
    sampler: str = "gamma"
    guidance: float | None = None

    def __post_init__(self) -> None:
        for name in _TEXTS:
            _check_text(name, getattr(self, name))
        for name in ("nonce", "record"):
            if getattr(self, name) is not None:
                _check_text(name, getattr(self, name))
        as_seed(self.seed), as_count(self.index, "index", 0), as_count(self.steps, "steps")
        as_number(self.gamma, "gamma", 0, 1)
        if self.guidance is not None:
            as_number(self.guidance, "guidance")
        object.__setattr__(self, "grid", tuple(_levels(self.grid, self.steps)))
        if not _is_condition(self.condition):
            raise ValueError(f"a claim's condition is a label, a mapping or None, got {words_for(self.condition)}")
        self.nonce_bytes()
        self.when()

    def nonce_bytes(self) -> bytes | None:
        """The watermark's nonce, None if there is none."""
        try:
            return None if self.nonce is None else bytes.fromhex(self.nonce)
        except ValueError as error:
            raise ValueError(f"a claim's nonce is hexadecimal digits, got {self.nonce[:40]!r}") from error  # type: ignore[index]

    def when(self) -> datetime:
        """The time of making, with its zone."""
        try:
            time = datetime.fromisoformat(self.created.replace("Z", "+00:00"))
        except ValueError as error:
            raise ValueError(f"a claim's time is as in ISO 8601, got {self.created[:40]!r}") from error
        if time.tzinfo is None:
            raise ValueError(f"a claim's time needs its zone, e.g. {self.created}Z, got {self.created}")
        return time

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {**asdict(self), "grid": list(self.grid)}

    def as_text(self) -> dict[str, str]:
        """The fields as texts: a text as it is, anything else as JSON."""
        return {
            name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            for name, value in self.as_dict().items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Claim:
        """The claim in fields that `as_dict` gave; others are left out. Raises ValueError where one is missing or of another
        kind: what stands in a file is a stranger's."""
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in _LEFT_OUT and name not in values]
        if missing:
            raise ValueError(f"the claim lacks {', '.join(missing)}")
        return cls(**{name: values[name] for name in names if name in values})

    @classmethod
    def from_text(cls, texts: Mapping[str, str]) -> Claim:
        """The claim in fields that `as_text` gave. Raises ValueError as `from_dict`."""
        values: dict[str, Any] = {}
        for name, text in texts.items():
            if name in _TEXTS or (name in ("nonce", "record") and text != "null"):  # those two: a text, or null
                values[name] = text
                continue
            try:
                values[name] = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"the claim's {name[:40]} is not readable") from error
        return cls.from_dict(values)


def claimed(condition: Condition, num: int) -> list[Any] | None:
    """The condition of each of num images as a claim has it: a label, or the fields by name; of fields of more than 4,096 numbers
    the digest only. None where there is no condition."""
    if condition is None or isinstance(condition, Tensor):
        return None if condition is None else condition.tolist()
    return [{name: _value(value[index]) for name, value in condition.items()} for index in range(num)]


def _value(value: Tensor) -> Any:
    if value.numel() > _LONG_FIELD:
        return {"sha256": hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()}
    return value.tolist()


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip() or len(value) > 1000:
        raise ValueError(f"a claim's {name} is a text of 1 to 1,000 characters, got {words_for(value)}")


def _levels(grid: Any, steps: int) -> list[float]:
    if not isinstance(grid, list | tuple):
        raise ValueError(f"a claim's grid is its noise levels, got {words_for(grid)}")
    levels = [as_number(level, "a level of the claim's grid", 0) for level in grid]
    if len(levels) != steps + 1:
        raise ValueError(f"a claim's grid has steps + 1 = {steps + 1} levels, got {len(levels)}")
    return levels


def _is_condition(value: Any) -> bool:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return True
    if not isinstance(value, Mapping):
        return False
    try:
        return math.isfinite(len(json.dumps(dict(value), allow_nan=False)))
    except (TypeError, ValueError, RecursionError):
        return False
