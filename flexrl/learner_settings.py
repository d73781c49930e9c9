"""The settings of each learner, read off the signatures of Stable-Baselines3 and sb3-contrib."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any, Literal, Union

from pydantic import Field, create_model
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import A2C, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import nn

from flexrl.config import Settings, choice
from flexrl.motor_settings import resolve_tasks
from flexrl.ppo import PPO
from flexrl.recurrent_ppo import RecurrentPPO

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
        """SB3's schedule: `progress_remaining` goes from 1 to 0, and below 0 in a last rollout that overshoots the run."""
        return self.end + (self.start - self.end) * max(progress_remaining, 0.0)


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
# Adam in one pass over all weights (docs/LOG.md: 15 % off the update of a 256-256 network); the eps is SB3's for PPO.
_ADAM = {"optimizer_kwargs": {"fused": True, "eps": 1e-5}}
POLICY_DEFAULTS: dict[str, dict[str, Any]] = {
    "ppo": {"net_arch": [128, 128], "activation_fn": "elu", "log_std_init": -0.5, **_ADAM},
    "recurrent_ppo": {"net_arch": [128], "activation_fn": "elu", "log_std_init": -0.5, "lstm_hidden_size": 128, **_ADAM},
}

# What each argument must satisfy, where SB3 itself would fail late or train nonsense.
_LIMITS: dict[str, dict[str, float]] = {
    **{name: {"ge": 1} for name in ("n_steps", "n_epochs", "chunk_length", "buffer_size", "stats_window_size", "policy_delay")},
    **{name: {"ge": 1} for name in ("target_update_interval", "lstm_hidden_size", "n_lstm_layers", "n_critics", "n_quantiles")},
    "batch_size": {"ge": 2},
    **{name: {"gt": 0, "le": 1} for name in ("gamma", "gae_lambda", "tau")},
    **{name: {"ge": 0} for name in ("vf_coef", "bounds_coef", "smooth_coef", "learning_starts")},
    **{name: {"gt": 0} for name in ("max_grad_norm", "target_kl", "rms_prop_eps")},
    "gradient_steps": {"ge": -1},
    "sde_sample_freq": {"ge": -1},
}


