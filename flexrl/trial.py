"""What a pod of a sweep's Job is told: variables, its trials, the rule by which they are given up."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flexrl.yaml_values import UserError

ROOT = Path(__file__).resolve().parent.parent
TRIALS = "FLEXRL_TRIALS"  # variable: the file that `pack` made
WORKSPACE = "FLEXRL_WORKSPACE"  # variable: the sweep's folder
INDEX = "JOB_COMPLETION_INDEX"  # variable: which of them; set by Kubernetes
TIED = "FLEXRL_TIED"  # variable: the process to end with, which started this one
LOCK_WAIT = "FLEXRL_LOCK_WAIT"  # variable: seconds to wait for a run that another process still has
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


def mark_in(run: Path) -> Path:
    """The file that says, in a trial's folder, that it was given up."""
    return run / "given_up"
