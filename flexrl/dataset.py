"""A dataset on disk: a folder of Arrow files, many whole episodes in each, memory-mapped, and a table of the episodes.

    00000.arrow ...   steps: observation, action, intended, reward, terminated, truncated, skill, goal, command, state
episodes.arrow    one row an episode, with where its steps lie
dataset.yaml      what the columns are: world, observation blocks, skills, phrases, policies
stats.json        means, standard deviations and ranges
manifest.json     SHA-256 of each of these files, written last: a folder without it is not finished
"""

from __future__ import annotations

import json
import mmap
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from flexrl import snapshots
from flexrl.config import UserError

FORMAT = 1  # goes up when a reader of the old files would misread the new ones
MAX_OPEN = 256  # files of steps that are read from, of all datasets together
MAX_MAPPED = 16  # files of a dataset that are mapped: each map has an open file of its own (Python 3.11 duplicates it)
UNKNOWN = -1  # the skill or phrase of an episode in a world without, or of which the table does not say
DATASET, EPISODES, STATS = "dataset.yaml", "episodes.arrow", "stats.json"
Array = NDArray[Any]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BlockInfo(_Record):
    """A named part of the observation."""

    name: str
    size: int
    is_goal: bool = False  # it shows what is asked for, not the body


class PhraseInfo(_Record):
    """One way to ask for a skill; column `goal` counts these."""

    skill: str
    words: str


class PolicyInfo(_Record):
    """Who acted; `policy` in the table of episodes counts these."""

    path: str  # as it was named; or random, or zero
    sha256: str | None  # the snapshot's content hash
    weight: float  # share of the steps, of the sum of all
    stochastic: bool
    experts: dict[str, str] = {}  # skill: path of who acted in its place there
    teacher: dict[str, Any] | None = None  # who said what to intend: path, and its experts
    others_sha256: dict[str, str] = {}  # path of experts and of a teacher: its content hash
    target_return: float | None = None  # what a Decision Transformer was asked to bring; null: a high return of its data
    prompt: list[str] | None = None  # the parts of its goal that it was shown; null: all


class DatasetInfo(_Record):
    """dataset.yaml: what the columns mean, and what made them."""

    format: Literal[1] = 1
    world: dict[str, Any]  # its settings, complete
    body: str | None  # null for a Gymnasium environment
    seconds_per_step: float | None
    observation: tuple[BlockInfo, ...]
    action_size: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    state_size: int  # of the physics: time, positions, velocities, activations, warm start; 0: not recorded
    skills: tuple[str, ...]  # column `skill` counts these
    phrases: tuple[PhraseInfo, ...]
    policies: tuple[PolicyInfo, ...]
    noise: tuple[float, ...]  # levels, in units of the action
    seed: int
    num_steps: int = 0
    num_episodes: int = 0

    @property
    def observation_size(self) -> int:
        """Numbers in an observation."""
        return sum(block.size for block in self.observation)

    def columns_of(self, is_goal: bool) -> NDArray[np.intp]:
        """The entries of the observation that show the goal, or those that show the body."""
        return np.flatnonzero(np.repeat([b.is_goal for b in self.observation], [b.size for b in self.observation]) == is_goal)


