"""PPO training steps/s: ours beside SB3 with SubprocVecEnv(8), the same network and hyperparameters, in one run.

    python bench/ppo.py

Each measurement is a process of its own and trains a few rollouts of 8,192 steps; the first is left out.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import in_turns
from in_turns import ROLLOUT

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
    from flexrl.motor_settings import MotorSettings

    policy_kwargs = {"net_arch": [256, 256], "activation_fn": "tanh"}
    settings = SETTINGS["ppo"](policy="MlpPolicy", n_steps=ROLLOUT // 64, policy_kwargs=policy_kwargs, **SHARED)
    world_settings = MotorSettings(task="v5", observation="v5", action="v5", physics=physics, num_envs=64)
    return in_turns.time_learner(settings, world_settings, iterations)


CONTESTANTS = {
    "SB3, SubprocVecEnv(8)": lambda iterations: peer(max(1, iterations // 4)),
    "ours, physics v5": lambda iterations: ours("v5", iterations),
    "ours, physics fast": lambda iterations: ours("fast", iterations),
}


def main() -> None:
    measured = in_turns.run(__file__, __doc__, CONTESTANTS, repeats=3)
    median = {name: statistics.median(values) for name, values in measured.items()}
    base = median["SB3, SubprocVecEnv(8)"]
    print(f"physics v5:   {median['ours, physics v5'] / base:.2f} x (bar 3)")
    print(f"physics fast: {median['ours, physics fast'] / base:.2f} x (bar 8)")


if __name__ == "__main__":
    main()
