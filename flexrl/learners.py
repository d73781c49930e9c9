"""Settings -> a learner of Stable-Baselines3 or sb3-contrib; its whole state out and in."""

from __future__ import annotations

import contextlib
import inspect
import random
import time
import typing
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Union

import numpy as np
import torch
from pydantic import Field, create_model
from sb3_contrib import TQC, CrossQ, RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn

from flexrl.config import Settings, choice
from flexrl.networks import MirroredActorCriticPolicy
from flexrl.replay import MappedNStepReplayBuffer, MappedReplayBuffer, Replay
from flexrl.worlds import mirrors_of

LEARNERS: dict[str, type[BaseAlgorithm]] = {
    "ppo": PPO,
    "recurrent_ppo": RecurrentPPO,
    "a2c": A2C,
    "sac": SAC,
    "tqc": TQC,
    "crossq": CrossQ,
}

ACTIVATIONS: dict[str, type[nn.Module]] = {
    name.lower(): getattr(nn, name) for name in ("Tanh", "ReLU", "ELU", "SiLU", "GELU", "LeakyReLU")
}


class Schedule(Settings):
    """A value that moves in a straight line from `start` to `end` over the run."""

    start: float
    end: float

    def __call__(self, progress_remaining: float) -> float:
        """SB3's schedule: `progress_remaining` goes from 1 to 0."""
        return self.end + (self.start - self.end) * progress_remaining


class Noise(Settings):
    """Gaussian noise added to actions while collecting, in units of the action."""

    sigma: float = Field(gt=0)


