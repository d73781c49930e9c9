"""A sweep small enough for tests, and how tests expand and submit it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from flexrl.sweep_settings import load_sweep
from flexrl.sweeps import Trial, expand

ROOT = Path(__file__).parent.parent
IMAGE = "registry.example/flex-rl@sha256:" + "ab" * 32
TINY = {
    "name": "tiny",
    "set": {
        "world": {"body": "half_cheetah", "task": "v5", "num_envs": 4},
        "learner": {"n_steps": 64, "batch_size": 64, "n_epochs": 1},
        "evaluation": {"every": None, "episodes": 1},
        "num_steps": 2000,
        "video": False,
        "save_every": 0,
        "log_every": 1,
    },
    "grid": {"learner.learning_rate": [1e-4, 1e-3]},
    "seeds": 2,
    "resources": {"cpu": 1, "memory": "512Mi"},
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.yaml"
    values = {key: value for key, value in {**TINY, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def trials_of(path: Path, **options: Any) -> list[Trial]:
    return expand(load_sweep(path), path, **options)


def submit(path: Path, workspace: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(path, workspace, *options), cwd=ROOT, capture_output=True, text=True, timeout=600)


def command(path: Path, workspace: Path, *options: str) -> list[str]:
    return [sys.executable, "submit_sweep.py", "--sweep", str(path), "--workspace", str(workspace), *options]
