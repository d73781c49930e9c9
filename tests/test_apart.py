"""Skills with a network of their own within one policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity import assert_same_update

from flexrl import config, snapshots
from flexrl.config import UserError
from flexrl.learner_settings import SETTINGS
from flexrl.learners import Learner, make_learner
from flexrl.motor_settings import MotorSettings
from flexrl.observations import action_mirror
from flexrl.policies import load_policy, open_snapshot, snapshot_files
from flexrl.training import TrainSettings
from flexrl.warm_start import Parent, Parents, init_from
from flexrl.worlds import make_world, normalise

SKILLS = {"turn_left": 1, "turn_right": 1, "recover": 1}
WORLD = MotorSettings(
    task="mixed",
    skills=SKILLS,
    goal=["one_hot", "command"],
    switch=(0.05, 0.1),
    tasks={"recover": {"poses": 4, "max_steps": 5}, **{key: {"max_steps": 5} for key in ("turn_left", "turn_right")}},
    num_envs=6,
    num_threads=1,
)
ONE_HOT = WORLD.model_copy(update={"switch": None})


def learner_on(world: MotorSettings, **changes: Any) -> Learner:
    kwargs = {"net_arch": {"pi": [16, 8], "vf": [12]}}
    settings = SETTINGS["ppo"](
        **({"policy": "auto", "n_steps": 8, "batch_size": 16, "n_epochs": 2, "policy_kwargs": kwargs} | changes)
    )
    return make_learner(
        settings, normalise(make_world(world, seed=1), True, True, 0.99), num_steps=10_000, seed=1, device="cpu"
    )


def seen(learner: Learner, skill: str, count: int = 5) -> np.ndarray:
    """Normalised observations of bodies that are asked for `skill`, (count, obs_dim)."""
    batch = learner.world.unwrapped.batch  # type: ignore[attr-defined]
    obs = np.random.default_rng(0).standard_normal((count, batch.observation.size)).astype(np.float32)
    columns = batch.observation.first_column("one_hot") + np.arange(len(SKILLS))
    obs[:, columns] = np.where(np.array(batch.skills) == skill, 0.7, -0.7)
    return obs


def act(learner: Learner, obs: np.ndarray) -> np.ndarray:
    return learner.model.policy.predict(obs, deterministic=True)[0]  # type: ignore[no-any-return]


def disturb(learner: Learner) -> None:
    """Towers that differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learner.model.policy.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def parents(shared: Path, **apart: Path) -> Parents:
    others = {skill: Parent(f"init_apart.{skill}: {path}", open_snapshot(path)) for skill, path in apart.items()}
    return Parents(Parent(f"init_from: {shared}", open_snapshot(shared)), others)


@pytest.mark.parametrize("policy", ["MirroredPolicy", "MlpPolicy"])
def test_a_network_apart_answers_its_skill_and_no_other(policy: str) -> None:
    learner = learner_on(WORLD, policy=policy, apart=["recover"])
    obs = {skill: seen(learner, skill) for skill in SKILLS}
    before = {skill: act(learner, obs[skill]) for skill in SKILLS}
    with torch.no_grad():
        for towers in list(learner.model.policy.towers())[1:]:  # type: ignore[union-attr,operator]
            towers.action_net.bias += torch.linspace(0.1, 0.9, 17)
    for skill in SKILLS:
        assert np.array_equal(before[skill], act(learner, obs[skill])) == (skill != "recover"), skill


def test_the_mirror_holds_with_networks_apart_for_left_alone() -> None:
    learner = learner_on(WORLD, policy="MirroredPolicy", apart=["turn_left"])
    disturb(learner)
    batch = learner.world.unwrapped.batch  # type: ignore[attr-defined]
    mirror, policy = batch.observation.mirror(), learner.model.policy
    for skill in SKILLS:
        obs = seen(learner, skill)
        np.testing.assert_allclose(act(learner, mirror(obs)), action_mirror(batch.physics)(act(learner, obs)), atol=1e-6)
        values = [policy.predict_values(torch.as_tensor(o)).detach() for o in (obs, mirror(obs))]  # type: ignore[operator]
        torch.testing.assert_close(values[0], values[1])


