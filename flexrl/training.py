"""The settings of a training, and what they come to: the world, the learner, what it is judged by, its video."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium
from pydantic import Field, model_validator

from flexrl import machine, render, runs, snapshots
from flexrl.config import Settings, UserError
from flexrl.evaluation import Trail, metrics_of, run_episodes, summarise
from flexrl.learner_settings import SETTINGS, LearnerSettings, check_fit
from flexrl.learners import Learner, make_idle_learner
from flexrl.machine import Device
from flexrl.motor_settings import MotorSettings, TaskName, check_training, resolve_tasks
from flexrl.policies import load_policy, open_snapshot, policy_of
from flexrl.warm_start import Parent, Parents, init_from
from flexrl.worlds import CANNOT_MAKE, WorldSettings, describe_space, evaluation_settings, make_world, normalise, why

VIDEO_STEPS = 400  # control steps: 6 s of the humanoid


class EvaluationSettings(Settings):
    """Episodes on seeds of their own, whose deterministic mean return decides best/."""

    # env steps between evaluations; null: only at the end
    every: int | None = Field(500_000, ge=1)
    # episodes side by side in one world, once deterministic and once stochastic
    episodes: int = Field(10, ge=1, le=4096)
    # the first episode's seed; far from the training's
    seed: int = Field(1_000_000, ge=0, le=2**31)
    # the task whose reward is summed, such as v5; null: the training's
    task: TaskName | None = None
    # v5: Gymnasium's own dynamics, whatever the training uses; same: the training's
    physics: Literal["v5", "same"] = "v5"


class TrainSettings(Settings):
    """What a training is; the defaults train a humanoid to walk."""

    may_change: ClassVar[tuple[str, ...]] = (
        *("num_steps", "evaluation", "learner.learning_rate", "world.num_threads", "torch_threads", "device"),
        *("log_every", "save_every", "snapshot_every", "video", "world.curriculum"),
    )

    # env steps in all, over all simulations
    num_steps: int = Field(4_000_000, ge=1, le=10**12)
    seed: int = Field(0, ge=0, le=2**31)
    world: WorldSettings = MotorSettings()
    learner: LearnerSettings = SETTINGS["ppo"]()
    # a snapshot to begin with, such as workspace/pretrained/best; what it did not see (a goal) may be added; null: none
    init_from: str | None = None
    # other snapshots whose network a skill of learner.apart begins with: {recover: workspace/up/best}; null: init_from's
    init_apart: dict[str, str | None] = {}
    # running mean and variance of observations, and scale of returns
    normalize_observations: bool = True
    normalize_rewards: bool = True
    evaluation: EvaluationSettings = EvaluationSettings()
    # env steps between lines of metrics.jsonl and TensorBoard, at least one rollout
    log_every: int = Field(2_000, ge=1)
    # seconds between saves of latest/
    save_every: float = Field(30.0, ge=0)
    # env steps between snapshots that are kept in snapshots/<steps>/; null: none
    snapshot_every: int | None = Field(None, ge=1)
    # auto: the CPU for ppo, recurrent_ppo and a2c, whose networks are small; else a GPU if there is one
    device: Device = "auto"
    # torch's threads in updates; null: as many as there are CPU cores
    torch_threads: int | None = Field(None, ge=1, le=1024)
    # a video of best/ at the end
    video: bool = True

    @model_validator(mode="after")
    def _fits(self) -> TrainSettings:
        if isinstance(self.world, MotorSettings):
            resolve_tasks(self.world)
            if self.evaluation.task not in (None, self.world.task):
                if self.world.goal:
                    raise ValueError(
                        "evaluation.task: a policy that sees its goal is evaluated at its own tasks; leave it away"
                    )
                resolve_tasks(evaluation_settings(self.world, 1, task=self.evaluation.task))  # type: ignore[arg-type]
        elif self.evaluation.task is not None:
            raise ValueError("evaluation.task: only motor worlds have tasks; leave it away")
        check_fit(self.learner, self.world)
        if self.others_apart and self.init_from is None:
            raise ValueError("init_apart: the skills that are not apart need a network too; write init_from")
        for skill in self.others_apart:
            if skill not in getattr(self.learner, "apart", []):
                raise ValueError(f"init_apart.{skill}: {skill} has no network apart; add it to learner.apart")
        if getattr(self.learner, "frozen", []) and self.init_from is None:
            raise ValueError("learner.frozen: a network that stays as it begins must have learned before; write init_from")
        return self

    @property
    def others_apart(self) -> dict[str, str]:
        """The snapshots of `init_apart`, by skill."""
        return {skill: path for skill, path in self.init_apart.items() if path is not None}

    @property
    def parents(self) -> list[str]:
        """The snapshots that it begins with."""
        return [*([self.init_from] if self.init_from else []), *self.others_apart.values()]


def rehearse(settings: TrainSettings, is_new: bool) -> None:
    """Builds world and learner with one env and forgets them: what SB3, torch or Gymnasium refuse, they refuse here.

    Where the run `is_new`, the snapshot that it begins with is tried on too.
    """
    machine.check_device(settings.device)  # SB3 would take the CPU without a word
    if is_new and isinstance(settings.world, MotorSettings):
        try:
            check_training(settings.world)
        except ValueError as error:
            raise UserError(str(error)) from None
    try:
        world = make_world(evaluation_settings(settings.world, 1))
    except CANNOT_MAKE as error:
        raise UserError(f"world: {why(error).removeprefix('world.')}") from None
    with contextlib.closing(world), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You have specified a mini-batch size", UserWarning)
        try:
            describe_space(world.observation_space)
            describe_space(world.action_space)
        except ValueError as error:
            raise UserError(f"world: {error}") from None
        if settings.normalize_observations and not isinstance(world.observation_space, gymnasium.spaces.Box):
            raise UserError("normalize_observations: this world's observations are no numbers in a box; write false")
        try:  # SB3 raises all of these for what it cannot build
            make_small_learner(settings, world)
        except (TypeError, ValueError, AssertionError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"learner: {settings.learner.name} cannot be built: {_one_line(error)}") from None
    if is_new and settings.init_from is not None:
        try_on(settings, open_parents(settings))


def make_small_learner(settings: TrainSettings, world: Any) -> Learner:
    """The settings' learner on a world of one env, with room for nothing."""
    return make_idle_learner(settings.learner, world, device=settings.device)


