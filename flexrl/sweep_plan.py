"""What submitting a sweep would do, before it does it: what is new, done, changed or to be run again, and how long it takes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flexrl import ledger as workspace_ledger
from flexrl.config import UserError
from flexrl.lineage import read_lineage
from flexrl.sweep_ledger import OVER, Ledger
from flexrl.sweep_settings import SweepSettings
from flexrl.sweeps import Trial

Kind = Literal["new", "done", "changed", "failed", "unfinished"]
SIGNS: Mapping[Kind, str] = {"new": "+", "done": "=", "changed": "~", "failed": "!", "unfinished": ">"}
RECENT = 50  # runs of the workspace that are asked for their speed


@dataclass(frozen=True)
class Planned:
    """A trial and what becomes of it."""

    trial: Trial
    kind: Kind
    done_steps: int

    @property
    def to_run(self) -> bool:
        """Whether it is run."""
        return self.kind != "done"


@dataclass(frozen=True)
class Plan:
    """All trials of a sweep, in order."""

    rows: list[Planned]
    steps_per_second: float | None  # of one trial, from earlier runs of its kind; null: there are none
    steps_left: int

    @property
    def to_run(self) -> list[Planned]:
        """Those that are run."""
        return [row for row in self.rows if row.to_run]

    def count(self, kind: Kind) -> int:
        """How many there are of this kind."""
        return sum(row.kind == kind for row in self.rows)

    def hours(self, at_a_time: int) -> float | None:
        """The estimate, if so many run side by side."""
        if self.steps_per_second is None:
            return None
        return self.steps_left / self.steps_per_second / max(min(at_a_time, len(self.to_run)), 1) / 3600


def make_plan(sweep: SweepSettings, trials: Sequence[Trial], ledger: Ledger, workspace: Path) -> Plan:
    """Holds the trials against what the ledger knows."""
    known = ledger.entries()
    titles = {entry.title for entry in known.values()}
    rows: list[Planned] = []
    # what a rule gave up stays so while the same rule judges by the same metric
    is_stopped = sweep.stop is not None and ledger.exists and ledger.read_sweep().judged_by == sweep.judged_by
    for trial in trials:
        kind, done = (
            _kind_of(trial, ledger, is_stopped) if trial.id in known else ("changed" if trial.title in titles else "new", 0)
        )
        rows.append(Planned(trial, kind, done))  # type: ignore[arg-type]
    left = sum(max(row.trial.num_steps - row.done_steps, 0) for row in rows if row.to_run)
    return Plan(rows, _speed(trials, ledger, workspace), left)


def _kind_of(trial: Trial, ledger: Ledger, is_stopped: bool) -> tuple[Kind, int]:
    status = ledger.status(trial.id)
    if status.state == "given up" and is_stopped:
        return "done", 0
    if status.state == "done" and (status.result is None or ledger.is_intact(trial.id)):  # no result: it is on a cluster
        return "done", 0
    step = ledger.step_of(trial.id)
    if status.state in OVER and status.state != "done":
        return "failed", step
    return ("unfinished" if status.attempts else "new"), step


def _speed(trials: Sequence[Trial], ledger: Ledger, workspace: Path) -> float | None:
    """The median steps/s of this sweep's trials, else of the workspace's last runs of the same world and learner."""
    folders = [ledger.trials / key for key in ledger.entries() if (ledger.trials / key / "lineage.json").is_file()]
    speeds = _speeds(folders[:RECENT])
    if not speeds and workspace.is_dir():
        others = sorted(workspace.glob("*/lineage.json"), key=lambda path: -path.stat().st_mtime)[:RECENT]
        settings = trials[0].settings.model_dump(mode="json")
        alike = [path.parent for path in others if _is_alike(path.parent, settings)]
        speeds = _speeds(alike)
    return statistics.median(speeds) if speeds else None


def _speeds(folders: Sequence[Path]) -> list[float]:
    """What runs made from their start to their end, evaluations and saves included; none of a run that tells of no end."""
    found = []
    for folder in folders:
        try:
            attempts = read_lineage(folder).attempts
        except UserError:
            continue  # a run that lost its lineage tells nothing
        ended = [attempt for attempt in attempts if attempt.end is not None and attempt.to_step is not None]
        seconds = sum((attempt.end - attempt.start).total_seconds() for attempt in ended if attempt.end)
        steps = sum((attempt.to_step or 0) - attempt.from_step for attempt in ended)
        if steps > 0 and seconds > 0:
            found.append(steps / seconds)
    return found


def _is_alike(folder: Path, settings: Mapping[str, object]) -> bool:
    """Whether a run has the body, the physics and the learner of these settings."""
    try:
        theirs = workspace_ledger.read_settings(folder)
    except UserError:
        return False  # a run that lost its settings tells nothing
    return all(_part(theirs, *keys) == _part(settings, *keys) for keys in ALIKE)


ALIKE = (("world", "body"), ("world", "id"), ("world", "physics"), ("learner", "name"), ("model", "kind"))


def _part(settings: Mapping[str, object], group: str, key: str) -> object:
    value = settings.get(group)
    return value.get(key) if isinstance(value, Mapping) else None
