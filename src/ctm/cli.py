"""The command `ctm`. Exit codes: 0 for success; 2 for a user's mistake, or a disk, path or device that refuses, with one
sentence; 1 for a fault of ctm; 130 for Ctrl-C, 143 for SIGTERM, 129 for a closed terminal, 141 for a pipe that nobody reads.

Before `main` guards it, only modules are imported that Python has when it starts: typing and signal take milliseconds, in
which Ctrl-C shows Python's own words. Importing torch takes seconds, and Ctrl-C must work in that time too."""

import _signal as signal  # type: ignore[import-not-found]
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType
    from typing import Any

    from jsonargparse import ArgumentParser

__all__ = ["main"]

_COMMANDS = {
    "demo": "The main job on real digits, end to end: teacher, CTM, and a report with pictures.",
    "distill": "Make a teacher fast: choose how, train a student of one to four steps, measure it.",
    "train": "Train a diffusion teacher or a CTM by a recipe.",
    "latents": "Encode pictures once into the latents of an autoencoder, to be trained on.",
    "recipes": "List the recipes that come with the package, or show one.",
    "sample": "Draw samples from a model into PNG files, one picture or an .npz.",
    "edit": "Edit pictures: inpaint, superresolve, colourise, stroke, denoise, interpolate, vary.",
    "evaluate": "Measure samples of a model at several numbers of steps against data and a teacher; write a report.",
    "tune": "Choose the noise levels of few jumps for a model, and keep them in its config.json.",
    "compare": "Compare the results of several evaluations, with significance.",
    "bench": "Measure: kinds of training against each other, ours against plain references.",
    "likelihood": "Bits per dimension of a data set under a model.",
    "serve": "Serve models over HTTP: OpenAI's images interface, with a policy, a filter, provenance and a record.",
    "moderate": "Decide about pictures that a service holds, check its record, manage its keys and its policy.",
    "verify": "Say where a picture came from: its signed manifest, its text, its watermark.",
    "check-network": "Check a network of your own before a run is spent on it.",
    "export": "Write a CTM for other programs: a diffusers pipeline, an ONNX graph, a graph of torch.export.",
    "merge": "Make a whole model of a teacher and the adapters that were trained on it.",
    "convert": "Turn an EDM or official checkpoint into a model directory, or a model directory into an official .pt.",
}
_GOES_ON = ("distill", "train", "demo", "evaluate", "latents")
_STOPPED = {  # Windows has no SIGHUP
    getattr(signal, name): words
    for name, words in (("SIGINT", "Ctrl-C"), ("SIGTERM", "SIGTERM"), ("SIGHUP", "the end of its terminal"))
    if hasattr(signal, name)
}


