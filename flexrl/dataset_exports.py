"""A dataset in the formats of others: Minari, LeRobot v3, NumPy; and one of Minari's as ours."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flexrl.config import UserError
from flexrl.dataset import DATASET, Array, BlockInfo, Dataset, DatasetInfo, PolicyInfo, read_info, to_arrow
from flexrl.dataset_writer import DatasetWriter

NPZ_LIMIT = 2**31  # bytes: an .npz is made in memory
MINARI_NAME = re.compile(r"([A-Za-z0-9_-]+/){0,3}[A-Za-z0-9_-]+-v\d{1,6}")
LEROBOT_VERSION = "v3.0"
LEROBOT_FILES = 1000  # files of data in a chunk


def need(module: str, package: str) -> Any:
    """An optional package; UserError with the line that installs it."""
    try:
        return __import__(module)
    except ImportError:
        raise UserError(f"{package} is not installed: python -m pip install '{package}'") from None


def words_of(dataset: Dataset, index: int) -> str:
    """What an episode was first asked for, in words; its world's name where nobody asks."""
    goal = int(dataset.episode(index, ["goal"])["goal"][0])
    return dataset.info.phrases[goal].words if dataset.info.phrases else str(dataset.info.world.get("id", "go"))


def export_npz(dataset: Dataset, path: Path) -> None:
    """All columns as arrays (num_steps, ...), `episode_start` (the first step of each) and the table's columns, in one file."""
    size = sum((dataset.folder / f"{i:05d}.arrow").stat().st_size for i in range(num_shards(dataset)))
    if size > NPZ_LIMIT:
        raise UserError(f"--export npz: {size / 2**30:.1f} GiB is too much for one .npz; export to minari or lerobot")
    refuse_existing(path)
    episodes = [dataset.episode(i) for i in range(len(dataset.episodes))]
    arrays = {name: np.concatenate([steps[name] for steps in episodes]) for name in episodes[0]}
    table = {f"episode_{name.removeprefix('episode_')}": array for name, array in vars(dataset.episodes).items()}
    starts = np.cumsum([0, *dataset.episodes.length[:-1]])
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays, **(table | {"episode_start": starts}))
    temporary.replace(path)


def num_shards(dataset: Dataset) -> int:
    """How many files of steps it has."""
    return int(dataset.episodes.shard.max()) + 1


def refuse_existing(path: Path) -> None:
    """UserError if something of that name is there."""
    if path.exists():
        raise UserError(f"{path}: is there already; remove it, or name another place")
    path.parent.mkdir(parents=True, exist_ok=True)


def environment_of(info: DatasetInfo) -> gymnasium.envs.registration.EnvSpec | None:
    """The Gymnasium environment that steps as the dataset's world does, one simulation at a time."""
    if info.body is None:
        return gymnasium.spec(info.world["id"])
    leave = ("kind", "num_envs", "num_threads")
    kwargs = {name: value for name, value in info.world.items() if name not in leave}
    # truncation is the task's own, so there is no time limit round it
    return gymnasium.envs.registration.EnvSpec(
        "flexrl/Humanoid-v0" if info.body == "humanoid" else "flexrl/HalfCheetah-v0",
        entry_point="flexrl.gymnasium_envs:MotorEnv",
        kwargs=kwargs,
    )


