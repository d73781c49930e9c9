"""The settings of a motor world, and the tasks that they come to."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from flexrl.config import Settings
from flexrl.curriculum import CurriculumSettings
from flexrl.goals import GOALS
from flexrl.measures import HELD
from flexrl.physics import BODIES, Mode
from flexrl.randomise import RandomiseSettings
from flexrl.reference import SETTLING
from flexrl.resets import FallenPoses
from flexrl.skill_sampling import Sampling
from flexrl.tasks import RANGES, SKILLS, Command, Range, Task, find_task
from flexrl.text_encoders import EncoderName

SkillName = Literal[
    "stand_still",
    "walk_forward",
    "walk_backward",
    "run_forward",
    "run_backward",
    "turn_left",
    "turn_right",
    "recover",
    "follow",
]
TaskName = Literal[SkillName, "sprint", "v5", "mixed"]
MAX_LETTERS = 300  # of a sentence
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class CommandRanges(Settings):
    """What is drawn of a command, where the task's own is not meant."""

    # m/s forward: a number, or [lowest, highest] of what is drawn for each episode
    speed: float | Range | None = None
    # m/s leftward, likewise
    sideways: float | Range | None = None
    # rad/s to the left, likewise
    yaw_rate: float | Range | None = None


class TaskOverrides(CommandRanges):
    """What a YAML may change of a task, by name."""

    # weight of reward terms, by the term's name
    rewards: dict[str, float] = {}
    # share of commands that are all zero
    still: Share | None = None
    # s until another command is drawn within the episode, [shortest, longest]
    every: Range | None = None
    # ranges that a curriculum begins with
    easiest: CommandRanges | None = None
    # share of the weight that a curriculum begins with carrying while the torso is low
    lift: Share | None = None
    # Hz, for tasks with a gait: full left-right cycles
    gait_frequency: float | None = Field(None, gt=0)
    # control steps (15 ms for the humanoid, 50 ms for the cheetah) until an episode is truncated
    max_steps: int | None = Field(None, ge=1)
    # lying postures that episodes begin from, for tasks that begin so; the more, the less a training learns them by heart
    poses: int | None = Field(None, ge=1, le=65536)


class MotorSettings(Settings):
    """A batch of MuJoCo bodies that learn motor skills."""

    kind: Literal["motor"] = "motor"
    body: Literal["humanoid", "half_cheetah"] = "humanoid"
    # mixed: several skills in one world, see skills
    task: TaskName = "walk_forward"
    # weight of each skill of a mixed world; left empty: all of the body's, alike
    skills: dict[SkillName, Weight] = {}
    # balanced: one after the other; weighted: drawn by weight; hardest: by weight and failures
    sampling: Sampling = "balanced"
    # what of the goal the policy sees: any of one_hot (the skill), command (speeds and yaw rate), place (where the command
    # would have brought it), embedding (its words); none: it has to guess
    goal: list[Literal["one_hot", "command", "place", "embedding"]] = []
    # who makes vectors of the goals' words for `embedding`; hashed_ngrams: from pieces of words, without weights;
    # transformer:FOLDER: a Hugging Face encoder in a folder of this machine
    encoder: EncoderName = "hashed_ngrams"
    # which words: those to learn from, or others for the same skills, to see whether they are understood
    phrasings: Literal["train", "held_out"] = "train"
    # a sentence that its one skill is asked for by, in place of those; null: those
    words: str | None = Field(None, min_length=1, max_length=MAX_LETTERS)
    # distorted copies of each phrase (typing errors, words that nobody knows) that words are drawn from, too; evaluations and
    # datasets have none
    word_variants: int = Field(0, ge=0, le=1_000)
    # s between changes of the skill within an episode of a mixed world, [shortest, longest]; null: never
    switch: Range | None = None
    # tasks that have easier commands to begin with (`easiest`) or help in getting up (`lift`) become harder as they succeed;
    # null: at full difficulty from the start
    curriculum: CurriculumSettings | None = None
    # changes to tasks, whether the world has them or not: {walk_forward: {rewards: {upright: 1.0}}}
    tasks: dict[TaskName, TaskOverrides] = {}
    # v5: Gymnasium's dynamics exactly; fast: implicitfast, 3 x 5 ms (the cheetah's are the same in both)
    physics: Mode = "fast"
    # proprio: joints, height, gravity, velocities, previous action, gait clock; positions: the same without velocities;
    # v5: Gymnasium's observation
    observation: Literal["proprio", "positions", "v5"] = "proprio"
    # torque: [-1, 1] scaled to the motors' control range; v5: the control range itself;
    # servo: joint angles round a standing posture, held by position servos of the motors' strength
    action: Literal["torque", "v5", "servo"] = "torque"
    # [up, down]: each lying posture has a level from 0 to 1 of its own, which rises by `up` when it is got up from and else
    # falls by `down`; low ones come more often, and a curriculum helps each by its level; null: postures are alike
    pose_levels: tuple[Share, Share] | None = None
    # s upright that end an episode of getting up, as does a second more than the time there is for it; null: whole episodes
    end_upright: float | None = Field(None, gt=0, le=HELD)
    # bodies that differ from simulation to simulation, and pushes; null: none
    randomise: RandomiseSettings | None = None
    # the first episodes end a random time early, so that later ones of one length do not all end together
    stagger: bool = False
    # simulations stepped together
    num_envs: int = Field(128, ge=1, le=65536)
    # physics threads; null: one for each CPU core
    num_threads: int | None = Field(None, ge=1, le=1024)


