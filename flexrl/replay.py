"""SB3's replay buffers in memory-mapped files, with an undo journal that makes resuming after a kill exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

_FIELDS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
JOURNAL_SHARE = 0.1  # of the buffer's rows: the run is saved at least this often


class Replay(ReplayBuffer):
    """The ring of an SB3 replay buffer as files in `folder`.

    The files always hold the newest rows; a saved state may be older. So each row that is overwritten goes to a journal
    first, and `set_state` puts back what was overwritten after its state was taken. The pages belong to the kernel, so
    nothing is lost when the process is killed.
    """

    def __init__(self, *args: Any, folder: Path, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        folder.mkdir(parents=True, exist_ok=True)
        self.journal_rows = max(1, int(self.buffer_size * JOURNAL_SHARE))
        self._journal: dict[str, np.memmap] = {}
        for name in _FIELDS:
            array = getattr(self, name, None)
            if array is None:
                continue
            setattr(self, name, _map(folder / f"{name}.dat", array.dtype, array.shape))
            self._journal[name] = _map(folder / f"journal_{name}.dat", array.dtype, (self.journal_rows, *array.shape[1:]))
        # rows added before the journal's first entry, and how many entries it has
        self._header = _map(folder / "journal.dat", np.dtype(np.int64), (2,))
        self.num_added = 0

    def add(self, *args: Any, **kwargs: Any) -> None:
        """As SB3's, but what is overwritten is kept until the next `commit`."""
        base, count = (int(number) for number in self._header)
        if base + count != self.num_added or count >= self.journal_rows:
            raise RuntimeError("the replay buffer's journal is full; a run must save when `journal_is_full` says so")
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
        """The ring as it was when `get_state` was taken: later rows are taken back, newest first."""
        base, count = (int(number) for number in self._header)
        self.pos, self.full, self.num_added = state["pos"], state["full"], state["num_added"]
        if self.num_added < base:
            raise ValueError("the replay buffer's files are newer than this state and its journal does not reach back")
        for entry in reversed(range(self.num_added - base, count)):
            row = (base + entry) % self.buffer_size
            for name, journal in self._journal.items():
                getattr(self, name)[row] = journal[entry]
        self.commit()


def _map(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    size = int(np.prod(shape)) * dtype.itemsize
    mode: Literal["r+", "w+"] = "r+" if path.exists() and path.stat().st_size == size else "w+"
    return np.memmap(path, dtype=dtype, mode=mode, shape=shape)


class MappedReplayBuffer(Replay):
    """Single transitions."""


class MappedNStepReplayBuffer(Replay, NStepReplayBuffer):
    """n-step returns, computed when sampled as SB3's NStepReplayBuffer does."""
