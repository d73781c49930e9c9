"""The settings of a collection, and what they come to: the world, the policies, what the dataset says of itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from gymnasium import spaces
from pydantic import Field, model_validator

from flexrl import snapshots
from flexrl.collector import Crew, Experts
from flexrl.config import Settings, UserError
from flexrl.dataset import BlockInfo, DatasetInfo, PhraseInfo, PolicyInfo
from flexrl.goals import GOALS
from flexrl.motor_settings import MotorSettings, SkillName, Weight, resolve_tasks
from flexrl.motor_world import MotorWorld
from flexrl.playing import check_seen
from flexrl.policies import WITHOUT_SNAPSHOT, Policy, RandomPolicy, Snapshot, ZeroPolicy, load_policy, open_snapshot
from flexrl.skill_sampling import Sampling
from flexrl.tasks import Range
from flexrl.worlds import AS_IT_IS, CANNOT_MAKE, GymnasiumSettings, WorldSettings, make_world, why

World = MotorSettings | GymnasiumSettings


class TeacherSettings(Settings):
    """Who says what should have been done, while another acts."""

    # a snapshot's folder
    path: str
    # snapshots that say it in its place while a skill is asked for
    experts: dict[SkillName, str] = {}


class ModelSettings(Settings):
    """One of the policies that act."""

    # a snapshot's folder, such as workspace/humanoid/best; or random, or zero
    path: str
    # its share of the simulations, of the sum of all
    weight: float = Field(1.0, gt=0)
    # sample actions instead of taking the likeliest
    stochastic: bool = False
    # the return that a Decision Transformer is asked for; null: a high one of its data
    target_return: float | None = None
    # the parts of its goal that a Decision Transformer is shown, such as [words, command]; null: all
    prompt: list[str] | None = None
    # snapshots that act in its place while a skill is asked for: {recover: workspace/humanoid_up/latest}
    experts: dict[SkillName, str] = {}
    # whose actions are written to `intended` where this one has acted (DAgger, Ross et al. 2011); null: its own, before noise
    teacher: TeacherSettings | None = None

    @property
    def others(self) -> list[str]:
        """The snapshots beside its own."""
        return [*self.experts.values(), *([self.teacher.path, *self.teacher.experts.values()] if self.teacher else [])]


class CollectSettings(Settings):
    """What a collection is; the defaults roll out the shipped walk."""

    may_change: ClassVar[tuple[str, ...]] = ("num_steps", "num_threads")

    # env steps in all, over all simulations
    num_steps: int = Field(200_000, ge=1, le=10**12)
    seed: int = Field(0, ge=0, le=2**31)
    # who acts, each in simulations of its own
    models: list[ModelSettings] = Field([ModelSettings(path="examples/pretrained/humanoid_walk")], min_length=1, max_length=256)
    # standard deviations of what is added to actions, in their units; each episode draws one
    noise: list[float] = Field([0.0], min_length=1, max_length=100)
    # where random and zero act; null: the first model's world, with skills and commands drawn as in its training
    world: WorldSettings | None = None
    # v5: Gymnasium's own dynamics; fast: the humanoid's in longer steps; same: the training's
    physics: Literal["same", "v5", "fast"] = "same"
    # weight of each skill; left empty: as in the training
    skills: dict[SkillName, Weight] = {}
    # how the skill of an episode is chosen; null: as in the training
    sampling: Sampling | None = None
    # s between changes of the skill within an episode, [shortest, longest]; null: never; same: as in the training
    switch: Range | Literal["same"] | None = "same"
    # simulations stepped together; null: as many as the world's own settings say
    num_envs: int | None = Field(None, ge=1, le=65536)
    # physics threads; null: one for each CPU core, or as many as `world` says
    num_threads: int | None = Field(None, ge=1, le=1024)
    # steps in a file, at least; an episode is never cut in two
    shard_steps: int = Field(65_536, ge=1, le=2**24)

    @model_validator(mode="after")
    def _fits(self) -> CollectSettings:
        if any(level < 0 for level in self.noise):
            raise ValueError("noise: expected numbers from 0, in units of the action")
        if self.world is None and self.models[0].path in WITHOUT_SNAPSHOT:
            raise ValueError(f"world: {self.models[0].path} needs one, such as world: {{kind: motor, task: walk_forward}}")
        for key, value in AS_IT_IS.items() if isinstance(self.world, MotorSettings) else ():
            if getattr(self.world, key) != value:
                written = "null" if value is None else str(value).lower()
                raise ValueError(f"world.{key}: is for training; a dataset is of the task as it is; write {written}")
        return self


def rehearse(settings: CollectSettings, is_new: bool) -> None:
    """Opens every model and tries it on a world of one env: what does not fit is refused before anything is written."""
    parents = open_models(settings)
    try:
        world_settings = world_of(settings, parents)
        world = make_world(world_settings.model_copy(update=small(world_settings)))
    except CANNOT_MAKE as error:
        raise UserError(f"world: {why(error).removeprefix('world.')}") from None
    with contextlib.closing(world):
        check_spaces(world)
        if not isinstance(world.action_space, spaces.Box) and any(settings.noise):
            raise UserError("noise: only actions that are numbers can be noisy; write noise: [0]")
        for model, parent in zip(settings.models, parents, strict=True):
            if parent is not None:
                check_fit(model.path, parent, settings.models[0], world_settings)
            check_played(model, parent)
            for skill in (*model.experts, *(model.teacher.experts if model.teacher else ())):
                check_expert(skill, world_settings)
            for path, other in zip(model.others, open_models_named(model.others), strict=True):
                check_fit(path, other, settings.models[0], world_settings)
            check_shown(model, world_settings)
        try:
            Crew(
                [ZeroPolicy(world.action_space)] * len(parents),
                [m.weight for m in settings.models],
                world_settings.num_envs,
                world.action_space,
            )
        except ValueError as error:
            raise UserError(f"models: {error}") from None


def check_spaces(world: Any) -> None:
    """UserError if what the world shows or takes has no place in a dataset."""
    shows, takes = world.observation_space, world.action_space
    if not isinstance(shows, spaces.Box) or len(shape_of(shows)) != 1:
        raise UserError(f"world: only observations that are vectors of numbers can be collected, and it shows {told(shows)}")
    if not (isinstance(takes, spaces.Discrete) or (isinstance(takes, spaces.Box) and len(shape_of(takes)) <= 1)):
        why_not = "only actions that are vectors of numbers, or one of several choices, can be collected"
        raise UserError(f"world: {why_not}, and it takes {told(takes)}")


def shape_of(space: spaces.Space[Any]) -> tuple[int, ...]:
    """The space's shape, as numbers."""
    return tuple(space.shape or ())


