"""What reward terms mean, in metres and seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flexrl import rewards, tasks
from flexrl.body_state import State
from flexrl.motor_batch import MotorBatch
from flexrl.motor_settings import MotorSettings, TaskOverrides, check_training, resolve_tasks
from flexrl.physics import BODIES, KEPT, Physics
from flexrl.resets import FallenPoses


def state_at(qpos: dict[int, float] | None = None, **changes: object) -> State:
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
        "skill": np.zeros(1, int),
        "command": np.array([[1.3, 0.0, 0.0]]),
        "gait_frequency": np.array([1.5]),
        "posture": np.zeros((1, len(physics.posture_ids))),
        "asked_heading": np.array([[1.0, 0.0]]),
        "asked_place": np.zeros((1, 2)),
        "phrase": np.zeros(1, int),
    }
    return State(**(values | changes))  # type: ignore[arg-type]


def test_forward_speed_peaks_at_the_asked_speed() -> None:
    at_speed = state_at(ground_velocity=np.array([[1.3, 0.0]]))
    half_off = state_at(ground_velocity=np.array([[0.8, 0.0]]))  # 0.5 m/s too slow: e^-1
    assert rewards.forward_speed(at_speed)[0] == pytest.approx(1.0)
    assert rewards.forward_speed(half_off)[0] == pytest.approx(np.exp(-1))


def test_upright_and_facing_know_which_way_the_torso_points() -> None:
    half = np.pi / 4  # half of 90 degrees
    turned_left = state_at({3: np.cos(half), 6: np.sin(half)})  # about z
    lying = state_at({3: np.cos(half), 5: np.sin(half)})  # about y
    assert rewards.upright(state_at())[0] == pytest.approx(1.0)
    assert rewards.facing(state_at())[0] == pytest.approx(1.0)
    assert rewards.facing(turned_left)[0] == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(turned_left.heading, [[0.0, 1.0]], atol=1e-9)  # left of x is y
    assert rewards.upright(lying)[0] == pytest.approx(np.exp(-10))  # sin^2(90 degrees) / 0.1


def test_velocity_is_seen_from_the_body() -> None:
    half = np.pi / 4
    state = state_at({3: np.cos(half), 6: np.sin(half)})
    state.physics.qvel[0, 0:3] = (0.0, 2.0, 0.0)  # 2 m/s along the world's y, where the turned body looks
    np.testing.assert_allclose(state.velocity, [[2.0, 0.0, 0.0]], atol=1e-9)


def test_stride_asks_for_the_right_foot_behind_first() -> None:
    """1.2 m/s at 1 Hz need steps of 0.6 m: right foot 0.6 m behind when it lifts off, 0.6 m ahead half a second later."""
    asked = {"command": np.array([[1.2, 0.0, 0.0]]), "gait_frequency": np.ones(1)}
    behind = np.array([[[-0.6, 0.0, 0.1], [0.0, 0.0, 0.1]]])
    for time, score in ((0.0, 1.0), (0.5, np.exp(-((1.2 / 0.3) ** 2)))):
        assert rewards.stride(state_at(foot_position=behind, time=np.array([time]), **asked))[0] == pytest.approx(score)


@pytest.mark.parametrize(
    ("speed", "right", "share"), [(1.2, -0.6, 1.0), (1.2, -0.3, 0.5), (1.2, -0.9, 0.5), (1.2, 0.3, 0.0), (-1.2, 0.3, 0.5)]
)
def test_reach_grows_evenly_with_the_distance_of_the_feet_up_to_what_is_asked(speed: float, right: float, share: float) -> None:
    """Steps of 0.6 m: when the right foot lifts off it should be as far behind, or ahead where the body goes backward."""
    feet = np.array([[[right, 0.0, 0.1], [0.0, 0.0, 0.1]]])
    asked = {"command": np.array([[speed, 0.0, 0.0]]), "gait_frequency": np.ones(1)}
    assert rewards.reach(state_at(foot_position=feet, **asked))[0] == pytest.approx(share)
    assert rewards.reach(state_at(foot_position=feet, command=np.zeros((1, 3))))[0] == 0.0


def test_only_a_standing_foot_slips() -> None:
    velocity = np.array([[[0.3, 0.4, 1.0], [2.0, 0.0, 0.0]]])  # right: 0.5 m/s over the ground
    radius = state_at().physics.foot_radius
    feet = np.array([[[0.0, -0.1, radius[0] + 0.01], [0.0, 0.1, radius[1] + 0.1]]])  # 1 cm and 10 cm up
    assert rewards.slip(state_at(foot_position=feet, foot_velocity=velocity))[0] == pytest.approx(0.5)


def test_gait_asks_for_the_right_foot_first() -> None:
    quarter = 0.25 / 1.5  # s: sin = 1, the right foot at mid-swing
    state = state_at(time=np.array([quarter]))
    lifted = state_at({7 + 6: -0.9, 7 + 5: -0.6}, time=np.array([quarter]))  # right knee bent, right hip forward
    assert lifted.foot_clearance[0, 0] - lifted.foot_clearance[0, 1] > 0.05
    state.foot_position = np.array([[[0.0, -0.1, 0.12], [0.0, 0.1, 0.0]]]) + [0, 0, 1] * state.physics.foot_radius[:, None]
    assert rewards.gait(state)[0] == pytest.approx(1.0)  # the right foot at 12 cm, the left one on the ground
    swapped = state_at(time=np.array([quarter]), foot_position=state.foot_position[:, ::-1])
    assert rewards.gait(swapped)[0] < 0.01


@pytest.mark.parametrize(
    ("right", "left", "score"), [(0.03, 0.12, 0.25), (0.12, 0.0, 1.0), (0.18, 0.0, 0.5), (0.3, 0.0, 0.0), (-0.01, 0.0, 0.0)]
)
def test_swing_grows_evenly_with_the_lift_of_the_swinging_foot_up_to_what_is_asked(
    right: float, left: float, score: float
) -> None:
    """At mid-swing of the right foot, of which 12 cm are asked; the left one does not count."""
    radius = state_at().physics.foot_radius
    feet = np.array([[[0.0, -0.1, radius[0] + right], [0.0, 0.1, radius[1] + left]]])
    state = state_at(time=np.array([0.25 / 1.5]), foot_position=feet)
    assert rewards.swing(state)[0] == pytest.approx(score)
    standing = state_at(time=np.array([0.25 / 1.5]), foot_position=feet, command=np.zeros((1, 3)))
    assert rewards.swing(standing)[0] == 0.0


def test_healthy_is_between_one_and_two_metres() -> None:
    heights = {0.99: True, 1.01: False, 1.99: False, 2.01: True}
    for height, fallen in heights.items():
        assert rewards.unhealthy(state_at({2: height}))[0] == fallen


def test_every_task_runs_and_its_terms_add_up() -> None:
    for task in tasks.TASKS:
        batch = MotorBatch(MotorSettings(body=task.body, task=task.name, num_envs=2))
        obs = batch.reset(np.arange(2))
        assert obs.shape == (2, *batch.observation_space.shape)
        result = batch.step(np.zeros((2, *batch.action_space.shape), np.float32))
        assert result.terms.shape == (len(task.rewards), 2)
        np.testing.assert_allclose(result.terms.sum(axis=0), result.reward)
        for term in task.rewards:
            assert term.__doc__


def test_yaml_changes_weights_and_ranges_by_name() -> None:
    changes = TaskOverrides(rewards={"upright": 2.0}, speed=(0.5, 0.7))
    task, _ = resolve_tasks(MotorSettings(tasks={"walk_forward": changes}))["walk_forward"]
    assert task.rewards[rewards.upright] == 2.0
    assert task.command.speed == (0.5, 0.7)
    with pytest.raises(ValueError, match="no reward term 'uprigth'; did you mean 'upright'"):
        resolve_tasks(MotorSettings(tasks={"walk_forward": TaskOverrides(rewards={"uprigth": 2.0})}))
    with pytest.raises(ValueError, match=r"speed: expected \[lowest, highest\], found \[1, 0\]"):
        resolve_tasks(MotorSettings(tasks={"walk_forward": TaskOverrides(speed=(1.0, 0.0))}))
    with pytest.raises(ValueError, match="write task: mixed"):
        resolve_tasks(MotorSettings(skills={"walk_forward": 1.0}))
    with pytest.raises(ValueError, match="half_cheetah has no task 'turn_left'"):
        resolve_tasks(MotorSettings(body="half_cheetah", task="turn_left"))


def test_yaml_changes_when_commands_change_and_where_a_curriculum_begins() -> None:
    changes = TaskOverrides(still=0.5, every=(1.5, 2.0), easiest={"speed": 0.5, "yaw_rate": (-0.1, 0.1)})
    lift = TaskOverrides(lift=0.3)
    tasks = resolve_tasks(MotorSettings(task="mixed", tasks={"follow": changes, "recover": lift}))
    follow = tasks["follow"][0]
    assert (follow.command.still, follow.command.every, follow.command.speed) == (0.5, (1.5, 2.0), (-0.5, 1.5))
    assert follow.easiest is not None
    assert (follow.easiest.speed, follow.easiest.yaw_rate, follow.easiest.sideways) == ((0.5, 0.5), (-0.1, 0.1), (-0.3, 0.3))
    assert tasks["recover"][0].lift == 0.3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tasks": {"follow": {"rewards": {"uprigth": 1.0}}}}, r"world\.tasks\.follow\.rewards\.uprigth: .*mean 'upright'"),
        (
            {"tasks": {"turn_left": {}}, "body": "half_cheetah", "task": "v5"},
            "world.tasks.turn_left: the half_cheetah has no task",
        ),
        ({"tasks": {"mixed": {}}}, "world.tasks.mixed: several tasks are changed one by one"),
        ({"tasks": {"recover": {"speed": 1.0}}}, "world.tasks.recover.speed: recover of the humanoid is asked for no speed"),
        ({"tasks": {"sprint": {"speed": 4.0}}}, "world.tasks.sprint.speed: sprint of the humanoid is asked for no speed"),
        ({"tasks": {"walk_forward": {"sideways": 0.3}}}, "walk_forward of the humanoid is asked for no sideways"),
        ({"tasks": {"stand_still": {"speed": 1.0}}}, "stand_still of the humanoid is asked for no speed"),
        ({"tasks": {"v5": {"yaw_rate": 1.0}}}, "world.tasks.v5.yaw_rate: v5 of the humanoid is asked for no yaw_rate"),
        (
            {"body": "half_cheetah", "task": "v5", "tasks": {"run_forward": {"sideways": 1.0}}},
            "run_forward of the half_cheetah is asked for no sideways",
        ),
        (
            {"tasks": {"follow": {"easiest": {"speed": (1.0, 0.0)}}}},
            r"world.tasks.follow.easiest.speed: expected \[lowest, high",
        ),
        ({"tasks": {"follow": {"every": (0.0, 1.0)}}}, "follow.every: expected more than the 1 s of settling, found 0"),
        ({"task": "mixed", "switch": (-3, 8)}, "world.switch: expected seconds above 0, found -3"),
        (
            {"task": "mixed", "skills": {"follow": 1, "recover": 1}, "words": "go"},
            "world.words: one sentence asks for one skill",
        ),
    ],
)
def test_changes_that_no_task_has_are_refused_whether_the_world_has_the_task_or_not(settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resolve_tasks(MotorSettings(**settings))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, r"nothing here has an easier form; write null, or what walk_forward begins with, as world.tasks: {walk_forward: "),
        ({"task": "sprint"}, "write null$"),  # nobody says what its success is
        ({"body": "half_cheetah", "task": "recover"}, "write null$"),
        ({"task": "mixed", "skills": {"walk_forward": 1, "recover": 0}}, "nothing here has an easier form"),
    ],
)
def test_a_curriculum_that_would_change_nothing_is_refused(settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"world.curriculum: .*{words}"):
        check_training(MotorSettings(curriculum={}, **settings))
    check_training(MotorSettings(**settings))


@pytest.mark.parametrize("change", [{"pose_levels": (0.1, 0.04)}, {"end_upright": 1.0}])
def test_help_for_bodies_that_lie_is_refused_where_none_does(change: Any) -> None:
    standing = {"task": "mixed", "skills": {"walk_forward": 1, "recover": 0}}
    with pytest.raises(ValueError, match=f"world.{next(iter(change))}: no skill here begins lying; write null"):
        check_training(MotorSettings(**standing, **change))
    check_training(MotorSettings(task="recover", **change))


def test_a_curriculum_may_begin_with_ranges_or_with_help() -> None:
    easiest = TaskOverrides(easiest={"speed": (0.0, 0.5)})
    for settings in ({"tasks": {"follow": easiest}, "task": "follow"}, {"task": "recover"}, {"task": "mixed"}):
        check_training(MotorSettings(curriculum={}, **settings))


def test_banks_of_postures_are_kept_but_not_all_of_them() -> None:
    batch = MotorBatch(MotorSettings(task="recover", tasks={"recover": {"poses": 2}}, num_envs=1, num_threads=1), seed=0)
    reset = batch.tasks[0].reset
    assert isinstance(reset, FallenPoses)
    first = reset.bank(batch.physics)
    assert reset.bank(batch.physics) is first
    for seed in range(1, KEPT + 5):
        batch.seed(seed)
        assert not np.array_equal(reset.bank(batch.physics), first)
    assert len(batch.physics._kept) == KEPT
    batch.seed(0)
    np.testing.assert_array_equal(reset.bank(batch.physics), first)


def test_tracking_is_seen_from_the_heading() -> None:
    """A body that looks along the world's y axis and goes 1 m/s that way goes forward."""
    half = np.pi / 4
    along_y = {"ground_velocity": np.array([[0.0, 1.0]]), "command": np.array([[1.0, 0.0, 0.0]])}
    turned = state_at({3: np.cos(half), 6: np.sin(half)}, **along_y)
    np.testing.assert_allclose(turned.body_velocity, [[1.0, 0.0]], atol=1e-9)
    assert rewards.track_speed(turned)[0] == pytest.approx(1.0)
    assert rewards.track_speed(state_at(**along_y))[0] == pytest.approx(np.exp(-((1.0 / 0.4) ** 2)))
    assert rewards.speed_error(state_at(**along_y))[0] == pytest.approx(np.sqrt(2))


