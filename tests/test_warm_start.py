"""A policy that never saw a goal, gone on with as one that does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flexrl import config, snapshots
from flexrl.config import UserError
from flexrl.learner_settings import SETTINGS
from flexrl.learners import Learner, make_learner
from flexrl.normaliser import Numbers
from flexrl.policies import Snapshot, open_snapshot, snapshot_files
from flexrl.tasks import SKILLS
from flexrl.text_encoders import NUM_FEATURES, Encoder, hashed_ngrams
from flexrl.training import TrainSettings
from flexrl.warm_start import Parent, Parents, init_from
from flexrl.worlds import make_world, normalise

UNAWARE = ["world.task=mixed", "world.num_envs=8", "learner.n_steps=8", "learner.batch_size=32", "world.num_threads=1"]
AWARE = [*UNAWARE, "world.goal=[one_hot, command]"]


def alone(parent: Snapshot) -> Parents:
    return Parents(Parent(f"init_from: {parent.folder}", parent), {})


def learner_of(settings: TrainSettings) -> Learner:
    world = normalise(make_world(settings.world, 0), settings.normalize_observations, settings.normalize_rewards, 0.99)
    return make_learner(settings.learner, world, num_steps=1000, seed=0, device="cpu")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    settings = config.load(TrainSettings, None, UNAWARE)
    learner = learner_of(settings)
    for _ in range(3):
        learner.improve()
    folder = tmp_path_factory.mktemp("parent") / "best"
    snapshots.write(folder, snapshot_files(learner, settings, {}) | {"lineage.json": b"{}"})
    return open_snapshot(folder)


def test_step_zero_acts_and_judges_exactly_as_before(parent: Snapshot) -> None:
    settings = config.load(TrainSettings, None, AWARE)
    learner = learner_of(settings)
    init_from(learner, alone(parent), settings.world)
    before = learner_of(config.load(TrainSettings, None, UNAWARE))
    init_from(before, alone(parent), before.world.unwrapped.batch.settings)  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    known = before.world.observation_space.shape[0]  # type: ignore[index]
    obs = rng.standard_normal((50, learner.world.observation_space.shape[0])).astype(np.float32)  # type: ignore[index]
    policy, old = (each.model.policy for each in (learner, before))
    normal: Any = [each.normaliser.normalize_obs(o) for each, o in ((learner, obs), (before, obs[:, :known]))]  # type: ignore[union-attr]
    np.testing.assert_array_equal(normal[0][:, :known], normal[1])
    np.testing.assert_array_equal(
        policy.predict(normal[0], deterministic=True)[0], old.predict(normal[1], deterministic=True)[0]
    )
    values = [each.predict_values(torch.from_numpy(o)) for each, o in ((policy, normal[0]), (old, normal[1]))]
    assert torch.equal(*values)
    start = learner.policy_arrays()
    learner.improve()
    goal = learner.policy_arrays()["mlp_extractor.policy_net.0.weight"][:, known:]
    assert np.abs(goal).max() > 0  # it learns to look at its goal
    assert not np.array_equal(start["action_net.weight"], learner.policy_arrays()["action_net.weight"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["world.body=half_cheetah", "world.task=v5", "world.goal=[]"], "its body is humanoid, here it is half_cheetah"),
        (["world.observation=v5"], "its observation is proprio, here it is v5"),
        (["learner.policy_kwargs.net_arch=[32, 32]"], r"write its policy_kwargs\.net_arch"),
        (["learner.name=recurrent_ppo", "learner.policy=MlpLstmPolicy"], "is a network of another kind"),
        (["world={kind: gymnasium, id: Pendulum-v1}"], "only a policy of a motor world"),
        (["normalize_observations=false"], "its normalize_observations is true"),
        (["learner.policy_kwargs.activation_fn=tanh"], r"its learner\.policy_kwargs\.activation_fn is elu, here it is tanh"),
        (["learner.policy=MlpPolicy"], r"its learner\.policy is MirroredPolicy, here it is MlpPolicy"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(parent: Snapshot, changes: list[str], words: str) -> None:
    base = AWARE if "gymnasium" not in changes[0] else AWARE[2:4]
    settings = config.load(TrainSettings, None, [*base, *changes])
    with pytest.raises(UserError, match=words) as caught:
        init_from(learner_of(settings), alone(parent), settings.world)
    assert "\n" not in str(caught.value)


def child_of(folder: Path, parent: list[str], child: list[str]) -> Learner:
    """A learner of settings `child` that begins with what a fresh one of `parent` is."""
    settings = config.load(TrainSettings, None, [*UNAWARE, *parent])
    snapshots.write(folder, snapshot_files(learner_of(settings), settings, {}) | {"lineage.json": b"{}"})
    settings = config.load(TrainSettings, None, [*UNAWARE, *child])
    learner = learner_of(settings)
    init_from(learner, alone(open_snapshot(folder)), settings.world)
    return learner


def test_words_are_of_the_encoder_that_the_parent_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "flexrl.goals.find_encoder", lambda name: Encoder(NUM_FEATURES, hashed_ngrams)
    )  # as if a transformer were there
    words = ["world.goal=[embedding]"]
    with pytest.raises(UserError, match="its encoder is hashed_ngrams, here it is transformer:bert"):
        child_of(tmp_path / "best", words, [*words, "world.encoder=transformer:bert"])
    child_of(tmp_path / "other", ["world.encoder=transformer:bert"], words)  # which had nothing to encode


def test_skills_are_the_same_whether_they_are_spelled_out_or_not(tmp_path: Path) -> None:
    skills = "{" + ", ".join(f"{skill}: 1" for skill in SKILLS["humanoid"]) + "}"
    goal = "world.goal=[one_hot]"
    child_of(tmp_path / "best", [goal], [goal, f"world.skills={skills}"])


def test_a_parent_that_normalised_nothing_leaves_rewards_to_be_counted_anew(tmp_path: Path) -> None:
    raw = ["normalize_observations=false"]
    learner = child_of(tmp_path / "best", [*raw, "normalize_rewards=false"], raw)
    assert learner.normaliser is not None
    assert learner.normaliser.ret_rms.var == 1.0


def test_returns_are_counted_on_where_they_were(parent: Snapshot) -> None:
    """Else the way from 0 to their mean would count as variance, and rewards shrink."""
    counted = snapshots.read_arrays(parent.folder / "normaliser.safetensors")
    settings = config.load(TrainSettings, None, AWARE)
    learner = learner_of(settings)
    init_from(learner, alone(parent), settings.world)
    assert learner.normaliser is not None
    returns = learner.normaliser.ret_rms
    assert float(returns.mean) == float(counted["return_mean"]) > 1.0
    assert float(returns.var) == float(counted["return_variance"])
    before = returns.mean.copy(), returns.var.copy()
    returns.update(np.full(8, float(before[0])))
    assert float(returns.mean) == pytest.approx(float(before[0]))
    assert float(returns.var) <= float(before[1])


def test_a_critic_of_raw_rewards_does_not_judge_normalised_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its normalize_rewards is false; write the same"):
        child_of(tmp_path / "best", ["normalize_rewards=false"], [])


@pytest.mark.parametrize("name", ["sac", "tqc"])
def test_critics_of_actions_judge_exactly_as_before(tmp_path: Path, name: str) -> None:
    """The goal's inputs come between what they saw and the action."""
    base = ["learner={name: " + name + "}", "world.task=mixed", "world.num_envs=2", "world.num_threads=1"]
    base += ["learner.buffer_size=100", "learner.policy_kwargs.net_arch=[16]"]
    settings = config.load(TrainSettings, None, base)
    old = learner_of(settings)
    snapshots.write(tmp_path / "best", snapshot_files(old, settings, {}) | {"lineage.json": b"{}"})
    aware = config.load(TrainSettings, None, [*base, "world.goal=[one_hot, command]"])
    learner = learner_of(aware)
    init_from(learner, alone(open_snapshot(tmp_path / "best")), aware.world)
    known, size = (each.world.observation_space.shape[0] for each in (old, learner))  # type: ignore[index]
    rng = np.random.default_rng(0)
    obs = torch.from_numpy(rng.standard_normal((20, size)).astype(np.float32))
    actions = torch.from_numpy(rng.uniform(-1, 1, (20, learner.world.action_space.shape[0])).astype(np.float32))  # type: ignore[index]
    for which in ("critic", "critic_target"):
        before, after = (getattr(each.model.policy, which) for each in (old, learner))
        with torch.no_grad():
            judged = before(obs[:, :known], actions), after(obs, actions)
        for ours, theirs in zip(*(each if isinstance(each, tuple) else (each,) for each in judged), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_network_of_another_kind_is_refused_where_skills_are_apart(tmp_path: Path) -> None:
    sac = ["learner={name: sac, buffer_size: 100, policy_kwargs: {activation_fn: elu}}", "world.num_envs=2"]
    world = ["world.body=half_cheetah", "world.task=mixed", "world.num_threads=1", "world.goal=[one_hot]"]
    settings = config.load(TrainSettings, None, [*world, *sac])
    snapshots.write(tmp_path / "best", snapshot_files(learner_of(settings), settings, {}) | {"lineage.json": b"{}"})
    ppo = "learner={name: ppo, n_steps: 8, batch_size: 16, apart: [recover], policy_kwargs: {activation_fn: elu}}"
    settings = config.load(TrainSettings, None, [*world, "world.num_envs=2", ppo])
    with pytest.raises(UserError, match="is a network of another kind; write the learner's name, policy"):
        init_from(learner_of(settings), alone(open_snapshot(tmp_path / "best")), settings.world)


@pytest.mark.parametrize("net_arch", [[], {"pi": [], "vf": [4]}, [4]])
def test_weights_for_another_normaliser_answer_as_before(net_arch: Any) -> None:
    world = make_world(config.load(TrainSettings, None, ["world.num_envs=2", "world.num_threads=1"]).world)
    kwargs = {"net_arch": net_arch}
    learner = make_learner(SETTINGS["ppo"](policy="MlpPolicy", policy_kwargs=kwargs), world, num_steps=10, seed=0, device="cpu")
    size = world.observation_space.shape[0]  # type: ignore[index]
    rng = np.random.default_rng(0)
    own, other = (Numbers(rng.normal(size=size), rng.uniform(0.5, 2, size), np.array(v), 1.0) for v in (2.0, 3.0))
    obs, policy = rng.normal(size=(5, size)), learner.model.policy

    def answer(numbers: Numbers) -> tuple[torch.Tensor, torch.Tensor]:
        seen = torch.as_tensor((obs - numbers.mean) / np.sqrt(numbers.variance + 1e-8), dtype=torch.float32)  # type: ignore[operator]
        with torch.no_grad():
            values = policy.predict_values(seen) * np.sqrt(numbers.return_variance + 1e-8)  # type: ignore[operator]
            return policy.get_distribution(seen).distribution.mean, values

    before = answer(own)
    translated = own.translate(learner.policy_arrays(), other)
    policy.load_state_dict({name: torch.from_numpy(array) for name, array in translated.items()})
    torch.testing.assert_close(answer(other), before, rtol=1e-4, atol=1e-4)


def test_crossq_is_gone_on_with(tmp_path: Path) -> None:
    """Its batch norms count in arrays without a dimension."""
    crossq = ["learner={name: crossq}", "learner.buffer_size=200", "world.num_envs=2"]
    learner = child_of_plain(tmp_path / "best", crossq)
    stored = snapshots.read_arrays(tmp_path / "best" / "policy.safetensors")
    assert any(array.shape == () for array in stored.values())
    for name, array in learner.policy_arrays().items():
        np.testing.assert_array_equal(array, stored[name])


def child_of_plain(folder: Path, changes: list[str]) -> Learner:
    """A learner that begins with what a fresh one of another seed is, of the same settings."""
    settings = config.load(TrainSettings, None, changes)
    world = normalise(make_world(settings.world, 0), True, True, 0.99)
    parent = make_learner(settings.learner, world, num_steps=1000, seed=1, device="cpu")
    snapshots.write(folder, snapshot_files(parent, settings, {}) | {"lineage.json": b"{}"})
    learner = learner_of(settings)
    init_from(learner, alone(open_snapshot(folder)), settings.world)
    return learner
