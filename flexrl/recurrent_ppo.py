"""sb3-contrib's recurrent PPO at the speed of a batch: chunks of one length instead of padded sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import sb3_contrib
import torch
from numpy.typing import NDArray
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RecurrentRolloutBufferSamples, RNNStates
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from flexrl.lstm import Stepper, backward_layer, forward_layer, is_written_out, layer_weights, run_lstm
from flexrl.mlp import Tower
from flexrl.on_policy import CutOffs, bound_noise, is_plain, one_thread, roll_out, set_extras, update

Memory = tuple[Tensor, Tensor]  # hidden and cell, both (num_layers, num_sequences, size)


class RecurrentPPO(sb3_contrib.RecurrentPPO):
    """sb3-contrib's recurrent PPO, trained on chunks of `chunk_length` steps from the memory that each began with.

    sb3-contrib cuts a rollout at the ends of episodes and pads the pieces one by one, to the length of the longest. Here
    every piece has the same length and an episode may end within it, where the memory is cleared; a gradient goes back to
    the chunk's beginning. With chunks as long as the rollout both are the same. `min_action_std`, `max_action_std`,
    `bounds_coef` and `bootstrap_changes` are PPO's (ppo.py).
    """

    _last_lstm_states: RNNStates

    def __init__(
        self,
        policy: Any,
        env: Any,
        *args: Any,
        chunk_length: int = 16,
        min_action_std: float | Callable[[float], float] | None = None,
        max_action_std: float | Callable[[float], float] | None = None,
        bounds_coef: float = 0.0,
        bootstrap_changes: bool = True,
        **kwargs: Any,
    ) -> None:
        self.chunk_length = chunk_length
        super().__init__(policy, env, *args, **kwargs)
        set_extras(self, min_action_std, max_action_std, bounds_coef, bootstrap_changes=bootstrap_changes)

    def _setup_model(self) -> None:
        super()._setup_model()
        lstm = self.policy.lstm_actor
        self.rollout_buffer = ChunkedRolloutBuffer(
            self.n_steps,
            self.observation_space,
            self.action_space,
            (self.n_steps, lstm.num_layers, self.n_envs, lstm.hidden_size),
            self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
            chunk_length=self.chunk_length,
        )
        self.policy._process_sequence = _process_sequence

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """Fills the buffer with `n_rollout_steps` steps of every env; False if the callback ended it before."""
        bound_noise(self)
        if not self._is_plain():
            with one_thread():
                return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        player = _Player(self.policy, rollout_buffer, self._last_lstm_states)
        filled = roll_out(self, env, callback, rollout_buffer, n_rollout_steps, player)
        self._last_lstm_states = RNNStates(player.actors_memory, player.critics_memory)
        return filled

    def train(self) -> None:
        """One update on the rollout buffer: `n_epochs` passes over its chunks in random order."""
        if not self._is_plain():
            super().train()
            return
        rows = max(self.batch_size, self.chunk_length)
        update(self, _Network(self.policy, rows), lambda: self.rollout_buffer.get(self.batch_size))

    def _is_plain(self) -> bool:
        policy = self.policy
        return (
            type(policy) is RecurrentActorCriticPolicy
            and policy.lstm_critic is not None
            and is_written_out(policy.lstm_actor)
            and is_plain(self)
        )


class _Player:
    """The policy while it fills `buffer`, from the memory that it has."""

    def __init__(self, policy: RecurrentActorCriticPolicy, buffer: ChunkedRolloutBuffer, memory: RNNStates) -> None:
        self.policy, self.buffer = policy, buffer
        self.lstm, self.actor = Stepper(policy.lstm_actor), _actors_tower(policy, buffer.n_envs)
        self.actors_memory, self.critics_memory = memory

    def act(self, step: int, obs: Tensor, starts: NDArray[Any]) -> Tensor:
        """Mean actions, see on_policy.Player."""
        if step % self.buffer.chunk_length == 0:
            _keep_memory(self.buffer, step, self.actors_memory, "pi")
        features, self.actors_memory = self.lstm(obs, torch.from_numpy(starts).to(torch.float32), self.actors_memory)
        return self.actor.forward(features)

    def route(self, obs: Tensor) -> None:
        """One noise for all."""

    def judge(self, obs: NDArray[Any], starts: NDArray[Any], cut_offs: CutOffs) -> tuple[Tensor, Tensor]:
        """Values, see on_policy.Player."""
        buffer, length = self.buffer, self.buffer.chunk_length
        for begin in range(0, buffer.buffer_size, length):
            _keep_memory(buffer, begin, self.critics_memory, "vf")
            chunk = slice(begin, begin + length)
            values, self.critics_memory = self._judge(
                buffer.observations[chunk], buffer.episode_starts[chunk], self.critics_memory
            )
            buffer.values[chunk] = values
        return self._judge(obs[None], starts[None], self.critics_memory)[0][0], self._judge_cut_off(cut_offs)

    def _judge_cut_off(self, cut_offs: CutOffs) -> Tensor:
        """Values of the cut-off observations: their chunks once more, with them in the next step's place."""
        if not cut_offs:
            return torch.empty(0)
        buffer, length = self.buffer, self.buffer.chunk_length
        steps, ids, last = (np.array(column) for column in zip(*cut_offs, strict=True))
        begins, which, after = steps - steps % length, np.arange(len(steps)), steps % length + 1
        # (length + 1, n) steps; nothing behind the observation reaches its value
        rows = np.minimum(begins + np.arange(length + 1)[:, None], buffer.buffer_size - 1)
        obs, starts = buffer.observations[rows, ids], buffer.episode_starts[rows, ids]
        obs[after, which], starts[after, which] = last, 0.0
        hidden, cell = (
            torch.from_numpy(np.ascontiguousarray(part[begins, :, ids].swapaxes(0, 1)))
            for part in (buffer.hidden_states_vf, buffer.cell_states_vf)
        )
        return self._judge(obs, starts, (hidden, cell))[0][after, which]

    def _judge(self, obs: NDArray[Any], starts: NDArray[Any], memory: Memory) -> tuple[Tensor, Memory]:
        """Values (length, num_sequences) of sequences, and the critic's memory after them."""
        inputs, begins = (torch.from_numpy(array).to(torch.float32) for array in (obs, starts))
        outputs, memory = run_lstm(self.policy.lstm_critic, inputs, begins, memory)
        values = _critics_tower(self.policy, begins.numel()).forward(outputs.flatten(0, 1))
        return values.view(begins.shape), memory


