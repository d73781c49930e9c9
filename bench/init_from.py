"""Steps to the same success: a goal-conditioned training from a policy that never saw a goal, beside one from scratch.

    python bench/init_from.py --success 0.3

Both train `examples/humanoid_skills.yaml`, one after the other, until an evaluation in v5 physics shows the success asked for,
the mean over all eight skills; then they are stopped. The one from scratch gets twice the steps of the other at most.
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
CONFIG = "examples/humanoid_skills.yaml"
SHARED = {"evaluation.every": "500_000", "evaluation.episodes": "40", "video": "false"}
PARENT = "examples/pretrained/humanoid_walk"


def steps_to(
    success: float, at_most: int, parent: str | None, seed: int, threads: int | None, workspace: Path
) -> tuple[int | None, float]:
    """Env steps of the first evaluation with that success (None if there was none), and the best success seen.

    The run's own length, and with it its learning rates, is that of the example; it is stopped after `at_most` steps.
    """
    name = f"{'from_scratch' if parent is None else 'from_parent'}_{seed}"
    settings = SHARED | {"seed": str(seed), "init_from": parent or "null"}
    if threads:
        settings |= {"torch_threads": str(threads), "world.num_threads": str(threads)}
    command = [sys.executable, "train.py", "--name", name, "--config", CONFIG, "--workspace", str(workspace)]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    metrics, rows = workspace / name / "metrics.jsonl", []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(1)
            lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
            rows = [json.loads(line) for line in lines if line.endswith("\n")]
            if any(row.get("eval/success", 0.0) >= success or row["step"] > at_most for row in rows):
                process.send_signal(signal.SIGINT)
                break
    if not rows:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}, nothing was trained")
    scores = {row["step"]: row["eval/success"] for row in rows if "eval/success" in row}
    for step, score in scores.items():
        print(f"  {name} {step:>10,} steps  success {score:.0%}", flush=True)
    return next((step for step, score in scores.items() if score >= success), None), max([0.0, *scores.values()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--success", type=float, default=0.5)
    parser.add_argument("--at-most", type=int, default=8_000_000, help="env steps of the one from a parent")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, help="of torch and of physics; as many as there are cores without")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            steps, best = steps_to(arguments.success, arguments.at_most, PARENT, seed, arguments.threads, Path(folder))
            if steps is None:
                print(f"seed {seed}: from {PARENT} not in {arguments.at_most:,} steps (best {best:.0%})", flush=True)
                continue
            scratch, best = steps_to(arguments.success, 2 * steps, None, seed, arguments.threads, Path(folder))
            told = f"{scratch:,}" if scratch else f"more than {2 * steps:,} (best {best:.0%})"
            ratio = f"{steps / scratch:.2f}" if scratch else "less than 0.50"
            print(f"seed {seed}: {steps:,} steps from {PARENT}, {told} from scratch: {ratio} x (bar 0.6)", flush=True)


if __name__ == "__main__":
    main()
