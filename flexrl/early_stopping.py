"""Which points of a sweep are not worth going on with: successive halving, or the median, judged over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from flexrl.config import Settings
from flexrl.statistics import interquartile_mean, iqm_interval


class StopSettings(Settings):
    """When a point of a sweep is given up."""

    # asha: at each rung the best 1/factor go on (Li et al. 2020); median: whoever keeps up with it (Golovin et al. 2017)
    rule: Literal["asha", "median"] = "asha"
    # what they are judged by; null: the sweep's
    metric: str | None = None
    # steps of the first rung; each further one is `factor` times as far
    min_steps: int = Field(ge=1)
    factor: int = Field(3, ge=2, le=10)
    # a point is given up only where the interval over its seeds (two at least) is below; false: each trial by itself
    over_seeds: bool = True


Curve = Sequence[tuple[float, float]]  # steps and values of a metric, by rising step


def rungs(settings: StopSettings, last: float) -> Iterator[int]:
    """The steps at which points are judged, up to `last`."""
    step = settings.min_steps
    while step <= last:
        yield step
        step *= settings.factor


def reached(settings: StopSettings, curve: Curve) -> dict[int, float]:
    """What a curve came to at each rung that it has reached: its last value up to there."""
    found = {}
    for rung in rungs(settings, curve[-1][0] if curve else 0):
        values = [value for step, value in curve if step <= rung]
        if values:
            found[rung] = values[-1]
    return found


def given_up(settings: StopSettings, scores: Mapping[int, Mapping[str, Sequence[float]]], maximize: bool) -> set[str]:
    """The points, by name, that some rung rules out; `scores` by rung and point, one of each seed that has reached it."""
    lost: set[str] = set()
    for points in scores.values():
        enough = {
            name: np.array(values) * (1 if maximize else -1)
            for name, values in points.items()
            if len(values) >= (2 if settings.over_seeds else 1)
        }
        lost |= _ruled_out(settings, enough)
    return lost


def _ruled_out(settings: StopSettings, scores: Mapping[str, np.ndarray]) -> set[str]:
    """The points of one rung that fall short of the bar, and, over seeds, surely do."""
    if len(scores) < 2:
        return set()
    middles = {name: float(interquartile_mean(values)) for name, values in scores.items()}
    if settings.rule == "median":
        bar = float(np.median(list(middles.values())))
    else:
        num_kept = max(len(scores) // settings.factor, 1)
        weakest = sorted(middles, key=lambda name: -middles[name])[num_kept - 1]
        bar = _low(scores[weakest]) if settings.over_seeds else middles[weakest]
    high = {name: iqm_interval(values)[1] if settings.over_seeds else middles[name] for name, values in scores.items()}
    return {name for name in scores if high[name] < bar}


def _low(values: np.ndarray) -> float:
    return iqm_interval(values)[0]