def test_yaw_rate_is_about_the_worlds_vertical() -> None:
    half = np.pi / 4
    lying = state_at({3: np.cos(half), 5: np.sin(half)})  # face down: the torso's x axis points down
    lying.physics.qvel[0, 3:6] = (2.0, 0.0, 0.0)  # rad/s about that axis
    assert lying.yaw_rate[0] == pytest.approx(-2.0)


def test_who_is_asked_to_stand_has_no_clock_and_keeps_both_feet_down() -> None:
    state = state_at(command=np.array([[0.05, 0.0, 0.0]]), time=np.array([0.25 / 1.5]))
    np.testing.assert_array_equal(state.clock, [[0.0, 0.0]])
    state.foot_position = np.array([[[0.0, -0.1, 0.0], [0.0, 0.1, 0.0]]]) + [0, 0, 1] * state.physics.foot_radius[:, None]
    assert rewards.gait(state)[0] == pytest.approx(1.0)


def test_mixed_world_goes_round_its_skills_and_rewards_each_by_its_own_table() -> None:
    settings = MotorSettings(task="mixed", num_envs=8, num_threads=1, goal=["one_hot", "command"])
    batch = MotorBatch(settings, seed=0)
    obs = batch.reset(np.arange(8))
    assert sorted(batch.skills[i] for i in batch.asked.skill) == sorted(tasks.SKILLS["humanoid"])
    plain = MotorBatch(settings.model_copy(update={"goal": []}))
    assert obs.shape[1] == plain.observation.size + 8 + 3
    np.testing.assert_array_equal(obs[:, -11:-3], np.eye(8)[batch.asked.skill])
    np.testing.assert_allclose(obs[:, -3:], batch.asked.command, rtol=1e-6)
    action = np.random.default_rng(0).uniform(-1, 1, (8, 17)).astype(np.float32)
    result = batch.step(action)
    np.testing.assert_allclose(result.terms.sum(axis=0), result.reward)
    for task in batch.tasks:
        i = int(np.flatnonzero(batch.asked.skill == batch.skills.index(task.name))[0])
        for term, value in zip(batch.terms, result.terms[:, i], strict=True):
            assert term in task.rewards or value == 0.0
    heavier = MotorBatch(settings.model_copy(update={"tasks": {"follow": TaskOverrides(rewards={"upright": 5.0})}}), seed=0)
    heavier.reset(np.arange(8))
    expected = result.terms.copy()
    expected[batch.term_names.index("upright"), batch.skills.index("follow") == batch.asked.skill] *= 10.0
    np.testing.assert_allclose(heavier.step(action).terms, expected)


