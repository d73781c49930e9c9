"""make_world(settings): the one file that knows all kinds of world."""

from __future__ import annotations

import contextlib
import difflib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from pydantic import Field, ValidationError, field_validator
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from flexrl.config import Settings, choice
from flexrl.motor_settings import MotorSettings, resolve_tasks
from flexrl.motor_world import MotorWorld
from flexrl.observations import Mirror, action_mirror

OURS = "flexrl.gymnasium_envs"  # registers the motor worlds


class GymnasiumSettings(Settings):
    """Any registered Gymnasium environment, stepped by SB3's ordinary vector envs."""

    kind: Literal["gymnasium"] = "gymnasium"
    # a registered id, such as Ant-v5
    id: str = "Ant-v5"
    # copies stepped together
    num_envs: int = Field(8, ge=1, le=4096)
    # one process an env (faster for heavy physics) instead of all in this one
    subprocesses: bool = True
    # what it is made with, such as {continuous: true}
    kwargs: dict[str, Any] = {}

    @field_validator("id")
    @classmethod
    def _registered(cls, name: str) -> str:
        if name.startswith("flexrl/"):
            importlib.import_module(OURS)  # which registers them
        if name not in gymnasium.registry:
            close = difflib.get_close_matches(name, list(gymnasium.registry), n=1)
            raise ValueError(f"Gymnasium knows no environment {name!r}" + (f"; did you mean '{close[0]}'?" if close else ""))
        return name


# A world's settings; `world: {num_envs: 64}` means a motor world.
WorldSettings = choice("kind", {"motor": MotorSettings, "gymnasium": GymnasiumSettings}, default="motor")


def make_world(settings: MotorSettings | GymnasiumSettings, seed: int = 0) -> VecEnv:
    """The world as SB3's `VecEnv`; simulation i is seeded with seed + i."""
    if isinstance(settings, MotorSettings):
        return MotorWorld(settings, seed)
    kind = SubprocVecEnv if settings.subprocesses and settings.num_envs > 1 else DummyVecEnv
    name = f"{OURS}:{settings.id}" if settings.id.startswith("flexrl/") else settings.id  # a new process knows none of ours
    return make_vec_env(name, settings.num_envs, seed=seed, vec_env_cls=kind, env_kwargs=settings.kwargs)


# what making a Gymnasium world may raise: ids, keyword arguments, packages and files that it needs
CANNOT_MAKE = (ValueError, TypeError, ImportError, OSError, gymnasium.error.Error)


def why(error: Exception) -> str:
    """What one of those says, as one line."""
    text = error.errors()[0]["msg"].removeprefix("Value error, ") if isinstance(error, ValidationError) else str(error)
    return " ".join(text.split())


def recorded_world(world: Mapping[str, Any]) -> GymnasiumSettings:
    """The Gymnasium world that a dataset says it is of; ValueError if it names none that is known here."""
    if world.get("id") is None:
        raise ValueError("it does not say which environment it is of")
    return GymnasiumSettings.model_validate(world)


@contextlib.contextmanager
def closing(world: VecEnv) -> Iterator[VecEnv]:
    """The world, closed at the end; after an exception its processes are ended without a word with them.

    One that was interrupted while it waited for its processes would wait for their answers again, for ever.
    """
    try:
        yield world
    except BaseException:
        processes = world.unwrapped.processes if isinstance(world.unwrapped, SubprocVecEnv) else []
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        raise
    world.close()


# of a world's settings, what only makes training in it easier or its policies more robust
AS_IT_IS: dict[str, Any] = {
    "curriculum": None,
    "randomise": None,
    "word_variants": 0,
    "pose_levels": None,
    "end_upright": None,
    "stagger": False,
}


def evaluation_settings(
    settings: MotorSettings | GymnasiumSettings, num_envs: int, physics: str | None = None, task: str | None = None
) -> MotorSettings | GymnasiumSettings:
    """The same world for an evaluation: `num_envs` of it, in `physics` and at `task` where given and there is a choice.

    The skills of a mixed world come one after the other, each for whole episodes and at full difficulty, whatever the training
    draws.
    """
    if isinstance(settings, GymnasiumSettings):
        return settings.model_copy(update={"num_envs": num_envs, "subprocesses": False})
    update: dict[str, Any] = {"num_envs": num_envs, "sampling": "balanced", "switch": None, **AS_IT_IS}
    if physics:
        update["physics"] = physics
    update["skills"] = {name: float(weight > 0) for name, weight in settings.skills.items()}
    if task and task != settings.task:
        update |= {"task": task, "skills": {}}
    return settings.model_copy(update=update)


