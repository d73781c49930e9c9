"""The batch of bodies as a native SB3 `VecEnv`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from flexrl.assignments import pack_parts, unpack_parts
from flexrl.motor_batch import Bools, MotorBatch, StepResult
from flexrl.motor_settings import MotorSettings
from flexrl.outcomes import Outcomes


class MotorWorld(VecEnv):
    """The batch as a native SB3 `VecEnv`: finished episodes restart by themselves, their last observation is kept.

    Each finished episode's info carries `terminal_observation`, `TimeLimit.truncated`, `terminated`, `truncated`,
    `diverged`, and `episode`: `r` (return), `l` (length), `skill` (the last one), and of its part at that skill `success` and
    `measures` (where the task says what success is; `success` only where the part tells, see `MotorBatch.outcome`),
    `skill_steps`, `reward/<term>` (sums); `mean_speed` (m/s along x). A change of the skill within an episode is `switch` in
    the info of that step, see `motor_batch.Switch`; of a change of the skill or the command, `unchanged_observation` is what
    would have been seen without it.
    """

    def __init__(self, settings: MotorSettings, seed: int = 0) -> None:
        self.batch = MotorBatch(settings, seed)
        self.render_mode = None
        super().__init__(settings.num_envs, self.batch.observation_space, self.batch.action_space)
        self._term_names = self.batch.term_names
        self._actions: NDArray[np.floating] = np.zeros((self.num_envs, *self.action_space.shape), np.float32)
        self._sums = np.zeros((len(self._term_names) + 1, self.num_envs))  # return, then each term
        self._start_x = np.zeros(self.num_envs)  # m
        self._sums_before = np.zeros_like(self._sums)  # where the present skill began
        self.outcomes = Outcomes(len(self.batch.tasks), len(self._term_names))
        rows = {term: row for row, term in enumerate(self.batch.terms)}
        self._terms_of = [{term.__name__: rows[term] for term in task.rewards} for task in self.batch.tasks]  # and their rows
        self.num_episodes = self.num_diverged = 0  # ended since a learner last asked
        self.total_diverged = 0

    def reset(self) -> NDArray[np.floating]:
        """Start all episodes anew; observations (num_envs, obs_dim)."""
        if self._seeds[0] is not None:
            self.batch.seed(self._seeds[0])
            self._reset_seeds()
        obs = self.batch.reset(np.arange(self.num_envs))
        if self.batch.settings.stagger:
            self.batch.stagger()
        self._sums[:] = self._sums_before[:] = 0
        self._start_x = self.batch.position[:, 0].copy()
        return obs

    def step_async(self, actions: NDArray[np.floating]) -> None:
        """Keeps the actions (num_envs, action_dim) for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[NDArray[np.floating], NDArray[np.float32], Bools, list[dict[str, Any]]]:
        """SB3's step: observations, rewards, dones, infos; `infos` is one shared empty dict where nothing ended."""
        result = self.batch.step(self._actions)
        self._sums[0] += result.reward
        self._sums[1:] += result.terms
        done = result.terminated | result.truncated
        infos: list[dict[str, Any]] = [_NO_INFO] * self.num_envs
        for i, obs in result.unchanged.items():
            infos[i] = {"unchanged_observation": obs}
        for i, switch in result.switches.items():
            infos[i]["switch"] = switch
            self._count(self.batch.skills.index(switch.before), i, switch.success, switch.num_steps)
            self._sums_before[:, i] = self._sums[:, i]
        ids = np.flatnonzero(done)
        if len(ids):
            self.num_episodes += len(ids)
            self.num_diverged += int(result.diverged.sum())
            success = self.batch.success(result.terminated)
            for i in map(int, ids):
                outcome = self.batch.ended(i, bool(success[i]))
                self._count(int(self.batch.asked.skill[i]), i, outcome, self.batch.part_length(i))
                infos[i] = self._end_of_episode(i, result, outcome)
            result.obs[ids] = self.batch.reset(ids)
            self._sums[:, ids] = self._sums_before[:, ids] = 0
            self._start_x[ids] = self.batch.position[ids, 0]
        return result.obs, result.reward.astype(np.float32), done, infos

    def _count(self, skill: int, i: int, outcome: bool | None, num_steps: int) -> None:
        self.outcomes.add(skill, outcome, num_steps, self._part(i))

    def _part(self, i: int) -> NDArray[np.float64]:
        """The sums of reward terms since simulation i's present skill began, (num_terms,)."""
        return self._sums[1:, i] - self._sums_before[1:, i]

    def _end_of_episode(self, i: int, result: StepResult, outcome: bool | None) -> dict[str, Any]:
        length = int(self.batch.num_steps[i])
        distance = self.batch.position[i, 0] - self._start_x[i]
        skill = int(self.batch.asked.skill[i])
        task = self.batch.tasks[skill]
        episode: dict[str, Any] = {"r": float(self._sums[0, i]), "l": length, "skill": task.name}
        if outcome is not None:
            episode["success"] = outcome
        if task.success is not None and self.batch.measures is not None:
            episode["measures"] = self.batch.measures.describe(i)
        episode["mean_speed"] = float(distance / (length * self.batch.physics.dt))
        episode["skill_steps"] = self.batch.part_length(i)
        part = self._part(i)
        episode |= {f"reward/{name}": float(part[row]) for name, row in self._terms_of[skill].items()}
        return {
            "terminal_observation": result.obs[i].copy(),
            "TimeLimit.truncated": bool(result.truncated[i] and not result.terminated[i]),
            "terminated": bool(result.terminated[i]),
            "truncated": bool(result.truncated[i]),
            "diverged": bool(result.diverged[i]),
            "episode": episode,
        }

    def take_metrics(self) -> dict[str, float]:
        """How skills came out lately, how many simulations the engine lost so far, and the share lost since the last call.

        The share is of the episodes that ran since then, a hundred at least: a single loss in a short rollout says nothing.
        """
        self.total_diverged += self.num_diverged
        share = self.num_diverged / max(100, self.num_episodes + self.num_envs)
        metrics = {"world/diverged": float(self.total_diverged), "world/diverged_share": share}
        self.num_episodes = self.num_diverged = 0
        if self.batch.asked.curriculum is not None:
            levels = zip(self.batch.tasks, self.batch.asked.curriculum.levels, strict=True)
            metrics |= {f"curriculum/{task.name}": float(level) for task, level in levels if task.can_be_easier}
        return metrics | self.outcomes.metrics(self.batch.skills, self._terms_of)

    def get_state(self) -> dict[str, NDArray[Any]]:
        """The batch's state, the sums of the running episodes, and how the last ones came out."""
        ours = {
            "sums": self._sums,
            "start_x": self._start_x,
            "sums_before": self._sums_before,
            "total_diverged": np.array(self.total_diverged),
        }
        outcomes = pack_parts([("outcomes", self.outcomes)])
        return self.batch.get_state() | outcomes | {name: array.copy() for name, array in ours.items()}

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on exactly where `get_state` was taken."""
        self.batch.set_state(state)
        self._sums, self._start_x = state["sums"].copy(), state["start_x"].copy()
        self._sums_before = state["sums_before"].copy()
        self.total_diverged = int(state.get("total_diverged", 0))  # an older flex-rl did not save it
        unpack_parts([("outcomes", self.outcomes)], state)

    def close(self) -> None:
        """The batch's threads end with it."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The world's attribute, once for each simulation asked for."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused: the simulations are one object, so an attribute cannot differ between them."""
        raise AttributeError(f"the simulations of a MotorWorld share their attributes; {attr_name} cannot be set on some")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Calls the world's method once, and returns its answer for each simulation asked for."""
        return [getattr(self, method_name)(*args, **kwargs)] * len(list(self._get_indices(indices)))

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No wrapper lies round a single simulation."""
        return [False] * len(list(self._get_indices(indices)))


_NO_INFO: dict[str, Any] = {}
