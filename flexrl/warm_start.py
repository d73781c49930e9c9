"""Begin a training from another run's policy, which may see less than the new one."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from flexrl import snapshots
from flexrl.config import UserError
from flexrl.learners import Learner
from flexrl.motor_settings import MotorSettings
from flexrl.networks import MotorActorCriticPolicy
from flexrl.policies import Snapshot


def init_from(learner: Learner, parent: Snapshot, world: object) -> None:
    """The parent's weights and normaliser into a fresh `learner` on a world of settings `world`.

    Inputs that the parent did not have stand behind those that it had (a goal does), get zero weights, and so change
    nothing at first: the learner acts and judges as the parent did, bit for bit, with each of its networks if it has
    several. UserError if the two do not fit.
    """
    where = f"init_from: {parent.folder}"
    theirs = parent.settings.world
    if not isinstance(world, MotorSettings) or not isinstance(theirs, MotorSettings):
        raise UserError(f"{where}: only a policy of a motor world can be gone on with in a motor world")
    for name in ("body", "observation", "action"):
        if getattr(theirs, name) != getattr(world, name):
            raise UserError(f"{where}: its {name} is {getattr(theirs, name)}, here it is {getattr(world, name)}")
    if theirs.goal and (theirs.goal, theirs.task, list(theirs.skills)) != (world.goal, world.task, list(world.skills)):
        raise UserError(
            f"{where}: it sees another goal; only one that sees none, or the same of the same skills, can be gone on with"
        )
    if parent.settings.normalize_observations != (learner.normaliser is not None and learner.normaliser.norm_obs):
        raise UserError(
            f"{where}: its normalize_observations is {str(parent.settings.normalize_observations).lower()}; write the same"
        )
    their_apart, apart = (getattr(settings, "apart", []) for settings in (parent.settings.learner, learner.settings))
    if their_apart and their_apart != apart:
        raise UserError(f"{where}: its learner.apart is {their_apart}, here it is {apart}; write what it has")
    weights = snapshots.read_arrays(parent.folder / "policy.safetensors")
    if isinstance(learner.model.policy, MotorActorCriticPolicy):
        weights = learner.model.policy.split(weights)
    fresh = learner.policy_arrays()
    if set(weights) != set(fresh):
        raise UserError(
            f"{where}: is a network of another kind; write the learner's name, policy and policy_kwargs that it has"
        )
    for name, array in weights.items():
        if not _fits(array, fresh[name]):
            raise UserError(
                f"{where}: its {name} is {array.shape}, here it is {fresh[name].shape}; write its policy_kwargs.net_arch"
            )
    learner.model.policy.load_state_dict(
        {name: torch.from_numpy(_widened(array, fresh[name])) for name, array in weights.items()}
    )
    _take_statistics(learner, parent)


def _fits(array: NDArray[np.floating], fresh: NDArray[np.floating]) -> bool:
    """Equal shapes, or a matrix that only gains inputs, (out, in)."""
    return array.shape == fresh.shape or (
        array.ndim == fresh.ndim == 2 and len(array) == len(fresh) and array.shape[1] < fresh.shape[1]
    )


def _widened(array: NDArray[np.floating], fresh: NDArray[np.floating]) -> NDArray[np.floating]:
    if array.shape == fresh.shape:
        return array
    return np.concatenate([array, np.zeros((len(array), fresh.shape[1] - array.shape[1]), array.dtype)], axis=1)


def _take_statistics(learner: Learner, parent: Snapshot) -> None:
    """Mean and variance as after all that the parent saw; for the new inputs 0 and 1, which its next steps correct."""
    normaliser = learner.normaliser
    if normaliser is None:
        return
    arrays = snapshots.read_arrays(parent.folder / "normaliser.safetensors")
    if normaliser.norm_obs:
        known = len(arrays["mean"])
        normaliser.obs_rms.mean[:known], normaliser.obs_rms.var[:known] = arrays["mean"], arrays["variance"]
        normaliser.obs_rms.count = float(parent.about["num_steps"])
    normaliser.ret_rms.var, normaliser.ret_rms.count = arrays["return_variance"], float(parent.about["num_steps"])
