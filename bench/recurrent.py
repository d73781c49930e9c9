"""Training steps/s of recurrent PPO beside PPO and beside sb3-contrib's recurrent PPO, in one run.

    python bench/recurrent.py

The humanoid's walk, 128 envs x 64 steps, minibatches of 2,048, 4 epochs; two layers of 128 for both, the first of them an
LSTM where there is one. Each measurement is a process of its own; its first rollout is left out.
"""

from __future__ import annotations

import statistics
from typing import Any

import in_turns

SHARED: dict[str, Any] = {"n_steps": 64, "batch_size": 2048, "n_epochs": 4}
PLAIN = {"net_arch": [128, 128], "activation_fn": "elu"}
RECURRENT = {"net_arch": [128], "activation_fn": "elu", "lstm_hidden_size": 128}


def measure(name: str, iterations: int, theirs: bool = False) -> float:
    """Env steps a second over `iterations` rollouts and updates."""
    import sb3_contrib

    from flexrl import learner_settings
    from flexrl.motor_settings import MotorSettings

    own = {"policy": "MlpPolicy", "policy_kwargs": PLAIN} if name == "ppo" else {"policy_kwargs": RECURRENT}
    if theirs:
        learner_settings.LEARNERS["recurrent_ppo"] = sb3_contrib.RecurrentPPO
    return in_turns.time_learner(learner_settings.SETTINGS[name](**own, **SHARED), MotorSettings(num_envs=128), iterations)


CONTESTANTS = {
    "ppo": lambda iterations: measure("ppo", iterations),
    "recurrent_ppo": lambda iterations: measure("recurrent_ppo", iterations),
    "sb3-contrib's RecurrentPPO": lambda iterations: measure("recurrent_ppo", max(1, iterations // 8), theirs=True),
}


def main() -> None:
    measured = in_turns.run(__file__, __doc__, CONTESTANTS, repeats=5)
    for peer, bar in (("ppo", "bar 0.5"), ("sb3-contrib's RecurrentPPO", "for comparison")):
        ratios = [ours / theirs for ours, theirs in zip(measured["recurrent_ppo"], measured[peer], strict=True)]
        print(f"recurrent_ppo against {peer}: {statistics.median(ratios):.2f} x, median of the turns ({bar})")


if __name__ == "__main__":
    main()
