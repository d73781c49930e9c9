"""Motor skills: named reward terms, terminations, resets, and the table of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexrl.physics import ALL, Array, Physics

FOOT_CLEARANCE = 0.12  # m: how high the swinging foot is asked to be lifted at mid-swing
STANDING_CLEARANCE = 0.02  # m: a foot lower than this stands
FALLEN_HEIGHT = 1.0  # m: Humanoid-v5 ends an episode below this torso height, and above FLYING_HEIGHT
FLYING_HEIGHT = 2.0  # m


def columns(*arrays: Array) -> Array:
    """Arrays (n,) side by side, (n, len(arrays)): np.stack at a third of its cost for small ones."""
    result = np.empty((len(arrays[0]), len(arrays)))
    for i, array in enumerate(arrays):
        result[:, i] = array
    return result


@dataclass
class State:
    """What rewards, terminations and observations see after a control step; all arrays (num_envs, ...).

    With `ids` it is the state of these simulations only, and num_envs their number.
    """

    physics: Physics
    action: NDArray[np.floating]  # as the policy gave it
    previous_action: NDArray[np.floating]
    ground_velocity: Array  # (num_envs, 2) m/s over the last control step, world frame, see Physics.ground_position
    foot_position: Array  # (num_envs, 2, 3) m: centres of the right and the left foot
    foot_velocity: Array  # (num_envs, 2, 3) m/s over the last control step
    time: Array  # s since the episode began
    target_speed: float  # m/s
    gait_frequency: float  # Hz, see Task
    posture: Array  # rad: the angles asked of Physics.posture_ids, (num_joints,)
    ids: slice | NDArray[np.intp] = field(default_factory=lambda: ALL)

    def read(self, name: str) -> Array:
        """A field of `Physics` by name, such as cinert (num_envs, nbody, 10)."""
        array: Array = getattr(self.physics, name)
        return array[self.ids]

    @cached_property
    def qpos(self) -> Array:
        """Positions, (num_envs, nq): root in m and a unit quaternion, joints in rad."""
        return self.read("qpos")

    @cached_property
    def qvel(self) -> Array:
        """Velocities, (num_envs, nv): root in m/s (world) and rad/s (torso), joints in rad/s."""
        return self.read("qvel")

    @cached_property
    def quaternion(self) -> Array:
        """Torso to world: w, x, y, z, each (num_envs,)."""
        return np.ascontiguousarray(self.qpos[:, 3:7].T)

    @cached_property
    def height(self) -> Array:
        """Torso height, m."""
        return self.qpos[:, 2]

    @cached_property
    def up(self) -> Array:
        """The world's up direction seen from the torso, (num_envs, 3); (0, 0, 1) when upright."""
        w, x, y, z = self.quaternion  # this is its matrix's third row
        return columns(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y))

    @cached_property
    def heading(self) -> Array:
        """(cos, sin) of the yaw angle of the torso's forward axis, (num_envs, 2)."""
        w, x, y, z = self.quaternion
        forward = columns(1 - 2 * (y * y + z * z), 2 * (x * y + w * z))
        return forward / np.maximum(np.sqrt(np.sum(forward * forward, axis=1, keepdims=True)), 1e-6)

    @cached_property
    def velocity(self) -> Array:
        """Torso velocity turned by the heading: forward, left, up, (num_envs, 3) m/s."""
        cos, sin = self.heading.T
        vx, vy, vz = self.qvel[:, 0:3].T
        return columns(cos * vx + sin * vy, cos * vy - sin * vx, vz)

    @cached_property
    def clock(self) -> Array:
        """(sin, cos) of the gait's phase, (num_envs, 2): the right foot swings while sin > 0, the left while sin < 0."""
        phase = 2 * np.pi * self.gait_frequency * self.time
        return columns(np.sin(phase), np.cos(phase))

    @cached_property
    def stride(self) -> Array:
        """How far the right foot is ahead of the left one along the heading, (num_envs,) m."""
        return np.sum((self.foot_position[:, 0, 0:2] - self.foot_position[:, 1, 0:2]) * self.heading, axis=1)

    @cached_property
    def foot_clearance(self) -> Array:
        """Height of the feet's soles over the ground, right and left, (num_envs, 2) m."""
        return self.foot_position[:, :, 2] - self.physics.foot_radius