class _Stopped(SystemExit):
    """SIGTERM or SIGHUP came. Open files are closed, and what has begun is kept or removed as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def main(arguments: "Sequence[str] | None" = None) -> int:
    """The exit code of one command. Mistakes in the arguments exit with 2.

    arguments: None takes the arguments of the process, and prepares the process for what a terminal can do to it."""
    if arguments is not None:
        return _main(list(arguments))
    _stop_at_once()  # until everything is imported
    _prepare_streams()
    return _main(sys.argv[1:], own_process=True)


def _main(arguments: list[str], own_process: bool = False) -> int:
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    chosen = None
    try:
        try:
            from ctm.foreign.allowed import allowed_modules, take_allowed

            arguments = take_allowed(arguments)  # a module may have a command's name
            chosen = next((argument for argument in arguments if argument in _COMMANDS), None)
            if chosen is not None and not {"-h", "--help"} & set(arguments):
                allowed_modules()  # says so here if CTM_ALLOW is no list of names
            _run(arguments, chosen, own_process)
        except SystemExit as stop:
            words = None if isinstance(stop, _Stopped) else _words_of_end(stop)
            if words is None:
                raise
            raise ValueError(words) from stop
        finally:
            _flush()
    except (KeyboardInterrupt, _Stopped) as stop:
        number = stop.number if isinstance(stop, _Stopped) else int(signal.SIGINT)
        _say(_words_of_stop(number, chosen))
        return 128 + number
    except BrokenPipeError:
        _discard(sys.stdout)
        return 128 + int(signal.SIGPIPE)
    except Exception as error:
        from ctm.terminal.failures import sentence_of, whose_fault

        words = sentence_of(error)
        if debug:
            raise
        if words is None:
            _say(f"ctm: {type(error).__name__}: {error}\n{whose_fault(error)}")
            return 1
        _say(f"ctm: {words}")
        return 2
    return 0


def _run(arguments: list[str], chosen: str | None, own_process: bool) -> None:
    if chosen is not None and hasattr(_command(chosen), "arrange"):
        arguments = _command(chosen).arrange(arguments)
    settings = _parser(chosen).parse_args(arguments)
    from ctm.terminal.paths import settle_paths

    settle_paths(settings[settings.command])
    run = _command(settings.command).run
    if own_process:
        _stop_in_order()
    run(settings[settings.command])


def _command(name: str) -> "Any":
    """The module of a command. Only the command that runs is imported: training needs much that sampling does not."""
    import importlib

    return importlib.import_module(f"ctm.commands.{name.replace('-', '_')}")


def _parser(chosen: str | None) -> "ArgumentParser":
    from ctm.terminal.parser import Parser
    from ctm.version import __version__

    parser = Parser(prog="ctm", description="Consistency Trajectory Models: train, distil and sample.")
    parser.add_argument("--version", action="version", version=f"ctm-torch {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument(
        "--allow",
        metavar="MODULE",
        help="let config.json and recipes name classes of this module of yours, and import it (or CTM_ALLOW=MODULE,MODULE)",
    )
    commands = parser.add_subcommands(required=True, dest="command")
    for name, words in _COMMANDS.items():
        own = _command(name).parser() if name == chosen else Parser()
        commands.add_subcommand(name, own, help=words)
        if name == chosen and hasattr(_command(name), "add_subcommands"):
            _command(name).add_subcommands(own)
    return parser


def _words_of_end(stop: SystemExit) -> "str | None":
    """The sentence where the user's own module ended the command, at its import or later; None where the command ended itself."""
    from ctm.foreign.allowed import allowed_modules

    try:
        if not allowed_modules():
            return None
    except ValueError:  # CTM_ALLOW is no list of names; a help does not ask for one
        return None
    from ctm.terminal.failures import ended_by

    return ended_by(stop)


def _words_of_stop(number: int, chosen: str | None) -> str:
    more = " The same command goes on from here." if chosen in _GOES_ON else ""
    return f"ctm: stopped by {_STOPPED[number]}.{more}"


def _stop_at_once() -> None:
    """While modules are imported, signals end the process with one line. Nothing is open yet, and an exception inside a C
    extension's initialisation would appear as another error, or as none. A signal that is ignored stays ignored."""

    def stop(number: int, frame: "FrameType | None") -> None:
        _say(_words_of_stop(number, None))
        os._exit(128 + number)

    _handle(stop)


def _stop_in_order() -> None:
    """From now on signals raise exceptions, so a command can keep or tidy up what it has begun."""

    def stop(number: int, frame: "FrameType | None") -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise _Stopped(number)

    _handle(stop)


def _handle(handler: "Any") -> None:
    for number in _STOPPED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _prepare_streams() -> None:
    """Replace a closed stdout or stderr by one that drops what is printed. A stream that cannot show σ shows its escape."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="backslashreplace")


def _say(words: str) -> None:
    """Print one message on stderr. If stderr is closed too, only the exit code is left."""
    try:
        print(words, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _discard(sys.stderr)


def _flush() -> None:
    """Flush stdout now, while a full disk or a closed pipe can still be told from a fault."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        raise OSError(error.errno, error.strerror, "the output") from None


def _discard(stream: "Any") -> None:
    """Point a stream that cannot be written to at nothing. Else the interpreter would write to it again when it ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):
        return
