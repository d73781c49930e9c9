"""Where a result comes from: the code, the packages and the machine that an attempt runs on, and when."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

IMAGE, JOB, POD, NODE = "FLEXRL_IMAGE", "FLEXRL_JOB", "FLEXRL_POD", "FLEXRL_NODE"  # variables of a sweep's pod
DIRTY = "-dirty"  # behind a commit: with changes (docker/commit.sh)
PACKAGES = ("mujoco", "gymnasium", "numpy", "stable-baselines3", "sb3-contrib", "torch")


def now() -> str:
    """The time, UTC, as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def python() -> str:
    """What a person types to start this Python from here: `python`, if the shell knows it by that name."""
    path = Path(sys.executable)
    if shutil.which("python") == str(path):
        return "python"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def here() -> dict[str, Any]:
    """Code, packages and hardware that an attempt runs on; in a sweep's pod its image, Job, name and machine too."""
    return {
        **code_version(Path(__file__).parent.parent),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "hardware": {"machine": platform.machine(), "cpu": _cpu_name(), "cores": os.cpu_count(), **_gpus()},
        **_whereabouts(),
    }


def _whereabouts() -> dict[str, dict[str, str]]:
    """What a Job's manifest tells its pod of itself; nothing elsewhere."""
    told = {"image": IMAGE, "job": JOB, "index": "JOB_COMPLETION_INDEX", "pod": POD, "node": NODE}
    found = {key: os.environ[name] for key, name in told.items() if os.environ.get(name)}
    return {"pod": found} if POD in os.environ else {}


def code_version(root: Path) -> dict[str, str | None]:
    """The git commit of the code (of an image: that it was made of) and a hash of what is changed in it; or null.

    An image that was made of a folder with changes has a commit that ends with -dirty, and no hash of them: "not known".
    """
    commit = _git(root, "rev-parse", "HEAD") or os.environ.get("FLEXRL_COMMIT")
    diff = _git(root, "diff", "HEAD") if commit else None
    digest = hashlib.sha256(diff.encode(errors="surrogateescape")).hexdigest() if diff else None
    if commit and commit.endswith(DIRTY):
        digest = "not known"
    return {"git_commit": commit.strip() if commit else None, "git_diff_sha256": digest}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=root,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor()


def _gpus() -> dict[str, list[str]]:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"gpus": names} if names else {}


def flat_ancestry(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """The ancestors that a lineage tells of, by content hash, each once; older ones tell them by path, one within the other."""
    found: dict[str, Any] = {}
    for key, ancestor in lineage.get("ancestry", {}).items():
        found |= flat_ancestry(ancestor) | {lineage["parents"].get(key, key): {**ancestor, "ancestry": {}}}
    return found
