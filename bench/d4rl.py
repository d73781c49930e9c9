"""D4RL's HalfCheetah rows with our own learners: Decision Transformer, behaviour cloning, cloning of the best tenth.

    python train.py --name half_cheetah_v5 --config examples/half_cheetah_v5.yaml --set snapshot_every=125_000
    for age in medium replay expert; do
        python collect.py --name half_cheetah_$age --config examples/collect_half_cheetah_$age.yaml
    done
    python bench/d4rl.py --updates 10_000 --seeds 0 1 2

Trains each of the four (`DT, no actions` has no tokens of what was done before) on each of medium, medium-replay and
medium-expert (a run that is finished is not repeated) and plays the last snapshot, not the best, for 100 episodes. A DT is
asked for what `--target-return auto` is, and once more for a tenth above the best return of its data. Scores are D4RL's: 0 is
a random policy (-280), 100 its expert (12,135); in brackets the same with our own expert as 100. The datasets' own means stand
beside them.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from flexrl import snapshots
from flexrl.dataset import open_dataset

ROOT = Path(__file__).resolve().parent.parent
RANDOM, EXPERT = -280.178953, 12135.0  # d4rl/infos.py
DATASETS = {"medium": ["medium"], "medium-replay": ["replay"], "medium-expert": ["medium", "expert"]}
ABOVE = 1.1  # of the data's best return: what the paper asks for (6,000 of the half-cheetah, whose data reach 5,300)
METHODS = {
    "DT": ["--config", "examples/dt_half_cheetah.yaml"],
    "DT, no actions": ["--config", "examples/dt_half_cheetah.yaml", "--set", "model.actions=false"],
    "BC": ["--config", "examples/bc_half_cheetah.yaml"],
    "10 % BC": ["--config", "examples/bc_half_cheetah.yaml", "--set", "top=0.1"],
}


def script(*arguments: str) -> str:
    """What a script of ours prints."""
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def score(workspace: Path, dataset: str, method: str, seed: int, target: str, arguments: argparse.Namespace) -> float:
    """Mean v5 return of 100 episodes, asked for `target`."""
    of_method, short = re.sub("[^a-z0-9]+", "_", method.lower()), arguments.precision.replace("float", "")
    name = f"d4rl_{of_method}_{dataset}_{arguments.updates}_{short}_{seed}"
    flags = ["--name", name, "--workspace", str(workspace), *METHODS[method], "--set", f"seed={seed}"]
    for part in DATASETS[dataset]:
        flags += ["--dataset", str(workspace / f"half_cheetah_{part}")]
    settings = {"num_updates": arguments.updates, "torch_threads": arguments.threads, "precision": arguments.precision}
    flags += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    about = workspace / name / "latest" / "snapshot.json"
    finished = snapshots.exists(about.parent) and json.loads(about.read_text())["num_steps"] == arguments.updates
    if not finished:
        script("train_dt.py", *flags, *(["--resume"] if snapshots.exists(about.parent) else []))
    played = script("play.py", "--model", str(about.parent), "--episodes", "100", "--json", "--target-return", target)
    return float(json.loads(played)["summary"]["return"]["mean"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    workspace = arguments.workspace.resolve()
    tables = {part: open_dataset(workspace / f"half_cheetah_{part}").episodes for part in ("medium", "replay", "expert")}
    expert = float(tables["expert"].episode_return[~tables["expert"].cut].mean())

    def told(value: float) -> str:
        return f"{100 * (value - RANDOM) / (EXPERT - RANDOM):.1f} ({100 * (value - RANDOM) / (expert - RANDOM):.0f})"

    print(f"our expert, noise included: {expert:,.0f}; {arguments.updates:,} updates, seeds {arguments.seeds}")
    for dataset, parts in DATASETS.items():
        returns = np.concatenate([tables[part].episode_return[~tables[part].cut] for part in parts])
        best = np.sort(returns)[-max(1, len(returns) // 10) :].mean()
        print(f"{dataset:14} data {told(returns.mean())}, its best tenth {told(best)}", flush=True)
        for method in arguments.methods:
            for target in ["auto", f"{ABOVE * returns.max():.0f}"] if method.startswith("DT") else ["auto"]:
                values = [score(workspace, dataset, method, seed, target, arguments) for seed in arguments.seeds]
                each = ", ".join(told(value) for value in values) if len(values) > 1 else ""
                print(f"{dataset:14} {method:14} {target:6} {told(statistics.mean(values))}  {each}".rstrip(), flush=True)


if __name__ == "__main__":
    main()