class _Network:
    """Actor and critic with buffers for up to `rows` samples."""

    def __init__(self, policy: RecurrentActorCriticPolicy, rows: int) -> None:
        self.actor = _Head(policy.lstm_actor, _actors_tower(policy, rows))
        self.critic = _Head(policy.lstm_critic, _critics_tower(policy, rows))

    def forward(self, batch: RecurrentRolloutBufferSamples) -> tuple[Tensor, Tensor]:
        """Mean actions (n, action_dim) and values (n,) of whole chunks, one after the other."""
        num_chunks = batch.lstm_states.pi[0].shape[1]
        inputs = batch.observations.view(num_chunks, -1, batch.observations.shape[1]).transpose(0, 1).to(torch.float32)
        keep = 1.0 - batch.episode_starts.view(num_chunks, -1, 1).transpose(0, 1)
        mean = self.actor.forward(inputs, keep, batch.lstm_states.pi)
        return mean, self.critic.forward(inputs, keep, batch.lstm_states.vf)[:, 0]

    def route(self, batch: Any) -> None:
        """One noise for all."""

    def backward(self, to_mean: Tensor, to_values: Tensor) -> None:
        """The parameters' `.grad` from the loss's gradients by mean actions (n, action_dim) and by values (n,)."""
        self.actor.backward(to_mean)
        self.critic.backward(to_values[:, None])


class _Head:
    """An LSTM and the layers over it."""

    def __init__(self, lstm: nn.LSTM, tower: Tower) -> None:
        self.lstm, self.tower = lstm, tower

    def forward(self, inputs: Tensor, keep: Tensor, memory: Memory) -> Tensor:
        """`inputs` (length, num, input_size), `keep` (length, num, 1): 0 where the memory is cleared; (num * length, size)."""
        self.saved = []
        for layer, (hidden, cell) in enumerate(zip(*memory, strict=True)):
            inputs, _, saved = forward_layer(inputs, keep, hidden, cell, layer_weights(self.lstm, layer))
            self.saved.append(saved)
        self.shape = inputs.shape
        return self.tower.forward(inputs.transpose(0, 1).flatten(0, 1))

    def backward(self, gradient: Tensor) -> None:
        """Every parameter's `.grad` from the loss's gradient by the output of `forward`."""
        length, num, size = self.shape
        gradient = self.tower.backward(gradient, further=True).view(num, length, size).transpose(0, 1)
        for layer in reversed(range(len(self.saved))):
            to_inputs, to_weights = backward_layer(self.saved[layer], gradient, further=layer > 0)
            for weight, to_weight in zip(layer_weights(self.lstm, layer), to_weights, strict=True):
                assert weight.grad is not None
                weight.grad.copy_(to_weight)
            if to_inputs is not None:
                gradient = to_inputs


