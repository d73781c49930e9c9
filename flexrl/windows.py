"""Windows of steps drawn from the files of datasets: what a policy learns from offline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexrl.config import UserError
from flexrl.dataset import Dataset, DatasetInfo, columns_of
from flexrl.goals import PLACE_SEEN
from flexrl.phrasings import HELD_OUT, with_copies
from flexrl.text_encoders import Encoder, embed, find_encoder

Array = NDArray[Any]
SPLIT = 20_000  # seed of which episodes are held out
# What a goal is made of, by the name of the block that shows it in a world's observation.
GOAL_BLOCKS = {"skill": "one_hot", "command": "command", "place": "place", "words": "embedding"}


@dataclass(frozen=True)
class Windows:
    """Steps side by side, (num_windows, length, ...), those after an episode's end zero and not `valid`."""

    body: NDArray[np.float32]  # what the policy sees of the body
    goal: NDArray[np.float32]  # and of what is asked for
    action: NDArray[np.float32]
    target: NDArray[np.float32]  # the action to learn: that one, or what was intended
    returns_to_go: NDArray[np.float32]  # rewards from this step to the episode's end
    time: NDArray[np.int64]  # steps since the episode began
    valid: NDArray[np.bool_]


class WindowSampler:
    """Draws windows of `length` steps, every step of the selected episodes as likely to be the first.

    Of the steps nothing is held but what is drawn; the episodes' returns-to-go are summed as they are needed (zero unless
    `needs_returns`); words are drawn anew for each window, from its skill's phrases and `word_variants` distorted copies of
    each. `target`: the column that is to be learned, `action` or `intended`. `select` (one mask a dataset, (num_episodes,))
    leaves episodes out. UserError where datasets differ or nothing is left.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        select: Sequence[NDArray[np.bool_]],
        goal: Sequence[str],
        length: int,
        needs_returns: bool = True,
        target: str = "action",
        word_variants: int = 0,
    ) -> None:
        check_alike(datasets)
        self.datasets, self.length, self.goal, self._needs_returns = datasets, length, list(goal), needs_returns
        self._select = list(select)
        self._target = target
        self.info = datasets[0].info
        self._body_columns = self.info.columns_of(is_goal=False)
        self._readers = [goal_reader(part, datasets[0], word_variants) for part in goal]
        chosen = [np.flatnonzero(mask) for mask in select]
        tables = [dataset.episodes for dataset in datasets]
        self._length, self._start, self._shard = (
            np.concatenate([getattr(table, name)[kept] for table, kept in zip(tables, chosen, strict=True)])
            for name in ("length", "start", "shard")
        )
        self._dataset = np.repeat(np.arange(len(datasets)), [len(kept) for kept in chosen])
        self._ends = np.cumsum(self._length)
        if len(self._ends) == 0:
            folders = ", ".join(str(dataset.folder) for dataset in datasets)
            raise UserError(f"top: no episode of {folders} is left to learn from; raise it, or write held_out: 0")

    @property
    def num_steps(self) -> int:
        """Of the selected episodes."""
        return int(self._ends[-1])

    @cached_property
    def skills_seen(self) -> set[str]:
        """Those that any step of the selected episodes is of."""
        chosen = zip(self.datasets, self._select, strict=True)
        return {self.info.skills[skill] for dataset, mask in chosen for skill in dataset.skills_of(mask)}

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
        return self.read(row, step - before, rng)

    def read(self, rows: NDArray[np.intp], firsts: NDArray[np.int64], rng: np.random.Generator) -> Windows:
        """The windows of selected episodes (indices into the selection) from steps `firsts` on; `rng` draws their words."""
        length = self.length
        starts = self._start[rows] + firsts  # rows of the files
        left = self._length[rows] - firsts  # steps to each episode's end
        counts = np.minimum(left, length)
        time = firsts[:, None] + np.arange(length)
        valid = np.arange(length) < counts[:, None]
        luck = None if "words" not in self.goal else rng.random((len(rows), len(self.info.skills)))

        def read(name: str) -> Array:
            return self._read_column(name, rows, starts, counts, length)

        observation, action = read("observation"), read("action")
        steps = GoalSteps(read, observation, luck)
        parts = [reader(steps) for reader in self._readers]
        goal = np.concatenate(parts, axis=-1) * valid[..., None] if parts else np.zeros((*valid.shape, 0), np.float32)
        returns = np.zeros(valid.shape, np.float32)
        if self._needs_returns:
            rewards = self._read_column("reward", rows, starts, left, int(left.max()))
            for i, number in enumerate(left.tolist()):
                returns[i] = _returns_to_go(rewards[i, :number], length)
        target = action if self._target == "action" else read(self._target)
        return Windows(observation[..., self._body_columns], goal, action, target, returns, time, valid)

    def _read_column(
        self, name: str, rows: NDArray[np.intp], starts: NDArray[np.int64], counts: NDArray[np.int64], length: int
    ) -> Array:
        """`counts` steps of each episode from its file's row `starts` on, zeros behind them, (num_windows, length, ...)."""
        column = columns_of(self.info)[name]
        out = np.zeros((len(rows), length, *column.shape), column.dtype)
        owner = self._dataset[rows]
        for which in np.unique(owner).tolist():
            mine = np.flatnonzero(owner == which)
            part = out if len(mine) == len(rows) else np.zeros((len(mine), *out.shape[1:]), out.dtype)
            where = (self._shard[rows[mine]], starts[mine], counts[mine])
            self.datasets[which].read_into(part, name, *(numbers.tolist() for numbers in where))
            if part is not out:
                out[mine] = part
        return out


