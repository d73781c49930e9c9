"""What is played, and how: any policy in its world, episode beside episode; and an evaluation as a run of its own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from flexrl.config import Settings, UserError
from flexrl.evaluation import Episode, metrics_of, run_episodes, summarise
from flexrl.motor_settings import MAX_LETTERS, MotorSettings, resolve_tasks
from flexrl.motor_world import MotorWorld
from flexrl.policies import (
    WITHOUT_SNAPSHOT,
    PlayedSettings,
    Policy,
    RandomPolicy,
    Snapshot,
    ZeroPolicy,
    load_policy,
    open_snapshot,
    prompt_without_skill,
)
from flexrl.text_encoders import closest, find_encoder
from flexrl.worlds import CANNOT_MAKE, WorldSettings, evaluation_settings, make_world, only_skill, why


class PlaySettings(Settings):
    """What is played; the defaults judge the shipped policy of many skills."""

    # a snapshot's folder, such as workspace/humanoid/best; or random, or zero
    model: str = "examples/pretrained/humanoid_skills"
    # the world of random and zero; null: the humanoid's walk
    world: WorldSettings | None = None
    # how many, side by side
    num_episodes: int = Field(100, ge=1, le=10_000)
    # the first episode's; the others' follow it
    seed: int = Field(0, ge=0, le=2**31)
    # the humanoid's dynamics
    physics: Literal["v5", "fast"] = "v5"
    # count this task's reward instead of the world's own; null: the world's
    task: str | None = None
    # only this skill of a policy that has several; null: all, one after the other
    skill: str | None = None
    # a sentence for a policy that reads words, played at `skill`, or where the skill's own words are closest; null: its skills'
    words: str | None = Field(None, min_length=1, max_length=MAX_LETTERS)
    # the return that a Decision Transformer is asked for; null: a high one of its data
    target_return: float | None = None
    # the parts of its goal that a Decision Transformer is shown; null: all, of which `words` leaves the skill away
    prompt: list[str] | None = None
    # sample actions instead of taking the likeliest
    stochastic: bool = False


def open_model(path: str) -> Snapshot | None:
    """The snapshot of that folder; null for the policies that have none."""
    return None if path in WITHOUT_SNAPSHOT else open_snapshot(Path(path))


def world_of(settings: PlaySettings, snapshot: Snapshot | None) -> Any:
    """The settings of the world that is played, one simulation an episode; UserError for what it does not have."""
    if snapshot is not None and settings.world is not None:
        raise UserError("world: a snapshot brings a world of its own; leave it away")
    default = PlayedSettings() if settings.world is None else PlayedSettings(world=settings.world)
    own = snapshot.settings.world if snapshot else default.world
    task, is_motor = settings.task, isinstance(own, MotorSettings)
    if task and not is_motor:
        raise UserError(f"task {task}: {own.id} has a reward of its own; leave it away")
    if task not in (None, getattr(own, "task", None)) and snapshot and own.goal:
        raise UserError("task: a policy that sees its goal is played at its own tasks; leave it away")
    if task not in (None, getattr(own, "task", None)) and snapshot and snapshot.about.get("sizes", {}).get("has_return"):
        raise UserError("task: a policy that counts its rewards down is played at its own task; leave it away")
    world = evaluation_settings(own, settings.num_episodes, settings.physics, task)
    if snapshot and snapshot.about["kind"] == "offline":
        check_seen(world, settings.skill, settings.model, "skill")
    world = check_task(world)
    if settings.words is None:
        return choose_skill(world, settings.skill)
    if "embedding" not in getattr(world, "goal", ()):
        raise UserError(f"words: {settings.model} reads none; name one of its skills")
    if settings.prompt is not None and "words" not in settings.prompt:
        raise UserError("prompt: it leaves the words out; name them too")
    skill = settings.skill or understand(settings.words, world).skill
    return choose_skill(world, skill).model_copy(update={"words": settings.words})


@dataclass(frozen=True)
class Understood:
    """What a sentence was taken for."""

    skill: str
    phrase: str  # of that skill's, the closest
    likeness: float  # 1: the same words


def understand(words: str, settings: MotorSettings) -> Understood:
    """The skill of this world, of those with weight, whose words are closest to a sentence; UserError if none is like it."""
    tasks = [(name, task) for name, (task, weight) in resolve_tasks(settings).items() if weight > 0]
    known = [(name, phrase) for name, task in tasks for phrase in task.words.train]
    try:
        encoder = find_encoder(settings.encoder)
    except ValueError as error:
        raise UserError(str(error)) from None
    index, likeness = closest(words, [phrase for _, phrase in known], encoder)
    if likeness <= 0:
        raise UserError(f"words: {words!r} is like nothing that is known here, such as {known[0][1]!r} or {known[-1][1]!r}")
    return Understood(*known[index], likeness)


def check_task(settings: Any) -> Any:
    """The settings, if their body has their task; UserError otherwise."""
    if isinstance(settings, MotorSettings):
        try:
            resolve_tasks(settings)
        except ValueError as error:
            raise UserError(f"task: {error}") from None
    return settings


def check_seen(settings: Any, skill: str | None, model: str, setting: str) -> None:
    """UserError naming the setting if the data that a policy learned from never showed that skill."""
    if isinstance(settings, MotorSettings) and settings.skills.get(skill, 1.0) == 0:  # type: ignore[call-overload]
        shown = ", ".join(name for name, weight in settings.skills.items() if weight > 0)
        raise UserError(f"{setting}: the data of {model} never showed {skill}; it showed {shown}")


def choose_skill(settings: Any, skill: str | None) -> Any:
    """The settings with episodes of that skill only; UserError if there is none of that name."""
    if skill is None:
        return settings
    if not isinstance(settings, MotorSettings):
        raise UserError(f"skill {skill}: only motor worlds have skills; leave it away")
    try:
        return only_skill(settings, skill)
    except ValueError as error:
        raise UserError(f"skill: {error}") from None


def policy_of(settings: PlaySettings, snapshot: Snapshot | None, world: Any) -> Policy:
    """The snapshot's policy, or random or zero actions."""
    if snapshot is not None:
        prompt = settings.prompt
        if settings.words is not None and prompt is None:
            prompt = prompt_without_skill(snapshot)
        return load_policy(snapshot, not settings.stochastic, settings.target_return, prompt)
    if settings.prompt is not None or settings.target_return is not None:
        raise UserError(f"prompt, target_return: {settings.model} sees no goal; leave them away")
    return RandomPolicy(world.action_space, settings.seed) if settings.model == "random" else ZeroPolicy(world.action_space)