def resolve_tasks(settings: MotorSettings) -> dict[str, tuple[Task, float]]:
    """The world's tasks with the YAML's overrides, and their weights; ValueError with a sentence if they do not fit."""
    if settings.randomise is not None and "v5" in (settings.observation, settings.task):
        raise ValueError("world.randomise: the v5 observation and task are Gymnasium's, bit for bit; write null")
    if settings.switch is not None:
        if _range("world.switch", settings.switch)[0] <= 0:
            raise ValueError(f"world.switch: expected seconds above 0, found {settings.switch[0]:g}")
        if settings.task != "mixed":
            raise ValueError("world.switch: only a mixed world has several skills; write task: mixed")
    if len(set(settings.goal)) < len(settings.goal):
        raise ValueError("world.goal: expected each part once")
    for name in settings.tasks:
        if name != "mixed":
            _resolve(settings, name, f"world.tasks.{name}")
        else:
            raise ValueError("world.tasks.mixed: several tasks are changed one by one; name one")
    if settings.task != "mixed":
        if settings.skills:
            raise ValueError("world.skills: only a mixed world has several; write task: mixed")
        resolved: dict[str, tuple[Task, float]] = {settings.task: (_resolve(settings, settings.task, "world.task"), 1.0)}
    else:
        weights = {str(name): weight for name, weight in settings.skills.items()} or dict.fromkeys(SKILLS[settings.body], 1.0)
        if sum(weights.values()) <= 0:
            raise ValueError("world.skills: one weight at least must be above 0")
        resolved = {name: (_resolve(settings, name, "world.skills"), weight) for name, weight in weights.items()}
    if settings.words is not None and sum(weight > 0 for _, weight in resolved.values()) > 1:
        raise ValueError("world.words: one sentence asks for one skill; give the others no weight, or write null")
    return resolved


def check_training(settings: MotorSettings) -> None:
    """ValueError with a sentence if what is to make a training easier would change nothing; nothing else has any of it."""
    tasks = {name: task for name, (task, weight) in resolve_tasks(settings).items() if weight > 0}
    for key in ("pose_levels", "end_upright"):
        if getattr(settings, key) is not None and not any(isinstance(task.reset, FallenPoses) for task in tasks.values()):
            raise ValueError(f"world.{key}: no skill here begins lying; write null")
    if settings.phrasings == "held_out":
        raise ValueError("world.phrasings: held-out words are for judging what learned from others; write train")
    # where nothing is judged what fails would count, and what does not would not
    if settings.switch is not None and settings.switch[1] <= SETTLING:
        found = f"found {settings.switch[1]:g}"
        raise ValueError(f"world.switch: a skill is judged from {SETTLING:g} s on; expected a longest time above it, {found}")
    dt = BODIES[settings.body].dt
    for name, task in tasks.items():
        least = HELD if isinstance(task.reset, FallenPoses) else SETTLING
        if task.success is not None and task.max_steps * dt <= least:
            raise ValueError(
                f"world.tasks.{name}.max_steps: {name} is judged from {least:g} s on; expected more than the {int(least / dt)} "
                f"steps that these are, found {task.max_steps}"
            )
    if settings.curriculum is None:
        return
    if not any(task.can_be_easier for task in tasks.values()):
        ahead = next((name for name, task in tasks.items() if task.success is not None and task.command.speed[0] > 0), None)
        begin = f", or what {ahead} begins with, as world.tasks: {{{ahead}: {{easiest: {{speed: [0, 0.5]}}}}}}" if ahead else ""
        raise ValueError(f"world.curriculum: nothing here has an easier form; write null{begin}")


