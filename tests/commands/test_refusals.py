"""The user's disk, path, terminal and interrupt: each ends in a sentence and 2, or the signal's own code, whole or not at all."""

import contextlib
import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ctm.cli import main
from ctm.files import mapped_array, whole_directory, whole_file, write_whole
from ctm.terminal.failures import sentence_of
from ctm.terminal.paths import settle_paths

from ..conftest import slow
from ..processes import Command, Forked
from .test_cli import run, sentence

SHIPPED = Path(__file__).parents[2] / "models" / "fashion-mnist-ctm"
COMMAND = [sys.executable, "-m", "ctm"]


def limited(model: str, picture: str, folder: str, shipped: str) -> None:
    """Under a limit on the size of files each command that writes; prints what came of it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))
    outs = {
        "png": ["sample", model, "--num", "9"],
        "npz": ["sample", model, "--num", "64"],
        "directory": ["sample", model, "--num", "9", "--labels", "0-8"],
        "edit.png": ["edit", "stroke", model, picture, "--num", "2", "--sigma", "5"],
        "edits": ["edit", "stroke", model, picture, "--num", "2", "--sigma", "9"],
        "tuned": ["tune", model, "--steps", "2", "--num", "2"],
        "model.pt": ["convert", shipped],
    }
    answers = {}
    for name, arguments in outs.items():
        out = os.path.join(folder, {"png": "a.PNG", "npz": "a.npz"}.get(name, name))
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = main([*arguments, *([out] if arguments[0] == "convert" else ["--out", out])])
        answers[name] = [code, said.getvalue(), sorted(os.listdir(folder))]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(json.dumps(answers))


@pytest.fixture
def model(small_ctm, tmp_path) -> Path:
    small_ctm.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_case_16_a_limit_that_every_writing_command_meets(model, tmp_path):
    """A real one, of the kernel: no file above 600 bytes. No half a file is left under a name."""
    Image.new("L", (8, 8)).save(tmp_path / "picture.png")
    folder = tmp_path / "out"
    folder.mkdir()
    arguments = [str(model), str(tmp_path / "picture.png"), str(folder), str(SHIPPED)]
    process = Forked(limited, *arguments)
    printed, said = process.communicate(120)
    assert process.returncode == 0, said
    answers = json.loads(printed)
    for name, (code, said, _) in answers.items():
        if code == 0:
            continue  # small enough, or nothing was written
        assert code == 2, (name, said)
        assert said.startswith(f"ctm: {folder}"), (name, said)
        assert "File too large: the limit on a file's size" in said or "writing failed" in said, (name, said)
        assert len(said.strip().splitlines()) == 1, (name, said)
    codes = {name: answer[0] for name, answer in answers.items()}
    assert {"png", "npz", "edit.png", "model.pt"} <= {name for name, code in codes.items() if code == 2}
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert not {name for name in left if name.endswith((".writing", ".pt"))}
    assert all(Image.open(folder / name).size == (8, 8) for name in left if name.endswith("png"))


@pytest.mark.parametrize("out", ["/proc/x.png", "/proc/x", "/proc/x.npz", "/proc/x/y/z.png"])
def test_case_16_a_place_that_takes_no_files(capsys, model, out):
    err = sentence(capsys, "sample", model, "--num", 1, "--out", out)
    assert err.startswith("ctm: /proc")
    assert "(os error" not in err


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("a-file/x.png", "a-file is a file, not a directory"),
        ("a-file/x.npz", "a-file is a file, not a directory"),
        ("a-file/x", "a-file is a file, not a directory"),
        ("x" * 300 + ".png", "File name too long: give a shorter name"),
        ("x" * 300, "File name too long: give a shorter name"),
    ],
)
def test_case_16_paths_that_cannot_be(capsys, model, tmp_path, out, words):
    (tmp_path / "a-file").write_text("kept")
    assert words in sentence(capsys, "sample", model, "--num", 1, "--out", tmp_path / out)
    assert (tmp_path / "a-file").read_text() == "kept"


def test_the_root_is_no_place_for_samples(capsys, model):
    assert "/ is the root of the file system" in sentence(capsys, "sample", model, "--num", 1, "--out", "/")


def test_case_16_a_long_name_that_may_be_is_taken(capsys, model, tmp_path):
    out = tmp_path / ("x" * 250 + ".png")
    assert run(capsys, "sample", model, "--num", 1, "--out", out)[0] == 0
    assert out.is_file()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO, errno.EMFILE, 9999])
def test_case_16_each_refusal_of_a_disk_is_named(code):
    words = sentence_of(OSError(code, os.strerror(code), "runs/x.png"))
    assert words.startswith(f"runs/x.png: {os.strerror(code)}")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_names_the_batch(error):
    assert "there is not enough memory: give a smaller --batch_size" in sentence_of(error)


def test_memory_really_lacking():
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(10**15)
    assert "not enough memory" in sentence_of(caught.value)
    with pytest.raises(MemoryError) as caught:
        np.zeros(10**15)
    assert "not enough memory" in sentence_of(caught.value)


def test_a_fault_of_ours_stays_one():
    assert sentence_of(ZeroDivisionError("x")) is None
    assert sentence_of(RuntimeError("shapes")) is None
    assert sentence_of(TypeError("x")) is None


def fill(path: Path, write) -> None:
    """Write to /dev/full under the temporary name of `path`: every write fails as on a full disk."""
    with whole_file(path) as temporary:
        temporary.unlink()
        temporary.symlink_to("/dev/full")
        write(temporary)


def test_a_planted_link_under_the_temporary_name_is_not_followed(tmp_path):
    victim, target = tmp_path / "victim", tmp_path / "x"
    victim.write_text("kept")
    (tmp_path / ".x.writing").symlink_to(victim)
    write_whole(target, b"new")
    assert (victim.read_text(), target.read_text(), target.is_symlink()) == ("kept", "new", False)
    victim.with_name("other").touch()
    assert target.stat().st_mode == victim.with_name("other").stat().st_mode


def half(folder: Path) -> None:
    with whole_directory(folder) as made:
        (made / "half").write_text("x")
        raise ZeroDivisionError


def test_a_failed_write_leaves_what_was_there(tmp_path):
    target = tmp_path / "x"
    target.write_text("before")
    for write in (lambda path: torch.save({"a": torch.zeros(9)}, path), lambda path: path.write_bytes(b"x" * 99)):
        with pytest.raises(OSError, match=r"No space left on device|writing failed") as caught:
            fill(target, write)
        assert caught.value.filename == str(target)
    with pytest.raises(ZeroDivisionError):
        half(tmp_path / "folder")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_a_mapped_file_has_its_place_on_the_disk(tmp_path):
    """Reserved, so that writing cannot kill the process; where there is none, it is an OSError and no file is left."""
    array = mapped_array(tmp_path / "x.npy", np.uint8, (1000, 1000))
    assert (tmp_path / "x.npy").stat().st_blocks * 512 >= 1_000_000
    assert not array.any()
    with pytest.raises(OSError, match=r"x\.npy"):
        mapped_array(tmp_path / "no" / "x.npy", np.uint8, (2, 2))


@pytest.mark.parametrize("name", ["x[/]", "x[b]y", "[red]", ":smile:", "x[/bold red]"])
def test_case_17_a_path_is_text(capsys, model, tmp_path, name):
    out = tmp_path / name
    code, printed, err = run(capsys, "sample", model, "--num", 1, "--out", out)
    assert (code, err) == (0, "")
    assert str(out) in printed
    assert (out / "000000.png").is_file()


def test_case_17_text_is_no_markup_on_any_console(capsys):
    from rich.table import Table

    from ctm.console import text_console
    from ctm.progress import JobBar

    text = "[/] [b]Flags[/b] :smile: [red]"
    table = Table("head [/]", title=text)
    table.add_row(text)
    console = text_console(wide=True)
    console.print(table)
    console.print(text)
    with JobBar(text, 3, console=console) as bar:
        bar.advance(3)
        bar.note(text)
    assert capsys.readouterr().out.count(text) == 5


@pytest.mark.parametrize(("name", "kind"), [("x.PNG", "PNG"), ("x.Png", "PNG")])
def test_case_17_an_ending_counts_in_any_case(capsys, model, tmp_path, name, kind):
    assert run(capsys, "sample", model, "--num", 1, "--out", tmp_path / name)[0] == 0
    assert Image.open(tmp_path / name).format == kind
    assert run(capsys, "sample", model, "--num", 2, "--out", tmp_path / "x.NPZ")[0] == 0
    with np.load(tmp_path / "x.NPZ") as stored:
        assert len(stored["arr_0"]) == 2
    edited = run(capsys, "edit", "stroke", model, tmp_path / name, "--sigma", 5, "--out", tmp_path / "edit.PNG")
    assert edited[0] == 0
    assert Image.open(tmp_path / "edit.PNG").format == kind


@pytest.mark.parametrize("empty", ["", " "])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["sample", "M"], "--out"),
        (["sample", "M"], "--labels"),
        (["edit", "vary", "M", "p.png"], "--out"),
        (["evaluate", "M", "--data", "digits"], "--out"),
        (["evaluate", "M", "--data", "digits"], "--teacher"),
        (["evaluate", "M"], "--data"),
        (["tune", "M"], "--out"),
        (["tune", "M"], "--teacher"),
        (["likelihood", "M", "--data", "digits"], "--out"),
        (["bench", "teach"], "--out"),
        (["demo"], "--out"),
        (["train", "--config", "digits-ctm.yaml"], "--out"),
        (["train", "--config", "digits-ctm.yaml"], "--teacher"),
    ],
)
def test_case_17_nothing_is_no_name(capsys, tmp_path, monkeypatch, command, option, empty):
    monkeypatch.chdir(tmp_path)
    err = sentence(capsys, *command, f"{option}={empty}")
    assert f"{option} is empty: give a value, or leave it out" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["sample", ""], ["compare", "", "x"], ["convert", "", "x"], ["convert", "x", ""]]
)
def test_case_17_no_empty_model(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert "is empty: give a value" in sentence(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_case_17_spaces_and_home(monkeypatch, tmp_path):
    from jsonargparse import Namespace

    monkeypatch.setenv("HOME", str(tmp_path))
    inner = Namespace(init_args=Namespace(x=""))
    settings = Namespace(out="~/x.png", model="~/m", labels="~", data=Namespace(name="~/d"), network=inner)
    settle_paths(settings)
    assert (settings.out, settings.model, settings.labels) == (f"{tmp_path}/x.png", f"{tmp_path}/m", "~")
    assert settings.data.name == f"{tmp_path}/d"
    with pytest.raises(ValueError, match=r"--out 'x.png ' begins or ends with a space: leave the space out"):
        settle_paths(Namespace(out="x.png "))
    with pytest.raises(ValueError, match="the home directory of that name is not known"):
        settle_paths(Namespace(out="~nobody-of-this-name/x"))
    with pytest.raises(ValueError, match="holds a zero byte"):
        settle_paths(Namespace(teacher="a\0b"))
    (tmp_path / "here ").mkdir()
    settle_paths(Namespace(data=str(tmp_path / "here ")))


def heed_signals() -> None:
    """Signals as a command in a terminal has them. Tests in the background inherit that SIGINT is ignored, and ctm leaves an
    ignored signal ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def stopped(arguments: list[str], number: int, until: str, delay: float) -> tuple[int, str]:
    """Exit code and stderr of `ctm …` that gets a signal some time after a library is mapped."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_signals,
    )
    give_up = time.monotonic() + 120
    while until not in Path(f"/proc/{process.pid}/maps").read_text() and time.monotonic() < give_up:
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(number)
    return process.wait(timeout=60), process.stderr.read()


@pytest.mark.parametrize(
    ("number", "until", "delay"),
    [
        (signal.SIGINT, "_multiarray_umath", 0),
        slow(signal.SIGINT, "libtorch_python", 0.2),
        slow(signal.SIGTERM, "libtorch_cpu", 0.1),
        slow(signal.SIGHUP, "_multiarray_umath", 0.1),
    ],
)
def test_case_28_a_signal_while_torch_is_imported(number, until, delay):
    code, err = stopped(["sample", "nothing-there"], number, until, delay)
    words = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "the end of its terminal"}[number]
    assert (code, err) == (128 + number, f"ctm: stopped by {words}.\n")


@pytest.mark.slow
def test_a_signal_while_samples_are_made_leaves_whole_files(model, tmp_path):
    out = tmp_path / "out"
    arguments = ["sample", str(model), "--num", "100000", "--batch_size", "16", "--out", str(out)]
    process = Command(arguments, own=True)
    give_up = time.monotonic() + 120
    while not (out / "000050.png").exists() and time.monotonic() < give_up:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(60)[1] == "ctm: stopped by SIGTERM.\n"
    assert process.returncode == 128 + signal.SIGTERM
    names = {path.name for path in out.iterdir()}
    assert not {name for name in names if name.endswith(".writing")}
    assert all(Image.open(out / name).size == (8, 8) for name in names if name.endswith(".png"))


def shell(command: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a line of bash, CTM standing for the command."""
    line = command.replace("CTM", " ".join(COMMAND))
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=os.environ | environment)
    return done.returncode, done.stdout, done.stderr


