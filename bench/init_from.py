"""Steps to the same success: a goal-conditioned training from a policy that never saw a goal, beside one from scratch.

    python bench/init_from.py --success 0.3 --seeds 0 1 2
    python bench/init_from.py --success 0.3 --parent examples/pretrained/humanoid_walk

Phase 1 is `examples/humanoid_pretrain.yaml`, trained first with the same seed, unless another parent is named. Then both train
`examples/humanoid_skills.yaml`, one after the other, until an evaluation in v5 physics shows the success asked for, the mean
over all eight skills; then they are stopped. The one from scratch gets no more steps than show whether the bar is met.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BAR = 0.6
SHARED = {"evaluation.every": "500_000", "evaluation.episodes": "40", "video": "false"}


def command_of(name: str, config: str, workspace: Path, threads: int | None, settings: Mapping[str, object]) -> list[str]:
    """A training of examples/<config>.yaml."""
    if threads:
        settings = {**settings, "torch_threads": threads, "world.num_threads": threads}
    command = [sys.executable, "train.py", "--name", name, "--config", f"examples/{config}.yaml", "--workspace", str(workspace)]
    return command + [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def phase_1(seed: int, threads: int | None, workspace: Path) -> str:
    """What it learned."""
    settings = {"seed": seed, "video": "false", "evaluation.every": "null"}
    subprocess.run(
        command_of(f"phase_1_{seed}", "humanoid_pretrain", workspace, threads, settings),
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return str(workspace / f"phase_1_{seed}" / "latest")


def steps_to(
    success: float, at_most: int, parent: str | None, seed: int, threads: int | None, workspace: Path
) -> tuple[int | None, float]:
    """Env steps of the first evaluation with that success (None if there was none), and the best success seen.

    The run's own length, and with it its learning rates, is that of the example; it is stopped after `at_most` steps.
    """
    name = f"{'from_scratch' if parent is None else 'from_parent'}_{seed}"
    settings = {**SHARED, "seed": seed, "init_from": parent or "null"}
    command = command_of(name, "humanoid_skills", workspace, threads, settings)
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
    parser.add_argument("--parent", help="a snapshot to go on from, in place of one trained by phase 1")
    parser.add_argument("--threads", type=int, help="of torch and of physics; as many as there are cores without")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            parent = arguments.parent or phase_1(seed, arguments.threads, Path(folder))
            steps, best = steps_to(arguments.success, arguments.at_most, parent, seed, arguments.threads, Path(folder))
            if steps is None:
                print(f"seed {seed}: from phase 1 not in {arguments.at_most:,} steps (best {best:.0%})", flush=True)
                continue
            enough = int(steps / BAR)
            scratch, best = steps_to(arguments.success, enough, None, seed, arguments.threads, Path(folder))
            told = f"{scratch:,}" if scratch else f"more than {enough:,} (best {best:.0%})"
            ratio = f"{steps / scratch:.2f}" if scratch else f"less than {BAR}"
            print(f"seed {seed}: {steps:,} steps from phase 1, {told} from scratch: {ratio} x (bar {BAR})", flush=True)


if __name__ == "__main__":
    main()