@pytest.mark.parametrize(
    "changes", [{"policy": "MlpPolicy"}, {"policy": "MirroredPolicy", "ent_coef": 0.01, "clip_range": 0.05}]
)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_written_out_gradients_are_autograds_with_networks_apart(changes: dict[str, Any]) -> None:
    """The rollout and the weights after the update agree with SB3's own methods', from towers that differ."""
    changes = {"apart": ["recover", "turn_left"], "normalize_advantage": False, "batch_size": 24, **changes}
    ours, theirs, start = (learner_on(ONE_HOT, **changes) for _ in range(3))
    for learner in (ours, theirs, start):
        disturb(learner)
    assert_same_update(ours, theirs, start)


def test_advantages_have_a_scale_for_each_network() -> None:
    learner = learner_on(WORLD, apart=["recover"])
    model: Any = learner.model
    learner.improve()
    advantages, observations = (torch.as_tensor(getattr(model.rollout_buffer, name)) for name in ("advantages", "observations"))
    route = model.policy.route(observations.reshape(-1, observations.shape[-1]))
    assert set(route.tolist()) == {0, 1}
    for which in (0, 1):
        its = advantages.flatten()[route.reshape(advantages.shape).flatten() == which]
        assert its.mean() == pytest.approx(0, abs=1e-5)
        assert its.std(correction=0) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("changes", "sb3"), [({"smooth_coef": 0.1, "max_action_std": 0.2}, False), ({}, False), ({}, True)])
