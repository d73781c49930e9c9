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

    def _both(self, obs: Tensor) -> Tensor:
        """The observations and, below them, their mirror images: (2 * batch, obs_dim)."""
        return torch.cat([obs, obs[:, self.obs_source] * self.obs_sign])

    def _mean(self, latent: Tensor) -> Tensor:
        mean, mirrored = self.action_net(latent).chunk(2)
        return 0.5 * (mean + mirrored[:, self.action_source] * self.action_sign)

    def _value(self, latent: Tensor) -> Tensor:
        value, mirrored = self.value_net(latent).chunk(2)
        return 0.5 * (value + mirrored)

    def _normal(self, mean: Tensor) -> DiagGaussianDistribution:
        return self.action_dist.proba_distribution(mean, self.log_std)

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        both = self._both(obs.float())
        distribution = self._normal(self._mean(self.mlp_extractor.forward_actor(both)))
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self._value(self.mlp_extractor.forward_critic(both)), distribution.log_prob(actions)

    def evaluate_actions(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        both = self._both(obs.float())
        distribution = self._normal(self._mean(self.mlp_extractor.forward_actor(both)))
        values = self._value(self.mlp_extractor.forward_critic(both))
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: Tensor) -> DiagGaussianDistribution:
        return self._normal(self._mean(self.mlp_extractor.forward_actor(self._both(obs.float()))))

    def predict_values(self, obs: Tensor) -> Tensor:
        return self._value(self.mlp_extractor.forward_critic(self._both(obs.float())))
