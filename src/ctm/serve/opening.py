"""What a service is opened from: plain values, so that another process can open the same one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ctm.models import load_model
from ctm.safety import State
from ctm.safety.shipped import filters_for
from ctm.serve.limits import Counts
from ctm.serve.service import Service, Settings, model_names
from ctm.serve.signing import Signing
from ctm.teachers.pipelines import check_pictures
from ctm.version import __version__

__all__ = ["Opening"]


@dataclass(frozen=True)
class Opening:
    """models: directories or hub ids; state: the directory of the state; policy: another file than the state's; device: of torch;
    hosts: names under which the service answers, None for any."""

    models: tuple[str, ...]
    state: Path
    policy: Path | None
    device: str
    settings: Settings
    hosts: tuple[str, ...] | None = None

    def service(self, counts: Counts | None = None) -> Service:
        """The service, with its models loaded and its state open, and the record told that it begins. counts: where images are
        counted, see `ctm.serve.limits.Gate`."""
        device = torch.device(self.device)
        models = {
            name: load_model(place).to(device)
            for name, place in zip(model_names(self.models), self.models, strict=True)
        }
        for name, model in models.items():
            check_pictures(model, name, "ctm serve")
        state = State.open(self.state, self.policy)
        sign = Signing.load_or_create(state.folder / "keys")
        filters = filters_for(state.policy, state.folder)
        service = Service(models, state, filters=filters, sign=sign, settings=self.settings, counts=counts)
        about = {"version": __version__, "models": {one.name: one.digest for one in service.models.values()}}
        about |= {"policy": state.policy.digest, "filters": {one.name: one.checksum for one in service.screen.filters}}
        state.store.note("service began", about)
        return service
