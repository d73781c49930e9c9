"""What rewards, terminations and observations see of the bodies after a control step."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flexrl.physics import ALL, Array, Physics

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
    def body_velocity(self) -> Array:
        """Velocity of `Physics.ground_position` turned by the heading: forward, left, (num_envs, 2) m/s."""
        (cos, sin), (vx, vy) = self.heading.T, self.ground_velocity.T
        return columns(cos * vx + sin * vy, cos * vy - sin * vx)

    @cached_property
    def yaw_rate(self) -> Array:
        """Rotation about the world's vertical, (num_envs,) rad/s, to the left."""
        return np.sum(self.up * self.qvel[:, 3:6], axis=1)

    @cached_property
    def stride(self) -> Array:
        """How far the right foot is ahead of the left one along the heading, (num_envs,) m."""
        return np.sum((self.foot_position[:, 0, 0:2] - self.foot_position[:, 1, 0:2]) * self.heading, axis=1)

    @cached_property
    def foot_clearance(self) -> Array:
        """Height of the feet's soles over the ground, right and left, (num_envs, 2) m."""
        return self.foot_position[:, :, 2] - self.physics.foot_radius