def test_pipes_and_closed_streams():
    """A reader that goes away, no stdout, no stderr, a full one."""
    code, out, err = shell("set -o pipefail; CTM --help | head -1")
    assert (out.splitlines()[0][:11], err) == ("usage: ctm ", "")
    assert code in (0, 141)
    assert shell("CTM --help >&-") == (0, "", "")
    assert shell("CTM nothing >&- 2>&-") == (2, "", "")
    assert shell("CTM nothing 2>/dev/full") == (2, "", "")


@pytest.mark.slow
def test_a_terminal_of_five_columns_without_greek_letters_or_a_home():
    plain = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "HOME": "", "XDG_CACHE_HOME": "", "TERM": "dumb"}
    code, out, err = shell("CTM sample --help", COLUMNS="5", **plain)
    assert (code, err) == (0, "")
    assert "\\u03b3" in out


def test_a_full_output_is_named(capfd, monkeypatch):
    from ctm.cli import main

    class Full:
        def flush(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def write(self, text):
            return len(text)

        def fileno(self):
            raise ValueError("no file")

        def isatty(self):
            return False

    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["compare", "a", "b"]) == 2
    assert "the output: No space left on device: make room" in capfd.readouterr().err


def test_a_cache_that_cannot_be_written_is_named(monkeypatch):
    monkeypatch.setenv("CTM_CACHE", "/proc/cache")
    with pytest.raises(OSError, match="/proc/cache") as caught:
        write_whole(Path("/proc/cache/x.safetensors"), b"")
    assert "the environment variable CTM_CACHE names the cache" in sentence_of(caught.value)
    monkeypatch.delenv("CTM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    from ctm.data.folder import cache_directory

    with pytest.raises(ValueError, match="there is no home directory to keep a cache in: set CTM_CACHE"):
        cache_directory()


def test_a_name_in_a_sentence_cannot_steer_a_terminal():
    assert sentence_of(ValueError("a\x1b[2J.png is none:\n\tb")) == "a�[2J.png is none:\n        b"
    assert sentence_of(FileNotFoundError(2, "No such file", "a\x1b]0;x\x07")) == "a�]0;x�: No such file: check the name"
