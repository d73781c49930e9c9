"""Kill a training with SIGKILL at random moments, resume it, and compare its final weights with an undisturbed one's.

python bench/kill.py --trials 20
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "ppo": ["world.num_envs=32", "learner.n_steps=32", "learner.batch_size=256", "num_steps=30_000"],
    "recurrent_ppo": ["world.num_envs=16", "learner.n_steps=16", "learner.batch_size=64", "num_steps=4_000"],
    "sac": ["world.num_envs=8", "learner.buffer_size=400", "learner.learning_starts=80", "num_steps=800"],
}


def command(workspace: Path, name: str, learner: str, *more: str) -> list[str]:
    settings = [f"learner.name={learner}", *SMALL[learner], "evaluation.every=10_000", "evaluation.episodes=2"]
    settings += ["save_every=0.3", "video=false", "torch_threads=1", "world.num_threads=1"]
    flags = [flag for setting in settings for flag in ("--set", setting)] if "--resume" not in more else []
    return [sys.executable, str(ROOT / "train.py"), "--workspace", str(workspace), "--name", name, *flags, *more]


def final_hash(run: Path) -> str:
    """The content hash of the run's last state: weights, optimiser, normaliser, worlds, generators."""
    from flexrl import snapshots

    hashes = snapshots.check(run / "latest")
    return " ".join(hashes[name][:12] for name in ("policy.safetensors", "normaliser.safetensors", "training.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--learner", choices=SMALL, default="ppo")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which to kill")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        start = time.monotonic()
        subprocess.run(command(workspace, "whole", arguments.learner), check=True, capture_output=True, cwd=ROOT)
        seconds, expected = time.monotonic() - start, final_hash(workspace / "whole")
        print(f"undisturbed: {seconds:.1f} s, {expected}")
        identical = 0
        for trial in range(arguments.trials):
            name, kills = f"trial_{trial}", 0
            more: tuple[str, ...] = ()
            while True:
                process = subprocess.Popen(
                    command(workspace, name, arguments.learner, *more),
                    cwd=ROOT,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
                try:
                    # each run is killed once or twice, the first time early enough to be sure of it
                    wait = rng.uniform(0.15, 0.7) if kills == 0 else rng.uniform(0.3, 1.0)
                    _, err = process.communicate(timeout=wait * seconds if kills < 2 else None)
                    break
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                    kills += 1
                    if (workspace / name / "config.yaml").exists():
                        more = ("--resume",)
            if kills == 0:
                sys.exit(f"{name}: ended before it could be killed; the machine's speed changes too much, run it again")
            if process.returncode != 0:
                sys.exit(f"{name}: exit code {process.returncode}\n{err.decode()}")
            same = final_hash(workspace / name) == expected
            identical += same
            print(f"{name}: killed {kills} times, {'identical' if same else 'DIFFERENT'}", flush=True)
    print(f"{arguments.learner}: {identical} of {arguments.trials} identical")
    sys.exit(identical != arguments.trials)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
