"""Learning curves and tables of runs: what lies in a workspace as rows, as pictures, and with its ancestors."""

from __future__ import annotations

import difflib
import fcntl
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, Field, TypeAdapter

from flexrl import runs, snapshots
from flexrl.config import UserError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T")
Array = NDArray[np.float64]
Dash = Literal["-", "--", ":", "-."]
Mark = Literal["intact", "damaged", "changed", "missing"]

# Okabe and Ito (2008), safe for the colour-blind, without their yellow, which white paper swallows
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Dash, ...] = ("-", "--", ":", "-.")
NUM_RESAMPLES = 2000
MANY = 4  # attempts; of more, only the first and the last are told
MAX_POINTS = 120  # of a curve; neighbours are averaged, so that noise does not hide its neighbours
UNITS = {  # by the last part of a metric's name
    "return": "return per episode",
    "length": "control steps per episode",
    "mean_speed": "m/s",
    "terminated": "share of episodes",
    "env_steps_per_second": "steps/s",
    "rollout_steps_per_second": "steps/s",
    "memory_gb": "GiB",
    "seconds": "s",
}


class Attempt(BaseModel):
    """One process that worked on a run, as `runs.Run` writes it to lineage.json."""

    start: AwareDatetime
    command: str
    how: str  # running, finished, "stopped: <signal>" or "failed: <exception>"
    from_step: int = 0
    end: AwareDatetime | None = None
    to_step: int | None = None
    git_commit: str | None = None
    git_diff_sha256: str | None = None

    def tell(self, how: str) -> list[str]:
        """Command, time, code, steps and end in three lines."""
        took = f" ({duration((self.end - self.start).total_seconds())})" if self.end else ""
        code = self.git_commit[:10] if self.git_commit else "not known"
        code += " with uncommitted changes" if self.git_diff_sha256 else ""
        steps = f"from step {self.from_step:,}" + (f" to {self.to_step:,}" if self.to_step is not None else "")
        return [self.command, f"{self.start:%Y-%m-%d %H:%M %Z}{took}, code {code}", f"{steps}, {how}"]


class Lineage(BaseModel):
    """Where a run comes from, as `runs.Run` writes it to lineage.json."""

    name: str
    seed: int
    parents: dict[str, str]  # path: content hash
    attempts: list[Attempt] = Field(min_length=1)

    def tell(self, state: str | None) -> list[str]:
        """The attempts in words, of many the first and the last; `state` is the run's, null if it is not known."""
        lines: list[str] = []
        for attempt in self.attempts if len(self.attempts) <= MANY else (self.attempts[0], self.attempts[-1]):
            ended = state if attempt is self.attempts[-1] else "killed"
            lines += attempt.tell(attempt.how if attempt.how != "running" else ended or "end not known")
            if len(self.attempts) > MANY and attempt is self.attempts[0]:
                lines.append(f"... {len(self.attempts) - 2} more attempts ...")
        return lines


def _read(path: Path, parse: Callable[[bytes], T]) -> T:
    """A file's content; UserError if it is missing or damaged."""
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: missing") from None
    except (OSError, ValueError, yaml.YAMLError):
        raise UserError(f"{path}: damaged") from None


def read_lineage(folder: Path) -> Lineage:
    """The lineage.json of a run or a snapshot; UserError if it is missing or damaged."""
    return _read(folder / "lineage.json", Lineage.model_validate_json)


