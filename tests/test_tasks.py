"""What reward terms mean, in metres and seconds."""

from __future__ import annotations

import numpy as np
import pytest

from flexrl import tasks
from flexrl.motor_world import MotorSettings, TaskOverrides, resolve_task
from flexrl.physics import BODIES, Physics


def state_at(qpos: dict[int, float] | None = None, **changes: object) -> tasks.State:
    physics = Physics(BODIES["humanoid"], "fast", 1, 1, False)
    start = physics.default_qpos.copy()
    for index, value in (qpos or {}).items():
        start[index] = value
    physics.reset(np.arange(1), start[None], np.zeros((1, physics.model.nv)))
    values: dict[str, object] = {
        "physics": physics,
        "action": np.zeros((1, 17)),
        "previous_action": np.zeros((1, 17)),
        "ground_velocity": np.zeros((1, 2)),
        "foot_position": physics.foot_position(),
        "foot_velocity": np.zeros((1, 2, 3)),
        "time": np.zeros(1),
        "target_speed": 1.3,
        "gait_frequency": 1.5,
        "posture": np.zeros(len(physics.posture_ids)),
    }
    return tasks.State(**(values | changes))  # type: ignore[arg-type]


def test_forward_speed_peaks_at_the_asked_speed() -> None:
    at_speed = state_at(ground_velocity=np.array([[1.3, 0.0]]))
    half_off = state_at(ground_velocity=np.array([[0.8, 0.0]]))  # 0.5 m/s too slow: e^-1
    assert tasks.forward_speed(at_speed)[0] == pytest.approx(1.0)
    assert tasks.forward_speed(half_off)[0] == pytest.approx(np.exp(-1))


def test_upright_and_facing_know_which_way_the_torso_points() -> None:
    half = np.pi / 4  # half of 90 degrees
    turned_left = state_at({3: np.cos(half), 6: np.sin(half)})  # about z
    lying = state_at({3: np.cos(half), 5: np.sin(half)})  # about y
    assert tasks.upright(state_at())[0] == pytest.approx(1.0)
    assert tasks.facing(state_at())[0] == pytest.approx(1.0)
    assert tasks.facing(turned_left)[0] == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(turned_left.heading, [[0.0, 1.0]], atol=1e-9)  # left of x is y
    assert tasks.upright(lying)[0] == pytest.approx(np.exp(-10))  # sin^2(90 degrees) / 0.1


def test_velocity_is_seen_from_the_body() -> None:
    half = np.pi / 4
    state = state_at({3: np.cos(half), 6: np.sin(half)})
    state.physics.qvel[0, 0:3] = (0.0, 2.0, 0.0)  # 2 m/s along the world's y, where the turned body looks
    np.testing.assert_allclose(state.velocity, [[2.0, 0.0, 0.0]], atol=1e-9)


def test_stride_asks_for_the_right_foot_behind_first() -> None:
    """1.2 m/s at 1 Hz need steps of 0.6 m: right foot 0.6 m behind when it lifts off, 0.6 m ahead half a second later."""
    asked = {"target_speed": 1.2, "gait_frequency": 1.0}
    behind = np.array([[[-0.6, 0.0, 0.1], [0.0, 0.0, 0.1]]])
    for time, score in ((0.0, 1.0), (0.5, np.exp(-((1.2 / 0.3) ** 2)))):
        assert tasks.stride(state_at(foot_position=behind, time=np.array([time]), **asked))[0] == pytest.approx(score)


def test_only_a_standing_foot_slips() -> None:
    velocity = np.array([[[0.3, 0.4, 1.0], [2.0, 0.0, 0.0]]])  # right: 0.5 m/s over the ground
    radius = state_at().physics.foot_radius
    feet = np.array([[[0.0, -0.1, radius[0] + 0.01], [0.0, 0.1, radius[1] + 0.1]]])  # 1 cm and 10 cm up
    assert tasks.slip(state_at(foot_position=feet, foot_velocity=velocity))[0] == pytest.approx(0.5)


def test_gait_asks_for_the_right_foot_first() -> None:
    quarter = 0.25 / 1.5  # s: sin = 1, the right foot at mid-swing
    state = state_at(time=np.array([quarter]))
    lifted = state_at({7 + 6: -0.9, 7 + 5: -0.6}, time=np.array([quarter]))  # right knee bent, right hip forward
    assert lifted.foot_clearance[0, 0] - lifted.foot_clearance[0, 1] > 0.05
    state.foot_position = np.array([[[0.0, -0.1, 0.12], [0.0, 0.1, 0.0]]]) + [0, 0, 1] * state.physics.foot_radius[:, None]
    assert tasks.gait(state)[0] == pytest.approx(1.0)  # the right foot at 12 cm, the left one on the ground
    swapped = state_at(time=np.array([quarter]), foot_position=state.foot_position[:, ::-1])
    assert tasks.gait(swapped)[0] < 0.01


def test_healthy_is_between_one_and_two_metres() -> None:
    heights = {0.99: True, 1.01: False, 1.99: False, 2.01: True}
    for height, fallen in heights.items():
        assert tasks.unhealthy(state_at({2: height}))[0] == fallen


def test_every_task_runs_and_its_terms_add_up() -> None:
    from flexrl.motor_world import MotorBatch

    for task in tasks.TASKS:
        batch = MotorBatch(MotorSettings(body=task.body, task=task.name, num_envs=2))
        obs = batch.reset(np.arange(2))
        assert obs.shape == (2, *batch.observation_space.shape)
        result = batch.step(np.zeros((2, *batch.action_space.shape), np.float32))
        assert result.terms.shape == (len(task.term_names), 2)
        np.testing.assert_allclose(result.terms.sum(axis=0), result.reward)
        for term in task.rewards:
            assert term.__doc__


def test_yaml_changes_weights_by_name() -> None:
    settings = MotorSettings(tasks={"walk_forward": TaskOverrides(rewards={"upright": 2.0}, target_speed=0.7)})
    task = resolve_task(settings)
    assert task.rewards[tasks.upright] == 2.0
    assert task.target_speed == 0.7
    with pytest.raises(ValueError, match="no reward term 'uprigth'"):
        resolve_task(MotorSettings(tasks={"walk_forward": TaskOverrides(rewards={"uprigth": 2.0})}))
