"""What the settings of an offline training come to: datasets, model, evaluations, snapshots."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from gymnasium import spaces
from numpy.typing import NDArray

from flexrl import machine, snapshots
from flexrl.config import UserError
from flexrl.dataset import Dataset, open_dataset
from flexrl.evaluation import metrics_of, run_episodes, summarise
from flexrl.motor_settings import MotorSettings, resolve_tasks
from flexrl.offline import (
    CloningSettings,
    DTSettings,
    Numbers,
    OfflineLearner,
    describe_model,
    first_skill,
    make_model,
)
from flexrl.offline_policy import ClonedPolicy, TransformerPolicy
from flexrl.offline_settings import TrainDTSettings, hidden_shares
from flexrl.parallel import Peers
from flexrl.policies import Policy, Snapshot, open_snapshot
from flexrl.text_encoders import find_encoder
from flexrl.windows import GOAL_BLOCKS, Windows, WindowSampler, split
from flexrl.worlds import CANNOT_MAKE, GymnasiumSettings, describe_space, evaluation_settings, make_world, recorded_world, why

ALONE = Peers()
NORMALISER = "normaliser.safetensors"
ANOTHER_WORLD = "collect it again, or import it again with --env ID"
TARGET_QUANTILE = 0.9  # of the data's returns: what `--target-return auto` asks for


def open_all(settings: TrainDTSettings) -> list[Dataset]:
    """The datasets, their words to be read by `encoder`; UserError with the setting's name."""
    try:
        datasets = [open_dataset(Path(path)) for path in settings.datasets]
    except UserError as error:
        raise UserError(f"datasets: {error}") from None
    if settings.encoder is None:
        return datasets
    try:
        find_encoder(settings.encoder)
    except ValueError as error:
        raise UserError(str(error).removeprefix("world.")) from None
    return [dataset.read_by(settings.encoder) for dataset in datasets]


def rehearse(settings: TrainDTSettings, is_new: bool) -> None:
    """Opens the datasets and makes the model, which is forgotten: what cannot be learned is refused here."""
    machine.check_device(settings.device)
    if not is_new:  # what it began with, and its parent, may be gone
        settings = settings.model_copy(update={"init_from": None})
    learner, _ = make_learner(settings, open_all(settings))
    low, high = learner.numbers.low, learner.numbers.high
    if not (np.isfinite(low) & np.isfinite(high) & (high > low)).all():
        raise UserError(f"datasets: {settings.datasets[0]} has actions without bounds, which no model here predicts")
    check_world(settings, learner)


def check_world(settings: TrainDTSettings, learner: OfflineLearner) -> None:
    """UserError if the datasets' world, which snapshots play in, cannot be made here, or is not what they were recorded in."""
    sampler, where = learner.sampler, f"datasets: {settings.datasets[0]}"
    try:
        world = make_world(evaluation_settings(world_of(settings, learner), 1))
    except CANNOT_MAKE as error:
        raise UserError(f"{where}: its world cannot be made here: {why(error)}; {ANOTHER_WORLD}") from None
    with contextlib.closing(world):
        takes, shows = world.action_space, world.observation_space.shape
    if not isinstance(takes, spaces.Box):
        raise UserError(f"{where} has actions that are choices, which no model here predicts; train on one with numbers")
    for what, its, here in (
        ("observations", (sampler.body_size + sampler.goal_size,), shows),
        ("actions", (sampler.info.action_size,), takes.shape),
    ):
        if its != here:
            name = sampler.info.world.get("id", sampler.info.world.get("task"))
            raise UserError(f"{where} has {what} of shape {its}, its world {name} here has {here}; {ANOTHER_WORLD}")


