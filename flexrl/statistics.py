"""How far a mean over few runs or episodes can be trusted."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_RESAMPLES = 2000


def share_interval(num_successes: int, num_trials: int, z: float = 1.96) -> tuple[float, float]:
    """Both ends of Wilson's (1927) interval of a share, 95 % by default: one of one is not certainty."""
    share, spread = num_successes / num_trials, z * z / num_trials
    middle = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(share * (1 - share) / num_trials + spread / (4 * num_trials)) / (1 + spread)
    return max(float(middle - half), 0.0), min(float(middle + half), 1.0)


def bootstrap_interval(values: ArrayLike, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both ends, each (...), of the percentile bootstrap interval (Efron 1979) of the mean of values (num_runs, ...).

    Resampled from a fixed generator: the same values give the same interval.
    """
    sample = np.asarray(values, float)
    num_runs = len(sample)
    counts = np.random.default_rng(0).multinomial(num_runs, np.full(num_runs, 1 / num_runs), NUM_RESAMPLES)
    # from the first value on, so that rounding makes no spread where all are the same
    means = sample[0] + np.tensordot(counts, sample - sample[0], axes=1) / num_runs  # (NUM_RESAMPLES, ...)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def interquartile_mean(values: ArrayLike, axis: int = 0) -> NDArray[np.float64]:
    """The mean of the middle half, a quarter cut off at each end (Agarwal et al. 2021); of less than four, of all."""
    ordered = np.sort(np.asarray(values, float), axis=axis)
    num_cut = ordered.shape[axis] // 4
    middle = np.take(ordered, np.arange(num_cut, ordered.shape[axis] - num_cut), axis=axis)
    return np.asarray(middle.mean(axis=axis))


def iqm_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Both ends of the percentile bootstrap interval of the interquartile mean of values (num_runs,)."""
    sample = np.asarray(values, float)
    chosen = np.random.default_rng(0).integers(len(sample), size=(NUM_RESAMPLES, len(sample)))
    low, high = np.quantile(interquartile_mean(sample[chosen], axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
