"""Settings -> a learner of Stable-Baselines3 or sb3-contrib; its whole state out and in."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from flexrl.learner_settings import ACTIVATIONS, LEARNERS, Schedule, parameters_of
from flexrl.networks import MotorActorCriticPolicy
from flexrl.on_policy import one_thread
from flexrl.ppo import PPO
from flexrl.randomness import random_state, set_random_state
from flexrl.recurrent_ppo import RecurrentPPO
from flexrl.replay import MappedNStepReplayBuffer, MappedReplayBuffer, Replay
from flexrl.worlds import MirroredMeanStd, columns_of_skills, mirrors_of


def make_learner(
    settings: Any, world: VecEnv, *, num_steps: int, seed: int, device: str, replay_folder: Path | None = None
) -> Learner:
    """The learner that `settings` (one of SETTINGS) name, on `world`, for a run of `num_steps` env steps."""
    return Learner(settings, world, num_steps=num_steps, seed=seed, device=device, replay_folder=replay_folder)


def make_idle_learner(settings: Any, world: VecEnv, *, device: str, optimizer: bool = False) -> Learner:
    """The same to look at or to play, which does not learn: no buffer, and no `optimizer` unless it is asked for.

    torch imports what it compiles with for the first optimiser of a process, which takes two seconds.
    """
    own = settings.policy_kwargs
    is_idle = not optimizer and own.optimizer_kwargs == type(own).model_fields["optimizer_kwargs"].get_default()
    idle = {"optimizer_class": _Idle} if is_idle else {}
    return Learner(_without_room(settings), world, num_steps=1, seed=0, device=device, policy_kwargs=idle)


class _Idle(torch.optim.Optimizer):
    """Holds parameters and never moves them."""

    def __init__(self, params: Any, lr: float = 0.0, **kwargs: Any) -> None:
        self.defaults, self.state = {"lr": lr}, {}  # type: ignore[assignment]
        self.param_groups = [{"params": list(params), "lr": lr}]


def _without_room(settings: Any) -> Any:
    """Its settings: SB3 takes no rollout of one step with one env."""
    update: dict[str, Any] = {}
    if hasattr(settings, "buffer_size"):
        update |= {"buffer_size": 1, "save_replay_buffer": False}
    if getattr(settings, "n_steps", None) == 1 and settings.name in ("ppo", "recurrent_ppo"):
        update["n_steps"] = 2
    return settings.model_copy(update=update)


def _is_small(settings: Any) -> bool:
    """Whether a GPU would wait for the CPU: an on-policy learner's few layers, whose updates are written for a CPU."""
    policies = ("auto", "MirroredPolicy", "MlpPolicy", "MlpLstmPolicy")
    return settings.name in ("ppo", "recurrent_ppo", "a2c") and settings.policy in policies


def _arguments(settings: Any, world: VecEnv, replay_folder: Path | None) -> tuple[Any, dict[str, Any]]:
    """The policy and the keyword arguments of SB3's constructor."""
    algorithm = LEARNERS[settings.name]
    names = set(parameters_of(algorithm))
    arguments = {key: getattr(settings, key) for key in type(settings).model_fields if key in names}
    for key, value in arguments.items():
        if isinstance(value, Schedule):
            arguments[key] = FloatSchedule(value)
    policy_kwargs = {key: getattr(settings.policy_kwargs, key) for key in type(settings.policy_kwargs).model_fields}
    policy_kwargs["activation_fn"] = ACTIVATIONS[policy_kwargs["activation_fn"]]
    policy: Any = arguments.pop("policy")
    mirrors = mirrors_of(world)
    if policy == "auto":
        policy = "MirroredPolicy" if mirrors is not None else "MlpPolicy"
    if policy == "MirroredPolicy":
        assert mirrors is not None  # refused by `check_fit`
        policy = MotorActorCriticPolicy
        policy_kwargs |= {"obs_mirror": mirrors[0], "action_mirror": mirrors[1]}
    if getattr(settings, "apart", None):
        policy = MotorActorCriticPolicy
        policy_kwargs["apart"] = columns_of_skills(world, settings.apart)
        policy_kwargs["frozen"] = [settings.apart.index(skill) for skill in settings.frozen]
    if issubclass(algorithm, OffPolicyAlgorithm):
        if arguments["action_noise"] is not None:
            size = world.action_space.shape[0]  # type: ignore[index]
            noise = NormalActionNoise(np.zeros(size), np.full(size, arguments["action_noise"].sigma))
            arguments["action_noise"] = VectorizedActionNoise(noise, world.num_envs) if world.num_envs > 1 else noise
        if replay_folder is not None and settings.save_replay_buffer:
            buffer = MappedReplayBuffer if settings.n_steps == 1 else MappedNStepReplayBuffer
            freq, unit = (settings.train_freq, "step") if isinstance(settings.train_freq, int) else settings.train_freq
            rows = freq if unit == "step" else settings.buffer_size // 10  # an episode may be long
            rollout = {"folder": replay_folder, "rollout_rows": rows}
            arguments |= {"replay_buffer_class": buffer, "replay_buffer_kwargs": rollout}
            if settings.n_steps > 1:
                arguments["replay_buffer_kwargs"] |= {"n_steps": settings.n_steps, "gamma": settings.gamma}
                arguments["n_steps"] = 1  # the buffer knows; SB3 warns if it is told beside a buffer of our own
    return policy, arguments | {"policy_kwargs": policy_kwargs}