def make_learner(
    settings: TrainDTSettings, datasets: list[Dataset], peers: Peers = ALONE, latest: Path | None = None
) -> tuple[OfflineLearner, WindowSampler]:
    """The learner, and what draws from the episodes that are held out (from all, if none are).

    `latest`: the snapshot that the run goes on from, whose weights are the caller's to put in; null for a new run.
    """
    length = settings.model.context if isinstance(settings.model, DTSettings) else 1
    returns = isinstance(settings.model, DTSettings) and settings.model.returns
    masks = split(datasets, settings.top, settings.held_out, whole=returns or settings.top < 1)

    def draw_from(select: list[NDArray[np.bool_]]) -> WindowSampler:
        return WindowSampler(datasets, select, settings.goal, length, returns, settings.target, settings.word_variants)

    sampler = draw_from([learned for learned, _ in masks])
    nothing_held = not any(held.any() for _, held in masks)
    if nothing_held and settings.patience is not None:
        raise UserError("patience: no episode can be held out of so few; raise top, or write patience: null")
    held_out = draw_from([learned if nothing_held else held for learned, held in masks])
    origin = latest if latest or settings.init_from is None else open_parent(settings.init_from)
    sizes = {} if origin is None else json.loads((origin / "snapshot.json").read_bytes())["sizes"]
    if isinstance(settings.model, DTSettings) and sizes.get("heads", settings.model.heads) != settings.model.heads:
        raise UserError(f"{origin}: its model.heads is {sizes['heads']}, here it is {settings.model.heads}; write what it has")
    if origin is not None and latest is None:
        check_goal(open_snapshot(origin), settings, sampler)
    torch.manual_seed(settings.seed)  # here, as what came before (an encoder's weights) may have drawn in one process alone
    model = make_model(settings.model, sampler, sizes.get("max_time"))
    numbers = Numbers.of(sampler) if origin is None else Numbers.from_arrays(snapshots.read_arrays(origin / NORMALISER))
    if origin is not None and latest is None:
        begin_with(model, origin)
    learner = OfflineLearner(
        model,
        sampler,
        numbers,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        learning_rate=settings.learning_rate,
        num_updates=settings.num_updates,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        hide=hidden_shares(settings),
        precision=settings.precision,
        compiled=settings.compile,
        device=torch.device(peers.device(settings.device)),
        seed=settings.seed,
        peers=peers,
    )
    return learner, held_out


def open_parent(path: str) -> Path:
    """The snapshot to begin with, checked; UserError if it is none of train_dt.py's."""
    try:
        parent = open_snapshot(Path(path))
    except UserError as error:
        raise UserError(f"init_from: {error}") from None
    if parent.about["kind"] != "offline":
        raise UserError(f"init_from: {path} was not made by train_dt.py; name a snapshot that was")
    return parent.folder


def check_goal(parent: Snapshot, settings: TrainDTSettings, sampler: WindowSampler) -> None:
    """UserError if the same numbers of a goal mean something else to an earlier model."""
    world, info = parent.settings.world, sampler.info
    for name in ("kind", "body", "action", "id", "kwargs"):
        its, ours = getattr(world, name, None), info.world.get(name)
        if (its or None) != (ours or None):
            raise UserError(
                f"init_from: {parent.folder} is of a world with {name} {its}, the datasets have {ours}; write init_from: null"
            )
    if parent.about["goal"] != settings.goal:
        its, ours = (f"[{', '.join(goal)}]" for goal in (parent.about["goal"], settings.goal))
        raise UserError(f"init_from: {parent.folder} sees the goal {its}, here it is {ours}; write goal: {its}")
    if not isinstance(world, MotorSettings):
        return
    skills = tuple(resolve_tasks(world))
    if "skill" in settings.goal and skills != info.skills:
        known, asked = ", ".join(skills), ", ".join(info.skills)
        raise UserError(
            f"init_from: {parent.folder} knows the skills {known}, the datasets have {asked}; write init_from: null"
        )
    encoder = info.world.get("encoder", "hashed_ngrams")
    if "words" in settings.goal and world.encoder != encoder:
        raise UserError(
            f"init_from: {parent.folder} reads words by {world.encoder}, here it is {encoder}; write encoder: {world.encoder}"
        )


def begin_with(model: Any, parent: Path) -> None:
    """Puts the weights of an earlier model into this one; UserError if they do not fit."""
    weights = snapshots.read_arrays(parent / "policy.safetensors")
    try:
        model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    except RuntimeError:
        raise UserError(f"init_from: {parent} has another model, goal or body; write its model and goal") from None


def evaluate(settings: TrainDTSettings, learner: OfflineLearner, held_out: WindowSampler) -> dict[str, float]:
    """eval/loss on held-out windows, the same every time; eval/... of episodes in the world, if any are asked for."""
    metrics = {"eval/loss": learner.loss_on(draw_held_out(settings, held_out))}
    if settings.evaluation.episodes == 0:
        return metrics
    physics = None if settings.evaluation.physics == "same" else "v5"
    world_settings = evaluation_settings(world_of(settings, learner), settings.evaluation.episodes, physics)
    world = make_world(world_settings, settings.evaluation.seed)
    with contextlib.closing(world):
        summary = summarise(run_episodes(policy_of(settings, learner), world, settings.evaluation.seed))
    return metrics | metrics_of(summary, "eval")


def draw_held_out(settings: TrainDTSettings, held_out: WindowSampler) -> Iterator[Windows]:
    """The batches that every evaluation is of."""
    rng = np.random.Generator(np.random.PCG64(settings.evaluation.seed))
    return (held_out.draw(settings.batch_size, rng) for _ in range(settings.evaluation.batches))


