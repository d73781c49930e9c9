"""SB3's PPO, whose update works out its gradients itself where the policy is an MLP, plain or of networks.py."""

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
from flexrl.networks import MotorActorCriticPolicy
from flexrl.on_policy import CutOffs, bound_noise, is_plain, one_thread, roll_out, set_extras, update


class PPO(stable_baselines3.PPO):
    """Stable-Baselines3's PPO: the same samples, losses, minibatches, log and optimiser, to rounding, in less time.

    See on_policy.py for how. Policies of another kind, and other devices, take SB3's way.
    `min_action_std`, `max_action_std`, `bounds_coef`, `smooth_coef` and `bootstrap_changes` are in on_policy.set_extras;
    the last of them only where the gradients are written out. Skills with networks of their own have advantages of their
    own scale, too: what one skill earns would else say how much another learns.
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
        if self._is_plain():
            player = _Player(self.policy, rollout_buffer)
            filled = roll_out(self, env, callback, rollout_buffer, n_rollout_steps, player)
        else:
            with one_thread():
                filled = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        if filled and self.normalize_advantage and isinstance(self.policy, MotorActorCriticPolicy):
            _normalise_apart(rollout_buffer, self.policy)
        return filled

    def train(self) -> None:
        """One update on the rollout buffer: `n_epochs` passes over shuffled minibatches."""
        if not self._is_plain():
            super().train()
            return
        network = _Network(self.policy, self.batch_size)
        rollout = _Rollout(self.rollout_buffer, network.policy)
        update(self, network, lambda: rollout.minibatches(self.batch_size, in_pairs=self.smooth_coef > 0))

    def _is_plain(self) -> bool:
        return type(self.policy) in (ActorCriticPolicy, MotorActorCriticPolicy) and is_plain(self)


def _normalise_apart(buffer: Any, policy: MotorActorCriticPolicy) -> None:
    """Advantages of mean 0 and deviation 1 for each of the policy's networks, if it has several."""
    if not policy.apart:
        return
    observations = torch.from_numpy(buffer.observations).flatten(0, 1).to(policy.device)
    route = policy.route(observations).cpu().numpy().reshape(buffer.advantages.shape)  # type: ignore[union-attr]
    for which in range(1 + len(policy.apart)):
        at_it = route == which
        if at_it.sum() > 1:
            its = buffer.advantages[at_it]
            buffer.advantages[at_it] = (its - its.mean()) / (its.std() + 1e-8)


_JUDGED_ROWS = 1024  # samples at a time: their activations fit the cache


class _Player:
    """The policy while it fills `buffer`."""

    def __init__(self, policy: Any, buffer: Any) -> None:
        self.buffer = buffer
        self.actor, self.critic = _Network(policy, buffer.n_envs), _Network(policy, _JUDGED_ROWS)

    def act(self, step: int, obs: Tensor, starts: np.ndarray) -> Tensor:
        """Mean actions, see on_policy.Player."""
        return self.actor.act(obs)

    def route(self, obs: Tensor) -> Tensor | None:
        """Which noise, see on_policy.Player."""
        return None if self.actor.policy is None else self.actor.policy.route(obs)

    def judge(self, obs: np.ndarray, starts: np.ndarray, cut_offs: CutOffs) -> tuple[Tensor, Tensor]:
        """Values, see on_policy.Player."""
        observations, values = self.buffer.observations, self.buffer.values
        values[:] = self.critic.judge(torch.from_numpy(observations).flatten(0, 1)).reshape(values.shape)
        beyond = torch.from_numpy(np.stack([last for *_, last in cut_offs])) if cut_offs else torch.empty(0, obs.shape[1])
        return self.critic.judge(torch.from_numpy(obs)), self.critic.judge(beyond)


