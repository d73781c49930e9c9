"""One of Minari's datasets as ours: opened and checked before anything is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow as pa

from flexrl.config import UserError
from flexrl.dataset import DATASET, UNKNOWN, Array, BlockInfo, DatasetInfo, PolicyInfo, read_info
from flexrl.dataset_exports import need
from flexrl.dataset_writer import DatasetWriter
from flexrl.worlds import recorded_world, why

SHARD_STEPS = 65_536
# what Minari raises of files that are damaged, of another version, or of a format whose package is not installed
CANNOT_READ = (
    *(ValueError, KeyError, TypeError, IndexError, AttributeError, AssertionError, ImportError, OSError, RuntimeError),
    pa.ArrowException,
)


def import_minari(source: Path, folder: Path, env: str | None = None) -> DatasetInfo:
    """Writes Minari's dataset in `source` (its folder, or the `data` in it) as ours to `folder`, which is made.

    `env`: the environment that it is of, in place of the one that it names. UserError for what cannot be taken over, OSError
    where nothing can be written.
    """
    theirs = open_minari(source)
    info = describe(source, theirs, env)
    folder.mkdir(parents=True)
    writer = DatasetWriter(folder, info, SHARD_STEPS, cure="make room, and import it again")
    writer.set_state(None)
    for steps, row in episodes_of(source, theirs, (info.observation_size, info.action_size)):
        writer.add(steps, row)
        if writer.is_full:
            writer.flush()
    writer.finish()
    return read_info(folder / DATASET)


def files_of(source: Path) -> list[Path]:
    """What a Minari dataset in one file (HDF5) is made of; its metadata alone, if it has a folder for each episode (Arrow)."""
    return sorted(path for path in _data_of(source).iterdir() if path.is_file())


def _data_of(source: Path) -> Path:
    return source if (source / "metadata.json").is_file() else source / "data"


def open_minari(source: Path) -> Any:
    """Minari's dataset; UserError if there is none, or none that it can read."""
    minari = need("minari", "minari[arrow,hdf5]")
    if not source.is_dir():
        raise UserError(f"--import-minari {source}: no such folder")
    data = _data_of(source)
    if not (data / "metadata.json").is_file():
        raise UserError(f"--import-minari {source}: is no Minari dataset (it has no metadata.json)")
    _check_spaces(source, data / "metadata.json")
    try:
        theirs = minari.MinariDataset(data)
        num_episodes = theirs.total_episodes
    except (*CANNOT_READ, gymnasium.error.Error) as error:
        raise _unreadable(source, error) from None
    if num_episodes == 0:
        raise UserError(f"--import-minari {source}: has no episodes")
    return theirs


def _unreadable(source: Path, error: Exception) -> UserError:
    return UserError(f"--import-minari {source}: cannot be read: {why(error) or type(error).__name__}")


def _check_spaces(source: Path, path: Path) -> None:
    """UserError if its metadata do not tell its spaces: Minari would make the environment they name, whatever that runs."""
    try:
        told = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise _unreadable(source, error) from None
    if not isinstance(told, dict) or not all(isinstance(told.get(f"{kind}_space"), str) for kind in ("observation", "action")):
        raise UserError(f"--import-minari {source}: metadata.json does not tell its spaces; write it anew with a newer Minari")


def describe(source: Path, theirs: Any, env: str | None) -> DatasetInfo:
    """What our dataset.yaml says of it; UserError if its spaces, or the environment that is asked for, do not fit."""
    observation, action = theirs.observation_space, theirs.action_space
    chosen = isinstance(action, gymnasium.spaces.Discrete)  # one of several, as a vector of one number
    for name, space in (("observations", observation), *([] if chosen else [("actions", action)])):
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise UserError(f"--import-minari {source}: its {name} are no vectors of numbers ({type(space).__name__})")
    if chosen and action.start:
        raise UserError(
            f"--import-minari {source}: its actions are choices from {action.start} on; only those from 0 are known here"
        )
    low, high = (np.zeros(1), np.array([action.n - 1])) if chosen else (action.low, action.high)
    world: dict[str, Any] = {"kind": "gymnasium", "id": env, "kwargs": {}}
    if env is not None:
        try:
            recorded_world(world)
        except ValueError as error:
            raise UserError(f"--env {env}: {why(error)}") from None
    elif theirs.env_spec is not None:
        world |= {"id": theirs.env_spec.id, "kwargs": theirs.env_spec.kwargs}
    return DatasetInfo(
        world=world,
        body=None,
        seconds_per_step=None,
        observation=(BlockInfo(name="observation", size=observation.shape[0]),),
        action_size=len(low),
        action_low=tuple(map(float, low)),
        action_high=tuple(map(float, high)),
        state_size=0,
        skills=(),
        phrases=(),
        policies=(PolicyInfo(path=f"minari:{theirs.spec.dataset_id}", sha256=None, weight=1.0, stochastic=False),),
        noise=(0.0,),
        seed=0,
    )


def episodes_of(source: Path, theirs: Any, sizes: tuple[int, int]) -> Iterator[tuple[dict[str, Array], dict[str, Any]]]:
    """Its episodes one after the other: steps by column, and the row in the table; UserError if one cannot be read.

    `sizes`: of its observations and of its actions.
    """
    try:
        for episode in theirs.iterate_episodes():
            yield _episode_of(episode, *sizes)
    except CANNOT_READ as error:
        raise _unreadable(source, error) from None


def _episode_of(episode: Any, observation_size: int, action_size: int) -> tuple[dict[str, Array], dict[str, Any]]:
    length = len(episode.rewards)
    actions = np.asarray(episode.actions, np.float32).reshape(length, -1)
    observations, rewards = np.asarray(episode.observations, np.float32), np.asarray(episode.rewards, np.float32)
    if observations.shape != (length + 1, observation_size) or actions.shape[1] != action_size:
        raise ValueError(f"the steps of episode {episode.id} do not fit its spaces")
    if not all(np.isfinite(numbers).all() for numbers in (observations, actions, rewards)):
        raise ValueError(f"episode {episode.id} has infinite numbers, or what is none (NaN); leave it out there")
    steps: dict[str, Array] = {
        "observation": observations[:length],
        "action": actions,
        "intended": actions,
        "reward": rewards,
        "terminated": np.asarray(episode.terminations, bool),
        "truncated": np.asarray(episode.truncations, bool),
        "skill": np.zeros(length, np.int16),
        "goal": np.zeros(length, np.int16),
        "command": np.zeros((length, 3), np.float32),
    }
    row = {
        "seed": -1,
        "number": int(episode.id),
        "skill": UNKNOWN,
        "goal": UNKNOWN,
        "num_switches": 0,
        "policy": 0,
        "noise": 0.0,
        "episode_return": float(np.sum(episode.rewards)),
        "success": float("nan"),
        "terminated": bool(steps["terminated"][-1]),
        "cut": False,
        "final_observation": observations[length],
    }
    return steps, row