def judge(best: dict[str, float], metrics: dict[str, float]) -> bool:
    """Keeps what is best so far, and for how many evaluations the held-out loss has not fallen; whether this one is best."""
    loss = metrics["eval/loss"]
    best["waited"] = 0 if loss < best["loss"] else best["waited"] + 1
    best["loss"] = min(best["loss"], loss)
    score = metrics.get("eval/success", metrics.get("eval/return", -loss))
    # a dozen episodes are often all successful: of such, the one that predicts better
    is_best = (score, -loss) > (best["score"], -best.get("its_loss", -np.inf))
    if is_best:
        best["score"], best["its_loss"] = score, loss
    return is_best


def out_of_patience(settings: TrainDTSettings, best: dict[str, float]) -> bool:
    """Whether the held-out loss has not fallen for long enough."""
    return settings.patience is not None and best["waited"] >= settings.patience


def world_of(settings: TrainDTSettings, learner: OfflineLearner) -> MotorSettings | GymnasiumSettings:
    """The dataset's world, in which a policy sees just what this model was shown; skills that it never saw have no weight."""
    info = learner.sampler.info
    if info.world["kind"] == "gymnasium":
        return recorded_world(info.world)
    world = MotorSettings.model_validate({**info.world, "goal": [GOAL_BLOCKS[part] for part in settings.goal]})
    if world.task != "mixed":
        return world
    seen = learner.sampler.skills_seen
    skills = {name: (weight or 1.0) * (name in seen) for name, (_, weight) in resolve_tasks(world).items()}
    return MotorSettings.model_validate(world.model_dump() | {"skills": skills})


def snapshot_files(settings: TrainDTSettings, learner: OfflineLearner, scores: dict[str, float]) -> dict[str, bytes]:
    """The files of a snapshot that plays anywhere."""
    world_settings = world_of(settings, learner)
    world = make_world(evaluation_settings(world_settings, 1))
    with contextlib.closing(world):
        spaces = {name: describe_space(getattr(world, name)) for name in ("observation_space", "action_space")}
    size = learner.sampler.body_size
    about = {
        "kind": "offline",
        "num_steps": learner.num_updates,
        "scores": {name: value for name, value in scores.items() if name.startswith("eval/")},
        **spaces,
        "goal": list(settings.goal),
        "body_columns": list(range(size)),  # the world shows the goal after the body
        "goal_columns": list(range(size, size + learner.sampler.goal_size)),
        "sizes": describe_model(learner.model),
        "targets": targets_of(settings, learner),
    }
    values = settings.model_dump(mode="json") | {"world": world_settings.model_dump(mode="json")}
    weights = {name: tensor.detach().cpu().numpy() for name, tensor in learner.model.state_dict().items()}
    return {
        "policy.safetensors": snapshots.pack_arrays(weights),
        NORMALISER: snapshots.pack_arrays(learner.numbers.arrays()),
        "settings.yaml": yaml.safe_dump(values, sort_keys=False).encode(),
        "snapshot.json": json.dumps(about, indent=1).encode(),
    }


def targets_of(settings: TrainDTSettings, learner: OfflineLearner) -> list[float]:
    """A high return of the data's whole episodes of one skill, by that skill, and at last of all whole ones."""
    datasets = learner.sampler.datasets
    returns, skills, cut, changes = (
        np.concatenate([getattr(d.episodes, name) for d in datasets])
        for name in ("episode_return", "skill", "cut", "num_switches")
    )
    whole = ~cut if (~cut).any() else np.ones(len(cut), bool)
    overall = float(np.quantile(returns[whole], TARGET_QUANTILE))
    num_skills = len(learner.sampler.info.skills) if "skill" in settings.goal else 0
    of_skills = [returns[whole & (changes == 0) & (skills == skill)] for skill in range(num_skills)]
    return [*(float(np.quantile(part, TARGET_QUANTILE)) if len(part) else overall for part in of_skills), overall]


def policy_of(settings: TrainDTSettings, learner: OfflineLearner) -> Policy:
    """The policy as the learner has it now."""
    size = learner.sampler.body_size
    body, goal = np.arange(size), np.arange(size, size + learner.sampler.goal_size)
    if isinstance(settings.model, CloningSettings):
        return ClonedPolicy(learner.model, learner.numbers, body, goal)  # type: ignore[arg-type]
    model: Any = learner.model
    first = first_skill(settings.goal, model.sizes.goal)
    return TransformerPolicy(model, learner.numbers, body, goal, targets_of(settings, learner), first)
