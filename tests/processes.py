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
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = [
    "ctm.cli",
    "ctm.commands.train",
    "ctm.commands.sample",
    "ctm.commands.serve",
    "ctm.serve.running",
    "torch._dynamo",
]
_CONTEXT.set_forkserver_preload(_PRELOADED)


class Command:
    """`ctm ARGUMENTS` in the background, with the words of subprocess.Popen. own: with ctm's own handling of signals."""

    def __init__(self, arguments: list[str], *, own: bool = False, **environment: str) -> None:
        self.output = Path(tempfile.mkdtemp(prefix="command-"))
        everything = {**os.environ, **environment}
        self.arguments = arguments
        about = (arguments, everything, os.getcwd(), self.output, own)
        self._process = _CONTEXT.Process(target=_run, args=about, daemon=True)  # ended with the tests, if still there
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


def _run(arguments: list[str], environment: dict[str, str], directory: str, output: Path, own: bool) -> None:
    """In the new process."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    from ctm.cli import main

    sys.argv = ["ctm", *arguments]
    sys.exit(main(None if own else arguments))
