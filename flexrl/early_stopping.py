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
    """The steps at which points are judged, up to the last that anybody has reached."""
    step = settings.min_steps
    while step <= last:
        yield step
        step *= settings.factor


def given_up(settings: StopSettings, curves: Mapping[str, Sequence[Curve]], maximize: bool) -> set[str]:
    """The points, by name, that some rung rules out; `curves` of each point's seeds."""
    lost: set[str] = set()
    last = max((curve[-1][0] for seeds in curves.values() for curve in seeds if curve), default=0)
    for rung in rungs(settings, last):
        scores = {}
        for name, seeds in curves.items():
            values = [value for curve in seeds for value in _at(curve, rung)]
            if len(values) >= (2 if settings.over_seeds else 1):
                scores[name] = np.array(values) * (1 if maximize else -1)
        lost |= _ruled_out(settings, scores)
    return lost


def _at(curve: Curve, rung: int) -> list[float]:
    """The last value up to the rung of a curve that has reached it; none of one that has not."""
    if not curve or curve[-1][0] < rung:
        return []
    return [value for step, value in curve if step <= rung][-1:]


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
