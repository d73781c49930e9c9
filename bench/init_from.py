"""Steps to the same success: a goal-conditioned training from a policy that never saw a goal, beside one from scratch.

    python bench/init_from.py --success 0.3 --seeds 0 1 2
    python bench/init_from.py --success 0.3 --parent examples/pretrained/humanoid_walk

Phase 1 is `examples/humanoid_pretrain.yaml`, trained first with the same seed, unless another parent is named. Then both train
`examples/humanoid_skills.yaml`, or what `--config` names, one after the other, until an evaluation in v5 physics shows the
success asked for, the mean over all eight skills; then they are stopped. The one from scratch gets no more steps than show
whether the bar is met: within the example's own, if the other is not given more than 0.6 of them.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import yaml
from trainings import ROOT, command_of

BAR = 0.6
EVALUATION = {"evaluation.every": "500_000", "evaluation.episodes": "40"}


def phase_1(shared: Mapping[str, object], workspace: Path) -> str:
    """What it learned."""
    name = f"phase_1_{shared['seed']}"
    command = command_of(name, "humanoid_pretrain", workspace, {**shared, "evaluation.every": "null"})
    if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(f"{' '.join(command)}: failed")
    return str(workspace / name / "latest")


def steps_to(
    config: str, success: float, at_most: int, parent: str | None, shared: Mapping[str, object], workspace: Path
) -> tuple[int | None, float]:
    """Env steps of the first evaluation with that success (None if there was none), and the best success seen.

    The run's own length, and with it its learning rates, is that of the example; it is stopped after `at_most` steps.
    """
    name = f"{'from_scratch' if parent is None else 'from_parent'}_{shared['seed']}"
    command = command_of(name, config, workspace, {**EVALUATION, **shared, "init_from": parent or "null"})
    metrics, rows = workspace / name / "metrics.jsonl", []
    log = workspace / f"{name}.log"
    with log.open("wb") as out, subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT) as process:
        while process.poll() is None:
            time.sleep(1)
            lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
            rows = [json.loads(line) for line in lines if line.endswith("\n")]
            if any(row.get("eval/success", 0.0) >= success or row["step"] > at_most for row in rows):
                process.send_signal(signal.SIGINT)
                break
        else:  # it ended by itself: all of the example's steps, or an error
            if process.returncode or not rows:
                raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{log.read_text()}")
    scores = {row["step"]: row["eval/success"] for row in rows if "eval/success" in row}
    for step, score in scores.items():
        print(f"  {name} {step:>10,} steps  success {score:.0%}", flush=True)
    return next((step for step, score in scores.items() if score >= success), None), max([0.0, *scores.values()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--success", type=float, default=0.5)
    parser.add_argument("--config", default="humanoid_skills", help="the example that is phase 2")
    parser.add_argument("--at-most", type=int, help="env steps of the one from a parent; 0.6 of the example's without")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--parent", help="a snapshot to go on from, in place of one trained by phase 1")
    parser.add_argument("--threads", type=int, help="of torch and of physics; as many as there are cores without")
    arguments = parser.parse_args()
    length = yaml.safe_load((ROOT / "examples" / f"{arguments.config}.yaml").read_text())["num_steps"]
    at_most = arguments.at_most or int(BAR * length)
    if at_most > BAR * length:
        parser.error(f"--at-most: expected at most {BAR} of the {length:,} steps that the example has, {int(BAR * length):,}")
    origin = arguments.parent or "phase 1"
    threads = {"torch_threads": arguments.threads, "world.num_threads": arguments.threads} if arguments.threads else {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            shared = {"seed": seed, "video": "false", **threads}
            parent = arguments.parent or phase_1(shared, Path(folder))
            steps, best = steps_to(arguments.config, arguments.success, at_most, parent, shared, Path(folder))
            if steps is None:
                print(f"seed {seed}: from {origin} not in {at_most:,} steps (best {best:.0%})", flush=True)
                continue
            enough = int(steps / BAR)
            scratch, best = steps_to(arguments.config, arguments.success, enough, None, shared, Path(folder))
            told = f"{scratch:,}" if scratch else f"more than {enough:,} (best {best:.0%})"
            ratio = f"{steps / scratch:.2f}" if scratch else f"less than {BAR}"
            print(f"seed {seed}: {steps:,} steps from {origin}, {told} from scratch: {ratio} x (bar {BAR})", flush=True)


if __name__ == "__main__":
    main()
