"""N copies of one MuJoCo body on `mujoco.batch`, as arrays: the only file that touches the engine's stepping."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium
import mujoco
import numpy as np
from mujoco.batch import Batch, SimulationError
from numpy.typing import NDArray

from flexrl import machine

Array = NDArray[np.float64]
Mode = Literal["v5", "fast"]
SERVO_ERROR = 0.4  # rad: a servo this far from its target pulls with all that the motor has
KEPT = 8  # of what is made once for a seed
SERVO_DAMPING = 0.05  # s: of a servo, as a share of its stiffness

# Warnings after which MuJoCo has put the simulation back to its default state (bad qpos, qvel, qacc): the episode is lost.
DIVERGED_WARNINGS = slice(int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADQACC) + 1)


ALL = slice(None)  # simulations
S = mujoco.mjtState


@dataclass(frozen=True)
class Body:
    """One MuJoCo body, its XML as Gymnasium ships it, and how its control step is cut into physics steps."""

    name: str
    xml: str
    gymnasium_id: str
    v5_steps: int  # physics steps of the XML's own length in one control step
    fast_steps: int
    fast_timestep: float  # s
    feet: tuple[str, ...]  # geoms, right before left
    posture: tuple[str, ...]  # joints that a calm gait keeps near the posture of its Task
    upright_height: float  # m: the torso of a body that stands is above it
    free: bool  # the root is a free joint (seven positions, six velocities), not three planar ones

    @property
    def dt(self) -> float:
        """One control step, s, in either mode."""
        return self.fast_steps * self.fast_timestep


_SIDES = ("right", "left")
BODIES = {
    "humanoid": Body(
        name="humanoid",
        xml="humanoid.xml",
        gymnasium_id="Humanoid-v5",
        v5_steps=5,
        fast_steps=3,
        fast_timestep=0.005,
        feet=("right_foot", "left_foot"),
        posture=(
            *("abdomen_x", "abdomen_y", "abdomen_z"),
            *(f"{side}_{joint}" for side in _SIDES for joint in ("hip_x", "hip_z", "shoulder1", "shoulder2", "elbow")),
        ),
        upright_height=1.1,
        free=True,
    ),
    # The cheetah's own dynamics (Euler, 5 x 10 ms) are already cheap: its fast mode keeps them.
    "half_cheetah": Body(
        name="half_cheetah",
        xml="half_cheetah.xml",
        gymnasium_id="HalfCheetah-v5",
        v5_steps=5,
        fast_steps=5,
        fast_timestep=0.01,
        feet=("bfoot", "ffoot"),
        posture=(),
        upright_height=0.4,
        free=False,
    ),
}


def load_model(body: Body, mode: Mode = "v5", servo: bool = False) -> mujoco.MjModel:
    """The body's model from Gymnasium's own XML file.

    `v5` leaves it as it is. `fast` integrates the humanoid with implicitfast in longer steps, and carries an
    accelerometer of no other use: with it MuJoCo computes `cfrc_ext` during every step (it does so only for sensors),
    one physics step behind the state, which is exact enough for a training reward. `servo` makes position servos of the
    motors, with the same greatest torques.
    """
    path = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / body.xml
    spec = mujoco.MjSpec.from_file(str(path))
    if mode == "fast":
        torso = spec.body("torso")
        torso.add_site(name="flexrl_accelerometer")
        spec.add_sensor(
            name="flexrl_accelerometer",
            type=mujoco.mjtSensor.mjSENS_ACCELEROMETER,
            objtype=mujoco.mjtObj.mjOBJ_SITE,
            objname="flexrl_accelerometer",
        )
        if body.free:
            spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        spec.option.timestep = body.fast_timestep
    if servo:
        for actuator in spec.actuators:
            _make_servo(actuator, spec.joint(actuator.target), in_degrees=bool(spec.compiler.degree))
    with warnings.catch_warnings():  # the cheetah's XML is Gymnasium's; its deprecated attribute is not ours to mend
        warnings.filterwarnings("ignore", "compiler attribute 'settotalmass'", UserWarning)
        return spec.compile()


def _make_servo(actuator: Any, joint: Any, in_degrees: bool) -> None:
    torque = actuator.gear[0] * actuator.ctrlrange[1]  # N m, the motor's greatest
    actuator.gear[0] = 1.0
    actuator.set_to_position(kp=torque / SERVO_ERROR, kv=SERVO_DAMPING * torque / SERVO_ERROR)
    actuator.forcelimited, actuator.forcerange = True, np.array([-torque, torque])
    actuator.ctrllimited, actuator.ctrlrange = True, np.deg2rad(joint.range) if in_degrees else joint.range


def _resumable_size(model: mujoco.MjModel) -> int:
    """How many numbers of a state row come before the controls."""
    parts = (S.mjSTATE_TIME, S.mjSTATE_QPOS, S.mjSTATE_QVEL, S.mjSTATE_ACT, S.mjSTATE_HISTORY, S.mjSTATE_WARMSTART)
    return sum(mujoco.mj_stateSize(model, int(part)) for part in parts)


class Physics:
    """`num_envs` simulations of one body, stepped together.

    `qpos` (num_envs, nq), `qvel` (num_envs, nv) and the derived fields are live views: a write to the first two is the
    state at the next step, the derived ones describe the state before the last physics step, as after `mj_step`.
    Memory holds one MjData a thread, unless `exact_contacts` asks for Gymnasium's `cfrc_ext` bit for bit.
    """

    def __init__(
        self, body: Body, mode: Mode, num_envs: int, num_threads: int | None, exact_contacts: bool, servo: bool = False
    ) -> None:
        self.body, self.mode, self.servo, self.num_envs = body, mode, servo, num_envs
        self.num_threads = min(num_threads or machine.num_threads(), num_envs)
        self.model = load_model(body, mode, servo)
        self.steps = body.v5_steps if mode == "v5" else body.fast_steps
        self.dt = self.model.opt.timestep * self.steps  # s, one control step
        # Only a persistent batch keeps each simulation's whole MjData, which mj_rnePostConstraint reads.
        self._exact_contacts = exact_contacts and mode == "v5"
        self._batch = Batch(self.model, num_envs, self.num_threads, persistent=self._exact_contacts)
        bind = self._batch.bind
        self.qpos, self.qvel, self.ctrl = bind("qpos"), bind("qvel"), bind("ctrl")
        # time, positions and velocities lead a state row, in this order
        self._motion = self._batch.state[:, : 1 + self.model.nq + self.model.nv]
        # and activations and the solver's warm start follow (mjtState): with the controls, all that a step depends on where
        # nothing else pushes
        self.resumable: Array = self._batch.state[:, : _resumable_size(self.model)]
        self._start = self._batch.state[0].copy()  # (nstate,): time 0, no warm start
        self.xfrc_applied = bind("xfrc_applied")  # (num_envs, nbody, 6) N and N m, world frame; part of the state
        self.xipos, self.geom_xpos = bind("xipos"), bind("geom_xpos")
        self.cinert, self.cvel, self.qfrc_actuator = bind("cinert"), bind("cvel"), bind("qfrc_actuator")
        if mode == "fast":
            self.cfrc_ext: Array = bind("cfrc_ext")
        else:  # zero after a reset, as in Gymnasium; stays zero where no task asks for it
            self.cfrc_ext = np.zeros((num_envs, self.model.nbody, 6))
        self._data = mujoco.MjData(self.model)
        self._default_qpos = self._data.qpos.copy()
        self._mass = self.model.body_mass[:, None, None].copy()  # (nbody, num_envs or 1, 1) kg
        self.torso = self.model.body("torso").id
        # (nv,) N m for the control range's unit, 0 for the root; of the plain motors, whatever drives the joints
        plain = self.model if not servo else load_model(body, mode)
        self.gear = np.zeros(plain.nv)
        self.gear[plain.jnt_dofadr[plain.actuator_trnid[:, 0]]] = plain.actuator_gear[:, 0]
        self._num_warnings = np.zeros(num_envs, np.int64)
        self.seed = 0  # of what is prepared at random for it, such as fallen poses
        self._kept: dict[Any, Array] = {}

        self.foot_ids = [self.model.geom(name).id for name in body.feet]
        self.foot_radius = self.model.geom_size[self.foot_ids, 0]  # m
        self.posture_ids = [self.model.joint(name).qposadr[0] for name in body.posture]

    @property
    def default_qpos(self) -> Array:
        """The XML's own posture, (nq,)."""
        return self._default_qpos

    def keep(self, key: Any, make: Callable[[], Array]) -> Array:
        """What `make`, which must depend on nothing else, returned for this key and seed, or returns again: KEPT are kept."""
        if (key, self.seed) not in self._kept:
            if len(self._kept) == KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key, self.seed] = make()
        return self._kept[key, self.seed]

    def expand(self, field: str) -> Array:
        """A model field with a value of its own for each simulation, (num_envs, ...), to be written."""
        values: Array = self._batch.expand(field)
        return values

    def set_masses(self, masses: Array, inertias: Array) -> None:
        """Each simulation's own, (num_envs, nbody) kg and (num_envs, nbody, 3) kg m^2, and what follows from them."""
        self.expand("body_mass")[:], self.expand("body_inertia")[:] = masses, inertias
        self._batch.set_const()
        self._mass = masses.T[:, :, None].copy()

    @property
    def weight(self) -> Array:
        """N, (num_envs,) where bodies differ, or (1,)."""
        return np.asarray(np.sum(self._mass, axis=0)[:, 0] * -self.model.opt.gravity[2])

    def ground_position(self, ids: slice | NDArray[np.intp] = ALL) -> Array:
        """Where simulations `ids` (n,) are over the ground, (n, 2) m, as their Gymnasium env measures speed.

        The humanoid's centre of mass (the sum in Gymnasium's order), the cheetah's root.
        """
        if self.body.free:
            bodies = self.xipos[ids, :, 0:2].transpose(1, 0, 2)  # summed one body after the other, as np.sum does over axis 1
            mass = self._mass if self._mass.shape[1] == 1 else self._mass[:, ids]
            return np.add.reduce(bodies * mass, axis=0) / np.sum(mass, axis=0)
        x = self.qpos[ids, 0]
        return np.stack([x, np.zeros(len(x))], axis=1)

    def foot_position(self, ids: slice | NDArray[np.intp] = ALL) -> Array:
        """The centres of the feet of simulations `ids` (n,), right before left, (n, 2, 3) m."""
        return self.geom_xpos[ids][:, self.foot_ids]

    def step(self, ctrl: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Hold `ctrl` (num_envs, nu) for one control step; returns which simulations diverged, (num_envs,)."""
        self.ctrl[:] = ctrl
        diverged = np.zeros(self.num_envs, bool)
        try:
            self._batch.step(nstep=self.steps)
        except SimulationError as error:
            diverged[error.ids] = True
        if self._exact_contacts:
            for i in range(self.num_envs):
                self._batch.get_data(i, self._data)
                mujoco.mj_rnePostConstraint(self.model, self._data)
                self.cfrc_ext[i] = self._data.cfrc_ext
        num_warnings = self._count_warnings()
        diverged |= num_warnings != self._num_warnings
        self._num_warnings = num_warnings
        return diverged | ~np.isfinite(self._motion).all(axis=1)

    def reset(self, ids: NDArray[np.intp], qpos: Array, qvel: Array) -> None:
        """Start simulations `ids` (n,) anew from `qpos` (n, nq) and `qvel` (n, nv), derived fields computed."""
        self._batch.state[ids] = self._start
        self.qpos[ids], self.qvel[ids] = qpos, qvel
        self._batch.forward(ids)
        if self.mode == "v5":
            self.cfrc_ext[ids] = 0.0

    def resume_from(self, ids: NDArray[np.intp], rows: Array) -> None:
        """Puts simulations `ids` (n,) where rows of `resumable` were read (n, size), derived fields computed."""
        self._batch.state[ids] = self._start
        self.resumable[ids] = rows
        self._batch.forward(ids)
        self.resumable[ids] = rows  # forward has warmed the solver up

    def _count_warnings(self) -> NDArray[np.int64]:
        return self._batch.warning[:, DIVERGED_WARNINGS, 1].sum(axis=1)  # type: ignore[no-any-return]

    def get_state(self) -> NDArray[np.float64]:
        """Everything that the next steps depend on, warm start included: (num_envs, nstate); see `set_state`."""
        return self._batch.state.copy()

    def set_state(self, rows: Array) -> None:
        """Goes on exactly where `get_state` was taken; derived fields are computed by the next step."""
        self._batch.state[:] = rows
        self._num_warnings = self._count_warnings()
