"""SB3's PPO, whose update works out its gradients itself where the policy is a plain or mirrored MLP."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from flexrl.networks import MirroredActorCriticPolicy

_aten: Any = torch.ops.aten


@dataclass(frozen=True)
class _Activation:
    """One whose slope can be told from its output: `apply` and `slope` work in place."""

    apply: Callable[[Tensor], Any]  # x * scale -> f(x)
    slope: Callable[[Tensor, Tensor], Any]  # grad, f(x) -> grad * f'(x)
    scale: float = 1.0  # of what `apply` wants, which the product before it can give for nothing


_MINUS_ONE = torch.tensor(-1.0)


def _tanh(twice: Tensor) -> None:
    """tanh(x) from 2 x, as 2 sigmoid(2 x) - 1, which takes half the time; right to 2e-7."""
    torch.add(_MINUS_ONE, twice.sigmoid_(), alpha=2, out=twice)


_IN_PLACE: dict[type[nn.Module], _Activation] = {
    nn.Tanh: _Activation(_tanh, lambda grad, out: _aten.tanh_backward.grad_input(grad, out, grad_input=grad), scale=2.0),
    nn.ReLU: _Activation(
        torch.relu_,
        lambda grad, out: _aten.threshold_backward.grad_input(grad, out, 0.0, grad_input=grad),
    ),
    nn.ELU: _Activation(
        nn.functional.elu_,
        lambda grad, out: _aten.elu_backward.grad_input(grad, 1.0, 1.0, 1.0, True, out, grad_input=grad),
    ),
    nn.LeakyReLU: _Activation(
        nn.functional.leaky_relu_,
        lambda grad, out: _aten.leaky_relu_backward.grad_input(grad, out, 0.01, True, grad_input=grad),
    ),
}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread: physics has its own, and torch's would spin on their cores while a small network acts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class PPO(stable_baselines3.PPO):
    """Stable-Baselines3's PPO: the same samples, losses, minibatches, log and optimiser, to rounding.

    On a CPU half of SB3's update is not arithmetic but autograd's and the allocator's work on small matrices. For an MLP
    with a Gaussian the gradients are a page of formulas; they are written into buffers that are made once. The critic is
    asked once a rollout, not once a step. Policies of another kind, and other devices, take SB3's way.
    """

    _last_obs: Any  # (num_envs, obs_dim)
    _last_episode_starts: Any  # (num_envs,) bool

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """Fills the buffer with `n_rollout_steps` steps of every env; False if the callback ended it before."""
        if not self._is_plain():
            with one_thread():
                return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        with torch.no_grad():
            with one_thread():
                timeouts = self._collect(env, callback, rollout_buffer, n_rollout_steps)
            if timeouts is None:
                return False
            last_values = self._judge(rollout_buffer, timeouts)
        dones = self._last_episode_starts
        rollout_buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _collect(self, env: VecEnv, callback: BaseCallback, buffer: Any, n_rollout_steps: int) -> _Timeouts | None:
        """Acts and writes all but values and what follows from them; returns where episodes were cut off by time."""
        network = _Network(self.policy, env.num_envs)
        std, constant = self.policy.log_std.exp(), _log_constant(self.policy.log_std)
        low, high = self.action_space.low, self.action_space.high
        timeouts: _Timeouts = []
        for step in range(n_rollout_steps):
            obs = self._last_obs
            noise = torch.randn(env.num_envs, len(std))
            actions = (network.act(torch.from_numpy(obs).to(torch.float32)) + noise * std).numpy()
            new_obs, rewards, dones, infos = env.step(np.clip(actions, low, high))
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return None
            self._update_info_buffer(infos, dones)
            for i in np.flatnonzero(dones):
                if infos[i].get("TimeLimit.truncated", False):
                    timeouts.append((step, int(i), infos[i]["terminal_observation"]))
            buffer.observations[step], buffer.actions[step], buffer.rewards[step] = obs, actions, rewards
            buffer.episode_starts[step] = self._last_episode_starts
            buffer.log_probs[step] = -0.5 * noise.square().sum(dim=1) - constant
            self._last_obs, self._last_episode_starts = new_obs, dones
        buffer.pos, buffer.full = n_rollout_steps, True
        return timeouts

    def _judge(self, buffer: Any, timeouts: _Timeouts) -> Tensor:
        """Writes the values of the rollout, adds those of cut-off episodes to their rewards; returns the last ones."""
        network = _Network(self.policy, _JUDGED_ROWS)
        observations = buffer.observations.reshape(-1, buffer.observations.shape[-1])
        buffer.values[:] = network.judge(torch.from_numpy(observations)).reshape(buffer.values.shape)
        if timeouts:
            steps, ids, last = zip(*timeouts, strict=True)
            buffer.rewards[steps, ids] += self.gamma * network.judge(torch.from_numpy(np.stack(last))).numpy()
        return network.judge(torch.from_numpy(self._last_obs))

    def _is_plain(self) -> bool:
        """Whether the policy is SB3's MLP actor-critic or its mirrored form, with a Gaussian of its own `log_std`, here."""
        policy = self.policy
        return (
            self.device.type == "cpu"
            and type(policy) in (ActorCriticPolicy, MirroredActorCriticPolicy)
            and isinstance(policy.features_extractor, FlattenExtractor)
            and isinstance(policy.action_space, spaces.Box)
            and isinstance(policy.observation_space, spaces.Box)
            and len(policy.observation_space.shape) == len(policy.action_space.shape) == 1
            and not policy.use_sde
            and policy.activation_fn in _IN_PLACE
        )

    def train(self) -> None:
        """One update on the rollout buffer: `n_epochs` passes over shuffled minibatches."""
        if not self._is_plain():
            super().train()
            return
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        with torch.no_grad():
            self._train_plain()

    def _train_plain(self) -> None:
        clip_range = self.clip_range(self._current_progress_remaining)
        clip_range_vf = None if self.clip_range_vf is None else self.clip_range_vf(self._current_progress_remaining)
        network, gradients, optimizer = (
            _Network(self.policy, self.batch_size),
            _flat_gradients(self.policy),
            self.policy.optimizer,
        )
        rollout = _Rollout(self.rollout_buffer, network.mirrored)
        logged: list[Tensor] = []
        divergences: list[Tensor] = []
        over = False
        for _ in range(self.n_epochs):
            divergences.clear()
            for batch in rollout.minibatches(self.batch_size):
                logged.append(self._gradients(network, batch, clip_range, clip_range_vf))
                divergences.append(logged[-1][3])
                over = self.target_kl is not None and float(divergences[-1]) > 1.5 * self.target_kl
                if over:
                    break
                norm = torch.linalg.vector_norm(gradients)
                gradients.mul_((self.max_grad_norm / (norm + 1e-6)).clamp_(max=1.0))
                optimizer.step()
            self._n_updates += 1
            if over:
                break
        policy_loss, value_loss, clip_fraction, _, entropy, loss = torch.stack(logged).double().numpy().T
        values, returns = self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten()
        record = self.logger.record
        record("train/entropy_loss", -entropy.mean())
        record("train/policy_gradient_loss", policy_loss.mean())
        record("train/value_loss", value_loss.mean())
        record("train/approx_kl", float(torch.stack(divergences).mean()))
        record("train/clip_fraction", clip_fraction.mean())
        record("train/loss", loss[-1])
        record("train/explained_variance", explained_variance(values, returns))
        record("train/std", float(self.policy.log_std.exp().mean()))
        record("train/n_updates", self._n_updates, exclude="tensorboard")
        record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            record("train/clip_range_vf", clip_range_vf)

    def _gradients(self, network: _Network, batch: _Minibatch, clip_range: float, clip_range_vf: float | None) -> Tensor:
        """Writes the loss's gradient into the parameters' `.grad`.

        Returns policy loss, value loss, clipped share, approximate KL, entropy and loss, (6,).
        """
        mean, values = network.forward(batch.obs)
        log_std = self.policy.log_std
        noise = (batch.actions - mean) * torch.exp(-log_std)  # (n, action_dim), in standard deviations
        size, advantages = len(noise), batch.advantages
        constant = _log_constant(log_std)
        log_ratio = -0.5 * noise.square().sum(dim=1) - constant - batch.log_probs
        ratio = log_ratio.exp()
        if self.normalize_advantage and size > 1:
            deviation, average = torch.std_mean(advantages)
            advantages = (advantages - average) / (deviation + 1e-8)
        surrogate = advantages * ratio
        clipped = advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
        policy_loss = -torch.minimum(surrogate, clipped).mean()
        # where the clipped one is smaller, nothing depends on the ratio any more
        to_log_prob = torch.where(surrogate <= clipped, surrogate, 0.0).mul_(-1 / size)[:, None]

        error = values - batch.returns
        if clip_range_vf is not None:
            moved = values - batch.values
            error = batch.values + moved.clamp(-clip_range_vf, clip_range_vf) - batch.returns
        value_loss = error.square().mean()
        to_values = error * (2 * self.vf_coef / size)
        if clip_range_vf is not None:
            to_values *= moved.abs() <= clip_range_vf

        weighted = noise * to_log_prob
        self.policy.log_std.grad.copy_((weighted * noise).sum(dim=0) - to_log_prob.sum() - self.ent_coef)
        network.backward(weighted * torch.exp(-log_std), to_values)
        entropy = constant + 0.5 * len(log_std)
        clip_fraction = ((ratio - 1).abs() > clip_range).float().mean()
        loss = policy_loss - self.ent_coef * entropy + self.vf_coef * value_loss
        return torch.stack([policy_loss, value_loss, clip_fraction, (ratio - 1 - log_ratio).mean(), entropy, loss])


