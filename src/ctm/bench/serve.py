"""`ctm bench serve`: a service under load on this machine, time by stage, and its scheduler against `ctm.generate`."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import Namespace
from rich.table import Table

from ctm.bench.results import Results
from ctm.bench.scheduling import measure_scheduler
from ctm.console import text_console
from ctm.models import AnyModel, load_model
from ctm.serve.extra import check_installed
from ctm.terminal.options import add_device_option, usable_device
from ctm.terminal.parser import Parser, command_parser

if TYPE_CHECKING:
    from ctm.serve.service import Service

__all__ = ["measure_http", "parser", "run"]

_STAGES = ("network", "filter", "signing", "database")
_RATES = {"per_minute": 1_000_000, "per_day": 1_000_000}  # the only setting of the policy that is not the default


def parser() -> Parser:
    """The options of the benchmark."""
    result = command_parser(
        "bench serve",
        "Time a service on this machine by stage, with 1, 8 and 64 clients in a process of their own; and its scheduler in "
        "process against ctm.generate. All is as by default: policy, filter, watermark, signature, record; only the limits on "
        "images a minute are lifted.",
        "ctm bench serve models/fashion-mnist-ctm",
    )
    add = result.add_argument
    add("model", type=str, help="model directory, run directory or hub id")
    add("--clients", type=str, default="1,8,64", help="numbers of clients, with commas; 0: the scheduler only")
    add("--seconds", type=float, default=10.0, help="of load for each number of clients")
    add("--num", type=int, default=1, help="images of a request")
    add("--steps", type=int, default=1, help="jumps of a request")
    add("--batch_size", type=int, default=64, help="images in one call of the network")
    add("--rounds", type=int, default=5, help="rounds of the scheduler against ctm.generate")
    add_device_option(result)
    add("--out", type=str, default="runs/bench/serve.json", help="results file")
    add("--continue", action="store_true", help="add to a results file that exists")
    return result


def run(settings: Namespace) -> None:
    """Measure, keep, print."""
    if min(settings.num, settings.steps, settings.batch_size, settings.rounds) < 1 or settings.seconds <= 0:
        raise ValueError("--num, --steps, --batch_size and --rounds must be at least 1, and --seconds more than 0")
    clients = [int(text) for text in settings.clients.split(",") if text.strip().isdecimal() and int(text) > 0]
    if clients:
        check_installed("ctm bench serve with --clients")
    results = Results(Path(settings.out), go_on=settings["continue"])
    model = load_model(settings.model).to(usable_device(settings.device))
    console = text_console(wide=True)
    name = f"{settings.model}/{settings.steps}"
    found = measure_scheduler(model, steps=settings.steps, batch_size=settings.batch_size, rounds=settings.rounds)
    results.add(f"{name}/scheduler", {"model": settings.model, **found})
    console.print(_scheduler_table(settings.model, found))
    if clients:
        body = {"n": settings.num, "steps": settings.steps}
        measured = measure_http(model, clients, settings.seconds, body, settings.batch_size)
        for count, entry in measured.items():
            results.add(f"{name}/http/{settings.num}/{count}", {"model": settings.model, **body, **entry})
        console.print(_http_table(settings.model, measured))
    console.print(f"results: {settings.out}")


def measure_http(
    model: AnyModel, clients: list[int], seconds: float, body: dict[str, Any], batch_size: int
) -> dict[int, dict[str, object]]:
    """For each number of clients: images a second, and milliseconds of requests and of their stages, median and 99th percentile.
    rest: what the stages leave of the mean request, HTTP and JSON on both sides."""
    with tempfile.TemporaryDirectory() as place, _running(model, Path(place), batch_size) as (service, url):
        load_of(url, 1, min(1.0, seconds), body)  # so that nothing is done for the first time
        return {count: _measured(service, url, count, seconds, body) for count in clients}


def load_of(url: str, clients: int, seconds: float, body: Mapping[str, object]) -> dict[str, Any]:
    """What clients in a process of their own meet: see `ctm.bench.load`."""
    command = [sys.executable, "-m", "ctm.bench.load", url, str(clients), str(seconds), json.dumps(body)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 300)
    return json.loads(done.stdout)


def _measured(service: Service, url: str, count: int, seconds: float, body: dict[str, Any]) -> dict[str, object]:
    times: dict[str, list[float]] = {stage: [] for stage in _STAGES}
    service.meters.listener = lambda stage, spent: times[stage].append(spent)
    met = load_of(url, count, seconds, body)
    service.meters.listener = None
    whole = met["answered"]
    if not whole:
        raise ValueError(f"no request was answered in {seconds:g} s (others: {met['others']}): give more --seconds")
    entry: dict[str, Any] = {"clients": count, "requests": len(whole), "others": met["others"]}
    entry["images_per_second"] = len(whole) * body["n"] / met["seconds"]
    entry |= {"request": _percentiles(whole)} | {stage: _percentiles(spent) for stage, spent in times.items()}
    entry["rest_mean_ms"] = 1000 * (statistics.fmean(whole) - sum(statistics.fmean(spent) for spent in times.values()))
    return entry


def _percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    last = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {
        "p50_ms": 1000 * statistics.median(ordered),
        "p99_ms": 1000 * last,
        "mean_ms": 1000 * statistics.fmean(ordered),
    }


@contextmanager
def _running(model: AnyModel, place: Path, batch_size: int) -> Iterator[tuple[Service, str]]:
    """A service with a state of its own, in a thread of this process, and its URL."""
    import uvicorn

    from ctm.safety import State
    from ctm.safety.shipped import filters_for
    from ctm.serve.app import create_app
    from ctm.serve.running import address_of, bind
    from ctm.serve.service import Service, Settings
    from ctm.serve.signing import Signing

    policy = place / "policy.yaml"
    policy.write_text(yaml.safe_dump({"rates": {"anonymous": _RATES}}), encoding="utf-8")
    state = State.open(place / "state", policy)
    options: dict[str, Any] = {"filters": filters_for(state.policy), "settings": Settings(batch_size=batch_size)}
    service = Service({"model": model}, state, sign=Signing.load_or_create(state.folder / "keys"), **options)
    bound = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(service), log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield service, address_of(bound)
    finally:
        server.should_exit = True
        thread.join(60)


def _scheduler_table(name: str, found: dict[str, Any]) -> Table:
    table = Table(
        title=f"{name}, {found['steps']} step(s), images a second in process, batches of {found['batch_size']}"
    )
    for words in ("", "images a second", "to generate in batches", "to one at a time"):
        table.add_column(words, justify="right" if words else "left")
    table.add_row("ctm.generate, batches", f"{found['batch']:.0f}", "1", f"{found['batch'] / found['single']:.1f}")
    table.add_row(
        "ctm.generate, one at a time", f"{found['single']:.0f}", f"{found['single'] / found['batch']:.2f}", "1"
    )
    for key in (key for key in found if key.startswith("scheduler_") and "_to_" not in key):
        ratios = f"{found[f'{key}_to_batch']:.2f}", f"{found[f'{key}_to_single']:.1f}"
        table.add_row(f"scheduler, requests of {key.removeprefix('scheduler_')}", f"{found[key]:.0f}", *ratios)
    return table


def _http_table(name: str, measured: dict[int, dict[str, Any]]) -> Table:
    table = Table(title=f"{name} over HTTP on this machine, milliseconds: median / 99th percentile")
    for words in ("clients", "images a second", "request", *_STAGES, "rest (mean)"):
        table.add_column(words, justify="right")
    for count, entry in measured.items():
        cells = [f"{entry[stage]['p50_ms']:.1f} / {entry[stage]['p99_ms']:.1f}" for stage in ("request", *_STAGES)]
        table.add_row(str(count), f"{entry['images_per_second']:.0f}", *cells, f"{entry['rest_mean_ms']:.1f}")
    return table
