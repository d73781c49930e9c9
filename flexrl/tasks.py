"""The table of motor skills: what is asked, what is rewarded, how episodes start and end, and what success is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from flexrl import phrasings
from flexrl import rewards as r
from flexrl.body_state import State
from flexrl.measures import Measures
from flexrl.phrasings import Family
from flexrl.physics import Array
from flexrl.resets import FallenPoses, Noise, Reset

Range = tuple[float, float]
TIME_TO_GET_UP = 3.0  # s
STILL = (0.0, 0.0)
RANGES = ("speed", "sideways", "yaw_rate")  # parts of a command


def sum_terms(terms: Array) -> Array:
    """The sum of the weighted terms (num_terms, num_envs) in the table's order."""
    return np.sum(terms, axis=0)


def humanoid_v5_sum(terms: Array) -> Array:
    """Rewards minus costs, added in Humanoid-v5's order so that the float64 result has the same bits."""
    forward, survive, control, contact = terms
    return (forward + survive) + (control + contact)


# rad: the XML holds the humanoid's forearms up; these let its arms hang, elbows a little bent.
HANGING_ARMS = {
    f"{side}_{joint}": sign * angle
    for side, sign in (("right", 1.0), ("left", -1.0))
    for joint, angle in (("shoulder1", 0.7), ("shoulder2", -0.35))
} | {"right_elbow": -1.3, "left_elbow": -1.3}


@dataclass(frozen=True)
class Command:
    """What a task asks for, as seen from the body's heading; each part is drawn evenly from its range."""

    speed: Range = STILL  # m/s, forward
    sideways: Range = STILL  # m/s, leftward
    yaw_rate: Range = STILL  # rad/s, to the left
    still: float = 0.0  # share of draws in which all three are zero
    every: Range | None = None  # s until another one is drawn within the episode; None: never

    @property
    def ranges(self) -> tuple[Range, Range, Range]:
        """Of speed, sideways and yaw rate."""
        return self.speed, self.sideways, self.yaw_rate

    def at_level(self, level: float, easiest: Command | None) -> Command:
        """The command whose ranges lie between those of `easiest`, at level 0, and its own, at level 1."""
        if easiest is None or level >= 1:
            return self
        speed, sideways, yaw_rate = (
            (a[0] + level * (b[0] - a[0]), a[1] + level * (b[1] - a[1]))
            for a, b in zip(easiest.ranges, self.ranges, strict=True)
        )
        return replace(self, speed=speed, sideways=sideways, yaw_rate=yaw_rate)

    def sample(self, rng: np.random.Generator) -> Array:
        """One command, (3,): speed, sideways, yaw rate. Nothing is drawn where there is nothing to choose."""
        if self.still > 0 and rng.random() < self.still:
            return np.zeros(3)
        return np.array([low if low == high else rng.uniform(low, high) for low, high in self.ranges])

    def sample_length(self, rng: np.random.Generator) -> float:
        """How long the command holds, s; infinite where it is not drawn again."""
        return float("inf") if self.every is None else float(rng.uniform(*self.every))


@dataclass(frozen=True)
class Task:
    """A motor skill of one body: what is asked and rewarded, how episodes start and end, and the words for it."""

    name: str
    body: str
    words: Family
    rewards: Mapping[r.Term, float]  # term: weight; logged as reward/<task>/<term>
    reset: Reset
    fallen: Callable[[State], NDArray[np.bool_]]
    # of the episodes' measures and whether each fell, (num_envs,) both: whether the skill was shown
    success: Callable[[Measures, NDArray[np.bool_]], NDArray[np.bool_]] | None = None
    command: Command = Command()
    asks: tuple[str, ...] = ()  # what of the command may be asked for otherwise: any of speed, sideways, yaw_rate
    easiest: Command | None = None  # ranges of the command that a curriculum begins with; None: its own
    lift: float = 0.0  # share of the weight that a curriculum begins with carrying, while the torso is low
    max_steps: int = 1000  # control steps until the episode is truncated
    gait_frequency: float = 0.0  # Hz: full left-right cycles of the clock in the observation; 0: no clock
    posture: Mapping[str, float] = field(default_factory=dict)  # rad: angles asked of joints, 0 for those left out
    total: Callable[[Array], Array] = field(default=sum_terms)  # of the weighted terms, (num_terms, num_envs)

    @property
    def can_be_easier(self) -> bool:
        """Whether a curriculum has something to begin with, and something to go by."""
        return self.success is not None and (self.lift > 0 or self.easiest is not None)


