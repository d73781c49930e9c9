"""How episodes start: round the XML's posture as Gymnasium does, or fallen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flexrl.physics import Array, Physics


class Reset(Protocol):
    """Where the episodes of a task start."""

    def sample(self, physics: Physics, rng: np.random.Generator, pose: int | None = None) -> tuple[Array, Array]:
        """One start: qpos (nq,) in m and rad, qvel (nv,) in m/s and rad/s; from posture `pose` of a bank, if there is one."""
        ...


@dataclass(frozen=True)
class Noise:
    """Gymnasium's reset noise round the XML's posture: uniform on positions, uniform or normal on velocities."""

    scale: float
    normal_velocity: bool = False

    def sample(self, physics: Physics, rng: np.random.Generator, pose: int | None = None) -> tuple[Array, Array]:
        """One start, drawn in Gymnasium's order; there is no bank."""
        qpos = physics.default_qpos + rng.uniform(low=-self.scale, high=self.scale, size=physics.model.nq)
        if self.normal_velocity:
            return qpos, 0.0 + self.scale * rng.standard_normal(physics.model.nv)
        return qpos, 0.0 + rng.uniform(low=-self.scale, high=self.scale, size=physics.model.nv)


@dataclass(frozen=True)
class FallenPoses:
    """On the ground: dropped in a random pose and turn, limp, and left to lie; a planar body on its back.

    A pose costs a second of physics, so a bank of them is dropped once, all together, and turned about the vertical
    for each start.
    """

    bank_size: int = 256
    settling: float = 1.0  # s

    def sample(self, physics: Physics, rng: np.random.Generator, pose: int | None = None) -> tuple[Array, Array]:
        """One start, at rest."""
        qpos = self.bank(physics)[rng.integers(self.bank_size) if pose is None else pose].copy()
        yaw = rng.uniform(-np.pi, np.pi)
        if physics.body.free:
            qpos[3:7] = quaternion_product(np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]), qpos[3:7])
        return qpos, np.zeros(physics.model.nv)

    def bank(self, physics: Physics) -> Array:
        """Postures of bodies that lie, (bank_size, nq), at x = y = 0; drawn by the physics' seed."""
        return physics.keep(("fallen", self), lambda: self._drop(physics))

    def _drop(self, physics: Physics) -> Array:
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([physics.seed, self.bank_size])))
        model = physics.model
        dropped = Physics(physics.body, "fast", self.bank_size, physics.num_threads, exact_contacts=False)
        qpos = np.tile(physics.default_qpos, (self.bank_size, 1))
        for row in qpos:
            if physics.body.free:
                axis = rng.standard_normal(4)
                row[2:7] = 1.0, *(axis / np.linalg.norm(axis))  # any turn
            else:
                row[1:3] = 0.3, np.pi + rng.uniform(-0.5, 0.5)  # m over its usual height, pitch in rad
            for joint in range(1 if physics.body.free else 3, model.njnt):
                low, high = model.jnt_range[joint]
                row[model.jnt_qposadr[joint]] = rng.uniform(low, high)
        dropped.reset(np.arange(self.bank_size), qpos, np.zeros((self.bank_size, model.nv)))
        for _ in range(round(self.settling / dropped.dt)):
            dropped.step(np.zeros((self.bank_size, model.nu)))
        lying = dropped.qpos.copy()
        lying[:, 0 : 2 if physics.body.free else 1] = 0.0
        return lying


def quaternion_product(left: Array, right: Array) -> Array:
    """The turn `right` and then `left`, both (4,) as w, x, y, z."""
    w, x, y, z = left
    a, b, c, d = right
    return np.array(
        [
            w * a - x * b - y * c - z * d,
            w * b + x * a + y * d - z * c,
            w * c - x * d + y * a + z * b,
            w * d + x * c - y * b + z * a,
        ]
    )
