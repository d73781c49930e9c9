"""sb3-contrib's recurrent PPO at the speed of a batch: chunks of one length instead of padded sequences."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import sb3_contrib
import torch
from numpy.typing import NDArray
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.type_aliases import RecurrentRolloutBufferSamples, RNNStates
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from flexrl.lstm import run_lstm
from flexrl.ppo import one_thread


class RecurrentPPO(sb3_contrib.RecurrentPPO):
    """sb3-contrib's recurrent PPO, trained on chunks of `chunk_length` steps from the memory that each began with.

    sb3-contrib cuts a rollout at the ends of episodes and pads the pieces one by one, to the length of the longest. Here
    every piece has the same length and an episode may end within it, where the memory is cleared; a gradient goes back to
    the chunk's beginning. With chunks as long as the rollout both are the same.
    """

    def __init__(self, policy: Any, env: Any, *args: Any, chunk_length: int = 16, **kwargs: Any) -> None:
        self.chunk_length = chunk_length
        super().__init__(policy, env, *args, **kwargs)

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
        with one_thread():
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)


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
