"""Difficulty that follows success: a level in [0, 1] for each of several tasks, whatever they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from flexrl.config import Settings


class CurriculumSettings(Settings):
    """When a task becomes harder and when easier; 0 is its easiest form, 1 the one that evaluations ask for."""

    # level that every task begins with
    start: float = Field(0.0, ge=0, le=1)
    # share of successful episodes above which the level rises
    raise_above: float = Field(0.7, ge=0, lt=1)
    # and below which it falls
    lower_below: float = Field(0.3, ge=0, le=1)
    # by how much
    step: float = Field(0.05, gt=0, le=1)
    # episodes of a task between two decisions
    episodes: int = Field(30, ge=1, le=100_000)

    @model_validator(mode="after")
    def _in_order(self) -> CurriculumSettings:
        if self.lower_below > self.raise_above:
            raise ValueError(f"lower_below: expected at most raise_above, {self.raise_above:g}, found {self.lower_below:g}")
        return self


def next_level(level: float, success: float, settings: CurriculumSettings) -> float:
    """The level after a share of `success` at `level`."""
    if success > settings.raise_above:
        level += settings.step
    elif success < settings.lower_below:
        level -= settings.step
    return min(max(level, 0.0), 1.0)


class Curriculum:
    """The levels of `num_tasks` tasks, moved by how their episodes end."""

    def __init__(self, num_tasks: int, settings: CurriculumSettings) -> None:
        self.settings = settings
        self.levels = np.full(num_tasks, settings.start)
        self.num_ended = np.zeros(num_tasks, np.int64)  # since the last decision
        self.num_successful = np.zeros(num_tasks, np.int64)

    def ended(self, task: int, success: bool, level: float) -> None:
        """Counts an episode of a task (an index) that began at `level`, and decides once enough of them have ended.

        One from before the level changed does not count: many that began together would move it several times.
        """
        if level != self.levels[task]:
            return
        self.num_ended[task] += 1
        self.num_successful[task] += success
        if self.num_ended[task] >= self.settings.episodes:
            share = self.num_successful[task] / self.num_ended[task]
            self.levels[task] = next_level(float(self.levels[task]), float(share), self.settings)
            self.num_ended[task] = self.num_successful[task] = 0

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        return {name: getattr(self, name).copy() for name in ("levels", "num_ended", "num_successful")}

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on exactly where `get_state` was taken."""
        self.levels, self.num_ended, self.num_successful = (
            state[name].copy() for name in ("levels", "num_ended", "num_successful")
        )
