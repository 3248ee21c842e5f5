"""examples/robotics: the maze has two ways, the expert takes both, policies meet the same episodes, the command gives a table."""

import os
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "disable")

import numpy as np
import pytest
import torch
from examples.robotics import maze
from examples.robotics.demonstrations import pairs
from examples.robotics.policies import Generated, Regression
from examples.robotics.run import main

from ctm.models import load_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def few_mazes():
    """Four mazes side by side: what is simulated beside it decides nothing of an episode."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maze, "SIDE_BY_SIDE", 4)
        maze.make_mazes.cache_clear()
        yield
    maze.make_mazes.cache_clear()


@pytest.fixture(scope="module")
def shown(few_mazes):
    return maze.run_episodes(maze.Expert(), np.arange(6), slip=maze.SLIP, after=maze.CHUNK)


class PointMass:
    """All data are one sequence `a`, so that the flow is known: D(x, t) = a, G(x, t, s) = a + (s/t)·(x − a)."""

    shape, sigma_min, sigma_max = (2, maze.CHUNK), 0.002, 80.0

    def __init__(self, sequence):
        self.sequence, self.starts = sequence, []

    def denoise(self, x, t, condition=None):
        return self.sequence.expand_as(x)

    def jump(self, x, t, s, condition=None):
        self.starts.append((float(t[0]), x))
        return self.sequence + (s / t)[:, None, None] * (x - self.sequence)


def test_the_expert_reaches_the_goal_by_either_way(shown):
    assert shown.success.all()
    assert set(shown.way) == {-1.0, 1.0}
    middle = np.abs(shown.states[..., 0]) < 0.5
    heights = shown.states[..., 1] * shown.way[:, None]
    assert (heights[middle] > 0.5).all()  # on the episode's own side of the block, never through it
    ends = shown.states[np.arange(6), shown.length, :2] - shown.goals
    assert (np.linalg.norm(ends, axis=1) <= 0.45).all()  # the environment's own measure of success


def test_an_episode_is_decided_by_its_number(shown):
    still = maze.run_episodes(Regression(8), np.array([4, 1]))
    assert np.array_equal(still.states[:, 0], shown.states[[4, 1], 0])
    assert np.array_equal(still.goals, shown.goals[[4, 1]])


def test_pairs_are_what_was_seen_and_what_the_expert_wanted_next(shown):
    observations, sequences = pairs(shown)
    assert observations.shape == (shown.length.sum(), 10)
    assert sequences.shape == (shown.length.sum(), 2, 16)
    row = shown.length[0] + 5  # the second episode's step 5
    size = [2, 2, 2.5, 2.5]
    wanted = np.concatenate([shown.states[1, 4] / size, shown.states[1, 5] / size, shown.goals[1] / 2])
    assert np.allclose(observations[row], wanted, atol=1e-6)
    assert np.array_equal(sequences[row], shown.wanted[1, 5:21].T)


def test_receding_horizon_with_a_warm_start():
    """Eight of sixteen actions are executed; the next sequence starts from the others with noise of the warm level."""
    sequence = torch.linspace(-0.9, 0.9, 32).reshape(2, 16)
    model, one = PointMass(sequence), np.arange(1)
    policy = Generated(model, jumps=1, warm=2.0)
    policy.start(one)
    acted = [policy.act(one, np.zeros((1, 10), np.float32)) for _ in range(2)]
    for actions in acted:
        assert actions.shape == (1, 8, 2)
        assert np.allclose(actions[0], sequence[:, :8].T, atol=0.01)
    (first, _), (second, x) = model.starts
    assert (first, second) == (80.0, 2.0)
    kept = torch.cat([sequence[:, 8:], sequence[:, -1:].expand(-1, 8)], dim=1)
    noise = policy._noise[0, 1, 0]
    assert torch.allclose(x[0] - 2.0 * noise, kept, atol=0.01)
    again = Generated(model, jumps=8, gamma=1.0)
    again.start(one)
    assert torch.equal(again._noise, policy._noise)  # policies are compared on the same noise


@pytest.mark.slow
def test_the_command_trains_measures_and_films(shown, tmp_path, monkeypatch):
    """Tiny: three demonstrations, two steps, episodes of 16 actions. The models it leaves load and make actions."""
    observations, sequences = pairs(shown)
    np.savez(tmp_path / "demonstrations.npz", data=sequences, observation=observations)
    monkeypatch.setattr(maze, "LIMIT", 16)
    monkeypatch.setattr(Regression.fit, "__defaults__", (5, 16))
    monkeypatch.setattr("examples.robotics.evaluate.decision_times.__defaults__", (1,))
    rows = main(
        ["--out", str(tmp_path), "--episodes", "2", "--teacher_steps", "2", "--ctm_steps", "2", "--tuning", "2"]
    )
    assert (tmp_path / "table.md").read_text().count("\n") == 2 + len(rows)
    assert (tmp_path / "maze.gif").read_bytes()[:4] == b"GIF8"
    model = load_model(tmp_path / "ctm")
    assert model.conditioner.fields == {"observation": (10,)}
    assert model.scaling.rule == "standard"


def test_the_shipped_policy_goes_round():
    """One jump a decision. When it was measured, 98 % of the balls came past the middle and 79 % to the goal."""
    model = load_model(ROOT / "models" / "maze-ctm")
    assert (ROOT / "models" / "maze-ctm" / "model.safetensors").stat().st_size < 2_000_000
    driven = maze.run_episodes(Generated(model, jumps=1), np.arange(8))
    assert (driven.way != 0).sum() >= 6
    assert driven.success.sum() >= 3


@pytest.mark.slow
def test_the_table_at_full_length(tmp_path):
    """The recipes as they ship, on 300 episodes. Equal policies differ by a point or two there: five are allowed."""
    rows = {row.name: row for row in main(["--out", str(tmp_path), "--episodes", "300"])}
    success = {name: row.episodes.success.mean() for name, row in rows.items()}
    teacher = "teacher, 35 evaluations"
    assert success["expert"] > 0.99
    assert success["regression"] < 0.5
    assert abs(success[teacher] - success["CTM, 1 jump"]) < 0.05
    assert rows[teacher].processor > 20 * rows["CTM, 1 jump"].processor
    assert all(0.25 < rows[name].above < 0.75 for name in (teacher, "CTM, 1 jump"))
