"""Serve models over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from ctm import __version__
from ctm.console import text_console
from ctm.models import AnyModel, load_model
from ctm.serve.extra import check_installed
from ctm.terminal.options import add_device_option, usable_device
from ctm.terminal.parser import Parser, command_parser

if TYPE_CHECKING:
    from ctm.serve.service import Service

__all__ = ["parser", "run"]


def parser() -> Parser:
    result = command_parser(
        "serve",
        "Serve models over HTTP by OpenAI's images interface. Each picture goes through the policy and the filter, is marked and "
        "signed, and is in the record before it leaves.",
        "ctm serve models/digits-ctm --port 8000",
    )
    add = result.add_argument
    add(
        "models",
        type=str,
        nargs="+",
        help="model directories, run directories or hub ids; their names are the directories'",
    )
    add("--host", type=str, default="127.0.0.1", help="address; one that other machines reach needs API keys")
    add("--port", type=int, default=8000, help="port; 0 takes a free one")
    add(
        "--state", type=str, default="runs/serve", help="directory of the policy, the keys, the database and the record"
    )
    add("--policy", type=str, default=None, help="another policy file than policy.yaml in the state")
    add(
        "--names",
        type=str,
        default=None,
        help="names under which it answers without keys beside localhost, with commas",
    )
    add("--batch_size", type=int, default=64, help="images in one call of the network")
    add(
        "--queue",
        type=int,
        default=256,
        help="images of a model that wait; more are refused with the time to ask again",
    )
    add("--deadline", type=float, default=60.0, help="seconds that a request may take in the network")
    add("--most_steps", type=int, default=128, help="steps that a request may ask for")
    add("--largest", type=float, default=10.0, help="MB of a request with its pictures")
    add_device_option(result)
    return result


def run(settings: Namespace) -> None:
    """Load the models, open the state, and serve until SIGTERM or Ctrl-C."""
    check_installed("ctm serve")
    from ctm.serve.running import address_of, allowed_hosts, bind, check_address
    from ctm.serve.running import run as run_server
    from ctm.serve.service import model_names

    names = model_names(settings.models)
    device = usable_device(settings.device)
    models = {name: load_model(place).to(device) for name, place in zip(names, settings.models, strict=True)}
    lost = _lost(Path(settings.state))
    service = _service(models, settings)
    try:
        keys = service.gate.required
        check_address(settings.host, keys)
        bound = bind(settings.host, settings.port)
        _tell(service, settings, str(device), lost)
        text_console().print(f"page: {address_of(bound).removesuffix('v1')}page/")
        text_console().print(f"address: {address_of(bound)}")
        more = [name.strip() for name in (settings.names or "").split(",") if name.strip()]
        run_server(service, bound, allowed_hosts(settings.host, keys, more))
    finally:
        service.stop()


def _service(models: dict[str, AnyModel], settings: Namespace) -> Service:
    """The service with its state open, and the record told that it begins."""
    from ctm.safety import State
    from ctm.safety.shipped import filters_for
    from ctm.serve.service import Service, Settings
    from ctm.serve.signing import Signing

    bounds = {name: settings[name] for name in ("batch_size", "queue", "deadline", "most_steps")}
    own = Settings(**bounds, largest=int(settings.largest * 1e6))
    policy = None if settings.policy is None else Path(settings.policy)
    state = State.open(Path(settings.state), policy)
    filters = filters_for(state.policy, state.folder)
    sign = Signing.load_or_create(state.folder / "keys")
    service = Service(models, state, filters=filters, sign=sign, settings=own)
    about = {"version": __version__, "models": {one.name: one.digest for one in service.models.values()}}
    about |= {"policy": state.policy.digest, "filters": {one.name: one.checksum for one in service.screen.filters}}
    state.store.note("service began", about)
    return service


def _lost(folder: Path) -> list[str]:
    """Secrets that a state with a database lacks, and that are made anew when it is opened."""
    there = (folder / "keys").is_dir()  # of a new state nothing is lost
    return [name for name in ("api.secret", "watermark.key") if there and not (folder / "keys" / name).exists()]


def _tell(service: Service, settings: Namespace, device: str, lost: list[str]) -> None:
    """One line for each thing that the service uses. lost: see `_lost`."""
    from ctm.safety.admission import unknown_names

    say = text_console().print
    for (name, served), place in zip(service.models.items(), settings.models, strict=True):
        classes = f"{served.model.num_classes} classes" if served.model.num_classes else "no classes"
        say(f"model {name}: {place}, {served.size}, {classes}, on {device}")
    keys = sum(key.revoked is None for key in service.state.keys.list())
    none = "none; requests need none (ctm moderate keys add makes one)"
    none = "all revoked; no request is answered (ctm moderate keys add makes one)" if service.gate.required else none
    say(f"keys: {f'{keys}; every request needs one' if keys else none}")
    if "api.secret" in lost and service.gate.required:
        say("keys: keys/api.secret was gone and is new, so no key made before fits; put it back from a backup")
    if "watermark.key" in lost and any(service.store.nonces(one.digest) for one in service.models.values()):
        say(
            "watermark: keys/watermark.key was gone and is new, so no earlier mark can be found; put it back from a backup"
        )
    policy = settings.policy or service.state.folder / "policy.yaml"
    say(f"policy: {policy}, at most {service.policy.max_images} images a request")
    models = [served.model for served in service.models.values()]
    known = [name for model in models for name in model.class_names]
    for name in unknown_names(service.policy, known, max(model.num_classes for model in models)):
        say(f"policy: {name!r} is no class of these models, and has no effect")
    for one in service.screen.filters:
        small = f"; smaller pictures: {service.policy.small_images}" if one.limits.smallest > 1 else ""
        say(f"filter: {one.name}, from {one.limits.smallest} pixels on{small}")
    if not service.screen.filters:
        say("filter: none; every picture passes unseen")
    say(f"state: {service.state.folder}, database {service.store.database.name}")