def _resolve(settings: MotorSettings, name: str, where: str) -> Task:
    try:
        task = find_task(settings.body, name)
    except KeyError as error:
        raise ValueError(f"{where}: {error.args[0]}") from None
    overrides = settings.tasks.get(name)  # type: ignore[call-overload]
    if not getattr(task.words, settings.phrasings):
        raise ValueError(f"world.phrasings: task {name} has no {settings.phrasings} words; write train")
    if overrides is None:
        return task
    terms = {term.__name__: term for term in task.rewards}
    for key in overrides.rewards:
        if key not in terms:
            close = difflib.get_close_matches(key, terms, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else f"; it has {', '.join(terms)}"
            raise ValueError(f"world.tasks.{name}.rewards.{key}: task {name} has no reward term {key!r}{hint}")
    if overrides.poses is not None and not isinstance(task.reset, FallenPoses):
        raise ValueError(f"world.tasks.{name}.poses: task {name} does not begin lying; leave it away")
    reset = task.reset if overrides.poses is None else FallenPoses(overrides.poses)
    command, easiest = _command(task, task.command, overrides, f"world.tasks.{name}"), task.easiest
    for key in ("still", "every", "lift", "gait_frequency"):
        if getattr(overrides, key) is not None and not _can_have(task, key):
            raise ValueError(f"world.tasks.{name}.{key}: {name} of the {task.body} has no use for it; leave it away")
    if overrides.still is not None:
        command = replace(command, still=overrides.still)
    if overrides.every is not None:
        shortest = _range(f"world.tasks.{name}.every", overrides.every)[0]
        if shortest <= SETTLING:  # nothing would be measured, and so everything a success
            raise ValueError(f"world.tasks.{name}.every: expected more than the {SETTLING:g} s of settling, found {shortest:g}")
        command = replace(command, every=overrides.every)
    if overrides.easiest is not None:
        easiest = _command(task, easiest or command, overrides.easiest, f"world.tasks.{name}.easiest")
    return replace(
        task,
        rewards={term: overrides.rewards.get(key, task.rewards[term]) for key, term in terms.items()},
        command=command,
        easiest=easiest,
        lift=task.lift if overrides.lift is None else overrides.lift,
        gait_frequency=overrides.gait_frequency or task.gait_frequency,
        max_steps=overrides.max_steps or task.max_steps,
        reset=reset,
    )


def _can_have(task: Task, key: str) -> bool:
    """Whether an override does anything to a task."""
    if key == "lift":  # the height that it ends at is the humanoid's
        return task.body == "humanoid"
    if key == "gait_frequency":
        return task.gait_frequency > 0
    return not isinstance(task.reset, FallenPoses) and task.name != "v5"


def _command(task: Task, command: Command, ranges: CommandRanges, where: str) -> Command:
    """The command with the ranges that are given; ValueError if the task asks for no such thing."""
    given = {key: getattr(ranges, key) for key in RANGES if getattr(ranges, key) is not None}
    for key in given:
        if key not in task.asks:
            raise ValueError(f"{where}.{key}: {task.name} of the {task.body} is asked for no {key}; leave it away")
    changes: dict[str, Any] = {key: _range(f"{where}.{key}", value) for key, value in given.items()}
    return replace(command, **changes)


def _range(where: str, value: float | Range) -> Range:
    low, high = value if isinstance(value, tuple) else (value, value)
    if low > high:
        raise ValueError(f"{where}: expected [lowest, highest], found [{low:g}, {high:g}]")
    return low, high


assert set(SkillName.__args__) == {name for names in SKILLS.values() for name in names}  # type: ignore[attr-defined]
assert set(GOALS) == {"one_hot", "command", "place", "embedding"}
