"""Does memory pay where velocities are hidden? PPO and recurrent PPO keep a commanded speed by postures alone, three seeds.

    python bench/memory.py --workspace workspace

Trains `examples/half_cheetah_positions.yaml` and `examples/half_cheetah_positions_ppo.yaml`, whose layers are of the same size,
one run after the other (one that was interrupted goes on, one that is finished stays), and prints the last evaluation's return
and success of each (mean speed within 0.5 m/s of the asked one). The curves:

    python report.py curves positions_ppo_0 positions_ppo_1 positions_ppo_2 positions_recurrent_ppo_0 \\
        positions_recurrent_ppo_1 positions_recurrent_ppo_2 --metric eval/success --out docs/memory.png
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = {"recurrent_ppo": "half_cheetah_positions.yaml", "ppo": "half_cheetah_positions_ppo.yaml"}


def last_evaluation(learner: str, seed: int, steps: int, threads: int | None, workspace: Path) -> tuple[float, float]:
    """Trains one run to its end; its last evaluation's mean return and share of successes."""
    name = f"positions_{learner}_{seed}"
    settings = [f"seed={seed}", f"num_steps={steps}", "video=false"]
    if threads:
        settings += [f"torch_threads={threads}", f"world.num_threads={threads}"]
    command = [sys.executable, "train.py", "--name", name, "--workspace", str(workspace)]
    if (workspace / name).exists():
        command += ["--resume"]
    else:
        command += ["--config", f"examples/{EXAMPLES[learner]}"]
        command += [part for setting in settings for part in ("--set", setting)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (workspace / name / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "eval/return" in row][-1]
    return last["eval/return"], last["eval/success"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=ROOT / "workspace")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, help="of torch and of physics; as many as there are cores without")
    arguments = parser.parse_args()
    arguments.workspace = arguments.workspace.resolve()
    found: dict[str, list[tuple[float, float]]] = {learner: [] for learner in EXAMPLES}
    for seed in arguments.seeds:
        for learner in EXAMPLES:
            found[learner].append(last_evaluation(learner, seed, arguments.steps, arguments.threads, arguments.workspace))
            score, success = found[learner][-1]
            print(f"{learner:14s} seed {seed}: return {score:7,.0f}, success {success:.0%}", flush=True)
    for learner, values in found.items():
        score, success = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{learner:14s} median of {len(values)}: return {score:7,.0f}, success {success:.0%}, {arguments.steps:,} steps")


if __name__ == "__main__":
    main()
