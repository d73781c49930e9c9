"""The ancestors of a run or a snapshot: what made it, out of what, and whether that still lies there."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import AwareDatetime, BaseModel, Field, model_validator

from flexrl import snapshots
from flexrl.config import UserError
from flexrl.provenance import flat_ancestry
from flexrl.words import duration

T = TypeVar("T")
Mark = Literal["intact", "damaged", "changed", "missing"]

MANY = 4  # attempts; of more, only the first and the last are told


class Attempt(BaseModel):
    """One process that worked on a run, as `runs.Run` writes it to lineage.json."""

    start: AwareDatetime
    command: str
    how: str  # running, finished, "stopped: <signal>" or "failed: <exception>"
    from_step: int = 0
    end: AwareDatetime | None = None
    to_step: int | None = None
    git_commit: str | None = None
    git_diff_sha256: str | None = None

    def tell(self, how: str) -> list[str]:
        """Command, time, code, steps and end in three lines."""
        took = f" ({duration((self.end - self.start).total_seconds())})" if self.end else ""
        code = self.git_commit[:10] if self.git_commit else "not known"
        code += " with uncommitted changes" if self.git_diff_sha256 else ""
        steps = f"from step {self.from_step:,}" + (f" to {self.to_step:,}" if self.to_step is not None else "")
        return [self.command, f"{self.start:%Y-%m-%d %H:%M %Z}{took}, code {code}", f"{steps}, {how}"]


class Lineage(BaseModel):
    """Where a run comes from, as `runs.Run` writes it to lineage.json."""

    name: str
    seed: int
    parents: dict[str, str]  # path: content hash
    ancestry: dict[str, Lineage] = {}  # content hash: what an ancestor said of itself when the run began
    attempts: list[Attempt] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, values: Any) -> Any:
        return {**values, "ancestry": flat_ancestry(values)} if isinstance(values, dict) else values

    def tell(self, state: str | None) -> list[str]:
        """The attempts in words, of many the first and the last; `state` is the run's, null if it is not known."""
        lines: list[str] = []
        for attempt in self.attempts if len(self.attempts) <= MANY else (self.attempts[0], self.attempts[-1]):
            ended = state if attempt is self.attempts[-1] else "killed"
            lines += attempt.tell(attempt.how if attempt.how != "running" else ended or "end not known")
            if len(self.attempts) > MANY and attempt is self.attempts[0]:
                lines.append(f"... {len(self.attempts) - 2} more attempts ...")
        return lines


def parse_file(path: Path, parse: Callable[[bytes], T]) -> T:
    """A file's content; UserError if it is missing or damaged."""
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        raise UserError(f"{path}: damaged") from None


def read_lineage(folder: Path) -> Lineage:
    """The lineage.json of a run or a snapshot; UserError if it is missing or damaged."""
    return parse_file(folder / "lineage.json", Lineage.model_validate_json)


