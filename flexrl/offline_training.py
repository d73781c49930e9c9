"""The settings of an offline training, and what they come to: datasets, model, evaluations, snapshots."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
import yaml
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from flexrl import snapshots
from flexrl.config import Settings, UserError
from flexrl.dataset import Dataset, open_dataset
from flexrl.evaluation import metrics_of, run_episodes, summarise
from flexrl.learner_settings import Schedule
from flexrl.machine import Device
from flexrl.motor_settings import MotorSettings, resolve_tasks
from flexrl.offline import (
    CloningSettings,
    DTSettings,
    GoalPart,
    ModelSettings,
    Numbers,
    OfflineLearner,
    Part,
    Share,
    describe_model,
    first_skill,
    make_model,
    prompt_parts,
)
from flexrl.offline_policy import ClonedPolicy, TransformerPolicy
from flexrl.parallel import Peers
from flexrl.policies import Policy, Snapshot, open_snapshot
from flexrl.text_encoders import EncoderName, find_encoder
from flexrl.windows import GOAL_BLOCKS, Windows, WindowSampler, split
from flexrl.worlds import CANNOT_MAKE, GymnasiumSettings, describe_space, evaluation_settings, make_world, recorded_world, why

ALONE = Peers()
NORMALISER = "normaliser.safetensors"
ANOTHER_WORLD = "collect it again, or import it again with --env ID"
TARGET_QUANTILE = 0.9  # of the data's returns: what `--target-return auto` asks for


class EvaluationSettings(Settings):
    """Loss on held-out episodes, and episodes in the dataset's own world."""

    # updates between evaluations
    every: int = Field(2_000, ge=1)
    # batches of held-out windows
    batches: int = Field(20, ge=1, le=10_000)
    # episodes side by side in the dataset's world; 0: none, and the loss decides best/
    episodes: int = Field(0, ge=0, le=4096)
    # the first episode's seed
    seed: int = Field(1_000_000, ge=0, le=2**31)
    # v5: Gymnasium's own dynamics; same: the dataset's
    physics: Literal["v5", "same"] = "v5"