def test_a_frozen_network_stays_as_it_was_and_so_does_what_it_sees(
    changes: dict[str, Any], sb3: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others learn; by SB3's own update too, which takes over on a GPU."""
    learner = learner_on(WORLD, apart=["turn_left", "recover"], frozen=["recover"], **changes)
    disturb(learner)
    if sb3:
        monkeypatch.setattr(learner.model, "_is_plain", lambda: False)
    before = {name: array.copy() for name, array in learner.policy_arrays().items()}
    mean = learner.normaliser.obs_rms.mean.copy()  # type: ignore[union-attr]
    for _ in range(3):
        learner.improve()
    for name, array in learner.policy_arrays().items():
        if name == "log_std":
            assert np.array_equal(array[2], before[name][2])
            assert (array[:2] != before[name][:2]).all()
        else:
            assert np.array_equal(array, before[name]) == name.startswith("others.1."), name
    np.testing.assert_array_equal(mean, learner.normaliser.obs_rms.mean)  # type: ignore[union-attr]


def test_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    learner = learner_on(WORLD, apart=["recover"], smooth_coef=0.1, max_action_std=0.4)
    for _ in range(3):
        learner.improve()
    document, arrays = snapshots.pack_tree(learner.get_state())
    (tmp_path / "arrays").write_bytes(arrays)
    learner.improve()
    other = learner_on(WORLD, apart=["recover"], smooth_coef=0.1, max_action_std=0.4)
    other.set_state(snapshots.unpack_tree(document, snapshots.read_arrays(tmp_path / "arrays")))
    other.improve()
    for key, value in learner.policy_arrays().items():
        np.testing.assert_array_equal(other.policy_arrays()[key], value, err_msg=key)
    assert learner.policy_arrays()["log_std"].shape == (2, 17)


def settings_of(world: MotorSettings, **changes: Any) -> TrainSettings:
    kwargs = {"net_arch": {"pi": [16, 8], "vf": [12]}}
    learner = SETTINGS["ppo"](**({"policy": "auto", "n_steps": 8, "batch_size": 16, "policy_kwargs": kwargs} | changes))
    return TrainSettings(world=world, learner=learner)


def test_a_snapshot_plays_as_the_learner_does(tmp_path: Path) -> None:
    learner = learner_on(WORLD, apart=["recover"])
    learner.improve()
    snapshots.write(tmp_path / "best", snapshot_files(learner, settings_of(WORLD, apart=["recover"]), {}))
    policy = load_policy(open_snapshot(tmp_path / "best"))
    for skill in SKILLS:
        obs = seen(learner, skill)
        raw = learner.normaliser.unnormalize_obs(obs)  # type: ignore[union-attr]
        np.testing.assert_allclose(policy.act(raw), act(learner, obs), atol=1e-4)


def test_a_policy_of_one_network_goes_on_as_several(tmp_path: Path) -> None:
    unaware = WORLD.model_copy(update={"goal": []})
    parent = learner_on(unaware)
    parent.improve()
    snapshots.write(tmp_path / "parent", snapshot_files(parent, settings_of(unaware), {}))
    child = learner_on(WORLD, apart=["recover"])
    init_from(child, parents(tmp_path / "parent"), WORLD)
    obs = np.random.default_rng(0).standard_normal((6, child.world.observation_space.shape[0])).astype(np.float32)
    known = parent.world.observation_space.shape[0]
    np.testing.assert_array_equal(act(child, obs), act(parent, obs[:, :known]))


def test_networks_of_one_skill_do_not_become_another_s(tmp_path: Path) -> None:
    parent = learner_on(WORLD, apart=["recover"])
    snapshots.write(tmp_path / "parent", snapshot_files(parent, settings_of(WORLD, apart=["recover"]), {}))
    with pytest.raises(
        UserError, match=r"its learner\.apart is \['recover'\], here it is \['turn_left'\]; write what it has, or more"
    ):
        init_from(learner_on(WORLD, apart=["turn_left"]), parents(tmp_path / "parent"), WORLD)
    child = learner_on(WORLD, apart=["recover"])
    init_from(child, parents(tmp_path / "parent"), WORLD)
    for key, value in parent.policy_arrays().items():
        np.testing.assert_array_equal(child.policy_arrays()[key], value, err_msg=key)


def test_a_policy_of_several_networks_goes_on_as_more(tmp_path: Path) -> None:
    """A skill that had a network of its own keeps it, at whatever place; the others begin with the one that was shared."""
    parent = learner_on(WORLD, apart=["recover"])
    disturb(parent)
    snapshots.write(tmp_path / "parent", snapshot_files(parent, settings_of(WORLD, apart=["recover"]), {}))
    child = learner_on(WORLD, apart=["turn_left", "recover"])
    disturb(child)
    init_from(child, parents(tmp_path / "parent"), WORLD)
    for skill in SKILLS:
        obs = seen(parent, skill)
        np.testing.assert_array_equal(act(child, obs), act(parent, obs), err_msg=skill)
    theirs, ours = parent.policy_arrays()["log_std"], child.policy_arrays()["log_std"]
    np.testing.assert_array_equal(ours, theirs[[0, 0, 1]])


def test_networks_of_several_policies_become_one_policy_s(tmp_path: Path) -> None:
    """Each answers and judges its skills as it did, whatever normaliser it was trained with."""
    made: dict[str, Learner] = {}
    for i, name in enumerate(("feet", "up")):
        made[name] = learner_on(WORLD, policy="MlpPolicy")
        made[name].improve()
        disturb(made[name])
        normaliser: Any = made[name].normaliser
        batch = made[name].world.unwrapped.batch  # type: ignore[attr-defined]
        columns = batch.observation.first_column("one_hot") + np.arange(len(SKILLS))
        rng = np.random.default_rng(i)
        normaliser.obs_rms.mean = rng.normal(size=batch.observation.size)
        normaliser.obs_rms.mean[columns] = 0.5
        normaliser.obs_rms.var = 0.2 + rng.uniform(size=batch.observation.size)
        normaliser.ret_rms.var = np.float64(1.0 + 3 * i)
        files = snapshot_files(made[name], settings_of(WORLD, policy="MlpPolicy"), {})
        snapshots.write(tmp_path / name, files)
    child = learner_on(WORLD, policy="MlpPolicy", apart=["recover"])
    init_from(child, parents(tmp_path / "feet", recover=tmp_path / "up"), WORLD)
    raw = np.random.default_rng(5).normal(size=(6, child.world.observation_space.shape[0])).astype(np.float32)  # type: ignore[index]

    def assert_acts_as_both(child: Learner) -> None:
        for index, skill in enumerate(SKILLS):
            raw[:, columns] = np.eye(3)[index]
            parent = made["up" if skill == "recover" else "feet"]
            answers, values = [], []
            for learner in (child, parent):
                normal: Any = learner.normaliser.normalize_obs(raw)  # type: ignore[union-attr]
                answers.append(act(learner, normal))
                scale = np.sqrt(learner.normaliser.ret_rms.var).item()  # type: ignore[union-attr]
                values.append(learner.model.policy.predict_values(torch.as_tensor(normal)).detach() * scale)  # type: ignore[operator]
            np.testing.assert_allclose(*answers, atol=1e-4)
            torch.testing.assert_close(*values, atol=1e-3, rtol=1e-3)
        np.testing.assert_array_equal(child.policy_arrays()["log_std"], [m.policy_arrays()["log_std"] for m in made.values()])

    assert_acts_as_both(child)
    snapshots.write(tmp_path / "two", snapshot_files(child, settings_of(WORLD, policy="MlpPolicy", apart=["recover"]), {}))
    for shared, own in (("feet", "two"), ("two", "up")):  # parents that have networks apart themselves
        another = learner_on(WORLD, policy="MlpPolicy", apart=["recover"])
        init_from(another, parents(tmp_path / shared, recover=tmp_path / own), WORLD)
        assert_acts_as_both(another)
    unaware = WORLD.model_copy(update={"goal": []})
    blind = learner_on(unaware, policy="MlpPolicy")
    snapshots.write(tmp_path / "blind", snapshot_files(blind, settings_of(unaware, policy="MlpPolicy"), {}))
    with pytest.raises(UserError, match=r"init_apart.recover: .*up: it sees another goal than init_from: .*blind; they must"):
        init_from(child, parents(tmp_path / "blind", recover=tmp_path / "up"), WORLD)
    other = learner_on(WORLD, policy="MlpPolicy", apart=["turn_left"])
    with pytest.raises(UserError, match=r"two: its learner.apart is \['recover'\], here it is \['turn_left'\]"):
        init_from(other, parents(tmp_path / "feet", turn_left=tmp_path / "two"), WORLD)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["init_apart.recover=x"], "init_apart: the skills that are not apart need a network too; write init_from"),
        (["init_apart.recover=x", "init_from=y"], r"init_apart.recover: recover has no network apart; add it to learner.apart"),
    ],
)
def test_a_network_to_begin_with_needs_a_place(changes: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        config.load(TrainSettings, None, changes)


def test_a_later_stage_takes_the_network_apart_from_its_parent(tmp_path: Path) -> None:
    stages = {
        "joined": "world: {task: mixed, goal: [one_hot]}\nlearner: {apart: [recover]}\n"
        "init_from: feet\ninit_apart: {recover: up}\n",
        "changes": "base: joined.yaml\ninit_from: joined\ninit_apart: {recover: null}\n",
    }
    for name, text in stages.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    joined, changes = (config.load(TrainSettings, tmp_path / f"{name}.yaml") for name in stages)
    assert joined.parents == ["feet", "up"]
    assert changes.parents == ["joined"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["learner.frozen=[recover]"], r"learner.frozen: recover has no network apart; add it to learner.apart"),
        (
            ["world.task=mixed", "world.goal=[one_hot]", "learner.apart=[recover]", "learner.frozen=[recover]"],
            "learner.frozen: a network that stays as it begins must have learned before; write init_from",
        ),
        (["world.task=mixed", "learner.apart=[recover]"], "learner.apart: needs a mixed motor world"),
        (["world.task=mixed", "world.goal=[one_hot]", "learner.apart=[fly]"], "learner.apart: the world has no skill 'fly'"),
        (
            ["world.task=mixed", "world.goal=[one_hot]", "learner.apart=[recover, recover]"],
            "learner.apart: expected each skill",
        ),
        (
            ["world.task=mixed", "world.goal=[one_hot]", "world.skills={recover: 1}", "learner.apart=[recover]"],
            "learner.apart: expected each skill once, and one",
        ),
    ],
)
def test_a_skill_that_cannot_be_apart_is_told(changes: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line.replace("[", r"\[")):
        config.load(TrainSettings, None, changes)