Term = Callable[[State], NDArray[Any]]


def speed_in_x(state: State) -> Array:
    """Speed along the world's x axis, m/s: the v5 envs' `reward_forward` before its weight."""
    return state.ground_velocity[:, 0]


def healthy(state: State) -> NDArray[np.bool_]:
    """1 while the torso is between 1 and 2 m, as Humanoid-v5's `is_healthy`."""
    return (state.height > FALLEN_HEIGHT) & (state.height < FLYING_HEIGHT)


def squared_control(state: State) -> Array:
    """Sum of squared motor commands, in the units of the motors' control range."""
    return np.sum(np.square(state.read("ctrl")), axis=1)


def squared_action(state: State) -> Array:
    """Sum of squared actions as given, in the action's own precision: HalfCheetah-v5's control cost before its weight."""
    return np.sum(np.square(state.action), axis=1)


def contact_cost(state: State) -> Array:
    """Humanoid-v5's contact cost: 5e-7 times the squared external forces, at most 10."""
    forces = state.read("cfrc_ext").reshape(len(state.action), -1)
    return np.clip(5e-7 * np.sum(np.square(forces), axis=1), -np.inf, 10.0)


def alive(state: State) -> Array:
    """1 for every step: what a fall costs is the rest of the episode."""
    return np.ones(len(state.action))


def forward_speed(state: State) -> Array:
    """1 at the asked speed along the world's x axis (m/s), e^-1 at half a metre per second off it."""
    return np.exp(-np.square((state.ground_velocity[:, 0] - state.target_speed) / 0.5))


def progress(state: State) -> Array:
    """Speed along the world's x axis up to the asked one, as a share of it: a slope to climb from standing still."""
    return np.minimum(state.ground_velocity[:, 0], state.target_speed) / state.target_speed


def straight(state: State) -> Array:
    """1 when nothing moves sideways (world's y axis), e^-1 at 0.5 m/s."""
    return np.exp(-np.square(state.ground_velocity[:, 1] / 0.5))


def facing(state: State) -> Array:
    """Cosine of the angle between the torso's heading and the world's x axis."""
    return state.heading[:, 0]


def upright(state: State) -> Array:
    """1 when the torso's axis is vertical, e^-1 at about 18 degrees of tilt."""
    return np.exp(-(np.square(state.up[:, 0]) + np.square(state.up[:, 1])) / 0.1)


def gait(state: State) -> Array:
    """How well the feet follow the clock, in [0, 1]: the swinging one lifted, the other on the ground.

    Each foot's asked clearance is FOOT_CLEARANCE times the positive part of the clock's sine for its half of the cycle;
    a foot 5 cm off it scores e^-1.
    """
    sin = state.clock[:, 0]
    asked = FOOT_CLEARANCE * np.maximum(columns(sin, -sin), 0.0)
    return np.exp(-np.square((state.foot_clearance - asked) / 0.05)).mean(axis=1)


def stride(state: State) -> Array:
    """How well the feet swing to and fro with the clock, in [0, 1]: steps as long as the asked speed needs.

    In half a cycle the body goes target_speed / (2 gait_frequency) metres, which is how far the swinging foot must land
    ahead of the other; the right one lifts off behind and lands ahead half a cycle later. 30 cm off it scores e^-1.
    """
    step = state.target_speed / (2 * state.gait_frequency)  # m
    return np.exp(-np.square((state.stride + step * state.clock[:, 1]) / 0.3))


def slip(state: State) -> Array:
    """How fast the feet that are on the ground slide, each from 0 to 1, a half at 0.5 m/s: without it a walk skates.

    It saturates, because a body that does not walk yet flails: the plain square made steps too dear to be found.
    """
    squared = np.sum(np.square(state.foot_velocity[:, :, 0:2]), axis=2)
    return np.sum(squared / (squared + 0.25) * (state.foot_clearance < STANDING_CLEARANCE), axis=1)


def action_rate(state: State) -> Array:
    """Sum of squared changes of the action since the last control step."""
    return np.sum(np.square(state.action - state.previous_action), axis=1)


def wobble(state: State) -> Array:
    """Squared angular velocity of the torso about its own x and y axes, rad^2/s^2."""
    return np.sum(np.square(state.qvel[:, 3:5]), axis=1)


