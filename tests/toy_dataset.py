"""Datasets of a few made-up steps, written as collect.py writes them, for tests of what is done with datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flexrl.dataset import BlockInfo, Dataset, DatasetInfo, PhraseInfo, PolicyInfo, open_dataset
from flexrl.dataset_writer import DatasetWriter

PENDULUM = {"kind": "gymnasium", "id": "Pendulum-v1", "num_envs": 1, "subprocesses": False}


def toy_info(
    world: dict[str, Any] | None = None,
    body: str | None = None,
    sizes: tuple[int, int] = (3, 1),
    phrases: Sequence[tuple[str, str]] = (),
    policies: Sequence[str] = ("random",),
    **changes: Any,
) -> DatasetInfo:
    """What a dataset of Pendulum-v1 says of itself; `sizes`: of an observation and an action, which is within +-2."""
    values: dict[str, Any] = {
        "world": world or PENDULUM,
        "body": body,
        "seconds_per_step": None,
        "observation": (BlockInfo(name="observation", size=sizes[0]),),
        "action_size": sizes[1],
        "action_low": (-2.0,) * sizes[1],
        "action_high": (2.0,) * sizes[1],
        "state_size": 0,
        "skills": tuple(dict.fromkeys(skill for skill, _ in phrases)),
        "phrases": tuple(PhraseInfo(skill=skill, words=words) for skill, words in phrases),
        "policies": tuple(PolicyInfo(path=path, sha256=None, weight=1.0, stochastic=False) for path in policies),
        "noise": (0.0,),
        "seed": 0,
    }
    return DatasetInfo(**(values | changes))


def write_toy(
    folder: Path,
    returns: Sequence[float] = (1.0, 2.0, 3.0, 4.0),
    info: DatasetInfo | None = None,
    length: int = 10,
    shard_steps: int = 1000,
    rows: Sequence[dict[str, Any]] = (),
    state: Sequence[float] = (),
) -> Dataset:
    """Episodes of `length` steps with these returns; `rows`: what their rows say otherwise; `state`: the physics' at each."""
    info = info or toy_info()
    folder.mkdir(parents=True)
    writer = DatasetWriter(folder, info, shard_steps)
    rng = np.random.default_rng(0)
    for number, episode_return in enumerate(returns):
        own = rows[number] if number < len(rows) else {}
        action = rng.uniform(-1, 1, (length, info.action_size)).astype(np.float32)
        last = np.arange(length) == length - 1
        steps = {
            "observation": rng.standard_normal((length, info.observation_size)).astype(np.float32),
            "action": action,
            "intended": action,
            "reward": np.full(length, episode_return / length, np.float32),
            "terminated": np.zeros(length, bool),
            "truncated": last,
            "skill": np.full(length, max(own.get("skill", 0), 0), np.int16),
            "goal": np.full(length, max(own.get("goal", 0), 0), np.int16),
            "command": np.zeros((length, 3), np.float32),
        }
        steps |= {"state": np.tile(np.asarray(state, float), (length, 1))} if info.state_size else {}
        row = {"seed": 0, "number": number, "skill": -1, "goal": -1, "num_switches": 0, "policy": 0, "noise": 0.0}
        row |= {"episode_return": episode_return, "success": float("nan"), "terminated": False, "cut": False}
        row |= {"final_observation": np.zeros(info.observation_size, np.float32)}
        writer.add(steps, row | own)
        if writer.is_full:
            writer.flush()
    writer.finish()
    return open_dataset(folder)
