"""Steps to the same success: a goal-conditioned training from a policy that never saw a goal, beside one from scratch.

    python bench/init_from.py

Both train `examples/humanoid_follow.yaml`, one after the other, until an evaluation (every 250,000 steps, v5 physics) shows
the success asked for; then they are stopped.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = {"evaluation.every": "250_000", "video": "false"}


def steps_to(success: float, at_most: int, parent: str | None, seed: int, workspace: Path) -> tuple[int | None, float]:
    """Env steps of the first evaluation with that success (None if there was none), and the best success seen."""
    name = f"{'from_scratch' if parent is None else 'from_parent'}_{seed}"
    settings = SHARED | {"num_steps": str(at_most), "seed": str(seed), "init_from": parent or "null"}
    command = [sys.executable, "train.py", "--name", name, "--config", "examples/humanoid_follow.yaml"]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command += ["--workspace", str(workspace)]
    metrics, best, found = workspace / name / "metrics.jsonl", 0.0, None
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while found is None:
            ended = process.poll() is not None
            lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
            rows = [json.loads(line) for line in lines if line.endswith("\n")]
            scores = {row["step"]: row["eval/success"] for row in rows if "eval/success" in row}
            best = max([0.0, *scores.values()])
            found = next((step for step, score in scores.items() if score >= success), None)
            if ended:
                break
            time.sleep(1)
        process.send_signal(signal.SIGINT)
    return found, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--success", type=float, default=0.5)
    parser.add_argument("--at-most", type=int, default=8_000_000, help="env steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--parent", default="examples/pretrained/humanoid_walk")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            steps = []
            for parent in (arguments.parent, None):
                found, best = steps_to(arguments.success, arguments.at_most, parent, seed, Path(folder))
                steps.append(found)
                told = f"{found:,} steps" if found else f"not in {arguments.at_most:,} steps (best {best:.0%})"
                print(f"seed {seed}, {'from ' + parent if parent else 'from scratch'}: {told}", flush=True)
            if steps[0]:
                ratio = steps[0] / (steps[1] or arguments.at_most)
                print(f"seed {seed}: {'' if steps[1] else 'at most '}{ratio:.2f} x the steps (bar 0.6)", flush=True)


if __name__ == "__main__":
    main()
