"""Chunks instead of padded sequences: the same loss, the same gradients, the same weights."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import torch
from stable_baselines3.common.logger import Logger

from flexrl.learner_settings import SETTINGS, check_fit
from flexrl.motor_settings import MotorSettings
from flexrl.recurrent_ppo import RecurrentPPO
from flexrl.training import TrainSettings
from flexrl.worlds import make_world

NUM_STEPS, NUM_ENVS = 32, 4
TASKS = {"v5": {"max_steps": 13}}  # episodes end within the rollout, and within chunks


def with_rollout(kind: type[sb3_contrib.RecurrentPPO], **changes: Any) -> Any:
    world = make_world(MotorSettings(body="half_cheetah", task="v5", num_envs=NUM_ENVS, num_threads=1, tasks=TASKS), seed=1)
    settings = {"policy_kwargs": {"net_arch": [16], "lstm_hidden_size": 8, "n_lstm_layers": 2}} | changes
    model = kind("MlpLstmPolicy", world, n_steps=NUM_STEPS, seed=1, device="cpu", **settings)
    model.set_logger(Logger(folder=None, output_formats=[]))
    _, callback = model._setup_learn(10_000, None)
    for _ in range(2):  # the second one begins with a memory
        model.collect_rollouts(world, callback, model.rollout_buffer, NUM_STEPS)
    return model


def test_one_step_of_learning_is_sb3_contribs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole rollout at once: theirs cut at the episodes' ends and padded, ours in chunks as long as the rollout."""
    monkeypatch.setattr(np.random, "randint", lambda *_: 0)  # where theirs begins to cut the rollout
    settings: dict[str, Any] = {"batch_size": NUM_STEPS * NUM_ENVS, "n_epochs": 1, "ent_coef": 0.01}
    ours = with_rollout(RecurrentPPO, chunk_length=NUM_STEPS, **settings)
    theirs = with_rollout(sb3_contrib.RecurrentPPO, **settings)
    assert ours.rollout_buffer.episode_starts[1:].sum() >= NUM_ENVS
    for each in (ours, theirs):
        each.train()
    for name in ("train/loss", "train/value_loss", "train/policy_gradient_loss", "train/approx_kl"):
        value = theirs.logger.name_to_value[name]
        assert ours.logger.name_to_value[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    for (name, mine), other in zip(ours.policy.named_parameters(), theirs.policy.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("chunk_length", [8, NUM_STEPS])
def test_a_rollout_is_sb3_contribs(chunk_length: int) -> None:
    """Its critic is asked at every step, ours once; episodes cut off by time are worth what comes after them."""
    ours, theirs = with_rollout(RecurrentPPO, chunk_length=chunk_length), with_rollout(sb3_contrib.RecurrentPPO)
    for name in ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns"):
        mine, other = (getattr(each.rollout_buffer, name) for each in (ours, theirs))
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=2e-6, err_msg=name)
    for mine, other in zip(ours._last_lstm_states, theirs._last_lstm_states, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_other_policies_take_sb3_contribs_way() -> None:
    """A critic without a memory of its own: autograd's gradients, through the same chunks."""
    kwargs = {"net_arch": [16], "lstm_hidden_size": 8, "enable_critic_lstm": False}
    model = with_rollout(RecurrentPPO, chunk_length=8, batch_size=64, policy_kwargs=kwargs)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    assert not model._is_plain()
    model.train()
    assert any(not torch.equal(was, now) for was, now in zip(before, model.policy.parameters(), strict=True))


def test_chunks_hold_every_step_once_with_the_memory_they_began_with() -> None:
    model = with_rollout(RecurrentPPO, chunk_length=8, batch_size=24, n_epochs=1)
    buffer = copy.deepcopy(model.rollout_buffer)
    batches = list(model.rollout_buffer.get(24))
    assert [len(batch.returns) for batch in batches] == [24] * 5 + [8]
    everything = torch.cat([batch.old_log_prob for batch in batches]).numpy()
    np.testing.assert_array_equal(np.sort(everything), np.sort(buffer.log_probs.ravel()))
    for batch in batches:
        for chunk, log_probs in enumerate(batch.old_log_prob.reshape(-1, 8).numpy()):
            step, env = (int(found[0]) for found in np.nonzero(buffer.log_probs == log_probs[0]))
            np.testing.assert_array_equal(buffer.log_probs[step : step + 8, env], log_probs)
            assert step % 8 == 0
            np.testing.assert_array_equal(batch.lstm_states.pi[0][:, chunk], buffer.hidden_states_pi[step, :, env])
            np.testing.assert_array_equal(batch.lstm_states.vf[1][:, chunk], buffer.cell_states_vf[step, :, env])


def test_memory_is_cleared_where_an_episode_begins_within_a_chunk() -> None:
    """What a step is worth does not depend on the memory from before its episode."""
    model = with_rollout(RecurrentPPO, chunk_length=NUM_STEPS, batch_size=None)
    batch = next(iter(model.rollout_buffer.get(None)))
    starts = batch.episode_starts.reshape(-1, NUM_STEPS)
    values = model.policy.evaluate_actions(batch.observations, batch.actions, batch.lstm_states, batch.episode_starts)[0]
    other_memory = type(batch.lstm_states)(*(tuple(part + 1.0 for part in pair) for pair in batch.lstm_states))
    others = model.policy.evaluate_actions(batch.observations, batch.actions, other_memory, batch.episode_starts)[0]
    same = (values == others).reshape(-1, NUM_STEPS)
    after_a_start = starts.cumsum(dim=1) > 0
    assert bool(same[after_a_start].all())
    assert not bool(same[~after_a_start].any())


def test_chunks_that_do_not_fit_the_rollout_are_refused() -> None:
    world = MotorSettings(num_envs=4)
    with pytest.raises(ValueError, match=r"20 steps \(learner.n_steps\) are no whole number of chunks of 16"):
        check_fit(SETTINGS["recurrent_ppo"](n_steps=20), world)
    assert TrainSettings(learner={"name": "recurrent_ppo"}).learner.chunk_length == 16