def posture(state: State) -> Array:
    """Squared distance of arm, waist and hip-spread joints from the task's posture, rad^2."""
    return np.sum(np.square(state.qpos[:, state.physics.posture_ids] - state.posture), axis=1)


def unhealthy(state: State) -> NDArray[np.bool_]:
    """The torso has left 1 to 2 m of height."""
    return ~healthy(state)


def never(state: State) -> NDArray[np.bool_]:
    """An episode that only time ends."""
    return np.zeros(len(state.action), bool)


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
class Noise:
    """Gymnasium's reset noise round the XML's posture: uniform on positions, uniform or normal on velocities."""

    scale: float
    normal_velocity: bool = False

    def sample(self, physics: Physics, rng: np.random.Generator) -> tuple[Array, Array]:
        """One start: qpos (nq,) in m and rad, qvel (nv,) in m/s and rad/s, drawn in Gymnasium's order."""
        qpos = physics.default_qpos + rng.uniform(low=-self.scale, high=self.scale, size=physics.model.nq)
        if self.normal_velocity:
            return qpos, 0.0 + self.scale * rng.standard_normal(physics.model.nv)
        return qpos, 0.0 + rng.uniform(low=-self.scale, high=self.scale, size=physics.model.nv)


@dataclass(frozen=True)
class Task:
    """A motor skill of one body: what is rewarded, how episodes start and end, and the words for it."""

    name: str
    body: str
    words: tuple[str, ...]
    rewards: Mapping[Term, float]  # term: weight; logged as reward/<term>
    reset: Noise
    fallen: Callable[[State], NDArray[np.bool_]]
    max_steps: int = 1000  # control steps until the episode is truncated
    target_speed: float = 0.0  # m/s, for the terms that ask for one
    gait_frequency: float = 1.5  # Hz: full left-right cycles of the clock in the observation
    posture: Mapping[str, float] = field(default_factory=dict)  # rad: angles asked of joints, 0 for those left out
    total: Callable[[Array], Array] = field(default=sum_terms)  # of the weighted terms, (num_terms, num_envs)

    @property
    def term_names(self) -> list[str]:
        """The reward terms' names, in the table's order."""
        return [term.__name__ for term in self.rewards]


TASKS = [
    Task(
        name="v5",
        body="humanoid",
        words=("run forward", "run as fast as you can"),
        rewards={speed_in_x: 1.25, healthy: 5.0, squared_control: -0.1, contact_cost: -1.0},
        reset=Noise(0.01),
        fallen=unhealthy,
        total=humanoid_v5_sum,
    ),
    Task(
        name="v5",
        body="half_cheetah",
        words=("run forward", "run as fast as you can"),
        rewards={speed_in_x: 1.0, squared_action: -0.1},
        reset=Noise(0.1, normal_velocity=True),
        fallen=never,
    ),
    Task(
        name="walk_forward",
        body="humanoid",
        words=("walk forward", "go straight ahead"),
        target_speed=1.5,
        gait_frequency=1.25,
        posture=HANGING_ARMS,
        rewards={
            progress: 3.0,
            forward_speed: 1.0,
            straight: 0.5,
            facing: 0.5,
            upright: 0.5,
            alive: 3.0,
            gait: 1.5,
            stride: 1.5,
            slip: -0.5,
            action_rate: -0.02,
            squared_control: -0.1,
            wobble: -0.02,
            posture: -0.1,
        },
        reset=Noise(0.01),
        fallen=unhealthy,
    ),
    Task(
        name="run_forward",
        body="humanoid",
        words=("run forward", "run straight ahead as fast as you can"),
        rewards={
            speed_in_x: 2.0,
            straight: 0.5,
            facing: 0.5,
            upright: 0.5,
            alive: 3.0,
            gait: 1.0,
            action_rate: -0.02,
            squared_control: -0.1,
            wobble: -0.02,
            posture: -0.05,
        },
        reset=Noise(0.01),
        fallen=unhealthy,
    ),
]


def find_task(body: str, name: str) -> Task:
    """The task of that name for that body; KeyError with a sentence if there is none."""
    names = [task.name for task in TASKS if task.body == body]
    if name not in names:
        raise KeyError(f"the {body} has no task {name!r}; it has {', '.join(names)}")
    return next(task for task in TASKS if (task.body, task.name) == (body, name))