def only_skill(settings: MotorSettings, skill: str) -> MotorSettings:
    """A mixed world in which every episode is for `skill`; what a policy sees of its goal stays as it is.

    ValueError with a sentence if the world has no such skill.
    """
    skills = list(resolve_tasks(settings))
    if skill not in skills:
        close = difflib.get_close_matches(skill, skills, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else f"; it has {', '.join(skills)}"
        raise ValueError(f"this world has no skill {skill!r}{hint}")
    if len(skills) == 1:
        return settings
    weights = {name: float(name == skill) for name in skills}
    return settings.model_copy(update={"skills": weights, "sampling": "weighted"})


def mirrors_of(world: VecEnv) -> tuple[Mirror, Mirror] | None:
    """The left-right mirrors of the world's observations and actions, if its body has a left and a right."""
    inner = world.unwrapped
    if not isinstance(inner, MotorWorld) or not inner.batch.has_mirror:
        return None
    return inner.batch.observation.mirror(), action_mirror(inner.batch.physics)


def columns_of_skills(world: VecEnv, skills: Sequence[str]) -> list[int]:
    """The columns of a mixed world's observation that tell whether each of these skills is asked for; it shows `one_hot`."""
    batch = world.unwrapped.batch  # type: ignore[attr-defined]
    first = batch.observation.first_column("one_hot")
    return [first + batch.skills.index(skill) for skill in skills]


def normalise(world: VecEnv, observations: bool, rewards: bool, gamma: float) -> VecEnv:
    """The world with running normalisation of observations and of rewards by the return's scale, if either is asked for."""
    if not (observations or rewards):
        return world
    return VecNormalize(world, norm_obs=observations, norm_reward=rewards, gamma=gamma)


class MirroredMeanStd(RunningMeanStd):
    """SB3's running mean and variance of observations and of their mirror images, each seen as often as the other.

    So left and right look alike through it, bit for bit, even where one of them alone is asked for.
    """

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(shape=mirror.source.shape)
        self.mirror = mirror

    def update_from_moments(self, batch_mean: np.ndarray, batch_var: np.ndarray, batch_count: float) -> None:
        """Counts a batch of `batch_count` observations by its mean and variance, (obs_dim,) each."""
        image, variance = self.mirror(batch_mean), batch_var[self.mirror.source]
        within = 0.5 * (batch_var + variance)
        super().update_from_moments(0.5 * (batch_mean + image), within + np.square(0.5 * (batch_mean - image)), batch_count)


def describe_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """A Box or Discrete space as plain values; other spaces raise ValueError."""
    if isinstance(space, spaces.Box):
        low, high = (np.asarray(bound, float) for bound in (space.low, space.high))
        bounds = {"low": _numbers(low), "high": _numbers(high)}
        return {"kind": "box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"kind": "discrete", "n": int(space.n), "start": int(space.start)}
    raise ValueError(f"a {type(space).__name__} space cannot be put into a snapshot; only Box and Discrete can")


def read_space(description: dict[str, Any]) -> spaces.Space[Any]:
    """The space that `describe_space` wrote."""
    if description["kind"] == "discrete":
        return spaces.Discrete(description["n"], start=description["start"])
    shape, dtype = tuple(description["shape"]), np.dtype(description["dtype"])
    low, high = (_array(description[bound], shape) for bound in ("low", "high"))
    return spaces.Box(low.astype(dtype), high.astype(dtype), shape, dtype.type)


def _numbers(array: np.ndarray) -> list[str] | str:
    texts = [repr(float(number)) for number in array.flat]  # JSON has no infinity
    return texts[0] if len(set(texts)) == 1 else texts


def _array(texts: list[str] | str, shape: tuple[int, ...]) -> np.ndarray:
    if isinstance(texts, str):
        return np.full(shape, float(texts))
    return np.array([float(text) for text in texts]).reshape(shape)
