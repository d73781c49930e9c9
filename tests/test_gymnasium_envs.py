"""The registered environments pass Gymnasium's and SB3's own checks, and are the world that trains."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import flexrl.gymnasium_envs as envs
from flexrl.motor_settings import MotorSettings
from flexrl.motor_world import MotorWorld

NAMES = ["Humanoid-v0", "HumanoidSkills-v0", "HalfCheetah-v0", "HalfCheetahSkills-v0"]


@pytest.mark.parametrize("name", [f"flexrl/{name}" for name in NAMES])
def test_the_checkers_of_gymnasium_and_sb3_have_nothing_to_say(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(name).unwrapped, skip_render_check=True)
        check_env_sb3(gymnasium.make(name).unwrapped)


def test_env_and_world_are_the_same_code() -> None:
    env = gymnasium.make("flexrl/Humanoid-v0", physics="v5")
    world = MotorWorld(MotorSettings(num_envs=1, physics="v5"), seed=4)
    np.testing.assert_array_equal(env.reset(seed=4)[0], world.reset()[0])
    for action in np.random.default_rng(0).uniform(-1, 1, (10, 17)).astype(np.float32):
        obs, reward, terminated, truncated, info = env.step(action)
        theirs = world.step(action[None])
        np.testing.assert_array_equal(obs, theirs[0][0])
        assert np.float32(reward) == theirs[1][0]
        assert not terminated
        assert not truncated
        assert sum(value for key, value in info.items() if key.startswith("reward/")) == pytest.approx(reward)


def test_infos_tell_when_another_command_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexrl.motor_settings.SETTLING", 0.0)  # commands that change more often than can be followed
    env = gymnasium.make("flexrl/Humanoid-v0", task="follow", goal=["command"], tasks={"follow": {"every": (0.03, 0.03)}})
    _, info = env.reset(seed=0)
    assert info["skill"] == "follow"
    before, changes = info["command"], []
    for _ in range(6):  # 90 ms
        *_, info = env.step(np.zeros(17, np.float32))
        assert info["goal_changed"] == (not np.array_equal(info["command"], before))
        before = info["command"]
        changes.append(info["goal_changed"])
    assert sum(changes) == 3
    env.close()


def test_plain_sb3_trains_on_them_as_readme_says() -> None:
    root = Path(__file__).resolve().parent.parent
    _, _, rest = (root / "README.md").read_text(encoding="utf-8").partition("The same bodies are Gymnasium environments")
    snippet = rest.partition("```python\n")[2].partition("```")[0]
    assert "learn(10_000)" in snippet
    short = snippet.replace("learn(10_000)", "learn(1)")  # one rollout, of 2,048 steps
    done = subprocess.run([sys.executable, "-c", short], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "total_timesteps" in done.stdout
    assert "ep_rew_mean" in done.stdout


def test_it_renders() -> None:
    env = gymnasium.make("flexrl/Humanoid-v0", render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    assert isinstance(frame, np.ndarray)
    assert frame.shape == (360, 480, 3)
    assert frame.std() > 5
    env.close()


def test_v5_settings_equal_gymnasiums_humanoid() -> None:
    ours = gymnasium.make(
        "flexrl/Humanoid-v0", task="v5", physics="v5", observation="v5", action="v5", disable_env_checker=True
    )
    theirs = gymnasium.make("Humanoid-v5")
    np.testing.assert_array_equal(ours.reset(seed=2)[0], theirs.reset(seed=2)[0])
    action = np.full(17, 0.1, np.float32)
    for mine, other in zip(ours.step(action)[:4], theirs.step(action)[:4], strict=True):
        np.testing.assert_array_equal(mine, other)
    assert envs.MotorEnv.metadata["render_modes"] == ["rgb_array"]
