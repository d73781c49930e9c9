"""Windows of steps drawn from memory-mapped datasets: what a policy learns from offline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexrl.config import UserError
from flexrl.dataset import Dataset
from flexrl.goals import PLACE_SEEN
from flexrl.text_encoders import ENCODERS, NUM_FEATURES, in_a_mirror

Array = NDArray[Any]
# What a goal is made of, by the name of the block that shows it in a world's observation.
GOAL_BLOCKS = {"skill": "one_hot", "command": "command", "place": "place", "words": "embedding"}


@dataclass(frozen=True)
class Windows:
    """Steps side by side, (num_windows, length, ...), those after an episode's end zero and not `valid`."""

    body: NDArray[np.float32]  # what the policy sees of the body
    goal: NDArray[np.float32]  # and of what is asked for
    action: NDArray[np.float32]
    returns_to_go: NDArray[np.float32]  # rewards from this step to the episode's end
    time: NDArray[np.int64]  # steps since the episode began
    valid: NDArray[np.bool_]


class WindowSampler:
    """Draws windows of `length` steps, every step of the selected episodes as likely to be the first.

    Of the steps nothing is held but what is drawn; the episodes' returns-to-go are summed as they are needed.
    `select` (one mask a dataset, (num_episodes,)) leaves episodes out. UserError where datasets differ or nothing is left.
    """

    def __init__(
        self, datasets: Sequence[Dataset], select: Sequence[NDArray[np.bool_]], goal: Sequence[str], length: int
    ) -> None:
        check_alike(datasets)
        self.datasets, self.length, self.goal = datasets, length, list(goal)
        self.info = datasets[0].info
        self._body_columns = self.info.columns_of(is_goal=False)
        self._readers = [goal_reader(part, dataset) for dataset in datasets for part in goal]
        self._episodes = [np.flatnonzero(mask) for mask in select]
        lengths = [dataset.episodes.length[kept] for dataset, kept in zip(datasets, self._episodes, strict=True)]
        self._which = np.repeat(np.arange(len(datasets)), [len(part) for part in lengths])
        self._episode = np.concatenate(self._episodes)
        self._ends = np.cumsum(np.concatenate(lengths))
        if len(self._ends) == 0:
            raise UserError(f"{datasets[0].folder}: no episode is left of the selection")

    @property
    def num_steps(self) -> int:
        """Of the selected episodes."""
        return int(self._ends[-1])

    @property
    def num_episodes(self) -> int:
        """That are selected."""
        return len(self._ends)

    @property
    def body_size(self) -> int:
        """Entries of the observation that show the body."""
        return len(self._body_columns)

    @property
    def goal_size(self) -> int:
        """Numbers that a goal is."""
        return sum(goal_sizes(self.info, self.goal))

    def draw(self, count: int, rng: np.random.Generator) -> Windows:
        """`count` windows."""
        step = rng.integers(self.num_steps, size=count)
        row = np.searchsorted(self._ends, step, side="right")
        before = np.where(row > 0, self._ends[row - 1], 0)
        return self._read(row, step - before)

    def read(self, episode: int, first: int) -> Windows:
        """The window of a selected episode (an index into the selection) from step `first` on, (1, length, ...)."""
        return self._read(np.array([episode]), np.array([first]))

    def _read(self, rows: NDArray[np.intp], firsts: NDArray[np.int64]) -> Windows:
        count, length = len(rows), self.length
        body = np.zeros((count, length, self.body_size), np.float32)
        goal = np.zeros((count, length, self.goal_size), np.float32)
        action = np.zeros((count, length, self.info.action_size), np.float32)
        returns = np.zeros((count, length), np.float32)
        valid = np.zeros((count, length), bool)
        num_parts = len(self.goal)
        for i, (row, first) in enumerate(zip(rows.tolist(), firsts.tolist(), strict=True)):
            which, episode = int(self._which[row]), int(self._episode[row])
            dataset = self.datasets[which]
            table = dataset.episodes
            shard = dataset.shard(int(table.shard[episode]))
            start, end = int(table.start[episode]) + first, int(table.start[episode] + table.length[episode])
            stop = min(start + length, end)
            n = stop - start
            observation = shard["observation"][start:stop]
            body[i, :n] = observation[:, self._body_columns]
            at = 0
            for read in self._readers[which * num_parts : (which + 1) * num_parts]:
                values = read(shard, slice(start, stop))
                goal[i, :n, at : at + values.shape[1]] = values
                at += values.shape[1]
            action[i, :n] = shard["action"][start:stop]
            rewards = shard["reward"][start:end]
            after = float(rewards[n:].sum(dtype=np.float64))
            returns[i, :n] = after + np.cumsum(rewards[:n][::-1], dtype=np.float64)[::-1]
            valid[i, :n] = True
        time = firsts[:, None] + np.arange(length)
        return Windows(body, goal, action, returns, time, valid)


def goal_sizes(info: Any, goal: Sequence[str]) -> list[int]:
    """Numbers in each part of a goal."""
    sizes = {"skill": len(info.skills), "command": 3, "place": 2, "words": 2 * NUM_FEATURES}
    return [sizes[part] for part in goal]


def goal_reader(part: str, dataset: Dataset) -> Any:
    """A function of a file's columns and rows: the goal's part, (num_rows, size), as a world's observation shows it.

    UserError if the dataset does not tell.
    """
    info = dataset.info
    if not info.skills:
        raise UserError(f"goal: {dataset.folder} is of a world without skills; write []")
    if part == "skill":
        rows = np.eye(len(info.skills), dtype=np.float32)
        return lambda columns, where: rows[columns["skill"][where]]
    if part == "command":
        return lambda columns, where: columns["command"][where]
    if part == "words":
        encode = ENCODERS[str(info.world.get("encoder", "hashed_ngrams"))]
        table = np.array([np.concatenate([encode(p.words), encode(in_a_mirror(p.words))]) for p in info.phrases], np.float32)
        return lambda columns, where: table[columns["goal"][where]]
    offset = 0
    for block in info.observation:
        if block.name == "place":
            entries = slice(offset, offset + block.size)
            return lambda columns, where: columns["observation"][where, entries]
        offset += block.size
    raise UserError(
        f"goal: {dataset.folder} does not show where a command would have brought the body (within {PLACE_SEEN} m); "
        "leave place away, or collect a policy that sees it"
    )


def check_alike(datasets: Sequence[Dataset]) -> None:
    """UserError naming the first dataset that cannot be learned from together with the first."""
    first = datasets[0]
    for other in datasets[1:]:
        for name in ("body", "observation", "action_size", "skills", "phrases"):
            ours, its = getattr(first.info, name), getattr(other.info, name)
            if ours != its:
                raise UserError(
                    f"datasets: {other.folder} has another {name.replace('_', ' ')} than {first.folder}; train on one of them"
                )


def split(dataset: Dataset, top: float, held_out: float) -> tuple[Array, Array]:
    """Masks (num_episodes,) of the episodes to learn from and of those held out.

    `top`: the share of steps, of the episodes with the highest returns, that is kept (1: all), before the others are held out;
    every 1 / `held_out`th episode of those is.
    """
    table = dataset.episodes
    kept = np.ones(len(table), bool)
    if top < 1:
        order = np.argsort(-table.episode_return, kind="stable")
        enough = np.cumsum(table.length[order]) - table.length[order] < top * table.length.sum()
        kept[:] = False
        kept[order[enough]] = True
    held = np.zeros(len(table), bool)
    if held_out > 0:
        chosen = np.flatnonzero(kept)
        held[chosen[:: max(2, round(1 / held_out))]] = True
    return kept & ~held, kept & held
