"""Writes a dataset, file by file: each appears whole or not at all, and the same episodes make the same bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from flexrl import snapshots
from flexrl.config import UserError
from flexrl.dataset import (
    ADDED,
    DATASET,
    EPISODES,
    STATS,
    TABLE,
    Array,
    Column,
    DatasetInfo,
    columns_of,
    schema_of,
    shard_name,
    to_arrow,
)
from flexrl.runs import OutOfResources

LAST_EPISODE = 2048  # steps that the episode which fills a file usually has at most; there is more room if it needs it
BLOCK = 8192  # rows whose moments are taken at once
DESCRIBED = ("observation", "action", "reward", "command")  # columns that stats.json tells about


class Moments:
    """Mean, variance and range of the rows that were added, block by block (Chan et al. 1979)."""

    def __init__(self, size: int) -> None:
        self.count = np.zeros(1)
        self.mean, self.sum_of_squares = np.zeros(size), np.zeros(size)  # the second of deviations from the mean
        self.low, self.high = np.full(size, np.inf), np.full(size, -np.inf)

    def add(self, rows: NDArray[np.floating]) -> None:
        """Counts `rows` (n, size)."""
        n, before = len(rows), self.count[0]
        mean = rows.mean(axis=0, dtype=np.float64)
        deviation = rows - mean
        shift = mean - self.mean
        self.sum_of_squares += (deviation * deviation).sum(axis=0) + shift * shift * (before * n / (before + n))
        self.mean += shift * (n / (before + n))
        self.count += n
        self.low, self.high = np.minimum(self.low, rows.min(axis=0)), np.maximum(self.high, rows.max(axis=0))

    def describe(self) -> dict[str, list[float]]:
        """As plain numbers."""
        std = np.sqrt(self.sum_of_squares / np.maximum(self.count, 1))
        arrays = {"mean": self.mean, "std": std, "min": self.low, "max": self.high}
        return {name: [float(number) for number in array] for name, array in arrays.items()}

    def get_state(self) -> dict[str, NDArray[np.float64]]:
        """Everything, as arrays."""
        return {name: array.copy() for name, array in vars(self).items()}

    def set_state(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Goes on exactly where `get_state` was taken."""
        for name in vars(self):
            setattr(self, name, state[name].copy())


