"""Begin a training from other runs' policies, which may see less than the new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from flexrl import snapshots
from flexrl.config import UserError
from flexrl.learners import Learner
from flexrl.motor_settings import MotorSettings, resolve_tasks
from flexrl.networks import OTHERS, MotorActorCriticPolicy
from flexrl.normaliser import Numbers
from flexrl.policies import Snapshot
from flexrl.worlds import mirrors_of


@dataclass(frozen=True)
class Parent:
    """A snapshot that a training begins with."""

    where: str  # the setting that names it, and its folder
    snapshot: Snapshot


@dataclass(frozen=True)
class Parents:
    """What a training begins with."""

    shared: Parent
    apart: Mapping[str, Parent]  # by the skill that has its network apart

    @property
    def all(self) -> list[Parent]:
        """The one that is shared, and the others."""
        return [self.shared, *self.apart.values()]


def init_from(learner: Learner, parents: Parents, world: object) -> None:
    """The parents' weights and normalisers into a fresh `learner` on a world of settings `world`.

    Inputs that a parent did not have stand behind what it saw (a goal does), get zero weights, and so change
    nothing at first: the learner acts and judges as its parent did, with each of its networks if it has several: PPO's MLPs
    bit for bit, other networks to the last digits. With parents apart, the normaliser is of all that they saw and each
    network's first layer is changed to what it was for its parent's: it acts as its parent to the last digits of float32, and
    to what a body's left and right have differed by in its parent's normaliser. UserError if they do not fit.
    """
    apart = getattr(learner.settings, "apart", [])
    for parent in parents.all:
        _check(learner, parent, world)
        if not set(_apart_of(parent)) <= set(apart):
            raise UserError(
                f"{parent.where}: its learner.apart is {_apart_of(parent)}, here it is {apart}; write what it has, or more"
            )
    for parent in parents.apart.values():
        if _goal_of(parent) != _goal_of(parents.shared):
            raise UserError(f"{parent.where}: it sees another goal than {parents.shared.where}; they must see the same")
    numbers = None if learner.normaliser is None else Numbers.pooled([Numbers.of(parent.snapshot) for parent in parents.all])
    for_all = numbers if parents.apart else None
    weights = _weights_of(parents.shared, learner, for_all)
    for skill, parent in parents.apart.items():
        own, which = _weights_of(parent, learner, for_all), apart.index(skill)
        weights |= {name: array for name, array in own.items() if name.startswith(f"{OTHERS}{which}.")}
        weights["log_std"][1 + which] = own["log_std"][1 + which]
    fresh = learner.policy_arrays()
    behind = int(np.prod(learner.world.action_space.shape or (1,))) if isinstance(learner.model, OffPolicyAlgorithm) else 0
    learner.model.policy.load_state_dict(
        {
            name: torch.from_numpy(_widened(array, fresh[name], behind if name.startswith("critic") else 0))
            for name, array in weights.items()
        }
    )
    if numbers is not None:
        numbers.give_to(learner)


def _weights_of(parent: Parent, learner: Learner, numbers: Numbers | None) -> dict[str, NDArray[Any]]:
    """A parent's weights as those of all of the learner's networks, for a normaliser of `numbers` (null: its own).

    UserError if it is a network of another kind.
    """
    weights = snapshots.read_arrays(parent.snapshot.folder / "policy.safetensors")
    if numbers is not None:
        weights = Numbers.of(parent.snapshot).translate(weights, numbers)
    if isinstance(learner.model.policy, MotorActorCriticPolicy):
        theirs = _apart_of(parent)
        begins = [1 + theirs.index(skill) if skill in theirs else 0 for skill in getattr(learner.settings, "apart", [])]
        weights = learner.model.policy.split(weights, begins)
    fresh = learner.policy_arrays()
    if set(weights) != set(fresh):
        raise UserError(
            f"{parent.where}: is a network of another kind; write the learner's name, policy and policy_kwargs that it has"
        )
    for name, array in weights.items():
        if array.shape == (1,) and fresh[name].shape == ():  # as snapshots of CrossQ used to have its counters
            weights[name] = array = array.reshape(())
        if not _fits(array, fresh[name]):
            raise UserError(
                f"{parent.where}: its {name} is {array.shape}, here it is {fresh[name].shape}; write its policy_kwargs.net_arch"
            )
    return weights


def _check(learner: Learner, parent: Parent, world: object) -> None:
    """UserError if a parent is of another world."""
    theirs, settings = parent.snapshot.settings.world, parent.snapshot.settings
    if not isinstance(world, MotorSettings) or not isinstance(theirs, MotorSettings):
        raise UserError(f"{parent.where}: only a policy of a motor world can be gone on with in a motor world")
    for name in ("body", "observation", "action", *(["encoder"] if "embedding" in theirs.goal else [])):
        if getattr(theirs, name) != getattr(world, name):
            raise UserError(f"{parent.where}: its {name} is {getattr(theirs, name)}, here it is {getattr(world, name)}")
    if theirs.goal and (theirs.goal, list(resolve_tasks(theirs))) != (world.goal, list(resolve_tasks(world))):
        raise UserError(
            f"{parent.where}: it sees another goal; "
            "only one that sees none, or the same of the same skills, can be gone on with"
        )
    has_mirror = mirrors_of(learner.world) is not None
    ours, its = _computes(learner.settings, has_mirror), _computes(settings.learner, has_mirror)
    if {ours["policy"], its["policy"]} - {"MlpPolicy", "MirroredPolicy"}:  # networks of other kinds have other weights
        ours["policy"] = its["policy"]
    for name, value in its.items():
        if value != ours[name]:
            raise UserError(f"{parent.where}: its learner.{name} is {value}, here it is {ours[name]}; write what it has")
    if settings.normalize_observations != (learner.normaliser is not None and learner.normaliser.norm_obs):
        raise UserError(
            f"{parent.where}: its normalize_observations is {str(settings.normalize_observations).lower()}; write the same"
        )
    has_counted = settings.normalize_observations or settings.normalize_rewards  # else returns are counted anew
    if has_counted and settings.normalize_rewards != (learner.normaliser is not None and learner.normaliser.norm_reward):
        raise UserError(f"{parent.where}: its normalize_rewards is {str(settings.normalize_rewards).lower()}; write the same")


def _computes(settings: Any, has_mirror: bool) -> dict[str, str]:
    """What a network does with its weights beside their shapes, by the name of the setting."""
    automatic = "MirroredPolicy" if has_mirror else "MlpPolicy"
    policy = automatic if settings.policy == "auto" else settings.policy
    return {"policy": policy, "policy_kwargs.activation_fn": settings.policy_kwargs.activation_fn}


def _goal_of(parent: Parent) -> list[str]:
    return list(getattr(parent.snapshot.settings.world, "goal", []))


def _apart_of(parent: Parent) -> list[str]:
    return list(getattr(parent.snapshot.settings.learner, "apart", []))


def _fits(array: NDArray[np.floating], fresh: NDArray[np.floating]) -> bool:
    """Equal shapes, or a matrix that only gains inputs, (out, in)."""
    return array.shape == fresh.shape or (
        array.ndim == fresh.ndim == 2 and len(array) == len(fresh) and array.shape[1] < fresh.shape[1]
    )


def _widened(array: NDArray[np.floating], fresh: NDArray[np.floating], behind: int) -> NDArray[np.floating]:
    """The weights with zeros for the inputs that they lack, before the last `behind` inputs."""
    if array.shape == fresh.shape:
        return array
    at = array.shape[1] - behind
    zeros = np.zeros((len(array), fresh.shape[1] - array.shape[1]), array.dtype)
    return np.concatenate([array[:, :at], zeros, array[:, at:]], axis=1)
