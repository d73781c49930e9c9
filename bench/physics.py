"""Random-action env steps/s of Humanoid-v5: our batched world beside its peers, in one run.

    python bench/physics.py

Peers: Stable-Baselines3's SubprocVecEnv and Gymnasium's AsyncVectorEnv with 2, 4 and 8 processes, and plain C-speed loops
(`mj_step(nstep=5)` on one MjData a thread, nothing observed). All take the same kind of actions and restart when they fall.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from stable_baselines3.common.vec_env import SubprocVecEnv

from flexrl.motor_world import MotorSettings, MotorWorld
from flexrl.physics import BODIES, load_model

NUM_THREADS = os.cpu_count() or 1
ID = "Humanoid-v5"


def time_steps(step: Callable[[], int], seconds: float) -> float:
    """Env steps a second of `step`, which returns how many it made."""
    for _ in range(3):
        step()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        count += step()
    return count / (time.perf_counter() - start)


def ours(observation: str, physics: str, seconds: float) -> float:
    settings = MotorSettings(task="v5", physics=physics, observation=observation, action="v5", num_envs=64)
    world, rng = MotorWorld(settings), np.random.default_rng(0)
    world.reset()

    def step() -> int:
        world.step(rng.uniform(-0.4, 0.4, (64, 17)).astype(np.float32))
        return 64

    return time_steps(step, seconds)


def vector_env(kind: str, num: int, seconds: float) -> float:
    """A peer with `num` processes."""
    if kind == "SubprocVecEnv":
        world: Any = SubprocVecEnv([lambda: gymnasium.make(ID)] * num)
    else:
        world = gymnasium.make_vec(ID, num, vectorization_mode="async")
    rng = np.random.default_rng(0)
    world.reset()

    def step() -> int:
        world.step(rng.uniform(-0.4, 0.4, (num, 17)).astype(np.float32))
        return num

    speed = time_steps(step, seconds)
    world.close()
    return speed


def c_loops(num_threads: int, seconds: float) -> float:
    """The sum over `num_threads` loops that run at once; one is the fastest that one MjData can be stepped from Python."""
    model = load_model(BODIES["humanoid"])
    speeds = [0.0] * num_threads

    def loop(thread: int) -> None:
        data, rng = mujoco.MjData(model), np.random.default_rng(thread)
        actions = rng.uniform(-0.4, 0.4, (1000, 17))
        numbers = iter(range(10**9))

        def step() -> int:
            data.ctrl[:] = actions[next(numbers) % 1000]
            mujoco.mj_step(model, data, nstep=5)
            if not 1.0 < data.qpos[2] < 2.0:
                mujoco.mj_resetData(model, data)
            return 1

        speeds[thread] = time_steps(step, seconds)

    threads = [threading.Thread(target=loop, args=(i,)) for i in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(speeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    arguments = parser.parse_args()
    contestants: dict[str, Callable[[float], float]] = {
        "ours, v5 physics and observation": lambda s: ours("v5", "v5", s),
        "ours, v5 physics, proprio": lambda s: ours("proprio", "v5", s),
        "ours, fast physics, proprio": lambda s: ours("proprio", "fast", s),
        "one C-speed loop": lambda s: c_loops(1, s),
        f"{NUM_THREADS} C-speed loops at once": lambda s: c_loops(NUM_THREADS, s),
    }
    for num in (2, 4, 8):
        contestants[f"SB3 SubprocVecEnv({num})"] = lambda s, num=num: vector_env("SubprocVecEnv", num, s)
        contestants[f"Gymnasium AsyncVectorEnv({num})"] = lambda s, num=num: vector_env("AsyncVectorEnv", num, s)
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.repeats):  # in turns, so that a noisy minute hits all alike
        for name, measure in contestants.items():
            measured[name].append(measure(arguments.seconds))
    median = {name: statistics.median(values) for name, values in measured.items()}
    for name, value in median.items():
        print(f"{name:36s} {value:8,.0f} steps/s   ({', '.join(f'{v:,.0f}' for v in measured[name])})")
    peer = max(value for name, value in median.items() if name.startswith(("SB3", "Gymnasium")))
    full, lean = median["ours, v5 physics and observation"], median["ours, v5 physics, proprio"]
    print(f"v5 with Gymnasium's observation / best vector env: {full / peer:.2f} (bar 2.5); proprio {lean / peer:.2f}")
    ideal = NUM_THREADS * median["one C-speed loop"]
    at_once = median[f"{NUM_THREADS} C-speed loops at once"]
    print(f"v5, proprio / ({NUM_THREADS} x one C-speed loop): {lean / ideal:.2f} (bar 0.90)")
    print(f"v5, proprio / {NUM_THREADS} C-speed loops at once: {lean / at_once:.2f}")


if __name__ == "__main__":
    main()
