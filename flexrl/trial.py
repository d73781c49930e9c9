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


def pack(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The trials of a Job, in order; the same bytes for the same trials."""
    return gzip.compress(json.dumps(rows, sort_keys=True).encode(), mtime=0)


def unpack(packed: bytes, index: int) -> dict[str, Any]:
    """The trial of an index; UserError if there is none."""
    rows = json.loads(gzip.decompress(packed))
    if not 0 <= index < len(rows):
        raise UserError(f"{INDEX}={index}: there are {len(rows)} trials")
    return dict(rows[index])


def become() -> NoReturn:
    """Runs the verb of its trial as this process's script, which goes on where an earlier attempt was saved.

    In the same interpreter: a new one would read all modules once more.
    """
    missing = [name for name in (TRIALS, WORKSPACE, INDEX) if name not in os.environ]
    if missing:
        raise UserError(f"submit_sweep.py trial: is what a sweep's Job runs; {', '.join(missing)} is not set")
    row = unpack(Path(os.environ[TRIALS]).read_bytes(), int(os.environ[INDEX]))
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
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit(exit_codes.DONE)
