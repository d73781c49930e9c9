"""workspace/<name>/: settings, lineage, metrics, snapshots, and how a run starts, goes on and ends."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Generic, TypeVar

from flexrl import config, exit_codes, snapshots
from flexrl.config import Settings, UserError
from flexrl.provenance import flat_ancestry, here, now, python
from flexrl.trial import LOCK_WAIT, WORKSPACE

S = TypeVar("S", bound=Settings)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Stopped(BaseException):
    """SIGTERM or Ctrl-C arrived; the run saves and leaves."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Failed(Exception):
    """The run itself cannot go on (not the user's mistake); what there is has been saved."""

    exit_code = exit_codes.FAILED


class OutOfResources(Failed):
    """It cannot go on for want of room on the disk, say; with more of it, --resume goes on."""

    exit_code = exit_codes.OUT_OF_RESOURCES


def check_name(name: str) -> str:
    """The run's name, if it can be a folder's; UserError otherwise."""
    if not NAME.fullmatch(name):
        raise UserError(f"--name {name!r}: expected letters, digits, '.', '_' or '-' (no '/' or '..'), such as --name walk_1")
    return name


class Run(Generic[S]):
    """One run's folder. Entered, it holds the name's lock, writes lineage, and saves on SIGTERM and Ctrl-C."""

    def __init__(self, folder: Path, settings: S, name: str | None = None) -> None:
        self.folder, self.settings, self.name = folder, settings, name or folder.name  # what is to move there has its name
        self.latest, self.best = folder / "latest", folder / "best"
        self.parents: dict[str, str] = {}  # path: content hash
        self._parents_at: dict[str, Path] = {}  # where those lie that were added
        self.ancestry: dict[str, Any] = {}  # content hash: an ancestor's own lineage, without those of its ancestors
        self.seed: int = getattr(settings, "seed", 0)
        self.is_made = False  # whether something that it made is there, even where no latest/ is
        self.stop_signal: int | None = None
        self._writing = False
        self.num_steps, self.unit = 0, "step"  # how far it has come, and in what
        self._state: Callable[[], dict[str, bytes]] | None = None
        self._state_is_saved = True
        self._warned: set[str] = set()
        self._writer: Any = None

    def __enter__(self) -> Run[S]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / ".lock").open("w")
            self._take_lock()
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror}); name another place with --workspace"
            ) from None
        self._epoch = self._saved_at = time.time()  # s: when the clock of `time/seconds` began, and of the last save
        for folder in (self.latest, self.best):
            snapshots.recover(folder)
        resuming = self.latest.exists()
        if resuming:
            snapshots.check(self.latest)
        elif (self.folder / "config.yaml").exists():
            print(f"{self.latest}: nothing was saved there; the run begins anew", file=sys.stderr)
        try:
            write_whole(self.folder / "config.yaml", config.to_yaml(self.settings))
            self.lineage = self._begin_lineage(resuming or self.is_made)
            self._write_lineage()
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror}); name another place with --workspace"
            ) from None
        self._metrics = (self.folder / "metrics.jsonl").open("a" if resuming else "w", encoding="utf-8", buffering=1)
        self._handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _take_lock(self) -> None:
        """UserError if another process has it; a sweep's trial, whose last attempt may only just be ending, waits for it."""
        until = time.monotonic() + float(os.environ.get(LOCK_WAIT, "0"))
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(0.5)
                    continue
                why = f"{self.folder}: another process is running it"
                if LOCK_WAIT in os.environ:
                    raise OutOfResources(f"{why}, and has not ended for {os.environ[LOCK_WAIT]} s") from None
                raise UserError(f"{why}; wait for it, or take another --name") from None

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.stop_signal = signum
        if not self._writing:
            raise Stopped(signum)

    def add_parent(self, path: str, folder: Path) -> None:
        """Before the run is entered: it is made from the snapshot in `folder`, or from a file, which was named as `path`.

        The parent's lineage is kept with the run's own, as the parent may be gone when somebody asks.
        """
        self.parents[path] = _hash_of(folder)
        self._parents_at[path] = folder
        if (folder / "lineage.json").is_file():
            try:
                lineage = json.loads((folder / "lineage.json").read_bytes())
                self.ancestry |= flat_ancestry(lineage) | {self.parents[path]: {**lineage, "ancestry": {}}}
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"{folder / 'lineage.json'}: is damaged; copy it anew, or remove it") from None

    def confirm_parents(self) -> None:
        """Failed, if a parent was replaced since it was added: after it was read, as a training replaces its latest/."""
        for path, folder in self._parents_at.items():
            try:
                is_same = _hash_of(folder) == self.parents[path]
            except OSError:  # being replaced
                is_same = False
            if not is_same:
                raise Failed(f"{path}: was replaced while it was read; --resume begins anew with what is there now")

    def check_parent(self, setting: str, path: str, content_hash: str, cure: str) -> None:
        """UserError if what is at `path` now, by its hash, is not what the run began with."""
        if self.lineage["parents"].get(path) != content_hash:
            raise UserError(f"{setting}: {path} is not what {self.folder} began with; put it back, or {cure}")

    @contextlib.contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """A signal waits until the end of this, and then for `check_stop`."""
        self._writing = True
        try:
            yield
        finally:
            self._writing = False

    def check_stop(self) -> None:
        """Raises Stopped if a signal came while its exception could not travel (inside a destructor, say)."""
        if self.stop_signal is not None:
            raise Stopped(self.stop_signal)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number in self._handlers:
            signal.signal(number, signal.SIG_IGN)  # what follows must not be cut; it takes a second or two
        saved = self.save(force=True)
        how = "finished" if error is None else f"stopped: {error}" if isinstance(error, Stopped) else f"failed: {error!r}"
        self.lineage["attempts"][-1] |= {"end": now(), "how": how, "to_step": self.num_steps}
        self._survive("lineage.json", self._write_lineage)
        self._survive("metrics.jsonl", self._metrics.close)
        if self._writer is not None:
            self._survive("TensorBoard events", self._writer.close)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._lock.close()
        if isinstance(error, Stopped):
            print(f"\nstopped by {error} at {self.unit} {self.num_steps:,}; {self._way_on()}", file=sys.stderr)
            sys.exit(128 + error.signum)
        if error is None and not saved:
            sys.exit(exit_codes.OUT_OF_RESOURCES)

    def _way_on(self) -> str:
        """What goes on with it."""
        if WORKSPACE in os.environ:
            return "its sweep goes on with it"
        where = "" if self.folder.parent == Path("workspace") else f" --workspace {self.folder.parent}"
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        launcher = f"torchrun --nproc-per-node {processes}" if processes > 1 else python()
        return f"go on with: {launcher} {Path(sys.argv[0]).name} --name {self.name} --resume{where}"

    def remember(self, num_steps: int, files: Callable[[], dict[str, bytes]]) -> None:
        """Keep this moment as what `save` writes to latest/; `files` is called only then, and must hold copies."""
        self.num_steps, self._state, self._state_is_saved = num_steps, files, False

    def save(self, force: bool = False, every: float = 0.0) -> bool:
        """Write the remembered moment to latest/ if `every` seconds have passed since the last time (or `force`).

        A full or read-only disk costs a warning, not the run: the snapshot that is there stays. True if all is on disk.
        """
        if self._state is None or self._state_is_saved:
            return True
        if not force and not self.is_due(every):
            return False
        self._saved_at = time.time()
        state = self._state
        self._state_is_saved = self._survive("latest/", lambda: self._write(self.latest, state()))
        if self._state_is_saved:
            self._state = None  # it may be large
        return self._state_is_saved

    @property
    def best_or_latest(self) -> Path:
        """What to watch: latest/ where nothing was judged, as its length was lowered."""
        return self.best if snapshots.exists(self.best) else self.latest

    def is_due(self, every: float) -> bool:
        """Whether `every` seconds have passed since the last save."""
        return time.time() - self._saved_at >= every

    def write_snapshot(self, folder: Path, files: Mapping[str, bytes]) -> bool:
        """Another snapshot of this run, with the run's lineage in it; False (and a warning) if the disk refuses it."""
        return self._survive(folder.name + "/", lambda: self._write(folder, files))

    def _write(self, folder: Path, files: Mapping[str, bytes]) -> None:
        lineage = json.dumps(self.lineage, indent=1).encode()
        snapshots.write(folder, {**files, "lineage.json": lineage})

    def _survive(self, what: str, write: Callable[[], object]) -> bool:
        """Writes; False (and a warning) if the disk refuses. A signal waits: TensorBoard's queue hangs if cut in its locks."""
        stopped_before, waits = self.stop_signal, self._writing
        self._writing = True
        try:
            write()
            written = True
            self._warned.discard(what)
        except OSError as error:
            written = False
            if what not in self._warned:
                print(
                    f"{self.folder / what}: not written: {error.strerror or error}; the run goes on without",
                    file=sys.stderr,
                )
            self._warned.add(what)
        finally:
            self._writing = waits
        if stopped_before is None and not waits:
            self.check_stop()
        return written

    def log(self, num_steps: int, metrics: Mapping[str, float]) -> None:
        """One line in metrics.jsonl and one point of each metric in TensorBoard."""
        seconds = round(time.time() - self._epoch, 3)
        line = json.dumps({"step": num_steps, "time/seconds": seconds, **metrics})
        self._survive("metrics.jsonl", lambda: self._metrics.write(line + "\n"))
        self._survive("TensorBoard events", lambda: self._write_events(num_steps, metrics))

    def _write_events(self, num_steps: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            self._writer = _make_writer(self.folder, num_steps)
        try:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, num_steps)
        except OSError:  # it remembers that for ever; the next one begins anew
            self._writer = None
            raise

    def resumed_from(self, num_steps: int) -> None:
        """Forget the metrics that an earlier attempt logged after the state that was loaded."""
        self.num_steps = num_steps
        self._metrics.close()
        path = self.folder / "metrics.jsonl"
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= num_steps]
        self._survive("metrics.jsonl", lambda: write_whole(path, "".join(line + "\n" for line in lines)))
        self._metrics = path.open("a", encoding="utf-8", buffering=1)
        self.lineage["attempts"][-1]["from_step"] = num_steps
        self._survive("lineage.json", self._write_lineage)
        if lines:
            self._epoch -= json.loads(lines[-1])["time/seconds"]

    def _begin_lineage(self, resuming: bool) -> dict[str, Any]:
        attempt = {"start": now(), "from_step": 0, "command": " ".join(sys.argv), "how": "running", **here()}
        path = self.folder / "lineage.json"
        if path.is_file():
            try:
                lineage = json.loads(path.read_bytes())
                lineage["attempts"].append(attempt)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"{path}: is damaged; put it back from a copy, or start a run of another --name") from None
            return {**lineage, **({} if resuming else self._origin())}  # of what begins anew nothing from before is left
        return {"name": self.name, **self._origin(), "attempts": [attempt]}

    def _origin(self) -> dict[str, Any]:
        """What the run is made of."""
        settings_hash = hashlib.sha256(config.to_yaml(self.settings).encode()).hexdigest()
        return {"settings_sha256": settings_hash, "seed": self.seed, "parents": self.parents, "ancestry": self.ancestry}

    def _write_lineage(self) -> None:
        write_whole(self.folder / "lineage.json", json.dumps(self.lineage, indent=1))


def _hash_of(parent: Path) -> str:
    return snapshots.file_hash(parent) if parent.is_file() else snapshots.content_hash(parent)


def write_whole(path: Path, text: str) -> None:
    """The file with that text, whole or as it was."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _make_writer(folder: Path, num_steps: int) -> Any:
    # TensorBoard warns on stderr that TensorFlow is not installed; nobody here asks for it
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=num_steps)


def _step_of(line: str) -> float:
    """The step of a metrics line; infinite for a line that a kill has cut."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without one that a kill has cut."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: no such file; is {folder} a run?")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if _step_of(line) < float("inf")]


def list_runs(workspace: Path) -> list[Path]:
    """The folders in the workspace that hold a run."""
    if not workspace.is_dir():
        raise UserError(f"{workspace}: no such folder; train something first, or name another with --workspace")
    return sorted(path.parent for path in workspace.glob("*/config.yaml"))