class _Network:
    """The policy's towers with buffers for up to `rows` samples."""

    def __init__(self, policy: Any, rows: int) -> None:
        self.rows = rows
        self.policy = policy if isinstance(policy, MotorActorCriticPolicy) else None
        rows *= 2 if self.policy is not None and self.policy.is_mirrored else 1
        parts = [policy] if self.policy is None else list(self.policy.towers())
        extractors = [(part.mlp_extractor, part) for part in parts]
        kind = policy.activation_fn
        self.actors = [Tower([*extractor.policy_net, part.action_net], kind, rows) for extractor, part in extractors]
        self.critics = [Tower([*extractor.value_net, part.value_net], kind, rows) for extractor, part in extractors]

    def forward(self, batch: _Minibatch) -> tuple[Tensor, Tensor]:
        """Mean actions (n, action_dim) and values (n,)."""
        self._parts = self._split(batch.routes)
        mean, values = _ask(self.actors, batch.observations, self._parts), _ask(self.critics, batch.observations, self._parts)
        if self.policy is not None:
            mean, values = self.policy.merge_means(mean), self.policy.merge_values(values)
        return mean, values[:, 0]

    def route(self, batch: _Minibatch) -> Tensor | None:
        """Which noise, see on_policy.Network."""
        return None if batch.routes is None else batch.routes[: len(batch.actions)]

    def act(self, obs: Tensor) -> Tensor:
        """Mean actions (n, action_dim) of `obs` (n, obs_dim)."""
        if self.policy is None:
            return self.actors[0].forward(obs)
        both = self.policy.with_mirror_images(obs)
        return self.policy.merge_means(_ask(self.actors, both, self._split(self.policy.route(both))))

    def judge(self, obs: Tensor) -> Tensor:
        """Values (n,) of any number of `obs` (n, obs_dim)."""
        values = torch.empty(len(obs), 1)
        for part, target in zip(obs.split(self.rows), values.split(self.rows), strict=True):
            part = part.to(torch.float32)
            if self.policy is None:
                target.copy_(self.critics[0].forward(part))
            else:
                both = self.policy.with_mirror_images(part)
                target.copy_(self.policy.merge_values(_ask(self.critics, both, self._split(self.policy.route(both)))))
        return values[:, 0]

    def backward(self, to_mean: Tensor, to_values: Tensor) -> None:
        """The towers' gradients from the loss's by mean actions (n, action_dim) and by values (n,)."""
        to_values = to_values[:, None]
        if self.policy is not None and self.policy.is_mirrored:
            source, sign = self.policy.action_source, self.policy.action_sign
            other = torch.empty_like(to_mean)
            other[:, source] = to_mean * sign
            to_mean = 0.5 * torch.cat([to_mean, other])
            to_values = 0.5 * torch.cat([to_values, to_values])
        for towers, gradient in ((self.actors, to_mean), (self.critics, to_values)):
            for tower, rows in zip(towers, self._parts, strict=True):
                tower.backward(gradient if rows is None else gradient[rows])

    def _split(self, routes: Tensor | None) -> list[Tensor | None]:
        """The rows of each tower; None: all."""
        return [None] if routes is None else [torch.nonzero(routes == i)[:, 0] for i in range(len(self.actors))]


def _ask(towers: list[Tower], obs: Tensor, parts: list[Tensor | None]) -> Tensor:
    """What the tower that has a row in its part says to it, (n, out_features)."""
    if parts[0] is None:
        return towers[0].forward(obs)
    answers = torch.empty(len(obs), towers[0].layers[-1].out_features)
    for tower, rows in zip(towers, parts, strict=True):
        answers[rows] = tower.forward(obs[rows])
    return answers


class _Minibatch:
    """The samples `ids` (n,) of a rollout."""

    def __init__(self, rollout: _Rollout, ids: Tensor) -> None:
        rows = torch.cat([ids, ids + len(rollout.actions)]) if len(rollout.observations) > len(rollout.actions) else ids
        self.observations = rollout.observations[rows]  # (n, obs_dim); mirrored: (2 n, obs_dim)
        self.routes = None if rollout.routes is None else rollout.routes[rows]  # which towers, for each of them
        self.actions = rollout.actions[ids]
        self.old_values, self.old_log_prob, self.advantages, self.returns = (column[ids] for column in rollout.columns)
        self._starts, self._ids = rollout.starts, ids

    @property
    def joined(self) -> Tensor:
        """Of pairs, whether both steps are of one episode, (n / 2,), 1 or 0."""
        return 1.0 - self._starts[self._ids[1::2]]


class _Rollout:
    """A rollout buffer as tensors, one row a sample, in SB3's order (one env's steps after the other's)."""

    def __init__(self, buffer: Any, policy: MotorActorCriticPolicy | None) -> None:
        self.observations, self.actions = _rows(buffer.observations), _rows(buffer.actions)
        names = ("values", "log_probs", "advantages", "returns")
        self.columns = [_rows(getattr(buffer, name)[..., None])[:, 0] for name in names]
        self.starts = _rows(buffer.episode_starts[..., None])[:, 0]
        self.routes: Tensor | None = None
        if policy is not None:
            self.observations = policy.with_mirror_images(self.observations)
            self.routes = policy.route(self.observations)
        self._learns: Tensor | None = None  # whether each sample's network does, (n,); None: all
        if policy is not None and self.routes is not None and policy.frozen:
            self._learns = policy.learns[self.routes[: len(self.actions)]]

    def minibatches(self, size: int, in_pairs: bool = False) -> Iterator[_Minibatch]:
        """All samples once, in an order drawn as SB3 draws it, `size` at a time; or in pairs of a step and the next.

        Samples of frozen networks are left out.
        """
        if in_pairs:
            first = 2 * torch.from_numpy(np.random.permutation(len(self.actions) // 2))
            if self._learns is not None:
                first = first[self._learns[first] & self._learns[first + 1]]
            order = torch.stack([first, first + 1], dim=1).flatten()
        else:
            order = torch.from_numpy(np.random.permutation(len(self.actions)))
            if self._learns is not None:
                order = order[self._learns[order]]
        return (_Minibatch(self, ids) for ids in order.split(size))


def _rows(array: np.ndarray) -> Tensor:
    """(num_steps, num_envs, dim) -> (num_envs * num_steps, dim) float32."""
    return torch.from_numpy(array).transpose(0, 1).to(torch.float32).reshape(-1, array.shape[-1])
