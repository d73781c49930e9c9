"""Which skill an episode is for, and which lying posture it begins from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Sampling = Literal["balanced", "weighted", "hardest"]
MEMORY = 50  # episodes of a skill over which its success rate is averaged
HIGHEST = 0.25  # share that a posture of the highest level is drawn with, to 1.25 of the lowest
EASIEST = 0.1  # failure rate that even a skill which always succeeds is counted with


class SkillSampler:
    """Draws the skill of each new episode.

    `balanced` takes the skill that has had the fewest steps for its weight, so that long episodes do not crowd out short
    ones, and at the start goes round all skills; `weighted` draws by the weights; `hardest` draws by weight times the share
    of late episodes that failed.
    """

    def __init__(self, sampling: Sampling, weights: Mapping[str, float]) -> None:
        self.sampling, self.weights = sampling, np.array(list(weights.values()), float)
        self.num_steps = np.zeros(len(weights), np.int64)  # of each skill, and one for each start
        self.success = np.zeros(len(weights))  # running rate of each skill

    def begin(self) -> None:
        """Forgets what was counted."""
        self.num_steps[:], self.success[:] = 0, 0.0

    def draw(self, rng: np.random.Generator) -> int:
        """The skill (an index) of the next episode."""
        if len(self.weights) == 1:
            return 0
        if self.sampling == "balanced":
            skill = int(np.argmin(np.where(self.weights > 0, self.num_steps / np.maximum(self.weights, 1e-9), np.inf)))
            self.num_steps[skill] += 1
            return skill
        shares = self._shares()
        return int(rng.choice(len(shares), p=shares / shares.sum()))

    def draw_next(self, rng: np.random.Generator, skill: int, share: NDArray[np.floating]) -> int:
        """The skill that an episode goes on with after `skill`: another one, drawn likewise times `share` (num_skills,)."""
        shares = self._shares() * share
        shares[skill] = 0.0
        return skill if shares.sum() == 0 else int(rng.choice(len(shares), p=shares / shares.sum()))

    def _shares(self) -> NDArray[np.floating]:
        """What skills are drawn by, (num_skills,)."""
        return self.weights * (1.0 - self.success + EASIEST) if self.sampling == "hardest" else self.weights

    def stepped(self, skills: NDArray[np.intp]) -> None:
        """Counts one step of simulations at `skills` (num_envs,)."""
        self.num_steps += np.bincount(skills, minlength=len(self.weights))

    def ended(self, skill: int, success: bool) -> None:
        """Counts how an episode of a skill came out."""
        self.success[skill] += (success - self.success[skill]) / MEMORY

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        return {"num_steps": self.num_steps.copy(), "success": self.success.copy()}

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on exactly where `get_state` was taken."""
        self.num_steps, self.success = state["num_steps"].copy(), state["success"].copy()


class PoseLevels:
    """A level from 0 to 1 for each of `num_poses` lying postures, by how episodes from it come out; low ones are drawn more."""

    def __init__(self, num_poses: int, up: float, down: float, start: float = 0.0) -> None:
        self.levels = np.full(num_poses, start)
        self._up, self._down, self._start = up, down, start

    def begin(self) -> None:
        """Forgets how episodes came out."""
        self.levels[:] = self._start

    def draw(self, rng: np.random.Generator) -> int:
        """The posture (an index) that the next episode begins from."""
        ends = np.cumsum(1.0 + HIGHEST - self.levels)
        return min(int(np.searchsorted(ends, rng.random() * ends[-1], side="right")), len(ends) - 1)

    def ended(self, pose: int, success: bool) -> None:
        """Counts how an episode from a posture came out."""
        self.levels[pose] = min(max(self.levels[pose] + (self._up if success else -self._down), 0.0), 1.0)

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        return {"levels": self.levels.copy()}

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on exactly where `get_state` was taken; of another number of postures it begins anew."""
        if state["levels"].shape == self.levels.shape:
            self.levels = state["levels"].copy()