@dataclass(frozen=True)
class Column:
    """What one column of the steps holds."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()  # of one step


def columns_of(info: DatasetInfo) -> dict[str, Column]:
    """The columns of the steps, in the order of the files."""
    columns = {
        "observation": Column(np.dtype(np.float32), (info.observation_size,)),
        "action": Column(np.dtype(np.float32), (info.action_size,)),
        "intended": Column(np.dtype(np.float32), (info.action_size,)),
        "reward": Column(np.dtype(np.float32)),
        "terminated": Column(np.dtype(np.bool_)),
        "truncated": Column(np.dtype(np.bool_)),
        "skill": Column(np.dtype(np.int16)),
        "goal": Column(np.dtype(np.int16)),
        "command": Column(np.dtype(np.float32), (3,)),
    }
    if info.state_size:
        columns["state"] = Column(np.dtype(np.float64), (info.state_size,))
    return columns


def schema_of(columns: dict[str, Column]) -> pa.Schema:
    """The Arrow schema of the step files."""
    fields = []
    for name, column in columns.items():
        kind = pa.from_numpy_dtype(column.dtype)
        fields.append(pa.field(name, pa.list_(kind, column.shape[0]) if column.shape else kind, nullable=False))
    return pa.schema(fields)


def to_arrow(array: Array) -> pa.Array:
    """(n,) or (n, size) numbers as an Arrow array, without a copy where Arrow has the same layout."""
    array = np.ascontiguousarray(array)
    if array.ndim == 1:
        return pa.array(array)
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def to_numpy(array: pa.Array) -> Array:
    """What `to_arrow` made, as a view of its memory (booleans, which Arrow packs, as a copy)."""
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        return array.flatten().to_numpy().reshape(-1, size)
    return array.to_numpy(zero_copy_only=not pa.types.is_boolean(array.type))


def shard_name(index: int) -> str:
    """The file name of the `index`th file of steps."""
    return f"{index:05d}.arrow"


@dataclass(frozen=True)
class EpisodeTable:
    """The episodes, one entry each, in the order of the files."""

    shard: NDArray[np.int64]  # which file of steps
    start: NDArray[np.int64]  # its first row there
    length: NDArray[np.int64]  # steps
    seed: NDArray[np.int64]  # of the simulation
    number: NDArray[np.int64]  # how many the simulation had had before
    skill: NDArray[np.int64]  # the last one asked for; UNKNOWN in a world without
    goal: NDArray[np.int64]  # the phrase that it was first asked for in, see Dataset.words; UNKNOWN where nothing says
    num_switches: NDArray[np.int64]  # changes of the skill within the episode
    policy: NDArray[np.int64]
    noise: NDArray[np.float64]
    episode_return: NDArray[np.float64]
    success: NDArray[np.float64]  # 1 or 0 of the last skill; NaN where nobody can say
    terminated: NDArray[np.bool_]  # ended by the task, a fall say
    cut: NDArray[np.bool_]  # by the end of the collection
    final_observation: NDArray[np.float32]  # (num_episodes, observation_size), after the last step

    def __len__(self) -> int:
        return len(self.length)

    def select(self, mask: NDArray[np.bool_]) -> EpisodeTable:
        """The episodes where `mask` (num_episodes,) is true."""
        return EpisodeTable(**{name: getattr(self, name)[mask] for name in TABLE})


TABLE = tuple(EpisodeTable.__dataclass_fields__)
ADDED = {"goal": UNKNOWN}  # columns that tables of before them lack, and what stands there then
_OPENED: deque[tuple[dict[int, FileIO], int]] = deque()  # the files that are read from, the oldest first: whose, and which


@dataclass(frozen=True)
class Dataset:
    """A finished dataset; its steps are read from the files as they are touched."""

    folder: Path
    info: DatasetInfo
    episodes: EpisodeTable
    stats: dict[str, dict[str, list[float]]]
    sha256: str
    _mapped: dict[int, dict[str, Array]] = field(default_factory=dict)
    _offsets: dict[int, dict[str, int]] = field(default_factory=dict)  # bytes, of each column in each file
    _files: dict[int, FileIO] = field(default_factory=dict)

    def shard(self, index: int) -> dict[str, Array]:
        """A file's columns as memory-mapped arrays (num_rows, ...); UserError if it is not what dataset.yaml says.

        A map lives as long as arrays of it do; the dataset itself keeps MAX_MAPPED of them.
        """
        if index not in self._mapped:
            while len(self._mapped) >= MAX_MAPPED:
                del self._mapped[next(iter(self._mapped))]
            self._mapped[index] = self._map(index)
        return self._mapped[index]

    def read_into(self, out: Array, name: str, shards: Sequence[int], starts: Sequence[int], counts: Sequence[int]) -> None:
        """Rows of a column: `counts[i]` of them from row `starts[i]` of file `shards[i]` on, into out[i], (n, length, ...).

        By reads of the files, not through their maps: a map keeps every page that was touched, and those around it, and a
        process that draws from millions of steps would hold them all.
        """
        size, stride, view = out[0, 0].nbytes, out[0].nbytes, out.data.cast("B")
        offset = {shard: self._offset(shard, name) for shard in set(shards)}
        for i, (shard, start, count) in enumerate(zip(shards, starts, counts, strict=True)):
            file = self._files.get(shard) or self._file(shard)
            begin, length = i * stride, count * size
            if os.preadv(file.fileno(), (view[begin : begin + length],), offset[shard] + start * size) != length:
                raise UserError(f"{self.folder / shard_name(shard)}: is cut or damaged; {_COLLECT_AGAIN}")

    def _offset(self, shard: int, name: str) -> int:
        """Where a column begins in a file, bytes."""
        if shard not in self._offsets:
            self._map(shard)
        return self._offsets[shard][name]

    def _file(self, shard: int) -> FileIO:
        if shard not in self._files:
            while len(_OPENED) >= MAX_OPEN:
                files, oldest = _OPENED.popleft()
                files.pop(oldest).close()
            self._files[shard] = self._open(shard)
            _OPENED.append((self._files, shard))
        return self._files[shard]

    def _open(self, shard: int) -> FileIO:
        path = self.folder / shard_name(shard)
        try:
            return path.open("rb", buffering=0)
        except FileNotFoundError:
            raise UserError(f"{path}: is missing; {_COLLECT_AGAIN}") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be opened: {error.strerror}") from None

    def _map(self, index: int) -> dict[str, Array]:
        """A file's columns, views of a map that ends with the last of them; keeps where each begins."""
        path = self.folder / shard_name(index)
        with self._open(index) as file:
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise UserError(f"{path}: cannot be mapped: {error.strerror}") from None
            except ValueError:
                raise UserError(f"{path}: is cut or damaged (it is empty); {_COLLECT_AGAIN}") from None
        buffer = pa.py_buffer(mapped)
        try:
            batch = pa.ipc.open_file(pa.BufferReader(buffer)).get_batch(0)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{path}: is cut or damaged ({' '.join(str(error).split())}); {_COLLECT_AGAIN}") from None
        if batch.schema != self.schema:
            raise UserError(f"{path}: holds other columns than {self.folder / DATASET} says; it is of another dataset")
        columns = {name: to_numpy(batch.column(name)) for name in batch.schema.names if name not in ("terminated", "truncated")}
        self._offsets[index] = {name: array.ctypes.data - buffer.address for name, array in columns.items()}
        return columns

    @cached_property
    def schema(self) -> pa.Schema:
        """Of the files of steps."""
        return schema_of(columns_of(self.info))

    def skills_of(self, select: NDArray[np.bool_]) -> list[int]:
        """The skills that any step of the episodes where `select` (num_episodes,) is true is of, in order."""
        seen: set[int] = set()
        table = self.episodes.select(select)
        for shard in np.unique(table.shard).tolist():
            skills = self._map(shard)["skill"]  # a map that is not kept, nor the pages that were read
            here = table.shard == shard
            for start, length in zip(table.start[here].tolist(), table.length[here].tolist(), strict=True):
                seen |= set(np.unique(skills[start : start + length]).tolist())
        return sorted(seen - {UNKNOWN})

    @cached_property
    def words(self) -> list[str]:
        """What each episode was first asked for, in words, (num_episodes,); its world's name where nobody asks."""
        phrases, goals = self.info.phrases, self.episodes.goal.tolist()
        if not phrases:
            return [str(self.info.world.get("id"))] * len(goals)
        known = (goal if goal != UNKNOWN else self.episode(i, ["goal"])["goal"][0] for i, goal in enumerate(goals))
        return [phrases[goal].words for goal in known]

    def episode(self, index: int, names: Sequence[str] | None = None) -> dict[str, Array]:
        """The columns (length, ...) of an episode, views of the files; `terminated` and `truncated` included."""
        table = self.episodes
        rows = slice(int(table.start[index]), int(table.start[index] + table.length[index]))
        shard = self.shard(int(table.shard[index]))
        columns = {name: array[rows] for name, array in shard.items() if names is None or name in names}
        last = np.arange(rows.stop - rows.start) == rows.stop - rows.start - 1
        if names is None:
            columns["terminated"] = last & table.terminated[index]
            columns["truncated"] = last & ~table.terminated[index]
        return columns

    def read_by(self, encoder: str) -> Dataset:
        """The same with another text encoder for its words, which it keeps as words."""
        return replace(self, info=self.info.model_copy(update={"world": {**self.info.world, "encoder": encoder}}))

    def verify(self) -> None:
        """Compares every file with its hash; UserError names the first that is damaged, and the cure."""
        snapshots.check(self.folder, _COLLECT_AGAIN)


