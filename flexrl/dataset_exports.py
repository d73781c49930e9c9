"""A dataset in the formats of others: Minari, LeRobot v3, NumPy; each whole or not there."""

from __future__ import annotations

import contextlib
import copy
import json
import os
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
from flexrl.dataset import Array, Dataset, shard_name, to_arrow
from flexrl.worlds import CANNOT_MAKE, recorded_world, why

NPZ_LIMIT = 2**31  # bytes: an .npz is made in memory
MINARI_NAME = re.compile(r"([A-Za-z0-9_-]{2,}/){0,3}[A-Za-z0-9_-]{2,}-v\d{1,6}")
MINARI_ROOT = "MINARI_DATASETS_PATH"  # its variable for where it keeps its datasets
LEROBOT_VERSION = "v3.0"
LEROBOT_FILES = 1000  # files of data in a chunk


def need(module: str, package: str) -> Any:
    """An optional package; UserError with the line that installs it."""
    try:
        return __import__(module)
    except ImportError:
        raise UserError(f"{package} is not installed: python -m pip install '{package}'") from None


def export_npz(dataset: Dataset, path: Path) -> None:
    """All columns as arrays (num_steps, ...), and of each episode its first step, its first words and the table's columns.

    The latter as `episode_start`, `episode_words` and so on, all in one file.
    """
    size = sum((dataset.folder / shard_name(i)).stat().st_size for i in range(num_shards(dataset)))
    if size > NPZ_LIMIT:
        raise UserError(f"--export npz: {size / 2**30:.1f} GiB is too much for one .npz; export to minari or lerobot")
    refuse_existing(path)
    starts = np.cumsum([0, *dataset.episodes.length[:-1]])
    first = dataset.episode(0)
    arrays = {name: np.empty((int(dataset.episodes.length.sum()), *a.shape[1:]), a.dtype) for name, a in first.items()}
    for i, start in enumerate(starts.tolist()):
        for name, steps in dataset.episode(i).items():
            arrays[name][start : start + len(steps)] = steps
    table = {f"episode_{name.removeprefix('episode_')}": array for name, array in vars(dataset.episodes).items()}
    table |= {"episode_start": starts, "episode_words": np.array(dataset.words)}
    with whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays, **table)


def num_shards(dataset: Dataset) -> int:
    """How many files of steps it has."""
    return int(dataset.episodes.shard.max()) + 1


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what takes the name `path` when all of it is there; of an attempt that fails nothing stays."""
    temporary = path.with_name(f".{path.name}.new")
    remove(temporary)  # of an attempt that was killed
    try:
        yield temporary
        temporary.replace(path)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def refuse_existing(path: Path) -> None:
    """UserError if something of that name is there."""
    if path.exists():
        raise UserError(f"{path}: is there already; remove it, or name another place")
    path.parent.mkdir(parents=True, exist_ok=True)


def environment_of(dataset: Dataset) -> gymnasium.envs.registration.EnvSpec:
    """The Gymnasium environment that steps as the dataset's world does, one at a time; UserError if there is none."""
    info = dataset.info
    if info.body is None:
        try:
            world = recorded_world(info.world)
            spec = copy.deepcopy(gymnasium.spec(world.id))
        except CANNOT_MAKE as error:
            cure = "import it again with --env ID, or export to npz"
            raise UserError(f"--export minari: {dataset.folder}: {why(error)}; {cure}") from None
        spec.kwargs |= world.kwargs
        return spec
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

    Infos carry skill, goal, command and the physics' state of each step. It is written to a hidden folder beside, which Minari
    does not list, and takes its place when it is whole.
    """
    minari = need("minari", "minari[arrow]")
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.namespace import create_namespace, list_local_namespaces

    if not MINARI_NAME.fullmatch(name):
        raise UserError(f"--export minari {name}: expected a name and a version, such as humanoid/skills-v0")
    place = Path(minari.storage.get_dataset_path(name))
    if place.exists():
        raise UserError(f"--export minari {name}: there is one already; `minari delete {name}` removes it, or remove {place}")
    spec = environment_of(dataset)
    try:
        env = gymnasium.make(spec)
    except CANNOT_MAKE as error:
        raise UserError(f"--export minari {name}: its world cannot be made here: {why(error)}") from None
    discrete, size = isinstance(env.action_space, gymnasium.spaces.Discrete), dataset.info.action_size
    if not discrete and env.action_space.shape != (size,):
        told = f"{dataset.folder} has actions of {size} numbers, its world {spec.id} here of {env.action_space.shape}"
        raise UserError(f"--export minari {name}: {told}; import it again with --env ID")

    def buffers() -> Iterator[Any]:
        for i in range(len(dataset.episodes)):
            steps = dataset.episode(i)
            last = dataset.episodes.final_observation[i : i + 1]
            seed, number = dataset.episodes.seed[i], dataset.episodes.number[i]
            infos = {name: append_last(steps[name]) for name in ("skill", "goal", "command", "state") if name in steps}
            yield EpisodeBuffer(
                id=i,
                seed=int(seed) if number == 0 and seed >= 0 else None,  # later episodes go on from a simulation's first
                observations=np.concatenate([steps["observation"], last]),
                actions=steps["action"][:, 0].astype(np.int64) if discrete else np.array(steps["action"]),
                rewards=steps["reward"].astype(float).tolist(),
                terminations=steps["terminated"].tolist(),
                truncations=steps["truncated"].tolist(),
                infos=infos,
            )

    namespace = name.rpartition("/")[0]
    hidden = Path(minari.storage.get_dataset_path()) / f".{name.replace('/', '.')}.new"
    try:
        with contextlib.closing(env), minari_in(hidden), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it asks for an author's address and the like
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
        if namespace and namespace not in list_local_namespaces():
            create_namespace(namespace)
        (hidden / name).replace(place)
    finally:
        remove(hidden)
    return place


@contextlib.contextmanager
def minari_in(folder: Path) -> Iterator[None]:
    """Minari keeps its datasets in that folder meanwhile, which is empty in the beginning; it can be told in no other way."""
    remove(folder)  # of an export that was killed
    folder.mkdir()
    before = os.environ.get(MINARI_ROOT)
    os.environ[MINARI_ROOT] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(MINARI_ROOT)
        if before is not None:
            os.environ[MINARI_ROOT] = before


def append_last(array: Array) -> Array:
    """(n + 1, size): Minari wants an info for the last observation too, of which nothing more is known.

    Its Arrow files do not read plain numbers back as infos, so they become vectors of one.
    """
    return np.concatenate([array, array[-1:]]).reshape(len(array) + 1, -1)


def export_lerobot(dataset: Dataset, path: Path) -> None:
    """As a LeRobot dataset (v3 layout: parquet files of many episodes, tasks, statistics); a task is a phrase.

    LeRobot's fps is a whole number, and it refuses frames whose timestamps are not 1 / fps apart. So a control step of 15 ms
    (66.7 a second) is told as one of 67 a second, and timestamps, which follow from that, run half a percent slow.
    """
    refuse_existing(path)
    info, table = dataset.info, dataset.episodes
    if info.seconds_per_step is None:
        raise UserError("--export lerobot: a Gymnasium world has no time between its steps; export to minari or npz")
    tasks = [phrase.words for phrase in info.phrases]
    fps = round(1 / info.seconds_per_step)
    with whole(path) as temporary:
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
