"""Learning curves: runs that differ in their seed only as one line, with the interval of their mean."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flexrl import snapshots
from flexrl.config import UserError
from flexrl.ledger import Array, Series, read_metrics, read_settings, series_of
from flexrl.statistics import bootstrap_interval
from flexrl.words import short

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Dash = Literal["-", "--", ":", "-."]

# Okabe and Ito (2008), safe for the colour-blind, without their yellow, which white paper swallows
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Dash, ...] = ("-", "--", ":", "-.")
MAX_POINTS = 120  # of a curve; neighbours are averaged, so that noise does not hide its neighbours
UNITS = {  # by the last part of a metric's name
    "return": "return per episode",
    "length": "control steps per episode",
    "mean_speed": "m/s",
    "terminated": "share of episodes",
    "env_steps_per_second": "steps/s",
    "rollout_steps_per_second": "steps/s",
    "updates_per_second": "updates/s",
    "memory_gb": "GiB",
    "seconds": "s",
}


@dataclass(frozen=True)
class Curves:
    """One run's settings and everything it logged."""

    name: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, Series]

    @property
    def stem(self) -> str:
        """The name without a suffix that is its seed: walk_2, walk-s2, walk_seed02 are all walk."""
        suffix = rf"([-_.](seed[-_.]?|s)?|seed[-_.]?)0*{self.settings.get('seed')}$"
        return re.sub(suffix, "", self.name, flags=re.IGNORECASE) or self.name


