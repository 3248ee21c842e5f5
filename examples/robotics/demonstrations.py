"""Demonstrations of the expert, cut into pairs of what is seen and what is done next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from examples.robotics.maze import CHUNK, SLIP, Episodes, Expert, observe, run_episodes

FIRST = 1_000_000  # number of the first demonstration: far from the episodes that policies are measured on


def demonstrate(count: int) -> Episodes:
    """`count` episodes of the expert. Its actions are carried out with noise and kept without: so the data have what brings a
    ball back that has come off its way."""
    return run_episodes(Expert(), FIRST + np.arange(count), slip=SLIP, after=CHUNK)


def pairs(episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
    """Every step until the goal: the observation (N, 10), and the next 16 actions as a sequence (N, 2, 16)."""
    observations, sequences = [], []
    for e in np.flatnonzero(episodes.success):
        steps = np.arange(episodes.length[e])
        states, goal = episodes.states[e], np.repeat(episodes.goals[e : e + 1], len(steps), axis=0)
        observations.append(observe(states[np.maximum(steps - 1, 0)], states[steps], goal))
        sequences.append(episodes.wanted[e][steps[:, None] + np.arange(CHUNK)].transpose(0, 2, 1))
    return np.concatenate(observations), np.concatenate(sequences)


def write_demonstrations(path: Path, count: int) -> Episodes:
    """An .npz for `ctm train`: `data` (N, 2, 16) and the condition `observation` (N, 10)."""
    episodes = demonstrate(count)
    observations, sequences = pairs(episodes)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, data=sequences.astype(np.float32), observation=observations)
    return episodes
