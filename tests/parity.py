"""A learner of ours beside Stable-Baselines3's own methods."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest
import stable_baselines3
from stable_baselines3.common.utils import set_random_seed

from flexrl.learners import Learner


def assert_same_update(ours: Learner, theirs: Learner, start: Learner) -> dict[str, float]:
    """From the same generators rollout, weights and log of PPO agree with SB3's, and every weight has left `start`'s.

    All three begin alike. Returns our metrics.
    """
    for method in ("collect_rollouts", "train"):
        setattr(theirs.model, method, types.MethodType(getattr(stable_baselines3.PPO, method), theirs.model))
    metrics = []
    for learner in (ours, theirs):
        set_random_seed(5)
        metrics.append(learner.improve())
    buffers: list[Any] = [learner.model.rollout_buffer for learner in (ours, theirs)]  # type: ignore[attr-defined]
    own, other = ({name: value for name, value in vars(buffer).items() if isinstance(value, np.ndarray)} for buffer in buffers)
    assert {"observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns"} <= set(own)
    for key, array in own.items():
        expected = other[key]  # SB3's update leaves them (num_envs * num_steps, ...)
        if len(expected) != len(array):
            array = array.swapaxes(0, 1).reshape(expected.shape)
        np.testing.assert_allclose(array, expected, rtol=0, atol=1e-4, err_msg=key)
    for key, value in theirs.policy_arrays().items():
        np.testing.assert_allclose(ours.policy_arrays()[key], value, rtol=0, atol=5e-5, err_msg=key)
        assert not np.array_equal(value, start.policy_arrays()[key]), key
    for key, number in metrics[1].items():
        if not key.startswith("time/"):
            assert metrics[0][key] == pytest.approx(number, rel=2e-3, abs=1e-5), key
    return metrics[0]