class TrainDTSettings(Settings):
    """What an offline training is; the defaults train a Decision Transformer."""

    may_change: ClassVar[tuple[str, ...]] = ("num_updates", "evaluation", "torch_threads", "device", "patience")

    # folders that collect.py made
    datasets: list[str] = Field(["workspace/skills_data"], min_length=1, max_length=100)
    # share of the steps of all datasets together, those of the episodes with the highest returns, that is learned from (0.1:
    # "10 % BC"); with less than 1, and by a model that sees returns, episodes that the collection's end cut are left out
    top: float = Field(1.0, gt=0, le=1)
    # share of the episodes of each dataset that is held out
    held_out: float = Field(0.05, ge=0, le=0.5)
    model: ModelSettings = DTSettings()
    # action: what was done; intended: what was to be done, before noise, or by a teacher's word
    target: Literal["action", "intended"] = "intended"
    # what the model sees of the goal: any of skill, command (speeds and yaw rate), place, words
    goal: list[GoalPart] = []
    # who makes vectors of words, as a world's `encoder`: hashed_ngrams, or transformer:FOLDER; null: the datasets' own
    encoder: EncoderName | None = None
    # distorted copies of each phrase (typing errors, words that nobody knows) that words are drawn from, too
    word_variants: int = Field(20, ge=0, le=1_000)
    # share of the windows that each part of the goal, and the return, is hidden in, so that a prompt may leave it out: one
    # for all, or by part: {skill: 0.5, return: 0.1}; one part of the goal at least is shown always
    hide: Share | dict[Part, Share] = 0.0
    # a snapshot of train_dt.py to begin with; null: none
    init_from: str | None = None
    num_updates: int = Field(20_000, ge=1, le=10**9)
    # windows a batch, in each process that torchrun starts
    batch_size: int = Field(64, ge=1, le=65_536)
    # batches an update
    accumulate: int = Field(1, ge=1, le=10_000)
    # a number, or {start, end}
    learning_rate: float | Schedule = 1e-4
    # updates until the learning rate is whole
    warmup: int = Field(1_000, ge=0)
    weight_decay: float = Field(1e-4, ge=0)
    max_grad_norm: float = Field(0.25, gt=0)
    # of matrix products: bfloat16 helps on GPUs and on CPUs that have it
    precision: Literal["float32", "bfloat16"] = "float32"
    # torch.compile: a minute at the start, faster then
    compile: bool = False
    seed: int = Field(0, ge=0, le=2**31)
    evaluation: EvaluationSettings = EvaluationSettings()
    # evaluations without a lower held-out loss after which it ends; null: never
    patience: int | None = Field(None, ge=1)
    # updates between lines of metrics.jsonl and TensorBoard
    log_every: int = Field(100, ge=1)
    # seconds between saves of latest/
    save_every: float = Field(30.0, ge=0)
    # auto: a GPU if there is one
    device: Device = "auto"
    # null: as many as there are CPU cores
    torch_threads: int | None = Field(None, ge=1, le=1024)

    @field_validator("hide", mode="before")
    @classmethod
    def _names_parts(cls, value: Any) -> Any:
        if isinstance(value, dict):  # a union's own message would speak of the number alone
            for part, share in value.items():
                if part not in (*get_args(GoalPart), "return"):
                    raise ValueError(f"there is no part {part!r} of a goal; there are {', '.join(get_args(GoalPart))}, return")
                if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
                    raise ValueError(f"{part}: expected a share from 0 to below 1, found {share!r}")
        return value

    @model_validator(mode="after")
    def _fits(self) -> TrainDTSettings:
        rates = self.learning_rate
        if not (min(rates.start, rates.end) >= 0 < rates.start if isinstance(rates, Schedule) else rates > 0):
            raise ValueError("learning_rate: expected a number above 0")
        if len(set(self.goal)) < len(self.goal):
            raise ValueError("goal: expected each part once")
        if self.patience is not None and not self.held_out:
            raise ValueError("patience: no episode is held out to wait for; write held_out: 0.05, or patience: null")
        if self.encoder is not None and "words" not in self.goal:
            raise ValueError("encoder: the goal has no words that it could read; leave it away, or write goal: [words]")
        if self.model.kind == "gcbc" and not self.goal:
            raise ValueError("goal: gcbc needs one, such as [skill, command]")
        if self.model.kind == "bc" and self.goal:
            raise ValueError("goal: bc sees none; write [], or model: {kind: gcbc}")
        if isinstance(self.model, DTSettings) and self.model.width % self.model.heads:
            raise ValueError("model.width: expected a multiple of model.heads")
        parts = prompt_parts(self.model, self.goal)
        if self.hide and not parts:
            raise ValueError("hide: only a dt with a goal or a return has something to hide; write 0")
        for part in self.hide if isinstance(self.hide, dict) else ():
            if part not in parts:
                raise ValueError(f"hide: there is no {part} to hide; there is {', '.join(parts)}")
            if self.goal == [part]:
                raise ValueError(f"hide: {part} is all of the goal, which is never hidden whole; leave it away")
        return self


def hidden_shares(settings: TrainDTSettings) -> list[float]:
    """How often each part of the goal is hidden, and last the return; empty for a model that shows all it has."""
    if not isinstance(settings.model, DTSettings):
        return []
    parts: list[Part] = [*settings.goal, "return"]
    return [settings.hide.get(part, 0.0) if isinstance(settings.hide, dict) else settings.hide for part in parts]


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
    kind, _, index = settings.device.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(f"device: there is no {settings.device} among {torch.cuda.device_count()} GPUs here; write auto")
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
    best["waited"] = 0 if metrics["eval/loss"] < best["loss"] else best["waited"] + 1
    best["loss"] = min(best["loss"], metrics["eval/loss"])
    score = metrics.get("eval/success", metrics.get("eval/return", -metrics["eval/loss"]))
    is_best = score > best["score"]
    best["score"] = max(best["score"], score)
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
