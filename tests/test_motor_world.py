"""The batched world side by side with Gymnasium's own envs, and its rules at the ends of episodes."""

from __future__ import annotations

import gymnasium
import mujoco
import numpy as np
import pytest

from flexrl.motor_batch import MotorBatch
from flexrl.motor_settings import MotorSettings
from flexrl.motor_world import MotorWorld
from flexrl.physics import BODIES, Physics


def v5_settings(body: str, num_envs: int, num_threads: int) -> MotorSettings:
    return MotorSettings(
        body=body, task="v5", physics="v5", observation="v5", action="v5", num_envs=num_envs, num_threads=num_threads
    )


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("body", ["humanoid", "half_cheetah"])
def test_v5_equals_gymnasium_bit_for_bit(body: str, num_threads: int) -> None:
    """1,000 steps of 8 simulations, float64, through resets, with the same actions and the same reset draws."""
    seed, num_envs = 7, 8
    batch = MotorBatch(v5_settings(body, num_envs, num_threads), seed)
    envs = [gymnasium.make(BODIES[body].gymnasium_id) for _ in range(num_envs)]
    assert batch.observation_space == envs[0].observation_space
    assert batch.action_space == envs[0].action_space
    rng = np.random.default_rng(1)
    first = batch.reset(np.arange(num_envs))
    np.testing.assert_array_equal(first, [env.reset(seed=seed + i)[0] for i, env in enumerate(envs)])
    num_ended = 0
    for _ in range(1000):
        action = rng.uniform(batch.action_space.low, batch.action_space.high, (num_envs, batch.physics.model.nu))
        action = action.astype(np.float32)
        result = batch.step(action)
        for i, env in enumerate(envs):
            obs, reward, terminated, truncated, _ = env.step(action[i])
            np.testing.assert_array_equal(result.obs[i], obs)
            assert (result.reward[i], result.terminated[i], result.truncated[i]) == (reward, terminated, truncated)
            if terminated or truncated:
                num_ended += 1
                np.testing.assert_array_equal(batch.reset(np.array([i]))[0], env.reset()[0])
    assert num_ended >= num_envs  # the humanoid falls, the cheetah's episodes are 1,000 steps long


def test_no_simulation_sees_another_ones_values() -> None:
    """More simulations than threads, each with an action of its own: every row equals that of a world of one."""
    settings = v5_settings("humanoid", 6, 2)
    batch = MotorBatch(settings, seed=3)
    batch.reset(np.arange(6))
    actions = np.random.default_rng(0).uniform(-0.4, 0.4, (20, 6, 17)).astype(np.float32)
    rows = [batch.step(action).obs for action in actions]
    for i in range(6):
        alone = MotorBatch(settings.model_copy(update={"num_envs": 1}), seed=3 + i)
        alone.reset(np.arange(1))
        for step, action in enumerate(actions):
            np.testing.assert_array_equal(alone.step(action[i : i + 1]).obs[0], rows[step][i])


def test_fast_physics_keeps_the_control_step() -> None:
    """3 steps of 5 ms and 5 of 3 ms are both 15 ms."""
    v5, fast = (Physics(BODIES["humanoid"], mode, 1, 1, False) for mode in ("v5", "fast"))
    assert (v5.steps, fast.steps) == (5, 3)
    assert v5.dt == pytest.approx(0.015)
    assert fast.dt == pytest.approx(0.015)
    assert fast.model.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    assert v5.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4


