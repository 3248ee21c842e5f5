"""Small training runs, in this process and as real commands that can be killed. Shared by the tests of training."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import train

from ..processes import Command, Group

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = ["--network.init_args", '{"width": 24, "blocks": 1, "embedding": 16}', "--data.batch_size", "16"]
SMALL_TEACHER = [
    "--network.init_args",
    '{"width": 24, "blocks": 1, "embedding": 16, "s_embedding": false}',
    "--data.batch_size",
    "16",
]

Running = Command | Group | subprocess.Popen
EVERY = 10  # steps between checkpoints where runs are broken
OFTEN = ("--checkpoint_every", str(EVERY), "--log_every", str(EVERY), "--sample_every", "1000")


def teacher_arguments(*extra: str) -> list[str]:
    return ["--config", str(RECIPES / "digits-teacher.yaml"), *SMALL_TEACHER, *extra]


def student_arguments(teacher: Path, *extra: str) -> list[str]:
    return ["--config", str(RECIPES / "digits-ctm.yaml"), *SMALL, "--teacher", str(teacher), *extra]


def trained(out: Path, arguments: list[str], **options) -> Path:
    """Train in this process."""
    made, text = parse_recipe(arguments)
    train(made, out, text, **options)
    return out


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model" / "model.safetensors")


def rows(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def checkpoint_steps(directory: Path) -> list[int]:
    return sorted(int(p.name) for p in (directory / "checkpoints").iterdir() if p.name.isdigit())


def everything(directory: Path) -> dict:
    """All that a run's newest checkpoint, model and log hold, except how long it took: equal in two runs with the same bits."""
    checkpoint = directory / "checkpoints" / f"{checkpoint_steps(directory)[-1]:08d}"
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    state = json.loads((checkpoint / "state.json").read_text())
    timeless = ("seconds", "images_per_second", "peak_memory")
    return {
        "checkpoint": {name: about["sha256"] for name, about in files.items() if name != "state.json"},
        "state": {name: value for name, value in state.items() if name != "elapsed_seconds"},
        "model": (directory / "model" / "model.safetensors").read_bytes(),
        "rows": [{k: v for k, v in row.items() if not k.startswith(timeless)} for row in rows(directory)],
    }


def start(arguments: list[str], out: Path, processes: int = 1) -> Command | Group:
    """`ctm train …` in the background, in a process or several."""
    everything = ["train", *arguments, "--out", str(out)]
    return Command(everything) if processes == 1 else Group(everything, processes)


def start_torchrun(arguments: list[str], out: Path) -> subprocess.Popen:
    """`torchrun -m ctm train …` in two processes, in the background."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.Popen(
        [*launch, "-m", "ctm", "train", *arguments, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: Running, code: int = 0) -> tuple[str, str]:
    """stdout and stderr of a command that ends with that exit code."""
    printed, said = process.communicate(timeout=600)
    assert process.returncode == code, (process.returncode, printed, said)
    return printed, said


def wait_for(process: Running, path: Path, pattern: str) -> None:
    """Until a running command has made a file or directory that fits."""
    deadline = time.monotonic() + 600
    while not list(path.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill_at_random(process: Command | Group, out: Path, last: int) -> None:
    """SIGKILL of a command and all its processes, up to 0.1 s after it has begun to train or has written a checkpoint, drawn
    from those up to step `last`: the moment falls into a step, a file or a rename, however fast the machine is."""
    seed = random.SystemRandom().randrange(2**32)
    draw = random.Random(seed)
    step, moment = draw.uniform(0, last), draw.uniform(0, 0.1)
    print(
        f"seed {seed}: killed {moment:.3f} s after a checkpoint of step {step:.1f} or more"
    )  # shown where the test fails
    wait_for(process, out, "metrics.jsonl")
    while max(checkpoint_steps(out), default=0) < int(step) // EVERY * EVERY:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    time.sleep(moment)
    assert process.poll() is None, "the run was over before it was killed: give it more steps"
    process.kill()
    process.communicate(timeout=60)