def parameters_of(algorithm: type[BaseAlgorithm]) -> dict[str, inspect.Parameter]:
    """What its constructor takes by name, those that it passes on to its parent's among them."""
    own = inspect.signature(algorithm.__init__, eval_str=True).parameters
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own.values()):
        return dict(own)
    named = {name: p for name, p in own.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    return parameters_of(algorithm.__mro__[1]) | named


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
    for key, parameter in parameters_of(algorithm).items():
        if key not in _GIVEN and key != "policy":
            fields[key] = _field(key, parameter, DEFAULTS[name].get(key, parameter.default))
    if issubclass(algorithm, OffPolicyAlgorithm):
        # keep the replay buffer in files of the run (memory-mapped), so that --resume goes on exactly; false: in memory
        fields["save_replay_buffer"] = (bool, True)
    if name == "ppo":
        # skills of a mixed world with a network of their own within the policy, so that what they learn moves no other
        fields["apart"] = (list[str], [])
        # those of them whose network, and the normaliser that it sees through, stay as they were in init_from or init_apart
        fields["frozen"] = (list[str], [])
    fields["policy_kwargs"] = (policy_settings, policy_settings())
    return create_model(
        f"{algorithm.__name__}Settings", __base__=Settings, __doc__=f"Arguments of {algorithm.__name__}.", **fields
    )


SETTINGS = {name: _settings_of(name, algorithm) for name, algorithm in LEARNERS.items()}


# A learner's settings; `learner: {n_steps: 32}` means PPO.
LearnerSettings = choice("name", SETTINGS, default="ppo")


def check_fit(settings: Any, world: Any) -> None:
    """ValueError with a sentence if these learner settings cannot work on a world of these settings."""
    has_mirror = world.kind == "motor" and world.body == "humanoid" and world.observation != "v5"
    for name in ("learning_rate", "clip_range", "clip_range_vf", "min_action_std", "max_action_std"):
        value = getattr(settings, name, None)
        lowest = 1.0 if value is None else min(value.start, value.end) if isinstance(value, Schedule) else value
        if lowest <= 0:
            raise ValueError(f"learner.{name}: expected numbers above 0, found {lowest:g}")
    bounds = [getattr(settings, name, None) for name in ("min_action_std", "max_action_std")]
    if None not in bounds:
        ends = [(bound.start, bound.end) if isinstance(bound, Schedule) else (bound, bound) for bound in bounds]
        if any(low > high for low, high in zip(*ends, strict=True)):
            raise ValueError("learner.min_action_std: expected at most max_action_std, at the start and at the end")
    if getattr(settings, "optimize_memory_usage", False):
        raise ValueError("learner.optimize_memory_usage: SB3 cannot do it for episodes that time ends; write false")
    freq = getattr(settings, "train_freq", 1)
    number, unit = (freq, "step") if isinstance(freq, int) else freq
    if number < 1 or unit not in ("step", "episode") or (unit == "episode" and world.num_envs > 1):
        raise ValueError("learner.train_freq: expected a number from 1, or [1, episode] with one env")
    if settings.policy == "MirroredPolicy" and not has_mirror:
        raise ValueError("learner.policy: MirroredPolicy needs the humanoid, and not observation v5; write MlpPolicy")
    if getattr(settings, "apart", None):
        _check_apart(settings, world, has_mirror)
    for skill in getattr(settings, "frozen", []):
        if skill not in settings.apart:
            raise ValueError(f"learner.frozen: {skill} has no network apart; add it to learner.apart")
    if settings.name in ("ppo", "recurrent_ppo") and settings.n_steps * world.num_envs < 2:
        raise ValueError("learner.n_steps: one step of one env is too little for PPO; write at least 2")
    if settings.name in ("ppo", "a2c", "recurrent_ppo") and settings.use_sde and settings.policy in ("auto", "MirroredPolicy"):
        raise ValueError("learner.use_sde: state-dependent exploration has no mirror image; write policy: MlpPolicy")
    if settings.name == "recurrent_ppo" and settings.n_steps % settings.chunk_length:
        raise ValueError(
            f"learner.chunk_length: {settings.n_steps} steps (learner.n_steps) are no whole number of chunks of "
            f"{settings.chunk_length}"
        )
    if hasattr(settings, "buffer_size") and settings.buffer_size < 10 * world.num_envs:
        raise ValueError(f"learner.buffer_size: expected at least 10 steps of each of the {world.num_envs} envs")


def _check_apart(settings: Any, world: Any, has_mirror: bool) -> None:
    if world.kind != "motor" or world.task != "mixed" or "one_hot" not in world.goal:
        raise ValueError("learner.apart: needs a mixed motor world whose goal has one_hot, by which the policy tells; write []")
    known = list(resolve_tasks(world))
    for skill in settings.apart:
        if skill not in known:
            raise ValueError(f"learner.apart: the world has no skill {skill!r}; it has {', '.join(known)}")
    if len(set(settings.apart)) < len(settings.apart) or len(settings.apart) == len(known):
        raise ValueError("learner.apart: expected each skill once, and one of the world's at least that is left out")
    sided = [skill for skill in settings.apart if "left" in skill or "right" in skill]
    if sided and has_mirror and settings.policy != "MlpPolicy":
        raise ValueError(
            f"learner.apart: half of what a mirrored policy does at {sided[0]} is the mirror image of its twin, in another "
            "network; leave it away, or write policy: MlpPolicy"
        )
    if settings.use_sde or settings.policy not in ("auto", "MirroredPolicy", "MlpPolicy"):
        raise ValueError("learner.apart: only an MLP with plain noise has networks apart; write policy: auto")