def _returns_to_go(rewards: NDArray[np.float32], length: int) -> NDArray[np.float64]:
    """Of the first `length` steps of a rest of an episode, zero after its end."""
    n = min(length, len(rewards))
    after = float(rewards[n:].sum(dtype=np.float64))
    result = np.zeros(length)
    result[:n] = after + np.cumsum(rewards[:n][::-1], dtype=np.float64)[::-1]
    return result


def goal_sizes(info: DatasetInfo, goal: Sequence[str]) -> list[int]:
    """Numbers in each part of a goal."""
    sizes = {"skill": len(info.skills), "command": 3, "place": 2}
    if "words" in goal:
        sizes["words"] = 2 * encoder_of(info).size
    return [sizes[part] for part in goal]


def encoder_of(info: DatasetInfo) -> Encoder:
    """Who makes vectors of its words; UserError if that is not here."""
    try:
        return find_encoder(str(info.world.get("encoder", "hashed_ngrams")))
    except ValueError as error:
        raise UserError(f"datasets: {error}") from None


@dataclass(frozen=True)
class GoalSteps:
    """Steps whose goals are to be read."""

    read: Callable[[str], Array]  # a column of them by its name, (num_windows, length, ...)
    observation: NDArray[np.float32]
    luck: NDArray[np.float64] | None  # [0, 1) a window and skill, (num_windows, num_skills), draws its words; None: it has none


def goal_reader(part: str, dataset: Dataset, word_variants: int = 0) -> Callable[[GoalSteps], Array]:
    """What reads a part of the goal, (num_windows, length, size), as a world shows it.

    UserError if the dataset does not tell.
    """
    info = dataset.info
    if not info.skills:
        raise UserError(f"goal: {dataset.folder} is of a world without skills; write []")
    if part == "skill":
        rows = np.eye(len(info.skills), dtype=np.float32)
        return lambda steps: rows[steps.read("skill")]
    if part == "command":
        return lambda steps: steps.read("command")
    if part == "words":
        held_out = [phrase.words for phrase in info.phrases if phrase.words in HELD_OUT]
        if held_out:
            raise UserError(f"goal: {dataset.folder} has words that are held out, such as {held_out[0]!r}; collect others")
        return _words_reader(info, word_variants)
    offset = 0
    for block in info.observation:
        if block.name == "place":
            entries = slice(offset, offset + block.size)
            return lambda steps: steps.observation[..., entries]
        offset += block.size
    raise UserError(
        f"goal: {dataset.folder} does not show where a command would have brought the body (within {PLACE_SEEN} m); "
        "leave place away, or collect a policy that sees it"
    )


