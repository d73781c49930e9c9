"""PPO training steps/s: ours beside SB3 with SubprocVecEnv(8), the same network and hyperparameters, in one run.

    python bench/ppo.py

Each measurement is a process of its own and trains a few rollouts of 8,192 steps; the first is left out.
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
ROLLOUT = 8192  # steps
SHARED: dict[str, Any] = {"batch_size": 256, "n_epochs": 5, "learning_rate": 3e-4, "gamma": 0.99, "gae_lambda": 0.95}


def peer(iterations: int) -> float:
    """SB3's own loop on Gymnasium's Humanoid-v5 in 8 processes, with VecNormalize."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

    class Clock(BaseCallback):
        starts: list[float] = []

        def _on_rollout_start(self) -> None:
            self.starts.append(time.perf_counter())

        def _on_step(self) -> bool:
            return True

    world = VecNormalize(make_vec_env("Humanoid-v5", 8, vec_env_cls=SubprocVecEnv))
    policy_kwargs = {"net_arch": [256, 256]}
    model = PPO("MlpPolicy", world, n_steps=ROLLOUT // 8, policy_kwargs=policy_kwargs, device="cpu", **SHARED)
    clock = Clock()
    model.learn(ROLLOUT * (iterations + 1), callback=clock)
    end = time.perf_counter()
    world.close()
    return ROLLOUT * iterations / (end - clock.starts[1])


def ours(physics: str, iterations: int) -> float:
    """Our world and loop, with Gymnasium's observation, reward and action range."""
    from flexrl.learner_settings import SETTINGS
    from flexrl.learners import make_learner
    from flexrl.motor_settings import MotorSettings
    from flexrl.worlds import make_world, normalise

    settings = SETTINGS["ppo"](
        policy="MlpPolicy", n_steps=ROLLOUT // 64, policy_kwargs={"net_arch": [256, 256], "activation_fn": "tanh"}, **SHARED
    )
    world_settings = MotorSettings(task="v5", observation="v5", action="v5", physics=physics, num_envs=64)
    world = normalise(make_world(world_settings), True, True, 0.99)
    learner = make_learner(settings, world, num_steps=ROLLOUT * (iterations + 1), seed=0, device="cpu")
    learner.improve()
    start = time.perf_counter()
    for _ in range(iterations):
        learner.improve()
    return ROLLOUT * iterations / (time.perf_counter() - start)


CONTESTANTS = {
    "SB3, SubprocVecEnv(8)": lambda iterations: peer(max(1, iterations // 4)),
    "ours, physics v5": lambda iterations: ours("v5", iterations),
    "ours, physics fast": lambda iterations: ours("fast", iterations),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
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
    median = {name: statistics.median(values) for name, values in measured.items()}
    for name, value in median.items():
        print(f"{name:24s} {value:7,.0f} steps/s   ({', '.join(f'{v:,.0f}' for v in measured[name])})")
    base = median["SB3, SubprocVecEnv(8)"]
    print(f"physics v5:   {median['ours, physics v5'] / base:.2f} x (bar 3)")
    print(f"physics fast: {median['ours, physics fast'] / base:.2f} x (bar 8)")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
