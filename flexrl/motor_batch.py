"""Physics and tasks as one batch: N bodies at their skills, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from flexrl.assignments import Assignments, pack_parts, unpack_parts
from flexrl.body_state import State, columns
from flexrl.goals import GOALS, Wording
from flexrl.measures import Measures
from flexrl.motor_settings import MotorSettings
from flexrl.observations import Observation, make_observation
from flexrl.physics import ALL, BODIES, Array, Physics
from flexrl.randomise import Randomiser
from flexrl.randomness import pack_generator, unpack_generator
from flexrl.reference import SETTLING, Reference
from flexrl.rewards import Term, contact_cost, on_course, on_place
from flexrl.tasks import HANGING_ARMS, STILL, TIME_TO_GET_UP, sum_terms

Bools = NDArray[np.bool_]
SERVO_REACH = 1.5  # rad that an action of 1 moves a servo's target away from the standing posture
LATE = 1.0  # s after which an episode of getting up is over that is not to have its whole length
LIFTED_BELOW = 1.2  # m: the torso height above which a curriculum carries nothing


@dataclass(frozen=True)
class Switch:
    """A change of the skill within an episode."""

    before: str
    after: str
    success: bool | None  # of what came before; None where that says nothing, see `MotorBatch.outcome`
    num_steps: int  # control steps of what came before


@dataclass
class StepResult:
    """One control step of all simulations, before anything is reset."""

    obs: NDArray[np.floating]  # (num_envs, obs_dim)
    reward: Array  # (num_envs,)
    terms: Array  # weighted, in the order of MotorBatch.term_names, (num_terms, num_envs)
    terminated: Bools
    truncated: Bools
    diverged: Bools
    switches: dict[int, Switch]  # of the simulations that go on with another skill
    unchanged: dict[int, NDArray[np.floating]]  # (obs_dim,) of those asked for something else: as if nothing else were asked


class MotorBatch:
    """`num_envs` bodies at their skills: the loop body that the VecEnv and the Gymnasium env share.

    Simulation i draws its starts from its own generator, seeded with seed + i as a Gymnasium env would be; the postures of
    bodies that lie are of one bank for all, drawn by `seed`.
    """

    def __init__(self, settings: MotorSettings, seed: int = 0) -> None:
        self.settings = settings
        body = BODIES[settings.body]
        self.asked = Assignments(settings, body)
        self.skills, self.tasks = self.asked.skills, self.asked.tasks
        self.terms: list[Term] = list(dict.fromkeys(term for task in self.tasks for term in task.rewards))
        self.term_names = [term.__name__ for term in self.terms]
        # (num_terms, num_tasks); a single task's stay plain numbers, which leave a term's own precision as it is
        self._weights = np.array([[task.rewards.get(term, 0.0) for task in self.tasks] for term in self.terms])
        exact_contacts = contact_cost in self.terms or settings.observation == "v5"
        self.physics = Physics(
            body,
            settings.physics,
            settings.num_envs,
            settings.num_threads,
            exact_contacts=exact_contacts and body.free,
            servo=settings.action == "servo",
        )
        self.num_envs = settings.num_envs
        model = self.physics.model
        low, high = model.actuator_ctrlrange.T
        # of an action: what it is multiplied by and added to
        self._control: tuple[Array, Array | None] | None = None
        if settings.action == "torque":
            self._control = high, None  # the ranges are symmetric
        elif settings.action == "servo":
            names = [model.joint(int(joint)).name for joint in model.actuator_trnid[:, 0]]
            self._control = np.full(model.nu, SERVO_REACH), np.array([STANDING.get(name, 0.0) for name in names])
        limits = (low, high) if settings.action == "v5" else (-np.ones(model.nu), np.ones(model.nu))
        self.action_space = spaces.Box(limits[0].astype(np.float32), limits[1].astype(np.float32), dtype=np.float32)
        wording = Wording(self.skills, [words for _, words in self.asked.phrases], settings.encoder)
        goal = [GOALS[name](wording) for name in settings.goal]
        self.observation: Observation = make_observation(settings.observation, self.physics, goal)
        self.has_mirror = self.physics.body.free and settings.observation != "v5"
        limit = self.observation.limit
        self.observation_space = spaces.Box(-limit, limit, (self.observation.size,), self.observation.dtype)
        judged = any(task.success is not None for task in self.tasks)
        self.measures = Measures(self.num_envs) if judged else None
        turns = any(task.command.yaw_rate != STILL for task in self.tasks)
        steered = len(self.tasks) > 1 or turns or "place" in settings.goal or not {on_course, on_place}.isdisjoint(self.terms)
        self.reference = Reference(self.num_envs) if steered else None
        self._lifts = np.array([task.lift for task in self.tasks])  # shares of the weight
        self._got_up: Bools | None = None  # upright for `end_upright`, by the last step
        self._switches = settings.switch is not None
        self.randomiser = None if settings.randomise is None else Randomiser(self.physics, settings.randomise)
        self.seed(seed)
        self._asked_heading, self._asked_place = np.tile([1.0, 0.0], (self.num_envs, 1)), np.zeros((self.num_envs, 2))
        self.num_steps = np.zeros(self.num_envs, np.int64)  # since each episode began
        self.steps_before = np.zeros(self.num_envs, np.int64)  # of them, before its present skill; below 0: it is cut short
        self.previous_action = np.zeros((self.num_envs, model.nu), np.float32)
        self.position = np.zeros((self.num_envs, 2))  # m, at the end of the last step
        self.feet = np.zeros((self.num_envs, 2, 3))  # m, likewise

    def seed(self, seed: int) -> None:
        """What is drawn from here on: each simulation's generator, as Gymnasium's `reset(seed=seed + i)` makes it."""
        self.rngs = [np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed + i))) for i in range(self.num_envs)]
        self.physics.seed = seed
        self.asked.forget()
        if self.randomiser is not None:
            self.randomiser.begin(seed)

    def reset(self, ids: NDArray[np.intp]) -> NDArray[np.floating]:
        """Start episodes in simulations `ids` (n,); returns their first observations, (n, obs_dim)."""
        starts = []
        for i in map(int, ids):
            rng = self.rngs[i]
            task, pose = self.asked.begin(i, rng)
            starts.append(task.reset.sample(self.physics, rng, pose))
            self.asked.begin_command(i, rng)
            if self.randomiser is not None:
                self.randomiser.begin_episode(i, rng)
        self.physics.reset(ids, np.array([qpos for qpos, _ in starts]), np.array([qvel for _, qvel in starts]))
        self.num_steps[ids] = self.steps_before[ids] = 0
        self.previous_action[ids] = 0
        self.position[ids] = self.physics.ground_position(ids)
        self.feet[ids] = self.physics.foot_position(ids)
        if self.measures is not None:
            self.measures.begin(ids, self.position[ids])
        if self.reference is not None:
            self.reference.begin(ids, self.position[ids])
            self._asked_heading[ids], self._asked_place[ids] = (1.0, 0.0), 0.0
        state = self._state(self.previous_action[ids], self.position[ids], self.feet[ids], ids)
        if self.reference is not None:
            lies = self.asked.loose[self.asked.skill[ids]][:, None]
            state.asked_heading = self._asked_heading[ids] = np.where(lies, state.heading, state.asked_heading)
        return self.observation(state)

    def stagger(self) -> None:
        """Ends the episodes that begin now a random time early, so that later ones of one length do not end together."""
        self.steps_before[:] = [-rng.integers(steps) for rng, steps in zip(self.rngs, self.asked.max_steps, strict=True)]

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
            skill=self.asked.skill[ids],
            command=self.asked.command[ids],
            gait_frequency=self.asked.gait_frequency[ids],
            posture=self.asked.posture[ids],
            asked_heading=self._asked_heading[ids],
            asked_place=self._asked_place[ids],
            phrase=self.asked.phrase[ids],
            ids=ids,
        )

    def step(self, action: NDArray[np.floating]) -> StepResult:
        """One control step of every simulation with `action` (num_envs, nu)."""
        self._lift()
        if self.randomiser is not None:
            self.randomiser.push(self.num_steps * self.physics.dt, self.rngs)
        diverged = self.physics.step(self._to_controls(action))
        self.num_steps += 1
        if len(self.tasks) > 1:
            self.asked.sampler.stepped(self.asked.skill)
        old_position, self.position = self.position, self.physics.ground_position()
        old_feet, self.feet = self.feet, self.physics.foot_position()
        state = self._state(action, old_position, old_feet)
        self._move_reference(state)
        terms = self._reward_terms(state)
        reward = self.tasks[0].total(terms) if len(self.tasks) == 1 else sum_terms(terms)
        terminated = self._fallen(state) | diverged
        truncated = self.asked.time_is_up(self.num_steps, self.steps_before)
        if self.measures is not None:
            self.measures.update(state, self.position)
            truncated = truncated | self._decided(self.measures)
        over = terminated | truncated
        obs = self.observation(state)
        switches = self._new_skills(state, over) if self._switches else {}
        changed = {*switches, *self._new_commands(over)}
        unchanged = {i: obs[i] for i in changed}
        if changed:  # the reward was for what had been asked; the observation shows what is asked next
            obs = self.observation(self._state(action, old_position, old_feet))
        self.previous_action = np.array(action, np.float32)
        if diverged.any():
            obs = np.where(diverged[:, None], 0, obs)
            reward = np.where(diverged, 0.0, reward)
            terms[:, diverged] = 0.0
        return StepResult(obs, reward, terms, terminated, truncated, diverged, switches, unchanged)

    def _to_controls(self, action: NDArray[np.floating]) -> NDArray[np.floating]:
        if self._control is None:
            return action
        scale, centre = self._control
        return action * scale if centre is None else action * scale + centre

    def _lift(self) -> None:
        """Carries a share of low bodies' weight where a curriculum makes it easy."""
        if self.asked.curriculum is None or not self._lifts.any():
            return
        force = self._lifts[self.asked.skill] * self.physics.weight * (1.0 - self.asked.level)  # N
        self.physics.xfrc_applied[:, self.physics.torso, 2] = force * (self.physics.qpos[:, 2] < LIFTED_BELOW)

    def _move_reference(self, state: State) -> None:
        """Where the command has come to by now, for `state` too."""
        if self.reference is None:
            return
        loose = self.asked.loose[self.asked.skill]
        self.reference.update(self.position, state.heading, self.asked.command, loose, self.physics.dt)
        self._asked_place = self.reference.place - self.position
        self._asked_heading = columns(np.cos(self.reference.yaw), np.sin(self.reference.yaw))
        state.asked_place, state.asked_heading = self._asked_place, self._asked_heading

    def _reward_terms(self, state: State) -> Array:
        """Each term times its weight for the task that each simulation is at, (num_terms, num_envs)."""
        terms = np.empty((len(self.terms), self.num_envs))
        for row, term, weights in zip(terms, self.terms, self._weights, strict=True):
            weight: Any = float(weights[0]) if len(self.tasks) == 1 else weights[self.asked.skill]
            row[:] = weight * term(state)
        return terms

    def _fallen(self, state: State) -> Bools:
        if len(self.tasks) == 1:
            return self.tasks[0].fallen(state)
        fallen = np.zeros(self.num_envs, bool)
        for function in dict.fromkeys(task.fallen for task in self.tasks):
            at_it = np.array([task.fallen is function for task in self.tasks])[self.asked.skill]
            fallen |= at_it & function(state)
        return fallen

    def _decided(self, measures: Measures) -> Bools:
        """Whose getting up is decided before its episode's end, where the settings end it then."""
        if self.settings.end_upright is None:
            return np.zeros(self.num_envs, bool)
        lying, stood_up = self.asked.loose[self.asked.skill], measures.elapsed - measures.upright_for
        in_time = lying & (stood_up <= TIME_TO_GET_UP)
        self._got_up = in_time & (measures.upright_for >= self.settings.end_upright)
        return self._got_up | (lying & ~in_time & (measures.elapsed > TIME_TO_GET_UP + LATE))

    def _new_commands(self, done: Bools) -> list[int]:
        """Draws another command where the present one has been held long enough; of which simulations."""
        due = self.asked.new_commands(self.num_steps * self.physics.dt, ~done, self.rngs).tolist()
        for i in due:
            if self.measures is not None:
                self.measures.since_command[i] = 0.0
            if self.reference is not None:
                self.reference.ask_again(i)
        return due

    def _new_skills(self, state: State, done: Bools) -> dict[int, Switch]:
        """Goes on with another skill where the present one has had its time and the body stands (2 s, if it had to get up)."""
        now = self.num_steps * self.physics.dt
        ready = state.standing & ~done
        if self.measures is not None:
            ready &= ~self.asked.loose[self.asked.skill] | np.isfinite(self.measures.upright_at)
        due = np.flatnonzero((now >= self.asked.skill_ends) & ready)
        if len(due) == 0:
            return {}
        success, switches = self.success(np.zeros(self.num_envs, bool)), {}
        for i in map(int, due):
            before = int(self.asked.skill[i])
            after = self.asked.next_skill(i, self.rngs[i])
            if after == before:  # there is no other
                self.asked.time_skill(i, self.rngs[i], float(now[i]))
                continue
            outcome, num_steps = self.ended(i, bool(success[i])), self.part_length(i)
            self.begin_skill(i, after)
            self.asked.time_skill(i, self.rngs[i], float(now[i]))
            switches[i] = Switch(self.skills[before], self.skills[after], outcome, num_steps)
        return switches

    def begin_skill(self, i: int, skill: int) -> None:
        """Simulation i goes on with another skill (an index), in the middle of its episode."""
        self.steps_before[i] = self.num_steps[i]
        self.asked.pose[i] = -1  # where its part was too short to count
        self.asked.begin_skill(i, skill, self.rngs[i], float(self.num_steps[i] * self.physics.dt))
        if self.measures is not None:
            self.measures.begin(np.array([i]), self.position[[i]], SETTLING)
        if self.reference is not None:
            self.reference.ask_again(i)

    def ended(self, i: int, success: bool) -> bool | None:
        """Counts how simulation i's part at its skill came out, unless that says nothing; its `outcome`."""
        outcome = self.outcome(i, success)
        if outcome is not None:
            self.asked.ended(i, outcome)
        return outcome

    def outcome(self, i: int, success: bool) -> bool | None:
        """`success` of simulation i's part at its skill, or None where it says nothing.

        It says nothing of getting up where the body stood when it was asked to, nor of tracking where there was no time to err,
        nor where the time was cut, nor where the task does not say what success is.
        """
        skill = int(self.asked.skill[i])
        if self.measures is None or self.tasks[skill].success is None:
            return None
        stood = self.steps_before[i] > 0 and self.asked.loose[skill]
        too_short = success and self.measures.num_counted[i] == 0
        return None if stood or too_short or self.steps_before[i] < 0 else success

    def part_length(self, i: int) -> int:
        """Control steps of simulation i's episode at its present skill."""
        return int(self.num_steps[i] - max(self.steps_before[i], 0))

    def success(self, fell: Bools) -> Bools:
        """Whether each simulation's episode, ended now, showed its skill; False where the task does not say."""
        result = np.zeros(self.num_envs, bool)
        for index, task in enumerate(self.tasks):
            if task.success is not None and self.measures is not None:
                result |= (self.asked.skill == index) & task.success(self.measures, fell)
        return result if self._got_up is None else np.where(self.asked.loose[self.asked.skill], self._got_up, result)

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Everything the next steps depend on, as arrays; see `set_state`."""
        return {
            "physics": self.physics.get_state(),
            "rngs": np.stack([pack_generator(rng) for rng in self.rngs]),
            "num_steps": self.num_steps.copy(),
            "steps_before": self.steps_before.copy(),
            "previous_action": self.previous_action.copy(),
            "position": self.position.copy(),
            "feet": self.feet.copy(),
            "asked_heading": self._asked_heading.copy(),
            "asked_place": self._asked_place.copy(),
            **pack_parts(self._parts()),
        }

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on exactly where `get_state` was taken."""
        self.physics.set_state(state["physics"])
        for rng, row in zip(self.rngs, state["rngs"], strict=True):
            unpack_generator(rng, row)
        self.num_steps, self.steps_before = state["num_steps"].copy(), state["steps_before"].copy()
        self.previous_action = state["previous_action"].copy()
        self.position = state["position"].copy()
        self.feet = state["feet"].copy()
        self._asked_heading, self._asked_place = state["asked_heading"].copy(), state["asked_place"].copy()
        unpack_parts(self._parts(), state)
        if self.asked.curriculum is None:
            self.physics.xfrc_applied[:] = 0.0  # a curriculum that there was before may have carried bodies

    def _parts(self) -> list[tuple[str, Any]]:
        """What has a state of its own, by name."""
        parts: dict[str, Any] = {"asked": self.asked, "measures": self.measures, "reference": self.reference}
        parts["randomiser"] = self.randomiser
        return [(name, part) for name, part in parts.items() if part is not None]


# rad: the joints of a body that stands, where a servo's action is 0.
STANDING = HANGING_ARMS | {
    f"{side}_{joint}": angle for side in ("right", "left") for joint, angle in (("hip_y", -0.2), ("knee", -0.4))
}
