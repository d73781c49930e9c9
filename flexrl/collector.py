"""Policies acting side by side in one world, and the episodes that come of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from flexrl.dataset import UNKNOWN, Column
from flexrl.motor_world import MotorWorld
from flexrl.policies import Policy
from flexrl.randomness import pack_generator, random_state, set_random_state, unpack_generator

Array = NDArray[Any]
FIRST_CAPACITY = 1024  # steps of an episode that there is room for; doubled as episodes need it


@dataclass(frozen=True)
class Episode:
    """A finished episode: its steps, and its entries in the table of episodes (where its steps lie excepted)."""

    steps: dict[str, Array]  # by column, (length, ...)
    row: dict[str, Any]


class Pending:
    """The steps of episodes that go on, (capacity, num_envs, ...) a column: a ring, one row a control step."""

    def __init__(self, columns: Mapping[str, Column], num_envs: int) -> None:
        self.length = np.zeros(num_envs, np.int64)
        self._now = 0  # row of the present step
        self._arrays = {name: np.zeros((FIRST_CAPACITY, num_envs, *c.shape), c.dtype) for name, c in columns.items()}

    @property
    def _capacity(self) -> int:
        return len(self._arrays["reward"])

    def put(self, name: str, values: Array) -> None:
        """A column of the present step of all episodes, (num_envs, ...)."""
        self._arrays[name][self._now] = values

    def advance(self) -> None:
        """The present step is complete."""
        self.length += 1
        self._now = (self._now + 1) % self._capacity
        if self.length.max() == self._capacity:  # one of them began just where the next step would go
            for name, array in self._arrays.items():
                oldest_first = np.roll(array, -self._now, axis=0)
                self._arrays[name] = np.concatenate([oldest_first, np.zeros_like(oldest_first)])
            self._now = self._capacity // 2

    def _rows(self, i: int) -> NDArray[np.int64]:
        return (self._now + np.arange(-self.length[i], 0)) % self._capacity

    def take(self, i: int) -> dict[str, Array]:
        """The steps of simulation i's episode, which ends, as copies."""
        rows = self._rows(i)
        self.length[i] = 0
        return {name: array[rows, i] for name, array in self._arrays.items()}

    def get_state(self) -> dict[str, Array]:
        """The steps of all episodes that go on, one after the other."""
        rows = [self._rows(i) for i in range(len(self.length))]
        state = {name: np.concatenate([a[own, i] for i, own in enumerate(rows)]) for name, a in self._arrays.items()}
        return state | {"length": self.length.copy()}

    def set_state(self, state: Mapping[str, Array]) -> None:
        """Goes on exactly where `get_state` was taken."""
        length = state["length"]
        capacity = max(FIRST_CAPACITY, int(length.max()) + 1)
        ends = np.cumsum(length)
        self._now = int(length.max())
        for name, array in self._arrays.items():
            self._arrays[name] = np.zeros((capacity, *array.shape[1:]), array.dtype)
            for i, (n, end) in enumerate(zip(length, ends, strict=True)):
                self._arrays[name][self._now - n : self._now, i] = state[name][end - n : end]
        self.length = length.copy()