def test_commands_are_drawn_again_within_an_episode_and_the_state_goes_on_exactly() -> None:
    settings = MotorSettings(task="follow", num_envs=4, num_threads=1, goal=["command"], tasks={"follow": {"max_steps": 700}})
    batch, other = MotorBatch(settings, seed=1), MotorBatch(settings, seed=2)
    batch.reset(np.arange(4))
    other.reset(np.arange(4))
    for each in (batch, other):  # these bodies fall, and go on
        each.tasks = [replace(each.tasks[0], fallen=rewards.never)]
    first = batch.asked.command.copy()
    other.set_state(batch.get_state())
    action = np.zeros((4, 17), np.float32)
    for _ in range(round(8.1 / batch.physics.dt)):  # s: a command holds 3 to 8 s
        ours, theirs = batch.step(action).obs, other.step(action).obs
        np.testing.assert_array_equal(ours, theirs)
    assert (batch.asked.command != first).any(axis=1).sum() >= 3  # one in seven draws is to stand
    low, high = np.array([[-0.5, -0.3, -1.0], [1.5, 0.3, 1.0]])
    assert ((batch.asked.command >= low) & (batch.asked.command <= high)).all()


def test_fallen_poses_lie_and_differ() -> None:
    batch = MotorBatch(MotorSettings(task="recover", num_envs=64, num_threads=1), seed=3)
    batch.reset(np.arange(64))
    heights = batch.physics.qpos[:, 2]
    assert (heights < 0.8).mean() > 0.95  # m: lie, or are about to
    up = batch.physics.qpos[:, 3:7]
    assert len(np.unique(up.round(3), axis=0)) > 40
    assert np.isfinite(batch.step(np.zeros((64, 17), np.float32)).obs).all()


