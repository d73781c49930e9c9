"""Reward terms and terminations: one small function each, over arrays (num_envs,)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexrl.body_state import State, columns
from flexrl.physics import Array

FOOT_CLEARANCE = 0.12  # m: how high the swinging foot is asked to be lifted at mid-swing
STANDING_CLEARANCE = 0.02  # m: a foot lower than this stands
FALLEN_HEIGHT = 1.0  # m: Humanoid-v5 ends an episode below this torso height, and above FLYING_HEIGHT
FLYING_HEIGHT = 2.0  # m
STANDING_HEIGHT = 1.3  # m: the torso of a humanoid that stands, knees hardly bent

Term = Callable[[State], NDArray[Any]]


def speed_in_x(state: State) -> Array:
    """Speed along the world's x axis, m/s: the v5 envs' `reward_forward` before its weight."""
    return state.ground_velocity[:, 0]


def healthy(state: State) -> NDArray[np.bool_]:
    """1 while the torso is between 1 and 2 m, as Humanoid-v5's `is_healthy`."""
    return (state.height > FALLEN_HEIGHT) & (state.height < FLYING_HEIGHT)


def squared_control(state: State) -> Array:
    """Sum of squared motor commands, in the units of the motors' control range; of servos, the commands that they come to."""
    if state.physics.servo:
        gear = state.physics.gear
        return np.sum(np.square(state.read("qfrc_actuator")[:, gear > 0] / gear[gear > 0]), axis=1)
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
    """1 at the asked speed along the asked heading (m/s), e^-1 at half a metre per second off it."""
    return np.exp(-np.square((state.course_velocity[:, 0] - state.command[:, 0]) / 0.5))


def progress(state: State) -> Array:
    """Speed along the asked heading up to the asked one, as a share of it: a slope to climb from standing still."""
    asked = np.maximum(state.command[:, 0], 0.1)
    return np.minimum(state.course_velocity[:, 0], asked) / asked


def headway(state: State) -> Array:
    """Speed from the heading, the asked way, up to the asked one, as a share of it or of 0.5 m/s if that is more.

    A slope to climb from standing still, which the exponentials are not; 0 where no speed is asked for.
    """
    asked = state.command[:, 0]
    speed = np.clip(state.body_velocity[:, 0] * np.sign(asked), -np.abs(asked), np.abs(asked))
    return speed / np.maximum(np.abs(asked), 0.5)


def straight(state: State) -> Array:
    """1 when nothing moves sideways of the asked heading, e^-1 at 0.5 m/s."""
    return np.exp(-np.square(state.course_velocity[:, 1] / 0.5))


def facing(state: State) -> Array:
    """Cosine of the angle between the torso's heading and the asked one."""
    return state.course[:, 0]


def on_course(state: State) -> Array:
    """1 at the heading that the yaw rate should have brought, e^-1 at 0.3 rad off it."""
    return np.exp(-np.square(np.arctan2(state.course[:, 1], state.course[:, 0]) / 0.3))


def on_place(state: State) -> Array:
    """1 at the place that the speeds should have brought, e^-1 at 0.2 m off it."""
    return np.exp(-np.sum(np.square(state.asked_place), axis=1) / 0.2**2)


def upright(state: State) -> Array:
    """1 when the torso's axis is vertical, e^-1 at about 18 degrees of tilt."""
    return np.exp(-(np.square(state.up[:, 0]) + np.square(state.up[:, 1])) / 0.1)


def gait(state: State) -> Array:
    """How well the feet follow the clock, in [0, 1]: the swinging one lifted, the other on the ground.

    Each foot's asked clearance is FOOT_CLEARANCE times the positive part of the clock's sine for its half of the cycle;
    a foot 5 cm off it scores e^-1. Where the command is to stand still the clock is 0, and both feet belong on the ground.
    """
    sin = state.clock[:, 0]
    asked = FOOT_CLEARANCE * np.maximum(columns(sin, -sin), 0.0)
    return np.exp(-np.square((state.foot_clearance - asked) / 0.05)).mean(axis=1)