def test_mirrored_body_mirrors_its_motion() -> None:
    """A step from the mirrored posture with the mirrored action is the mirrored step, but for the XML's own asymmetries."""
    batch = MotorBatch(MotorSettings(num_envs=2, physics="v5"), seed=0)
    batch.reset(np.arange(2))
    from flexrl.observations import action_mirror, hinge_joints, joint_mirror

    physics = batch.physics
    joints = joint_mirror(physics.model, hinge_joints(physics.model))
    rng = np.random.default_rng(0)
    qpos, qvel = physics.default_qpos.copy(), 0.3 * rng.standard_normal(physics.model.nv)
    qpos[2] = 1.6  # m: in the air, so that contacts do not amplify rounding
    qpos[7:] += 0.1 * rng.uniform(-1, 1, 17)
    mirrored_qpos, mirrored_qvel = qpos.copy(), qvel.copy()
    mirrored_qpos[7:] = joints(qpos[7:])
    mirrored_qvel[:6] *= [1, -1, 1, -1, 1, -1]
    mirrored_qvel[6:] = joints(qvel[6:])
    physics.reset(np.arange(2), np.array([qpos, mirrored_qpos]), np.array([qvel, mirrored_qvel]))
    action = rng.uniform(-1, 1, 17).astype(np.float32)
    result = batch.step(np.array([action, action_mirror(physics)(action)]))
    mirror = batch.observation.mirror()
    names = {block.name for block in batch.observation.blocks}
    assert {"joint_positions", "up", "velocity", "clock"} <= names
    without_clock = slice(0, batch.observation.size - 2)  # the clock runs on; its mirror is half a cycle away
    np.testing.assert_allclose(mirror(result.obs[0])[without_clock], result.obs[1][without_clock], atol=0.05)
    np.testing.assert_allclose(mirror(mirror(result.obs[0])), result.obs[0])


def test_a_finished_episode_keeps_its_last_observation_and_how_it_ended() -> None:
    settings = MotorSettings(num_envs=2, task="v5", tasks={"v5": {"max_steps": 3}})
    world = MotorWorld(settings)
    world.reset()
    for step in range(3):
        obs, _, done, infos = world.step(np.zeros((2, 17), np.float32))
        assert done.all() == (step == 2)
    assert infos[0]["TimeLimit.truncated"]
    assert infos[0]["truncated"]
    assert not infos[0]["terminated"]
    assert infos[0]["episode"]["l"] == 3
    assert not np.array_equal(infos[0]["terminal_observation"], obs[0])
    terms = sum(value for key, value in infos[0]["episode"].items() if key.startswith("reward/"))
    assert infos[0]["episode"]["r"] == pytest.approx(terms)


def test_divergence_resets_that_simulation_alone_and_is_counted() -> None:
    world = MotorWorld(MotorSettings(num_envs=4, num_threads=2))
    world.reset()
    world.batch.physics.qvel[2] = np.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUJOCO_LOG", "0")
        obs, reward, done, infos = world.step(np.zeros((4, 17), np.float32))
    assert list(np.flatnonzero(done)) == [2]
    assert infos[2]["diverged"]
    assert np.isfinite(obs).all()
    assert np.isfinite(reward).all()
    assert world.take_metrics()["world/diverged"] == 1
    later = MotorWorld(world.batch.settings)
    later.reset()
    later.set_state(world.get_state())
    assert later.take_metrics()["world/diverged"] == 1
    _, _, done, _ = world.step(np.zeros((4, 17), np.float32))
    assert not done.any()


@pytest.mark.parametrize("body", ["humanoid", "half_cheetah"])
def test_state_goes_on_exactly(body: str) -> None:
    """20 steps, the state taken, 20 more; a fresh world put into that state gives the same bits, resets included."""
    settings = MotorSettings(body=body, task="v5", num_envs=4, tasks={"v5": {"max_steps": 30}})
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 4, 17 if body == "humanoid" else 6)).astype(np.float32)
    world, other = MotorWorld(settings, seed=1), MotorWorld(settings, seed=99)
    world.reset()
    other.reset()
    for action in actions[:20]:
        world.step(action)
    other.set_state(world.get_state())
    for action in actions[20:]:
        for ours, theirs in zip(world.step(action)[:3], other.step(action)[:3], strict=True):
            np.testing.assert_array_equal(ours, theirs)
