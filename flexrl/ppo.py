"""SB3's PPO, whose update works out its gradients itself where the policy is a plain or mirrored MLP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from flexrl.mlp import Tower
from flexrl.networks import MirroredActorCriticPolicy
from flexrl.on_policy import CutOffs, bound_noise, is_plain, one_thread, roll_out, set_extras, update


class PPO(stable_baselines3.PPO):
    """Stable-Baselines3's PPO: the same samples, losses, minibatches, log and optimiser, to rounding, in less time.

    See on_policy.py for how. Policies of another kind, and other devices, take SB3's way.
    `min_action_std`, `max_action_std`, `bounds_coef`, `smooth_coef` and `bootstrap_changes` are in on_policy.set_extras;
    the last of them only where the gradients are written out.
    """

    def __init__(
        self,
        *args: Any,
        min_action_std: float | Callable[[float], float] | None = None,
        max_action_std: float | Callable[[float], float] | None = None,
        bounds_coef: float = 0.0,
        smooth_coef: float = 0.0,
        bootstrap_changes: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        set_extras(self, min_action_std, max_action_std, bounds_coef, smooth_coef, bootstrap_changes)

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """Fills the buffer with `n_rollout_steps` steps of every env; False if the callback ended it before."""
        bound_noise(self)
        if not self._is_plain():
            with one_thread():
                return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        return roll_out(self, env, callback, rollout_buffer, n_rollout_steps, _Player(self.policy, rollout_buffer))

    def train(self) -> None:
        """One update on the rollout buffer: `n_epochs` passes over shuffled minibatches."""
        if not self._is_plain():
            super().train()
            return
        network = _Network(self.policy, self.batch_size)
        rollout = _Rollout(self.rollout_buffer, network.mirrored)
        update(self, network, lambda: rollout.minibatches(self.batch_size, in_pairs=self.smooth_coef > 0))

    def _is_plain(self) -> bool:
        return type(self.policy) in (ActorCriticPolicy, MirroredActorCriticPolicy) and is_plain(self)


_JUDGED_ROWS = 1024  # samples at a time: their activations fit the cache


class _Player:
    """The policy while it fills `buffer`."""

    def __init__(self, policy: Any, buffer: Any) -> None:
        self.buffer = buffer
        self.actor, self.critic = _Network(policy, buffer.n_envs), _Network(policy, _JUDGED_ROWS)

    def act(self, step: int, obs: Tensor, starts: np.ndarray) -> Tensor:
        """Mean actions, see on_policy.Player."""
        return self.actor.act(obs)

    def judge(self, obs: np.ndarray, starts: np.ndarray, cut_offs: CutOffs) -> tuple[Tensor, Tensor]:
        """Values, see on_policy.Player."""
        observations, values = self.buffer.observations, self.buffer.values
        values[:] = self.critic.judge(torch.from_numpy(observations).flatten(0, 1)).reshape(values.shape)
        beyond = torch.from_numpy(np.stack([last for *_, last in cut_offs])) if cut_offs else torch.empty(0, obs.shape[1])
        return self.critic.judge(torch.from_numpy(obs)), self.critic.judge(beyond)


class _Network:
    """The policy's two towers with buffers for up to `rows` samples."""

    def __init__(self, policy: Any, rows: int) -> None:
        self.rows = rows
        self.mirrored = policy if isinstance(policy, MirroredActorCriticPolicy) else None
        rows *= 1 if self.mirrored is None else 2
        extractor = policy.mlp_extractor
        self.actor = Tower([*extractor.policy_net, policy.action_net], policy.activation_fn, rows)
        self.critic = Tower([*extractor.value_net, policy.value_net], policy.activation_fn, rows)

    def forward(self, batch: _Minibatch) -> tuple[Tensor, Tensor]:
        """Mean actions (n, action_dim) and values (n,)."""
        mean, values = self.actor.forward(batch.observations), self.critic.forward(batch.observations)
        if self.mirrored is not None:
            mean, values = self.mirrored.merge_means(mean), self.mirrored.merge_values(values)
        return mean, values[:, 0]

    def act(self, obs: Tensor) -> Tensor:
        """Mean actions (n, action_dim) of `obs` (n, obs_dim)."""
        if self.mirrored is None:
            return self.actor.forward(obs)
        return self.mirrored.merge_means(self.actor.forward(self.mirrored.with_mirror_images(obs)))

    def judge(self, obs: Tensor) -> Tensor:
        """Values (n,) of any number of `obs` (n, obs_dim)."""
        values = torch.empty(len(obs), 1)
        for part, target in zip(obs.split(self.rows), values.split(self.rows), strict=True):
            part = part.to(torch.float32)
            if self.mirrored is None:
                target.copy_(self.critic.forward(part))
            else:
                target.copy_(self.mirrored.merge_values(self.critic.forward(self.mirrored.with_mirror_images(part))))
        return values[:, 0]

    def backward(self, to_mean: Tensor, to_values: Tensor) -> None:
        """The towers' gradients from the loss's by mean actions (n, action_dim) and by values (n,)."""
        to_values = to_values[:, None]
        if self.mirrored is not None:
            source, sign = self.mirrored.action_source, self.mirrored.action_sign
            other = torch.empty_like(to_mean)
            other[:, source] = to_mean * sign
            to_mean = 0.5 * torch.cat([to_mean, other])
            to_values = 0.5 * torch.cat([to_values, to_values])
        self.actor.backward(to_mean)
        self.critic.backward(to_values)


class _Minibatch:
    """The samples `ids` (n,) of a rollout."""

    def __init__(self, rollout: _Rollout, ids: Tensor) -> None:
        rows = ids if rollout.mirrored is None else torch.cat([ids, ids + len(rollout.actions)])
        self.observations = rollout.observations[rows]  # (n, obs_dim); mirrored: (2 n, obs_dim)
        self.actions = rollout.actions[ids]
        self.old_values, self.old_log_prob, self.advantages, self.returns = (column[ids] for column in rollout.columns)
        self._starts, self._ids = rollout.starts, ids

    @property
    def joined(self) -> Tensor:
        """Of pairs, whether both steps are of one episode, (n / 2,), 1 or 0."""
        return 1.0 - self._starts[self._ids[1::2]]


class _Rollout:
    """A rollout buffer as tensors, one row a sample, in SB3's order (one env's steps after the other's)."""

    def __init__(self, buffer: Any, mirrored: MirroredActorCriticPolicy | None) -> None:
        self.mirrored = mirrored
        self.observations, self.actions = _rows(buffer.observations), _rows(buffer.actions)
        names = ("values", "log_probs", "advantages", "returns")
        self.columns = [_rows(getattr(buffer, name)[..., None])[:, 0] for name in names]
        self.starts = _rows(buffer.episode_starts[..., None])[:, 0]
        if mirrored is not None:
            self.observations = mirrored.with_mirror_images(self.observations)

    def minibatches(self, size: int, in_pairs: bool = False) -> Iterator[_Minibatch]:
        """All samples once, in an order drawn as SB3 draws it, `size` at a time; or in pairs of a step and the next."""
        if in_pairs:
            first = 2 * torch.from_numpy(np.random.permutation(len(self.actions) // 2))
            order = torch.stack([first, first + 1], dim=1).flatten()
        else:
            order = torch.from_numpy(np.random.permutation(len(self.actions)))
        return (_Minibatch(self, ids) for ids in order.split(size))


def _rows(array: np.ndarray) -> Tensor:
    """(num_steps, num_envs, dim) -> (num_envs * num_steps, dim) float32."""
    return torch.from_numpy(array).transpose(0, 1).to(torch.float32).reshape(-1, array.shape[-1])