class Rows:
    """Room for the steps of one file, an array a column, which is kept and filled again for another."""

    def __init__(self, columns: Mapping[str, Column], capacity: int) -> None:
        self._arrays = {name: np.empty((capacity, *column.shape), column.dtype) for name, column in columns.items()}
        self.length = 0

    def add(self, steps: Mapping[str, Array]) -> None:
        """Copies an episode's columns (length, ...) behind what there is."""
        end = self.length + len(steps["reward"])
        for name, array in self._arrays.items():
            if end > len(array):
                room = np.empty((max(len(array) // 4, end - len(array)), *array.shape[1:]), array.dtype)
                array = self._arrays[name] = np.concatenate([array, room])
            np.copyto(array[self.length : end], steps[name], casting="same_kind")
        self.length = end

    @property
    def arrays(self) -> dict[str, Array]:
        """What was added."""
        return {name: array[: self.length] for name, array in self._arrays.items()}


class DatasetWriter:
    """Takes whole episodes, writes a file of steps when `shard_steps` have come together, and the rest at the end.

    `cure`: what is said to whom the disk is full.
    """

    def __init__(
        self, folder: Path, info: DatasetInfo, shard_steps: int, cure: str = "make room, and --resume goes on"
    ) -> None:
        self.folder, self.info, self.shard_steps, self._cure = folder, info, shard_steps, cure
        self.columns: dict[str, Column] = columns_of(info)
        self.num_steps = 0  # in all, those of files that are still to be written included
        self.num_shards = 0  # files of steps, the one that is being written included
        self._schema = schema_of(self.columns)
        self._pending = Rows(self.columns, shard_steps + LAST_EPISODE)
        self._spare: list[Rows] = []
        self.num_episodes = 0  # likewise
        self._rows: list[dict[str, Any]] = []  # of the table of episodes, those of the steps that have no file yet
        self._tables: list[dict[str, Array]] = []  # the others by column: a row as a dict is a kilobyte
        self._hashes: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self._flushed = (0, 0)  # steps of those files, and how many of the tables are of them
        self._background = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None
        self._moments = {name: Moments(int(np.prod(self.columns[name].shape, dtype=int))) for name in DESCRIBED}

    @property
    def is_full(self) -> bool:
        """Whether enough steps have come together for a file."""
        return self._pending.length >= self.shard_steps

    def add(self, steps: Mapping[str, Array], row: Mapping[str, Any]) -> None:
        """An episode: its columns (length, ...), which are copied, and its entries in the table."""
        length = len(steps["reward"])
        place = {"shard": self.num_shards, "start": self._pending.length, "length": length}
        self._rows.append({**place, **row})
        self._pending.add(steps)
        self.num_steps += length
        self.num_episodes += 1

    def flush(self) -> None:
        """Begins to write the steps that have come together as one file, in the background, once the last one is written."""
        if not self._pending.length:
            return
        self.settle()
        self._writing = self._background.submit(self._write_shard, shard_name(self.num_shards), self._pending)
        self.num_shards += 1
        self._pending = self._spare.pop() if self._spare else Rows(self.columns, self.shard_steps + LAST_EPISODE)
        self._tables.append({name: np.array([row[name] for row in self._rows]) for name in TABLE})
        self._rows = []
        self._flushed = (self.num_steps, len(self._tables))

    def _table(self, num_tables: int) -> dict[str, Array]:
        """The first tables as one."""
        if num_tables == 0:
            return {name: np.array([]) for name in TABLE}
        return {name: np.concatenate([table[name] for table in self._tables[:num_tables]]) for name in TABLE}

    @property
    def is_settled(self) -> bool:
        """Whether all that `flush` began is on disk."""
        return self._writing is None or self._writing.done()

    def settle(self) -> None:
        """Waits until it is; OutOfResources if the disk refused it."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _write_shard(self, name: str, steps: Rows) -> None:
        arrays = steps.arrays
        for column, moments in self._moments.items():
            rows = arrays[column].reshape(len(arrays[column]), -1)
            for first in range(0, len(rows), BLOCK):
                moments.add(rows[first : first + BLOCK])
        batch = pa.record_batch([to_arrow(array) for array in arrays.values()], schema=self._schema)
        self._write_batch(name, batch)
        steps.length = 0
        self._spare.append(steps)

    def finish(self) -> None:
        """Writes what is left, the table, the statistics and the manifest; nothing can be added any more."""
        self.flush()
        self.settle()
        kinds: dict[str, Any] = dict.fromkeys(("terminated", "cut"), np.bool_)
        kinds |= dict.fromkeys(("noise", "episode_return", "success"), np.float64)
        table = self._table(len(self._tables))
        arrays = {name: values.astype(kinds.get(name, np.int64)) for name, values in table.items() if name != LAST}
        arrays[LAST] = table[LAST].astype(np.float32).reshape(self.num_episodes, self.info.observation_size)
        self._write_batch(EPISODES, pa.record_batch([to_arrow(array) for array in arrays.values()], names=list(arrays)))
        info = self.info.model_copy(update={"num_steps": self.num_steps, "num_episodes": self.num_episodes})
        self._write(DATASET, yaml.safe_dump(info.model_dump(mode="json"), sort_keys=False).encode())
        stats = {name: moments.describe() for name, moments in self._moments.items()}
        self._write(STATS, json.dumps(stats, indent=1).encode())
        manifest = {"format": snapshots.FORMAT, "files": self._hashes, "sizes": self._sizes}
        self._put(snapshots.MANIFEST, lambda path: path.write_bytes(json.dumps(manifest, indent=1).encode()))

    def _write_batch(self, name: str, batch: pa.RecordBatch) -> None:
        def write(path: Path) -> None:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as file:
                file.write_batch(batch)

        self._put(name, write)
        self._count(name)

    def _write(self, name: str, content: bytes) -> None:
        self._put(name, lambda path: path.write_bytes(content))
        self._count(name)

    def _put(self, name: str, write: Callable[[Path], object]) -> None:
        """A file of that name, whole and on disk before it takes the name."""
        temporary = self.folder / f".{name}.new"
        try:
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / name)
        except OSError as error:
            why = f"{self.folder / name}: cannot be written: {error.strerror}"
            raise OutOfResources(f"{why}; {self._cure}") from None

    def _count(self, name: str) -> None:
        self._hashes[name] = snapshots.file_hash(self.folder / name)
        self._sizes[name] = (self.folder / name).stat().st_size

    def get_state(self) -> dict[str, Any]:
        """Everything as it was at the last `flush`, which it waits for, as a tree of plain values and arrays."""
        self.settle()
        num_steps, num_tables = self._flushed
        return {
            "num_steps": num_steps,
            "table": self._table(num_tables),
            "hashes": dict(self._hashes),
            "sizes": dict(self._sizes),
            "moments": {name: moments.get_state() for name, moments in self._moments.items()},
        }

    def _check_files(self) -> None:
        """UserError names the first file that was written and is not there as it was."""
        for name, written in self._hashes.items():
            path = self.folder / name
            if not path.is_file():
                raise UserError(f"{path}: is missing; put it back, or collect it again under another --name")
            if path.stat().st_size != self._sizes[name] or snapshots.file_hash(path) != written:
                raise UserError(f"{path}: is cut or damaged; put it back as it was, or collect it again under another --name")

    def set_state(self, state: Mapping[str, Any] | None) -> None:
        """Goes on exactly where `get_state` was taken, or begins (null); files that were written after it are removed.

        UserError if one that was written before it is not there.
        """
        if state is not None:
            self.num_steps = int(state["num_steps"])
            table = dict(state["table"])  # of a collection that an older flex-rl began, it may lack some
            table |= {name: np.full(len(table["length"]), value) for name, value in ADDED.items() if name not in table}
            self.num_episodes = len(table["length"])
            self._rows, self._tables = [], [{name: table[name] for name in TABLE}] if self.num_episodes else []
            self._hashes, self._sizes = dict(state["hashes"]), dict(state["sizes"])
            self._check_files()
            self.num_shards, self._flushed = len(self._hashes), (self.num_steps, len(self._tables))
            for name, moments in self._moments.items():
                moments.set_state(state["moments"][name])
        (self.folder / snapshots.MANIFEST).unlink(missing_ok=True)
        for path in [*self.folder.glob("[0-9]*.arrow"), *self.folder.glob(".*.new")]:
            if path.name not in self._hashes and path.is_file():
                path.unlink()


LAST = "final_observation"
