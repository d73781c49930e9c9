"""Episodes of a policy in a world, all of them side by side, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from flexrl import render
from flexrl.config import UserError
from flexrl.motor_world import MotorWorld
from flexrl.physics import Array
from flexrl.policies import Policy
from flexrl.randomness import forked_randomness
from flexrl.statistics import bootstrap_interval, share_interval


@dataclass(frozen=True)
class Episode:
    """One episode from its start to its end."""

    seed: int
    length: int  # control steps
    episode_return: float
    mean_speed: float | None  # m/s along the world's x axis; None where the world does not say
    terminated: bool  # ended by the task, by a fall say, not by time
    skill: str | None = None  # the task that it was for; None where the world has no tasks
    success: bool | None = None  # whether it showed the skill; None where nobody can say, see motor_batch.MotorBatch.outcome
    measures: dict[str, float] = field(default_factory=dict)  # what success is judged by, see measures.Measures.describe
    rewards: dict[str, float] = field(default_factory=dict)  # each reward term's sum

    def to_json(self) -> dict[str, Any]:
        """The record with the names that `play.py --json` promises."""
        record = asdict(self)
        record["return"] = record.pop("episode_return")
        return record


def run_episodes(policy: Policy, world: VecEnv, seed: int, each_step: Callable[[], None] | None = None) -> list[Episode]:
    """One episode in each simulation of `world`; simulation i is the one with seed + i.

    The ambient generators are left as they were. `each_step` is called at the start and after every control step.
    """
    with forked_randomness(seed):
        world.seed(seed)
        obs = world.reset()
        policy.reset(np.ones(world.num_envs, bool))
        episodes: dict[int, Episode] = {}
        distance, num_steps = np.zeros(world.num_envs), 0
        if each_step is not None:
            each_step()
        while len(episodes) < world.num_envs:
            action = policy.act(obs)
            obs, reward, done, infos = world.step(action)
            policy.feedback(action, reward)
            num_steps += 1
            if "x_velocity" in infos[0]:  # Gymnasium's MuJoCo envs
                distance += [info["x_velocity"] for info in infos]
            for i in np.flatnonzero(done):
                speed = distance[i] / num_steps if "x_velocity" in infos[i] else None
                episodes.setdefault(int(i), _episode(seed + int(i), infos[i], speed))
            policy.reset(done)
            if each_step is not None:
                each_step()
    return [episodes[i] for i in range(world.num_envs)]


def check_trail(path: Path) -> None:
    """UserError, before anything is played, if `Trail.write` could not write to `path`."""
    (render.check_sheet if _is_picture(path) else render.check_video)(path)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() == ".png"


class Trail:
    """The postures of a motor world's first simulation, step by step; to be given to `run_episodes` as `each_step`."""

    def __init__(self, world: VecEnv) -> None:
        if not isinstance(world, MotorWorld):
            raise UserError("only the bodies of motor worlds can be recorded; leave --video and --viewer away")
        self.physics = world.batch.physics
        self.qpos: list[Array] = []

    def __call__(self) -> None:
        """Keeps the posture, (nq,)."""
        self.qpos.append(self.physics.qpos[0].copy())

    def write(self, path: Path, num_steps: int) -> None:
        """The first `num_steps` control steps as a video, or their third second as a row of frames if `path` is a .png.

        RenderError if this machine cannot draw.
        """
        if _is_picture(path):
            second = int(1.0 / self.physics.dt)
            steps = self.qpos[: min(num_steps, 3 * second)][-second:]
            render.contact_sheet(path, self.physics.model, steps, self.physics.dt, columns=8, size=(200, 360))
            return
        render.write_video(path, self.physics.model, self.qpos[:num_steps], self.physics.dt)


def _episode(seed: int, info: dict[str, Any], speed: float | None) -> Episode:
    record = info["episode"]
    return Episode(
        seed=seed,
        length=int(record["l"]),
        episode_return=float(record["r"]),
        mean_speed=record.get("mean_speed", speed),
        terminated=not info.get("TimeLimit.truncated", False),
        skill=record.get("skill"),
        success=record.get("success"),
        measures=record.get("measures", {}),
        rewards={key.removeprefix("reward/"): value for key, value in record.items() if key.startswith("reward/")},
    )


def summarise(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Means over the episodes with 95 % intervals (bootstrap; Wilson's for success), by the names of `Episode.to_json`."""
    summary: dict[str, Any] = {"num_episodes": len(episodes), "num_terminated": sum(e.terminated for e in episodes)}
    columns = {"return": [e.episode_return for e in episodes], "length": [float(e.length) for e in episodes]}
    if all(e.mean_speed is not None for e in episodes):
        columns["mean_speed"] = [float(e.mean_speed or 0.0) for e in episodes]
    skills = list(dict.fromkeys(e.skill for e in episodes))
    if len(skills) == 1:
        for name in episodes[0].rewards:
            columns[f"reward/{name}"] = [e.rewards[name] for e in episodes]
    judged = [e for e in episodes if e.success is not None]
    if judged:
        columns["success"] = [float(bool(e.success)) for e in judged]
    for skill in skills if len(skills) > 1 else []:
        shown = [float(bool(e.success)) for e in judged if e.skill == skill]
        if shown:
            columns[f"success/{skill}"] = shown
    for name, values in columns.items():
        is_share = name.partition("/")[0] == "success"
        interval = share_interval(int(sum(values)), len(values)) if is_share else bootstrap_interval(values)
        summary[name] = {"mean": float(np.mean(values)), "interval": [float(end) for end in interval]}
    return summary


def metrics_of(summary: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The means of a summary that a run keeps, as metrics <prefix>/..."""
    metrics = {f"{prefix}/terminated": summary["num_terminated"] / summary["num_episodes"]}
    for name in summary:
        if name in ("return", "length", "mean_speed") or name.startswith("success"):
            metrics[f"{prefix}/{name}"] = summary[name]["mean"]
    return metrics