def swing(state: State) -> Array:
    """How far the swinging foot is lifted of what `gait` asks, as a share of FOOT_CLEARANCE, in [0, 1].

    `gait` tells a foot that drags next to nothing: 12 cm below what is asked it is flat. This one grows evenly up to that
    height, and falls evenly above it, to nothing at twice as much: a foot that is lifted for its own sake steps too high.
    """
    sin = state.clock[:, 0]
    asked = FOOT_CLEARANCE * np.maximum(columns(sin, -sin), 0.0)
    return np.sum(np.maximum(asked - np.abs(state.foot_clearance - asked), 0.0), axis=1) / FOOT_CLEARANCE


def stride(state: State) -> Array:
    """How well the feet swing to and fro with the clock, in [0, 1]: steps as long as the asked speed needs.

    In half a cycle the body goes the asked speed / (2 gait_frequency) metres, which is how far the swinging foot must land
    ahead of the other; the right one lifts off behind and lands ahead half a cycle later. 30 cm off it scores e^-1.
    """
    step = state.command[:, 0] / np.maximum(2 * state.gait_frequency, 1e-6)  # m
    return np.exp(-np.square((state.stride + step * state.clock[:, 1]) / 0.3))


def reach(state: State) -> Array:
    """How far the feet are apart along the heading of what `stride` asks, as a share of a whole step, in [0, 1].

    `stride` is a bell of 30 cm: a run at 2.5 m/s is asked for steps of 83 cm, of which one with steps of 30 cm earns next to
    nothing, and a hop as much. This one grows evenly up to what is asked, and falls evenly above it.
    """
    step = state.command[:, 0] / np.maximum(2 * state.gait_frequency, 1e-6)  # m
    asked = np.abs(step * state.clock[:, 1])
    apart = -state.stride * np.sign(step * state.clock[:, 1])
    return np.maximum(asked - np.abs(apart - asked), 0.0) / np.maximum(np.abs(step), 0.1)


def slip(state: State) -> Array:
    """How fast the feet that are on the ground slide, each from 0 to 1, a half at 0.5 m/s: without it a walk skates.

    It saturates, because a body that does not walk yet flails: the plain square would make its first steps too dear.
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


def track_speed(state: State) -> Array:
    """1 at the asked forward speed from the heading, e^-1 at 0.4 m/s off it."""
    return np.exp(-np.square((state.body_velocity[:, 0] - state.command[:, 0]) / 0.4))


def track_sideways(state: State) -> Array:
    """1 at the asked leftward speed from the heading, e^-1 at 0.4 m/s off it."""
    return np.exp(-np.square((state.body_velocity[:, 1] - state.command[:, 1]) / 0.4))


def track_yaw_rate(state: State) -> Array:
    """1 at the asked yaw rate, e^-1 at 0.5 rad/s off it."""
    return np.exp(-np.square((state.yaw_rate - state.command[:, 2]) / 0.5))


def speed_error(state: State) -> Array:
    """How far the velocity is from the asked one, m/s, at most 2: a slope where the exponentials have none."""
    error = state.body_velocity - state.command[:, :2]
    return np.minimum(np.sqrt(np.sum(np.square(error), axis=1)), 2.0)


def yaw_rate_error(state: State) -> Array:
    """How far the yaw rate is from the asked one, rad/s, at most 2: a slope, as `speed_error` is."""
    return np.minimum(np.abs(state.yaw_rate - state.command[:, 2]), 2.0)


def rise(state: State) -> Array:
    """Torso height as a share of a standing body's, from 0 to 1."""
    return np.clip(state.height / STANDING_HEIGHT, 0.0, 1.0)


def turned_up(state: State) -> Array:
    """From 0, head down, to 1, upright: the cosine of the torso's tilt, shifted."""
    return 0.5 * (1.0 + state.up[:, 2])


def calm(state: State) -> Array:
    """1 while an upright body rests, e^-1 at 1 m/s of any kind; 0 while it lies."""
    return state.standing * np.exp(
        -np.sum(np.square(state.ground_velocity), axis=1) - 0.1 * np.sum(np.square(state.angular_velocity), axis=1)
    )


def unhealthy(state: State) -> NDArray[np.bool_]:
    """The torso has left 1 to 2 m of height."""
    return ~healthy(state)


def upside_down(state: State) -> NDArray[np.bool_]:
    """The torso's underside is up."""
    return state.up[:, 2] < 0


def never(state: State) -> NDArray[np.bool_]:
    """An episode that only time ends."""
    return np.zeros(len(state.action), bool)
