"""What a run's normaliser has counted, by itself: read from a snapshot, pooled with others', given to a learner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexrl import snapshots
from flexrl.learners import Learner
from flexrl.policies import Snapshot

EPSILON = 1e-8  # VecNormalize's


@dataclass(frozen=True)
class Numbers:
    """What a normaliser has counted."""

    mean: NDArray[np.float64] | None  # of observations, (obs_dim,); None: they are not normalised
    variance: NDArray[np.float64] | None
    return_variance: NDArray[np.float64] | None  # (); None: neither observations nor rewards were normalised
    count: float  # steps
    return_mean: NDArray[np.float64] | None = None  # (); None: neither, or of a snapshot that does not tell

    @classmethod
    def of(cls, parent: Snapshot) -> Numbers:
        """A snapshot's."""
        arrays = snapshots.read_arrays(parent.folder / "normaliser.safetensors")
        mean, variance, return_mean = map(arrays.get, ("mean", "variance", "return_mean"))
        return cls(mean, variance, arrays.get("return_variance"), float(parent.about["num_steps"]), return_mean)

    @classmethod
    def pooled(cls, several: Sequence[Numbers]) -> Numbers:
        """Of what several saw, each weighed alike; returns are the first's."""
        first, count = several[0], sum(numbers.count for numbers in several)
        means = np.array([numbers.mean for numbers in several if numbers.mean is not None])
        variances = np.array([numbers.variance for numbers in several if numbers.variance is not None])
        if len(several) == 1 or len(means) == 0:
            return replace(first, count=count)
        return replace(first, mean=means.mean(axis=0), variance=variances.mean(axis=0) + means.var(axis=0), count=count)

    def translate(self, weights: Mapping[str, NDArray[Any]], other: Numbers) -> dict[str, NDArray[Any]]:
        """The weights of networks that saw observations and returns by these numbers, for those by `other`.

        Of all networks, if there are several: the names of one of them end as the names of a policy with but one.
        """
        result = dict(weights)
        if self.return_variance is not None and other.return_variance is not None:
            scale = np.sqrt((self.return_variance + EPSILON) / (other.return_variance + EPSILON))
            for name in weights:
                if name.endswith(("value_net.weight", "value_net.bias")):
                    result[name] = (weights[name] * scale).astype(weights[name].dtype)
        if self.mean is None or self.variance is None or other.mean is None or other.variance is None:
            return result
        deviation = np.sqrt(self.variance + EPSILON)
        stretch, shift = np.sqrt(other.variance + EPSILON) / deviation, (other.mean - self.mean) / deviation
        for hidden, last in (("mlp_extractor.policy_net.0", "action_net"), ("mlp_extractor.value_net.0", "value_net")):
            first = hidden if f"{hidden}.weight" in weights else last  # where net_arch is empty the last layer is the first
            for layer in (name.removesuffix(".weight") for name in weights if name.endswith(f"{first}.weight")):
                matrix = result[f"{layer}.weight"].astype(np.float64)
                result[f"{layer}.bias"] = (result[f"{layer}.bias"] + matrix @ shift).astype(np.float32)
                matrix *= stretch
                result[f"{layer}.weight"] = matrix.astype(np.float32)
        return result

    def give_to(self, learner: Learner) -> None:
        """As after all that the parents saw; for new inputs mean 0 and variance 1, which its next steps correct."""
        normaliser = learner.normaliser
        assert normaliser is not None
        if normaliser.norm_obs and self.mean is not None and self.variance is not None:
            known = len(self.mean)
            normaliser.obs_rms.mean[:known], normaliser.obs_rms.var[:known] = self.mean, self.variance
            normaliser.obs_rms.count = self.count
        if self.return_variance is not None:
            normaliser.ret_rms.var, normaliser.ret_rms.count = self.return_variance, self.count
        if self.return_mean is not None:  # from another mean its way there would count as variance
            normaliser.ret_rms.mean = self.return_mean
