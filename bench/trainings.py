"""The command of a training of an example: what hour.py and init_from.py share."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def told(path: Path) -> Path:
    """As it is written into commands and lineage: from the project's root where it lies in there."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def command_of(name: str, config: str, workspace: Path, settings: Mapping[str, object]) -> list[str]:
    """Of examples/<config>.yaml, to be run in the project's root."""
    command = [sys.executable, "train.py", "--name", name, "--config", f"examples/{config}.yaml"]
    command += ["--workspace", str(told(workspace))]
    return command + [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