def test_balanced_sampling_gives_each_skill_the_same_number_of_steps() -> None:
    """Episodes of 10 and of 100 steps: the short ones come ten times as often."""
    from flexrl.skill_sampling import SkillSampler

    sampler, rng = SkillSampler("balanced", {"short": 1.0, "long": 1.0}), np.random.default_rng(0)
    assert [sampler.draw(rng) for _ in range(4)] == [0, 1, 0, 1]
    for _ in range(1000):
        skill = sampler.draw(rng)
        for _ in range((10, 100)[skill]):
            sampler.stepped(np.array([skill]))
    assert sampler.num_steps[0] / sampler.num_steps.sum() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "recover", "tasks": {"recover": {"every": (2, 3)}}}, "recover of the humanoid has no use for it"),
        ({"task": "recover", "tasks": {"recover": {"still": 0.5}}}, "has no use for it"),
        ({"task": "follow", "tasks": {"follow": {"every": (0.3, 0.9)}}}, "more than the 1 s of settling, found 0.3"),
        ({"body": "half_cheetah", "task": "recover", "tasks": {"recover": {"lift": 0.5}}}, "recover of the half_cheetah"),
        ({"body": "half_cheetah", "task": "run_forward", "tasks": {"run_forward": {"gait_frequency": 2}}}, "has no use"),
        ({"task": "mixed", "goal": ["one_hot", "one_hot"]}, "expected each part once"),
    ],
)
def test_what_would_do_nothing_to_a_task_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resolve_tasks(MotorSettings(**changes))