def is_running(folder: Path) -> bool:
    """Whether a process holds the lock of the run just now; false where there is no lock that can be asked.

    It asks for a shared one, so that two reports at the same moment do not take each other for the run.
    """
    try:
        with (folder / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def state_of(folder: Path, attempt: Attempt) -> str:
    """The first word of how a run's last attempt ended; killed, if it says that it runs and no process does."""
    word = attempt.how.split(":")[0]
    return "killed" if word == "running" and not is_running(folder) else word


@dataclass(frozen=True)
class Ancestor:
    """A run or a snapshot, how it lies there now, and what it was made from."""

    path: str  # as it was given or recorded
    mark: Mark | None  # of the snapshot; null for a run that has none yet
    problem: str | None
    snapshot: str | None  # the snapshot that was checked: the folder itself, or a run's best/ or latest/
    content_hash: str | None  # of what lies there now
    recorded_hash: str | None  # what the child was made from
    num_steps: int | None  # of the snapshot; null where another lies in its place
    state: str | None  # as of state_of; null where only the snapshot's own copy of the lineage is left
    lineage: Lineage | None
    parents: tuple[Ancestor, ...]
    repeated: bool  # stands in the tree already, or is its own ancestor; its parents are not told again


def trace(folder: Path) -> Ancestor:
    """The tree of ancestors of a run or a snapshot; UserError if the folder is neither."""
    if not any((folder / name).is_file() for name in ("lineage.json", snapshots.MANIFEST)):
        raise UserError(f"{folder}: is neither a run (no lineage.json) nor a snapshot (no {snapshots.MANIFEST})")
    return _trace(str(folder), folder, None, {}, set())


def _trace(path: str, folder: Path, recorded: str | None, told: Mapping[str, Lineage], seen: set[str]) -> Ancestor:
    """`recorded` is its hash as its child has it, `told` the lineages that its descendants keep, by content hash."""
    snapshot = next((s for s in (folder, folder / "best", folder / "latest") if (s / snapshots.MANIFEST).is_file()), None)
    mark: Mark | None = None  # of a run before its first snapshot
    content_hash = problem = lineage = state = None
    if snapshot is not None or recorded is not None:
        mark, content_hash, problem = _verify(snapshot or folder, recorded)
    try:
        lineage, state = _lineage_of(folder)
    except UserError as error:
        problem = problem or str(error)
    place = str(folder.resolve())
    known = told.get(recorded) if recorded is not None else None
    is_other = known is not None and (mark == "changed" or (mark == "missing" and lineage is None))
    if is_other:  # what lies there now is something else
        lineage, state, place = known, None, str(recorded)
    repeated = place in seen
    seen.add(place)
    parents = lineage.parents if lineage and not repeated else {}
    told = {**told, **(lineage.ancestry if lineage else {})}
    return Ancestor(
        path=path,
        mark=mark,
        problem=problem,
        snapshot=str(snapshot) if snapshot else None,
        content_hash=content_hash,
        recorded_hash=recorded,
        num_steps=_num_steps(snapshot) if snapshot and mark != "damaged" and not is_other else None,
        state=state,
        lineage=lineage,
        parents=tuple(_trace(p, _locate(p, folder), parents[p], told, seen) for p in parents),
        repeated=repeated,
    )


def _locate(path: str, child: Path) -> Path:
    """A parent's folder: recorded relative to where the command ran, which is above the child or here."""
    bases = (*child.resolve().parents, Path())
    return next((base / path for base in bases if (base / path).exists()), Path(path))


def _verify(path: Path, recorded: str | None) -> tuple[Mark, str | None, str | None]:
    """How a snapshot or a file lies there, its content hash, and what is wrong with it. It repairs nothing."""
    manifest = path / snapshots.MANIFEST
    if not path.exists():
        return "missing", None, None
    if path.is_dir() and not manifest.is_file():
        return "damaged", None, f"{path}: has no {snapshots.MANIFEST}"
    try:
        content_hash = snapshots.file_hash(manifest if path.is_dir() else path)
    except OSError as error:
        return "damaged", None, f"{path}: {error.strerror}"
    try:
        if path.is_dir():
            snapshots.check(path)
    except (UserError, OSError) as error:
        if manifest.is_file() and snapshots.file_hash(manifest) != content_hash:
            return _verify(path, recorded)  # its training has just written another
        return "damaged", content_hash, str(error)
    return "intact" if recorded in (None, content_hash) else "changed", content_hash, None


def _lineage_of(folder: Path) -> tuple[Lineage | None, str | None]:
    """The lineage of a run or a snapshot, and the state of the run; null where it is not known.

    A snapshot's own copy was written while its run went on. Where the run lies round it, the run's tells how it ended.
    UserError if it is damaged.
    """
    own = read_lineage(folder) if (folder / "lineage.json").exists() else None
    if not (folder / snapshots.MANIFEST).is_file():
        return own, state_of(folder, own.attempts[-1]) if own else None
    for run in folder.resolve().parents[:2]:
        if (run / "config.yaml").is_file() and (run / "lineage.json").is_file():
            whole = read_lineage(run)
            if own is None or (own.name, own.attempts[0].start) == (whole.name, whole.attempts[0].start):
                return whole, state_of(run, whole.attempts[-1])
    return own, None


def _num_steps(snapshot: Path) -> int | None:
    """The env steps that a snapshot says it was taken at."""
    path = snapshot / "snapshot.json"
    num_steps = json.loads(path.read_bytes()).get("num_steps") if path.is_file() else None
    return num_steps if isinstance(num_steps, int) else None
