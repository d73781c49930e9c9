"""What each body of a batch is asked for: a skill, a command and words for it, and when it gets others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexrl.curriculum import Curriculum
from flexrl.motor_settings import MotorSettings, resolve_tasks
from flexrl.phrasings import with_copies
from flexrl.physics import ALL, Array, Body
from flexrl.resets import FallenPoses
from flexrl.skill_sampling import PoseLevels, SkillSampler
from flexrl.tasks import Task

LOOSE_SHARE = 0.25  # of what its weight gives a skill of bodies that lie, where a body on its feet goes on
ARRAYS = ("skill", "level", "pose", "command", "phrase", "command_ends", "skill_ends")


def pack_parts(parts: list[tuple[str, Any]]) -> dict[str, NDArray[Any]]:
    """The states of named parts as one, each key behind its part's name."""
    return {f"{name}.{key}": array for name, part in parts for key, array in part.get_state().items()}


def unpack_parts(parts: list[tuple[str, Any]], state: Mapping[str, NDArray[Any]]) -> None:
    """Puts named parts where `pack_parts` read them; one that did not exist then begins anew."""
    for name, part in parts:
        own = {key.removeprefix(f"{name}."): array for key, array in state.items() if key.startswith(f"{name}.")}
        if own:
            part.set_state(own)


