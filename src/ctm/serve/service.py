"""A service: its models, each with the thread of its network, its state, and what every picture goes through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ctm.evaluation.extractors import checksum_of
from ctm.foreign.text import plain
from ctm.models import AnyModel
from ctm.safety import Screen, State
from ctm.safety.filters import Filter
from ctm.serve.errors import ApiError
from ctm.serve.limits import Counts, Gate
from ctm.serve.metrics import Meters
from ctm.serve.outbox import Outbox, Sign
from ctm.serve.scheduler import Scheduler

__all__ = ["Served", "Service", "Settings"]

_FUNCTIONS = 8  # threads of functions that call the network back
_SLOW = 1  # threads of what computes for seconds beside the network, so that it holds nothing else up


@dataclass(frozen=True)
class Settings:
    """Bounds of a service. batch_size: rows of a call of the network; queue: images of a model that are taken and not done;
    deadline: seconds for a request in the network; most_steps: of a request; largest: bytes of a request's body; keys: whether
    requests need an API key, None: where any was ever made."""

    batch_size: int = 64
    queue: int = 256
    deadline: float = 60.0
    most_steps: int = 128
    largest: int = 10_000_000
    keys: bool | None = None


@dataclass(frozen=True)
class Served:
    """A model under a name. digest: of its weights."""

    name: str
    model: AnyModel
    digest: str
    scheduler: Scheduler

    @property
    def size(self) -> str:
        """WIDTHxHEIGHT."""
        return f"{self.model.shape[-1]}x{self.model.shape[-2]}"


class Service:
    """What the application answers from. models: by their names; filters: those that can run; sign: see `Outbox`; counts:
    see `Gate`.

    Raises ValueError for a model whose samples are no pictures, and where a filter of the policy is missing."""

    def __init__(
        self,
        models: Mapping[str, AnyModel],
        state: State,
        *,
        filters: Sequence[Filter],
        sign: Sign,
        settings: Settings | None = None,
        counts: Counts | None = None,
    ) -> None:
        self.settings = settings = settings or Settings()
        self.state, self.policy, self.store = state, state.policy, state.store
        self.meters = Meters()
        self.screen = Screen(state.policy, filters, self.meters)
        keys = bool(state.keys.list())  # revoked ones too: the end of the last key does not open a service
        required = keys if settings.keys is None else settings.keys
        self.gate = Gate(state.policy, state.keys, required=required, counts=counts)
        self.outbox = Outbox(state.store, self.screen, sign, self.meters)
        self.threads = ThreadPoolExecutor(_FUNCTIONS, "ctm-function")
        self.slow = ThreadPoolExecutor(_SLOW, "ctm-slow")
        self.watermark = state.watermark_key()
        self.models = {name: self._served(name, model) for name, model in models.items()}
        self.ready = True

    def _served(self, name: str, model: AnyModel) -> Served:
        shape = tuple(model.shape)
        if len(shape) != 3 or shape[0] not in (1, 3) or model.scaling is not None:
            raise ValueError(f"{name} makes samples of shape {shape}: a service needs pictures of 1 or 3 channels")
        settings = self.settings
        observe = partial(self.meters.called, name)
        options: dict[str, Any] = {"batch_size": settings.batch_size, "queue_limit": settings.queue, "observe": observe}
        scheduler = Scheduler(model, **options)
        if not self.meters.shared:
            self.meters.queue.labels(name).set_function(lambda: scheduler.rows)
        return Served(name, model, checksum_of(model), scheduler)

    def model(self, name: str | None) -> Served:
        """The model of that name, the first one for None. Raises ApiError 404."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(
                404, f"there is no model {plain(name)!r} here: there is {known}", "model_not_found", param="model"
            )
        return self.models[name]

    def check(self) -> None:
        """Raises what keeps requests from being answered: ApiError 503 where a network does not take them, OSError where the
        database cannot be read, or a decision and its signed head could not be written."""
        if not self.takes:
            raise ApiError(503, "the service does not take requests: it is stopping", "stopping", retry_after=5)
        self.store.check()

    @property
    def takes(self) -> bool:
        """Whether every network takes requests."""
        return self.ready and all(served.scheduler.takes for served in self.models.values())

    def stop(self) -> None:
        """Take no more requests, finish what runs, and close the state."""
        self.ready = False
        for served in self.models.values():
            served.scheduler.stop()
        self.threads.shutdown()
        self.slow.shutdown()
        self.outbox.stop()
        self.store.close()


def model_names(places: Sequence[str]) -> list[str]:
    """A name for each model: of its directory, or of the run's directory above model/, or of the hub's repository. Raises
    ValueError where two are the same."""
    names = []
    for place in places:
        path = Path(place).resolve() if Path(place).exists() else Path(place)
        name = path.parent.name if path.name == "model" and path.parent.name else path.name
        if not name or name in names:
            raise ValueError(f"{place} has the name {name!r}, as another model here: give its directory another name")
        names.append(name)
    return names