def _actors_tower(policy: RecurrentActorCriticPolicy, rows: int) -> Tower:
    return Tower([*policy.mlp_extractor.policy_net, policy.action_net], policy.activation_fn, rows)


def _critics_tower(policy: RecurrentActorCriticPolicy, rows: int) -> Tower:
    return Tower([*policy.mlp_extractor.value_net, policy.value_net], policy.activation_fn, rows)


def _keep_memory(buffer: ChunkedRolloutBuffer, step: int, memory: Memory, whose: str) -> None:
    for name, part in zip(("hidden", "cell"), memory, strict=True):
        getattr(buffer, f"{name}_states_{whose}")[step] = part.numpy()


def _process_sequence(
    features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: nn.LSTM
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What sb3-contrib's policies have by this name: `features` (num_sequences * length, size), `episode_starts` likewise."""
    num_sequences = lstm_states[0].shape[1]
    inputs = features.reshape(num_sequences, -1, lstm.input_size).transpose(0, 1)
    starts = episode_starts.reshape(num_sequences, -1).transpose(0, 1)
    outputs, lstm_states = run_lstm(lstm, inputs, starts, lstm_states)
    return outputs.transpose(0, 1).flatten(0, 1), lstm_states


class ChunkedRolloutBuffer(RecurrentRolloutBuffer):
    """A rollout with the memory at each chunk's beginning; `get` draws whole chunks, in random order."""

    def __init__(self, *args: Any, chunk_length: int, **kwargs: Any) -> None:
        self.chunk_length = chunk_length
        super().__init__(*args, **kwargs)

    def get(self, batch_size: int | None = None) -> Iterator[RecurrentRolloutBufferSamples]:  # type: ignore[override]
        """Minibatches of `batch_size` steps, rounded down to whole chunks but one at least; None: all at once."""
        steps = {name: torch.from_numpy(self._in_chunks(getattr(self, name))) for name in _PER_STEP}
        memory = [torch.from_numpy(self._at_starts(getattr(self, name))) for name in _MEMORY]
        num_chunks = len(steps["returns"])
        batch = num_chunks if batch_size is None else max(1, batch_size // self.chunk_length)
        order = torch.from_numpy(np.random.permutation(num_chunks))
        for chosen in order.split(batch):
            its = {name: part[chosen].flatten(0, 1).to(self.device) for name, part in steps.items()}
            pi_hidden, pi_cell, vf_hidden, vf_cell = (part[:, chosen].to(self.device) for part in memory)
            yield RecurrentRolloutBufferSamples(
                observations=its["observations"],
                actions=its["actions"],
                old_values=its["values"],
                old_log_prob=its["log_probs"],
                advantages=its["advantages"],
                returns=its["returns"],
                lstm_states=RNNStates((pi_hidden, pi_cell), (vf_hidden, vf_cell)),
                episode_starts=its["episode_starts"],
                mask=torch.ones_like(its["returns"]),
            )

    def _in_chunks(self, array: NDArray[Any]) -> NDArray[Any]:
        """(n_steps, n_envs, ...) as (num_chunks, chunk_length, ...)."""
        parts = array.reshape(-1, self.chunk_length, *array.shape[1:])
        return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(-1, self.chunk_length, *array.shape[2:])

    def _at_starts(self, array: NDArray[Any]) -> NDArray[Any]:
        """Memory (n_steps, num_layers, n_envs, size) at the chunks' beginnings: (num_layers, num_chunks, size)."""
        starts = array[:: self.chunk_length].transpose(1, 0, 2, 3)
        return np.ascontiguousarray(starts).reshape(array.shape[1], -1, array.shape[3])


_PER_STEP = ("observations", "actions", "values", "log_probs", "advantages", "returns", "episode_starts")
_MEMORY = ("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf")
