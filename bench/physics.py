"""Random-action env steps/s of Humanoid-v5: our batched world beside its peers, in one run.

    python bench/physics.py

Peers: Stable-Baselines3's SubprocVecEnv and Gymnasium's AsyncVectorEnv with 2, 4 and 8 processes, and plain C-speed loops
(`mj_step(nstep=5)` on one MjData a thread, nothing observed). All take the same kind of actions and restart when they fall.

They run in short turns, one after the other, and each ratio is the median of the turns' ratios: a noisy minute hits all alike.
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

from flexrl.motor_settings import MotorSettings
from flexrl.motor_world import MotorWorld
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


def ours(settings: MotorSettings, seconds: float) -> float:
    world, rng = MotorWorld(settings), np.random.default_rng(0)
    world.reset()
    limit = world.action_space.high[0]

    def step() -> int:
        world.step(rng.uniform(-limit, limit, (64, 17)).astype(np.float32))
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
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement in a turn")
    arguments = parser.parse_args()
    v5 = MotorSettings(task="v5", physics="v5", observation="v5", action="v5", num_envs=64)
    contestants: dict[str, Callable[[float], float]] = {
        "one C-speed loop": lambda s: c_loops(1, s),
        "ours, v5 physics, walk_forward": lambda s: ours(MotorSettings(physics="v5", num_envs=64), s),
        f"{NUM_THREADS} C-speed loops at once": lambda s: c_loops(NUM_THREADS, s),
        "ours, v5 everything": lambda s: ours(v5, s),
        "ours, fast physics, walk_forward": lambda s: ours(MotorSettings(num_envs=64), s),
    }
    for num in (2, 4, 8):
        contestants[f"SB3 SubprocVecEnv({num})"] = lambda s, num=num: vector_env("SubprocVecEnv", num, s)
        contestants[f"Gymnasium AsyncVectorEnv({num})"] = lambda s, num=num: vector_env("AsyncVectorEnv", num, s)
    turns = [{name: measure(arguments.seconds) for name, measure in contestants.items()} for _ in range(arguments.turns)]
    for name in contestants:
        values = [turn[name] for turn in turns]
        print(f"{name:34s} {statistics.median(values):8,.0f} steps/s   ({', '.join(f'{v:,.0f}' for v in values)})")
    peers = [name for name in contestants if name.startswith(("SB3", "Gymnasium"))]
    best = max(peers, key=lambda name: statistics.median(turn[name] for turn in turns))

    def ratio(name: str, other: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(turn[name] / other(turn) for turn in turns)

    def loops(turn: dict[str, float]) -> float:
        return NUM_THREADS * turn["one C-speed loop"]

    def at_once(turn: dict[str, float]) -> float:
        return turn[f"{NUM_THREADS} C-speed loops at once"]

    full, lean = "ours, v5 everything", "ours, v5 physics, walk_forward"
    rivals: list[tuple[str, str, Callable[[dict[str, float]], float]]] = [
        (best, "bar 2.5", lambda turn: turn[best]),
        (f"{NUM_THREADS} x one C-speed loop", "bar 0.90", loops),
        (f"{NUM_THREADS} C-speed loops at once", "for comparison", at_once),
    ]
    for rival, bar, other in rivals:
        print(f"against {rival}: v5 everything {ratio(full, other):.2f}, walk_forward {ratio(lean, other):.2f} ({bar})")


if __name__ == "__main__":
    main()
