"""load_policy(anything) -> reset(), act(): whoever plays or collects never asks which kind it holds."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import ConfigDict

from flexrl import config, snapshots
from flexrl.config import Settings, UserError
from flexrl.dt import DecisionTransformer, Sizes
from flexrl.learner_settings import SETTINGS, LearnerSettings
from flexrl.learners import Learner, make_idle_learner
from flexrl.motor_settings import MotorSettings
from flexrl.offline import (
    Cloner,
    CloningSettings,
    DTSettings,
    GoalPart,
    ModelSettings,
    Numbers,
    Part,
    Share,
    first_skill,
    prompt_parts,
)
from flexrl.offline_policy import ClonedPolicy, TransformerPolicy
from flexrl.randomness import pack_generator, unpack_generator
from flexrl.worlds import GymnasiumSettings, WorldSettings, describe_space, make_world, normalise, read_space

Bools = NDArray[np.bool_]
WITHOUT_SNAPSHOT = ("random", "zero")  # models that are no folder


class Policy(Protocol):
    """What plays: actions for a batch of observations, with whatever memory it keeps for each simulation."""

    def reset(self, mask: Bools) -> None:
        """Episodes begin in the simulations where `mask` (num_envs,) is true."""

    def act(self, obs: NDArray[np.floating]) -> NDArray[Any]:
        """Actions (num_envs, action_dim) for observations (num_envs, obs_dim)."""

    def feedback(self, action: NDArray[Any], reward: NDArray[np.floating]) -> None:
        """What was really done in the last step (num_envs, action_dim), and what it brought (num_envs,)."""

    def get_state(self) -> dict[str, Any]:
        """What it remembers, as a tree of plain values and arrays."""

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on exactly where `get_state` was taken, with as many simulations."""