# Of a rollout, step and env whose episode time cut off, and its last observation (obs_dim,).
_Timeouts = list[tuple[int, int, np.ndarray]]
_JUDGED_ROWS = 1024  # samples at a time: their activations fit the cache


def _log_constant(log_std: Tensor) -> Tensor:
    """What a Gaussian's log-density is less half the squared noise."""
    return log_std.sum() + 0.5 * math.log(2 * math.pi) * len(log_std)


def _flat_gradients(policy: nn.Module) -> Tensor:
    """One vector that all parameters' `.grad` are views of."""
    parameters = list(policy.parameters())
    sizes = [parameter.numel() for parameter in parameters]
    gradients = torch.zeros(sum(sizes))
    for parameter, part in zip(parameters, gradients.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter)
    return gradients


class _Network:
    """The policy's two towers with buffers for up to `rows` samples."""

    def __init__(self, policy: Any, rows: int) -> None:
        self.rows = rows
        self.mirrored = policy if isinstance(policy, MirroredActorCriticPolicy) else None
        rows *= 1 if self.mirrored is None else 2
        extractor = policy.mlp_extractor
        self.actor = _Tower([*extractor.policy_net, policy.action_net], policy.activation_fn, rows)
        self.critic = _Tower([*extractor.value_net, policy.value_net], policy.activation_fn, rows)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean actions (n, action_dim) and values (n,) of `obs` (n, obs_dim), or of (2 n, obs_dim) with mirror images."""
        mean, values = self.actor.forward(obs), self.critic.forward(obs)
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


class _Tower:
    """Linear layers with an activation between them: forward and backward into buffers that are made once."""

    def __init__(self, modules: list[nn.Module], activation: type[nn.Module], rows: int) -> None:
        self.layers = [module for module in modules if isinstance(module, nn.Linear)]
        self.activation = _IN_PLACE[activation]
        self.outputs = [torch.empty(rows, layer.out_features) for layer in self.layers]
        self.to_outputs = [torch.empty(rows, layer.out_features) for layer in self.layers[:-1]]

    def forward(self, inputs: Tensor) -> Tensor:
        """The last layer's output, (n, out_features); the buffers keep what `backward` needs."""
        self.inputs = [inputs]
        for layer, buffer in zip(self.layers, self.outputs, strict=True):
            scale = 1.0 if layer is self.layers[-1] else self.activation.scale
            output = buffer[: len(inputs)]
            torch.addmm(layer.bias, self.inputs[-1], layer.weight.t(), beta=scale, alpha=scale, out=output)
            if layer is not self.layers[-1]:
                self.activation.apply(output)
            self.inputs.append(output)
        return output

    def backward(self, gradient: Tensor) -> None:
        """Weights' and biases' `.grad` from the loss's gradient by the last output, (n, out_features)."""
        for i in reversed(range(len(self.layers))):
            layer, inputs = self.layers[i], self.inputs[i]
            torch.mm(gradient.t(), inputs, out=layer.weight.grad)
            torch.sum(gradient, dim=0, out=layer.bias.grad)
            if i > 0:
                gradient = torch.mm(gradient, layer.weight, out=self.to_outputs[i - 1][: len(inputs)])
                self.activation.slope(gradient, inputs)