def walks_at_speed(measures: Measures, fell: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """No fall, and the mean speed within 0.15 m/s of the asked one, the mean yaw rate within 0.15 rad/s."""
    return ~fell & (np.abs(measures.mean_error[:, 0]) <= 0.15) & _keeps_turning(measures)


def runs(measures: Measures, fell: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """No fall, and the mean speed within 0.5 m/s of the asked one, the mean yaw rate within 0.15 rad/s."""
    return ~fell & (np.abs(measures.mean_error[:, 0]) <= 0.5) & _keeps_turning(measures)


def turns_on_the_spot(measures: Measures, fell: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """No fall, the mean yaw rate within 0.15 rad/s of the asked one, never more than 0.5 m from the start."""
    return ~fell & _keeps_turning(measures) & (measures.drift <= 0.5)


def stands_still(measures: Measures, fell: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """No fall, never more than 0.2 m from the start, the mean yaw rate within 0.15 rad/s of none."""
    return ~fell & (measures.drift <= 0.2) & _keeps_turning(measures)


def follows(measures: Measures, fell: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """No fall, and root mean squared errors, from a second after each new command, of at most 0.2 m/s, 0.3 m/s and 0.3 rad/s.

    Sideways a walking body sways, hence more there.
    """
    return ~fell & np.all(measures.rms_error <= (0.2, 0.3, 0.3), axis=1)


def gets_up(measures: Measures, fell: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Upright within 3 s, and for the 2 s after."""
    return ~fell & (measures.upright_at <= TIME_TO_GET_UP)


def _keeps_turning(measures: Measures) -> NDArray[np.bool_]:
    """Turns as it is told to, if at all: the mean yaw rate within 0.15 rad/s of the asked one."""
    return np.abs(measures.mean_error[:, 2]) <= 0.15


# Tracking of a command, from the heading: what all skills on two feet share.
LOCOMOTION: dict[r.Term, float] = {
    r.headway: 3.0,
    r.track_speed: 2.0,
    r.track_sideways: 0.75,
    r.track_yaw_rate: 2.0,
    r.speed_error: -0.5,
    r.yaw_rate_error: -1.0,
    r.upright: 0.5,
    r.on_course: 0.5,
    r.on_place: 0.5,
    r.alive: 3.0,
    r.gait: 1.5,
    r.swing: 0.0,  # from nothing the clock is enough; what goes on from a walk and would shuffle asks for it in YAML
    r.stride: 0.5,
    r.reach: 0.0,
    r.slip: -0.5,
    r.action_rate: -0.02,
    r.squared_control: -0.1,
    r.wobble: -0.02,
    r.posture: -0.1,
}

# Without a clock: a body on two points corrects its place by small steps of its own.
STANDING: dict[r.Term, float] = {
    **{term: weight for term, weight in LOCOMOTION.items() if term not in (r.headway, r.gait, r.swing, r.stride, r.reach)},
    r.on_place: 3.0,
}

# The half-cheetah's, on its feet at a speed.
RUNNING: dict[r.Term, float] = {
    r.headway: 3.0,
    r.track_speed: 1.0,
    r.speed_error: -0.5,
    r.turned_up: 2.0,
    r.on_place: 0.5,
    r.action_rate: -0.02,
    r.squared_control: -0.05,
}

# What the humanoid's skills on two feet have in common, and the half-cheetah's.
ON_TWO_FEET = Task(
    name="",
    body="humanoid",
    words=phrasings.NONE,
    rewards=LOCOMOTION,
    gait_frequency=1.25,
    posture=HANGING_ARMS,
    reset=Noise(0.01),
    fallen=r.unhealthy,
)
ON_ITS_FEET = Task(
    name="",
    body="half_cheetah",
    words=phrasings.NONE,
    rewards=RUNNING,
    reset=Noise(0.1, normal_velocity=True),
    fallen=r.upside_down,
    max_steps=300,  # 15 s
)

TASKS = [
    Task(
        name="v5",
        body="humanoid",
        words=phrasings.RUN_FORWARD,
        rewards={r.speed_in_x: 1.25, r.healthy: 5.0, r.squared_control: -0.1, r.contact_cost: -1.0},
        reset=Noise(0.01),
        fallen=r.unhealthy,
        total=humanoid_v5_sum,
    ),
    Task(
        name="v5",
        body="half_cheetah",
        words=phrasings.RUN_FORWARD,
        rewards={r.speed_in_x: 1.0, r.squared_action: -0.1},
        reset=Noise(0.1, normal_velocity=True),
        fallen=r.never,
    ),
    replace(
        ON_TWO_FEET,
        name="walk_forward",
        words=phrasings.WALK_FORWARD,
        command=Command(speed=(1.5, 1.5)),
        asks=("speed", "yaw_rate"),
        success=walks_at_speed,
        rewards={
            r.progress: 3.0,
            r.forward_speed: 1.0,
            r.straight: 0.5,
            r.facing: 0.5,
            r.upright: 0.5,
            r.alive: 3.0,
            r.gait: 1.5,
            r.swing: 0.0,
            r.stride: 1.5,
            r.reach: 0.0,
            r.slip: -0.5,
            r.action_rate: -0.02,
            r.squared_control: -0.1,
            r.wobble: -0.02,
            r.posture: -0.1,
        },
    ),
    replace(
        ON_TWO_FEET,
        name="run_forward",
        words=phrasings.RUN_FORWARD,
        command=Command(speed=(2.5, 2.5)),
        asks=RANGES,
        easiest=Command(speed=(1.5, 1.5)),
        gait_frequency=1.5,
        success=runs,
    ),
    Task(
        name="sprint",
        body="humanoid",
        words=phrasings.SPRINT,
        command=Command(speed=(2.5, 2.5)),
        gait_frequency=1.5,
        rewards={
            r.speed_in_x: 2.0,
            r.straight: 0.5,
            r.facing: 0.5,
            r.upright: 0.5,
            r.alive: 3.0,
            r.gait: 1.0,
            r.action_rate: -0.02,
            r.squared_control: -0.1,
            r.wobble: -0.02,
            r.posture: -0.05,
        },
        reset=Noise(0.01),
        fallen=r.unhealthy,
    ),
    replace(
        ON_TWO_FEET,
        name="walk_backward",
        words=phrasings.WALK_BACKWARD,
        command=Command(speed=(-0.5, -0.5)),
        asks=RANGES,
        success=walks_at_speed,
    ),
    replace(
        ON_TWO_FEET,
        name="turn_left",
        words=phrasings.TURN_LEFT,
        command=Command(yaw_rate=(0.75, 0.75)),
        asks=("yaw_rate",),
        success=turns_on_the_spot,
    ),
    replace(
        ON_TWO_FEET,
        name="turn_right",
        words=phrasings.TURN_RIGHT,
        command=Command(yaw_rate=(-0.75, -0.75)),
        asks=("yaw_rate",),
        success=turns_on_the_spot,
    ),
    replace(
        ON_TWO_FEET,
        name="stand_still",
        words=phrasings.STAND_STILL,
        rewards=STANDING,
        gait_frequency=0.0,
        success=stands_still,
        max_steps=667,  # 10 s
    ),
    replace(
        ON_TWO_FEET,
        name="follow",
        words=phrasings.FOLLOW,
        command=Command(speed=(-0.5, 1.5), sideways=(-0.3, 0.3), yaw_rate=(-1.0, 1.0), still=0.15, every=(3.0, 8.0)),
        asks=RANGES,
        success=follows,
    ),
    Task(
        name="recover",
        body="humanoid",
        words=phrasings.RECOVER,
        posture=HANGING_ARMS,
        rewards={
            r.rise: 3.0,
            r.turned_up: 2.0,
            r.calm: 3.0,
            r.action_rate: -0.02,
            r.squared_control: -0.1,
            r.posture: -0.05,
        },
        lift=0.6,
        reset=FallenPoses(),
        fallen=r.never,
        success=gets_up,
        max_steps=400,  # 6 s
    ),
    replace(
        ON_ITS_FEET,
        name="run_forward",
        words=phrasings.RUN_FORWARD,
        command=Command(speed=(4.0, 4.0)),
        asks=("speed",),
        success=runs,
    ),
    replace(
        ON_ITS_FEET,
        name="run_backward",
        words=phrasings.RUN_BACKWARD,
        command=Command(speed=(-3.0, -3.0)),
        asks=("speed",),
        success=runs,
    ),
    replace(
        ON_ITS_FEET,
        name="stand_still",
        words=phrasings.STAND_STILL,
        success=stands_still,
    ),
    Task(
        name="recover",
        body="half_cheetah",
        words=phrasings.TURN_OVER,
        success=gets_up,
        rewards={
            r.turned_up: 4.0,
            r.calm: 2.0,
            r.action_rate: -0.02,
            r.squared_control: -0.05,
        },
        reset=FallenPoses(),
        fallen=r.never,
        max_steps=300,  # 15 s
    ),
]


# What mixed worlds of a body are made of.
SKILLS = {
    body: [task.name for task in TASKS if task.body == body and task.success is not None]
    for body in ("humanoid", "half_cheetah")
}


def find_task(body: str, name: str) -> Task:
    """The task of that name for that body; KeyError with a sentence if there is none."""
    names = [task.name for task in TASKS if task.body == body]
    if name not in names:
        raise KeyError(f"the {body} has no task {name!r}; it has {', '.join(names)}")
    return next(task for task in TASKS if (task.body, task.name) == (body, name))
