"""The policy of a service: what may be asked for, what may leave, and what is kept how long. A typed YAML file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ctm.foreign.text import plain, read_yaml
from ctm.safety.admission import Ask, KeyInfo, admit
from ctm.safety.mistakes import sentence_about

__all__ = ["DEFAULT_FILE", "Policy", "Rate", "Retention", "Rule", "Threshold"]

DEFAULT_FILE = Path(__file__).with_name("default_policy.yaml")

Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Days = Annotated[float, Field(strict=True, ge=0, le=36_500)]
Score = Annotated[float, Field(strict=True, ge=0, le=1)]
Text = Annotated[str, Field(strict=True, min_length=1, max_length=4096)]
Size = Literal["pass", "hold", "block"]
Uploads = Literal["nobody", "moderators", "keys", "everyone"]


def _entries(value: Any) -> Any:
    """A list of class numbers and names. Raises ValueError for anything else in it."""
    if not isinstance(value, list | tuple):
        raise ValueError("is no list: give one, e.g. [3, Flags]")
    for each in value:
        if (
            isinstance(each, bool)
            or not isinstance(each, int | str)
            or each == ""
            or (isinstance(each, int) and each < 0)
        ):
            raise ValueError(f"has {plain(repr(each))}, which is neither a number from 0 on nor a name")
    return tuple(value)


def _allowed(value: Any) -> Any:
    """None for "all". An empty setting is no decision: it is refused, as it would let everything pass."""
    if value is None:
        raise ValueError("is empty: say all, a list such as [3, Flags], or [] for none")
    return None if value == "all" else _entries(value)


def _days(value: Any) -> Any:
    """A number of days; "forever" is None."""
    return None if value == "forever" else value


Kept = Annotated[Days | None, BeforeValidator(_days)]


class _Part(BaseModel):
    """A part of the policy: frozen, and nothing unknown in it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Rule(_Part):
    """What may be asked for by name or number. allowed: None (in the file: all) or the only ones; blocked: never these."""

    allowed: Annotated[tuple[int | str, ...] | None, BeforeValidator(_allowed)] = None
    blocked: Annotated[tuple[int | str, ...], BeforeValidator(_entries)] = ()

    def allows(self, names: list[Any]) -> bool:
        """Whether one thing, known by these names and numbers, is allowed. Capitals do not count."""
        mine = {_folded(name) for name in names}
        listed = self.allowed is None or any(_folded(each) in mine for each in self.allowed)
        return listed and not any(_folded(each) in mine for each in self.blocked)

    @property
    def is_open(self) -> bool:
        """Whether everything is allowed."""
        return self.allowed is None and not self.blocked


def _folded(name: int | str) -> int | str:
    return name.casefold() if isinstance(name, str) else name


class Threshold(_Part):
    """Scores in [0, 1] from which on a picture is held for a moderator, and from which on it is blocked. None: never; one of both
    is needed, since a filter that decides nothing looks like one that passes everything."""

    hold: Score | None = None
    block: Score | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Threshold:
        if self.hold is None and self.block is None:
            raise ValueError("neither holds nor blocks: give hold or block, or take it out")
        if self.hold is not None and self.block is not None and self.hold > self.block:
            raise ValueError(f"holds from {self.hold:g} on but blocks from {self.block:g} on: block must be the larger")
        return self


class Retention(_Part):
    """Days for which pictures are kept in each state, and reports. 0: a picture's bytes are never stored; None (in the file:
    forever): they are never deleted by age. What the record says of them stays."""

    served: Kept = 30.0
    held: Kept = 90.0
    released: Kept = 90.0
    rejected: Kept = 30.0
    blocked: Kept = 0.0
    reports: Kept = 365.0

    @model_validator(mode="after")
    def _held_long_enough(self) -> Retention:
        if self.held is not None and self.held <= 0:
            raise ValueError(
                "keeps held pictures for 0 days, so that no moderator could see one: give held a longer time"
            )
        return self


class Rate(_Part):
    """Images that one key may ask for."""

    per_minute: Count = 60
    per_day: Count = 5000


class Rates(_Part):
    """Limits by kind of key. anonymous: of everyone without a key together, where a service runs without keys."""

    user: Rate = Rate()
    moderator: Rate = Rate(per_minute=600, per_day=100_000)
    anonymous: Rate = Rate(per_minute=600, per_day=100_000)


def _some(thresholds: dict[str, dict[str, Threshold]]) -> dict[str, dict[str, Threshold]]:
    for name, categories in thresholds.items():
        if not categories:
            raise ValueError(f"has no category of {plain(name)}, so it would decide nothing: give one, or take it out")
    return thresholds


def _shipped() -> dict[str, dict[str, Threshold]]:
    return {"open_nsfw": {"nsfw": Threshold(hold=0.2, block=0.8)}}


class Policy(_Part):
    """What a service allows. docs/responsible-use.md describes each setting; `default_policy.yaml` holds the defaults."""

    classes: Rule = Rule()
    conditions: Rule = Rule()
    max_images: Count = 64
    uploads: Uploads = "everyone"
    thresholds: Annotated[dict[Text, dict[Text, Threshold]], AfterValidator(_some)] = Field(default_factory=_shipped)
    block_list: Text | None = None
    small_images: Size = "pass"
    filter_deadline: Annotated[float, Field(strict=True, gt=0, le=600)] = 10.0
    retention: Retention = Retention()
    rates: Rates = Rates()
    head: Text | None = "head.json"

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """The policy in a YAML file; what it leaves out has its default. Raises ValueError with a sentence that names the file
        and the setting, OSError for a file that cannot be read."""
        values = read_yaml(Path(path))
        return cls.of({} if values is None else values, str(path))

    @classmethod
    def of(cls, values: Any, name: str = "the policy") -> Policy:
        """The policy with these values, e.g. {"max_images": 4}. Raises ValueError, which begins with `name`."""
        if not isinstance(values, dict):
            raise ValueError(f"{name} is no policy: it must be a list of settings such as max_images: 16")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError(f"{name}: {sentence_about(error, cls)}") from None

    def admit(self, ask: Ask) -> None:
        """Return if the policy allows the request. Raises `Refused`."""
        admit(self, ask)

    def rate_of(self, key: KeyInfo | None) -> Rate:
        """The limits of a key: its own, else those of its role; of everyone together without one."""
        if key is None:
            return self.rates.anonymous
        return key.rate or (self.rates.moderator if key.role == "moderator" else self.rates.user)

    @property
    def digest(self) -> str:
        """SHA-256 of the settings, as the record names a policy."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()