@contextlib.contextmanager
def opened(settings: PlaySettings) -> Iterator[tuple[Policy, Any]]:
    """The policy and its world, which is closed in the end; UserError for what cannot be played."""
    snapshot = open_model(settings.model)
    try:
        world = make_world(world_of(settings, snapshot), settings.seed)
    except CANNOT_MAKE as error:
        raise UserError(f"{settings.model}: {why(error)}") from None
    with contextlib.closing(world):
        yield policy_of(settings, snapshot, world), world


def skills_played(world: Any) -> list[str]:
    """The skills that episodes of this world are for, in order; none where the world has none."""
    if not isinstance(world, MotorWorld):
        return []
    weights = world.batch.asked.sampler.weights
    return [skill for skill, weight in zip(world.batch.skills, weights, strict=True) if weight > 0]


def rehearse(settings: PlaySettings, is_new: bool) -> None:
    """Opens the policy and its world of one env, and lets it act once; UserError for what cannot be played."""
    try:
        open_model(settings.model)
    except UserError as error:
        raise UserError(f"model: {error}") from None
    with opened(settings.model_copy(update={"num_episodes": 1})) as (policy, world):
        policy.reset(np.ones(1, bool))
        policy.act(world.reset())


def judge(settings: PlaySettings) -> tuple[list[Episode], dict[str, float]]:
    """All episodes, and their means as metrics eval/..."""
    with opened(settings) as (policy, world):
        episodes = run_episodes(policy, world, settings.seed)
    return episodes, metrics_of(summarise(episodes), "eval")


def files_of(episodes: list[Episode]) -> dict[str, bytes]:
    """What an evaluation keeps: every episode, and their summary with intervals."""
    document = {"episodes": [episode.to_json() for episode in episodes], "summary": summarise(episodes)}
    return {"episodes.json": json.dumps(document, indent=1).encode()}