def read_curves(folder: Path) -> Curves:
    """A run's curves; UserError if the folder holds none."""
    if (folder / snapshots.MANIFEST).is_file() and not (folder / "metrics.jsonl").exists():
        raise UserError(f"{folder}: is a snapshot, which has no curves; name its run")
    lines = read_metrics(folder)
    metrics = {key: series_of(lines, key) for key in dict.fromkeys(key for line in lines for key in line)}
    found = {key: series for key, series in metrics.items() if series and key != "step"}
    return Curves(folder.resolve().name, read_settings(folder), found)


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only."""

    label: str
    members: tuple[Curves, ...]

    def series(self, metric: str) -> list[Series]:
        """The metric of every run that has it."""
        return [run.metrics[metric] for run in self.members if metric in run.metrics]


def group_by_seed(curves: Sequence[Curves]) -> list[Group]:
    """Runs whose settings are the same but for the seed, in the order in which they come.

    The same seed twice is no second seed (it may be the same settings under other code): then names without their seed
    tell groups apart, and where they do not, each run is a group of its own.
    """
    by_settings: dict[str, list[Curves]] = {}
    for run in curves:
        settings = {key: value for key, value in run.settings.items() if key != "seed"}
        by_settings.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(run)
    groups: list[list[Curves]] = []
    for members in by_settings.values():
        if _seeds_differ(members):
            groups.append(members)
            continue
        by_stem: dict[str, list[Curves]] = {}
        for run in members:
            by_stem.setdefault(run.stem, []).append(run)
        for part in by_stem.values():
            groups += [part] if _seeds_differ(part) else [[run] for run in part]
    return [Group(_label(members), tuple(members)) for members in groups]


def _seeds_differ(members: Sequence[Curves]) -> bool:
    return len({run.settings.get("seed") for run in members}) == len(members)


def _label(members: Sequence[Curves]) -> str:
    if len(members) == 1:
        return members[0].name
    stems = list(dict.fromkeys(run.stem for run in members))
    name = stems[0] if len(stems) == 1 else f"{stems[0]} and {len(stems) - 1} other name" + "s" * (len(stems) > 2)
    return f"{name} ({len(members)} seeds)"


def mean_and_interval(series: Sequence[Series]) -> tuple[Array, Array, Array, Array]:
    """Steps, mean over runs, and both ends of its 95 % percentile bootstrap interval (Efron 1979), each (num_points,).

    Runs are interpolated in straight lines at each other's steps, where all of them have been: the mean at one step is
    never over other runs than at the next. Resampled from a fixed generator: the same runs give the same interval.
    """
    first, last = max(one.steps[0] for one in series), min(one.steps[-1] for one in series)
    steps = np.unique(np.concatenate([one.steps for one in series]))
    steps = steps[(first <= steps) & (steps <= last)]
    values = np.stack([np.interp(steps, one.steps, one.values) for one in series])  # (num_runs, num_points)
    low, high = bootstrap_interval(values)
    return steps, values.mean(axis=0), low, high


def _thin(series: Series) -> Series:
    """At most MAX_POINTS points: means of as many neighbours as it takes."""
    size = math.ceil(len(series.steps) / MAX_POINTS)
    starts = np.arange(0, len(series.steps), size)
    counts = np.diff(np.append(starts, len(series.steps)))
    return Series(np.add.reduceat(series.steps, starts) / counts, np.add.reduceat(series.values, starts) / counts)


@dataclass(frozen=True)
class Line:
    """A curve of a panel: the mean over runs."""

    label: str
    series: Sequence[Series]
    colour: str
    dash: Dash = "-"
    faint: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    unit: str
    lines: Sequence[Line]
    has_legend: bool = False


def _style(i: int) -> tuple[str, Dash]:
    """Colour and dash of the i-th line; colours first, then the next dash."""
    return COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]


def _panel(title: str, metric: str, groups: Sequence[Group], behind: str | None = None) -> Panel:
    """A line for each group, and faintly behind it that of another metric."""
    lines = [
        Line(group.label, group.series(name), *_style(i), faint=name == behind)
        for name in (behind, metric)
        if name is not None
        for i, group in enumerate(groups)
    ]
    return Panel(title, UNITS.get(metric.rsplit("/", 1)[-1], ""), lines)


def _panels_of(group: Group, whose: str) -> list[Panel]:
    """What one curve alone can show: success by skill where it has several, the terms of its reward where it has one.

    The terms of eight skills are a hundred lines; who wants some of them names them with --metric.
    """
    keys = list(dict.fromkeys(key for run in group.members for key in run.metrics))
    skills = [key for key in keys if key.startswith("eval/success/")]
    if skills:
        lines = [Line(key.rsplit("/", 1)[-1], group.series(key), *_style(i)) for i, key in enumerate(skills)]
        return [Panel(f"Success by skill in evaluations{whose}", "share of episodes", lines, has_legend=True)]
    terms = [key for key in keys if key.startswith("reward/")]
    lines = [Line(key.rsplit("/", 1)[-1], group.series(key), *_style(i)) for i, key in enumerate(terms)]
    return [Panel(f"Reward terms{whose}", "weighted reward per step", lines, has_legend=True)]


def make_panels(groups: Sequence[Group], metrics: Sequence[str] = ()) -> list[Panel]:
    """A panel for each of `metrics`, or the usual ones; those without a point are left out.

    UserError with the nearest name for a metric that no run has.
    """
    known = sorted({key for group in groups for run in group.members for key in run.metrics})
    for metric in metrics:
        if metric not in known:
            close = difflib.get_close_matches(metric, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}"
            raise UserError(f"--metric {metric}: no run has logged it; {hint}")
    panels = [_panel(metric, metric, groups) for metric in metrics] or [
        _panel("Return of evaluations (faint: while training)", "eval/return", groups, behind="rollout/return"),
        _panel("Mean speed in evaluations (faint: while training)", "eval/mean_speed", groups, behind="rollout/mean_speed"),
        *(panel for g in groups for panel in _panels_of(g, f" of {g.label}" if len(groups) > 1 else "")),
        _panel("Throughput, update included", "time/env_steps_per_second", groups),
        _panel("Loss on held-out episodes (faint: while training)", "eval/loss", groups, behind="train/loss"),
        _panel("Throughput", "time/updates_per_second", groups),
    ]
    shown = [panel for panel in panels if any(line.series for line in panel.lines)]
    if not shown:
        raise UserError(f"curves: none of the usual metrics was logged; name some with --metric, such as {known[0]}")
    return shown


def draw(groups: Sequence[Group], panels: Sequence[Panel]) -> Figure:
    """The panels in two columns under one legend of the groups; a matplotlib figure of its own, without pyplot."""
    # imported here because the tables need none of it, and it takes half a second
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    num_columns = min(2, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    figure = Figure(
        figsize=(6.5 * num_columns, 4.0 * num_rows + 0.5),
        dpi=120,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
    )
    for i, panel in enumerate(panels):
        _draw_panel(figure.add_subplot(num_rows, num_columns, i + 1), panel, _steps_of(groups))
    handles: list[Artist] = [
        Line2D([], [], color=colour, linestyle=dash, linewidth=2, label=group.label)
        for group, (colour, dash) in zip(groups, map(_style, range(len(groups))), strict=True)
    ]
    if any(len(group.members) > 1 for group in groups):
        handles.append(Patch(color="0.85", label="95 % interval of the mean (thin lines: single seeds)"))
    widest = max(len(str(handle.get_label())) for handle in handles)
    num_legend_columns = max(1, 75 * num_columns // (widest + 8))  # 75 characters are as wide as a panel
    figure.legend(handles=handles, loc="outside upper center", ncols=num_legend_columns, frameon=False)
    return figure


def _steps_of(groups: Sequence[Group]) -> str:
    """What a step of these runs is."""
    kinds = {"updates" if "num_updates" in run.settings else "env steps" for group in groups for run in group.members}
    return " or ".join(sorted(kinds))


def _draw_panel(axes: Axes, panel: Panel, steps: str) -> None:
    for line in panel.lines:
        if line.series:
            _draw_line(axes, line)
    axes.set_title(panel.title, fontsize=11, loc="left")
    axes.set_xlabel(steps)
    axes.set_ylabel(panel.unit)
    axes.set_xlim(left=0)
    if panel.unit in ("steps/s", "updates/s"):
        axes.set_ylim(bottom=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, position: short(value))
    axes.grid(color="0.9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.has_legend:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, fontsize=8, frameon=False)


def _draw_line(axes: Axes, line: Line) -> None:
    """Mean and interval as far as all runs have come; beyond, each run alone as a thin line."""
    series = [_thin(one) for one in line.series]
    steps, mean, low, high = mean_and_interval(series)
    style: dict[str, Any] = {"color": line.colour, "linestyle": line.dash, "alpha": 0.35 if line.faint else 1.0}
    marker = "o" if len(steps) <= 40 and not line.faint else None
    axes.plot(steps, mean, linewidth=2 if marker else 1.3, marker=marker, markersize=3.5, label=line.label, **style)
    if len(series) > 1 and not line.faint:
        axes.fill_between(steps, low, high, color=line.colour, alpha=0.2, linewidth=0)
    end = steps[-1] if len(steps) else -np.inf
    for one in series:
        rest = one.steps >= end
        if one.steps[-1] > end:
            axes.plot(one.steps[rest], one.values[rest], linewidth=0.8, **style | {"alpha": style["alpha"] / 2})
