"""What an episode came to: how well the command was tracked, how far the body drifted, when it stood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexrl.body_state import State
from flexrl.physics import Array
from flexrl.reference import SETTLING

HELD = 2.0  # s upright, without a break, that make it stand
FIELDS = (
    *("num_counted", "errors", "squares", "drift", "upright_for", "upright_at"),
    *("since_command", "elapsed", "settling", "anchor"),
)


class Measures:
    """Running measures of `num_envs` episodes, or of their parts at one skill; arrays (num_envs, ...).

    What happens within SETTLING after a new command does not count.
    """

    def __init__(self, num_envs: int) -> None:
        self.num_counted = np.zeros(num_envs)  # control steps whose errors are summed
        self.errors = np.zeros((num_envs, 3))  # sums of forward, sideways and yaw-rate errors, m/s, m/s, rad/s
        self.squares = np.zeros((num_envs, 3))
        self.drift = np.zeros(num_envs)  # m: farthest from the start so far
        self.upright_for = np.zeros(num_envs)  # s, without a break, until now
        self.upright_at = np.full(num_envs, np.inf)  # s: when it stood up to stay
        self.since_command = np.zeros(num_envs)  # s
        self.elapsed = np.zeros(num_envs)  # s
        self.settling = np.zeros(num_envs)  # s left in which the anchor goes with the body
        self.anchor = np.zeros((num_envs, 2))  # m: where the drift is measured from

    def begin(self, ids: NDArray[np.intp], ground_position: Array, settling: float = 0.0) -> None:
        """New episodes in simulations `ids` (n,), at `ground_position` (n, 2) m, whose drift counts after `settling` s."""
        for name in FIELDS:
            getattr(self, name)[ids] = np.inf if name == "upright_at" else 0.0
        self.anchor[ids], self.settling[ids] = ground_position, settling

    def update(self, state: State, ground_position: Array) -> None:
        """One control step of all simulations."""
        dt = state.physics.dt
        self.since_command += dt
        self.elapsed += dt
        counted = self.since_command > SETTLING
        error = np.empty((len(counted), 3))
        error[:, :2] = state.body_velocity - state.command[:, :2]
        error[:, 2] = state.yaw_rate - state.command[:, 2]
        error *= counted[:, None]
        self.num_counted += counted
        self.errors += error
        self.squares += error * error
        if self.settling.any():
            self.settling = np.maximum(self.settling - dt, 0.0)
            self.anchor = np.where(self.settling[:, None] > 0, ground_position, self.anchor)
        self.drift = np.maximum(self.drift, np.sqrt(np.sum(np.square(ground_position - self.anchor), axis=1)))
        self.upright_for = np.where(state.standing, self.upright_for + dt, 0.0)
        stands = (self.upright_for >= HELD) & np.isinf(self.upright_at)
        self.upright_at = np.where(stands, self.elapsed - self.upright_for, self.upright_at)

    @property
    def mean_error(self) -> Array:
        """Mean of what was done less what was asked: forward, sideways (m/s), yaw rate (rad/s), (num_envs, 3)."""
        return np.asarray(self.errors / np.maximum(self.num_counted, 1)[:, None])

    @property
    def rms_error(self) -> Array:
        """Root of the mean squared error, likewise."""
        return np.asarray(np.sqrt(self.squares / np.maximum(self.num_counted, 1)[:, None]))

    def describe(self, i: int) -> dict[str, float]:
        """Simulation i's measures by name, in m, s and rad; those that say nothing (never upright) are left out."""
        mean, rms = self.mean_error[i], self.rms_error[i]
        named = {"speed_error": mean[0], "sideways_error": mean[1], "yaw_rate_error": mean[2], "drift": self.drift[i]}
        named |= {"rms_speed_error": rms[0], "rms_yaw_rate_error": rms[2], "upright_at": self.upright_at[i]}
        return {name: float(value) for name, value in named.items() if np.isfinite(value)}

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        return {name: getattr(self, name).copy() for name in FIELDS}

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on exactly where `get_state` was taken."""
        for name in FIELDS:
            setattr(self, name, state[name].copy())