class Learner:
    """One SB3 model on one world: `improve` is a rollout and an update, `get_state` everything that the next one depends on."""

    def __init__(
        self,
        settings: Any,
        world: VecEnv,
        *,
        num_steps: int,
        seed: int,
        device: str,
        replay_folder: Path | None = None,
        policy_kwargs: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.settings, self.world = settings, world
        self.normaliser = world if isinstance(world, VecNormalize) else None
        if self.normaliser is not None and getattr(settings, "frozen", None):
            self.normaliser.training = False
        self.total_steps = num_steps
        policy, arguments = _arguments(settings, world, replay_folder)
        arguments["policy_kwargs"] |= policy_kwargs
        if self.normaliser is not None and self.normaliser.norm_obs and "obs_mirror" in arguments["policy_kwargs"]:
            self.normaliser.obs_rms = MirroredMeanStd(arguments["policy_kwargs"]["obs_mirror"])
        device = "cpu" if device == "auto" and _is_small(settings) else device
        self.model = LEARNERS[settings.name](policy, world, seed=seed, device=device, verbose=0, **arguments)
        self.model.set_logger(Logger(folder=None, output_formats=[]))
        self._started = False
        self._learn_after: int = getattr(self.model, "learning_starts", 0)  # env steps

    @property
    def num_steps(self) -> int:
        """Env steps collected so far, over all simulations."""
        return self.model.num_timesteps

    def improve(self) -> dict[str, float]:
        """One rollout and one update; returns what SB3 logs of it and where the time went."""
        model: Any = self.model
        if not self._started:
            self._begin()
        start, steps_before = time.perf_counter(), model.num_timesteps
        if isinstance(model, OffPolicyAlgorithm):
            with one_thread():
                model.collect_rollouts(
                    self.world,
                    self._callback,
                    model.train_freq,
                    model.replay_buffer,
                    model.action_noise,
                    model.learning_starts,
                )
        else:
            with contextlib.nullcontext() if isinstance(model, (PPO, RecurrentPPO)) else one_thread():
                model.collect_rollouts(self.world, self._callback, model.rollout_buffer, model.n_steps)
            model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
        middle, num_steps = time.perf_counter(), model.num_timesteps - steps_before
        if not isinstance(model, OffPolicyAlgorithm):
            model.train()
        elif model.num_timesteps > self._learn_after:
            gradient_steps = model.gradient_steps if model.gradient_steps >= 0 else num_steps
            if gradient_steps > 0:
                model.train(gradient_steps=gradient_steps, batch_size=model.batch_size)
        end = time.perf_counter()
        metrics: dict[str, float] = {
            key: float(value) for key, value in model.logger.name_to_value.items() if isinstance(value, (int, float, np.number))
        }
        model.logger.name_to_value.clear()
        world = self.world.unwrapped
        lost = world.take_metrics() if hasattr(world, "take_metrics") else {}
        return (
            metrics
            | lost
            | self._episode_metrics()
            | {
                "time/env_steps_per_second": num_steps / (end - start),
                "time/rollout_steps_per_second": num_steps / (middle - start),
                "time/update_share": (end - middle) / (end - start),
            }
        )

    def _begin(self) -> None:
        """What SB3's `learn` does before its loop, so that the loop can be ours."""
        if self.model._last_obs is None:
            _, self._callback = self.model._setup_learn(self.total_steps, None)
        else:  # going on: counters and observations are the restored ones
            self.model._total_timesteps = self.total_steps
            self._callback = self.model._init_callback(None)
        self._started = True

    def _episode_metrics(self) -> dict[str, float]:
        """Means over the last finished episodes."""
        episodes = list(self.model.ep_info_buffer or [])
        if not episodes:
            return {}
        keys = {"r": "rollout/return", "l": "rollout/length", "mean_speed": "rollout/mean_speed"}
        return {name: float(np.mean([e[key] for e in episodes])) for key, name in keys.items() if key in episodes[0]}

    def policy_arrays(self) -> dict[str, np.ndarray]:
        """The policy's weights by name."""
        return {key: value.detach().cpu().numpy().copy() for key, value in self.model.policy.state_dict().items()}

    def normaliser_arrays(self) -> dict[str, np.ndarray]:
        """Mean and variance of observations (obs_dim,) and of returns (); empty if nothing is normalised."""
        if self.normaliser is None:
            return {}
        returns = self.normaliser.ret_rms
        arrays = {"return_mean": np.array(returns.mean), "return_variance": np.array(returns.var)}
        if self.normaliser.norm_obs:
            arrays |= {"mean": self.normaliser.obs_rms.mean.copy(), "variance": self.normaliser.obs_rms.var.copy()}
        return arrays

    def get_state(self) -> dict[str, Any]:
        """A tree of arrays and plain values: with it `set_state` goes on exactly, bit for bit."""
        model: Any = self.model
        modules, variables = model._get_torch_save_params()
        state: dict[str, Any] = {
            "modules": {name: _copy(_attribute(model, name).state_dict()) for name in modules},
            "variables": {name: _copy(_attribute(model, name).data) for name in variables},
            "counters": {key: getattr(model, key) for key in _COUNTERS if hasattr(model, key)},
            "last": {key: _copy(getattr(model, key)) for key in _LAST if getattr(model, key) is not None},
            "episodes": [dict(episode) for episode in model.ep_info_buffer],
            "successes": [bool(success) for success in model.ep_success_buffer],
            "random": random_state(),
            "action_space": model.action_space.np_random.bit_generator.state,
        }
        if hasattr(model, "_last_lstm_states"):
            state["lstm"] = [_copy(part) for pair in model._last_lstm_states for part in pair]
        if self.normaliser is not None:
            state["normaliser"] = _normaliser_state(self.normaliser)
        world = self.world.unwrapped
        if hasattr(world, "get_state"):
            state["world"] = world.get_state()
        if isinstance(getattr(model, "replay_buffer", None), Replay):
            state["replay"] = model.replay_buffer.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on exactly where `get_state` was taken; a world without a state of its own starts new episodes."""
        model: Any = self.model
        for name, values in state["modules"].items():
            _attribute(model, name).load_state_dict(_to_torch(values))
        for name, value in state["variables"].items():
            _attribute(model, name).data.copy_(_to_torch(value))
        for key, value in state["counters"].items():
            setattr(model, key, value)
        model.ep_info_buffer = deque(state["episodes"], maxlen=model._stats_window_size)
        model.ep_success_buffer = deque(state["successes"], maxlen=model._stats_window_size)
        if "lstm" in state:
            parts = [torch.as_tensor(part, device=model.device) for part in state["lstm"]]
            model._last_lstm_states = RNNStates((parts[0], parts[1]), (parts[2], parts[3]))
        if "replay" in state:
            model.replay_buffer.set_state(state["replay"])
        elif isinstance(model, OffPolicyAlgorithm):  # an empty buffer is filled again before it is learned from
            self._learn_after = model.num_timesteps + model.learning_starts
        if self.normaliser is not None:
            _set_normaliser_state(self.normaliser, state["normaliser"])
        if "world" in state:
            self.world.unwrapped.set_state(state["world"])
            for key, value in state["last"].items():
                setattr(model, key, value)
        else:
            self.world.seed(model.seed + model.num_timesteps)  # else its episodes would be those that the run began with
            model._last_obs = self.world.reset()
            model._last_episode_starts = np.ones(self.world.num_envs, bool)
            if self.normaliser is not None:
                model._last_original_obs = self.normaliser.get_original_obs()
        model.action_space.np_random.bit_generator.state = state["action_space"]
        set_random_state(state["random"])

    def how_exact(self) -> str:
        """How resuming goes on: "exactly" (bit for bit), or what is new and why."""
        replay = getattr(self.model, "replay_buffer", None)
        if replay is not None and not isinstance(replay, Replay):
            return "with an empty replay buffer, as learner.save_replay_buffer is false,"
        if not hasattr(self.world.unwrapped, "get_state"):
            return "with new episodes, as this world's state cannot be saved,"
        return "exactly"

    def must_save(self) -> bool:
        """Whether the replay buffer's undo journal is nearly full, so that the run must be saved now."""
        replay = getattr(self.model, "replay_buffer", None)
        return isinstance(replay, Replay) and replay.journal_is_full()

    def saved(self) -> None:
        """To be called once a state is on disk."""
        replay = getattr(self.model, "replay_buffer", None)
        if isinstance(replay, Replay):
            replay.commit()


_COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining", "_n_calls")
_LAST = ("_last_obs", "_last_episode_starts", "_last_original_obs")


def _attribute(model: Any, path: str) -> Any:
    for name in path.split("."):
        model = getattr(model, name)
    return model


def _copy(value: Any) -> Any:
    """A deep copy with tensors as NumPy arrays."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy().copy()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copy(item) for item in value]
    return value


def _to_torch(value: Any) -> Any:
    """The inverse of `_copy` for state_dicts."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {key: _to_torch(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_to_torch(item) for item in value]
    return value


def _normaliser_state(normaliser: VecNormalize) -> dict[str, Any]:
    state: dict[str, Any] = {"returns": normaliser.returns.copy()}
    for name in ("obs_rms", "ret_rms"):
        rms = getattr(normaliser, name, None)
        if rms is not None:
            state[name] = {"mean": np.array(rms.mean), "var": np.array(rms.var), "count": float(rms.count)}
    return state


def _set_normaliser_state(normaliser: VecNormalize, state: dict[str, Any]) -> None:
    normaliser.returns = state["returns"].copy()
    for name in ("obs_rms", "ret_rms"):
        if name in state:
            rms = getattr(normaliser, name)
            rms.mean, rms.var, rms.count = state[name]["mean"].copy(), state[name]["var"].copy(), state[name]["count"]
