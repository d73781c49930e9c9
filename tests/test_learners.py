"""Learners: every constructor argument is a setting, and a state goes on bit for bit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from parity import assert_same_update
from stable_baselines3.common.running_mean_std import RunningMeanStd

from flexrl import config, on_policy, ppo, recurrent_ppo, snapshots
from flexrl.config import UserError
from flexrl.learner_settings import LEARNERS, SETTINGS, parameters_of
from flexrl.learners import Learner, make_learner
from flexrl.motor_settings import MotorSettings
from flexrl.motor_world import MotorWorld
from flexrl.networks import MotorActorCriticPolicy
from flexrl.randomness import forked_randomness
from flexrl.training import TrainSettings, rehearse
from flexrl.worlds import GymnasiumSettings, MirroredMeanStd, make_world, normalise

SMALL: dict[str, dict[str, Any]] = {
    "ppo": {"n_steps": 8, "batch_size": 16, "n_epochs": 2},
    "recurrent_ppo": {"n_steps": 8, "batch_size": 16, "n_epochs": 2, "chunk_length": 4},
    "a2c": {"n_steps": 4},
    **{name: {"learning_starts": 8, "batch_size": 16, "buffer_size": 120} for name in ("sac", "tqc", "crossq")},
}


def small_learner(name: str, folder: Path | None, world: Any = None, **changes: Any) -> Learner:
    settings = SETTINGS[name](**(SMALL[name] | changes))
    tasks = {"v5": {"max_steps": 15}}
    world = world or MotorSettings(body="half_cheetah", task="v5", num_envs=4, num_threads=1, tasks=tasks)
    vec_env = normalise(make_world(world, seed=3), True, True, 0.99)
    return make_learner(settings, vec_env, num_steps=10_000, seed=1, device="cpu", replay_folder=folder)


def steps(learner: Learner, count: int) -> None:
    for _ in range(count):
        learner.improve()
        if learner.must_save():
            learner.saved()


def weights(learner: Learner) -> dict[str, np.ndarray]:
    return learner.policy_arrays() | {f"norm/{key}": value for key, value in learner.normaliser_arrays().items()}


NOISE = [
    ("sac", {"action_noise": {"sigma": 0.1}}),
    ("ppo", {"max_action_std": {"start": 0.5, "end": 0.1}, "bounds_coef": 0.1, "smooth_coef": 0.1}),
]


@pytest.mark.parametrize(("name", "changes"), [*((name, {}) for name in LEARNERS), *NOISE])
def test_a_restored_learner_goes_on_bit_for_bit(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """n rollouts, the state through files, n more in a fresh learner: the same weights as 2 n rollouts.

    The off-policy buffer (30 rows of 4 envs) is full by then, and rows are overwritten after the state was taken.
    """
    count = 4 if "ppo" in name or name == "a2c" else 34
    learner = small_learner(name, tmp_path / "replay", **changes)
    steps(learner, count)
    document, arrays = snapshots.pack_tree(learner.get_state())
    (tmp_path / "arrays").write_bytes(arrays)
    learner.saved()
    steps(learner, 2)  # a kill would lose these
    other = small_learner(name, tmp_path / "replay", **changes)
    torch.rand(5)
    other.set_state(snapshots.unpack_tree(document, snapshots.read_arrays(tmp_path / "arrays")))
    steps(other, count)
    whole = small_learner(name, None, **changes)
    steps(whole, 2 * count)
    assert other.num_steps == whole.num_steps
    for key, value in weights(whole).items():
        np.testing.assert_array_equal(weights(other)[key], value, err_msg=key)


def test_a_world_without_a_state_goes_on_with_its_normaliser_and_other_episodes() -> None:
    def fresh() -> Learner:
        world = normalise(make_world(GymnasiumSettings(id="Pendulum-v1", num_envs=2, subprocesses=False), 3), True, True, 0.99)
        return make_learner(SETTINGS["ppo"](**SMALL["ppo"]), world, num_steps=10_000, seed=1, device="cpu")

    learner = fresh()
    first = learner.world.reset()
    steps(learner, 3)
    state = learner.get_state()
    other = fresh()
    other.set_state(state)
    normaliser, restored = other.normaliser, other.model._last_obs
    assert normaliser is not None
    raw = normaliser.get_original_obs()
    np.testing.assert_allclose(restored, normaliser.normalize_obs(raw))
    np.testing.assert_allclose(normaliser.obs_rms.mean, learner.normaliser.obs_rms.mean, atol=0.2)  # type: ignore[union-attr]
    assert not normaliser.returns.any()  # no episode has brought anything yet
    begun = fresh()
    begun.world.reset()
    assert not np.allclose(raw, begun.normaliser.get_original_obs())  # type: ignore[union-attr]
    assert first.shape == raw.shape


@pytest.mark.parametrize("freq", [500, (500, "step"), (1, "episode")])
def test_the_journal_holds_what_a_rollout_adds(tmp_path: Path, freq: Any) -> None:
    world = GymnasiumSettings(id="Pendulum-v1", num_envs=1, subprocesses=False)
    learner = small_learner("sac", tmp_path / "replay", world, train_freq=freq, gradient_steps=1, buffer_size=2_000)
    steps(learner, 10 if freq != (1, "episode") else 20)
    assert learner.model.replay_buffer.full  # type: ignore[attr-defined]


def test_a_replay_buffer_that_finds_no_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its files together, as none of them takes any before it is written."""
    free = 4 * 17 * 30 * 4 + 1000  # B, room for the observations alone
    monkeypatch.setattr("flexrl.replay.shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(UserError, match=r"replay: needs .* GB are free; write a smaller learner.buffer_size"):
        small_learner("sac", tmp_path / "replay")


def test_n_step_returns_keep_their_buffer_too(tmp_path: Path) -> None:
    learner = small_learner("sac", tmp_path / "replay", n_steps=3)
    steps(learner, 34)  # of 30 rows: the ring has been round
    state = learner.get_state()
    learner.saved()
    rewards = learner.model.replay_buffer.rewards.copy()  # type: ignore[attr-defined]
    steps(learner, 2)
    assert not np.array_equal(learner.model.replay_buffer.rewards, rewards)  # type: ignore[attr-defined]
    other = small_learner("sac", tmp_path / "replay", n_steps=3)
    other.set_state(state)
    np.testing.assert_array_equal(other.model.replay_buffer.rewards, rewards)  # type: ignore[attr-defined]


def test_a_replay_buffer_that_is_gone_is_not_replaced_by_zeros(tmp_path: Path) -> None:
    learner = small_learner("sac", tmp_path / "replay")
    steps(learner, 20)
    state = learner.get_state()
    learner.saved()
    (tmp_path / "replay" / "rewards.dat").unlink()
    other = small_learner("sac", tmp_path / "replay")
    with pytest.raises(UserError, match=r"rewards\.dat: is missing"):
        other.set_state(state)


def test_an_attempt_that_saved_nothing_leaves_nothing_behind(tmp_path: Path) -> None:
    steps(small_learner("sac", tmp_path / "replay"), 5)  # then killed
    other = small_learner("sac", tmp_path / "replay")
    other.saved()  # as train.py does where there is no snapshot
    steps(other, 20)
    whole = small_learner("sac", None)
    steps(whole, 20)
    for key, value in weights(whole).items():
        np.testing.assert_array_equal(weights(other)[key], value, err_msg=key)


@pytest.mark.parametrize("name", LEARNERS)
def test_every_argument_of_the_constructor_is_a_setting(name: str) -> None:
    given = {"self", "env", "seed", "device", "verbose", "tensorboard_log", "policy_kwargs", "_init_setup_model"}
    classes = {"rollout_buffer_class", "rollout_buffer_kwargs", "replay_buffer_class", "replay_buffer_kwargs"}
    arguments = set(parameters_of(LEARNERS[name])) - given - classes
    assert arguments <= set(SETTINGS[name].model_fields)


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_schedules_and_networks_reach_sb3() -> None:
    settings = config.load(
        TrainSettings,
        None,
        [
            "learner.learning_rate={start: 1e-3, end: 1e-4}",
            "learner.policy_kwargs.net_arch=[32]",
            "learner.clip_range=0.1",
        ],
    )
    world = normalise(make_world(MotorSettings(num_envs=2)), True, True, 0.99)
    model: Any = make_learner(settings.learner, world, num_steps=100, seed=0, device="cpu").model
    assert model.lr_schedule(1.0) == pytest.approx(1e-3)
    assert model.lr_schedule(0.5) == pytest.approx(5.5e-4)
    assert model.lr_schedule(-0.3) == pytest.approx(1e-4)
    assert model.clip_range(0.3) == pytest.approx(0.1)
    assert isinstance(model.policy, MotorActorCriticPolicy)
    assert model.policy.action_net.in_features == 32


@pytest.mark.parametrize("name", ["ppo", "recurrent_ppo"])
def test_the_noise_of_actions_stays_below_its_bound(name: str) -> None:
    learner = small_learner(name, None, MotorSettings(num_envs=2, num_threads=1), max_action_std={"start": 0.5, "end": 0.1})
    model: Any = learner.model
    learner.total_steps = 4 * model.n_steps * model.n_envs
    log_std = model.policy.log_std
    with torch.no_grad():
        log_std[0] = np.log(0.02)  # what is below is left to PPO
    for bound in (0.5, 0.4, 0.3):
        learner.improve()
        std = log_std.exp().detach().numpy()
        assert np.abs(std[1:] / bound - 1).max() < 0.05  # an update moves it a little
        assert std[0] < 0.03


@pytest.mark.parametrize("name", ["ppo", "recurrent_ppo"])
def test_the_noise_of_actions_stays_above_its_bound(name: str) -> None:
    learner = small_learner(name, None, MotorSettings(num_envs=2, num_threads=1), min_action_std=0.8)
    learner.total_steps = 4 * learner.model.n_steps * learner.model.n_envs
    log_std = learner.model.policy.log_std
    with torch.no_grad():
        log_std.fill_(np.log(0.02))
        log_std[0] = np.log(0.9)
    learner.improve()
    std = log_std.exp().detach().numpy()
    assert np.abs(std[1:] / 0.8 - 1).max() < 0.05  # an update moves it a little
    assert std[0] == pytest.approx(0.9, rel=0.05)


@pytest.mark.parametrize("name", ["ppo", "recurrent_ppo"])
def test_returns_end_where_something_else_is_asked_for(name: str) -> None:
    """With the value of what would have been seen; here that is the next observation, whose value the buffer knows."""
    world = MotorSettings(
        task="mixed",
        skills={"walk_forward": 1.0, "turn_left": 1.0},
        goal=("one_hot",),
        switch=(0.05, 0.1),
        tasks={"walk_forward": {"max_steps": 13}},
        num_envs=4,
        num_threads=1,
    )
    learner = small_learner(name, None, world, n_steps=16, gae_lambda=0.9)
    model: Any = learner.model
    rewards: list[np.ndarray] = []
    where: list[tuple[int, int]] = []
    step_wait = learner.world.step_wait

    def step_as_if_unchanged() -> Any:
        obs, reward, dones, infos = step_wait()
        infos = [dict(info) for info in infos]
        for i, info in enumerate(infos):
            if "unchanged_observation" in info:
                info["unchanged_observation"] = learner.world.get_original_obs()[i]  # type: ignore[attr-defined]
                if len(rewards) < 15:
                    where.append((len(rewards), i))
        rewards.append(reward)
        return obs, reward, dones, infos

    learner.world.step_wait = step_as_if_unchanged  # type: ignore[method-assign]
    learner._begin()
    for bootstrap in (True, False):
        rewards.clear()
        where.clear()
        model.bootstrap_changes = bootstrap
        model.collect_rollouts(learner.world, learner._callback, model.rollout_buffer, model.n_steps)
        buffer = model.rollout_buffer
        assert len(where) >= 8
        assert not any(buffer.episode_starts[t + 1, i] for t, i in where)  # the episode goes on, and so does a memory
        for t, i in where:
            later = 0.0 if bootstrap else 0.9 * buffer.advantages[t + 1, i]
            expected = rewards[t][i] + 0.99 * (buffer.values[t + 1, i] + later)
            assert buffer.returns[t, i] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["ppo", "recurrent_ppo"])