class RandomPolicy:
    """Actions drawn evenly from the action space."""

    def __init__(self, action_space: spaces.Space[Any], seed: int) -> None:
        self._space = action_space
        self._space.seed(seed)

    def reset(self, mask: Bools) -> None:
        """Nothing is remembered."""

    def act(self, obs: NDArray[np.floating]) -> NDArray[Any]:
        """One sample for each row of `obs`."""
        return np.array([self._space.sample() for _ in range(len(obs))])

    def feedback(self, action: NDArray[Any], reward: NDArray[np.floating]) -> None:
        """It does not matter to it."""

    def get_state(self) -> dict[str, Any]:
        """Where the generator of actions stands."""
        return {"rng": pack_generator(self._space.np_random)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Draws on from there."""
        unpack_generator(self._space.np_random, state["rng"])


class ZeroPolicy:
    """No action: zero torque, or the first of discrete choices."""

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self._shape, self._dtype = action_space.shape or (), action_space.dtype

    def reset(self, mask: Bools) -> None:
        """Nothing is remembered."""

    def act(self, obs: NDArray[np.floating]) -> NDArray[Any]:
        """Zeros for each row of `obs`."""
        return np.zeros((len(obs), *self._shape), self._dtype)

    def feedback(self, action: NDArray[Any], reward: NDArray[np.floating]) -> None:
        """It does not matter to it."""

    def get_state(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Nothing is remembered."""


class LearnedPolicy:
    """A policy of an SB3 learner behind the normaliser it was trained with; recurrent ones remember by simulation."""

    def __init__(self, policy: Any, normalise_obs: Callable[[Any], Any], deterministic: bool) -> None:
        self._policy, self._normalise, self._deterministic = policy, normalise_obs, deterministic
        self._memory: Any = None
        self._starts: Bools = np.ones(0, bool)

    def reset(self, mask: Bools) -> None:
        """Episodes begin where `mask` (num_envs,) is true: their memory is cleared before they act again."""
        if len(self._starts) != len(mask):
            self._memory, self._starts = None, np.ones(len(mask), bool)
        self._starts = self._starts | mask

    def act(self, obs: NDArray[np.floating]) -> NDArray[Any]:
        """Actions (num_envs, action_dim), within the action space."""
        if len(self._starts) != len(obs):
            self._starts = np.ones(len(obs), bool)
        action, self._memory = self._policy.predict(
            self._normalise(obs), state=self._memory, episode_start=self._starts, deterministic=self._deterministic
        )
        self._starts = np.zeros(len(obs), bool)
        return action  # type: ignore[no-any-return]

    def feedback(self, action: NDArray[Any], reward: NDArray[np.floating]) -> None:
        """It does not matter to it."""

    def get_state(self) -> dict[str, Any]:
        """The memory of each simulation, and which of them begin."""
        memory = () if self._memory is None else self._memory
        return {"memory": [np.array(part) for part in memory], "starts": self._starts.copy()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Remembers that."""
        self._memory = tuple(part.copy() for part in state["memory"]) or None
        self._starts = state["starts"].astype(bool)


def policy_of(learner: Learner, deterministic: bool) -> LearnedPolicy:
    """The policy as the learner has it now, to be evaluated."""
    normaliser = learner.normaliser
    return LearnedPolicy(learner.model.policy, normaliser.normalize_obs if normaliser else _identity, deterministic)


def _identity(obs: Any) -> Any:
    return obs


class PlayedSettings(Settings):
    """The part of a training's settings that its policy needs to be played."""

    model_config = ConfigDict(extra="ignore")

    world: WorldSettings = MotorSettings()
    learner: LearnerSettings = SETTINGS["ppo"]()
    normalize_observations: bool = True
    normalize_rewards: bool = True


@dataclass(frozen=True)
class Snapshot:
    """A snapshot's content, every file checked against its hash."""

    folder: Path
    about: Mapping[str, Any]  # snapshot.json: kind, num_steps, spaces, what it scored
    settings: PlayedSettings


def copied(learner: Learner, settings: Settings, scores: Mapping[str, float]) -> Callable[[], dict[str, bytes]]:
    """The learner as it is now, as a function that makes its snapshot's files: of most moments they are never asked for."""
    weights, numbers, num_steps = learner.policy_arrays(), learner.normaliser_arrays(), learner.num_steps

    def files() -> dict[str, bytes]:
        about = {
            "kind": "sb3",
            "num_steps": num_steps,
            "scores": dict(scores),
            "observation_space": describe_space(learner.world.observation_space),
            "action_space": describe_space(learner.world.action_space),
            "goal": None,
        }
        return {
            "policy.safetensors": snapshots.pack_arrays(weights),
            "normaliser.safetensors": snapshots.pack_arrays(numbers),
            "settings.yaml": config.to_yaml(settings).encode(),
            "snapshot.json": json.dumps(about, indent=1).encode(),
        }

    return files


def snapshot_files(learner: Learner, settings: Settings, scores: Mapping[str, float]) -> dict[str, bytes]:
    """The files of a snapshot that plays anywhere: weights, normaliser, settings, spaces (lineage is the run's to add)."""
    return copied(learner, settings, scores)()


def open_snapshot(folder: Path) -> Snapshot:
    """Checks every file of a snapshot and reads what it is; UserError if it is none, damaged or of another version."""
    if "snapshot.json" not in snapshots.read_manifest(folder):
        raise UserError(f"{folder}: holds no policy (a dataset, or an evaluation?); name a folder such as workspace/NAME/best")
    snapshots.check(folder)
    about = json.loads((folder / "snapshot.json").read_bytes())
    if about["kind"] not in KINDS:
        raise UserError(f"{folder}: holds a policy of kind {about['kind']!r}, this flex-rl knows {', '.join(KINDS)}")
    return Snapshot(folder, about, config.load(PlayedSettings, folder / "settings.yaml"))


def restore_learner(snapshot: Snapshot, num_envs: int = 1, optimizer: bool = False) -> Learner:
    """The snapshot's SB3 model with its normaliser, on `num_envs` copies of its world; to be trained on, with an optimiser."""
    settings = snapshot.settings
    world_settings = settings.world.model_copy(update={"num_envs": num_envs} | _in_process(settings.world))
    world = normalise(make_world(world_settings), settings.normalize_observations, False, 0.99)
    for kind in ("observation_space", "action_space"):
        ours, its = getattr(world, kind).shape, read_space(snapshot.about[kind]).shape
        if ours != its:
            raise UserError(
                f"{snapshot.folder}: its {kind} has shape {its}, here it is {ours}; use the version that trained it"
            )
    with warnings.catch_warnings():  # its mini-batches need not fit the few envs that it is played in
        warnings.filterwarnings("ignore", "You have specified a mini-batch size", UserWarning)
        learner = make_idle_learner(settings.learner, world, device="cpu", optimizer=optimizer)
    weights = snapshots.read_arrays(snapshot.folder / "policy.safetensors")
    learner.model.policy.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    learner.model.policy.set_training_mode(False)
    if learner.normaliser is not None:
        arrays = snapshots.read_arrays(snapshot.folder / "normaliser.safetensors")
        learner.normaliser.training = False
        learner.normaliser.obs_rms.mean, learner.normaliser.obs_rms.var = arrays["mean"], arrays["variance"]
    return learner


def _in_process(world: MotorSettings | GymnasiumSettings) -> dict[str, Any]:
    return {"subprocesses": False} if isinstance(world, GymnasiumSettings) else {}


@dataclass(frozen=True)
class Playing:
    """How a policy is to be played; see load_policy."""

    deterministic: bool
    target_return: float | None
    prompt: Sequence[str] | None


def _load_sb3(snapshot: Snapshot, how: Playing) -> Policy:
    if how.target_return is not None:
        raise _no_target(snapshot)
    if how.prompt is not None:
        raise _no_prompt(snapshot, "no prompt")
    return policy_of(restore_learner(snapshot), how.deterministic)


def export_sb3(snapshot: Snapshot, path: Path) -> list[Path]:
    """The snapshot as an SB3 zip, with `<name>_vecnormalize.pkl` beside it if observations are normalised.

    A `path` without a suffix gets .zip. Returns what was written.
    """
    path = path if path.suffix else path.with_suffix(".zip")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file such as policy.zip")
    if snapshot.about["kind"] != "sb3":
        raise UserError(f"{snapshot.folder}: learned from a dataset, and has no Stable-Baselines3 model to export")
    learner = restore_learner(snapshot, optimizer=True)
    try:
        path.parent.mkdir(exist_ok=True)
        learner.model.save(path)
        if learner.normaliser is None:
            return [path]
        statistics = path.with_name(f"{path.stem}_vecnormalize.pkl")
        learner.normaliser.save(str(statistics))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return [path, statistics]


def _no_target(snapshot: Snapshot) -> UserError:
    return UserError(f"target_return: {snapshot.folder} does not see what an episode is to bring; leave it away")


def _no_prompt(snapshot: Snapshot, what: str) -> UserError:
    return UserError(f"prompt: {snapshot.folder} has {what}; leave it away")


def _load_offline(snapshot: Snapshot, how: Playing) -> Policy:
    """A model that learned from a dataset; it has no noise of its own."""
    target_return = how.target_return
    if not how.deterministic:
        raise UserError(f"{snapshot.folder}: learned from a dataset, and its actions have no noise to sample; leave that away")
    settings = config.load(OfflineSettings, snapshot.folder / "settings.yaml")
    about = snapshot.about
    numbers = Numbers.from_arrays(snapshots.read_arrays(snapshot.folder / "normaliser.safetensors"))
    body, goal = np.array(about["body_columns"], np.intp), np.array(about["goal_columns"], np.intp)
    weights = snapshots.read_arrays(snapshot.folder / "policy.safetensors")
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    if target_return is not None and not (isinstance(settings.model, DTSettings) and settings.model.returns):
        raise _no_target(snapshot)
    if how.prompt is not None and not isinstance(settings.model, DTSettings):
        raise _no_prompt(snapshot, "a model that is always shown all that it knows")
    if isinstance(settings.model, CloningSettings):
        cloner = Cloner(len(body), len(goal) if settings.model.kind == "gcbc" else 0, len(numbers.low), settings.model)
        cloner.load_state_dict(state)
        return ClonedPolicy(cloner, numbers, body, goal)
    sizes = about["sizes"]
    model = DecisionTransformer(Sizes(**{**sizes, "goal": tuple(sizes["goal"])}))
    model.load_state_dict(state)
    targets = about["targets"] if target_return is None else [target_return] * len(about["targets"])
    first = first_skill(settings.goal, model.sizes.goal)
    return TransformerPolicy(model, numbers, body, goal, targets, first, shown_parts(settings, how.prompt))


class OfflineSettings(Settings):
    """The part of train_dt.py's settings that its policy needs to be played."""

    model_config = ConfigDict(extra="ignore")

    model: ModelSettings = DTSettings()
    goal: list[GoalPart] = []
    hide: Share | dict[Part, Share] = 0.0


def shown_parts(settings: OfflineSettings, prompt: Sequence[str] | None) -> list[bool] | None:
    """Which parts of its goal a transformer is shown, and last whether the return; UserError for what it never learned."""
    if prompt is None:
        return None
    parts: list[Part] = [*settings.goal, "return"]
    known = prompt_parts(settings.model, settings.goal)
    for part in prompt:
        if part not in known:
            raise UserError(f"prompt: it never saw {part!r}; it knows {', '.join(known) or 'nothing to choose from'}")
    for part in known:
        if part not in prompt and not _hidden(settings, part):
            raise UserError(f"prompt: it was never without {part}; name it too, or train it with hide: {{{part}: 0.3}}")
    if settings.goal and not set(prompt) & set(settings.goal):
        raise UserError(f"prompt: name one part of the goal at least, of {', '.join(settings.goal)}")
    return [part in prompt or part not in known for part in parts]


def prompt_without_skill(snapshot: Snapshot) -> list[str] | None:
    """All that a transformer can be shown but the skill, which its words stand for; null where it cannot be without."""
    if snapshot.about["kind"] != "offline":
        return None
    settings = config.load(OfflineSettings, snapshot.folder / "settings.yaml")
    known = prompt_parts(settings.model, settings.goal)
    return [part for part in known if part != "skill"] if "skill" in known and _hidden(settings, "skill") else None


def _hidden(settings: OfflineSettings, part: Part) -> float:
    return settings.hide.get(part, 0.0) if isinstance(settings.hide, dict) else settings.hide


# What a snapshot's "kind" may be, and who makes a policy of it.
KINDS: dict[str, Callable[[Snapshot, Playing], Policy]] = {"sb3": _load_sb3, "offline": _load_offline}


def load_policy(
    snapshot: Snapshot,
    deterministic: bool = True,
    target_return: float | None = None,
    prompt: Sequence[str] | None = None,
) -> Policy:
    """The snapshot's policy, ready to act.

    `target_return`: what a Decision Transformer is to bring, null for a high return of its data; `prompt`: the parts of its
    goal (and "return") that it is shown, null for all. UserError for policies that see no such thing.
    """
    return KINDS[snapshot.about["kind"]](snapshot, Playing(deterministic, target_return, prompt))