def read_settings(folder: Path) -> dict[str, Any]:
    """A run's config.yaml as plain values; UserError if it is missing or damaged."""
    mapping = TypeAdapter(dict[str, Any])
    return _read(folder / "config.yaml", lambda content: mapping.validate_python(yaml.safe_load(content)))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl by rising step; where steps go back, an attempt began anew and its lines count.

    UserError if the file is missing, or damaged in more than the one line that a kill may have cut.
    """
    num_written = _read(folder / "metrics.jsonl", lambda content: sum(map(bool, content.decode().splitlines())))
    lines = [line for line in runs.read_metrics(folder) if isinstance(line["step"], (int, float))]
    if num_written - len(lines) > 1:
        raise UserError(f"{folder / 'metrics.jsonl'}: {num_written - len(lines)} of {num_written} lines damaged")
    kept: list[dict[str, Any]] = []
    for line in lines:
        while kept and kept[-1]["step"] >= line["step"]:
            kept.pop()
        kept.append(line)
    return kept


def is_running(folder: Path) -> bool:
    """Whether a process holds the lock of the run just now; false where there is no lock that can be asked.

    It asks for a shared one, so that two reports at the same moment do not take each other for the run.
    """
    try:
        with (folder / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def list_folders(workspace: Path) -> list[Path]:
    """The workspace's runs, those included that have lost a file. UserError if there is no workspace."""
    found = set(runs.list_runs(workspace))
    return sorted(found | {path.parent for name in ("lineage.json", "metrics.jsonl") for path in workspace.glob(f"*/{name}")})


def find(text: str, workspace: Path) -> Path:
    """The folder that `text` names: a run of the workspace by its name, or a path. UserError with the nearest name."""
    if runs.NAME.fullmatch(text) and (workspace / text).is_dir():
        return workspace / text
    if Path(text).is_dir():
        return Path(text)
    known = list_folders(workspace) if workspace.is_dir() else []
    words = [path.name for path in known] + [str(path / end) for path in known for end in ("", "best", "latest")]
    close = difflib.get_close_matches(text, words, n=1)
    some = ", ".join(path.name for path in known[:5]) + (", ..." if len(known) > 5 else "")
    hint = f"did you mean '{close[0]}'?" if close else f"{workspace} has {some or 'no runs'}"
    raise UserError(f"{text}: no such run or folder; {hint}")


@dataclass(frozen=True)
class RunSummary:
    """A row of the table of runs; null where the run does not say."""

    name: str
    folder: str
    world: str | None
    learner: str | None
    seed: int | None
    num_steps: int | None  # env steps done
    planned_steps: int | None
    last_return: float | None  # of the last deterministic evaluation
    best_return: float | None
    best_step: int | None
    env_steps_per_second: float | None  # median over the last quarter of the lines
    state: str  # running, finished, stopped, failed, killed (says it runs, and no process does) or broken
    how: str | None  # the lineage's own words
    changed: str  # ISO 8601: when a file of it was last written
    problems: tuple[str, ...]  # "<file>: missing", "<file>: damaged"


def summarise(folder: Path) -> RunSummary:
    """What a run's files say; a missing or damaged file is one of its `problems`, never an error."""
    problems: list[str] = []

    def try_to(read: Callable[[Path], T]) -> T | None:
        try:
            return read(folder)
        except UserError as error:
            problems.append(str(error).removeprefix(f"{folder}/"))
            return None

    settings, lineage, lines = try_to(read_settings) or {}, try_to(read_lineage), try_to(read_metrics) or []
    attempt = lineage.attempts[-1] if lineage else None
    returns, speeds = _series(lines, "eval/return"), _series(lines, "time/env_steps_per_second")
    best = int(np.argmax(returns.values)) if returns else 0
    world, learner = (settings[key] if isinstance(settings.get(key), dict) else {} for key in ("world", "learner"))
    files = (folder / name for name in ("config.yaml", "lineage.json", "metrics.jsonl"))
    changed = max((path.stat().st_mtime for path in files if path.exists()), default=0.0)
    return RunSummary(
        name=folder.name,
        folder=str(folder),
        world=_world_name(world),
        learner=str(learner["name"]) if "name" in learner else None,
        seed=_whole(settings.get("seed")),
        num_steps=_whole(lines[-1]["step"]) if lines else attempt.to_step if attempt else None,
        planned_steps=_whole(settings.get("num_steps")),
        last_return=float(returns.values[-1]) if returns else None,
        best_return=float(returns.values[best]) if returns else None,
        best_step=int(returns.steps[best]) if returns else None,
        env_steps_per_second=float(np.median(speeds.values[-math.ceil(len(speeds.values) / 4) :])) if speeds else None,
        state=_state(folder, attempt) if attempt else "broken",
        how=attempt.how if attempt else None,
        changed=datetime.fromtimestamp(changed, UTC).isoformat(timespec="seconds"),
        problems=tuple(problems),
    )