def test_hardest_sampling_counts_for_changes_too() -> None:
    from flexrl.skill_sampling import SkillSampler

    sampler, rng = SkillSampler("hardest", {"easy": 1.0, "hard": 1.0, "now": 1.0}), np.random.default_rng(0)
    for _ in range(200):
        sampler.ended(0, True)
    drawn = [sampler.draw_next(rng, 2, np.ones(3)) for _ in range(200)]
    assert drawn.count(1) > 4 * drawn.count(0) > 0


def test_hardest_sampling_prefers_what_fails() -> None:
    from flexrl.skill_sampling import SkillSampler

    sampler, rng = SkillSampler("hardest", {"easy": 1.0, "hard": 1.0}), np.random.default_rng(0)
    for _ in range(500):
        sampler.ended(0, True)
        sampler.ended(1, False)
    drawn = [sampler.draw(rng) for _ in range(1000)]
    assert np.mean(drawn) == pytest.approx(1.1 / 1.2, abs=0.03)  # failure rates 0 and 1, both counted with 0.1 more


def test_measures_know_drift_and_when_a_body_stood_up() -> None:
    from flexrl.measures import Measures

    measures = Measures(1)
    measures.begin(np.arange(1), np.zeros((1, 2)))
    dt = 0.015  # s
    for step in range(1, 301):
        standing = step * dt > 1.5
        state = state_at({2: 1.3 if standing else 0.5}, time=np.array([step * dt]), command=np.zeros((1, 3)))
        state.ground_velocity = np.array([[0.1, 0.0]])
        measures.update(state, np.array([[0.1 * step * dt, 0.0]]))
    assert measures.upright_at[0] == pytest.approx(1.5, abs=2 * dt)
    assert measures.drift[0] == pytest.approx(0.45, abs=0.01)
    np.testing.assert_allclose(measures.mean_error, [[0.1, 0.0, 0.0]], atol=1e-9)


