"""What a pod of a sweep's Job runs: finds its trial by its index, and becomes the trial's verb."""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import yaml

from flexrl import exit_codes, snapshots
from flexrl.rungs import Judge, Rungs
from flexrl.trial import GIVEN_UP, INDEX, LOCK_WAIT, ROOT, TERMINATION_LOG, TIED, TRIALS, WORKSPACE, mark_in, unpack
from flexrl.yaml_values import UserError

PR_SET_PDEATHSIG = 1  # of Linux's prctl


def become() -> NoReturn:
    """Runs the verb of its trial as this process's script, which goes on where an earlier attempt was saved.

    In the same interpreter: a new one would read all modules once more.
    """
    missing = [name for name in (TRIALS, WORKSPACE, INDEX) if name not in os.environ]
    if missing:
        raise UserError(f"submit_sweep.py trial: is what a sweep's Job runs; {', '.join(missing)} is not set")
    row, rungs = unpack(Path(os.environ[TRIALS]).read_bytes(), int(os.environ[INDEX]))
    _check_inputs(row["inputs"])
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
    mark = mark_in(folder / "trials" / row["id"])
    mark.unlink(missing_ok=True)
    if rungs is None:
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        _run_judged(Judge(Rungs.read(folder, rungs), row["id"], row["length"]), mark)
    sys.exit(exit_codes.DONE)


def _check_inputs(inputs: Mapping[str, str]) -> None:
    """UserError unless this pod finds each folder that its trial reads as it was where the trial was submitted.

    The trial's id is a hash of them too: with others it would be another trial.
    """
    for path, digest in inputs.items():
        if not snapshots.exists(Path(path)):
            raise UserError(
                f"{path}: is not on this machine's disk; docs/CLUSTER.md says how a trial's inputs come to a cluster"
            )
        found = snapshots.content_hash(Path(path))
        if found != digest:
            other = f"here is {found[:12]}, the trial was submitted with {digest[:12]}"
            raise UserError(f"{path}: is another than was submitted: {other}; copy it here, or submit the sweep again")


def _run_judged(judge: Judge, mark: Path) -> None:
    """The verb, beside it who stops it when others of the sweep do better; that is a good end, and so the Job has it."""
    if not judge.is_given_up():
        signal.signal(signal.SIGTERM, _leave)  # a pod's first process does not end by a signal that it does not take
        judge.start()
        code: Any = exit_codes.DONE
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as left:
            code = left.code
        if not judge.end() or code != exit_codes.PREEMPTED:
            sys.exit(code)
    print(GIVEN_UP, file=sys.stderr)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    if TERMINATION_LOG.is_file():
        TERMINATION_LOG.write_text(GIVEN_UP, encoding="utf-8")


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    sys.exit(exit_codes.PREEMPTED)
