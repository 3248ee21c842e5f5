"""Walks of the teacher that are made once and kept on the disk, as what a student learns jumps from (arXiv 2509.24526)."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctm.conditions import Condition, cat, dropped, rows, to
from ctm.files import named_failures
from ctm.models.protocol import Denoiser, Diffusion
from ctm.noise import karras_grid, match_dims
from ctm.objectives.base import Draw, Networks, Objective
from ctm.objectives.distances import Distance, Squared
from ctm.objectives.guiding import at_scales, check_guided, check_range, draw_scales, guided_by
from ctm.objectives.rows import jump_rows
from ctm.objectives.walks import MultistepWalk, Walk
from ctm.weighting import uniform

__all__ = ["StoredDraw", "StoredWalks", "WalkSource", "words_of"]

_CHUNK = 128  # walks that are made together: a walk depends on its chunk, so that a file can be gone on with


@dataclass(frozen=True)
class WalkSource:
    """What walks are made of. teacher: on `device`. images: (numbers) -> (x0, condition) of these of the data's `count` images,
    on the CPU. digest: of teacher and data. main: whether this process makes them; the others `wait`."""

    teacher: Denoiser
    device: torch.device
    images: Callable[[np.ndarray], tuple[Tensor, Condition]]
    count: int
    digest: str
    main: bool = True
    wait: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class StoredDraw(Draw):
    """The random numbers of one step, on the CPU: which walk, and which of its levels are t and s, int64 (B,) each."""

    walk: Tensor
    t: Tensor
    s: Tensor

    def rows(self, part: slice) -> StoredDraw:
        return StoredDraw(self.walk[part], self.t[part], self.s[part])


@dataclass
class _Store:
    """states: (walks, levels, …) in a file. condition: of all walks."""

    states: np.memmap
    condition: Condition
    levels: Tensor


@dataclass(frozen=True)
class StoredWalks(Objective):
    """w·d(G(x_t, t, s), x_s) for any two levels t > s of a stored walk of the teacher:

        x at σ_max = x₀ + σ_max·ε,   then the solver's steps along a Karras grid to σ_min

    Mid-training on trajectories (CMT, arXiv 2509.24526): no evaluation of the teacher in a step, and no data. It goes before
    other ways, or beside them. What the student can reach is what the solver reached on that many levels.

    folder: where the file of walks is kept, under a name that has a digest of teacher, data and these settings; it is made in
    the first run and gone on with after an interruption. gigabytes: the most that it may take, in 10⁹ bytes; walks: how many
    are made, fewer where they would take more. guidance: [low, high] lets each walk follow the teacher guided at a scale drawn
    from that range, which the student gets as an input. The states of such walks are where the guided jumps begin, which noised
    data are not. levels: of the grid, with rho. solver: a walk that goes step by step, such as
    `MultistepWalk` or `TeacherWalk`. left_out: share of walks without a condition. seed: of the walks; all else of a step comes
    from the run's. distance: (a, b) -> (B,). weight: w(t, s, σ_d). start: first step with it. Raises ValueError for settings
    out of range.
    """

    needs_teacher = True

    folder: str
    gigabytes: float = 1.0
    walks: int = 20_000
    levels: int = 18
    rho: float = 7.0
    solver: Walk = field(default_factory=MultistepWalk)
    left_out: float = 0.1
    guidance: tuple[float, float] | None = None
    seed: int = 0
    distance: Distance = field(default_factory=Squared)
    weight: Callable[[Tensor, Tensor, float], Tensor] = uniform
    start: int = 0
    store: _Store | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.walks < 1 or self.levels < 2 or self.start < 0:
            raise ValueError(
                "walks must be at least 1, levels at least 2 and start at least 0, "
                f"got {self.walks}, {self.levels} and {self.start}"
            )
        if not 0 < self.gigabytes < math.inf or not 0 <= self.left_out <= 1 or not 1 <= self.rho < math.inf:
            raise ValueError(
                "gigabytes must be above 0, left_out in [0, 1] and rho at least 1, "
                f"got {self.gigabytes}, {self.left_out} and {self.rho}"
            )
        if self.guidance is not None:
            check_range(self.guidance)
        if not (self.solver.passes and self.solver.needs_teacher):
            raise ValueError(
                f"stored walks are the teacher's, step by step, and {type(self.solver).__name__} makes none: use MultistepWalk "
                "or TeacherWalk"
            )

    def active(self, step: int) -> bool:
        return step >= self.start

    def check(self, student: Diffusion, teacher: Denoiser | None) -> None:
        """Raises ValueError where guidance is asked for and the student does not take it, or the teacher has no classes."""
        if self.guidance is not None:
            check_guided(student, teacher)

    def kept(self, shape: tuple[int, ...]) -> int:
        """How many walks of samples of this shape are stored. Raises ValueError where not one fits."""
        each = 4 * self.levels * math.prod(shape)
        found = min(self.walks, int(self.gigabytes * 1e9) // each)
        if found < 1:
            raise ValueError(f"one walk takes {each / 1e9:.3g} GB, more than gigabytes: {self.gigabytes:g}")
        return found

    def draw(self, model: Diffusion, like: Tensor, generator: torch.Generator) -> StoredDraw:
        """Walks and levels for a batch like `like` (B, …): t uniform on all levels but the last, s on those below it."""
        n = len(like)
        walk = torch.randint(self.kept(tuple(like.shape[1:])), (n,), generator=generator)
        t = torch.randint(self.levels - 1, (n,), generator=generator)
        share = torch.rand(n, generator=generator, dtype=torch.float64)
        return StoredDraw(walk, t, t + 1 + (share * (self.levels - 1 - t)).long())

    def __call__(self, networks: Networks, x0: Tensor, condition: Condition, draw: StoredDraw) -> Tensor:
        """x0 (B, …) and condition are those of the batch, and not used -> (B,). Raises ValueError before `open`."""
        if self.store is None:
            raise ValueError("these walks are not there yet: call `open` first, as a run does")
        store, device = self.store, x0.device
        walk, levels = draw.walk.numpy(), store.levels
        t, s = (levels[index].to(device, x0.dtype) for index in (draw.t, draw.s))
        x_t, x_s = (torch.from_numpy(store.states[walk, index.numpy()]).to(x0) for index in (draw.t, draw.s))
        known = to(rows(store.condition, draw.walk), device)
        end = jump_rows(networks.student, x_t, t, s, known)
        return self.weight(t, s, networks.student.sigma_data) * self.distance.between(networks, end, x_s)

    def open(self, source: WalkSource, student: Diffusion) -> str:
        """Make the walks that the file lacks, open it, and say so in a line. All processes call it together."""
        shape, ends = tuple(student.shape), (student.sigma_min, student.sigma_max)
        count, levels = self.kept(shape), karras_grid(self.levels - 1, *ends, self.rho, dtype=torch.float32)
        own = [self.levels, self.rho, words_of(self.solver), self.left_out, self.guidance, self.seed]
        settings = [source.digest, *ends, *own, count]
        name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:24]
        path, size = Path(self.folder) / f"{name}.walks", 4 * self.levels * math.prod(shape)
        chunks = [range(first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK)]
        made = self._make(path, size, chunks, source, levels) if source.main else 0
        source.wait()
        conditions = [at_scales(self._start(source, chunk)[1], self._scales(chunk)) for chunk in chunks]
        states = np.memmap(path, np.float32, mode="r", shape=(count, self.levels, *shape))
        condition = cat(conditions, [len(chunk) for chunk in chunks])
        object.__setattr__(self, "store", _Store(states, condition, levels))
        each = 1 if self.guidance is None else 2
        evaluations = each * made * self.solver.teacher_evaluations(self.levels - 1)
        return (
            f"{count} walks of the teacher are in {path} ({count * size / 1e9:.3g} GB)"
            + (f"; {made} were made now, {evaluations:,} evaluations" if made else "")
            + (f"; walks: {self.walks} would take more than {self.gigabytes:g} GB" if count < self.walks else "")
        )

    def _make(self, path: Path, size: int, chunks: list[range], source: WalkSource, levels: Tensor) -> int:
        """Append the walks that the file lacks, chunk by chunk; returns how many. A half-written chunk is made anew."""
        with named_failures(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                whole = file.tell() // (_CHUNK * size)
                if file.tell() >= size * (chunks[-1].stop):
                    return 0
                file.truncate(whole * _CHUNK * size)
                for chunk in chunks[whole:]:
                    file.write(self._walked(source, chunk, levels).numpy().tobytes())
                file.flush()
                os.fsync(file.fileno())
        return chunks[-1].stop - whole * _CHUNK

    def _start(self, source: WalkSource, chunk: range) -> tuple[Tensor, Condition]:
        """x₀ and the condition of a chunk's walks, on the CPU: the images in their order, over and over."""
        x0, condition = source.images(np.arange(chunk.start, chunk.stop) % source.count)
        if condition is None or self.left_out == 0:
            return x0, condition
        return x0, dropped(condition, torch.rand(len(chunk), generator=self._generator(chunk, 1)) < self.left_out)

    def _scales(self, chunk: range) -> Tensor | None:
        """The guidance scales of a chunk's walks."""
        return draw_scales(self.guidance, torch.empty(len(chunk)), self._generator(chunk, 2))

    def _generator(self, chunk: range, number: int) -> torch.Generator:
        state = np.random.SeedSequence([self.seed, chunk.start, number]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state) >> 1)

    def _walked(self, source: WalkSource, chunk: range, levels: Tensor) -> Tensor:
        """The states of a chunk's walks, float32 (chunk, levels, …), on the CPU."""
        x0, condition = self._start(source, chunk)
        noise = torch.randn(x0.shape, generator=self._generator(chunk, 0))
        path = levels[:, None].expand(-1, len(chunk)).to(source.device)
        x = (x0.float() + match_dims(levels[:1], x0) * noise).to(source.device)
        scales = self._scales(chunk)
        scales = None if scales is None else scales.to(source.device)
        networks = guided_by(Networks(None, None, source.teacher), scales)  # type: ignore[arg-type]
        with torch.inference_mode():
            states = self.solver.states(networks, x, path, to(condition, source.device))
            return torch.stack([x, *states], dim=1).float().cpu()


def words_of(value: Any) -> Any:
    """What a solver is, in words that are the same in every process: functions and classes by their full names."""
    if is_dataclass(value) and not isinstance(value, type):
        return [words_of(type(value)), {each.name: words_of(getattr(value, each.name)) for each in fields(value)}]
    name = getattr(value, "__qualname__", None)
    return repr(value) if name is None else f"{value.__module__}.{name}"