def test_what_bounds_and_smoothness_add_to_the_gradient_is_autograds(name: str) -> None:
    coefficients = {"bounds_coef": 0.5} | ({"smooth_coef": 0.25} if name == "ppo" else {})
    tasks = {"walk_forward": {"max_steps": 5}}  # an episode begins within the rollout of 8 steps
    learner = small_learner(name, None, MotorSettings(num_envs=2, num_threads=1, tasks=tasks), **coefficients)
    model: Any = learner.model
    assert learner.improve()["train/bounds_loss"] == 0  # a new policy acts within the bounds
    policy = model.policy
    with torch.no_grad():
        policy.action_net.bias.copy_(torch.linspace(-2, 2, 17))
    parameters = list(policy.parameters())
    if name == "ppo":
        network: Any = ppo._Network(policy, model.batch_size)
        rollout = ppo._Rollout(model.rollout_buffer, network.policy)
        batch: Any = next(rollout.minibatches(model.batch_size, in_pairs=True))
        mean = policy.get_distribution(batch.observations[: len(batch.actions)]).distribution.mean
        assert batch.joined.sum() == len(mean) / 2 - 2  # of each env's four pairs, (4, 5) is of two episodes
        smooth_loss = ((mean[1::2] - mean[::2]).square().sum(dim=1) * batch.joined).sum() / len(mean)
        order = {tuple(action): step for step, action in enumerate(model.rollout_buffer.actions[:, 0])}
        steps = [order.get(tuple(action)) for action in batch.actions.numpy()]
        pairs = [pair for pair in zip(steps[::2], steps[1::2], strict=True) if pair[0] is not None]
        assert sorted(pairs) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    else:
        network = recurrent_ppo._Network(policy, model.batch_size)
        batch = next(iter(model.rollout_buffer.get(model.batch_size)))
        mean = policy.get_distribution(batch.observations, batch.lstm_states.pi, batch.episode_starts)[0].distribution.mean
        smooth_loss = torch.zeros(())
    loss = 0.5 * (mean.abs() - 1).clamp(min=0).square().sum(dim=1).mean() + 0.25 * smooth_loss
    assert loss > 0.1
    expected = torch.autograd.grad(loss, parameters, allow_unused=True)
    gradients = on_policy._flat_gradients(policy)
    found = []
    for share in (1.0, 0.0):
        for key, coefficient in coefficients.items():
            setattr(model, key, share * coefficient)
        with torch.no_grad():
            losses = on_policy._gradients(model, network, batch, 0.2, None)
        found.append((gradients.clone(), losses))
    added = torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(parameters, expected, strict=True)])
    assert torch.allclose(found[0][0] - found[1][0], added, atol=1e-5)
    assert float(found[0][1][-1] - found[1][1][-1]) == pytest.approx(loss.item(), rel=1e-4)


