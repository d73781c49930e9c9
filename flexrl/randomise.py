"""Bodies that differ from simulation to simulation, and pushes: so that a policy does not lean on one model's details."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from flexrl.config import Settings
from flexrl.physics import Physics
from flexrl.tasks import Range

# Fields of a model that an actuator's strength is made of, and their columns.
MOTOR_STRENGTH = [("actuator_gear", [0])]
SERVO_STRENGTH = [("actuator_gainprm", [0]), ("actuator_biasprm", [1, 2]), ("actuator_forcerange", [0, 1])]


class RandomiseSettings(Settings):
    """What differs: each number is a factor on the XML's own value, drawn evenly from [lowest, highest]."""

    # sliding, torsional and rolling friction of every geom
    friction: Range | None = None
    # masses and inertias of every body, each with a factor of its own
    mass: Range | None = None
    # torque of every motor, each with a factor of its own
    strength: Range | None = None
    # m/s: greatest change of the root's horizontal velocity by a push; null: none
    push: float | None = Field(None, gt=0)
    # s between pushes, [shortest, longest]
    push_every: Range = (3.0, 8.0)

    @model_validator(mode="after")
    def _in_order(self) -> RandomiseSettings:
        for name in ("friction", "mass", "strength", "push_every"):
            ends = getattr(self, name)
            if ends is not None and not 0 < ends[0] <= ends[1]:
                raise ValueError(f"{name}: expected [lowest, highest] above 0, found [{ends[0]:g}, {ends[1]:g}]")
        return self


class Randomiser:
    """Writes each simulation's own model values, which its seed decides and nothing changes, and pushes bodies now and then."""

    def __init__(self, physics: Physics, settings: RandomiseSettings) -> None:
        self.physics, self.settings = physics, settings
        self.push_at = np.full(physics.num_envs, np.inf)  # s since each episode began

    def begin(self, seed: int) -> None:
        """The models of simulations seeded with seed, seed + 1, ..."""
        rngs = [np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed + i, 1]))) for i in range(len(self.push_at))]
        model, settings = self.physics.model, self.settings
        if settings.friction is not None:
            factors = np.array([rng.uniform(*settings.friction) for rng in rngs])
            self.physics.expand("geom_friction")[:] = model.geom_friction * factors[:, None, None]
        if settings.mass is not None:
            factors = np.array([rng.uniform(*settings.mass, size=model.nbody) for rng in rngs])
            self.physics.set_masses(model.body_mass * factors, model.body_inertia * factors[:, :, None])
        if settings.strength is not None:
            factors = np.array([rng.uniform(*settings.strength, size=model.nu) for rng in rngs])
            for name, columns in SERVO_STRENGTH if self.physics.servo else MOTOR_STRENGTH:
                array = self.physics.expand(name)
                array[:] = getattr(model, name)
                array[:, :, columns] *= factors[:, :, None]

    def begin_episode(self, i: int, rng: np.random.Generator) -> None:
        """Draws when simulation i is pushed first."""
        if self.settings.push is not None:
            self.push_at[i] = rng.uniform(*self.settings.push_every)

    def push(self, now: NDArray[np.float64], rngs: Sequence[np.random.Generator]) -> None:
        """Pushes the bodies whose time has come, `now` (num_envs,) s after their episodes began."""
        if self.settings.push is None:
            return
        for i in map(int, np.flatnonzero(now >= self.push_at)):
            strength, angle = rngs[i].uniform(0, self.settings.push), rngs[i].uniform(-np.pi, np.pi)
            self.physics.qvel[i, 0] += strength * np.cos(angle)
            if self.physics.body.free:
                self.physics.qvel[i, 1] += strength * np.sin(angle)
            self.push_at[i] = now[i] + rngs[i].uniform(*self.settings.push_every)

    def get_state(self) -> dict[str, NDArray[Any]]:
        """When the next pushes come; the models follow from the seed."""
        return {"push_at": self.push_at.copy()}

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on exactly where `get_state` was taken."""
        self.push_at = state["push_at"].copy()
