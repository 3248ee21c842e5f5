"""Serve models over HTTP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from ctm.console import text_console
from ctm.serve.extra import check_installed
from ctm.terminal.options import add_device_option, usable_device
from ctm.terminal.parser import Parser, command_parser

if TYPE_CHECKING:
    from ctm.serve.opening import Opening
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
    add("--ray", action="store_true", help="serve by processes that Ray Serve starts (extra ray)")
    add("--replicas", type=int, default=1, help="processes of --ray; more than one need a PostgreSQL in CTM_DATABASE")
    add_device_option(result)
    return result


def run(settings: Namespace) -> None:
    """Load the models, open the state, and serve until SIGTERM or Ctrl-C."""
    check_installed("ctm serve --ray" if settings.ray else "ctm serve", ray=settings.ray)
    from ctm.serve.running import address_of, allowed_hosts, bind, check_address
    from ctm.serve.running import run as run_server

    _check_replicas(settings)
    opening, lost = _opening(settings), _lost(Path(settings.state))
    service = opening.service()
    try:
        keys = service.gate.required
        check_address(settings.host, keys)
        bound = bind(settings.host, settings.port)
        _tell(service, settings, opening.device, lost)
        more = [name.strip() for name in (settings.names or "").split(",") if name.strip()]
        hosts, address = allowed_hosts(settings.host, keys, more), address_of(bound)
        if not settings.ray:
            _tell_address(address, settings.host)
            run_server(service, bound, hosts)
            return
    finally:
        service.stop()
    with bound:
        port = bound.getsockname()[1]
    _run_replicas(opening, settings, keys, hosts, port, address)


def _run_replicas(
    opening: Opening, settings: Namespace, keys: bool, hosts: list[str] | None, port: int, address: str
) -> None:
    """Serve with the same state, keys and names from several processes."""
    from ctm.serve.replicas import run_replicas

    own = replace(opening.settings, keys=keys)
    opening = replace(opening, settings=own, hosts=None if hosts is None else tuple(hosts))
    text_console().print(f"replicas: {settings.replicas}, by Ray Serve; limits of keys hold for all of them together")
    run_replicas(opening, settings.replicas, settings.host, port, lambda: _tell_address(address, settings.host))


def _tell_address(address: str, host: str) -> None:
    if host in ("0.0.0.0", "::"):
        text_console().print(f"host: {host}, every address of this machine; the two below are for this machine itself")
    text_console().print(f"page: {address.removesuffix('v1')}page/")
    text_console().print(f"address: {address}")


def _check_replicas(settings: Namespace) -> None:
    """Raises ValueError where the replicas could not share the state."""
    from ctm.safety.state import database_url

    if settings.replicas < 1:
        raise ValueError(f"--replicas must be at least 1, got {settings.replicas}")
    if settings.replicas > 1 and not settings.ray:
        raise ValueError(f"--replicas {settings.replicas} needs --ray, which starts the replicas")
    if settings.replicas > 1 and database_url(Path(settings.state)).startswith("sqlite"):
        raise ValueError(
            f"--replicas {settings.replicas} needs one database for all replicas: name a PostgreSQL in CTM_DATABASE "
            "(postgresql+psycopg://USER:PASSWORD@HOST/NAME)"
        )


def _opening(settings: Namespace) -> Opening:
    """What the service is opened from, with paths that hold in every process."""
    from ctm.serve.opening import Opening
    from ctm.serve.service import Settings

    bounds = {name: settings[name] for name in ("batch_size", "queue", "deadline", "most_steps")}
    own = Settings(**bounds, largest=int(settings.largest * 1e6))
    places = tuple(str(Path(place).absolute()) if Path(place).exists() else place for place in settings.models)
    policy = None if settings.policy is None else Path(settings.policy).absolute()
    return Opening(places, Path(settings.state).absolute(), policy, str(usable_device(settings.device)), own)


def _lost(folder: Path) -> list[str]:
    """Secrets that a state with a database lacks, and that are made anew when it is opened."""
    there = (folder / "keys").is_dir()  # of a new state nothing is lost
    return [name for name in ("api.secret", "watermark.key") if there and not (folder / "keys" / name).exists()]


def _about_filters(service: Service) -> list[str]:
    """A line for each filter, and one for the models whose pictures no filter sees."""
    filters, passes = service.screen.filters, service.policy.small_images == "pass"
    if not filters:
        return ["filter: none; every picture passes unseen"]
    told = []
    for one in filters:
        small = f"; smaller pictures: {service.policy.small_images}" if one.limits.smallest > 1 else ""
        told.append(f"filter: {one.name}, from {one.limits.smallest} pixels on{small}")
    smallest = min(one.limits.smallest for one in filters)
    unseen = [name for name, served in service.models.items() if min(served.model.shape[1:]) < smallest]
    if unseen and passes:
        told.append(
            f"filter: NO filter sees the pictures of {', '.join(unseen)}, which pass unseen because they are smaller "
            "(small_images: pass in the policy; hold or block keeps them back)"
        )
    return told


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
    for line in _about_filters(service):
        say(line)
    say(f"state: {service.state.folder}, database {service.store.database.name}")
