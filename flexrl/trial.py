"""What a pod of a sweep's Job runs: finds its trial by its index, and becomes the trial's verb."""

from __future__ import annotations

import ctypes
import gzip
import json
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from flexrl import exit_codes
from flexrl.yaml_values import UserError

ROOT = Path(__file__).resolve().parent.parent
TRIALS = "FLEXRL_TRIALS"  # variable: the file that `pack` made
WORKSPACE = "FLEXRL_WORKSPACE"  # variable: the sweep's folder
INDEX = "JOB_COMPLETION_INDEX"  # variable: which of them; set by Kubernetes
TIED = "FLEXRL_TIED"  # variable: the process to end with, which started this one
LOCK_WAIT = "FLEXRL_LOCK_WAIT"  # variable: seconds to wait for a run that another process still has
PR_SET_PDEATHSIG = 1  # of Linux's prctl
GIVEN_UP = "given up: others of the sweep do better"
TERMINATION_LOG = Path("/dev/termination-log")  # in a pod: what its status says in the end


def pack(rows: Sequence[Mapping[str, Any]], rungs: Mapping[str, Any] | None) -> bytes:
    """The trials of a Job, in order, and the rule by which they are given up; the same bytes for the same trials."""
    return gzip.compress(json.dumps({"trials": rows, "rungs": rungs}, sort_keys=True).encode(), mtime=0)


def unpack(packed: bytes, index: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The trial of an index, and the rule, if there is one; UserError if there is no such trial."""
    document = json.loads(gzip.decompress(packed))
    rows = document["trials"]
    if not 0 <= index < len(rows):
        raise UserError(f"{INDEX}={index}: there are {len(rows)} trials")
    return rows[index], document["rungs"]


def become() -> NoReturn:
    """Runs the verb of its trial as this process's script, which goes on where an earlier attempt was saved.

    In the same interpreter: a new one would read all modules once more.
    """
    missing = [name for name in (TRIALS, WORKSPACE, INDEX) if name not in os.environ]
    if missing:
        raise UserError(f"submit_sweep.py trial: is what a sweep's Job runs; {', '.join(missing)} is not set")
    row, rungs = unpack(Path(os.environ[TRIALS]).read_bytes(), int(os.environ[INDEX]))
    folder = Path(os.environ[WORKSPACE])
    path = folder / "configs" / f"{row['id']}.yaml"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
        temporary.write_text(yaml.safe_dump(row["settings"], sort_keys=False, allow_unicode=True), encoding="utf-8")
        os.replace(temporary, path)
    if TIED in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(os.environ[TIED]):  # it was gone before
            sys.exit(exit_codes.PREEMPTED)
    os.environ[LOCK_WAIT] = "60"
    arguments = ["--name", row["id"], "--workspace", str(folder / "trials"), "--config", str(path), "--resume"]
    sys.argv = [str(ROOT / row["verb"]), *arguments]
    if rungs is None:
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        _run_judged(row["id"], folder, rungs)
    sys.exit(exit_codes.DONE)


def _run_judged(key: str, folder: Path, document: Mapping[str, Any]) -> None:
    """The verb, beside it who stops it when others of the sweep do better; that is a good end, and so the Job has it."""
    from flexrl.rungs import Judge, Rungs  # here, as most sweeps have no rule

    mark = mark_of(folder, key)
    mark.unlink(missing_ok=True)
    judge = Judge(Rungs.read(folder, document), key)
    if not judge.is_given_up():
        judge.start()
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as left:
            if not judge.end() or left.code != exit_codes.PREEMPTED:
                raise
        else:
            judge.end()
            return
    print(GIVEN_UP, file=sys.stderr)
    mark.parent.mkdir(exist_ok=True)
    mark.touch()
    if TERMINATION_LOG.is_file():
        TERMINATION_LOG.write_text(GIVEN_UP, encoding="utf-8")


def mark_of(folder: Path, key: str) -> Path:
    """The file that says, in a sweep's folder, that a trial was given up."""
    return folder / "given_up" / key