def _words_reader(info: DatasetInfo, variants: int) -> Callable[[GoalSteps], Array]:
    encoder = encoder_of(info)
    copies = with_copies([phrase.words for phrase in info.phrases], variants)
    drawn = embed(copies, encoder).astype(np.float32)  # skill by skill, as the phrases are
    owners = np.repeat([info.skills.index(phrase.skill) for phrase in info.phrases], 1 + variants)
    counts = np.bincount(owners, minlength=len(info.skills))
    firsts = np.cumsum(counts) - counts

    def read(steps: GoalSteps) -> Array:
        assert steps.luck is not None
        phrases = firsts + (steps.luck * counts).astype(np.int64)  # (num_windows, num_skills)
        return drawn[np.take_along_axis(phrases, steps.read("skill").astype(np.int64), axis=1)]

    return read


def check_alike(datasets: Sequence[Dataset]) -> None:
    """UserError naming the first dataset that cannot be learned from together with the first."""
    first = datasets[0]
    ours = _nature(first.info)
    for other in datasets[1:]:
        for name, its in _nature(other.info).items():
            if its != ours[name]:
                told = f" ({its}, not {ours[name]})" if isinstance(its, (str, float)) else ""
                raise UserError(f"datasets: {other.folder} has another {name} than {first.folder}{told}; train on one of them")


def _nature(info: DatasetInfo) -> dict[str, Any]:
    """What two datasets must have in common for one policy to learn from both, by its name in words."""
    return {
        "body": info.body,
        "environment": info.world.get("id"),
        "world.kwargs": info.world.get("kwargs") or {},
        "world.action": info.world.get("action"),  # torque and servo are as many numbers, in the same bounds
        "time between steps": info.seconds_per_step,
        "observation": info.observation,
        "action size": info.action_size,
        "lower bound of actions": info.action_low,
        "upper bound of actions": info.action_high,
        "skills": info.skills,
        "phrases": info.phrases,
    }


def split(datasets: Sequence[Dataset], top: float, held_out: float, whole: bool = False) -> list[tuple[Array, Array]]:
    """For each dataset masks (num_episodes,) of the episodes to learn from and of those held out.

    `top`: the share of the steps of all datasets together, those of the episodes with the highest returns among them all,
    that is kept (1: all). `whole`: without episodes that the collection's end cut, whose returns say nothing, unless all are.
    Then that share of a dataset's kept episodes is held out, where there are two at least: drawn, always the same, as every
    n-th would be of a few simulations alone where all episodes are as long.
    """
    returns, lengths, cut = (
        np.concatenate([getattr(d.episodes, name) for d in datasets]) for name in ("episode_return", "length", "cut")
    )
    kept = ~cut if whole and not cut.all() else np.ones(len(returns), bool)
    if top < 1:
        order = np.argsort(np.where(kept, -returns, np.inf), kind="stable")
        enough = np.cumsum(lengths[order]) - lengths[order] < top * lengths[kept].sum()
        best = np.zeros(len(returns), bool)
        best[order[enough]] = True
        kept &= best
    ends = np.cumsum([len(dataset.episodes) for dataset in datasets])
    masks = []
    for mine in np.split(kept, ends[:-1]):
        held, chosen = np.zeros(len(mine), bool), np.flatnonzero(mine)
        if held_out > 0 and len(chosen) > 1:
            count = min(max(round(held_out * len(chosen)), 1), len(chosen) - 1)
            held[np.random.Generator(np.random.PCG64(SPLIT)).permutation(chosen)[:count]] = True
        masks.append((mine & ~held, held))
    return masks