_COLLECT_AGAIN = "copy the dataset anew, or collect it again"


def open_dataset(folder: Path) -> Dataset:
    """A dataset, its small files read and the sizes of the large ones checked; UserError with the file and the cure.

    `Dataset.verify` compares every byte.
    """
    manifest_path = folder / snapshots.MANIFEST
    if not folder.is_dir():
        raise UserError(f"{folder}: no such dataset; collect.py makes one")
    if not manifest_path.is_file():
        if not (folder / DATASET).is_file() and not (folder / shard_name(0)).is_file():
            raise UserError(f"{folder}: is no dataset (it has no {DATASET}); collect.py makes one")
        where = "" if folder.parent == Path("workspace") else f" --workspace {folder.parent}"
        raise UserError(f"{folder}: was not finished; python collect.py --name {folder.name}{where} --resume goes on with it")
    try:
        manifest = json.loads(manifest_path.read_bytes())
        sizes: dict[str, int] = {str(name): int(size) for name, size in manifest["sizes"].items()}
        hashes = {name: str(manifest["files"][name]) for name in (DATASET, EPISODES, STATS)}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{manifest_path}: is damaged, or of a snapshot; {_COLLECT_AGAIN}") from None
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: is missing; {_COLLECT_AGAIN}")
        if path.stat().st_size != size:
            raise UserError(f"{path}: is cut or damaged ({path.stat().st_size:,} bytes, not {size:,}); {_COLLECT_AGAIN}")
    for name, expected in hashes.items():
        if snapshots.file_hash(folder / name) != expected:
            raise UserError(f"{folder / name}: is damaged (its SHA-256 is not the manifest's); {_COLLECT_AGAIN}")
    info = read_info(folder / DATASET)
    table = read_episodes(folder / EPISODES)
    stats = json.loads((folder / STATS).read_bytes())
    return Dataset(folder, info, table, stats, snapshots.content_hash(folder))


def read_info(path: Path) -> DatasetInfo:
    """dataset.yaml; UserError if it is of another version or damaged."""
    try:
        values = yaml.safe_load(path.read_bytes())
        if isinstance(values, dict) and values.get("format") != FORMAT:
            raise UserError(f"{path}: is of dataset format {values.get('format')}, this flex-rl reads {FORMAT}")
        return DatasetInfo.model_validate(values)
    except (OSError, yaml.YAMLError, ValidationError):
        raise UserError(f"{path}: is damaged; {_COLLECT_AGAIN}") from None


def read_episodes(path: Path) -> EpisodeTable:
    """The table of episodes, of this flex-rl or an older one; UserError if it is damaged."""
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        lacking = {name: value for name, value in ADDED.items() if name not in batch.schema.names}
        columns = {name: to_numpy(batch.column(name)) for name in TABLE if name not in lacking}
        return EpisodeTable(**columns, **{name: np.full(len(batch), value) for name, value in lacking.items()})
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UserError(f"{path}: is damaged ({' '.join(str(error).split())}); {_COLLECT_AGAIN}") from None
