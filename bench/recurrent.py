"""Training steps/s of recurrent PPO beside PPO and beside sb3-contrib's recurrent PPO, in one run.

    python bench/recurrent.py

The humanoid's walk, 128 envs x 64 steps, minibatches of 2,048, 4 epochs; two layers of 128 for both, the first of them an
LSTM where there is one. Each measurement is a process of its own; its first rollout is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED: dict[str, Any] = {"n_steps": 64, "batch_size": 2048, "n_epochs": 4}
PLAIN = {"net_arch": [128, 128], "activation_fn": "elu"}
RECURRENT = {"net_arch": [128], "activation_fn": "elu", "lstm_hidden_size": 128}


def measure(name: str, iterations: int, theirs: bool = False) -> float:
    """Env steps a second over `iterations` rollouts and updates."""
    import sb3_contrib

    from flexrl import learner_settings
    from flexrl.learners import make_learner
    from flexrl.motor_settings import MotorSettings
    from flexrl.worlds import make_world, normalise

    policy_kwargs = PLAIN if name == "ppo" else RECURRENT
    policy = {"policy": "MlpPolicy"} if name == "ppo" else {}
    settings = learner_settings.SETTINGS[name](policy_kwargs=policy_kwargs, **SHARED, **policy)
    world = normalise(make_world(MotorSettings(num_envs=128)), True, True, 0.99)
    if theirs:
        learner_settings.LEARNERS["recurrent_ppo"] = sb3_contrib.RecurrentPPO
    learner = make_learner(settings, world, num_steps=8192 * (iterations + 1), seed=0, device="cpu")
    learner.improve()
    start = time.perf_counter()
    for _ in range(iterations):
        learner.improve()
    return 8192 * iterations / (time.perf_counter() - start)


CONTESTANTS = {
    "ppo": lambda iterations: measure("ppo", iterations),
    "recurrent_ppo": lambda iterations: measure("recurrent_ppo", iterations),
    "sb3-contrib's RecurrentPPO": lambda iterations: measure("recurrent_ppo", max(1, iterations // 8), theirs=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=8, help="rollouts of 8,192 steps in each measurement of ours")
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(CONTESTANTS[arguments.only](arguments.iterations)))
        return
    measured: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(arguments.repeats):
        for name in CONTESTANTS:
            command = [sys.executable, __file__, "--only", name, "--iterations", str(arguments.iterations)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            measured[name].append(float(done.stdout.splitlines()[-1]))
    for name, values in measured.items():
        print(f"{name:28s} {statistics.median(values):7,.0f} steps/s   ({', '.join(f'{v:,.0f}' for v in values)})")
    for peer, bar in (("ppo", "bar 0.5"), ("sb3-contrib's RecurrentPPO", "for comparison")):
        ratios = [ours / theirs for ours, theirs in zip(measured["recurrent_ppo"], measured[peer], strict=True)]
        print(f"recurrent_ppo against {peer}: {statistics.median(ratios):.2f} x, median of the turns ({bar})")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