class _Minibatch:
    """The samples `ids` (n,) of a rollout."""

    def __init__(self, rollout: _Rollout, ids: Tensor) -> None:
        rows = ids if rollout.mirrored is None else torch.cat([ids, ids + len(rollout.columns[0])])
        self.obs = rollout.obs[rows]  # (n, obs_dim); mirrored: (2 n, obs_dim)
        self.actions = rollout.actions[ids]
        self.values, self.log_probs, self.advantages, self.returns = (column[ids] for column in rollout.columns)


class _Rollout:
    """A rollout buffer as tensors, one row a sample, in SB3's order (one env's steps after the other's)."""

    def __init__(self, buffer: Any, mirrored: MirroredActorCriticPolicy | None) -> None:
        self.mirrored = mirrored
        self.obs, self.actions = _rows(buffer.observations), _rows(buffer.actions)
        names = ("values", "log_probs", "advantages", "returns")
        self.columns = [_rows(getattr(buffer, name)[..., None])[:, 0] for name in names]
        if mirrored is not None:
            self.obs = mirrored.with_mirror_images(self.obs)

    def minibatches(self, size: int) -> Iterator[_Minibatch]:
        """All samples once, in an order drawn as SB3 draws it, `size` at a time."""
        order = torch.from_numpy(np.random.permutation(len(self.actions)))
        return (_Minibatch(self, ids) for ids in order.split(size))


def _rows(array: np.ndarray) -> Tensor:
    """(num_steps, num_envs, dim) -> (num_envs * num_steps, dim) float32."""
    return torch.from_numpy(array).transpose(0, 1).to(torch.float32).reshape(-1, array.shape[-1])
