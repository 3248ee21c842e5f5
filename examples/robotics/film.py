"""A film of the maze: balls that start at the same place and go round by either way."""

from __future__ import annotations

import io
from pathlib import Path

from examples.robotics.maze import COLUMN, RING, ROW, Episodes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from PIL import Image

COLOURS = {1.0: "#0072b2", -1.0: "#d55e00", 0.0: "#777777"}  # above, below, stuck


def film(episodes: Episodes, path: Path, *, every: int = 2, hold: int = 12) -> None:
    """A GIF of all the episodes at once, one frame for `every` actions, at the robot's speed; the last frame stays.

    Blue balls go above the block, orange ones below it. A ring of a ball's colour is its goal."""
    end = int(episodes.length.max())
    frames = [_frame(episodes, step) for step in range(0, end + every, every)]
    palette = frames[-1].quantize(48)
    pictures = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    pictures += [pictures[-1]] * hold
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40 * every, loop=0, optimize=True)


def _frame(episodes: Episodes, step: int) -> Image.Image:
    figure = Figure(figsize=(4.2, 3.0), dpi=90)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-3.5, 3.5), ylim=(-2.5, 2.5), aspect="equal")
    axes.axis("off")
    for i, line in enumerate(RING):
        for j, cell in enumerate(line):
            if cell == 1:
                axes.add_patch(Rectangle((j - COLUMN - 1.5, 2 * ROW - i - 0.5), 1, 1, color="#444444"))
    for e in range(len(episodes.way)):
        colour, now = COLOURS[float(episodes.way[e])], min(step, int(episodes.length[e]))
        path = episodes.states[e, : now + 1, :2]
        axes.plot(*path.T, color=colour, alpha=0.35, linewidth=1)
        axes.add_patch(Circle(tuple(episodes.goals[e]), 0.08, fill=False, color=colour, alpha=0.6))
        axes.add_patch(Circle(tuple(path[-1]), 0.1, color=colour))
    held = io.BytesIO()
    figure.savefig(held, format="png")
    return Image.open(held).convert("RGB")
