"""Commands turned into a place and a heading, changes of skill within an episode, curriculum, servos."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexrl.collection import CollectSettings, world_of
from flexrl.curriculum import Curriculum, CurriculumSettings, next_level
from flexrl.motor_batch import MotorBatch
from flexrl.motor_settings import MotorSettings, TaskOverrides, resolve_tasks
from flexrl.motor_world import MotorWorld
from flexrl.outcomes import WINDOW, Outcomes
from flexrl.physics import SERVO_ERROR
from flexrl.policies import ZeroPolicy
from flexrl.reference import LEAD, SETTLING, Reference
from flexrl.tasks import Command, find_task
from flexrl.text_encoders import NUM_FEATURES, hashed_ngrams
from flexrl.tour import SECONDS, SHOWS, _ask_for, go_through_skills
from flexrl.worlds import evaluation_settings

DT = 0.015  # s
GOAL = ["one_hot", "command", "place"]


def one_reference(place: tuple[float, float] = (0.0, 0.0)) -> Reference:
    reference = Reference(1)
    reference.begin(np.arange(1), np.array([place]))
    return reference


def update(reference: Reference, place: tuple[float, float], command: tuple[float, float, float], loose: bool = False) -> None:
    heading = np.array([[1.0, 0.0]])
    reference.update(np.array([place]), heading, np.array([command]), np.array([loose]), DT)


def test_what_the_command_does_not_move_stays_where_it_is() -> None:
    reference = one_reference((1.0, 2.0))
    for step in range(100):
        update(reference, (1.0 + 0.02 * step, 2.0), (0.0, 0.0, 0.0))  # drifts by 2 m
    np.testing.assert_array_equal(reference.place, [[1.0, 2.0]])
    assert reference.yaw[0] == 0.0


def test_the_reference_goes_as_asked_and_waits_for_the_body() -> None:
    with_it, alone = one_reference(), one_reference()
    for step in range(1, 101):
        update(with_it, (1.0 * DT * step, 0.0), (1.0, 0.0, 0.0))  # a body that keeps up
        update(alone, (0.0, 0.0), (1.0, 0.0, 0.5))  # one that does not move
    np.testing.assert_allclose(with_it.place, [[1.5, 0.0]], atol=1e-9)
    assert np.linalg.norm(alone.place[0]) == pytest.approx(LEAD)
    assert alone.yaw[0] == pytest.approx(0.5)  # rad: held there, though 0.75 were asked by now


def test_after_another_command_and_while_lying_it_stays_with_the_body() -> None:
    reference = one_reference()
    reference.ask_again(0)
    for _ in range(round(SETTLING / DT) - 1):
        update(reference, (3.0, 1.0), (0.0, 0.0, 0.0))
        np.testing.assert_array_equal(reference.place, [[3.0, 1.0]])
    lying = one_reference()
    update(lying, (0.2, 0.0), (0.0, 0.0, 0.0), loose=True)
    np.testing.assert_array_equal(lying.place, [[0.2, 0.0]])


def test_skills_change_within_an_episode_and_say_so() -> None:
    world = MotorWorld(
        MotorSettings(task="mixed", num_envs=16, num_threads=1, action="servo", goal=GOAL, switch=(0.2, 0.4)), seed=0
    )
    obs = world.reset()
    seen = 0
    for _ in range(60):
        before, commands = world.batch.asked.skill.copy(), world.batch.asked.command.copy()
        obs, _, done, infos = world.step(np.zeros((16, 17), np.float32))
        for i, info in enumerate(infos):
            if "switch" in info:
                seen += 1
                assert not done[i]
                assert info["switch"].before == world.batch.skills[before[i]]
                assert info["switch"].after == world.batch.skills[world.batch.asked.skill[i]]
                np.testing.assert_array_equal(obs[i, -13:-5], np.eye(8)[world.batch.asked.skill[i]])
                np.testing.assert_allclose(obs[i, -5:-2], world.batch.asked.command[i], rtol=1e-6)
                unchanged = info["unchanged_observation"]
                np.testing.assert_array_equal(unchanged[-13:-5], np.eye(8)[before[i]])
                np.testing.assert_allclose(unchanged[-5:-2], commands[i], rtol=1e-6)
                np.testing.assert_array_equal(unchanged[6:61], obs[i, 6:61])  # speeds, joints and actions
            else:
                assert "unchanged_observation" in info or done[i] or (world.batch.asked.command[i] == commands[i]).all()
    assert seen >= 8
    assert evaluation_settings(world.batch.settings, 4).switch is None


def test_where_there_is_no_other_skill_none_changes() -> None:
    world = MotorWorld(
        MotorSettings(task="mixed", skills={"stand_still": 1, "follow": 0}, switch=(0.03, 0.05), num_envs=2, num_threads=1)
    )
    world.reset()
    for _ in range(10):
        *_, infos = world.step(np.zeros((2, 17), np.float32))
        assert not any("switch" in info for info in infos)
    assert (world.batch.steps_before == 0).all()


def test_a_body_that_lies_goes_on_getting_up() -> None:
    settings = MotorSettings(
        task="mixed", skills={"recover": 1.0, "walk_forward": 1.0}, num_envs=8, num_threads=1, switch=(0.1, 0.1)
    )
    world = MotorWorld(settings, seed=0)
    world.reset()
    lies = world.batch.asked.skill == world.batch.skills.index("recover")
    for _ in range(20):
        _, _, _, infos = world.step(np.zeros((8, 17), np.float32))
        assert not any("switch" in info for info, lying in zip(infos, lies, strict=True) if lying)


def test_reward_terms_of_an_episode_are_those_of_its_last_skill() -> None:
    settings = MotorSettings(task="mixed", num_envs=16, num_threads=1, action="servo", goal=GOAL, switch=(0.2, 0.4))
    world = MotorWorld(settings, seed=0)
    world.reset()
    ended = []
    for _ in range(120):
        _, _, _, infos = world.step(np.zeros((16, 17), np.float32))
        ended += [info["episode"] for info in infos if "episode" in info]
    assert any(episode["skill_steps"] < episode["l"] for episode in ended)
    for episode in ended:
        if "reward/alive" in episode:  # its weight is 3 for every skill
            assert episode["reward/alive"] == pytest.approx(3.0 * episode["skill_steps"])


def test_what_is_logged_of_a_skill_is_of_all_its_parts_and_judged_where_they_tell() -> None:
    settings = MotorSettings(task="mixed", num_envs=16, num_threads=1, action="servo", goal=GOAL, switch=(0.2, 0.4))
    world = MotorWorld(settings, seed=0)
    world.reset()
    parts, judged = Counter[str](), dict[str, list[bool]]()
    for _ in range(120):
        before = [world.batch.skills[skill] for skill in world.batch.asked.skill]
        *_, infos = world.step(np.zeros((16, 17), np.float32))
        for skill, info in zip(before, infos, strict=True):
            if "switch" in info or "episode" in info:
                parts[skill] += 1
                success = info["switch"].success if "switch" in info else info["episode"].get("success")
                judged.setdefault(skill, []).extend([] if success is None else [success])
    metrics = world.take_metrics()
    assert dict(zip(world.batch.skills, world.outcomes.num_parts, strict=True)) == {s: parts[s] for s in world.batch.skills}
    assert parts["walk_forward"] > 1
    for skill, successes in judged.items():  # within a second nothing is measured: only falls tell
        assert metrics.get(f"rollout/success/{skill}") == (pytest.approx(np.mean(successes)) if successes else None)
        if skill != "recover":
            assert not any(successes)
            assert metrics[f"reward/{skill}/alive"] == pytest.approx(3.0)  # its weight
    going = world.batch.num_steps - np.maximum(world.batch.steps_before, 0)
    logged = sum(metrics[f"rollout/length/{skill}"] * number for skill, number in parts.items())
    assert logged + going.sum() == pytest.approx(120 * 16)


def test_outcomes_are_of_the_last_parts() -> None:
    outcomes = Outcomes(num_skills=2, num_terms=1)
    outcomes.add(0, False, 50, np.array([500.0]))
    assert outcomes.metrics(["walk", "turn"], [{"alive": 0}, {"alive": 0}]) == {
        "reward/walk/alive": 10.0,
        "rollout/length/walk": 50.0,
        "rollout/success/walk": 0.0,
    }
    for _ in range(WINDOW):
        outcomes.add(0, True, 10, np.array([30.0]))
    outcomes.add(1, None, 4, np.array([8.0]))
    assert outcomes.metrics(["walk", "turn"], [{"alive": 0}, {}]) == {
        "reward/walk/alive": 3.0,
        "rollout/length/walk": 10.0,
        "rollout/success/walk": 1.0,
        "rollout/length/turn": 4.0,
    }


def test_the_state_goes_on_exactly_through_switches_and_levels() -> None:
    settings = MotorSettings(
        task="mixed", num_envs=16, num_threads=1, action="servo", goal=GOAL, switch=(0.2, 0.4), curriculum={"episodes": 2}
    )
    world, other = MotorWorld(settings, seed=0), MotorWorld(settings, seed=0)
    world.reset()
    other.reset()
    other.step(np.ones((16, 17), np.float32))
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (160, 16, 17)).astype(np.float32)
    for action in actions[:80]:
        world.step(action)
    other.set_state(world.get_state())
    for action in actions[80:]:
        (ours, our_rewards, *_), (theirs, their_rewards, *_) = world.step(action), other.step(action)
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(our_rewards, their_rewards)
    ours, theirs = world.take_metrics(), other.take_metrics()
    assert ours.keys() == theirs.keys()
    assert {key: ours[key] for key in ours if "diverged" not in key} == {k: theirs[k] for k in theirs if "diverged" not in k}


@given(st.floats(0, 1), st.floats(0, 1))
def test_levels_rise_with_success_and_stay_between_0_and_1(level: float, success: float) -> None:
    settings = CurriculumSettings(raise_above=0.7, lower_below=0.3, step=0.1)
    after = next_level(level, success, settings)
    assert 0 <= after <= 1
    assert (after >= level) if success > 0.7 else (after <= level)
    if 0.3 <= success <= 0.7:
        assert after == level


def test_each_task_has_a_level_of_its_own() -> None:
    curriculum = Curriculum(2, CurriculumSettings(episodes=10, step=0.25))
    for _ in range(20):
        curriculum.ended(0, True, curriculum.levels[0])
        curriculum.ended(1, False, curriculum.levels[1])
    np.testing.assert_array_equal(curriculum.levels, [0.5, 0.0])
    for _ in range(10):
        curriculum.ended(0, False, 0.5)
    np.testing.assert_array_equal(curriculum.levels, [0.25, 0.0])


def test_episodes_that_began_together_move_the_level_once() -> None:
    settings = MotorSettings(task="recover", num_envs=12, num_threads=1, curriculum={"episodes": 4, "start": 0.5})
    batch = MotorBatch(settings, seed=0)
    batch.reset(np.arange(12))
    for i in range(12):
        batch.ended(i, False)
    assert batch.asked.curriculum.levels[0] == pytest.approx(0.45)
    np.testing.assert_array_equal(batch.asked.level, 0.5)  # what runs keeps its level
    batch.reset(np.arange(6))
    np.testing.assert_array_equal(batch.asked.level, [0.45] * 6 + [0.5] * 6)
    batch.step(np.zeros((12, 17), np.float32))
    force = batch.physics.xfrc_applied[:, batch.physics.torso, 2] / (0.6 * batch.physics.weight)
    np.testing.assert_allclose(force, [0.55] * 6 + [0.5] * 6)
    for i in range(6):
        batch.ended(i, False)
    assert batch.asked.curriculum.levels[0] == pytest.approx(0.4)
    older = MotorBatch(settings, seed=0)
    older.set_state({name: array for name, array in batch.get_state().items() if name != "asked.level"})
    np.testing.assert_array_equal(older.asked.level, 1.0)
    np.testing.assert_array_equal(older.asked.curriculum.levels, batch.asked.curriculum.levels)


def test_commands_widen_with_the_level() -> None:
    whole, easiest = Command(speed=(-0.5, 1.5), yaw_rate=(-1.0, 1.0)), Command(speed=(0.0, 1.0))
    assert whole.at_level(0.0, easiest) == easiest
    assert whole.at_level(0.5, easiest) == Command(speed=(-0.25, 1.25), yaw_rate=(-0.5, 0.5))
    assert whole.at_level(1.0, easiest) == whole


def test_a_curriculum_carries_who_lies_and_evaluations_do_not() -> None:
    settings = MotorSettings(task="recover", num_envs=2, num_threads=1, curriculum={"start": 0.5})
    easy, full = MotorBatch(settings), MotorBatch(evaluation_settings(settings, 2))
    for batch in (easy, full):
        batch.reset(np.arange(2))
        batch.step(np.zeros((2, 17), np.float32))
    lift = easy.tasks[0].lift * 0.5 * easy.physics.weight[0]  # N
    np.testing.assert_allclose(easy.physics.xfrc_applied[:, easy.physics.torso, 2], lift)
    assert not full.physics.xfrc_applied.any()


@pytest.mark.parametrize("body", ["humanoid", "half_cheetah"])
def test_servos_have_the_strength_of_the_motors(body: str) -> None:
    task = "walk_forward" if body == "humanoid" else "v5"
    motors = MotorBatch(MotorSettings(body=body, task=task, num_envs=1)).physics.model
    batch = MotorBatch(MotorSettings(body=body, task=task, action="servo", num_envs=1))
    servos = batch.physics.model
    strongest = motors.actuator_gear[:, 0] * motors.actuator_ctrlrange[:, 1]  # N m
    np.testing.assert_allclose(servos.actuator_forcerange[:, 1], strongest)
    np.testing.assert_allclose(servos.actuator_gainprm[:, 0] * SERVO_ERROR, strongest)
    np.testing.assert_allclose(servos.actuator_ctrlrange, motors.jnt_range[motors.actuator_trnid[:, 0]])
    batch.reset(np.arange(1))
    batch.step(np.ones((1, servos.nu), np.float32))
    forces = batch.physics.qfrc_actuator[0, servos.jnt_dofadr[servos.actuator_trnid[:, 0]]]
    assert (np.abs(forces) <= strongest + 1e-9).all()
    assert (np.abs(forces) > 0.01 * strongest).any()


def test_words_are_seen_as_vectors_and_mirrored_words_as_mirrored_vectors() -> None:
    settings = MotorSettings(task="mixed", num_envs=32, num_threads=1, goal=["embedding"])
    batch = MotorBatch(settings, seed=0)
    obs = batch.reset(np.arange(32))
    phrases = [words for _, words in batch.asked.phrases]
    for i in range(32):
        assert phrases[batch.asked.phrase[i]] in batch.tasks[batch.asked.skill[i]].words.train
        np.testing.assert_allclose(
            obs[i, -2 * NUM_FEATURES : -NUM_FEATURES], hashed_ngrams(phrases[batch.asked.phrase[i]]), atol=1e-6
        )
    assert len({batch.asked.phrase[i] for i in range(32)}) > 8  # not always a task's first
    left, right = (
        int(np.flatnonzero(batch.asked.skill == batch.skills.index(name))[0]) for name in ("turn_left", "turn_right")
    )
    batch.asked.phrase[[left, right]] = [phrases.index("turn left"), phrases.index("turn right")]
    obs = batch.observe(batch.previous_action)
    mirrored = batch.observation.mirror()(obs)
    np.testing.assert_array_equal(mirrored[left, -2 * NUM_FEATURES :], obs[right, -2 * NUM_FEATURES :])


def test_words_to_learn_from_have_distorted_copies_and_those_to_be_judged_by_have_none() -> None:
    settings = MotorSettings(task="mixed", num_envs=4, num_threads=1, goal=["embedding"], word_variants=3)
    plain = MotorBatch(settings.model_copy(update={"word_variants": 0}), seed=0).asked.phrases
    drawn = MotorBatch(settings, seed=0).asked.phrases
    assert drawn[::4] == plain
    assert [skill for skill, _ in drawn] == [skill for skill, _ in plain for _ in range(4)]
    different = [words for i, (_, words) in enumerate(drawn) if i % 4 and words != drawn[i - i % 4][1]]
    assert len(different) > len(plain)
    assert drawn == MotorBatch(settings, seed=1).asked.phrases  # the same for every run
    assert evaluation_settings(settings, 2).word_variants == 0
    trained: Any = SimpleNamespace(settings=SimpleNamespace(world=settings))
    collected = world_of(CollectSettings(models=[{"path": "workspace/skills/best"}]), [trained])
    assert isinstance(collected, MotorSettings)
    assert collected.word_variants == 0


def test_phrases_that_share_words_lie_close_together() -> None:
    near = hashed_ngrams("walk forward") @ hashed_ngrams("go straight forward")
    far = hashed_ngrams("walk forward") @ hashed_ngrams("get up")
    assert hashed_ngrams("Walk forward") @ hashed_ngrams("walk forward") == pytest.approx(1.0)
    assert near > far + 0.2


def test_positions_hide_velocities() -> None:
    for body, task in (("humanoid", "walk_forward"), ("half_cheetah", "run_forward")):
        batch = MotorBatch(MotorSettings(body=body, task=task, observation="positions", num_envs=1, num_threads=1))
        batch.reset(np.arange(1))
        batch.step(np.zeros((1, batch.physics.model.nu), np.float32))
        still = batch.observe(batch.previous_action)
        batch.physics.qvel[:] = 3.0
        np.testing.assert_array_equal(batch.observe(batch.previous_action), still)


RANDOM = {"friction": (0.5, 1.5), "mass": (0.8, 1.2), "strength": (0.7, 1.3), "push": 0.5, "push_every": (0.1, 0.2)}


def test_each_simulation_has_a_body_of_its_own_that_its_seed_decides() -> None:
    settings = MotorSettings(num_envs=4, num_threads=2, randomise=RANDOM)
    plain = MotorBatch(settings.model_copy(update={"randomise": None}), seed=3)
    batch, same, shifted = (MotorBatch(settings, seed=seed) for seed in (3, 3, 4))
    model = plain.physics.model
    for field, (low, high) in {"geom_friction": (0.5, 1.5), "body_mass": (0.8, 1.2)}.items():
        values, original = batch.physics.expand(field), getattr(model, field)
        factors = values[:, 1:] / original[1:]
        assert factors.min() >= low
        assert factors.max() <= high
        assert factors.std() > 0.05
        np.testing.assert_array_equal(values, same.physics.expand(field))
        np.testing.assert_array_equal(values[1:], shifted.physics.expand(field)[:-1])
    for each in (plain, batch):
        each.reset(np.arange(4))
    masses, bodies = batch.physics.expand("body_mass")[:, :, None], batch.physics.xipos[:, :, :2]
    centre = (masses * bodies).sum(axis=1) / masses.sum(axis=1)  # (4, 2) m
    np.testing.assert_allclose(batch.physics.ground_position(), centre)
    np.testing.assert_allclose(batch.physics.ground_position(np.array([2])), centre[[2]])
    np.testing.assert_allclose(batch.physics.weight, 9.81 * masses[:, :, 0].sum(axis=1))
    action = np.full((4, 17), 0.3, np.float32)
    assert not np.array_equal(plain.step(action).obs, batch.step(action).obs)
    assert evaluation_settings(settings, 2).randomise is None


def test_servos_differ_in_strength_not_in_where_they_pull_to() -> None:
    settings = MotorSettings(num_envs=8, num_threads=1, action="servo", randomise={"strength": (0.5, 0.5)})
    batch = MotorBatch(settings)
    model = batch.physics.model
    np.testing.assert_allclose(batch.physics.expand("actuator_forcerange"), 0.5 * model.actuator_forcerange[None].repeat(8, 0))
    gain, bias = batch.physics.expand("actuator_gainprm")[:, :, 0], batch.physics.expand("actuator_biasprm")[:, :, 1]
    np.testing.assert_allclose(gain, 0.5 * model.actuator_gainprm[None, :, 0].repeat(8, 0))
    np.testing.assert_allclose(bias, -gain)


def test_pushes_come_when_they_are_due_and_go_on_exactly() -> None:
    settings = MotorSettings(body="half_cheetah", task="stand_still", num_envs=8, num_threads=1, randomise=RANDOM)
    world, other = MotorWorld(settings, seed=0), MotorWorld(settings, seed=0)
    world.reset()
    other.reset()
    action = np.zeros((8, 6), np.float32)
    before = world.batch.randomiser.push_at.copy()
    assert ((before >= 0.1) & (before <= 0.2)).all()
    for _ in range(5):  # 0.25 s
        world.step(action)
    assert (world.batch.randomiser.push_at > before).all()
    other.set_state(world.get_state())
    for _ in range(10):
        np.testing.assert_array_equal(world.step(action)[0], other.step(action)[0])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="found \\[2, 1\\]"):
        MotorSettings(randomise={"mass": (2, 1)})
    with pytest.raises(ValueError, match="bit for bit"):
        resolve_tasks(MotorSettings(task="v5", randomise={"mass": (0.9, 1.1)}))
    with pytest.raises(ValueError, match=r"lower_below: expected at most raise_above, 0\.3, found 0\.5"):
        MotorSettings(curriculum={"raise_above": 0.3, "lower_below": 0.5})
    with pytest.raises(ValueError, match="less than 1"):  # no share is above it
        MotorSettings(curriculum={"raise_above": 1.0})
    with pytest.raises(ValueError, match="less than or equal to 2"):  # a change of skill may come after 2 s upright
        MotorSettings(task="recover", end_upright=3.0)
    with pytest.raises(ValueError, match="write task: mixed"):
        resolve_tasks(MotorSettings(switch=(3, 8)))
    with pytest.raises(ValueError, match=r"switch: expected \[lowest, highest\]"):
        resolve_tasks(MotorSettings(task="mixed", switch=(8, 3)))


def test_the_half_cheetah_sees_how_far_it_drifted() -> None:
    batch = MotorBatch(MotorSettings(body="half_cheetah", task="stand_still", goal=["place"], num_envs=1, num_threads=1))
    batch.reset(np.arange(1))
    for _ in range(20):
        batch.step(np.full((1, 6), 0.7, np.float32))
    drift = batch.measures.drift[0]
    assert drift > 0.05
    asked = batch.observe(batch.previous_action)[0, -2:]
    assert np.abs(asked).max() > 0.02


def test_levels_count_only_what_says_something() -> None:
    """Not getting up where the body stood already, not tracking where there was no time to err."""
    settings = MotorSettings(task="mixed", num_envs=2, num_threads=1, switch=(3, 8), curriculum={"episodes": 100})
    batch = MotorBatch(settings, seed=0)
    batch.reset(np.arange(2))
    recover, walk = batch.skills.index("recover"), batch.skills.index("walk_forward")
    batch.num_steps[:] = 10
    batch.begin_skill(0, recover)
    batch.begin_skill(1, walk)
    counted = batch.asked.curriculum.num_ended
    batch.ended(0, True)
    batch.ended(1, True)
    assert counted.sum() == 0
    batch.ended(1, False)  # a fall says something at once
    batch.measures.num_counted[1] = 5
    batch.ended(1, True)
    assert counted[walk] == 2
    batch.steps_before[0] = 0  # as if the episode had begun with it
    batch.measures.num_counted[0] = 5
    batch.ended(0, True)
    assert counted[recover] == 1
    batch.stagger()  # what is cut short says nothing either
    batch.steps_before[0] = -1
    batch.ended(0, False)
    assert counted[recover] == 1


def test_a_run_may_go_on_with_a_curriculum_it_did_not_have_or_without_the_one_it_had() -> None:
    plain = MotorSettings(task="recover", num_envs=2, num_threads=1)
    batch, carried = (
        MotorBatch(plain, seed=0),
        MotorBatch(plain.model_copy(update={"curriculum": CurriculumSettings()}), seed=0),
    )
    for each in (batch, carried):
        each.reset(np.arange(2))
        each.step(np.zeros((2, 17), np.float32))
    assert carried.physics.xfrc_applied.any()
    without, with_one = batch.get_state(), carried.get_state()
    batch.set_state(with_one)
    assert not batch.physics.xfrc_applied.any()
    carried.set_state(without)
    np.testing.assert_array_equal(carried.asked.curriculum.levels, [0.0])


def test_walking_in_a_circle_is_no_walking_ahead() -> None:
    measures = MotorWorld(MotorSettings(num_envs=1, num_threads=1)).batch.measures
    measures.num_counted[:] = 100
    fell = np.zeros(1, bool)
    assert all(
        find_task("humanoid", name).success(measures, fell)[0] for name in ("walk_forward", "run_forward", "stand_still")
    )
    measures.errors[0, 2] = 0.2 * 100  # rad/s, summed
    for name in ("walk_forward", "run_forward", "stand_still"):
        assert not find_task("humanoid", name).success(measures, fell)[0]


def test_the_half_cheetah_gets_up_from_its_back() -> None:
    batch = MotorBatch(MotorSettings(body="half_cheetah", task="recover", num_envs=16, num_threads=1), seed=0)
    batch.reset(np.arange(16))
    state = batch._state(batch.previous_action, batch.position, batch.feet)
    assert (state.up[:, 2] < 0).mean() > 0.9
    np.testing.assert_array_equal(state.heading, np.tile([1.0, 0.0], (16, 1)))
    assert (state.height < 0.6).all()


def test_a_tour_shows_every_skill_and_gets_up_last() -> None:
    settings = MotorSettings(task="mixed", skills={"recover": 1.0, "stand_still": 1.0, "turn_left": 1.0}, goal=GOAL)
    tour = go_through_skills(ZeroPolicy(MotorWorld(settings.model_copy(update={"num_envs": 1})).action_space), settings, seed=0)
    assert list(tour.parts) == ["stand still", "turn left", "get up"]
    steps = round(SECONDS / tour.world.batch.physics.dt) + 1
    assert [len(states) for states in tour.parts.values()] == [steps] * 3
    assert tour.parts["stand still"][0][2] > 1.3  # m: the torso of one that stands
    assert tour.parts["get up"][0][2] < 0.8


def test_a_tour_asks_who_follows_for_something_that_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexrl.motor_settings.SETTLING", 0.0)  # commands that change more often than can be followed
    follow = {"still": 0.9, "every": (0.02, 0.02)}
    settings = MotorSettings(task="mixed", skills={"stand_still": 1, "follow": 1}, tasks={"follow": follow}, num_threads=1)
    batch = MotorBatch(settings.model_copy(update={"num_envs": 1}), seed=0)
    batch.reset(np.arange(1))
    _ask_for(batch, "follow")
    asked = batch.asked.command[0].copy()
    assert np.linalg.norm(asked) >= SHOWS
    for _ in range(5):  # 75 ms
        batch.step(np.zeros((1, 17), np.float32))
        np.testing.assert_array_equal(batch.asked.command[0], asked)


def test_evaluations_spread_evenly_whatever_the_weights() -> None:
    settings = MotorSettings(task="mixed", skills={"stand_still": 1.0, "recover": 5.0, "turn_left": 0.0, "follow": 0.5})
    batch = MotorBatch(evaluation_settings(settings, 6), seed=0)
    batch.reset(np.arange(6))
    assert [batch.skills[i] for i in batch.asked.skill] == ["stand_still", "recover", "follow"] * 2


def test_staggered_episodes_of_one_length_do_not_end_together() -> None:
    settings = MotorSettings(task="recover", num_envs=8, num_threads=1, tasks={"recover": {"max_steps": 40}})

    def ends(stagger: bool, seed: int) -> list[int]:
        """The steps at which an episode ended first, one for each simulation."""
        world = MotorWorld(settings.model_copy(update={"stagger": stagger}), seed=seed)
        world.reset()
        first = [0] * 8
        for step in range(1, 41):
            _, _, done, infos = world.step(np.zeros((8, 17), np.float32))
            assert all(infos[i]["episode"]["l"] == step for i in np.flatnonzero(done) if not first[i])
            first = [step if over and not before else before for over, before in zip(done, first, strict=True)]
        return first

    assert ends(False, 0) == [40] * 8
    assert len(set(ends(True, 0))) > 4
    assert ends(True, 0) == ends(True, 0) != ends(True, 1)
    assert all(ends(True, 0))
    assert evaluation_settings(settings.model_copy(update={"stagger": True}), 2).stagger is False


def test_a_task_may_begin_from_more_lying_postures_or_fewer() -> None:
    def heights(poses: int | None) -> set[float]:
        overrides = {} if poses is None else {"recover": {"poses": poses}}
        batch = MotorBatch(MotorSettings(task="recover", num_envs=32, num_threads=1, tasks=overrides), seed=0)
        batch.reset(np.arange(32))
        return set(batch.physics.qpos[:, 2].round(6).tolist())

    assert len(heights(2)) == 2
    assert len(heights(None)) > 20
    assert len(heights(1024)) > 20
    with pytest.raises(ValueError, match=r"world\.tasks\.walk_forward\.poses: task walk_forward does not begin lying"):
        resolve_tasks(MotorSettings(tasks={"walk_forward": {"poses": 3}}))


def test_postures_that_nobody_got_up_from_come_more_often() -> None:
    """And the counts go on exactly, begin anew with another seed's bank, and are left away in evaluations."""
    settings = MotorSettings(
        task="mixed", skills={"recover": 1.0, "walk_forward": 1.0}, num_envs=8, num_threads=1, pose_levels=(0.5, 0.5),
        tasks={"recover": {"poses": 4, "max_steps": 3}, "walk_forward": {"max_steps": 3}},
    )  # fmt: skip
    batch, counts = MotorBatch(settings, seed=0), np.zeros(4)
    for round_ in range(300):
        batch.reset(np.arange(8))
        lying, poses = batch.asked.skill == 0, batch.asked.pose.copy()
        np.testing.assert_array_equal(poses >= 0, lying)
        bank = batch.tasks[0].reset.bank(batch.physics)
        np.testing.assert_allclose(batch.physics.qpos[lying, 2], bank[poses[lying], 2])
        if round_ >= 50:
            counts += np.bincount(poses[lying], minlength=4)
        assert batch.measures is not None
        batch.measures.num_counted[:] = 1  # not too short to tell
        for i in range(8):
            batch.ended(i, bool(poses[i] != 2))  # one fails always
        np.testing.assert_array_equal(batch.asked.pose, -1)  # an episode is counted once
    np.testing.assert_allclose(counts / counts.sum(), np.array([0.25, 0.25, 1.25, 0.25]) / 2, atol=0.05)
    batch.reset(np.arange(8))
    lies = int(np.argmax(batch.asked.pose >= 0))
    batch.begin_skill(lies, 1)  # its part at getting up was not counted; the next one is no posture's
    batch.ended(lies, False)
    assert batch.asked.pose[lies] == -1
    other = MotorBatch(settings, seed=0)
    other.set_state(batch.get_state())
    for one in (batch, other):
        for i in range(8):
            one.ended(i, i % 2 == 0)
        one.reset(np.arange(8))
    np.testing.assert_array_equal(other.asked.pose, batch.asked.pose)
    np.testing.assert_array_equal(other.physics.qpos, batch.physics.qpos)
    smaller = settings.model_copy(update={"tasks": {"recover": TaskOverrides(poses=2)}})
    for changed in (smaller, settings.model_copy(update={"pose_levels": None})):
        another = MotorBatch(changed, seed=0)
        another.set_state(batch.get_state())
        for i in range(8):
            another.ended(i, True)
    older = MotorBatch(settings, seed=0)
    older.set_state({name: array for name, array in batch.get_state().items() if "pose" not in name})
    np.testing.assert_array_equal(older.asked.pose, -1)
    batch.seed(1)
    assert not any(poses.levels.any() for poses in batch.asked._poses.values())
    assert evaluation_settings(settings, 4).pose_levels is None


