"""A sweep's settings: a verb, a base config, axes, resources, and when points are given up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from flexrl import config
from flexrl.config import Settings, UserError, text
from flexrl.early_stopping import StopSettings
from flexrl.yaml_values import Value, nearest, plain

CORES = r"\d+(\.\d+)?m?"  # of Kubernetes
BYTES = r"\d+(\.\d+)?([kMGT]|[KMGT]i)?"
EVALUATED = ("return", "success", "length", "mean_speed", "terminated", "loss", "stochastic")
METRICS = ("eval", "rollout", "train", "time", "reward", "world", "curriculum")  # what a metric's name begins with
LONGEST_NAME = 40  # characters of a sweep's, so that a Job's, with its hash and a pod's number, stays below 63
VerbName = Literal["train.py", "collect.py", "train_dt.py", "play.py"]


class Distribution(Settings):
    """Values of an axis that are drawn; exactly one of these."""

    # low and high
    uniform: tuple[float, float] | None = None
    # low and high, both above zero; as many values between 1 and 10 as between 10 and 100
    log_uniform: tuple[float, float] | None = None
    # low and high, whole numbers, both possible
    whole: tuple[int, int] | None = None
    # any of these
    choice: list[Any] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _is_one(self) -> Distribution:
        given = [name for name in ("uniform", "log_uniform", "whole", "choice") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("expected one of uniform, log_uniform, whole or choice, such as {log_uniform: [1e-5, 1e-3]}")
        if given[0] != "choice":
            low, high = getattr(self, given[0])
            if not low < high or (given[0] == "log_uniform" and low <= 0):
                raise ValueError(f"{given[0]}: expected two rising numbers, found [{low:g}, {high:g}]")
        return self

    def draw(self, rng: np.random.Generator) -> Any:
        """A value as YAML would have it."""
        if self.uniform is not None:
            return float(rng.uniform(*self.uniform))
        if self.log_uniform is not None:
            low, high = self.log_uniform
            return float(np.exp(rng.uniform(np.log(low), np.log(high))))
        if self.whole is not None:
            return int(rng.integers(self.whole[0], self.whole[1], endpoint=True))
        assert self.choice is not None
        return self.choice[int(rng.integers(len(self.choice)))]


class RandomSettings(Settings):
    """Points drawn at random."""

    n: int = Field(ge=1)
    seed: int = Field(0, ge=0)
    axes: dict[str, Distribution] = Field(min_length=1)


class SearchSettings(Settings):
    """Points that are chosen by what earlier ones came to (Optuna's TPE, Bergstra et al. 2011)."""

    n: int = Field(ge=1, le=10_000)
    seed: int = Field(0, ge=0)
    # points of a round, run side by side before the next are chosen
    at_a_time: int = Field(4, ge=1, le=1000)
    axes: dict[str, Distribution] = Field(min_length=1)


class ResourceSettings(Settings):
    """What one trial takes."""

    # CPU cores, as Kubernetes writes them: 1, 0.5, 500m
    cpu: str = "1"
    memory: str = "2Gi"
    gpu: int = Field(0, ge=0, le=64)
    # of GKE, such as nvidia-l4; null: any
    accelerator: Annotated[str, text(r"[a-z0-9-]{1,63}", "small letters, digits or '-', such as nvidia-l4")] | None = None
    # on machines that may be taken away at any time; a trial goes on from latest/
    spot: bool = False

    @field_validator("cpu", "memory")
    @classmethod
    def _is_something(cls, quantity: str, info: ValidationInfo) -> str:
        pattern, example = (CORES, "2 or 500m") if info.field_name == "cpu" else (BYTES, "2Gi or 500Mi")
        if not re.fullmatch(pattern, quantity):
            raise ValueError(f"expected an amount as Kubernetes writes it, such as {example}, found {quantity!r}")
        if not re.search(r"[1-9]", quantity):
            raise ValueError("expected more than nothing")
        return quantity

    @field_validator("cpu", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else value


class Experiment(Settings):
    """One of several named ways to do it."""

    # what the tables call it
    name: Annotated[str, text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", "at most 40 letters, digits, '.', '_' or '-'")]
    # a YAML file of its own in place of the sweep's, relative to the sweep's file; null: the sweep's
    config: str | None = None
    # settings over it, by dotted name
    set: dict[str, Any] = {}
    # what one of its trials takes, in place of the sweep's; null: the sweep's
    resources: ResourceSettings | None = None


# named here, as the settings `list`, `set` and `zip` hide what they are called after
Points = list[dict[str, Any]]
Axes = dict[str, list[Any]]
Experiments = list[Experiment]
Seeds = int | list[int]


class SweepSettings(Settings):
    """What a sweep is."""

    # its folder in workspace/sweeps/
    name: str
    verb: VerbName = "train.py"
    # the base of every trial, relative to this file; null: the verb's defaults
    config: str | None = None
    # settings over it, by dotted name
    set: dict[str, Any] = {}
    # named ways to do it, each with all that follows
    list: Experiments = []
    # values by dotted name: every combination
    grid: Axes = {}
    # values by dotted name: the first of each, the second of each, ...
    zip: Axes = {}
    # values by dotted name, drawn; null: none
    random: RandomSettings | None = None
    # points chosen by what earlier ones came to, in place of all axes above; null: none
    search: SearchSettings | None = None
    # further points, settings by dotted name
    include: Points = []
    # points to leave out: those that agree with all settings of one of these
    exclude: Points = []
    # how many seeds each point is run with, or which
    seeds: Seeds = 1
    # what one trial takes; a cluster has one Job for all trials that take the same
    resources: ResourceSettings = ResourceSettings()
    # trials at a time, shared out among the Jobs; on this machine no more than its cores allow
    parallelism: int = Field(8, ge=1, le=100_000)
    # attempts that may fail before a trial counts as failed; a preempted one is free
    retries: int = Field(2, ge=0, le=20)
    # seconds that one attempt may take; null: as long as it takes
    deadline: int | None = Field(None, ge=1)
    # trials of a Job that may fail before the rest is not tried; null: all are tried
    max_failed: int | None = Field(None, ge=0)
    # Kueue's queue; null: none
    queue: Annotated[str, text(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "small letters, digits or '-'")] | None = None
    # what the report compares, and whether more is better
    metric: str = "eval/return"
    maximize: bool = True
    # gives points up that fall behind; null: all are run to their end
    stop: StopSettings | None = None

    @field_validator("verb", mode="before")
    @classmethod
    def _is_a_verb(cls, verb: Any) -> Any:
        known = get_args(VerbName)
        if isinstance(verb, str) and verb not in known:
            raise ValueError(f"a sweep runs {', '.join(known)}, and no other verb; found {verb!r}{nearest(verb, known)}")
        return verb

    @field_validator("name")
    @classmethod
    def _can_name_a_job(cls, name: str) -> str:
        if not (re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name) and len(name) <= LONGEST_NAME):
            raise ValueError(f"expected up to 40 small letters, digits and '-', such as learning-rates, found {name!r}")
        return name

    @field_validator("metric")
    @classmethod
    def _is_a_metric(cls, metric: str) -> str:
        family, _, rest = metric.partition("/")
        if family not in METRICS or not rest:
            example = f"one that begins with {', '.join(METRICS)}, such as eval/return"
            raise ValueError(f"expected a metric of metrics.jsonl, {example}, found {metric!r}")
        if family == "eval" and rest.partition("/")[0] not in EVALUATED:
            words = [f"eval/{name}" for name in EVALUATED]
            raise ValueError(f"no evaluation has {metric!r}{nearest(metric, words)}; it has {', '.join(words)}")
        return metric

    @field_validator("seeds")
    @classmethod
    def _are_seeds(cls, seeds: Seeds) -> Seeds:
        if isinstance(seeds, int) and not 1 <= seeds <= 1000:
            raise ValueError("expected how many seeds, 1 to 1,000, or a list of them")
        if isinstance(seeds, list) and (not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0):
            raise ValueError("expected different whole numbers from 0 up, such as [0, 1, 2]")
        return seeds

    @model_validator(mode="after")
    def _has_values(self) -> SweepSettings:
        for kind in ("grid", "zip"):
            for key, values in getattr(self, kind).items():
                if not values:
                    raise ValueError(f"{kind}.{key}: has no values; write at least one, or leave the axis away")
        if self.search is not None and (self.grid or self.zip or self.list or self.random or self.exclude):
            raise ValueError("search: chooses all points itself; leave grid, zip, list, random and exclude away")
        lengths = {key: len(values) for key, values in self.zip.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"zip: expected as many values of each, found {lengths}")
        return self

    @property
    def all_seeds(self) -> Sequence[int]:
        """The seeds of each point."""
        return range(self.seeds) if isinstance(self.seeds, int) else self.seeds

    @property
    def judged_by(self) -> tuple[StopSettings | None, str, bool]:
        """What decides which points are given up: the rule, the metric, and whether more of it is better."""
        return self.stop, (self.stop and self.stop.metric) or self.metric, self.maximize

    @property
    def num_points(self) -> int:
        """How many trials there are before any is left out, without making them."""
        if self.search is not None:
            return (self.search.n + len(self.include)) * len(self.all_seeds)
        points = max(len(self.list), 1) * (len(next(iter(self.zip.values()))) if self.zip else 1)
        for values in self.grid.values():
            points *= len(values)
        points *= self.random.n if self.random else 1
        return (points + len(self.include)) * len(self.all_seeds)


def load_sweep(path: Path) -> SweepSettings:
    """A sweep's YAML; its name is the file's, unless it says another."""
    layer = config.read(SweepSettings, path)
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")
    if len(name) > LONGEST_NAME and "name" not in layer:
        raise UserError(
            f"{path}: name: {name} has more than {LONGEST_NAME} characters, as a Job's may have; write a shorter name"
        )
    for kind in ("grid", "zip"):
        if kind in layer and not plain(layer[kind]):
            raise UserError(
                f"{path}: {kind}: has no axis; write one, such as {{learner.learning_rate: [1e-3, 1e-4]}}, or leave it away"
            )
    return config.settle(SweepSettings, [{"name": Value(name, str(path))}, layer], str(path))