def test_changes_so_quick_that_no_skill_is_judged_are_refused_in_training() -> None:
    with pytest.raises(ValueError, match=r"world.switch: a skill is judged from 1 s on; .* longest time above it, found 0.9"):
        check_training(MotorSettings(task="mixed", switch=(0.2, 0.9)))
    with pytest.raises(ValueError, match=r"^world\.phrasings: held-out words are for judging"):
        check_training(MotorSettings(phrasings="held_out"))
    check_training(MotorSettings(task="mixed", switch=(0.2, 1.5)))


@pytest.mark.parametrize(
    ("body", "task", "least", "seconds"),
    [("humanoid", "follow", 66, 1), ("humanoid", "recover", 133, 2), ("half_cheetah", "recover", 40, 2)],
)
def test_episodes_too_short_to_be_judged_are_refused_in_training(body: Any, task: Any, least: int, seconds: int) -> None:
    def settings(steps: int) -> MotorSettings:
        return MotorSettings(body=body, task=task, tasks={task: TaskOverrides(max_steps=steps)})

    line = f"{task}.max_steps: {task} is judged from {seconds} s on; expected more than the {least} steps .* found {least}"
    with pytest.raises(ValueError, match=line):
        check_training(settings(least))
    check_training(settings(least + 1))


def test_a_course_that_turns_is_what_a_walk_is_paid_for() -> None:
    """Without seeing the place, too: the asked heading goes on turning as the command says, as far as the body comes along."""
    batch = MotorBatch(MotorSettings(num_envs=1, num_threads=1, tasks={"walk_forward": TaskOverrides(yaw_rate=0.5)}))
    batch.reset(np.arange(1))
    for _ in range(20):
        batch.step(np.zeros((1, 17)))
    assert batch.reference is not None
    yaw = np.arctan2(batch._asked_heading[0, 1], batch._asked_heading[0, 0])
    assert yaw == pytest.approx(20 * 0.5 * batch.physics.dt, abs=0.05)
