"""What lies in the workspace, as a table: each run's settings, metrics and state in a row."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import TypeAdapter

from flexrl import runs
from flexrl.config import UserError
from flexrl.lineage import parse_file, read_lineage, state_of

T = TypeVar("T")
Array = NDArray[np.float64]


def list_folders(workspace: Path) -> list[Path]:
    """The workspace's runs, those included that have lost a file. UserError if there is no workspace."""
    found = set(runs.list_runs(workspace))
    return sorted(found | {path.parent for name in ("lineage.json", "metrics.jsonl") for path in workspace.glob(f"*/{name}")})


def list_sweeps(workspace: Path) -> list[str]:
    """The names of the workspace's sweeps, whose trials are runs of their own."""
    return sorted(path.parent.name for path in workspace.glob("sweeps/*/trials.json"))


def find(text: str, workspace: Path) -> Path:
    """The folder that `text` names: a run of the workspace by its name, or a path. UserError with the nearest name."""
    if runs.NAME.fullmatch(text) and (workspace / text).is_dir():
        return workspace / text
    if Path(text).is_dir():
        return Path(text)
    known = list_folders(workspace) if workspace.is_dir() else []
    words = [path.name for path in known] + [str(path / end) for path in known for end in ("", "best", "latest")]
    close = difflib.get_close_matches(text, words, n=1)
    some = ", ".join(path.name for path in known[:5]) + (", ..." if len(known) > 5 else "")
    hint = f"did you mean '{close[0]}'?" if close else f"{workspace} has {some or 'no runs'}"
    raise UserError(f"{text}: no such run or folder; {hint}")


def read_settings(folder: Path) -> dict[str, Any]:
    """A run's config.yaml as plain values; UserError if it is missing or damaged."""
    mapping = TypeAdapter(dict[str, Any])
    return parse_file(folder / "config.yaml", lambda content: mapping.validate_python(yaml.safe_load(content)))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl by rising step; where steps go back, an attempt began anew and its lines count.

    UserError if the file is missing, or damaged in more than the one line that a kill may have cut.
    """
    num_written = parse_file(folder / "metrics.jsonl", lambda content: sum(map(bool, content.decode().splitlines())))
    lines = [line for line in runs.read_metrics(folder) if isinstance(line["step"], (int, float))]
    if num_written - len(lines) > 1:
        raise UserError(f"{folder / 'metrics.jsonl'}: {num_written - len(lines)} of {num_written} lines damaged")
    kept: list[dict[str, Any]] = []
    for line in lines:
        while kept and kept[-1]["step"] >= line["step"]:
            kept.pop()
        kept.append(line)
    return kept


@dataclass(frozen=True)
class Series:
    """One metric of one run."""

    steps: Array  # (num_points,) env steps, rising
    values: Array  # (num_points,) finite


def series_of(lines: Sequence[Mapping[str, Any]], metric: str) -> Series | None:
    """A metric of the lines where it has a finite value, null if it has none."""
    points = [(line["step"], line[metric]) for line in lines if isinstance(line.get(metric), (int, float))]
    array = np.array(points, float).reshape(-1, 2)
    array = array[np.isfinite(array).all(axis=1)]
    return Series(array[:, 0], array[:, 1]) if len(array) else None


@dataclass(frozen=True)
class RunSummary:
    """A row of the table of runs; null where the run does not say. A step of `train_dt.py` is an update."""

    name: str
    folder: str
    world: str | None  # or the datasets that it learns from
    learner: str | None  # or the models that it collects with
    seed: int | None
    num_steps: int | None  # done
    planned_steps: int | None
    last_return: float | None  # of the last deterministic evaluation
    best_return: float | None
    best_step: int | None
    steps_per_second: float | None  # median over the last quarter of the lines
    state: str  # running, finished, stopped, failed, killed (says it runs, and no process does) or broken
    how: str | None  # the lineage's own words
    changed: str  # ISO 8601: when a file of it was last written
    problems: tuple[str, ...]  # "<file>: missing", "<file>: damaged"


def summarise(folder: Path) -> RunSummary:
    """What a run's files say; a missing or damaged file is one of its `problems`, never an error."""
    problems: list[str] = []

    def try_to(read: Callable[[Path], T]) -> T | None:
        try:
            return read(folder)
        except UserError as error:
            problems.append(str(error).removeprefix(f"{folder}/"))
            return None

    settings, lineage, lines = try_to(read_settings) or {}, try_to(read_lineage), try_to(read_metrics) or []
    attempt = lineage.attempts[-1] if lineage else None
    returns = series_of(lines, "eval/return")
    speeds = series_of(lines, "time/env_steps_per_second") or series_of(lines, "time/updates_per_second")
    best = int(np.argmax(returns.values)) if returns else 0
    told = (lines[-1]["step"] if lines else None, attempt.to_step if attempt else None)  # the latter after the last line, too
    reached = [step for step in map(_whole, told) if step is not None]
    files = (folder / name for name in ("config.yaml", "lineage.json", "metrics.jsonl"))
    changed = max((path.stat().st_mtime for path in files if path.exists()), default=0.0)
    return RunSummary(
        name=folder.name,
        folder=str(folder),
        world=_world_name(_mapping(settings, "world")) or _file_names(settings.get("datasets")),
        learner=_learner_name(settings),
        seed=_whole(settings.get("seed")),
        num_steps=max(reached, default=None),
        planned_steps=_whole(settings.get("num_steps", settings.get("num_updates"))),
        last_return=float(returns.values[-1]) if returns else None,
        best_return=float(returns.values[best]) if returns else None,
        best_step=int(returns.steps[best]) if returns else None,
        steps_per_second=float(np.median(speeds.values[-math.ceil(len(speeds.values) / 4) :])) if speeds else None,
        state=state_of(folder, attempt) if attempt else "broken",
        how=attempt.how if attempt else None,
        changed=datetime.fromtimestamp(changed, UTC).isoformat(timespec="seconds"),
        problems=tuple(problems),
    )


def _whole(value: Any) -> int | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return int(value) if is_number else None


def _mapping(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    return settings[key] if isinstance(settings.get(key), dict) else {}


def _learner_name(settings: Mapping[str, Any]) -> str | None:
    """A learner's name, the kind of a model that learns offline, or the names of the models that are rolled out."""
    name = _mapping(settings, "learner").get("name") or _mapping(settings, "model").get("kind")
    models = settings.get("models")
    paths = [model.get("path") for model in models if isinstance(model, dict)] if isinstance(models, list) else None
    return str(name) if name else _file_names(paths)


def _file_names(paths: Any) -> str | None:
    """'a, b' of ['workspace/a', 'workspace/b/best']."""
    if not isinstance(paths, list):
        return None
    return ", ".join(str(path).removesuffix("/best").removesuffix("/latest").rpartition("/")[2] for path in paths) or None


def _world_name(world: Mapping[str, Any]) -> str | None:
    """'humanoid walk_forward' of a motor world, the id of a Gymnasium one, else the kind."""
    words = [str(world[key]) for key in ("body", "task") if key in world]
    return " ".join(words) or next((str(world[key]) for key in ("id", "kind") if key in world), None)
