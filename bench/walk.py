"""Wall clock from the command to a humanoid that walks, judged in Gymnasium's own Humanoid-v5.

    python bench/walk.py --seeds 0 1 2

Runs the command of the README, then plays best/ for 20 episodes of 1,000 steps in `gymnasium.make("Humanoid-v5")`.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def play_in_gymnasium(folder: Path, num_episodes: int) -> list[tuple[int, float, float]]:
    """Length, mean speed (m/s) and v5 return of each episode; our code only makes the observation from qpos and qvel."""
    import gymnasium

    from flexrl.motor_batch import MotorBatch
    from flexrl.policies import load_policy, open_snapshot

    snapshot = open_snapshot(folder)
    policy = load_policy(snapshot)
    batch = MotorBatch(snapshot.settings.world.model_copy(update={"num_envs": 1, "physics": "v5"}))
    env = gymnasium.make("Humanoid-v5")
    episodes = []
    for seed in range(num_episodes):
        env.reset(seed=10_000 + seed)
        policy.reset(np.ones(1, bool))
        data, action = env.unwrapped.data, np.zeros((1, 17), np.float32)
        length, total, distance, done = 0, 0.0, 0.0, False
        while not done:
            batch.physics.qpos[0], batch.physics.qvel[0] = data.qpos, data.qvel
            batch.num_steps[0] = length
            action = policy.act(batch.observe(action))
            _, reward, terminated, truncated, info = env.step(action[0] * env.action_space.high)
            length, total, distance = length + 1, total + float(reward), distance + info["x_velocity"]
            done = terminated or truncated
        episodes.append((length, distance / length, total))
    return episodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", default="examples/humanoid_walk_forward.yaml")
    parser.add_argument("--workspace", type=Path, help="keep the runs here, as walk_<seed>")
    parser.add_argument("--play", type=Path, help="judge this snapshot instead of training one")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    minutes = []
    for seed in arguments.seeds if arguments.play is None else [0]:
        with tempfile.TemporaryDirectory() as temporary:
            workspace, name = str(arguments.workspace or temporary), f"walk_{seed}"
            best = arguments.play
            if best is None:
                command = [sys.executable, "train.py", "--name", name, "--workspace", workspace, "--config", arguments.config]
                start = time.monotonic()
                subprocess.run([*command, "--set", f"seed={seed}"], cwd=ROOT, check=True)
                minutes.append((time.monotonic() - start) / 60)
                best = Path(workspace) / name / "best"
                peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
                print(f"seed {seed}: {minutes[-1]:.1f} min from command to exit, peak memory {peak:.2f} GB")
            episodes = play_in_gymnasium(best, 20)
            full = sum(length == 1000 for length, _, _ in episodes)
            speed, total = (np.mean([episode[i] for episode in episodes]) for i in (1, 2))
            print(f"Gymnasium's Humanoid-v5: {full} of 20 full episodes, {speed:.2f} m/s, v5 return {total:,.0f}", flush=True)
    if minutes:
        print(f"median {statistics.median(minutes):.1f} min (bar 10, aim 5)")


if __name__ == "__main__":
    main()