def test_mirrored_policy_answers_the_mirror_with_the_mirror() -> None:
    learner = small_learner("ppo", None, MotorSettings(num_envs=2, num_threads=1), policy="MirroredPolicy")
    batch = learner.world.unwrapped.batch  # type: ignore[attr-defined]
    from flexrl.observations import action_mirror

    obs = np.random.default_rng(0).standard_normal((5, batch.observation.size)).astype(np.float32)
    policy: Any = learner.model.policy
    act = lambda o: policy.predict(o, deterministic=True)[0]  # noqa: E731
    np.testing.assert_allclose(act(batch.observation.mirror()(obs)), action_mirror(batch.physics)(act(obs)), atol=1e-6)
    values = [policy.predict_values(torch.as_tensor(o)).detach() for o in (obs, batch.observation.mirror()(obs))]
    torch.testing.assert_close(values[0], values[1])


def test_left_and_right_look_alike_through_the_normaliser() -> None:
    """Whatever was asked for: a world that only turns left leaves no mean yaw rate behind. The mirror is exact, bit for bit."""
    learner = small_learner("ppo", None, MotorSettings(task="turn_left", num_envs=4, num_threads=1, goal=["command"]))
    steps(learner, 2)
    batch, normaliser = learner.world.unwrapped.batch, learner.normaliser  # type: ignore[attr-defined]
    assert normaliser is not None
    assert normaliser.obs_rms.count > 50
    obs = np.random.default_rng(0).standard_normal((5, batch.observation.size)).astype(np.float32)
    mirror = batch.observation.mirror()
    np.testing.assert_array_equal(normaliser.normalize_obs(mirror(obs)), mirror(normaliser.normalize_obs(obs)))
    assert normaliser.obs_rms.mean.any()
    assert (normaliser.obs_rms.var != 1).any()


