"""How a policy moves, in figures: what a look at the frames would call dragging, skating, shaking. v5 physics.

    python bench/gait.py examples/pretrained/humanoid_skills workspace/hour/joined/latest

For each skill on two feet, over the seconds 2 to 6 of eight episodes: how fast soles slide that are on the ground (median
m/s; a sole is there when it is lower than 2 cm), how high a foot is lifted in the middle of its swing (median cm), how far
the feet are apart along the heading at their farthest (median m), the share of actions within 1 % of their bounds, the mean
change of an action from one control step to the next (of a range of 2), the share of time with both feet in the air, how far
the torso goes up and down within a cycle (median cm), and how far it leans forward (mean degrees; backward is negative).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from flexrl.motor_world import MotorWorld
from flexrl.policies import Policy, load_policy, open_snapshot
from flexrl.rewards import STANDING_CLEARANCE
from flexrl.worlds import evaluation_settings, only_skill

EPISODES, BEGIN, END = 8, 2.0, 6.0  # s


def print_gaits(policy: Policy, world_settings, seed: int) -> None:
    """One line a skill."""
    widths = {"slides": 11, "lifts": 8, "strides": 9, "at bounds": 10, "changes": 8, "flies": 6, "bounces": 9, "leans": 6}
    print(" ".join([" " * 14, *(f"{name:>{width}}" for name, width in widths.items())]))
    for skill in MotorWorld(world_settings).batch.skills:
        if skill == "recover":
            continue
        world = MotorWorld(only_skill(world_settings, skill), seed)
        batch, obs = world.batch, world.reset()
        policy.reset(np.ones(world.num_envs, bool))
        sliding, clearances, strides, actions, heights, leans = [], [], [], [], [], []
        for step in range(round(END / batch.physics.dt)):
            action, feet = policy.act(obs), batch.feet.copy()
            obs, reward, done, _ = world.step(action)
            policy.feedback(action, reward)
            policy.reset(done)
            if step * batch.physics.dt < BEGIN:
                continue
            clearance = batch.feet[:, :, 2] - batch.physics.foot_radius  # (num_envs, 2) m
            speed = np.linalg.norm((batch.feet - feet)[:, :, :2], axis=2) / batch.physics.dt
            sliding.append(speed[(clearance < STANDING_CLEARANCE) & ~done[:, None]])
            clearances.append(clearance)
            w, x, y, z = batch.physics.qpos[:, 3:7].T
            heading = np.stack([1 - 2 * (y * y + z * z), 2 * (w * z + x * y)], axis=1)
            strides.append(np.sum((batch.feet[:, 0, :2] - batch.feet[:, 1, :2]) * heading, axis=1))
            actions.append(action)
            heights.append(batch.physics.qpos[:, 2].copy())
            leans.append(np.degrees(np.arcsin(np.clip(2 * (w * y - x * z), -1, 1))))
        lifts, apart, acted = np.array(clearances), np.abs(strides), np.clip(actions, -1, 1)
        cycle = round(0.8 / batch.physics.dt)
        pieces = [slice(i, i + cycle) for i in range(0, len(lifts) - cycle + 1, cycle)]
        lift, stride = (np.median([array[piece].max(axis=0) for piece in pieces]) for array in (lifts, apart))
        bounce = np.median([np.ptp(np.array(heights)[piece], axis=0) for piece in pieces])
        flies = np.mean((lifts > STANDING_CLEARANCE).all(axis=2))
        bound, change = np.mean(np.abs(acted) > 0.99), np.mean(np.abs(np.diff(acted, axis=0)))
        slides = np.median(np.concatenate(sliding))
        print(
            f"{skill:14} {slides:7.2f} m/s {100 * lift:5.1f} cm {stride:7.2f} m {bound:10.0%} {change:8.2f} {flies:6.0%} "
            f"{100 * bounce:6.1f} cm {np.mean(leans):6.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for path in args.models:
        snapshot = open_snapshot(path)
        print(path)
        print_gaits(load_policy(snapshot), evaluation_settings(snapshot.settings.world, EPISODES), args.seed)


if __name__ == "__main__":
    main()
