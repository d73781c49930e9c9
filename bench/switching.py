"""Commands that flip in the middle of an episode: who complies how fast, how closely, and how often it falls. v5 physics.

    python bench/switching.py examples/pretrained/humanoid_skills workspace/gcbc_humanoid/best workspace/dt_humanoid/best
    python bench/switching.py workspace/dt_humanoid/best --prompt words,command,place

All ordered pairs of the skills, changed after 4 s, as in bench/skills.py. `complies`: seconds from the change until forward
speed and yaw rate, averaged over the gait cycle (0.8 s) that begins then, are as near to what is asked for as the skill's
success allows (0.2 m/s, running 0.5; 0.3 rad/s); `by half`: until they are so over a cycle of which half is over, which still
counts what was before. Changes to and from getting up, which asks for no speed, are left out, as are those between skills that
ask for the same. RMSE: of the second average, from 1 s after the change on. The first model is the one that the others are
compared with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from skills import Changes, change_skills, print_pairs

from flexrl.motor_world import MotorWorld
from flexrl.policies import load_policy, open_snapshot
from flexrl.reference import SETTLING
from flexrl.worlds import evaluation_settings

CYCLE = 0.8  # s
NEAR_SPEED, NEAR_RUNNING, NEAR_YAW_RATE = 0.2, 0.5, 0.3  # m/s, m/s, rad/s


def smooth(error: np.ndarray, before: int, after: int) -> np.ndarray:
    """Means over each step, `before` steps and `after` more, (num_envs, steps, 3); over fewer at both ends."""
    sums = np.concatenate([np.zeros_like(error[:, :1]), np.cumsum(error, axis=1)], axis=1)
    steps = np.arange(error.shape[1])
    first, end = np.maximum(steps - before, 0), np.minimum(steps + after + 1, error.shape[1])
    return (sums[:, end] - sums[:, first]) / (end - first)[None, :, None]


def judge(changes: Changes, skills: list[str], dt: float) -> dict[str, float]:
    """Falls a switch, success, time to comply (s), RMSE of speed (m/s) and yaw rate (rad/s)."""
    half, running, lying = round(CYCLE / dt / 2), skills.index("run_forward"), skills.index("recover")
    near_speed = np.where(changes.after == running, NEAR_RUNNING, NEAR_SPEED)

    def nearness(error: np.ndarray) -> np.ndarray:
        return (np.abs(error[..., 0]) <= near_speed[:, None]) & (np.abs(error[..., 2]) <= NEAR_YAW_RATE)

    error = smooth(changes.error, half, half)
    upright = (changes.before != lying) & (changes.after != lying) & ~changes.fell
    begins_far = ~nearness(error)[:, : round(0.1 / dt)].all(axis=1)
    times = {}
    for name, near in (("complies", nearness(smooth(changes.error, 0, 2 * half))), ("by half", nearness(error))):
        first = np.where(near.any(axis=1), near.argmax(axis=1), near.shape[1])[upright & begins_far] * dt
        times |= {f"{name}, median": float(np.median(first)), f"{name}, 9 of 10": float(np.quantile(first, 0.9))}
    rmse = np.sqrt(np.mean(np.square(error[upright, round(SETTLING / dt) :]), axis=(0, 1)))
    return {
        "falls": float(changes.fell.mean()),
        "success": float(changes.success.mean()),
        **times,
        "rmse speed": float(rmse[0]),
        "rmse yaw rate": float(rmse[2]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--repeats", type=int, default=10, help="of each pair")
    parser.add_argument("--prompt", help="of transformers: the parts of the goal that they are shown")
    parser.add_argument("--phrasings", choices=["train", "held_out"], default="train", help="whose words are drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", action="store_true", help="print each pair's success")
    args = parser.parse_args()
    for path in args.models:
        snapshot = open_snapshot(path)
        prompt = args.prompt.split(",") if args.prompt and snapshot.about.get("sizes") else None  # of a transformer
        settings = evaluation_settings(snapshot.settings.world, 1, "v5").model_copy(update={"phrasings": args.phrasings})
        batch = MotorWorld(settings).batch
        changes = change_skills(load_policy(snapshot, prompt=prompt), settings, args.seed, args.repeats)
        if args.pairs:
            print_pairs(changes, batch.skills)
        told = ", ".join(f"{name} {value:.3g}" for name, value in judge(changes, batch.skills, batch.physics.dt).items())
        print(f"{path}: {told} ({len(changes.before)} changes)", flush=True)


if __name__ == "__main__":
    main()