# Arguments of SB3's constructors that are no settings of a learner: the run gives them, or they are Python classes.
_GIVEN = {
    *("self", "env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model"),
    *("rollout_buffer_class", "rollout_buffer_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "policy_kwargs"),
}
_GIVEN_TO_POLICY = {
    *("self", "observation_space", "action_space", "lr_schedule", "use_sde", "squash_output"),
    *("features_extractor_class", "features_extractor_kwargs", "optimizer_class"),
}

# Where our batched worlds want another default than SB3's, which is made for a handful of envs.
_ON_POLICY = {"learning_rate": Schedule(start=5e-4, end=1e-4), "n_steps": 64, "gamma": 0.99, "gae_lambda": 0.95}
# gradient_steps -1: as many updates as env steps were collected (one vector step of N envs is followed by N updates), so
# that the ratio of updates to data is that of a single env, whatever N is. 0.25 * N, say, trades data for speed.
_OFF_POLICY = {"gradient_steps": -1, "train_freq": 1, "learning_starts": 10_000}
DEFAULTS: dict[str, dict[str, Any]] = {
    "ppo": _ON_POLICY | {"batch_size": 512, "n_epochs": 4},
    "recurrent_ppo": _ON_POLICY | {"batch_size": 2048, "n_epochs": 4},
    "a2c": {"n_steps": 16},
    "sac": _OFF_POLICY,
    "tqc": _OFF_POLICY,
    "crossq": _OFF_POLICY,
}
POLICY_DEFAULTS: dict[str, dict[str, Any]] = {
    "ppo": {"net_arch": [128, 128], "activation_fn": "elu", "log_std_init": -0.5},
    "recurrent_ppo": {"net_arch": [128], "activation_fn": "elu", "log_std_init": -0.5, "lstm_hidden_size": 128},
}

# What each argument must satisfy, where SB3 itself would fail late or train nonsense.
_LIMITS: dict[str, dict[str, float]] = {
    **{name: {"ge": 1} for name in ("n_steps", "n_epochs", "buffer_size", "stats_window_size", "policy_delay")},
    **{name: {"ge": 1} for name in ("target_update_interval", "lstm_hidden_size", "n_lstm_layers", "n_critics", "n_quantiles")},
    "batch_size": {"ge": 2},
    **{name: {"gt": 0, "le": 1} for name in ("gamma", "gae_lambda", "tau")},
    **{name: {"ge": 0} for name in ("vf_coef", "learning_starts")},
    **{name: {"gt": 0} for name in ("max_grad_norm", "target_kl", "rms_prop_eps")},
    "gradient_steps": {"ge": -1},
    "sde_sample_freq": {"ge": -1},
}


def _number_type(annotation: Any) -> Any:
    """A YAML type for an argument's annotation: schedules for functions of progress, noise for ActionNoise."""
    parts = typing.get_args(annotation) or (annotation,)
    translated: list[Any] = []
    for part in parts:
        if part is Callable or (typing.get_origin(part) is not None and "Callable" in str(part)):
            translated.append(Schedule)
        elif inspect.isclass(part) and part.__name__ == "ActionNoise":
            translated.append(Noise)
        else:
            translated.append(part)
    return Union[tuple(translated)] if typing.get_origin(annotation) is not dict else annotation  # noqa: UP007


def _field(name: str, parameter: inspect.Parameter, default: Any) -> tuple[Any, Any]:
    annotation = parameter.annotation
    if name == "activation_fn":
        return Literal[tuple(ACTIVATIONS)], default
    if name in ("net_arch",):
        layers = list[typing.Annotated[int, Field(ge=1, le=65536)]]
        return layers | dict[Literal["pi", "vf", "qf"], layers] | None, default
    if name.endswith("_kwargs"):
        return dict[str, Any] | None, default
    return _number_type(annotation), Field(default, **_LIMITS.get(name, {}))  # type: ignore[call-overload]


def _settings_of(name: str, algorithm: type[BaseAlgorithm]) -> type[Settings]:
    """The settings class of one learner: its name, its policy, and every argument of its constructor with SB3's names."""
    policies = [alias for alias in algorithm.policy_aliases if alias.startswith("Mlp")]
    policy_class = algorithm.policy_aliases[policies[0]]
    kwargs: dict[str, Any] = {}
    for key, parameter in inspect.signature(policy_class.__init__).parameters.items():
        if key not in _GIVEN_TO_POLICY:
            default = POLICY_DEFAULTS.get(name, {}).get(key, parameter.default)
            if inspect.isclass(default):
                default = default.__name__.lower()
            kwargs[key] = _field(key, parameter, default)
    policy_settings = create_model(f"{algorithm.__name__}PolicySettings", __base__=Settings, **kwargs)
    if name in ("ppo", "a2c"):
        policies = ["auto", *policies, "MirroredPolicy"]
    fields: dict[str, Any] = {"name": (Literal[name], name), "policy": (Literal[tuple(policies)], policies[0])}
    for key, parameter in inspect.signature(algorithm.__init__).parameters.items():
        if key not in _GIVEN and key != "policy":
            fields[key] = _field(key, parameter, DEFAULTS[name].get(key, parameter.default))
    if issubclass(algorithm, OffPolicyAlgorithm):
        # keep the replay buffer in files of the run (memory-mapped), so that --resume goes on exactly; false: in memory
        fields["save_replay_buffer"] = (bool, True)
    fields["policy_kwargs"] = (policy_settings, policy_settings())
    return create_model(
        f"{algorithm.__name__}Settings", __base__=Settings, __doc__=f"Arguments of {algorithm.__name__}.", **fields
    )


SETTINGS = {name: _settings_of(name, algorithm) for name, algorithm in LEARNERS.items()}


# A learner's settings; `learner: {n_steps: 32}` means PPO.
LearnerSettings = choice("name", SETTINGS, default="ppo")


def make_learner(
    settings: Any, world: VecEnv, *, num_steps: int, seed: int, device: str, replay_folder: Path | None = None
) -> Learner:
    """The learner that `settings` (one of SETTINGS) name, on `world`, for a run of `num_steps` env steps."""
    return Learner(settings, world, num_steps=num_steps, seed=seed, device=device, replay_folder=replay_folder)


def _arguments(settings: Any, world: VecEnv, replay_folder: Path | None) -> tuple[Any, dict[str, Any]]:
    """The policy and the keyword arguments of SB3's constructor."""
    algorithm = LEARNERS[settings.name]
    names = set(inspect.signature(algorithm.__init__).parameters)
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
        policy = MirroredActorCriticPolicy
        policy_kwargs |= {"obs_mirror": mirrors[0], "action_mirror": mirrors[1]}
    if issubclass(algorithm, OffPolicyAlgorithm):
        if arguments["action_noise"] is not None:
            size = world.action_space.shape[0]  # type: ignore[index]
            arguments["action_noise"] = NormalActionNoise(np.zeros(size), np.full(size, arguments["action_noise"].sigma))
        if replay_folder is not None and settings.save_replay_buffer:
            buffer = MappedReplayBuffer if settings.n_steps == 1 else MappedNStepReplayBuffer
            arguments |= {"replay_buffer_class": buffer, "replay_buffer_kwargs": {"folder": replay_folder}}
            if settings.n_steps > 1:
                arguments["replay_buffer_kwargs"] |= {"n_steps": settings.n_steps, "gamma": settings.gamma}
                arguments["n_steps"] = 1  # the buffer knows; SB3 warns if it is told beside a buffer of our own
    return policy, arguments | {"policy_kwargs": policy_kwargs}


def check_fit(settings: Any, world: Any) -> None:
    """ValueError with a sentence if these learner settings cannot work on a world of these settings."""
    has_mirror = world.kind == "motor" and world.body == "humanoid" and world.observation == "proprio"
    if settings.policy == "MirroredPolicy" and not has_mirror:
        raise ValueError("learner.policy: MirroredPolicy needs the humanoid with observation proprio; write MlpPolicy")
    if settings.name in ("ppo", "recurrent_ppo") and settings.n_steps * world.num_envs < 2:
        raise ValueError("learner.n_steps: one step of one env is too little for PPO; write at least 2")
    if settings.name in ("ppo", "a2c", "recurrent_ppo") and settings.use_sde and settings.policy in ("auto", "MirroredPolicy"):
        raise ValueError("learner.use_sde: state-dependent exploration has no mirror image; write policy: MlpPolicy")
    if hasattr(settings, "buffer_size") and settings.buffer_size < 10 * world.num_envs:
        raise ValueError(f"learner.buffer_size: expected at least 10 steps of each of the {world.num_envs} envs")


class Learner:
    """One SB3 model on one world: `improve` is a rollout and an update, `get_state` everything that the next one depends on."""

    def __init__(
        self, settings: Any, world: VecEnv, *, num_steps: int, seed: int, device: str, replay_folder: Path | None = None
    ) -> None:
        self.world = world
        self.normaliser = world if isinstance(world, VecNormalize) else None
        self.total_steps = num_steps
        self.num_threads = torch.get_num_threads()
        policy, arguments = _arguments(settings, world, replay_folder)
        self.model = LEARNERS[settings.name](policy, world, seed=seed, device=device, verbose=0, **arguments)
        self.model.set_logger(Logger(folder=None, output_formats=[]))
        self._started = False

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
        # Physics has its own threads; torch's would spin on the same cores while a small network acts.
        torch.set_num_threads(1)
        if isinstance(model, OffPolicyAlgorithm):
            model.collect_rollouts(
                self.world,
                self._callback,
                model.train_freq,
                model.replay_buffer,
                model.action_noise,
                model.learning_starts,
            )
        else:
            model.collect_rollouts(self.world, self._callback, model.rollout_buffer, model.n_steps)
            model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
        middle, num_steps = time.perf_counter(), model.num_timesteps - steps_before
        torch.set_num_threads(self.num_threads)
        if not isinstance(model, OffPolicyAlgorithm):
            model.train()
        elif model.num_timesteps > model.learning_starts:
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
        """Means over the last finished episodes; reward terms are a step's."""
        episodes = list(self.model.ep_info_buffer or [])
        if not episodes:
            return {}
        keys = {"r": "rollout/return", "l": "rollout/length", "mean_speed": "rollout/mean_speed"}
        metrics = {name: float(np.mean([e[key] for e in episodes])) for key, name in keys.items() if key in episodes[0]}
        for key in episodes[0]:
            if key.startswith("reward/"):
                metrics[key] = float(np.mean([episode[key] / episode["l"] for episode in episodes]))
        return metrics

    def policy_arrays(self) -> dict[str, np.ndarray]:
        """The policy's weights by name."""
        return {key: value.detach().cpu().numpy().copy() for key, value in self.model.policy.state_dict().items()}

    def normaliser_arrays(self) -> dict[str, np.ndarray]:
        """Mean and variance of observations (obs_dim,) and the variance of returns; empty if nothing is normalised."""
        if self.normaliser is None:
            return {}
        arrays = {"return_variance": np.array(self.normaliser.ret_rms.var)}
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
        if "world" in state:
            self.world.unwrapped.set_state(state["world"])
            for key, value in state["last"].items():
                setattr(model, key, value)
        else:
            model._last_obs = self.world.reset()
            model._last_episode_starts = np.ones(self.world.num_envs, bool)
            if self.normaliser is not None:
                model._last_original_obs = self.normaliser.get_original_obs()
        if self.normaliser is not None:
            _set_normaliser_state(self.normaliser, state["normaliser"])
        model.action_space.np_random.bit_generator.state = state["action_space"]
        set_random_state(state["random"])

    def is_exact(self) -> bool:
        """Whether resuming goes on bit for bit."""
        replay = getattr(self.model, "replay_buffer", None)
        return hasattr(self.world.unwrapped, "get_state") and (replay is None or isinstance(replay, Replay))

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


def random_state() -> dict[str, Any]:
    """The ambient generators that SB3 draws from: Python's, NumPy's and torch's."""
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    state: dict[str, Any] = {
        "python": {"version": version, "words": np.array(words, np.uint32), "gauss": gauss},
        "numpy": {
            "key": numpy_state["state"]["key"].copy(),
            "pos": numpy_state["state"]["pos"],
            "has_gauss": numpy_state["has_gauss"],
            "gauss": numpy_state["gauss"],
        },
        "torch": torch.get_rng_state().numpy().copy(),
    }
    if torch.cuda.is_available():
        state["cuda"] = [part.numpy().copy() for part in torch.cuda.get_rng_state_all()]
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Puts the ambient generators where `random_state` read them."""
    python, numpy_state = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(int(word) for word in python["words"]), python["gauss"]))
    words = {"key": numpy_state["key"], "pos": numpy_state["pos"]}
    gauss = {"has_gauss": numpy_state["has_gauss"], "gauss": numpy_state["gauss"]}
    np.random.set_state({"bit_generator": "MT19937", "state": words, **gauss})
    torch.set_rng_state(torch.from_numpy(state["torch"].copy()))
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state_all([torch.from_numpy(part.copy()) for part in state["cuda"]])


@contextlib.contextmanager
def forked_randomness(seed: int) -> typing.Iterator[None]:
    """Ambient generators seeded for a while, and put back as they were: an evaluation must not move the training."""
    before = random_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(before)