def export_minari(dataset: Dataset, name: str) -> Path:
    """As Minari's dataset `name`, in Arrow's format, where Minari keeps them; its `recover_environment()` makes our world.

    Infos carry skill, goal, command and the physics' state of each step.
    """
    minari = need("minari", "minari[arrow]")
    from minari.data_collector.episode_buffer import EpisodeBuffer

    if not MINARI_NAME.fullmatch(name):
        raise UserError(f"--export minari {name}: expected a name and a version, such as humanoid/skills-v0")
    if name in minari.list_local_datasets():
        raise UserError(f"--export minari {name}: there is one already; `minari delete {name}` removes it")
    spec = environment_of(dataset.info)
    env = gymnasium.make(spec)  # type: ignore[arg-type]

    def buffers() -> Iterator[Any]:
        for i in range(len(dataset.episodes)):
            steps = dataset.episode(i)
            last = dataset.episodes.final_observation[i : i + 1]
            infos = {name: append_last(steps[name]) for name in ("skill", "goal", "command", "state") if name in steps}
            discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
            yield EpisodeBuffer(
                id=i,
                seed=int(dataset.episodes.seed[i]),
                observations=np.concatenate([steps["observation"], last]),
                actions=steps["action"][:, 0].astype(np.int64) if discrete else np.array(steps["action"]),
                rewards=steps["reward"].astype(float).tolist(),
                terminations=steps["terminated"].tolist(),
                truncations=steps["truncated"].tolist(),
                infos=infos,
            )

    with warnings.catch_warnings():  # it asks for an author's address and the like
        warnings.simplefilter("ignore", UserWarning)
        minari.create_dataset_from_buffers(
            name,
            buffer=buffers(),
            env=env,
            eval_env=spec,
            observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (dataset.info.observation_size,), np.float32),
            algorithm_name=", ".join(policy.path for policy in dataset.info.policies),
            description=f"flex-rl dataset {dataset.folder.name}, {dataset.sha256}",
            data_format="arrow",
        )
    env.close()
    return Path(minari.storage.get_dataset_path(name))


def append_last(array: Array) -> Array:
    """(n + 1, size): Minari wants an info for the last observation too, of which nothing more is known.

    Its Arrow files do not read plain numbers back as infos, so they become vectors of one.
    """
    return np.concatenate([array, array[-1:]]).reshape(len(array) + 1, -1)


