"""From nothing to the table and the film: python -m examples.robotics.run   (docs/robotics.md says what it shows)"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "disable")  # nothing is drawn by the simulator

import numpy as np
import torch
from examples.robotics.demonstrations import write_demonstrations
from examples.robotics.evaluate import Row, measured, policies, table
from examples.robotics.film import film
from examples.robotics.maze import run_episodes
from examples.robotics.policies import Generated

import ctm
from ctm.cli import main as ctm_command

HERE = Path(__file__).parent


def train(recipe: str, out: Path, *options: str) -> None:
    """`ctm train` with a recipe of this directory. A finished run is kept, an unfinished one goes on."""
    code = ctm_command(["train", "--config", str(HERE / recipe), "--out", str(out), *options])
    if code:
        sys.exit(code)


def main(arguments: list[str] | None = None) -> list[Row]:
    """Everything, from the command's arguments to the rows of the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/maze"))
    parser.add_argument("--demonstrations", type=int, default=2000)
    parser.add_argument("--episodes", type=int, default=2000, help="on which each policy is measured")
    parser.add_argument("--tuning", type=int, default=128, help="sequences on which a grid of levels is tuned")
    parser.add_argument("--teacher_steps", type=int, default=None, help="of its training; default: the recipe's")
    parser.add_argument("--ctm_steps", type=int, default=None, help="likewise")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the networks are small: a second thread costs more than it gives
    out, data, began = chosen.out, chosen.out / "demonstrations.npz", time.perf_counter()
    if not data.is_file():
        shown = write_demonstrations(data, chosen.demonstrations)
        print(f"{len(shown.success)} demonstrations, {100 * (shown.way > 0).mean():.0f} % above")
    of_teacher, of_ctm = ([] if n is None else ["--steps", str(n)] for n in (chosen.teacher_steps, chosen.ctm_steps))
    train("teacher.yaml", out / "teacher", "--data.name", str(data), *of_teacher)
    train("ctm.yaml", out / "ctm", "--data.name", str(data), "--teacher", str(out / "teacher"), *of_ctm)
    teacher, student = ctm.load_teacher(out / "teacher"), ctm.load_model(out / "ctm")
    rows = measured(policies(teacher, student, data, tuning=chosen.tuning), chosen.episodes)
    (out / "table.md").write_text(table(rows) + "\n")
    film(run_episodes(Generated(student, jumps=1), np.arange(16)), out / "maze.gif")
    print(f"{table(rows)}\n\n{time.perf_counter() - began:.0f} s; {out}/table.md and {out}/maze.gif are written")
    return rows


if __name__ == "__main__":
    main()
