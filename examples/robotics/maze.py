"""A ring-shaped maze with two ways round, a scripted expert that takes either, and episodes of many mazes at once."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import gymnasium
import numpy as np

try:
    import gymnasium_robotics
except ImportError as error:
    raise SystemExit("the maze needs gymnasium-robotics: pip install 'ctm-torch[robotics]'") from error

gymnasium.register_envs(gymnasium_robotics)

# 1 is a wall. The ball starts in one of the cells "c", and its goal is in the other. Above the block or below it is as far.
RING = [
    [1, 1, 1, 1, 1, 1, 1],
    [1, 0, 0, 0, 0, 0, 1],
    [1, "c", 1, 1, 1, "c", 1],
    [1, 0, 0, 0, 0, 0, 1],
    [1, 1, 1, 1, 1, 1, 1],
]
COLUMN, ROW = (
    2.0,
    1.0,
)  # of the cells' centres: x = ±2 in the columns left and right, y = ±1 in the rows above and below
HELD = 4  # steps of 0.01 s of the simulation for which an action is held: 25 actions a second
LIMIT = 120  # actions of an episode
CHUNK, EXECUTED = 16, 8  # actions of a sequence, and how many of them are executed before the next is made
SPEED, SLIP = 2.5, 0.1  # of the expert; the standard deviation of what is added to its actions in demonstrations
SIDE_BY_SIDE = 32  # mazes that are simulated together


@functools.cache
def make_mazes() -> gymnasium.vector.VectorEnv:
    """Mazes side by side. An action is two forces in [-1, 1]; the reward is 1 within 0.45 of the goal, else 0."""

    def make_maze() -> gymnasium.Env:
        maze = gymnasium.make("PointMaze_UMaze-v3", maze_map=RING, max_episode_steps=10_000, disable_env_checker=True)
        maze.unwrapped.point_env.frame_skip = HELD
        return maze

    disabled = gymnasium.vector.AutoresetMode.DISABLED
    return gymnasium.vector.SyncVectorEnv([make_maze] * SIDE_BY_SIDE, autoreset_mode=disabled)


def observe(previous: np.ndarray, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """What a policy sees (B, 10): positions and velocities (B, 4) of the last two steps, and the goal (B, 2), divided by their
    typical size."""
    size = np.array([COLUMN, COLUMN, SPEED, SPEED])
    return np.concatenate([previous / size, state / size, goal / COLUMN], axis=1).astype(np.float32)


class Policy(Protocol):
    """What drives a ball."""

    def start(self, episodes: np.ndarray) -> None:
        """Episodes with these numbers (B,) begin. Whatever is random in the policy comes from them."""

    def act(self, rows: np.ndarray, observation: np.ndarray) -> np.ndarray:
        """The next actions (R, k, 2) of those of the B episodes that still run, `rows` (R,), from observations (R, 10)."""


class Expert:
    """Drives along the ring by one of the two ways, which is drawn for each episode. It decides anew for each action."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def start(self, episodes: np.ndarray) -> None:
        self.way = np.array([np.random.default_rng([self.seed, e]).choice([-1.0, 1.0]) for e in episodes])

    def act(self, rows: np.ndarray, observation: np.ndarray) -> np.ndarray:
        x, y, *velocity = (observation[:, 4:8] * [COLUMN, COLUMN, SPEED, SPEED]).T
        goal, way = observation[:, 8:] * COLUMN, self.way[rows]
        side = np.sign(goal[:, 0])
        in_row = (np.abs(x) < COLUMN - 0.5) | (y * way > ROW - 0.3)
        corner = np.stack([np.where(in_row, side, -side) * COLUMN, way * ROW], axis=1)
        arrived = (x * side > COLUMN - 0.35)[:, None]
        to_target = np.where(arrived, goal, corner) - np.stack([x, y], axis=1)
        distance = np.linalg.norm(to_target, axis=1, keepdims=True)
        wanted = to_target / np.maximum(distance, 1e-6) * np.minimum(SPEED, 4 * distance)
        return np.clip(0.5 * (wanted - np.stack(velocity, axis=1)), -1, 1)[:, None]


@dataclass(frozen=True)
class Episodes:
    """What happened in B episodes of up to T actions.

    success bool (B,); way (B,): 1 above, −1 below, 0 where the ball never came past the middle; length (B,): actions until the
    goal; states (B, T + 1, 4) and goals (B, 2); wanted (B, T, 2): the policy's actions, before any noise."""

    success: np.ndarray
    way: np.ndarray
    length: np.ndarray
    states: np.ndarray
    goals: np.ndarray
    wanted: np.ndarray


def run_episodes(policy: Policy, episodes: np.ndarray, *, slip: float = 0.0, after: int = 0) -> Episodes:
    """The episodes with these numbers (B,), 32 at a time. Start and goal are decided by the number alone, so that two policies
    meet the same ones.

    slip: standard deviation of noise that is added to each action, decided by the number too. after: actions that are still made
    at the goal."""
    parts = [
        _run(policy, episodes[start : start + SIDE_BY_SIDE], slip, after)
        for start in range(0, len(episodes), SIDE_BY_SIDE)
    ]
    names = Episodes.__dataclass_fields__
    return Episodes(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _run(policy: Policy, episodes: np.ndarray, slip: float, after: int) -> Episodes:
    mazes, count, end = make_mazes(), len(episodes), LIMIT + after
    seeds = [int(episode) for episode in episodes]
    seen, _ = mazes.reset(seed=seeds + seeds[:1] * (SIDE_BY_SIDE - count))  # mazes without an episode stand still
    noise = np.stack([np.random.default_rng([1, seed]).normal(size=(end, 2)) for seed in seeds])
    goals = seen["desired_goal"][:count].copy()
    states = np.repeat(seen["observation"][:count, None], end + 1, axis=1)
    wanted = np.zeros((count, end, 2), dtype=np.float32)
    length, way, success = np.full(count, LIMIT), np.zeros(count), np.zeros(count, dtype=bool)
    policy.start(episodes)
    step, runs = 0, np.arange(count)
    while step < end and len(runs):
        chunk = policy.act(runs, observe(states[runs, max(step - 1, 0)], states[runs, step], goals[runs]))
        for action in chunk.transpose(1, 0, 2)[: end - step]:
            wanted[runs, step] = action
            forces = np.zeros((SIDE_BY_SIDE, 2), dtype=np.float32)
            forces[runs] = np.clip(action + slip * noise[runs, step], -1, 1)
            seen, reward, *_ = mazes.step(forces)
            step += 1
            states[:, step] = seen["observation"][:count]
            x, y = states[:, step, 0], states[:, step, 1]
            way = np.where((way == 0) & (x * states[:, 0, 0] <= 0), np.sign(y), way)
            reached = (reward[:count] > 0) & ~success & (step <= LIMIT)
            length[reached], success = step, success | reached
        runs = np.flatnonzero(np.where(success, step < length + after, step < LIMIT))
    return Episodes(success, way, length, states, goals, wanted)