def export_lerobot(dataset: Dataset, path: Path) -> None:
    """As a LeRobot dataset (v3 layout: parquet files of many episodes, tasks, statistics); a task is a phrase."""
    refuse_existing(path)
    info, table = dataset.info, dataset.episodes
    if info.seconds_per_step is None:
        raise UserError("--export lerobot: a Gymnasium world has no time between its steps; export to minari or npz")
    tasks = [phrase.words for phrase in info.phrases]
    fps = round(1 / info.seconds_per_step)
    temporary = path.with_name(f".{path.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    rows: list[dict[str, Any]] = []
    begin = 0
    for shard in range(num_shards(dataset)):
        chunk, file = divmod(shard, LEROBOT_FILES)
        mine = np.flatnonzero(table.shard == shard)
        parts = []
        for i in map(int, mine):
            steps, length = dataset.episode(i), int(table.length[i])
            parts.append(_lerobot_columns(steps, i, begin, length, fps))
            rows.append(
                {
                    "episode_index": i,
                    "tasks": [tasks[goal] for goal in dict.fromkeys(steps["goal"].tolist())],
                    "length": length,
                    "data/chunk_index": chunk,
                    "data/file_index": file,
                    "dataset_from_index": begin,
                    "dataset_to_index": begin + length,
                    "meta/episodes/chunk_index": 0,
                    "meta/episodes/file_index": 0,
                }
            )
            begin += length
        _write_parquet(temporary / f"data/chunk-{chunk:03d}/file-{file:03d}.parquet", pa.concat_tables(parts))
    _write_parquet(temporary / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(rows))
    _write_parquet(temporary / "meta/tasks.parquet", _lerobot_tasks(tasks))
    features = {
        "observation.state": _feature("float32", info.observation_size),
        "action": _feature("float32", info.action_size),
        **{name: _feature(kind, 1) for name, kind in _LEROBOT_ONES.items()},
        "command": _feature("float32", 3),
    }
    about = {
        "codebase_version": LEROBOT_VERSION,
        "robot_type": info.body,
        "total_episodes": len(table),
        "total_frames": int(table.length.sum()),
        "total_tasks": len(tasks),
        "chunks_size": LEROBOT_FILES,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{len(table)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": features,
    }
    (temporary / "meta/info.json").write_text(json.dumps(about, indent=1))
    names = {"observation.state": "observation", "action": "action", "next.reward": "reward", "command": "command"}
    stats = {name: {**dataset.stats[own], "count": [int(table.length.sum())]} for name, own in names.items()}
    (temporary / "meta/stats.json").write_text(json.dumps(stats, indent=1))
    temporary.replace(path)


_LEROBOT_ONES = {
    "next.reward": "float32",
    "next.done": "bool",
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


def _feature(dtype: str, size: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [size], "names": None}


def _lerobot_columns(steps: dict[str, Array], episode: int, begin: int, length: int, fps: int) -> pa.Table:
    frame = np.arange(length)
    columns = {
        "observation.state": steps["observation"],
        "action": steps["action"],
        "next.reward": steps["reward"],
        "next.done": steps["terminated"] | steps["truncated"],
        "timestamp": (frame / fps).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.full(length, episode),
        "index": begin + frame,
        "task_index": steps["goal"].astype(np.int64),
        "command": steps["command"],
    }
    return pa.table({name: to_arrow(np.array(array)) for name, array in columns.items()})


def _lerobot_tasks(tasks: list[str]) -> pa.Table:
    """A table that pandas reads with the words as its index, as LeRobot does."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "__index_level_0__": tasks})
    kinds = [("task_index", "task_index", "int64"), (None, "__index_level_0__", "unicode")]
    pandas = {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [],
        "columns": [
            {
                "name": name,
                "field_name": field,
                "pandas_type": kind,
                "numpy_type": "object" if name is None else kind,
                "metadata": None,
            }
            for name, field, kind in kinds
        ],
        "pandas_version": "2.2.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _write_parquet(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def import_minari(source: Path, folder: Path, shard_steps: int) -> DatasetInfo:
    """Writes Minari's dataset in `source` (its folder, or the `data` in it) as ours into `folder`."""
    minari = need("minari", "minari[arrow]")
    data = source if (source / "metadata.json").is_file() else source / "data"
    if not (data / "metadata.json").is_file():
        raise UserError(f"--import-minari {source}: is no Minari dataset (it has no metadata.json)")
    theirs = minari.MinariDataset(data)
    spaces = theirs.observation_space, theirs.action_space
    for name, space in zip(("observations", "actions"), spaces, strict=True):
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise UserError(f"--import-minari {source}: its {name} are no vectors of numbers ({type(space).__name__})")
    observation, action = spaces
    env_id = theirs.env_spec.id if theirs.env_spec is not None else None
    info = DatasetInfo(
        world={"kind": "gymnasium", "id": env_id},
        body=None,
        seconds_per_step=None,
        observation=(BlockInfo(name="observation", size=observation.shape[0]),),
        action_size=action.shape[0],
        action_low=tuple(map(float, action.low)),
        action_high=tuple(map(float, action.high)),
        state_size=0,
        skills=(),
        phrases=(),
        policies=(PolicyInfo(path=f"minari:{theirs.spec.dataset_id}", sha256=None, weight=1.0, stochastic=False),),
        noise=(0.0,),
        seed=0,
    )
    writer = DatasetWriter(folder, info, shard_steps)
    writer.set_state(None)
    for episode in theirs.iterate_episodes():
        length = len(episode.rewards)
        steps = {
            "observation": np.asarray(episode.observations[:length], np.float32),
            "action": np.asarray(episode.actions, np.float32),
            "intended": np.asarray(episode.actions, np.float32),
            "reward": np.asarray(episode.rewards, np.float32),
            "terminated": np.asarray(episode.terminations, bool),
            "truncated": np.asarray(episode.truncations, bool),
            "skill": np.zeros(length, np.int16),
            "goal": np.zeros(length, np.int16),
            "command": np.zeros((length, 3), np.float32),
        }
        row = {
            "seed": -1,
            "number": int(episode.id),
            "skill": -1,
            "num_switches": 0,
            "policy": 0,
            "noise": 0.0,
            "episode_return": float(np.sum(episode.rewards)),
            "success": float("nan"),
            "terminated": bool(steps["terminated"][-1]),
            "cut": False,
            "final_observation": np.asarray(episode.observations[length], np.float32),
        }
        writer.add(steps, row)
        if writer.is_full:
            writer.flush()
    if writer.num_episodes == 0:
        raise UserError(f"--import-minari {source}: has no episodes")
    writer.finish()
    return read_info(folder / DATASET)