def test_postures_begin_at_the_curriculum_s_level() -> None:
    settings = MotorSettings(
        task="recover", num_envs=2, num_threads=1, pose_levels=(0.5, 0.5), curriculum={"start": 0.4},
        tasks={"recover": {"poses": 3}},
    )  # fmt: skip
    batch = MotorBatch(settings, seed=0)
    batch.reset(np.arange(2))
    np.testing.assert_array_equal(batch.asked.level, 0.4)
    batch.asked.ended(0, True)
    assert batch.asked.curriculum is not None
    assert batch.asked.curriculum.levels[0] == pytest.approx((0.4 + 0.4 + 0.9) / 3)


def test_getting_up_may_end_once_it_is_decided() -> None:
    settings = MotorSettings(task="recover", num_envs=6, num_threads=1, end_upright=1.0)
    batch = MotorBatch(settings, seed=0)
    batch.reset(np.arange(6))
    assert batch.measures is not None
    # s: in time and long enough; not long enough; too late; late but not yet a second; lying for good; upright once more, late
    batch.measures.elapsed[:] = [2.5, 2.5, 4.2, 3.9, 4.1, 4.1]
    batch.measures.upright_for[:] = [1.1, 0.5, 1.1, 0.0, 0.0, 0.2]
    fell = np.zeros(6, bool)
    np.testing.assert_array_equal(batch._decided(batch.measures), [True, False, True, False, True, True])
    np.testing.assert_array_equal(batch.success(fell), [True, False, False, False, False, False])
    batch.measures.upright_at[:] = 2.0  # by the whole rule, which evaluations have
    whole = MotorBatch(evaluation_settings(settings, 6), seed=0)
    whole.measures = batch.measures
    assert not whole._decided(batch.measures).any()
    assert whole.success(fell).all()
