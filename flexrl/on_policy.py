"""What PPO and recurrent PPO share where their policy's gradients are written out: how they roll out, how they update.

On a CPU half of SB3's update is not arithmetic but autograd's and the allocator's work on small matrices. For a small
network with a Gaussian the gradients are a page of formulas; they are written into buffers that are made once. The critic
is asked once a rollout, not once a step. Samples, losses, minibatches, log and optimiser are SB3's, to rounding.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import FloatSchedule, explained_variance
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor, nn

from flexrl.mlp import IN_PLACE

# Of a rollout, step and env after which what was asked for no longer counts, and what was seen then (obs_dim,).
CutOffs = list[tuple[int, int, np.ndarray]]


class Player(Protocol):
    """A policy for the length of one rollout."""

    def act(self, step: int, obs: Tensor, starts: np.ndarray) -> Tensor:
        """Mean actions (num_envs, action_dim) for `obs` (num_envs, obs_dim); `starts` (num_envs,): new episodes."""

    def route(self, obs: Tensor) -> Tensor | None:
        """Which row of the policy's `log_std` each observation has, (num_envs,); None: all have the same."""

    def judge(self, obs: np.ndarray, starts: np.ndarray, cut_offs: CutOffs) -> tuple[Tensor, Tensor]:
        """Writes the rollout's values into its buffer.

        Returns those of what comes after it, `obs` (num_envs, obs_dim), and those of the cut-off observations.
        """


class Network(Protocol):
    """A policy's actor and critic for one update."""

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Mean actions (n, action_dim) and values (n,) of a minibatch."""

    def route(self, batch: Any) -> Tensor | None:
        """Which row of the policy's `log_std` each sample has, (n,); None: all have the same."""

    def backward(self, to_mean: Tensor, to_values: Tensor) -> None:
        """The parameters' `.grad` from the loss's gradients by mean actions (n, action_dim) and by values (n,)."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread: physics has its own, and torch's would spin on their cores while a small network acts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_plain(learner: Any) -> bool:
    """Whether the learner's policy is a small Gaussian one over flat observations, on a CPU."""
    policy = learner.policy
    return (
        learner.device.type == "cpu"
        and isinstance(policy.features_extractor, FlattenExtractor)
        and isinstance(policy.action_space, spaces.Box)
        and isinstance(policy.observation_space, spaces.Box)
        and len(policy.observation_space.shape) == len(policy.action_space.shape) == 1
        and not policy.use_sde
        and policy.activation_fn in IN_PLACE
    )


def set_extras(
    learner: Any,
    min_action_std: float | Callable[[float], float] | None,
    max_action_std: float | Callable[[float], float] | None,
    bounds_coef: float,
    smooth_coef: float = 0.0,
    bootstrap_changes: bool = True,
) -> None:
    """Keeps what is ours beyond SB3's arguments; ValueError if the policy has no such thing.

    `min_action_std` and `max_action_std`, numbers or functions of the remaining progress, bound the noise of actions: PPO
    itself lowers it late where advantages are noisy, too soon where they are not, and never raises it again after `init_from`.
    `bounds_coef` weighs the squared distance of mean actions from the action space in the loss: beyond its bounds an action
    changes nothing, so nothing else brings it back, and the policy ends as an on-off switch.
    `smooth_coef` weighs the squared change of the mean action from one step to the next in the loss (CAPS, Mysore et al.
    2021): its gradient has no noise, as that of a reward for smooth actions has. Minibatches are of pairs of steps then.
    `bootstrap_changes`: where a world asks for something else within an episode (its info tells), returns end with the value
    of going on as before, as they do at a time limit (Pardo et al. 2018). What is asked next is chance, and its value would
    be most of the advantages' variance.
    """
    learner.min_action_std = None if min_action_std is None else FloatSchedule(min_action_std)
    learner.max_action_std = None if max_action_std is None else FloatSchedule(max_action_std)
    learner.bounds_coef, learner.smooth_coef, learner.bootstrap_changes = bounds_coef, smooth_coef, bootstrap_changes
    has_noise = isinstance(learner.action_space, spaces.Box) and not learner.use_sde
    for name, bound in (("min_action_std", min_action_std), ("max_action_std", max_action_std)):
        if bound is not None and not has_noise:
            raise ValueError(f"{name}: only actions that are numbers have Gaussian noise, and use_sde another; write null")
    for name, coefficient in (("bounds_coef", bounds_coef), ("smooth_coef", smooth_coef)):
        if coefficient and not learner._is_plain():
            raise ValueError(f"{name}: only for a plain or mirrored MLP, or one LSTM, on a CPU; write 0")
    if smooth_coef and (learner.n_steps % 2 or learner.batch_size % 2):
        raise ValueError("smooth_coef: is of pairs of steps; write even numbers for n_steps and batch_size")


def bound_noise(learner: Any) -> None:
    """Brings the standard deviations of actions between `min_action_std` and `max_action_std` of the run's progress."""
    lowest, highest = (
        None if bound is None else math.log(bound(learner._current_progress_remaining))
        for bound in (learner.min_action_std, learner.max_action_std)
    )
    if lowest is not None or highest is not None:
        own = learner.policy.log_std.data
        bounded = own.clamp(min=lowest, max=highest)
        own.copy_(bounded if own.ndim == 1 else torch.where(learner.policy.learns[:, None], bounded, own))


