"""Commands in processes of their own, without two seconds of imports each: they are forked from one that has imported torch and
ctm. They have a pid, an exit code, their own environment and their own output, and can be sent signals or killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

FORK = multiprocessing.get_context("forkserver")  # the only one: its list of modules is one for the whole process
_PRELOADED = [
    "ctm.cli",
    "ctm.commands.train",
    "ctm.commands.sample",
    "ctm.commands.serve",
    "ctm.serve.running",
    "ctm.safety.state",
    "torch._dynamo",
]
FORK.set_forkserver_preload(_PRELOADED)


class Forked:
    """A function of a test's module in the background, with the words of subprocess.Popen."""

    def __init__(self, function: Callable[..., object], *arguments: object, **environment: str) -> None:
        self.output = Path(tempfile.mkdtemp(prefix="command-"))
        about = (function, arguments, {**os.environ, **environment}, os.getcwd(), self.output)
        self._process = FORK.Process(target=_enter, args=about, daemon=True)  # ended with the tests, if still there
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, −n for signal n. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("ctm", timeout or 0.0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed and what it said on stderr, once it has ended."""
        self.wait(timeout)
        return tuple((self.output / name).read_text() for name in ("out", "err"))

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Command(Forked):
    """`ctm ARGUMENTS` in the background. own: with ctm's own handling of signals."""

    def __init__(self, arguments: list[str], *, own: bool = False, **environment: str) -> None:
        self.arguments = arguments
        super().__init__(_command, arguments, own, **environment)


class Group:
    """`ctm ARGUMENTS` in several processes that know of each other by the environment that torchrun gives them, with the words
    of one: it has ended when all have, its output is theirs in order, and the exit code is the first that is not 0."""

    def __init__(self, arguments: list[str], count: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        about = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        common = {name: str(value) for name, value in about.items()}
        self.members = [Command(arguments, **common, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        codes = [member.poll() for member in self.members]
        return None if None in codes else next((code for code in codes if code), 0)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        printed = [member.communicate(timeout) for member in self.members]
        return "".join(out for out, _ in printed), "".join(err for _, err in printed)

    def kill(self) -> None:
        for member in self.members:
            member.kill()


def _enter(
    function: Callable[..., object],
    arguments: tuple[object, ...],
    environment: dict[str, str],
    directory: str,
    output: Path,
) -> None:
    """In the new process."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    function(*arguments)


def _command(arguments: list[str], own: bool) -> None:
    from ctm.cli import main

    sys.argv = ["ctm", *arguments]
    sys.exit(main(None if own else arguments))
