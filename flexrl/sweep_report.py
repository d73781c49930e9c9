"""What a sweep came to: each point over its seeds, with intervals; axes as pictures; everything as CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexrl.config import UserError
from flexrl.statistics import interquartile_mean, iqm_interval
from flexrl.sweep_ledger import Entry, Ledger
from flexrl.sweep_settings import SweepSettings
from flexrl.yaml_values import nearest

MAX_SERIES = 8  # of a panel
MAX_PANELS = 12  # axes of a picture


@dataclass(frozen=True)
class Point:
    """One point of the axes, over its seeds."""

    label: str
    values: dict[str, Any]  # by axis
    trials: list[str]  # id of each
    scores: NDArray[np.float64]  # (num_seeds,) of finished trials
    num_trials: int

    @property
    def score(self) -> float:
        """The interquartile mean over seeds (Agarwal et al. 2021); nan where none is finished."""
        return float(interquartile_mean(self.scores)) if len(self.scores) else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of it by the bootstrap over seeds; nan with less than two."""
        return iqm_interval(self.scores) if len(self.scores) > 1 else (float("nan"), float("nan"))


def points_of(sweep: SweepSettings, ledger: Ledger, is_told: bool = True) -> list[Point]:
    """The sweep's points, best first; UserError if no finished trial has the metric (and `is_told`)."""
    groups: dict[str, list[Entry]] = {}
    for entry in ledger.entries().values():
        if entry.is_current:
            groups.setdefault(entry.label, []).append(entry)
    points = []
    for label, entries in groups.items():
        scores = [score_of(entry, sweep.metric, ledger) for entry in entries if ledger.status(entry.id).state == "done"]
        found = np.array([score for score in scores if score is not None])
        ids = [entry.id for entry in entries]
        points.append(Point(label or "(the base)", dict(entries[0].point), ids, found, len(entries)))
    if is_told and not any(len(point.scores) for point in points):
        known = sorted({key for group in groups.values() for entry in group for key in ledger.last_line(entry.id)})
        close = nearest(sweep.metric, known)
        if not known and not ledger.ran_here:
            raise UserError(
                f"{ledger.folder}: nothing of its trials is here yet; submit_sweep.py fetch {sweep.name} brings them"
            )
        raise UserError(
            f"{ledger.folder}: no finished trial has the metric {sweep.metric}{close}; set `metric:` and submit again"
        )
    sign = -1 if sweep.maximize else 1
    return sorted(points, key=lambda point: (np.isnan(point.score), sign * point.score))


def score_of(entry: Entry, metric: str, ledger: Ledger) -> float | None:
    """The last value of a metric of a trial; null if it has none."""
    values = [line[metric] for line in ledger.metrics_of(entry.id) if isinstance(line.get(metric), (int, float))]
    return float(values[-1]) if values else None


def write_csv(path: Path, sweep: SweepSettings, ledger: Ledger) -> None:
    """A row a trial: its axes, seed, state, attempts, lost steps and score."""
    entries = [entry for entry in ledger.entries().values() if entry.is_current]
    axes = list(dict.fromkeys(key for entry in entries for key in entry.point))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", *axes, "seed", "state", "attempts", "lost_steps", "steps", sweep.metric])
        for entry in sorted(entries, key=lambda entry: (entry.label, entry.seed)):
            status = ledger.status(entry.id)
            place = [_cell(entry.point.get(axis)) for axis in axes]
            told = [status.state, len(status.attempts), status.lost_steps, ledger.step_of(entry.id)]
            writer.writerow([entry.id, *place, entry.seed, *told, _cell(score_of(entry, sweep.metric, ledger))])


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, dict, bool)) else value