def find_parents(settings: TrainSettings, run: runs.Run[TrainSettings]) -> Parents | None:
    """What to begin with; None if there is nothing, or the run goes on from a state of its own."""
    if settings.init_from is None or snapshots.exists(run.latest):
        return None
    parents = open_parents(settings)
    for parent in parents.all:
        run.add_parent(str(parent.snapshot.folder), parent.snapshot.folder)
    return parents


def open_parents(settings: TrainSettings) -> Parents:
    """The snapshots that `init_from` and `init_apart` name."""
    assert settings.init_from is not None
    apart = {skill: _open_parent(f"init_apart.{skill}", path) for skill, path in settings.others_apart.items()}
    return Parents(_open_parent("init_from", settings.init_from), apart)


def _open_parent(setting: str, path: str) -> Parent:
    try:
        snapshot = open_snapshot(Path(path))
    except UserError as error:
        raise UserError(f"{setting}: {error}") from None
    if snapshot.about["kind"] != "sb3":
        raise UserError(
            f"{setting}: {path} learned from a dataset; train_dt.py goes on with it, train.py with what it made itself"
        )
    return Parent(f"{setting}: {path}", snapshot)


def try_on(settings: TrainSettings, parents: Parents) -> None:
    """UserError if a parent's policy does not fit a learner of these settings."""
    small = settings.model_copy(update={"world": evaluation_settings(settings.world, 1)})
    with contextlib.closing(make_training_world(small)) as world, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You have specified a mini-batch size", UserWarning)
        init_from(make_small_learner(small, world), parents, settings.world)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def make_training_world(settings: TrainSettings) -> Any:
    """The world of the settings behind its normaliser; evaluations, plain and stochastic, have worlds of their own."""
    world = make_world(settings.world, seed=settings.seed)
    return normalise(world, settings.normalize_observations, settings.normalize_rewards, settings.learner.gamma)


def evaluate(settings: TrainSettings, learner: Learner) -> dict[str, float]:
    """Deterministic and stochastic episodes on the evaluation's seeds, as metrics eval/... and eval/stochastic/..."""
    evaluation = settings.evaluation
    physics = None if evaluation.physics == "same" else evaluation.physics
    world_settings = evaluation_settings(settings.world, evaluation.episodes, physics, evaluation.task)
    world = make_world(world_settings, seed=evaluation.seed)
    metrics: dict[str, float] = {}
    with contextlib.closing(world):
        for prefix, deterministic in (("eval", True), ("eval/stochastic", False)):
            summary = summarise(run_episodes(policy_of(learner, deterministic), world, evaluation.seed))
            metrics |= metrics_of(summary, prefix)
    return metrics


def judged_by(settings: TrainSettings) -> dict[str, Any]:
    """What the scores of two evaluations must share to be compared."""
    return settings.evaluation.model_dump(mode="json", exclude={"every"})


def make_video(settings: TrainSettings, run: runs.Run[TrainSettings], snapshot: Path) -> None:
    """videos/best.mp4, or latest.mp4: its first seconds; a machine that cannot draw says so, and the run is whole."""
    world = make_world(evaluation_settings(settings.world, 1, "v5"), seed=settings.evaluation.seed)
    with contextlib.closing(world):
        trail = Trail(world)
        try:
            policy = load_policy(open_snapshot(snapshot))
            episode = run_episodes(policy, world, settings.evaluation.seed, trail)[0]
            trail.write(run.folder / "videos" / f"{snapshot.name}.mp4", min(episode.length, VIDEO_STEPS))
        except (render.RenderError, UserError, OSError) as error:
            print(f"no video: {error}", file=sys.stderr)
