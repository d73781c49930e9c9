"""How skills come out in training: of each, the last parts of episodes, ended by a change of skill or with the episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexrl.physics import Array

WINDOW = 100  # parts of a skill that its means are over
ARRAYS = ("num_parts", "success", "num_steps", "sums")


class Outcomes:
    """The last WINDOW parts at each of `num_skills` skills, with the sums of `num_terms` reward terms."""

    def __init__(self, num_skills: int, num_terms: int) -> None:
        self.num_parts = np.zeros(num_skills, np.int64)  # that have ended so far
        self.success = np.full((num_skills, WINDOW), np.nan)  # 1 or 0; NaN where the part said nothing
        self.num_steps = np.zeros((num_skills, WINDOW), np.int64)  # control steps; 0 where there was no part yet
        self.sums = np.zeros((num_skills, WINDOW, num_terms))

    def add(self, skill: int, success: bool | None, num_steps: int, sums: Array) -> None:
        """A part at a skill (an index) has ended after `num_steps`, with these sums of reward terms (num_terms,)."""
        place = self.num_parts[skill] % WINDOW
        self.success[skill, place] = np.nan if success is None else success
        self.num_steps[skill, place], self.sums[skill, place] = num_steps, sums
        self.num_parts[skill] += 1

    def metrics(self, skills: Sequence[str], terms: Sequence[Mapping[str, int]]) -> dict[str, float]:
        """Means by name: success, length in control steps, reward terms a step; `terms`: each skill's, with their columns."""
        metrics: dict[str, float] = {}
        for index, (skill, its_terms) in enumerate(zip(skills, terms, strict=True)):
            if self.num_parts[index] == 0:
                continue
            num_steps = self.num_steps[index].sum()
            for name, column in its_terms.items():
                metrics[f"reward/{skill}/{name}"] = float(self.sums[index, :, column].sum() / num_steps)
            metrics[f"rollout/length/{skill}"] = float(num_steps / min(self.num_parts[index], WINDOW))
            judged = self.success[index][np.isfinite(self.success[index])]
            if len(judged):
                metrics[f"rollout/success/{skill}"] = float(judged.mean())
        return metrics

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        return {name: getattr(self, name).copy() for name in ARRAYS}

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on exactly where `get_state` was taken."""
        for name in ARRAYS:
            setattr(self, name, state[name].copy())