def told(space: spaces.Space[Any]) -> str:
    """The space in a few words, such as Box(96, 96, 3)."""
    return f"{type(space).__name__}{shape_of(space) or ''}"


def check_played(model: ModelSettings, parent: Snapshot | None) -> None:
    """UserError if that policy cannot be played so: not every kind has noise to sample, a return to bring or a prompt."""
    if not (model.stochastic or model.target_return is not None or model.prompt is not None):
        return
    if parent is not None:
        try:
            load_policy(parent, not model.stochastic, model.target_return, model.prompt)
        except UserError as error:
            raise UserError(f"models: {error}" if model.path in str(error) else f"models: {model.path}: {error}") from None
    elif not model.stochastic:
        raise UserError(f"models: prompt, target_return: {model.path} sees no goal; leave them away")


def small(world: World) -> dict[str, Any]:
    """What makes the world one of a single env."""
    return {"num_envs": 1} | ({"subprocesses": False} if isinstance(world, GymnasiumSettings) else {"num_threads": 1})


def check_expert(skill: str, world: World) -> None:
    """UserError if nobody could tell when an expert is to act."""
    if not isinstance(world, MotorSettings) or "one_hot" not in world.goal:
        raise UserError("models: experts need a world whose goal shows the skill (one_hot)")
    if skill not in resolve_tasks(world):
        raise UserError(f"models: experts: this world has no skill {skill!r}; it has {', '.join(resolve_tasks(world))}")


