"""A sweep in a terminal: what is planned, how trials stand, what runs just now."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flexrl.sweep_ledger import OVER, Entry, Ledger, State, Status, obstacles
from flexrl.sweep_plan import SIGNS, Plan
from flexrl.sweep_settings import SweepSettings
from flexrl.sweeps import VERBS
from flexrl.words import duration, rounded, short

SHOWN = 40  # rows of a plan that are printed one by one
SECONDS_BETWEEN_LINES = 15.0
WIDE = 110  # columns of a terminal from which on a trial and its point have columns of their own
PLAN_COLOURS = {"new": "green", "done": "dim", "changed": "yellow", "failed": "red", "unfinished": "cyan"}
STATE_COLOURS: dict[State, str] = {
    "done": "green",
    "running": "cyan",
    "waiting": "",
    "failed": "red",
    "refused": "red",
    "given up": "dim",
}


def print_plan(sweep: SweepSettings, plan: Plan, at_a_time: int) -> None:
    """A line a trial, up to `SHOWN`, then how many there are of each kind and how long it takes."""
    console, unit = Console(), VERBS[sweep.verb].unit
    rows = [row for row in plan.rows if row.to_run] + [row for row in plan.rows if not row.to_run]
    for row in rows[:SHOWN]:
        note = f"  from {unit.removesuffix('s')} {short(row.done_steps)}" if row.done_steps else ""
        console.print(Text(f"  {SIGNS[row.kind]} {row.trial.id}  {row.trial.title}{note}", PLAN_COLOURS[row.kind]))
    if len(rows) > SHOWN:
        console.print(Text(f"    ... and {len(rows) - SHOWN:,} more", "dim"))
    counts = "  ".join(f"{SIGNS[kind]} {plan.count(kind):,} {kind}" for kind in SIGNS if plan.count(kind))
    console.print(f"{sweep.name}: {len(plan.rows):,} trials of {sweep.verb}:  {counts}", highlight=False)
    hours = plan.hours(at_a_time)
    if plan.to_run and hours is not None:
        speed = f"{rounded(plan.steps_per_second)} {unit}/s each, as earlier runs made"
        left = f"{short(plan.steps_left)} {unit}, {at_a_time} at a time"
        console.print(f"about {duration(hours * 3600)}: {left}, {speed}", highlight=False)
    elif plan.to_run:
        console.print(f"{short(plan.steps_left)} {unit} to do; nothing that ran here says how fast", highlight=False)


def status_table(ledger: Ledger, entries: Sequence[Entry], width: int, metric: str) -> Table:
    """A row a trial; in a narrow terminal its point stands under its id."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial", overflow="fold")
    if width >= WIDE:
        table.add_column("point", overflow="fold")
    unit = VERBS[entries[0].verb].unit if entries else "steps"
    for name in ("state", "tries", unit, f"{unit}/s", "left", "lost", metric):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for entry in entries:
        key, title, *others = row_of(entry, ledger.status(entry.id), ledger, metric)
        table.add_row(*((key, title) if width >= WIDE else (Text(f"{key}\n").append(str(title), "dim"),)), *others)
    return table


def row_of(entry: Entry, status: Status, ledger: Ledger, metric: str) -> list[Text | str]:
    """A trial's row of the table."""
    line = ledger.last_line(entry.id)
    step, planned = int(line.get("step", 0)), entry.planned_steps
    speed = line.get("time/env_steps_per_second") or line.get("time/updates_per_second")
    left = (planned - step) / speed if speed and status.state not in OVER else None
    return [
        entry.id,
        entry.title,
        Text(status.state, STATE_COLOURS.get(status.state, "")),
        str(len(status.attempts)),
        f"{short(step)}/{short(planned)}" if planned else short(step),
        rounded(speed),
        duration(left) if left is not None else "-",
        short(status.lost_steps) if status.lost_steps else "-",
        rounded(ledger.last_value(entry.id, metric)),
    ]


def print_status(ledger: Ledger, notes: Sequence[str] | None = None) -> None:
    """The table of the sweep as it was last submitted, why trials failed or wait, and how many stand how.

    `notes`: what is in the way of trials, by somebody who has just looked; null: as the ledger knows it.
    """
    console = Console()
    entries = sorted((e for e in ledger.entries().values() if e.is_current), key=lambda e: (e.label, e.seed))
    console.print(status_table(ledger, entries, console.width, ledger.read_sweep().metric))
    statuses = {entry.id: ledger.status(entry.id) for entry in entries}
    for key, status in statuses.items():
        if status.state in ("failed", "refused") and status.attempts:
            log = ledger.log_of(key, len(status.attempts) - 1)
            console.print(Text(f"{key}: {status.attempts[-1].how}: {last_words(ledger, key, status)} ({log})", "red"))
    for note in obstacles(statuses.values()) if notes is None else notes:
        console.print(Text(note, "yellow"))
    counts = Counter(status.state for status in statuses.values())
    left = "; nothing runs here now" if ledger.ran_here else "; nobody follows it now: the command that submitted it goes on"
    running = "" if ledger.runner() else left
    told = ", ".join(f"{number} {state}" for state, number in counts.items())
    console.print(f"{len(entries)} trials: {told}{running if counts['running'] or counts['waiting'] else ''}", highlight=False)


def last_words(ledger: Ledger, key: str, status: Status) -> str:
    """The last line that a trial's last attempt printed."""
    path = ledger.log_of(key, len(status.attempts) - 1)
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() if path.is_file() else []
    return lines[-1] if lines else "it printed nothing"


class Screen:
    """What runs just now: a table in a terminal, a line now and then in a log."""

    def __init__(self, ledger: Ledger, trials: Sequence[str]) -> None:
        self._ledger, self._trials = ledger, trials
        self._entries = ledger.entries()
        self._metric = ledger.read_sweep().metric
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._shown = -float("inf")
        self._told: dict[str, int] = {}  # attempts of each trial that were told
        self._notes: list[str] = []  # that were told last

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def show(self, running: Mapping[str, Status], num_left: int, notes: Sequence[str] = ()) -> None:
        """Called after every look with the trials that run, how many wait, and what is in the way of them."""
        for key, status in running.items():
            self._tell_start(key, status)
        for note in notes:
            if note not in self._notes:
                self._console.print(note, style="yellow", highlight=False, soft_wrap=True)
        self._notes = list(notes)
        seconds = time.monotonic() - self._shown
        if self._console.is_terminal and seconds > 1.0:
            table = status_table(self._ledger, [self._entries[key] for key in running], self._console.width, self._metric)
            table.caption = f"{len(self._trials) - num_left - len(running)} of {len(self._trials)} over, {num_left} to start"
            self._live.update(table, refresh=True)
            self._shown = time.monotonic()
        elif not self._console.is_terminal and seconds > SECONDS_BETWEEN_LINES:
            for key, status in running.items():
                unit = VERBS[self._entries[key].verb].unit
                row = [str(cell) for cell in row_of(self._entries[key], status, self._ledger, self._metric)]
                print(
                    f"{row[0]}  {row[1]}  {row[4]} {unit}  {row[5]} {unit}/s  {self._metric} {row[8]}",
                    file=sys.stderr,
                    flush=True,
                )
            self._shown = time.monotonic()

    def _tell_start(self, key: str, status: Status) -> None:
        number = len(status.attempts)
        if self._told.get(key) == number:
            return
        self._told[key] = number
        again = "" if number == 1 else f" (attempt {number}; the last one: {status.attempts[-2].how})"
        self._console.print(f"starting {key}  {self._entries[key].title}{again}", highlight=False, soft_wrap=True)