def test_the_normaliser_counts_each_observation_and_its_mirror_image() -> None:
    batch = MotorWorld(MotorSettings(num_envs=4, num_threads=1), 0).batch
    mirror, rng = batch.observation.mirror(), np.random.default_rng(0)
    ours, plain = MirroredMeanStd(mirror), RunningMeanStd(shape=(batch.observation.size,))
    for count in (3, 50):
        obs = rng.normal(rng.normal(size=batch.observation.size), 2.0, (count, batch.observation.size))
        ours.update(obs)
        plain.update(np.concatenate([obs, mirror(obs)]))
    np.testing.assert_allclose(ours.mean, plain.mean, atol=1e-5)  # the first numbers weigh 1e-4 observations in both
    np.testing.assert_allclose(ours.var, plain.var, rtol=1e-4)


@pytest.mark.parametrize(
    ("policy", "activation", "changes"),
    [
        ("MlpPolicy", "tanh", {}),
        ("MlpPolicy", "relu", {"clip_range_vf": 0.05, "normalize_advantage": False, "ent_coef": 0.1}),
        ("MlpPolicy", "leakyrelu", {"clip_range": 0.02, "target_kl": 0.02, "n_epochs": 30}),
        ("MirroredPolicy", "elu", {"ent_coef": 0.01, "max_grad_norm": 0.05, "clip_range": 0.05}),
    ],
)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_our_ppo_is_sb3s_to_rounding(policy: str, activation: str, changes: dict[str, Any]) -> None:
    """From the same generators: the rollout, the weights after the update and the log agree with SB3's own methods'."""
    kwargs = {"activation_fn": activation, "net_arch": {"pi": [32, 16], "vf": [24]}}
    settings = {"policy": policy, "policy_kwargs": kwargs, "batch_size": 24, "learning_rate": 1e-3, **changes}
    world = MotorSettings(num_envs=8, num_threads=1, tasks={"walk_forward": {"max_steps": 5}})
    ours, theirs, start = (small_learner("ppo", None, world, **settings) for _ in range(3))
    metrics = assert_same_update(ours, theirs, start)
    rollout: Any = ours.model.rollout_buffer  # type: ignore[attr-defined]
    assert rollout.episode_starts.sum() >= 16  # the first steps, and those after episodes that time cut off
    assert metrics["train/n_updates"] < 30  # target_kl ends it


def test_any_gymnasium_env_trains_and_resumes_with_new_episodes(tmp_path: Path) -> None:
    world = GymnasiumSettings(id="Pendulum-v1", num_envs=2, subprocesses=False)
    learner = small_learner("ppo", None, world)
    assert learner.improve()["time/env_steps_per_second"] > 0
    state = learner.get_state()
    other = small_learner("ppo", None, world)
    other.set_state(state)
    assert other.how_exact().startswith("with new episodes")
    other.improve()
    assert other.num_steps == 32


def test_evaluation_randomness_does_not_move_the_training() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with forked_randomness(5):
        torch.rand(100)
        np.random.rand(3)
    torch.testing.assert_close(torch.rand(3), expected)


def test_a_rollout_of_one_step_is_enough_with_several_envs() -> None:
    settings = {"world": {"body": "half_cheetah", "task": "v5", "num_envs": 2}, "learner": {"n_steps": 1, "batch_size": 2}}
    rehearse(TrainSettings.model_validate(settings), is_new=True)
    settings["world"]["num_envs"] = 1
    with pytest.raises(ValueError, match="one step of one env is too little for PPO"):
        TrainSettings.model_validate(settings)
