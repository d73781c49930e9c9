"""How a training shows where it is: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from flexrl.words import short

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Steps (or whatever `unit` is) done, speed, return or loss, on stderr."""

    def __init__(self, total: int, done: int, unit: str = "steps") -> None:
        self._total, self._note, self._unit = total, "", unit
        self._console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.fields[steps]}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=done, text="starting", steps=_steps(done, total))
        self._last_line = time.monotonic()

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A word on what takes time just now."""
        self._bar.update(self._task, text=text)

    def update(self, num_steps: int, metrics: Mapping[str, float], best: float) -> None:
        """After a rollout and an update."""
        speeds = (("time/env_steps_per_second", "steps/s"), ("time/updates_per_second", "updates/s"))
        parts = [f"{metrics[key]:,.0f} {name}" for key, name in speeds if key in metrics]
        parts += [
            f"{name} {metrics[key]:.4f}"
            for key, name in (("train/loss", "loss"), ("eval/loss", "held out"))
            if key in metrics and self._unit == "updates"
        ]
        for key, name in (("rollout/return", "return"), ("rollout/length", "length"), ("rollout/mean_speed", "m/s")):
            if key in metrics:
                parts.append(f"{name} {metrics[key]:,.2f}" if name == "m/s" else f"{name} {metrics[key]:,.0f}")
        if "eval/return" in metrics:
            score = f" (best {best:,.0f})" if self._unit == "steps" else ""
            score = f", success {metrics['eval/success']:.0%}" if not score and "eval/success" in metrics else score
            self._note = f"eval {metrics['eval/return']:,.0f}{score}"
        parts += [self._note] if self._note else []
        text, steps = "  ".join(parts), _steps(num_steps, self._total)
        self._bar.update(self._task, completed=num_steps, text=text, steps=steps)
        due = time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES
        if not self._console.is_terminal and (due or "eval/return" in metrics or num_steps >= self._total):
            print(f"{steps} {self._unit}  {text}", file=sys.stderr, flush=True)
            self._last_line = time.monotonic()


def _steps(done: int, total: int) -> str:
    return f"{short(done)}/{short(total)}"
