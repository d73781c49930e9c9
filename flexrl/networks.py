"""Policies of our own for SB3's on-policy learners: left-right symmetry built into the network."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from flexrl.observations import Mirror


class MirroredActorCriticPolicy(ActorCriticPolicy):
    """SB3's MLP actor-critic, made equivariant to the body's left-right mirror.

    The mean action is the average of the answer and of the mirrored answer to the mirrored observation; the value is the
    average of both values. With one half of the weights of a plain network of the same cost it learns from each sample
    twice, and cannot limp (Abdolhosseini et al. 2019, "On learning symmetric locomotion", section 3.4).
    """

    def __init__(self, *args: Any, obs_mirror: Mirror, action_mirror: Mirror, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, mirror in (("obs", obs_mirror), ("action", action_mirror)):
            self.register_buffer(f"{name}_source", torch.as_tensor(mirror.source), persistent=False)
            self.register_buffer(f"{name}_sign", torch.as_tensor(mirror.sign), persistent=False)

    def with_mirror_images(self, obs: Tensor) -> Tensor:
        """The observations and, below them, their mirror images: (2 * batch, obs_dim)."""
        return torch.cat([obs, obs[:, self.obs_source] * self.obs_sign])

    def merge_means(self, means: Tensor) -> Tensor:
        """One answer (batch, action_dim) from those to observations and to their mirror images (2 * batch, action_dim)."""
        own, other = means.chunk(2)
        return 0.5 * (own + other[:, self.action_source] * self.action_sign)

    def merge_values(self, values: Tensor) -> Tensor:
        """One value (batch, 1) from those of observations and of their mirror images (2 * batch, 1)."""
        own, other = values.chunk(2)
        return 0.5 * (own + other)

    def _mean(self, both: Tensor) -> Tensor:
        return self.merge_means(self.action_net(self.mlp_extractor.forward_actor(both)))

    def _value(self, both: Tensor) -> Tensor:
        return self.merge_values(self.value_net(self.mlp_extractor.forward_critic(both)))

    def _normal(self, mean: Tensor) -> DiagGaussianDistribution:
        return self.action_dist.proba_distribution(mean, self.log_std)

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        both = self.with_mirror_images(obs.float())
        distribution = self._normal(self._mean(both))
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self._value(both), distribution.log_prob(actions)

    def evaluate_actions(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        both = self.with_mirror_images(obs.float())
        distribution = self._normal(self._mean(both))
        values = self._value(both)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: Tensor) -> DiagGaussianDistribution:
        return self._normal(self._mean(self.with_mirror_images(obs.float())))

    def predict_values(self, obs: Tensor) -> Tensor:
        return self._value(self.with_mirror_images(obs.float()))
