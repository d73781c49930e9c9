"""Physics and tasks as one batch: N bodies at their skills, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from flexrl.body_state import State
from flexrl.goals import GOALS
from flexrl.measures import Measures
from flexrl.motor_settings import MotorSettings, resolve_tasks
from flexrl.observations import Observation, make_observation
from flexrl.physics import ALL, BODIES, Array, Physics
from flexrl.randomness import pack_generator, unpack_generator
from flexrl.rewards import Term, contact_cost
from flexrl.skill_sampling import SkillSampler
from flexrl.tasks import sum_terms

Bools = NDArray[np.bool_]


@dataclass
class StepResult:
    """One control step of all simulations, before anything is reset."""

    obs: NDArray[np.floating]  # (num_envs, obs_dim)
    reward: Array  # (num_envs,)
    terms: Array  # weighted, in the order of MotorBatch.term_names, (num_terms, num_envs)
    terminated: Bools
    truncated: Bools
    diverged: Bools


class MotorBatch:
    """`num_envs` bodies at one task: the loop body that the VecEnv and the Gymnasium env share.

    Simulation i draws its starts from its own generator, seeded with seed + i as a Gymnasium env would be.
    """

    def __init__(self, settings: MotorSettings, seed: int = 0) -> None:
        self.settings = settings
        resolved = resolve_tasks(settings)
        self.skills, self.tasks = list(resolved), [task for task, _ in resolved.values()]
        self.terms: list[Term] = list(dict.fromkeys(term for task in self.tasks for term in task.rewards))
        self.term_names = [term.__name__ for term in self.terms]
        # (num_terms, num_tasks); a single task's stay plain numbers, which leave a term's own precision as it is
        self._weights = np.array([[task.rewards.get(term, 0.0) for task in self.tasks] for term in self.terms])
        exact_contacts = contact_cost in self.terms or settings.observation == "v5"
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
        goal = [GOALS[name](self.skills) for name in settings.goal]
        self.observation: Observation = make_observation(settings.observation, self.physics, goal)
        self.has_mirror = self.physics.body.free and settings.observation == "proprio"
        limit = self.observation.limit
        self.observation_space = spaces.Box(-limit, limit, (self.observation.size,), self.observation.dtype)
        joints = self.physics.body.posture
        self._postures = np.array([[task.posture.get(joint, 0.0) for joint in joints] for task in self.tasks])  # rad
        self._frequencies = np.array([task.gait_frequency for task in self.tasks])  # Hz
        self._max_steps = np.array([task.max_steps for task in self.tasks])
        self.sampler = SkillSampler(settings.sampling, {name: weight for name, (_, weight) in resolved.items()})
        self.measures = Measures(self.num_envs) if self.physics.body.free else None
        self.seed(seed)
        self.skill = np.zeros(self.num_envs, np.intp)  # index of the task that each is at
        self.gait_frequency = np.zeros(self.num_envs)  # Hz, of that task; likewise the next two
        self.posture = np.zeros((self.num_envs, len(joints)))  # rad
        self.max_steps = np.zeros(self.num_envs, np.int64)
        self._draws_again = any(task.command.every is not None for task in self.tasks)
        self.command = np.zeros((self.num_envs, 3))  # see Command
        self.command_ends = np.full(self.num_envs, np.inf)  # s since the episode began: when another command is drawn
        self.num_steps = np.zeros(self.num_envs, np.int64)  # since each episode began
        self.previous_action = np.zeros((self.num_envs, model.nu), np.float32)
        self.position = np.zeros((self.num_envs, 2))  # m, at the end of the last step
        self.feet = np.zeros((self.num_envs, 2, 3))  # m, likewise

    def seed(self, seed: int) -> None:
        """What is drawn from here on: each simulation's generator, as Gymnasium's `reset(seed=seed + i)` makes it."""
        self.rngs = [np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed + i))) for i in range(self.num_envs)]
        self.physics.seed = seed
        self.sampler.begin()

    def reset(self, ids: NDArray[np.intp]) -> NDArray[np.floating]:
        """Start episodes in simulations `ids` (n,); returns their first observations, (n, obs_dim)."""
        starts = []
        for i in ids:
            rng = self.rngs[i]
            self.skill[i] = self.sampler.draw(rng)
            task = self.tasks[self.skill[i]]
            starts.append(task.reset.sample(self.physics, rng))
            self.command[i], self.command_ends[i] = task.command.sample(rng), task.command.sample_length(rng)
        self._follow_skills(ids)
        self.physics.reset(ids, np.array([qpos for qpos, _ in starts]), np.array([qvel for _, qvel in starts]))
        self.num_steps[ids] = 0
        self.previous_action[ids] = 0
        self.position[ids] = self.physics.ground_position(ids)
        self.feet[ids] = self.physics.foot_position(ids)
        if self.measures is not None:
            self.measures.begin(ids, self.position[ids])
        return self.observation(self._state(self.previous_action[ids], self.position[ids], self.feet[ids], ids))

    def _follow_skills(self, ids: slice | NDArray[np.intp]) -> None:
        """What is the task's, written for each simulation of `ids`."""
        self.gait_frequency[ids] = self._frequencies[self.skill[ids]]
        self.posture[ids] = self._postures[self.skill[ids]]
        self.max_steps[ids] = self._max_steps[self.skill[ids]]

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
            skill=self.skill[ids],
            command=self.command[ids],
            gait_frequency=self.gait_frequency[ids],
            posture=self.posture[ids],
            ids=ids,
        )

    def step(self, action: NDArray[np.floating]) -> StepResult:
        """One control step of every simulation with `action` (num_envs, nu)."""
        ctrl = action if self.control_scale is None else action * self.control_scale
        diverged = self.physics.step(ctrl)
        self.num_steps += 1
        if len(self.tasks) > 1:
            self.sampler.stepped(self.skill)
        old_position, self.position = self.position, self.physics.ground_position()
        old_feet, self.feet = self.feet, self.physics.foot_position()
        state = self._state(action, old_position, old_feet)
        terms = self._reward_terms(state)
        reward = self.tasks[0].total(terms) if len(self.tasks) == 1 else sum_terms(terms)
        terminated = self._fallen(state) | diverged
        truncated = self.num_steps >= self.max_steps
        if self.measures is not None:
            self.measures.update(state, self.position)
        if self._draws_again and self._new_commands(terminated | truncated):
            # the reward was for what had been asked; the observation shows what is asked next
            state = self._state(action, old_position, old_feet)
        self.previous_action = np.array(action, np.float32)
        obs = self.observation(state)
        if diverged.any():
            obs = np.where(diverged[:, None], 0, obs)
            reward = np.where(diverged, 0.0, reward)
            terms[:, diverged] = 0.0
        return StepResult(obs, reward, terms, terminated, truncated, diverged)

    def _reward_terms(self, state: State) -> Array:
        """Each term times its weight for the task that each simulation is at, (num_terms, num_envs)."""
        terms = np.empty((len(self.terms), self.num_envs))
        for row, term, weights in zip(terms, self.terms, self._weights, strict=True):
            weight: Any = float(weights[0]) if len(self.tasks) == 1 else weights[self.skill]
            row[:] = weight * term(state)
        return terms

    def _fallen(self, state: State) -> Bools:
        if len(self.tasks) == 1:
            return self.tasks[0].fallen(state)
        fallen = np.zeros(self.num_envs, bool)
        for function in dict.fromkeys(task.fallen for task in self.tasks):
            at_it = np.array([task.fallen is function for task in self.tasks])[self.skill]
            fallen |= at_it & function(state)
        return fallen

    def _new_commands(self, done: Bools) -> bool:
        """Draws another command where the present one has been held long enough; True if any was drawn."""
        due = np.flatnonzero((self.num_steps * self.physics.dt >= self.command_ends) & ~done)
        for i in due:
            command = self.tasks[self.skill[i]].command
            self.command[i] = command.sample(self.rngs[i])
            self.command_ends[i] += command.sample_length(self.rngs[i])
            if self.measures is not None:
                self.measures.since_command[i] = 0.0
        return len(due) > 0

    def success(self, fell: Bools) -> Bools:
        """Whether each simulation's episode, ended now, showed its skill; False where the task does not say."""
        result = np.zeros(self.num_envs, bool)
        for index, task in enumerate(self.tasks):
            if task.success is not None and self.measures is not None:
                result |= (self.skill == index) & task.success(self.measures, fell)
        return result

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Everything the next steps depend on, as arrays; see `set_state`."""
        return {
            "physics": self.physics.get_state(),
            "rngs": np.stack([pack_generator(rng) for rng in self.rngs]),
            "num_steps": self.num_steps.copy(),
            "previous_action": self.previous_action.copy(),
            "position": self.position.copy(),
            "feet": self.feet.copy(),
            "skill": self.skill.copy(),
            "command": self.command.copy(),
            "command_ends": self.command_ends.copy(),
            **{f"sampler.{name}": array for name, array in self.sampler.get_state().items()},
            **({f"measures.{name}": array for name, array in self.measures.get_state().items()} if self.measures else {}),
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
        self.skill, self.command = state["skill"].copy(), state["command"].copy()
        self.command_ends = state["command_ends"].copy()
        self._follow_skills(ALL)
        self.sampler.set_state(_under("sampler.", state))
        if self.measures is not None:
            self.measures.set_state(_under("measures.", state))


def _under(prefix: str, state: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {key.removeprefix(prefix): array for key, array in state.items() if key.startswith(prefix)}
