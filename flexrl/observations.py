"""What a policy sees of a body: blocks of the state side by side, and how each looks in a left-right mirror."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import DTypeLike, NDArray

from flexrl.body_state import State
from flexrl.physics import Array, Physics

VELOCITIES = {"velocity", "angular_velocity", "joint_velocities", "velocities"}  # blocks that `positions` hides
PROPRIO_LIMIT = 1e4  # far above any speed that these bodies reach; the checkers of Gymnasium want finite bounds


@dataclass(frozen=True)
class Mirror:
    """A left-right reflection of a vector: entry i becomes sign[i] times entry source[i]."""

    source: NDArray[np.intp]
    sign: NDArray[np.float32]

    def __call__(self, vector: NDArray[np.floating]) -> NDArray[np.floating]:
        """The mirrored vectors, (..., dim)."""
        return vector[..., self.source] * self.sign


@dataclass(frozen=True)
class Block:
    """One named part of an observation."""

    name: str
    read: Callable[[State], NDArray[np.floating]]  # -> (num_envs, size)
    mirror: Mirror


class Observation:
    """Blocks side by side, as the one vector (num_envs, size) that a policy sees, within +-`limit`."""

    def __init__(self, blocks: list[Block], dtype: DTypeLike, limit: float) -> None:
        self.blocks, self.dtype, self.limit = blocks, np.dtype(dtype), limit
        *first_columns, size = np.cumsum([0] + [len(block.mirror.source) for block in blocks]).tolist()
        self._first_columns: list[int] = first_columns
        self.size: int = size

    def __call__(self, state: State) -> NDArray[np.floating]:
        """The observation of every simulation, (num_envs, size)."""
        obs = np.concatenate([block.read(state) for block in self.blocks], axis=1, dtype=self.dtype, casting="same_kind")
        return obs if np.isinf(self.limit) else obs.clip(-self.limit, self.limit, out=obs)

    def first_column(self, name: str) -> int:
        """Where the block of that name begins; StopIteration if there is none."""
        return next(first for first, block in zip(self._first_columns, self.blocks, strict=True) if block.name == name)

    def mirror(self) -> Mirror:
        """The reflection of the whole vector."""
        source = [block.mirror.source + first for block, first in zip(self.blocks, self._first_columns, strict=True)]
        return Mirror(np.concatenate(source), np.concatenate([block.mirror.sign for block in self.blocks]))


def signs(*values: float) -> Mirror:
    """A mirror that swaps nothing and changes signs."""
    return Mirror(np.arange(len(values)), np.array(values, np.float32))


def joint_mirror(model: mujoco.MjModel, joint_ids: list[int]) -> Mirror:
    """The mirror of a vector with one entry for each of these hinge joints.

    A `right_` joint changes place with its `left_` twin. The sign follows from the axes: a rotation axis (x, y, z) looks
    like (-x, y, -z) in a mirror across the body's middle plane, and the angle changes sign if that is not the twin's axis.
    """
    names = [model.joint(i).name for i in joint_ids]
    source, sign = [], []
    for name in names:
        twin = name.replace("right_", "\0").replace("left_", "right_").replace("\0", "left_")
        axis, twin_axis = model.joint(name).axis, model.joint(twin).axis
        source.append(names.index(twin))
        sign.append(np.sign(np.dot(axis * [-1, 1, -1], twin_axis)))
    return Mirror(np.array(source), np.array(sign, np.float32))


def hinge_joints(model: mujoco.MjModel) -> list[int]:
    """Ids of the joints after the root's."""
    return [i for i in range(model.njnt) if model.jnt_bodyid[i] != model.body("torso").id]


def action_mirror(physics: Physics) -> Mirror:
    """The mirror of an action: one motor a joint."""
    return joint_mirror(physics.model, [int(i) for i in physics.model.actuator_trnid[:, 0]])


def make_observation(kind: str, physics: Physics, goal: Sequence[Block] = ()) -> Observation:
    """`proprio`, `positions` or `v5` of this body, followed by what it sees of its goal."""
    if kind == "positions":
        blocks = [block for block in make_observation("proprio", physics).blocks if block.name not in VELOCITIES]
        return Observation([*blocks, *goal], np.float32, PROPRIO_LIMIT)
    if kind == "v5":
        blocks = humanoid_v5(physics) if physics.body.free else half_cheetah_v5(physics)
        return Observation([*blocks, *goal], np.float64, np.inf)
    blocks = humanoid_proprio(physics) if physics.body.free else half_cheetah_proprio(physics)
    return Observation([*blocks, *goal], np.float32, PROPRIO_LIMIT)


def _no_mirror(size: int) -> Mirror:
    return signs(*[1.0] * size)


def humanoid_proprio(physics: Physics) -> list[Block]:
    """Height, orientation, velocities in the torso's and the heading's frame, joints, previous action, gait clock."""
    joints = joint_mirror(physics.model, hinge_joints(physics.model))
    return [
        Block("height", lambda state: state.height[:, None], signs(1)),  # m
        Block("up", lambda state: state.up, signs(1, -1, 1)),
        Block("heading", lambda state: state.course, signs(1, -1)),  # cos, sin
        Block("velocity", lambda state: state.velocity, signs(1, -1, 1)),  # m/s
        Block("angular_velocity", lambda state: state.qvel[:, 3:6], signs(-1, 1, -1)),  # rad/s, torso frame
        Block("joint_positions", lambda state: state.qpos[:, 7:], joints),  # rad
        Block("joint_velocities", lambda state: state.qvel[:, 6:], joints),  # rad/s
        Block("previous_action", lambda state: state.action, action_mirror(physics)),
        Block("clock", lambda state: state.clock, signs(-1, -1)),  # half a cycle later
    ]


def half_cheetah_proprio(physics: Physics) -> list[Block]:
    """Height, pitch and joints, their velocities, and the previous action; a planar body has no mirror."""
    nq, nv, nu = physics.model.nq, physics.model.nv, physics.model.nu
    return [
        Block("positions", lambda state: state.qpos[:, 1:], _no_mirror(nq - 1)),  # m, rad
        Block("velocities", lambda state: state.qvel, _no_mirror(nv)),  # m/s, rad/s
        Block("previous_action", lambda state: state.action, _no_mirror(nu)),
    ]


def _flat(array: Array) -> Array:
    return array.reshape(len(array), -1)


def humanoid_v5(physics: Physics) -> list[Block]:
    """Humanoid-v5's 348 numbers in its order."""
    nbody = physics.model.nbody - 1
    return [
        Block("qpos", lambda state: state.qpos[:, 2:], _no_mirror(physics.model.nq - 2)),
        Block("qvel", lambda state: state.qvel, _no_mirror(physics.model.nv)),
        Block("cinert", lambda state: _flat(state.read("cinert")[:, 1:]), _no_mirror(10 * nbody)),
        Block("cvel", lambda state: _flat(state.read("cvel")[:, 1:]), _no_mirror(6 * nbody)),
        Block("qfrc_actuator", lambda state: state.read("qfrc_actuator")[:, 6:], _no_mirror(physics.model.nv - 6)),
        Block("cfrc_ext", lambda state: _flat(state.read("cfrc_ext")[:, 1:]), _no_mirror(6 * nbody)),
    ]


def half_cheetah_v5(physics: Physics) -> list[Block]:
    """HalfCheetah-v5's 17 numbers."""
    return [
        Block("qpos", lambda state: state.qpos[:, 1:], _no_mirror(physics.model.nq - 1)),
        Block("qvel", lambda state: state.qvel, _no_mirror(physics.model.nv)),
    ]