def _state(folder: Path, attempt: Attempt) -> str:
    """The first word of how a run's last attempt ended; killed, if it says that it runs and no process does."""
    word = attempt.how.split(":")[0]
    return "killed" if word == "running" and not is_running(folder) else word


def _whole(value: Any) -> int | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return int(value) if is_number else None


def _world_name(world: Mapping[str, Any]) -> str | None:
    """'humanoid walk_forward' of a motor world, the id of a Gymnasium one, else the kind."""
    words = [str(world[key]) for key in ("body", "task") if key in world]
    return " ".join(words) or next((str(world[key]) for key in ("id", "kind") if key in world), None)


@dataclass(frozen=True)
class Series:
    """One metric of one run."""

    steps: Array  # (num_points,) env steps, rising
    values: Array  # (num_points,) finite


def _series(lines: Sequence[Mapping[str, Any]], metric: str) -> Series | None:
    """A metric of the lines where it has a finite value, null if it has none."""
    points = [(line["step"], line[metric]) for line in lines if isinstance(line.get(metric), (int, float))]
    array = np.array(points, float).reshape(-1, 2)
    array = array[np.isfinite(array).all(axis=1)]
    return Series(array[:, 0], array[:, 1]) if len(array) else None


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
    metrics = {key: _series(lines, key) for key in dict.fromkeys(key for line in lines for key in line)}
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
    rng, num_runs = np.random.default_rng(0), len(series)
    weights = rng.multinomial(num_runs, np.full(num_runs, 1 / num_runs), NUM_RESAMPLES) / num_runs
    low, high = np.quantile(weights @ values, [0.025, 0.975], axis=0)
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


