"""SB3's replay buffers in memory-mapped files, with an undo journal that makes resuming after a kill exact."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

from flexrl.config import UserError
from flexrl.runs import OutOfResources

_FIELDS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
JOURNAL_SHARE = 0.1  # of the buffer's rows: the run is saved at least this often


class Replay(ReplayBuffer):
    """The ring of an SB3 replay buffer as files in `folder`.

    The files always hold the newest rows; a saved state may be older. So each row that is overwritten goes to a journal
    first, and `set_state` puts back what was overwritten after its state was taken. The pages belong to the kernel, so
    nothing is lost when the process is killed.
    """

    def __init__(self, *args: Any, folder: Path, rollout_rows: int = 1, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except MemoryError as error:
            raise UserError(f"learner.buffer_size: {error}; write a smaller one") from None
        folder.mkdir(parents=True, exist_ok=True)
        # a tenth of the journal must hold what is added between two looks at `journal_is_full`
        self.journal_rows = max(1, int(self.buffer_size * JOURNAL_SHARE), 10 * rollout_rows)
        self._journal: dict[str, np.memmap] = {}
        self._created: list[Path] = []  # files that were not there, or of another size
        self._promised = 0  # bytes of them, which the disk gives as they are written
        for name in _FIELDS:
            array = getattr(self, name, None)
            if array is None:
                continue
            setattr(self, name, self._map(folder / f"{name}.dat", array.dtype, array.shape))
            journal_shape = (self.journal_rows, *array.shape[1:])
            self._journal[name] = self._map(folder / f"journal_{name}.dat", array.dtype, journal_shape)
        # rows added before the journal's first entry, and how many entries it has
        self._header = self._map(folder / "journal.dat", np.dtype(np.int64), (2,))
        self.num_added = 0

    def _map(self, path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
        size = int(np.prod(shape)) * dtype.itemsize
        if path.exists() and path.stat().st_size == size:
            return np.memmap(path, dtype=dtype, mode="r+", shape=shape)
        free = shutil.disk_usage(path.parent).free
        self._promised += size
        if self._promised > free:  # a page that finds no room later kills the process without a word
            needs = f"needs {self._promised / 1e9:.1f} GB so far, {free / 1e9:.1f} GB are free"
            raise UserError(f"{path.parent}: {needs}; write a smaller learner.buffer_size")
        self._created.append(path)
        return np.memmap(path, dtype=dtype, mode="w+", shape=shape)

    def add(self, *args: Any, **kwargs: Any) -> None:
        """As SB3's, but what is overwritten is kept until the next `commit`."""
        base, count = (int(number) for number in self._header)
        if base + count != self.num_added or count >= self.journal_rows:
            raise OutOfResources("the replay buffer's journal is full, as nothing could be saved; make room on the disk")
        for name, journal in self._journal.items():
            journal[count] = getattr(self, name)[self.pos]
        self._header[1] = count + 1
        super().add(*args, **kwargs)
        self.num_added += 1

    def journal_is_full(self) -> bool:
        """Whether a tenth or less of the journal is left."""
        return int(self._header[1]) >= 0.9 * self.journal_rows

    def commit(self) -> None:
        """Forget what was overwritten so far: a state at least as new as this moment is on disk."""
        self._header[1] = 0
        self._header[0] = self.num_added

    def get_state(self) -> dict[str, Any]:
        """Where the ring stands."""
        return {"pos": self.pos, "full": self.full, "num_added": self.num_added}

    def set_state(self, state: dict[str, Any]) -> None:
        """The ring as it was when `get_state` was taken: later rows are taken back, newest first.

        UserError if the files are not those that the state was taken with.
        """
        if self._created:
            raise UserError(f"{self._created[0]}: is missing or of another size; the run cannot go on without it")
        base, count = (int(number) for number in self._header)
        self.pos, self.full, self.num_added = state["pos"], state["full"], state["num_added"]
        if not base <= self.num_added <= base + count:
            folder = Path(str(self._header.filename)).parent
            raise UserError(f"{folder}: does not belong to this state of the run; put both back from one copy")
        for entry in reversed(range(self.num_added - base, count)):
            row = (base + entry) % self.buffer_size
            for name, journal in self._journal.items():
                getattr(self, name)[row] = journal[entry]
        self.commit()


class MappedReplayBuffer(Replay):
    """Single transitions."""


class MappedNStepReplayBuffer(Replay, NStepReplayBuffer):
    """n-step returns, computed when sampled as SB3's NStepReplayBuffer does."""