def roll_out(learner: Any, env: VecEnv, callback: BaseCallback, buffer: Any, n_rollout_steps: int, player: Player) -> bool:
    """Fills the buffer with `n_rollout_steps` steps of every env; False if the callback ended it before."""
    learner.policy.set_training_mode(False)
    buffer.reset()
    callback.on_rollout_start()
    with torch.no_grad():
        with one_thread():
            collected = _collect(learner, env, callback, buffer, n_rollout_steps, player)
        if collected is None:
            return False
        timeouts, changes = collected
        last_values, cut_off = player.judge(learner._last_obs, learner._last_episode_starts, timeouts + changes)
        if timeouts or changes:
            steps, ids, _ = zip(*timeouts, *changes, strict=True)
            buffer.rewards[steps, ids] += learner.gamma * cut_off.numpy()
    _estimate_advantages(buffer, last_values, learner._last_episode_starts, changes)
    callback.update_locals(locals())
    callback.on_rollout_end()
    return True


def _estimate_advantages(buffer: Any, last_values: Tensor, dones: np.ndarray, changes: CutOffs) -> None:
    """GAE as SB3 does it, a change of what is asked for being an end: nothing behind it was earned by what came before."""
    starts, ends = buffer.episode_starts, dones.copy()
    buffer.episode_starts = starts.copy()
    for step, i, _ in changes:
        if step + 1 < len(starts):
            buffer.episode_starts[step + 1, i] = 1.0
        else:
            ends[i] = True
    buffer.compute_returns_and_advantage(last_values=last_values, dones=ends)
    buffer.episode_starts = starts


def _collect(
    learner: Any, env: VecEnv, callback: BaseCallback, buffer: Any, n_rollout_steps: int, player: Player
) -> tuple[CutOffs, CutOffs] | None:
    """Acts and writes all but values and what follows from them.

    Returns where time cut episodes off, and where something else was asked for within one.
    """
    log_std = learner.policy.log_std
    std, constant = log_std.exp(), _log_constant(log_std)
    size = std.shape[-1]
    low, high = learner.action_space.low, learner.action_space.high
    timeouts: CutOffs = []
    changes: CutOffs = []
    for step in range(n_rollout_steps):
        obs, starts = learner._last_obs, learner._last_episode_starts
        noise, seen = torch.randn(env.num_envs, size), torch.from_numpy(obs).to(torch.float32)
        route = player.route(seen)
        actions = (player.act(step, seen, starts) + noise * (std if route is None else std[route])).numpy()
        new_obs, rewards, dones, infos = env.step(np.clip(actions, low, high))
        learner.num_timesteps += env.num_envs
        callback.update_locals(locals())
        if not callback.on_step():
            return None
        learner._update_info_buffer(infos, dones)
        for i in map(int, np.flatnonzero(dones)):
            if infos[i].get("TimeLimit.truncated", False):
                timeouts.append((step, i, infos[i]["terminal_observation"]))
        if learner.bootstrap_changes:
            for i, info in enumerate(infos):
                if "unchanged_observation" in info and not dones[i]:
                    unchanged = info["unchanged_observation"]
                    changes.append((step, i, env.normalize_obs(unchanged) if isinstance(env, VecNormalize) else unchanged))
        buffer.observations[step], buffer.actions[step], buffer.rewards[step] = obs, actions, rewards
        buffer.episode_starts[step] = starts
        buffer.log_probs[step] = -0.5 * noise.square().sum(dim=1) - (constant if route is None else constant[route])
        learner._last_obs, learner._last_episode_starts = new_obs, dones
    buffer.pos, buffer.full = n_rollout_steps, True
    return timeouts, changes


