"""The v5 return of finished runs: best/ of each, on seeds that no evaluation has used, in v5 physics, by the v5 reward.

python train.py --name humanoid_run_0 --config examples/humanoid_sprint.yaml --set seed=0   # and 1, and 2
python bench/returns.py workspace/humanoid_run_0 workspace/humanoid_run_1 workspace/humanoid_run_2 --bar 6757
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--bar", type=float)
    arguments = parser.parse_args()
    returns = []
    for run in arguments.runs:
        flags = ["--task", "v5", "--physics", "v5", "--episodes", str(arguments.episodes), "--json"]
        command = [sys.executable, str(ROOT / "play.py"), "--model", str(run / "best"), *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        summary = json.loads(done.stdout)["summary"]
        steps = json.loads((run / "best" / "snapshot.json").read_text())["num_steps"]
        low, high = summary["return"]["interval"]
        whole = summary["num_episodes"] - summary["num_terminated"]
        returns.append(summary["return"]["mean"])
        print(
            f"{run.name}: {returns[-1]:,.0f} (95 % interval {low:,.0f} to {high:,.0f}) at {steps:,} steps, "
            f"{whole} of {summary['num_episodes']} full episodes, {summary['mean_speed']['mean']:.2f} m/s",
            flush=True,
        )
    bar = f" (bar {arguments.bar:,.0f})" if arguments.bar else ""
    print(f"median {statistics.median(returns):,.0f}, lowest {min(returns):,.0f}{bar}")


if __name__ == "__main__":
    main()