def draw_axes(path: Path, sweep: SweepSettings, points: Sequence[Point]) -> None:
    """One panel an axis: the score of every point over its values, and their median."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    finished = [point for point in points if len(point.scores)]
    axes = [
        axis
        for axis in dict.fromkeys(key for point in finished for key in point.values)
        if len({_tick(point.values.get(axis)) for point in finished}) > 1
    ][:MAX_PANELS]
    figure, panels = plt.subplots(
        1, max(len(axes), 1), figsize=(4.4 * max(len(axes), 1), 4.0), squeeze=False, sharey=True, layout="constrained"
    )
    for panel, axis in zip(panels[0], axes, strict=False):
        _draw_axis(panel, axis, finished, [*sweep.grid.get(axis, []), *sweep.zip.get(axis, [])])
    if not axes:
        panels[0][0].boxplot([point.scores for point in finished], tick_labels=[point.label for point in finished])
    if sweep.metric.rpartition("/")[0].endswith("success") or sweep.metric.endswith("success"):
        panels[0][0].set_ylim(-0.03, 1.03)
    missing = len(points) - len(finished)
    if missing:
        figure.suptitle(f"{missing} of {len(points)} points have no finished trial", fontsize=8)
    panels[0][0].set_ylabel(f"{sweep.metric}\n(interquartile mean over seeds, 95 %)")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_axis(panel: Any, axis: str, points: Sequence[Point], order: Sequence[Any]) -> None:
    """`order` of values that are no numbers, as the sweep has them; what is not there comes after."""
    values: list[Any] = [point.values.get(axis) for point in points]
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    known = dict.fromkeys(map(_tick, order))
    names = [*[name for name in known if name in set(map(_tick, values))], *dict.fromkeys(map(_tick, values))]
    ticks = sorted(set(values)) if numeric else list(dict.fromkeys(names))
    spread = numeric and min(values) > 0 and max(values) / min(values) > 8
    where: dict[Any, float] = {tick: float(tick) if numeric else float(i) for i, tick in enumerate(ticks)}
    others = list(dict.fromkeys(_rest(point, axis) for point in points))
    for i, other in enumerate(others):
        mine = [point for point in points if _rest(point, axis) == other]
        aside = 0.0 if numeric else 0.04 * (i - (len(others) - 1) / 2)  # so that intervals can be told apart
        x = np.array([where[point.values.get(axis) if numeric else _tick(point.values.get(axis))] + aside for point in mine])
        sorted_by_x = np.argsort(x)
        y = np.array([point.score for point in mine])
        low, high = np.array([point.interval for point in mine]).T
        error = np.nan_to_num(np.stack([y - low, high - y]))[:, sorted_by_x].clip(min=0)
        x, y = x[sorted_by_x], y[sorted_by_x]
        is_lone = np.array([len(point.scores) == 1 for point in mine])[sorted_by_x]
        colour, line = f"C{i % 10}", "-" if numeric and len(others) <= MAX_SERIES else ""
        if len(others) > MAX_SERIES:  # points at random: none has another that differs in this axis alone
            colour = "C0"
        panel.errorbar(x, y, yerr=error, marker="o", ls=line, capsize=3, color=colour, alpha=0.8, label=other or None)
        panel.plot(x[is_lone], y[is_lone], "o", mfc="white", color=colour)  # one seed says nothing of the others
    panel.set_xlabel(axis)
    if spread:
        panel.set_xscale("log")
    if not numeric:
        panel.set_xticks(list(where.values()), list(map(str, ticks)), rotation=20 if max(map(len, map(str, ticks))) > 10 else 0)
        panel.margins(x=0.15)
    if 1 < len(others) <= MAX_SERIES:
        panel.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, ncols=2)
    panel.grid(alpha=0.3)


def _rest(point: Point, axis: str) -> str:
    return " ".join(f"{key.rpartition('.')[2]}={_tick(value)}" for key, value in point.values.items() if key != axis)


def _tick(value: Any) -> str:
    if isinstance(value, str):
        return "/".join(value.split("/")[-2:])  # of a path what tells it from its neighbours
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value)