class Assignments:
    """The assignments of `settings.num_envs` bodies, arrays (num_envs, ...), from generators that the caller has."""

    def __init__(self, settings: MotorSettings, body: Body) -> None:
        resolved, num_envs = resolve_tasks(settings), settings.num_envs
        self.skills, self.tasks = list(resolved), [task for task, _ in resolved.values()]
        self.sampler = SkillSampler(settings.sampling, {name: weight for name, (_, weight) in resolved.items()})
        self.curriculum = None if settings.curriculum is None else Curriculum(len(self.tasks), settings.curriculum)
        self.loose = np.array([isinstance(task.reset, FallenPoses) for task in self.tasks])  # begins lying, (num_tasks,)
        resets = [(i, task.reset) for i, task in enumerate(self.tasks) if settings.pose_levels is not None]
        steps, start = settings.pose_levels or (0.0, 0.0), 0.0 if settings.curriculum is None else settings.curriculum.start
        self._poses = {i: PoseLevels(reset.bank_size, *steps, start) for i, reset in resets if isinstance(reset, FallenPoses)}
        own = None if settings.words is None else [settings.words]
        phrases = [own or getattr(task.words, settings.phrasings) for task in self.tasks]
        families = [with_copies(family, settings.word_variants) for family in phrases]
        self.phrases = [(skill, phrase) for skill, family in zip(self.skills, families, strict=True) for phrase in family]
        self._first_phrase = np.cumsum([0, *map(len, families)])  # of each task, and the end
        self._words = "embedding" in settings.goal
        self._next_shares = np.where(self.loose, LOOSE_SHARE, 1.0)
        self._switch = settings.switch
        self._draws_again = any(task.command.every is not None for task in self.tasks)
        self._postures = np.array([[task.posture.get(joint, 0.0) for joint in body.posture] for task in self.tasks])  # rad
        self._frequencies = np.array([task.gait_frequency for task in self.tasks])  # Hz
        self._max_steps = np.array([task.max_steps for task in self.tasks])
        self.skill = np.zeros(num_envs, np.intp)  # index of the task that each is at
        self.level = np.ones(num_envs)  # the curriculum's when it began that task; it keeps it
        self.pose = np.full(num_envs, -1, np.intp)  # lying posture that its episode was begun from to see it got up from, or -1
        self.gait_frequency = np.zeros(num_envs)  # Hz, of that task; likewise the next two
        self.posture = np.zeros((num_envs, len(body.posture)))  # rad
        self.max_steps = np.zeros(num_envs, np.int64)
        self.command = np.zeros((num_envs, 3))  # see tasks.Command
        self.phrase = np.zeros(num_envs, np.intp)  # index into `phrases`
        self.command_ends = np.full(num_envs, np.inf)  # s since the episode began: when another command is drawn
        self.skill_ends = np.full(num_envs, np.inf)  # s likewise: when another skill is

    def forget(self) -> None:
        """Begins to count anew how skills, and postures of a new bank, come out."""
        self.sampler.begin()
        for poses in self._poses.values():
            poses.begin()

    def begin(self, i: int, rng: np.random.Generator) -> tuple[Task, int | None]:
        """A new episode of body i: the task that it is for, and a posture of its bank, if those have levels.

        Its start is drawn next, then `begin_command`.
        """
        self.skill[i] = self.sampler.draw(rng)
        poses = self._poses.get(int(self.skill[i]))
        pose = None if poses is None else poses.draw(rng)
        self.pose[i] = -1 if pose is None else pose
        return self.tasks[self.skill[i]], pose

    def begin_command(self, i: int, rng: np.random.Generator) -> None:
        """The episode's first command, and how long its first skill lasts."""
        self.begin_skill(i, int(self.skill[i]), rng, 0.0)
        if self.pose[i] >= 0 and self.curriculum is not None:
            self.level[i] = self._poses[int(self.skill[i])].levels[self.pose[i]]
        self.time_skill(i, rng, 0.0)

    def draw_command(self, i: int, rng: np.random.Generator, now: float) -> None:
        """Another command of its task for body i, `now` s after its episode began."""
        skill = int(self.skill[i])
        task = self.tasks[skill]
        self.command[i] = task.command.at_level(float(self.level[i]), task.easiest).sample(rng)
        self.command_ends[i] = now + task.command.sample_length(rng)
        if self._words:
            self.phrase[i] = rng.integers(self._first_phrase[skill], self._first_phrase[skill + 1])

    @property
    def asked_phrase(self) -> NDArray[np.intp]:
        """The words for what each body is asked for, (num_envs,): those drawn, or its skill's first where nobody reads them."""
        return self.phrase if self._words else self._first_phrase[self.skill]

    def follow_skills(self, ids: slice | NDArray[np.intp]) -> None:
        """What is the task's, written for each body of `ids`."""
        skill = self.skill[ids]
        self.gait_frequency[ids], self.posture[ids] = self._frequencies[skill], self._postures[skill]
        self.max_steps[ids] = self._max_steps[skill]

    def begin_skill(self, i: int, skill: int, rng: np.random.Generator, now: float) -> None:
        """Body i goes on with another skill (an index), `now` s after its episode began."""
        self.skill[i] = skill
        self.level[i] = 1.0 if self.curriculum is None else self.curriculum.levels[skill]
        self.follow_skills(np.array([i]))
        self.draw_command(i, rng, now)

    def next_skill(self, i: int, rng: np.random.Generator) -> int:
        """The skill (an index) that body i is to go on with, drawn."""
        return self.sampler.draw_next(rng, int(self.skill[i]), self._next_shares)

    def time_skill(self, i: int, rng: np.random.Generator, now: float) -> None:
        """Draws until when body i's skill lasts, which it got `now` s after its episode began."""
        if self._switch is not None:
            self.skill_ends[i] = now + rng.uniform(*self._switch)

    def new_commands(self, now: Array, goes_on: NDArray[np.bool_], rngs: list[np.random.Generator]) -> NDArray[np.intp]:
        """Draws other commands where those of episodes that go on have been held long enough; returns for which bodies."""
        if not self._draws_again:
            return np.empty(0, np.intp)
        due = np.flatnonzero((now >= self.command_ends) & goes_on)
        for i in map(int, due):
            self.draw_command(i, rngs[i], float(self.command_ends[i]))
        return due

    def ended(self, i: int, success: bool) -> None:
        """Counts how body i's episode, or its part at one skill, came out."""
        skill = int(self.skill[i])
        self.sampler.ended(skill, success)
        if self.pose[i] >= 0:
            poses = self._poses[skill]
            poses.ended(int(self.pose[i]), success)
            self.pose[i] = -1
            if self.curriculum is not None:
                self.curriculum.levels[skill] = poses.levels.mean()
        elif self.curriculum is not None:
            self.curriculum.ended(skill, success, float(self.level[i]))

    def time_is_up(self, num_steps: NDArray[np.int64], steps_before: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which episodes are truncated after `num_steps` steps, `steps_before` of them before the present skill."""
        over = num_steps - steps_before >= self.max_steps
        return over if self._switch is None else over | (num_steps >= self._max_steps.max())

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        state = {name: getattr(self, name).copy() for name in ARRAYS}
        return state | pack_parts(self._parts())

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on exactly where `get_state` was taken."""
        for name in ARRAYS:
            if name in state or name not in ("level", "pose"):  # which older states do not have: at the hardest, and uncounted
                setattr(self, name, state[name].copy())
        if self.curriculum is None:  # any more
            self.level[:] = 1.0
        counted = [len(poses.levels) for poses in self._poses.values()]
        self.pose[self.pose >= min(counted, default=0)] = -1  # where there are fewer now, or all are drawn alike
        self.follow_skills(ALL)
        unpack_parts(self._parts(), state)

    def _parts(self) -> list[tuple[str, Any]]:
        parts: list[tuple[str, Any]] = [("sampler", self.sampler)]
        parts += [(f"poses_{self.skills[index]}", poses) for index, poses in self._poses.items()]
        return parts if self.curriculum is None else [*parts, ("curriculum", self.curriculum)]
