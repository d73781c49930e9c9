"""Where a command, followed to the letter, would have brought the body: what drift is measured against and seen by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexrl.physics import Array

SETTLING = 1.0  # s after a new command in which the reference is the body itself: nobody can change speed at once
LEAD = 0.3  # m that a moving reference is ahead of the body at most
TURN = 0.5  # rad, likewise


class Reference:
    """Place and heading that `num_envs` commands have come to, arrays (num_envs, ...).

    They move as the command says, from where the body was when it was given. What a command does not move stays where it
    is, however far the body drifts; what it moves waits for a body that cannot keep up.
    """

    def __init__(self, num_envs: int) -> None:
        self.place = np.zeros((num_envs, 2))  # m, world
        self.yaw = np.zeros(num_envs)  # rad
        self.settling = np.zeros(num_envs)  # s left in which it follows the body

    def begin(self, ids: NDArray[np.intp], ground_position: Array) -> None:
        """New episodes of simulations `ids` (n,): from `ground_position` (n, 2) m, along the world's x axis."""
        self.place[ids], self.yaw[ids], self.settling[ids] = ground_position, 0.0, 0.0

    def ask_again(self, i: int) -> None:
        """Simulation i got another command."""
        self.settling[i] = SETTLING

    def update(self, ground_position: Array, heading: Array, command: Array, loose: NDArray[np.bool_], dt: float) -> None:
        """One control step of `dt` s; it stays with the body where it settles or is `loose` (num_envs,), lying say.

        `heading` (num_envs, 2) as (cos, sin).
        """
        self.settling = np.maximum(self.settling - dt, 0.0)
        follows = loose | (self.settling > 0)
        yaw = np.arctan2(heading[:, 1], heading[:, 0])
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        forward, left, turn = command.T
        step = np.stack([cos * forward - sin * left, sin * forward + cos * left], axis=1) * dt
        lead = self.place + step - ground_position
        length = np.sqrt(np.sum(lead * lead, axis=1, keepdims=True))
        moves = np.any(command[:, :2] != 0, axis=1, keepdims=True)
        lead *= np.where(moves, np.minimum(1.0, LEAD / np.maximum(length, 1e-9)), 1.0)
        self.place = ground_position + np.where(follows[:, None], 0.0, lead)
        ahead = (self.yaw + turn * dt - yaw + np.pi) % (2 * np.pi) - np.pi
        self.yaw = np.where(follows, yaw, np.where(turn == 0, self.yaw, yaw + np.clip(ahead, -TURN, TURN)))

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        return {"place": self.place.copy(), "yaw": self.yaw.copy(), "settling": self.settling.copy()}

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on exactly where `get_state` was taken."""
        self.place, self.yaw, self.settling = (state[name].copy() for name in ("place", "yaw", "settling"))
