"""workspace/sweeps/<name>/: which trials there are, how each attempt ended, its log; plain files, no server."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from flexrl import config, runs, snapshots
from flexrl.config import UserError
from flexrl.job_manifests import TrialJob
from flexrl.ledger import list_sweeps
from flexrl.sweep_settings import SweepSettings
from flexrl.sweeps import Trial
from flexrl.trial import mark_in

State = Literal["waiting", "running", "done", "failed", "refused", "given up"]
OVER = ("done", "failed", "refused", "given up")  # what nobody goes on with by itself
SECONDS_TO_WAIT = 60.0  # for somebody who only looks
TAIL = 1 << 16  # bytes at the end of a file of metrics that hold its last lines
RESULT = ("policy.safetensors", "normaliser.safetensors", "episodes.json")


@dataclass
class Attempt:
    """One process of a trial."""

    start: str  # ISO 8601, UTC
    end: str | None = None
    exit_code: int | None = None  # 128 + n where signal n ended it
    how: str = "running"
    from_step: int = 0  # where it went on
    to_step: int = 0  # what its metrics reached
    lost_steps: int = 0  # of them, those that the next attempt did again
    counted: bool = False  # whether it used up a retry
    pod: str | None = None  # its name, on a cluster
    node: str | None = None  # the cluster's machine that it ran on
    is_logged: bool = True  # whether what it printed is kept here
    obstacle: str | None = None  # why its pod does not run yet; null: it does, or did


@dataclass
class Status:
    """How a trial stands."""

    state: State = "waiting"
    attempts: list[Attempt] = field(default_factory=list)
    result: str | None = None  # hash of what a finished one came to

    @property
    def num_counted(self) -> int:
        """Attempts that used up a retry."""
        return sum(attempt.counted for attempt in self.attempts)

    @property
    def lost_steps(self) -> int:
        """Steps that were done more than once, as an attempt was cut."""
        return sum(attempt.lost_steps for attempt in self.attempts)


def _take(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def obstacles(statuses: Iterable[Status]) -> list[str]:
    """Why pods do not run yet, a line each reason."""
    found = Counter(attempt.obstacle for status in statuses for attempt in status.attempts[-1:] if attempt.obstacle)
    return [f"{number} pod{'s wait' if number > 1 else ' waits'}: {why}" for why, number in found.items()]


@dataclass(frozen=True)
class Entry:
    """A trial that was submitted once."""

    id: str
    label: str
    seed: int
    point: dict[str, Any]
    verb: str
    planned_steps: int
    inputs: dict[str, str]
    image: str | None
    is_current: bool  # of the sweep as it was last submitted

    @property
    def title(self) -> str:
        """Its label and its seed."""
        return f"{self.label} seed={self.seed}" if self.label else f"seed={self.seed}"


class Ledger:
    """The folder of one sweep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trials, self.configs, self.logs = folder / "trials", folder / "configs", folder / "logs"
        self._status = folder / "status"

    @property
    def exists(self) -> bool:
        """Whether anything was submitted."""
        return (self.folder / "trials.json").is_file()

    def read_sweep(self) -> SweepSettings:
        """The sweep as it was last submitted; UserError if there is none."""
        if not self.exists:
            known = list_sweeps(self.folder.parent.parent)
            there = f"; there are {', '.join(known)}" if known else ""
            raise UserError(f"{self.folder}: no such sweep{there}; submit_sweep.py --sweep FILE makes one")
        if not (self.folder / "sweep.yaml").is_file():
            raise UserError(f"{self.folder / 'sweep.yaml'}: is gone; submit the sweep again, which runs nothing twice")
        return config.load(SweepSettings, self.folder / "sweep.yaml")

    def entries(self) -> dict[str, Entry]:
        """All trials that were ever submitted, by id."""
        path = self.folder / "trials.json"
        if not path.is_file():
            return {}
        try:
            return {key: Entry(**value) for key, value in json.loads(path.read_bytes()).items()}
        except (ValueError, TypeError, AttributeError):
            raise UserError(f"{path}: is damaged; put it back from a copy, or take another name for the sweep") from None

    @property
    def ran_here(self) -> bool:
        """Whether the sweep was last submitted to this machine."""
        return all(entry.image is None for entry in self.entries().values() if entry.is_current)

    @property
    def is_over(self) -> bool:
        """Whether no trial of the sweep as it was last submitted is to go on, and all their logs are here."""
        statuses = [self.status(entry.id) for entry in self.entries().values() if entry.is_current]
        return all(s.state in OVER and all(attempt.is_logged for attempt in s.attempts) for s in statuses)

    def has_ended(self, job: TrialJob) -> bool:
        """Whether a Job is known to be over: all its trials are, and all their logs are here."""
        statuses = [self.status(key) for key in job.trials]
        return all(s.state in OVER and all(attempt.is_logged for attempt in s.attempts) for s in statuses)

    def check_is_of(self, path: Path) -> None:
        """UserError if the sweep was submitted by a file of another name, whose trials would seem to be of this one."""
        noted = self.folder / "file"
        theirs = noted.read_text(encoding="utf-8").strip() if noted.is_file() else path.name
        if theirs != path.name:
            whose = f"{self.folder} holds the sweep of {theirs}, which has the same name"
            raise UserError(f"{path}: name: {whose}; write another name, or remove {noted} if it is the same sweep")

    def submit(self, sweep: SweepSettings, trials: Sequence[Trial], image: str | None, source: Path | None = None) -> None:
        """Notes the trials as those of the sweep, and what each is to be run with; `source`: the sweep's file."""
        entries = {key: asdict(entry) | {"is_current": False} for key, entry in self.entries().items()}
        for folder in (self.trials, self.configs, self.logs, self._status):
            folder.mkdir(parents=True, exist_ok=True)
        for trial in trials:
            entries[trial.id] = asdict(
                Entry(
                    id=trial.id,
                    label=trial.label,
                    seed=trial.seed,
                    point=dict(trial.point),
                    verb=sweep.verb,
                    planned_steps=trial.num_steps,
                    inputs=dict(trial.inputs),
                    image=image,
                    is_current=True,
                )
            )
            path = self.configs / f"{trial.id}.yaml"
            if not path.is_file():
                runs.write_whole(path, config.to_yaml(trial.settings))
        if source is not None:
            runs.write_whole(self.folder / "file", f"{source.name}\n")
        runs.write_whole(self.folder / "sweep.yaml", config.to_yaml(sweep))
        runs.write_whole(self.folder / "trials.json", json.dumps(entries, indent=1, sort_keys=True))

    def status(self, trial: str) -> Status:
        """How a trial stands; UserError if its file is damaged."""
        path = self._status / f"{trial}.json"
        if not path.is_file():
            return Status()
        try:
            document = json.loads(path.read_bytes())
            return Status(document["state"], [Attempt(**attempt) for attempt in document["attempts"]], document["result"])
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}: is damaged; remove it, and the trial goes on from its own folder") from None

    def set_status(self, trial: str, status: Status) -> None:
        """Writes it, whole or not at all."""
        runs.write_whole(self._status / f"{trial}.json", json.dumps(asdict(status), indent=1))

    def note_jobs(self, jobs: Sequence[TrialJob], context: str | None) -> None:
        """The Jobs that were submitted last, and the kubeconfig's context by which; null: its current one."""
        document = {"context": context, "jobs": [asdict(job) for job in jobs]}
        runs.write_whole(self.folder / "jobs.json", json.dumps(document, indent=1))

    def jobs(self) -> list[TrialJob]:
        """Those Jobs; none before the first."""
        return self._read_jobs()[1]

    def context(self) -> str | None:
        """Where they are."""
        return self._read_jobs()[0]

    def _read_jobs(self) -> tuple[str | None, list[TrialJob]]:
        path = self.folder / "jobs.json"
        if not path.is_file():
            return None, []
        try:
            document = json.loads(path.read_bytes())
            rows = document["jobs"]
            return document["context"], [
                TrialJob(dict(row["job"]), dict(row["config_map"]), tuple(row["trials"])) for row in rows
            ]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: is damaged; kubectl tells of the Jobs, remove the file to submit anew") from None

    def forgive(self, trial: str) -> None:
        """A trial that had failed is tried again: its attempts stay in the ledger, and count no more."""
        status = self.status(trial)
        if status.state not in OVER:
            return
        for attempt in status.attempts:
            attempt.counted = False
        status.state = "waiting"
        self.set_status(trial, status)

    def log_of(self, trial: str, attempt: int) -> Path:
        """Where what an attempt printed is kept."""
        return self.logs / f"{trial}.{attempt}.log"

    def dossier_of(self, trial: str, attempt: int) -> Path:
        """Where what a cluster tells of an attempt that failed there is kept."""
        return self.logs / f"{trial}.{attempt}.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else runs this sweep here meanwhile; UserError if somebody does. Who only looks is waited for."""
        begin = time.monotonic()
        with self._open_lock() as lock:
            while not _take(lock):
                lock.seek(0)
                patience = 0.3 if lock.read() else SECONDS_TO_WAIT  # who only looks writes nothing there
                if time.monotonic() > begin + patience:
                    raise UserError(f"{self.folder}: another process is running this sweep; see `status`, or wait for it")
                time.sleep(0.1)
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield
            lock.truncate(0)

    @contextmanager
    def looked_at(self) -> Iterator[bool]:
        """Nobody else writes meanwhile; false if somebody runs it, or looks at it too."""
        with self._open_lock() as lock:
            is_mine = _take(lock)
            if is_mine:
                lock.truncate(0)
            yield is_mine

    def _open_lock(self) -> IO[str]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return (self.folder / ".lock").open("a+")
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror}); name another place with --workspace"
            ) from None

    def runner(self) -> int | None:
        """The process that runs this sweep here; null if none does."""
        path = self.folder / ".lock"
        if not path.is_file():
            return None
        with path.open("r") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read() or 0) or None
        return None

    def step_of(self, trial: str) -> int:
        """The step that a trial's metrics have reached; 0 before their first line."""
        return int(self.last_line(trial).get("step", 0))

    def last_line(self, trial: str) -> dict[str, Any]:
        """A trial's last whole line of metrics; empty before the first."""
        lines = self._tail(trial)
        return lines[-1] if lines else {}

    def _tail(self, trial: str) -> list[dict[str, Any]]:
        """Its last lines of metrics that are whole."""
        path = self.trials / trial / "metrics.jsonl"
        if not path.is_file():
            return []
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - TAIL, 0))
            lines = file.read().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"}\n") and line.startswith(b"{")]

    def last_value(self, trial: str, metric: str) -> float | None:
        """The last value of a metric of a trial; null before its first."""
        for line in reversed(self._tail(trial)):
            value = line.get(metric)
            if isinstance(value, (int, float)):
                return float(value)
        return None

    def metrics_of(self, trial: str) -> list[dict[str, Any]]:
        """A trial's lines of metrics; none before the first."""
        folder = self.trials / trial
        return runs.read_metrics(folder) if (folder / "metrics.jsonl").is_file() else []

    def resumed_at(self, trial: str) -> list[int]:
        """The step at which each attempt began, by the run's own lineage; none where it tells of none."""
        try:
            document = json.loads((self.trials / trial / "lineage.json").read_bytes())
            return [int(attempt["from_step"]) for attempt in document["attempts"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []  # not begun, or damaged, which the run itself says

    def is_given_up(self, trial: str) -> bool:
        """Whether its last attempt left because others do better; known here where the trials' folder is this one."""
        return mark_in(self.trials / trial).is_file()

    def is_intact(self, trial: str) -> bool:
        """Whether what a finished trial came to is still here; UserError if it is, and is damaged."""
        run = self.trials / trial
        if snapshots.exists(run):  # a dataset, large: its readers look into its files
            missing = snapshots.missing(run)
            if missing:
                raise UserError(f"{run / missing[0]}: is missing; remove {run}, and the trial is run again")
            return True
        if not snapshots.exists(run / "latest"):
            return False
        try:
            snapshots.check(run / "latest")
        except UserError as error:
            raise UserError(f"{str(error).partition(';')[0]}; remove {run}, and the trial is run again") from None
        return True

    def result_of(self, trial: str) -> str | None:
        """The hash of what a finished trial came to: weights, a dataset, or episodes; null if there is nothing whole."""
        run = self.trials / trial
        folder = run if (run / snapshots.MANIFEST).is_file() else run / "latest"
        try:
            files = json.loads((folder / snapshots.MANIFEST).read_bytes())["files"]
            told = {name: files[name] for name in sorted(files) if folder == run or name in RESULT}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()