class Crew:
    """Several policies as one: each has some of the simulations, by weight."""

    def __init__(
        self,
        policies: Sequence[Policy],
        weights: Sequence[float],
        num_envs: int,
        action_space: spaces.Space[Any],
        teachers: Sequence[Policy | None] = (),
    ) -> None:
        self._policies, self._teachers = policies, teachers or [None] * len(policies)
        shares = np.array(weights) / sum(weights) * num_envs
        ends = np.rint(np.cumsum(shares)).astype(int)
        self.rows = [slice(int(start), int(end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        if any(rows.start == rows.stop for rows in self.rows):
            raise ValueError("one of the policies would have no simulation; raise num_envs or its weight")
        self.policy = np.repeat(np.arange(len(policies)), [rows.stop - rows.start for rows in self.rows])  # (num_envs,)
        self._shape, self._dtype = action_space.shape or (), action_space.dtype

    def _all(self) -> list[tuple[slice, Policy]]:
        """Whoever acts or teaches, and where."""
        return [
            (rows, policy)
            for rows, *both in zip(self.rows, self._policies, self._teachers, strict=True)
            for policy in both
            if policy is not None
        ]

    def reset(self, mask: NDArray[np.bool_]) -> None:
        """Episodes begin where `mask` (num_envs,) is true."""
        for rows, policy in self._all():
            policy.reset(mask[rows])

    def act(self, obs: NDArray[np.floating]) -> tuple[Array, Array]:
        """Actions, and what should be done: the same, but where somebody teaches; (num_envs, ...) both."""
        actions = np.empty((len(obs), *self._shape), self._dtype)
        intended = np.empty_like(actions)
        for policy, teacher, rows in zip(self._policies, self._teachers, self.rows, strict=True):
            actions[rows] = policy.act(obs[rows])
            intended[rows] = actions[rows] if teacher is None else teacher.act(obs[rows])
        return actions, intended

    def feedback(self, action: Array, reward: NDArray[np.floating]) -> None:
        """What was really done in the last step, and what it brought."""
        for rows, policy in self._all():
            policy.feedback(action[rows], reward[rows])

    def get_state(self) -> list[Any]:
        """What each policy remembers."""
        return [policy.get_state() for _, policy in self._all()]

    def set_state(self, state: Sequence[Any]) -> None:
        """Goes on exactly where `get_state` was taken."""
        for (_, policy), own in zip(self._all(), state, strict=True):
            policy.set_state(own)


class Experts:
    """One policy for all skills, with others in its place for some of them, by what the goal in the observation says.

    `columns`: where the observation shows the skill, one-hot; `experts`: by the skill's index there. All of them see every
    step, so that a memory is up to date where the skill changes.
    """

    def __init__(self, policy: Policy, experts: Mapping[int, Policy], columns: slice) -> None:
        self._policy, self._experts, self._columns = policy, experts, columns

    def _all(self) -> list[Policy]:
        return [self._policy, *self._experts.values()]

    def reset(self, mask: NDArray[np.bool_]) -> None:
        """Episodes begin where `mask` (num_envs,) is true."""
        for policy in self._all():
            policy.reset(mask)

    def act(self, obs: NDArray[np.floating]) -> Array:
        """Actions (num_envs, ...)."""
        actions, skill = np.array(self._policy.act(obs)), obs[:, self._columns].argmax(axis=1)
        for index, expert in self._experts.items():
            mine = skill == index
            actions[mine] = expert.act(obs)[mine]
        return actions

    def feedback(self, action: Array, reward: NDArray[np.floating]) -> None:
        """What was really done in the last step, and what it brought."""
        for policy in self._all():
            policy.feedback(action, reward)

    def get_state(self) -> dict[str, Any]:
        """What each of them remembers."""
        return {"all": [policy.get_state() for policy in self._all()]}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on exactly where `get_state` was taken."""
        for policy, own in zip(self._all(), state["all"], strict=True):
            policy.set_state(own)


class Collector:
    """Steps the world with the crew's actions, some of them noisy, and hands out the episodes that end."""

    def __init__(self, world: VecEnv, crew: Crew, columns: Mapping[str, Column], noise: Sequence[float], seed: int) -> None:
        self.world, self.crew, self.seed = world, crew, seed  # of the first simulation's episodes; the others' follow it
        self.num_steps = 0  # of all simulations
        self._levels = np.array(noise)
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 2])))
        self._batch = world.batch if isinstance(world, MotorWorld) else None
        self._pending = Pending(columns, world.num_envs)
        self._noise = np.zeros(world.num_envs)  # of each episode, in units of the action
        self._number = np.zeros(world.num_envs, np.int64)  # episodes that each simulation has had
        self._switches = np.zeros(world.num_envs, np.int64)  # within the present episode
        self._return = np.zeros(world.num_envs)
        self._obs: Array = np.empty(0)
        self._box = world.action_space if isinstance(world.action_space, spaces.Box) else None

    def begin(self) -> None:
        """Starts the first episodes."""
        self.world.seed(self.seed)
        self._begin_episodes()

    def _begin_episodes(self) -> None:
        everyone = np.ones(self.world.num_envs, bool)
        self._obs = np.asarray(self.world.reset())
        self.crew.reset(everyone)
        self._draw_noise(everyone)

    def _draw_noise(self, mask: NDArray[np.bool_]) -> None:
        self._noise[mask] = self._rng.choice(self._levels, size=int(mask.sum()))

    def step(self) -> Iterator[Episode]:
        """One control step of every simulation; the episodes that it ended."""
        put = self._pending.put
        put("observation", self._obs)
        if self._batch is not None:
            asked = self._batch.asked
            put("skill", asked.skill)
            put("goal", asked.asked_phrase)
            put("command", asked.command)
            put("state", self._batch.physics.resumable)
        chosen, intended = self.crew.act(self._obs)
        action = self._with_noise(chosen)
        put("action", action if action.ndim > 1 else action[:, None])
        put("intended", intended if intended.ndim > 1 else intended[:, None])
        obs, reward, done, infos = self.world.step(action)
        self.crew.feedback(action, reward)
        self._return += reward
        self.num_steps += self.world.num_envs
        put("reward", reward)
        ended = np.flatnonzero(done)
        cut_by_time = np.array([bool(infos[i].get("TimeLimit.truncated", False)) for i in ended], bool)
        terminated, truncated = np.zeros(len(done), bool), np.zeros(len(done), bool)
        terminated[ended], truncated[ended] = ~cut_by_time, cut_by_time
        put("terminated", terminated)
        put("truncated", truncated)
        self._pending.advance()
        for i in self._switched(infos):
            self._switches[i] += 1
        for i in map(int, ended):
            yield self._take(i, infos[i], np.asarray(infos[i]["terminal_observation"]), bool(terminated[i]))
        self._obs = np.asarray(obs)
        if len(ended):
            self.crew.reset(done)
            self._draw_noise(done)

    def _switched(self, infos: Sequence[Mapping[str, Any]]) -> list[int]:
        return [i for i, info in enumerate(infos) if info and "switch" in info]

    def _with_noise(self, action: Array) -> Array:
        if self._box is None or not self._noise.any():
            return action
        noise = self._rng.standard_normal(action.shape) * self._noise.reshape(-1, *[1] * (action.ndim - 1))
        return np.clip(action + noise, self._box.low, self._box.high).astype(action.dtype)

    def _take(self, i: int, info: Mapping[str, Any], final_observation: Array, terminated: bool, cut: bool = False) -> Episode:
        steps = self._pending.take(i)
        success = info.get("episode", {}).get("success")
        row = {
            "seed": self.seed + i,
            "number": int(self._number[i]),
            "skill": int(steps["skill"][-1]) if self._batch is not None else UNKNOWN,
            "goal": int(steps["goal"][0]) if self._batch is not None else UNKNOWN,
            "num_switches": int(self._switches[i]),
            "policy": int(self.crew.policy[i]),
            "noise": float(self._noise[i]),
            "episode_return": float(self._return[i]),
            "success": float("nan") if success is None else float(success),
            "terminated": terminated,
            "cut": cut,
            "final_observation": final_observation.astype(np.float32),
        }
        self._number[i] += 1
        self._switches[i], self._return[i] = 0, 0.0
        return Episode(steps, row)

    def cut(self) -> Iterator[Episode]:
        """The episodes that go on, as they are, at the end of the collection."""
        for i in np.flatnonzero(self._pending.length).tolist():
            last = int(self._pending.length[i]) - 1
            episode = self._take(i, {}, self._obs[i], terminated=False, cut=True)
            episode.steps["truncated"][last] = True
            yield episode

    def get_state(self) -> dict[str, Any]:
        """Everything that the next steps depend on; in a Gymnasium world, which cannot be saved, what of it can."""
        state: dict[str, Any] = {"crew": self.crew.get_state(), "rng": pack_generator(self._rng), "random": random_state()}
        state |= {"number": self._number.copy(), "num_steps": self.num_steps}
        if self._batch is None:
            state["num_steps"] -= int(self._pending.length.sum())  # its unfinished episodes are lost
            return state
        names = ("_noise", "_switches", "_return", "_obs")
        state |= {name.lstrip("_"): getattr(self, name).copy() for name in names}
        return state | {"world": self.world.get_state(), "pending": self._pending.get_state()}  # type: ignore[attr-defined]

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on exactly where `get_state` was taken; in a Gymnasium world with new episodes."""
        unpack_generator(self._rng, state["rng"])
        self._number, self.num_steps = state["number"].copy(), int(state["num_steps"])
        if self._batch is None:
            self.crew.set_state(state["crew"])
            set_random_state(state["random"])
            self.seed += self.num_steps
            self.begin()
            return
        self.world.reset()  # the world's arrays exist; what they hold follows
        self.world.set_state(state["world"])  # type: ignore[attr-defined]
        self._pending.set_state(state["pending"])
        for name in ("_noise", "_switches", "_return", "_obs"):
            setattr(self, name, state[name.lstrip("_")].copy())
        self.crew.set_state(state["crew"])
        set_random_state(state["random"])
