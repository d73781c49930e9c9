"""What one policy for all skills is worth, in v5 physics: success by skill, how closely it follows, and changes of skill.

    python bench/skills.py --model examples/pretrained/humanoid_skills
    python bench/skills.py --model workspace/dt_humanoid/best --prompt words,place --phrasings held_out --repeats 0

`switches`: all 56 ordered pairs of the eight skills, changed after 4 s, or as `--before` says (clocks of different frequencies
are in step after 4 s, and half a cycle apart after 6); no fall in the 5 s after, and the new skill's own measure of success,
begun anew 2 s after the change, at its end. Whatever was started counts, falls before the change too.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from flexrl.evaluation import run_episodes
from flexrl.motor_world import MotorWorld
from flexrl.policies import Policy, load_policy, open_snapshot
from flexrl.reference import SETTLING
from flexrl.rewards import FALLEN_HEIGHT
from flexrl.worlds import evaluation_settings, only_skill

ERRORS = ("rms_speed_error", "rms_yaw_rate_error")
GRACE, AFTER = 2.0, 5.0  # s


def success_by_skill(policy: Policy, world_settings, seed: int) -> None:
    """One line a skill: successes, falls, and for those that track a command their errors."""
    shares = []
    for skill in MotorWorld(world_settings).batch.skills:
        episodes = run_episodes(policy, MotorWorld(only_skill(world_settings, skill), seed), seed)
        if episodes[0].success is None:
            raise SystemExit(f"--model: {skill} has no measure of success, or its episodes are too short for one")
        success, fell = (np.mean([getattr(e, name) for e in episodes]) for name in ("success", "terminated"))
        errors = [np.sqrt(np.mean([e.measures[key] ** 2 for e in episodes])) for key in ERRORS]
        drift = np.mean([e.measures["drift"] for e in episodes])
        tracking = f"rms speed {errors[0]:.3f} m/s  yaw rate {errors[1]:.3f} rad/s  mean drift {drift:.2f} m"
        shares.append(success)
        print(f"{skill:14} success {success:4.0%}  falls {fell:4.0%}  {tracking}", flush=True)
    print(f"mean success {np.mean(shares):.1%}", flush=True)


@dataclass(frozen=True)
class Changes:
    """Changes of skill, one a simulation; arrays (num_envs, ...)."""

    before: np.ndarray  # skill (an index)
    after: np.ndarray
    fell: np.ndarray  # before the change or after
    success: np.ndarray  # the new skill's own measure, from GRACE after the change on, and no fall
    error: np.ndarray  # (num_envs, steps, 3): speed forward, to the left (m/s) and yaw rate (rad/s) less those asked for


def change_skills(policy: Policy, world_settings, seed: int, repeats: int, before_s: float = 4.0) -> Changes:
    """All ordered pairs of the world's skills, `repeats` times: `before_s` seconds of one, AFTER of the other."""
    asked = MotorWorld(world_settings).batch.asked
    num_skills = len(asked.skills)
    if world_settings.body != "humanoid" or num_skills < 2 or "recover" not in asked.skills or not all(asked.sampler.weights):
        raise SystemExit(
            "--model: only a humanoid's skills are changed, all with weight, recover among them; write --repeats 0"
        )
    num_envs = num_skills * (num_skills - 1) * repeats
    world = MotorWorld(world_settings.model_copy(update={"num_envs": num_envs, "sampling": "balanced"}), seed)
    batch, all_ids = world.batch, np.arange(num_envs)
    obs = world.reset()
    batch.asked.max_steps[:] = 10**9  # nothing but a fall ends what is changed; an episode of getting up is over after 6 s
    policy.reset(np.ones(num_envs, bool))
    before = batch.asked.skill.copy()
    after = (before + 1 + (all_ids // num_skills) % (num_skills - 1)) % num_skills
    assert np.array_equal(before, all_ids % num_skills)
    fell, lying = np.zeros(num_envs, bool), batch.skills.index("recover")
    errors = []

    def go(seconds: float) -> None:
        nonlocal obs, fell
        for _ in range(round(seconds / batch.physics.dt)):
            action, place, old_yaw = policy.act(obs), batch.position.copy(), yaw(batch.physics.qpos)
            obs, reward, done, infos = world.step(action)
            policy.feedback(action, reward)
            terminated = np.array([bool(info.get("terminated")) for info in infos])
            assert not (done & ~terminated & ~fell).any(), "an episode ended by time"
            fell |= done & terminated
            fell |= (before != lying) & (batch.physics.qpos[:, 2] < FALLEN_HEIGHT)  # what begins lying ends by no fall
            policy.reset(done)
            new_yaw = yaw(batch.physics.qpos)
            (x, y), cos, sin = (batch.position - place).T, np.cos(new_yaw), np.sin(new_yaw)
            turned = (new_yaw - old_yaw + np.pi) % (2 * np.pi) - np.pi
            moved = np.stack([cos * x + sin * y, cos * y - sin * x, turned], axis=1)
            errors.append(moved / batch.physics.dt - batch.asked.command)
        obs = batch.observe(action)

    go(before_s)
    errors.clear()
    for i in all_ids:
        batch.begin_skill(int(i), int(after[i]))
    obs = batch.observe(batch.previous_action)
    batch.asked.max_steps[:] = 10**9
    go(GRACE)
    batch.measures.begin(all_ids, batch.position)
    batch.measures.since_command[:] = SETTLING
    go(AFTER - GRACE)
    success = batch.success(fell) & ~fell
    return Changes(before, after, fell, success, np.stack(errors, axis=1))


def yaw(qpos: np.ndarray) -> np.ndarray:
    """Where bodies (num_envs, nq) look, rad from the x axis."""
    w, x, y, z = qpos[:, 3:7].T
    return np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def print_pairs(changes: Changes, skills: list[str]) -> None:
    """A matrix of successes, before by after, and the shares without a fall."""
    pairs = np.full((len(skills), len(skills)), np.nan)
    for a in range(len(skills)):
        for b in range(len(skills)):
            if a != b:
                pairs[a, b] = changes.success[(changes.before == a) & (changes.after == b)].mean()
    shares = f"{np.mean(~changes.fell):.1%} without a fall, {changes.success.mean():.1%} with the new skill shown"
    print(f"switches: {shares}; by pair (rows before):")
    print(" " * 15 + " ".join(f"{name[:9]:>9}" for name in skills))
    for name, row in zip(skills, pairs, strict=True):
        print(f"{name:14} " + " ".join(f"{'':>9}" if np.isnan(share) else f"{share:9.0%}" for share in row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=100, help="of each skill; 0: skip")
    parser.add_argument("--repeats", type=int, default=10, help="of each pair of skills; 0: skip")
    parser.add_argument("--before", type=float, nargs="+", default=[4.0], help="s until the skill changes; one run for each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--physics", choices=["v5", "fast"], default="v5", help="fast: what it was trained in")
    parser.add_argument("--prompt", help="of a transformer: the parts of the goal that it is shown, such as words,command")
    parser.add_argument("--phrasings", choices=["train", "held_out"], default="train", help="whose words are drawn")
    args = parser.parse_args()
    snapshot = open_snapshot(args.model)
    world_settings = evaluation_settings(snapshot.settings.world, max(1, args.episodes), args.physics)
    world_settings = world_settings.model_copy(update={"phrasings": args.phrasings})
    policy = load_policy(snapshot, prompt=args.prompt.split(",") if args.prompt else None)
    if args.episodes:
        success_by_skill(policy, world_settings, args.seed)
    for before in args.before if args.repeats else []:
        changes = change_skills(policy, world_settings, args.seed, args.repeats, before)
        print(f"changes after {before:g} s:")
        print_pairs(changes, MotorWorld(world_settings).batch.skills)


if __name__ == "__main__":
    main()
