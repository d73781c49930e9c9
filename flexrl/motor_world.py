"""Physics and a task as one batched world: an SB3 `VecEnv`, and a Gymnasium env of the same code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import Field
from stable_baselines3.common.vec_env import VecEnv

from flexrl.config import Settings
from flexrl.observations import Observation, make_observation
from flexrl.physics import ALL, BODIES, Array, Mode, Physics
from flexrl.randomness import pack_generator, unpack_generator
from flexrl.tasks import State, Task, contact_cost, find_task

Bools = NDArray[np.bool_]
TaskName = Literal["walk_forward", "run_forward", "v5"]


class TaskOverrides(Settings):
    """What a YAML may change of a task, by name."""

    # weight of reward terms, by the term's name
    rewards: dict[str, float] = {}
    # m/s, for tasks that ask for a speed
    target_speed: float | None = None
    # Hz, for tasks with a gait: full left-right cycles
    gait_frequency: float | None = Field(None, gt=0)
    # control steps (15 ms for the humanoid, 50 ms for the cheetah) until an episode is truncated
    max_steps: int | None = Field(None, ge=1)


class MotorSettings(Settings):
    """A batch of MuJoCo bodies that learn a motor skill."""

    kind: Literal["motor"] = "motor"
    body: Literal["humanoid", "half_cheetah"] = "humanoid"
    task: TaskName = "walk_forward"
    # changes to tasks: {walk_forward: {rewards: {upright: 1.0}}}
    tasks: dict[TaskName, TaskOverrides] = {}
    # v5: Gymnasium's dynamics exactly; fast: implicitfast, 3 x 5 ms (the cheetah's are the same in both)
    physics: Mode = "fast"
    # proprio: joints, height, gravity, velocities, previous action, gait clock; v5: Gymnasium's observation
    observation: Literal["proprio", "v5"] = "proprio"
    # torque: [-1, 1] scaled to the motors' control range; v5: the control range itself
    action: Literal["torque", "v5"] = "torque"
    # simulations stepped together
    num_envs: int = Field(128, ge=1, le=65536)
    # physics threads; null: one for each CPU core
    num_threads: int | None = Field(None, ge=1, le=1024)


def resolve_task(settings: MotorSettings) -> Task:
    """The table's task with the YAML's overrides; ValueError with a sentence if they do not fit."""
    try:
        task = find_task(settings.body, settings.task)
    except KeyError as error:
        raise ValueError(str(error.args[0])) from None
    overrides = settings.tasks.get(settings.task)
    if overrides is None:
        return task
    terms = {term.__name__: term for term in task.rewards}
    for name in overrides.rewards:
        if name not in terms:
            raise ValueError(f"task {task.name} has no reward term {name!r}; it has {', '.join(terms)}")
    rewards = {term: overrides.rewards.get(name, task.rewards[term]) for name, term in terms.items()}
    return replace(
        task,
        rewards=rewards,
        target_speed=task.target_speed if overrides.target_speed is None else overrides.target_speed,
        gait_frequency=overrides.gait_frequency or task.gait_frequency,
        max_steps=overrides.max_steps or task.max_steps,
    )


@dataclass
class StepResult:
    """One control step of all simulations, before anything is reset."""

    obs: NDArray[np.floating]  # (num_envs, obs_dim)
    reward: Array  # (num_envs,)
    terms: Array  # weighted, in the order of Task.term_names, (num_terms, num_envs)
    terminated: Bools
    truncated: Bools
    diverged: Bools


class MotorBatch:
    """`num_envs` bodies at one task: the loop body that the VecEnv and the Gymnasium env share.

    Simulation i draws its starts from its own generator, seeded with seed + i as a Gymnasium env would be.
    """

    def __init__(self, settings: MotorSettings, seed: int = 0) -> None:
        self.settings, self.task = settings, resolve_task(settings)
        exact_contacts = contact_cost in self.task.rewards or settings.observation == "v5"
        self.physics = Physics(
            BODIES[settings.body],
            settings.physics,
            settings.num_envs,
            settings.num_threads,
            exact_contacts=exact_contacts and BODIES[settings.body].free,
        )
        self.num_envs = settings.num_envs
        model = self.physics.model
        low, high = model.actuator_ctrlrange.T
        self.control_scale = high if settings.action == "torque" else None  # the ranges are symmetric
        limits = (-np.ones(model.nu), np.ones(model.nu)) if settings.action == "torque" else (low, high)
        self.action_space = spaces.Box(limits[0].astype(np.float32), limits[1].astype(np.float32), dtype=np.float32)
        self.observation: Observation = make_observation(settings.observation, self.physics)
        self.has_mirror = self.physics.body.free and settings.observation == "proprio"
        limit = self.observation.limit
        self.observation_space = spaces.Box(-limit, limit, (self.observation.size,), self.observation.dtype)
        joints = self.physics.body.posture
        self.posture = np.array([self.task.posture.get(joint, 0.0) for joint in joints])  # rad
        self.seed(seed)
        self.num_steps = np.zeros(self.num_envs, np.int64)  # since each episode began
        self.previous_action = np.zeros((self.num_envs, model.nu), np.float32)
        self.position = np.zeros((self.num_envs, 2))  # m, at the end of the last step
        self.feet = np.zeros((self.num_envs, 2, 3))  # m, likewise

    def seed(self, seed: int) -> None:
        """Each simulation's generator, as Gymnasium's `reset(seed=seed + i)` makes it."""
        self.rngs = [np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed + i))) for i in range(self.num_envs)]

    def reset(self, ids: NDArray[np.intp]) -> NDArray[np.floating]:
        """Start episodes in simulations `ids` (n,); returns their first observations, (n, obs_dim)."""
        starts = [self.task.reset.sample(self.physics, self.rngs[i]) for i in ids]
        self.physics.reset(ids, np.array([qpos for qpos, _ in starts]), np.array([qvel for _, qvel in starts]))
        self.num_steps[ids] = 0
        self.previous_action[ids] = 0
        self.position[ids] = self.physics.ground_position(ids)
        self.feet[ids] = self.physics.foot_position(ids)
        return self.observation(self._state(self.previous_action[ids], self.position[ids], self.feet[ids], ids))

    def observe(self, action: NDArray[np.floating]) -> NDArray[np.floating]:
        """The observation of the present state after `action` (num_envs, nu), (num_envs, obs_dim)."""
        return self.observation(self._state(action, self.position, self.feet))

    def _state(
        self, action: NDArray[np.floating], old_position: Array, old_feet: Array, ids: slice | NDArray[np.intp] = ALL
    ) -> State:
        return State(
            physics=self.physics,
            action=action,
            previous_action=self.previous_action[ids],
            ground_velocity=(self.position[ids] - old_position) / self.physics.dt,
            foot_position=self.feet[ids],
            foot_velocity=(self.feet[ids] - old_feet) / self.physics.dt,
            time=self.num_steps[ids] * self.physics.dt,
            target_speed=self.task.target_speed,
            gait_frequency=self.task.gait_frequency,
            posture=self.posture,
            ids=ids,
        )

    def step(self, action: NDArray[np.floating]) -> StepResult:
        """One control step of every simulation with `action` (num_envs, nu)."""
        ctrl = action if self.control_scale is None else action * self.control_scale
        diverged = self.physics.step(ctrl)
        self.num_steps += 1
        old_position, self.position = self.position, self.physics.ground_position()
        old_feet, self.feet = self.feet, self.physics.foot_position()
        state = self._state(action, old_position, old_feet)
        terms = np.empty((len(self.task.rewards), self.num_envs))
        for row, (term, weight) in zip(terms, self.task.rewards.items(), strict=True):
            row[:] = weight * term(state)
        reward = self.task.total(terms)
        terminated = self.task.fallen(state) | diverged
        truncated = self.num_steps >= self.task.max_steps
        self.previous_action = np.array(action, np.float32)
        obs = self.observation(state)
        if diverged.any():
            obs = np.where(diverged[:, None], 0, obs)
            reward = np.where(diverged, 0.0, reward)
            terms[:, diverged] = 0.0
        return StepResult(obs, reward, terms, terminated, truncated, diverged)

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Everything the next steps depend on, as arrays; see `set_state`."""
        return {
            "physics": self.physics.get_state(),
            "rngs": np.stack([pack_generator(rng) for rng in self.rngs]),
            "num_steps": self.num_steps.copy(),
            "previous_action": self.previous_action.copy(),
            "position": self.position.copy(),
            "feet": self.feet.copy(),
        }

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on exactly where `get_state` was taken."""
        self.physics.set_state(state["physics"])
        for rng, row in zip(self.rngs, state["rngs"], strict=True):
            unpack_generator(rng, row)
        self.num_steps = state["num_steps"].copy()
        self.previous_action = state["previous_action"].copy()
        self.position = state["position"].copy()
        self.feet = state["feet"].copy()


class MotorWorld(VecEnv):
    """The batch as a native SB3 `VecEnv`: finished episodes restart by themselves, their last observation is kept.

    Each finished episode's info carries `terminal_observation`, `TimeLimit.truncated`, `terminated`, `truncated`,
    `diverged`, and `episode`: `r` (return), `l` (length), `mean_speed` (m/s along x), `reward/<term>` (sums).
    """

    def __init__(self, settings: MotorSettings, seed: int = 0) -> None:
        self.batch = MotorBatch(settings, seed)
        self.render_mode = None
        super().__init__(settings.num_envs, self.batch.observation_space, self.batch.action_space)
        self._term_names = self.batch.task.term_names
        self._actions: NDArray[np.floating] = np.zeros((self.num_envs, *self.action_space.shape), np.float32)
        self._sums = np.zeros((len(self._term_names) + 1, self.num_envs))  # return, then each term
        self._start_x = np.zeros(self.num_envs)  # m
        self.num_episodes = self.num_diverged = 0  # ended since a learner last asked
        self.total_diverged = 0

    def reset(self) -> NDArray[np.floating]:
        """Start all episodes anew; observations (num_envs, obs_dim)."""
        if self._seeds[0] is not None:
            self.batch.seed(self._seeds[0])
            self._reset_seeds()
        obs = self.batch.reset(np.arange(self.num_envs))
        self._sums[:] = 0
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
        ids = np.flatnonzero(done)
        if len(ids):
            self.num_episodes += len(ids)
            self.num_diverged += int(result.diverged.sum())
            for i in ids:
                infos[i] = self._end_of_episode(int(i), result)
            result.obs[ids] = self.batch.reset(ids)
            self._sums[:, ids] = 0
            self._start_x[ids] = self.batch.position[ids, 0]
        return result.obs, result.reward.astype(np.float32), done, infos

    def _end_of_episode(self, i: int, result: StepResult) -> dict[str, Any]:
        length = int(self.batch.num_steps[i])
        distance = self.batch.position[i, 0] - self._start_x[i]
        episode = {"r": float(self._sums[0, i]), "l": length}
        episode["mean_speed"] = float(distance / (length * self.batch.physics.dt))
        episode |= {f"reward/{name}": float(self._sums[row, i]) for row, name in enumerate(self._term_names, start=1)}
        return {
            "terminal_observation": result.obs[i].copy(),
            "TimeLimit.truncated": bool(result.truncated[i] and not result.terminated[i]),
            "terminated": bool(result.terminated[i]),
            "truncated": bool(result.truncated[i]),
            "diverged": bool(result.diverged[i]),
            "episode": episode,
        }

    def take_metrics(self) -> dict[str, float]:
        """How many simulations the engine lost so far, and the share lost of the episodes that ran since the last call.

        The share is of a hundred episodes at least: a single loss in a short rollout says nothing.
        """
        self.total_diverged += self.num_diverged
        share = self.num_diverged / max(100, self.num_episodes + self.num_envs)
        metrics = {"world/diverged": float(self.total_diverged), "world/diverged_share": share}
        self.num_episodes = self.num_diverged = 0
        return metrics

    def get_state(self) -> dict[str, NDArray[Any]]:
        """The batch's state and the sums of the running episodes."""
        return self.batch.get_state() | {"sums": self._sums.copy(), "start_x": self._start_x.copy()}

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on exactly where `get_state` was taken."""
        self.batch.set_state(state)
        self._sums, self._start_x = state["sums"].copy(), state["start_x"].copy()

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
