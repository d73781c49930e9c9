"""What rewards, terminations and observations see of the bodies after a control step."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flexrl.physics import ALL, Array, Physics

UPRIGHT = 0.9  # cosine of the torso's tilt up to which a body stands
MOVING = 0.1  # m/s and rad/s: a command smaller than this in all its parts asks to stand still


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
    skill: NDArray[np.intp]  # (num_envs,) index of the world's task that each is at
    command: Array  # (num_envs, 3): forward and leftward speed, m/s, and yaw rate, rad/s, as seen from the heading
    gait_frequency: Array  # (num_envs,) Hz, see Task
    posture: Array  # rad: the angles asked of Physics.posture_ids, (num_envs, num_joints)
    asked_heading: Array  # (num_envs, 2): cos and sin of the yaw angle that the command has come to, see Reference
    phrase: NDArray[np.intp]  # (num_envs,) index of the words that the goal was given in, see goals.Wording
    asked_place: Array  # (num_envs, 2) m: from the body to where the command has come to, world frame
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
        if not self.physics.body.free:
            half, zero = 0.5 * self.qpos[:, 2], np.zeros(len(self.qpos))
            return np.stack([np.cos(half), zero, np.sin(half), zero])
        return np.ascontiguousarray(self.qpos[:, 3:7].T)

    @cached_property
    def height(self) -> Array:
        """Torso height, m."""
        if not self.physics.body.free:
            return np.asarray(self.qpos[:, 1] + self.physics.model.body_pos[self.physics.torso, 2])
        return self.qpos[:, 2]

    @cached_property
    def up(self) -> Array:
        """The world's up direction seen from the torso, (num_envs, 3); (0, 0, 1) when upright."""
        w, x, y, z = self.quaternion  # this is its matrix's third row
        return columns(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y))

    @cached_property
    def heading(self) -> Array:
        """(cos, sin) of the yaw angle of the torso's forward axis, (num_envs, 2); a planar body has none, on its back too."""
        if not self.physics.body.free:
            return np.tile([1.0, 0.0], (len(self.qpos), 1))
        w, x, y, z = self.quaternion
        forward = columns(1 - 2 * (y * y + z * z), 2 * (x * y + w * z))
        return forward / np.maximum(np.sqrt(np.sum(forward * forward, axis=1, keepdims=True)), 1e-6)

    @cached_property
    def course(self) -> Array:
        """(cos, sin) of the angle from the asked heading to the torso's, (num_envs, 2)."""
        (cos, sin), (asked_cos, asked_sin) = self.heading.T, self.asked_heading.T
        return columns(cos * asked_cos + sin * asked_sin, sin * asked_cos - cos * asked_sin)

    @cached_property
    def course_velocity(self) -> Array:
        """Velocity of `Physics.ground_position` along the asked heading and to its left, (num_envs, 2) m/s."""
        return _seen_from(self.asked_heading, self.ground_velocity)

    @cached_property
    def place(self) -> Array:
        """Where the asked place is as seen from the body: ahead, to the left, (num_envs, 2) m."""
        return _seen_from(self.heading, self.asked_place)

    @cached_property
    def velocity(self) -> Array:
        """Torso velocity turned by the heading: forward, left, up, (num_envs, 3) m/s."""
        cos, sin = self.heading.T
        vx, vy, vz = self.qvel[:, 0:3].T
        return columns(cos * vx + sin * vy, cos * vy - sin * vx, vz)

    @cached_property
    def clock(self) -> Array:
        """(sin, cos) of the gait's phase, (num_envs, 2): the right foot swings while sin > 0, the left while sin < 0.

        (0, 0) where no gait is asked for: the task has none, or the command is to stand still.
        """
        phase = 2 * np.pi * self.gait_frequency * self.time
        return columns(np.sin(phase) * self.stepping, np.cos(phase) * self.stepping)

    @cached_property
    def stepping(self) -> NDArray[np.bool_]:
        """Whether the feet are to follow the clock, (num_envs,)."""
        return (self.gait_frequency > 0) & (np.abs(self.command).max(axis=1) >= MOVING)

    @cached_property
    def standing(self) -> NDArray[np.bool_]:
        """Whether the torso is upright and high, (num_envs,)."""
        return (self.up[:, 2] > UPRIGHT) & (self.height > self.physics.body.upright_height)

    @cached_property
    def body_velocity(self) -> Array:
        """Velocity of `Physics.ground_position` turned by the heading: forward, left, (num_envs, 2) m/s."""
        return _seen_from(self.heading, self.ground_velocity)

    @cached_property
    def yaw_rate(self) -> Array:
        """Rotation about the world's vertical, (num_envs,) rad/s, to the left."""
        return np.sum(self.up * self.angular_velocity, axis=1)

    @cached_property
    def angular_velocity(self) -> Array:
        """Of the torso about its own axes, (num_envs, 3) rad/s."""
        if not self.physics.body.free:
            zero = np.zeros(len(self.qvel))
            return columns(zero, self.qvel[:, 2], zero)
        return self.qvel[:, 3:6]

    @cached_property
    def stride(self) -> Array:
        """How far the right foot is ahead of the left one along the heading, (num_envs,) m."""
        return np.sum((self.foot_position[:, 0, 0:2] - self.foot_position[:, 1, 0:2]) * self.heading, axis=1)

    @cached_property
    def foot_clearance(self) -> Array:
        """Height of the feet's soles over the ground, right and left, (num_envs, 2) m."""
        return self.foot_position[:, :, 2] - self.physics.foot_radius


def _seen_from(heading: Array, vector: Array) -> Array:
    """A horizontal vector (n, 2) in the frame whose first axis points along `heading` (n, 2) as (cos, sin)."""
    (cos, sin), (x, y) = heading.T, vector.T
    return columns(cos * x + sin * y, cos * y - sin * x)