def _reward_panel(title: str, group: Group) -> Panel:
    terms = dict.fromkeys(key for run in group.members for key in run.metrics if key.startswith("reward/"))
    lines = [Line(term.removeprefix("reward/"), group.series(term), *_style(i)) for i, term in enumerate(terms)]
    return Panel(title, "weighted reward per step", lines, has_legend=True)


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
        *(_reward_panel("Reward terms" + (f" of {g.label}" if len(groups) > 1 else ""), g) for g in groups),
        _panel("Throughput, update included", "time/env_steps_per_second", groups),
    ]
    return [panel for panel in panels if any(line.series for line in panel.lines)]


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
        _draw_panel(figure.add_subplot(num_rows, num_columns, i + 1), panel)
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


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for line in panel.lines:
        if line.series:
            _draw_line(axes, line)
    axes.set_title(panel.title, fontsize=11, loc="left")
    axes.set_xlabel("env steps")
    axes.set_ylabel(panel.unit)
    axes.set_xlim(left=0)
    if panel.unit == "steps/s":
        axes.set_ylim(bottom=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, position: short(value))
    axes.grid(color="0.9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.has_legend:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, fontsize=8, frameon=False)


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


def short(value: float) -> str:
    """Three digits and a letter: 950, 20.5k, 4M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:  # 999,600 is 1M, not 1e+03k
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}" if abs(value) > 1e-12 else "0"


def duration(seconds: float) -> str:
    """A time in its largest unit: 40 s, 12 min, 5 h, 3 d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


@dataclass(frozen=True)
class Ancestor:
    """A run or a snapshot, how it lies there now, and what it was made from."""

    path: str  # as it was given or recorded
    mark: Mark | None  # of the snapshot; null for a run that has none yet
    problem: str | None
    snapshot: str | None  # the snapshot that was checked: the folder itself, or a run's best/ or latest/
    content_hash: str | None  # of what lies there now
    recorded_hash: str | None  # what the child was made from
    num_steps: int | None  # of the snapshot
    state: str | None  # as in RunSummary; null where only the snapshot's own copy of the lineage is left
    lineage: Lineage | None
    parents: tuple[Ancestor, ...]
    repeated: bool  # stands in the tree already, or is its own ancestor; its parents are not told again


def trace(folder: Path) -> Ancestor:
    """The tree of ancestors of a run or a snapshot; UserError if the folder is neither."""
    if not any((folder / name).is_file() for name in ("lineage.json", snapshots.MANIFEST)):
        raise UserError(f"{folder}: is neither a run (no lineage.json) nor a snapshot (no {snapshots.MANIFEST})")
    return _trace(str(folder), folder, None, set())


def _trace(path: str, folder: Path, recorded: str | None, seen: set[Path]) -> Ancestor:
    snapshot = next((s for s in (folder, folder / "best", folder / "latest") if (s / snapshots.MANIFEST).is_file()), None)
    mark: Mark | None = None  # of a run before its first snapshot
    content_hash = problem = lineage = state = None
    if snapshot is not None or recorded is not None:
        mark, content_hash, problem = _verify(snapshot or folder, recorded)
    try:
        lineage, state = _lineage_of(folder)
    except UserError as error:
        problem = problem or str(error)
    repeated = folder.resolve() in seen
    seen.add(folder.resolve())
    parents = lineage.parents if lineage and not repeated else {}
    return Ancestor(
        path=path,
        mark=mark,
        problem=problem,
        snapshot=str(snapshot) if snapshot else None,
        content_hash=content_hash,
        recorded_hash=recorded,
        num_steps=_num_steps(snapshot) if snapshot and mark != "damaged" else None,
        state=state,
        lineage=lineage,
        parents=tuple(_trace(parent, _locate(parent, folder), parents[parent], seen) for parent in parents),
        repeated=repeated,
    )


def _locate(path: str, child: Path) -> Path:
    """A parent's folder: recorded relative to where the command ran, which is above the child or here."""
    bases = (*child.resolve().parents, Path())
    return next((base / path for base in bases if (base / path).exists()), Path(path))


def _verify(path: Path, recorded: str | None) -> tuple[Mark, str | None, str | None]:
    """How a snapshot or a file lies there, its content hash, and what is wrong with it. It repairs nothing."""
    manifest = path / snapshots.MANIFEST
    if not path.exists():
        return "missing", None, None
    if path.is_dir() and not manifest.is_file():
        return "damaged", None, f"{path}: has no {snapshots.MANIFEST}"
    try:
        content_hash = snapshots.file_hash(manifest if path.is_dir() else path)
    except OSError as error:
        return "damaged", None, f"{path}: {error.strerror}"
    try:
        if path.is_dir():
            snapshots.check(path)
    except (UserError, OSError) as error:
        if manifest.is_file() and snapshots.file_hash(manifest) != content_hash:
            return _verify(path, recorded)  # its training has just written another
        return "damaged", content_hash, str(error)
    return "intact" if recorded in (None, content_hash) else "changed", content_hash, None


def _lineage_of(folder: Path) -> tuple[Lineage | None, str | None]:
    """The lineage of a run or a snapshot, and the state of the run; null where it is not known.

    A snapshot's own copy was written while its run went on. Where the run lies round it, the run's tells how it ended.
    UserError if it is damaged.
    """
    own = read_lineage(folder) if (folder / "lineage.json").exists() else None
    if not (folder / snapshots.MANIFEST).is_file():
        return own, _state(folder, own.attempts[-1]) if own else None
    for run in folder.resolve().parents[:2]:
        if (run / "config.yaml").is_file() and (run / "lineage.json").is_file():
            whole = read_lineage(run)
            if own is None or (own.name, own.attempts[0].start) == (whole.name, whole.attempts[0].start):
                return whole, _state(run, whole.attempts[-1])
    return own, None


def _num_steps(snapshot: Path) -> int | None:
    """The env steps that a snapshot says it was taken at."""
    path = snapshot / "snapshot.json"
    return _whole(json.loads(path.read_bytes()).get("num_steps")) if path.is_file() else None