def check_shown(model: ModelSettings, world: World) -> None:
    """UserError if somebody would act, or teach, at a skill that the data which it learned from never showed."""
    if not isinstance(world, MotorSettings):
        return
    weighed = [skill for skill, (_, weight) in resolve_tasks(world).items() if weight > 0]
    at: list[tuple[str, Iterable[str]]] = [(model.path, [skill for skill in weighed if skill not in model.experts])]
    at += [(path, [skill]) for skill, path in model.experts.items() if skill in weighed]
    if model.teacher is not None:
        at.append((model.teacher.path, [skill for skill in weighed if skill not in model.teacher.experts]))
        at += [(path, [skill]) for skill, path in model.teacher.experts.items() if skill in weighed]
    for path, skills in at:
        if path in WITHOUT_SNAPSHOT:
            continue
        snapshot = open_models_named([path])[0]
        for skill in skills if snapshot.about["kind"] == "offline" else ():
            check_seen(snapshot.settings.world, skill, path, "skills")


def check_fit(path: str, parent: Snapshot, first: ModelSettings, world: World) -> None:
    """UserError if a policy sees or does something else than this world shows and takes."""
    own = parent.settings.world
    keys = ["kind", "body", "observation", "goal", "action", "id", "kwargs"]
    keys += ["encoder"] if "embedding" in getattr(own, "goal", ()) else []  # who sees no words may act where others are read
    for key in keys:
        if getattr(own, key, None) != getattr(world, key, None):
            its, ours = getattr(own, key, None), getattr(world, key, None)
            raise UserError(
                f"models: {path} was trained with world.{key} {its!r}, not {ours!r} as {first.path}; "
                "collect it into a dataset of its own"
            )
    if isinstance(own, MotorSettings) and isinstance(world, MotorSettings) and {"one_hot", "embedding"} & set(own.goal):
        ours, its = list(resolve_tasks(world)), list(resolve_tasks(own))
        if ours != its:
            raise UserError(
                f"models: {path} knows the skills {', '.join(its)}; the world of {first.path} has {', '.join(ours)}"
            )


def open_models(settings: CollectSettings) -> list[Snapshot | None]:
    """The snapshots, null for random and zero."""
    return [None if m.path in WITHOUT_SNAPSHOT else open_models_named([m.path])[0] for m in settings.models]


def open_models_named(paths: Iterable[str]) -> list[Snapshot]:
    """The snapshots of these paths; UserError with the setting's name."""
    try:
        return [open_snapshot(Path(path)) for path in paths]
    except UserError as error:
        raise UserError(f"models: {error}") from None


def world_of(settings: CollectSettings, parents: list[Snapshot | None]) -> World:
    """The world that is stepped: the given one or the first model's, at full difficulty, its bodies all alike."""
    if settings.world is not None:
        world: World = settings.world
    else:
        first = parents[0]
        assert first is not None  # CollectSettings._fits
        world = first.settings.world
    if isinstance(world, GymnasiumSettings):
        if settings.skills or settings.physics != "same":
            raise UserError(f"{'skills' if settings.skills else 'physics'}: {world.id} has none to choose from; leave it away")
        for name in ("switch", "sampling", "num_threads"):
            if getattr(settings, name) != type(settings).model_fields[name].default:
                raise UserError(f"{name}: {world.id} knows nothing of it; leave it away")
        return GymnasiumSettings.model_validate(world.model_dump() | {"num_envs": settings.num_envs or world.num_envs})
    own_threads = (
        None if settings.world is None else world.num_threads
    )  # a training's are those of its machine, and its neighbours
    update: dict[str, Any] = {
        "num_envs": settings.num_envs or world.num_envs,
        "num_threads": settings.num_threads or own_threads,
    }
    update |= AS_IT_IS
    if settings.physics != "same":
        update["physics"] = settings.physics
    if settings.switch != "same":
        if settings.switch is not None and world.task != "mixed":
            raise UserError("switch: only a mixed world has several skills; write null, or leave it away")
        update["switch"] = settings.switch
    if settings.sampling is not None:
        update["sampling"] = settings.sampling
    if settings.skills:
        update["skills"] = with_weights(world, settings.skills)
    return MotorSettings.model_validate((world.model_copy(update=update)).model_dump())


