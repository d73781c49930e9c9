"""Learners timed in turns, each measurement in a process of its own: what ppo.py and recurrent.py share."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
ROLLOUT = 8192  # steps

Contestants = Mapping[str, Callable[[int], float]]  # iterations -> env steps a second


def time_learner(learner_settings: Any, world_settings: Any, iterations: int) -> float:
    """Env steps a second of our loop over `iterations` rollouts and updates, after a first one that does not count."""
    from flexrl.learners import make_learner
    from flexrl.worlds import make_world, normalise

    world = normalise(make_world(world_settings), True, True, 0.99)
    learner = make_learner(learner_settings, world, num_steps=ROLLOUT * (iterations + 1), seed=0, device="cpu")
    learner.improve()
    start = time.perf_counter()
    for _ in range(iterations):
        learner.improve()
    return ROLLOUT * iterations / (time.perf_counter() - start)


def run(script: str, description: str | None, contestants: Contestants, repeats: int) -> dict[str, list[float]]:
    """Steps a second of every contestant in every turn, printed; as a process of its own, `--only` one, it prints and ends."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--iterations", type=int, default=8, help="rollouts of 8,192 steps in each measurement of ours")
    parser.add_argument("--only", choices=contestants, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(contestants[arguments.only](arguments.iterations)))
        sys.exit()
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.repeats):
        for name in contestants:
            command = [sys.executable, script, "--only", name, "--iterations", str(arguments.iterations)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            measured[name].append(float(done.stdout.splitlines()[-1]))
    for name, values in measured.items():
        print(f"{name:28s} {statistics.median(values):7,.0f} steps/s   ({', '.join(f'{v:,.0f}' for v in values)})")
    return measured