@torch.no_grad()
def update(learner: Any, network: Network, minibatches: Callable[[], Iterable[Any]]) -> None:
    """`n_epochs` passes over the minibatches, whose fields have the names of SB3's buffers, and what SB3 logs of them."""
    learner.policy.set_training_mode(True)
    learner._update_learning_rate(learner.policy.optimizer)
    clip_range = learner.clip_range(learner._current_progress_remaining)
    clip_range_vf = None if learner.clip_range_vf is None else learner.clip_range_vf(learner._current_progress_remaining)
    gradients, optimizer = _flat_gradients(learner.policy), learner.policy.optimizer
    logged: list[Tensor] = []
    divergences: list[Tensor] = []
    over = False
    for _ in range(learner.n_epochs):
        divergences.clear()
        for batch in minibatches():
            logged.append(_gradients(learner, network, batch, clip_range, clip_range_vf))
            divergences.append(logged[-1][3])
            over = learner.target_kl is not None and float(divergences[-1]) > 1.5 * learner.target_kl
            if over:
                break
            norm = torch.linalg.vector_norm(gradients)
            gradients.mul_((learner.max_grad_norm / (norm + 1e-6)).clamp_(max=1.0))
            optimizer.step()
        learner._n_updates += 1
        if over:
            break
    if not logged:  # nothing was seen but what frozen networks do
        return
    policy_loss, value_loss, clip_fraction, _, entropy, bounds_loss, smooth_loss, loss = torch.stack(logged).double().numpy().T
    values, returns = learner.rollout_buffer.values.flatten(), learner.rollout_buffer.returns.flatten()
    record = learner.logger.record
    record("train/entropy_loss", -entropy.mean())
    record("train/policy_gradient_loss", policy_loss.mean())
    record("train/value_loss", value_loss.mean())
    record("train/approx_kl", float(torch.stack(divergences).mean()))
    record("train/clip_fraction", clip_fraction.mean())
    record("train/loss", loss[-1])
    if learner.bounds_coef:
        record("train/bounds_loss", bounds_loss.mean())
    if learner.smooth_coef:
        record("train/smooth_loss", smooth_loss.mean())
    record("train/explained_variance", explained_variance(values, returns))
    record("train/std", float(learner.policy.log_std.exp().mean()))
    record("train/n_updates", learner._n_updates, exclude="tensorboard")
    record("train/clip_range", clip_range)
    if clip_range_vf is not None:
        record("train/clip_range_vf", clip_range_vf)


def _gradients(learner: Any, network: Network, batch: Any, clip_range: float, clip_range_vf: float | None) -> Tensor:
    """Writes the loss's gradient into the parameters' `.grad`.

    Returns policy loss, value loss, clipped share, approximate KL, entropy, losses of bounds and of changes, and loss, (8,).
    """
    mean, values = network.forward(batch)
    own, route = learner.policy.log_std, network.route(batch)
    log_std = own if route is None else own[route]
    noise = (batch.actions - mean) * torch.exp(-log_std)  # (n, action_dim), in standard deviations
    size, advantages = len(noise), batch.advantages
    constant = _log_constant(log_std)
    log_ratio = -0.5 * noise.square().sum(dim=1) - constant - batch.old_log_prob
    ratio = log_ratio.exp()
    if learner.normalize_advantage and size > 1:
        deviation, average = torch.std_mean(advantages)
        advantages = (advantages - average) / (deviation + 1e-8)
    surrogate = advantages * ratio
    clipped = advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    policy_loss = -torch.minimum(surrogate, clipped).mean()
    # where the clipped one is smaller, nothing depends on the ratio any more
    to_log_prob = torch.where(surrogate <= clipped, surrogate, 0.0).mul_(-1 / size)[:, None]

    error = values - batch.returns
    if clip_range_vf is not None:
        moved = values - batch.old_values
        error = batch.old_values + moved.clamp(-clip_range_vf, clip_range_vf) - batch.returns
    value_loss = error.square().mean()
    to_values = error * (2 * learner.vf_coef / size)
    if clip_range_vf is not None:
        to_values *= moved.abs() <= clip_range_vf

    weighted = noise * to_log_prob
    if route is None:
        own.grad.copy_((weighted * noise).sum(dim=0) - to_log_prob.sum() - learner.ent_coef)
    else:
        own.grad.zero_().index_add_(0, route, weighted * noise - to_log_prob - learner.ent_coef / size)
    to_mean = weighted * torch.exp(-log_std)
    bounds_loss = smooth_loss = torch.zeros(())
    if learner.bounds_coef:
        low, high = (torch.from_numpy(bound).to(mean) for bound in (learner.action_space.low, learner.action_space.high))
        beyond = mean - mean.clamp(low, high)
        bounds_loss = beyond.square().sum(dim=1).mean()
        to_mean += beyond * (2 * learner.bounds_coef / size)
    if learner.smooth_coef:
        change = (mean[1::2] - mean[::2]) * batch.joined[:, None]
        smooth_loss = change.square().sum() / size
        change *= 2 * learner.smooth_coef / size
        to_mean[1::2] += change
        to_mean[::2] -= change
    network.backward(to_mean, to_values)
    entropy = constant.mean() + 0.5 * log_std.shape[-1]
    clip_fraction = ((ratio - 1).abs() > clip_range).float().mean()
    loss = policy_loss - learner.ent_coef * entropy + learner.vf_coef * value_loss
    loss += learner.bounds_coef * bounds_loss + learner.smooth_coef * smooth_loss
    divergence = (ratio - 1 - log_ratio).mean()
    return torch.stack([policy_loss, value_loss, clip_fraction, divergence, entropy, bounds_loss, smooth_loss, loss])


def _log_constant(log_std: Tensor) -> Tensor:
    """What a Gaussian's log-density is less half the squared noise, for each row if there are several."""
    return log_std.sum(dim=-1) + 0.5 * math.log(2 * math.pi) * log_std.shape[-1]


def _flat_gradients(policy: nn.Module) -> Tensor:
    """One vector that the `.grad` of all parameters that learn are views of."""
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    sizes = [parameter.numel() for parameter in parameters]
    gradients = torch.zeros(sum(sizes))
    for parameter, part in zip(parameters, gradients.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter)
    return gradients
