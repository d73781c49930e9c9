"""A policy of our own for SB3's on-policy learners: what is known of bodies and skills, built into the network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from flexrl.observations import Mirror

OTHERS = "others."  # what the names of weights of the networks apart begin with


class _Towers(nn.Module):
    """An actor and a critic, as SB3 builds them."""

    def __init__(self, mlp_extractor: nn.Module, action_net: nn.Module, value_net: nn.Module) -> None:
        super().__init__()
        self.mlp_extractor, self.action_net, self.value_net = mlp_extractor, action_net, value_net


class MotorActorCriticPolicy(ActorCriticPolicy):
    """SB3's MLP actor-critic, equivariant to the body's left-right mirror and with networks apart for some skills.

    With mirrors the mean action is the average of the answer and of the mirrored answer to the mirrored observation; the
    value is the average of both values. (Mirrored is what the normaliser shows, so that counts mirror images too:
    `worlds.MirroredMeanStd`.) With one half of the weights of a plain network of the
    same cost it learns from each sample twice, and cannot limp (Abdolhosseini et al. 2019, "On learning symmetric locomotion",
    section 3.4).

    `apart`: columns of the observation that are above 0 while a skill is asked for which has an actor, a critic and a noise
    of its own; all other skills share one. They begin alike. What such a skill learns moves nothing else (a mixture of
    experts whose gate is the goal). Those of `frozen` (indices into `apart`) learn nothing and stay as they are.
    """

    def __init__(
        self,
        *args: Any,
        obs_mirror: Mirror | None = None,
        action_mirror: Mirror | None = None,
        apart: Sequence[int] = (),
        frozen: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        self.apart, self.frozen = list(apart), list(frozen)
        super().__init__(*args, **kwargs)
        self.is_mirrored = obs_mirror is not None
        for name, mirror in (("obs", obs_mirror), ("action", action_mirror)):
            if mirror is not None:
                self.register_buffer(f"{name}_source", torch.as_tensor(mirror.source), persistent=False)
                self.register_buffer(f"{name}_sign", torch.as_tensor(mirror.sign), persistent=False)

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        super()._build(lr_schedule)
        if not self.apart:
            return
        shared = self.mlp_extractor, self.action_net, self.value_net
        self.others = nn.ModuleList([_Towers(*copy.deepcopy(shared)) for _ in self.apart])
        log_std: Tensor = self.log_std  # type: ignore[has-type]
        self.log_std = nn.Parameter(log_std.detach().repeat(1 + len(self.apart), 1))
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]
        for index in self.frozen:
            self.others[index].requires_grad_(False)
        if self.frozen:
            self.log_std.register_hook(lambda gradient: gradient * self.learns[:, None])

    @property
    def learns(self) -> Tensor:
        """Which of the towers learn, (1 + len(apart),), true or false."""
        learns = torch.ones(1 + len(self.apart), dtype=torch.bool, device=self.log_std.device)
        learns[[1 + index for index in self.frozen]] = False
        return learns

    def towers(self) -> Iterator[Any]:
        """Those of all skills without a network of their own, then of each that has one; see `route`."""
        yield self
        if self.apart:
            yield from self.others

    def route(self, obs: Tensor) -> Tensor | None:
        """Which towers answer each row of `obs` (n, obs_dim), (n,); None where there is but one network."""
        if not self.apart:
            return None
        asked = obs[:, self.apart] > 0
        return torch.where(asked.any(dim=1), asked.int().argmax(dim=1) + 1, 0)

    def noise_scale(self, obs: Tensor) -> Tensor:
        """Logarithms of the actions' standard deviations for `obs` (n, obs_dim): (action_dim,), or (n, action_dim)."""
        route = self.route(obs)
        return self.log_std if route is None else self.log_std[route]

    def with_mirror_images(self, obs: Tensor) -> Tensor:
        """The observations and, below them, their mirror images if the body has any: (batch or 2 * batch, obs_dim)."""
        return torch.cat([obs, obs[:, self.obs_source] * self.obs_sign]) if self.is_mirrored else obs

    def merge_means(self, means: Tensor) -> Tensor:
        """One answer (batch, action_dim) from those to what `with_mirror_images` made of a batch."""
        if not self.is_mirrored:
            return means
        own, other = means.chunk(2)
        return 0.5 * (own + other[:, self.action_source] * self.action_sign)

    def merge_values(self, values: Tensor) -> Tensor:
        """One value (batch, 1) from those of what `with_mirror_images` made of a batch."""
        if not self.is_mirrored:
            return values
        own, other = values.chunk(2)
        return 0.5 * (own + other)

    def split(self, weights: Mapping[str, NDArray[Any]], begins: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Another policy's weights, by name, as those of all towers of this one; those of other kinds stay as they are.

        `begins`: which of the other's towers each of `apart` begins with, 0: the one that its other skills share.
        """
        if not self.apart or "log_std" not in weights:
            return dict(weights)
        shared = {name: array for name, array in weights.items() if name != "log_std" and not name.startswith(OTHERS)}
        others = {
            f"{OTHERS}{i}.{name}": weights[f"{OTHERS}{tower - 1}.{name}"] if tower else array
            for i, tower in enumerate(begins)
            for name, array in shared.items()
        }
        return shared | others | {"log_std": np.atleast_2d(weights["log_std"])[[0, *begins]]}

    def _answer(self, obs: Tensor, ask: Callable[[Any, Tensor], Tensor]) -> Tensor:
        """What the towers that each row belongs to say to it."""
        route = self.route(obs)
        if route is None:
            return ask(self, obs)
        answers = [ask(towers, obs) for towers in self.towers()]
        return torch.stack(answers)[route, torch.arange(len(obs), device=obs.device)]

    def _mean(self, both: Tensor) -> Tensor:
        return self.merge_means(self._answer(both, lambda t, obs: t.action_net(t.mlp_extractor.forward_actor(obs))))

    def _value(self, both: Tensor) -> Tensor:
        return self.merge_values(self._answer(both, lambda t, obs: t.value_net(t.mlp_extractor.forward_critic(obs))))

    def _normal(self, mean: Tensor, obs: Tensor) -> DiagGaussianDistribution:
        return self.action_dist.proba_distribution(mean, self.noise_scale(obs))

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        both = self.with_mirror_images(obs.float())
        distribution = self._normal(self._mean(both), obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self._value(both), distribution.log_prob(actions)

    def evaluate_actions(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        both = self.with_mirror_images(obs.float())
        distribution = self._normal(self._mean(both), obs)
        values = self._value(both)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: Tensor) -> DiagGaussianDistribution:
        return self._normal(self._mean(self.with_mirror_images(obs.float())), obs)

    def predict_values(self, obs: Tensor) -> Tensor:
        return self._value(self.with_mirror_images(obs.float()))