def with_weights(world: MotorSettings, weights: dict[Any, float]) -> dict[Any, float]:
    """The world's skills, in its order, with these weights; those left out have none."""
    names = list(resolve_tasks(world))
    for name in weights:
        if name not in names or world.task != "mixed":
            raise UserError(f"skills: this world has no skill {name!r} to weigh; it has {', '.join(names)}")
    return {name: weights.get(name, 0.0) for name in names}


def describe(settings: CollectSettings, world_settings: World, world: Any, parents: list[Snapshot | None]) -> DatasetInfo:
    """What dataset.yaml says."""
    batch = world.batch if isinstance(world, MotorWorld) else None
    box = world.action_space
    size = int(np.prod(box.shape, dtype=int)) if box.shape else 1
    low, high = (box.low, box.high) if isinstance(box, spaces.Box) else (np.zeros(1), np.array([box.n - 1]))
    blocks = [BlockInfo(name="observation", size=int(world.observation_space.shape[0]))]
    if batch is not None:
        blocks = [
            BlockInfo(name=block.name, size=len(block.mirror.source), is_goal=block.name in GOALS)
            for block in batch.observation.blocks
        ]
    return DatasetInfo(
        world=world_settings.model_dump(mode="json", exclude={"num_threads"}),
        body=world_settings.body if isinstance(world_settings, MotorSettings) else None,
        seconds_per_step=float(batch.physics.dt) if batch else None,
        observation=tuple(blocks),
        action_size=size,
        action_low=tuple(map(float, np.ravel(low))),
        action_high=tuple(map(float, np.ravel(high))),
        state_size=batch.physics.resumable.shape[1] if batch else 0,
        skills=tuple(batch.skills) if batch else (),
        phrases=tuple(PhraseInfo(skill=skill, words=words) for skill, words in batch.asked.phrases) if batch else (),
        policies=tuple(
            PolicyInfo(
                path=model.path,
                sha256=snapshots.content_hash(parent.folder) if parent else None,
                weight=model.weight,
                stochastic=model.stochastic,
                experts={str(skill): path for skill, path in model.experts.items()},
                teacher=model.teacher.model_dump(mode="json") if model.teacher else None,
                others_sha256={path: snapshots.content_hash(Path(path)) for path in model.others},
                target_return=model.target_return,
                prompt=model.prompt,
            )
            for model, parent in zip(settings.models, parents, strict=True)
        ),
        noise=tuple(settings.noise),
        seed=settings.seed,
    )


def with_experts(policy: Policy, paths: Mapping[Any, str], world: Any) -> Policy:
    """The policy, with the experts of these paths, by skill, in its place."""
    if not paths:
        return policy
    at, size = world.batch.observation.first_column("one_hot"), len(world.batch.skills)
    found = zip(paths, open_models_named(paths.values()), strict=True)
    experts = {world.batch.skills.index(skill): load_policy(snapshot) for skill, snapshot in found}
    return Experts(policy, experts, slice(at, at + size))


def make_crew(settings: CollectSettings, parents: list[Snapshot | None], world: Any) -> Crew:
    """The policies, each with its simulations."""
    policies: list[Policy] = []
    for index, (model, parent) in enumerate(zip(settings.models, parents, strict=True)):
        own: Policy
        if parent is not None:
            own = load_policy(parent, not model.stochastic, model.target_return, model.prompt)
        elif model.path == "random":
            own = RandomPolicy(world.action_space, settings.seed + index)
        else:
            own = ZeroPolicy(world.action_space)
        policies.append(with_experts(own, model.experts, world))
    teachers = [
        None
        if model.teacher is None
        else with_experts(load_policy(open_models_named([model.teacher.path])[0]), model.teacher.experts, world)
        for model in settings.models
    ]
    torch.manual_seed(settings.seed)
    return Crew(policies, [model.weight for model in settings.models], world.num_envs, world.action_space, teachers)
