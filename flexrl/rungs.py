"""How the trials of a sweep see who falls behind: each notes what it came to at each rung, and leaves if it is given up.

A trial judges itself, so that the rule holds wherever it runs: on this machine, and in a pod that nobody watches.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flexrl import runs
from flexrl.early_stopping import Curve, StopSettings, given_up, reached, rungs

SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_TO_LEAVE = 30.0
SHARE_OF_TIME = 0.05  # of a trial's that judging may take


@dataclass
class Rungs:
    """The rungs of a sweep in its folder: rungs/<metric>/<step>/<trial>, each a number that does not change any more."""

    folder: Path  # of the sweep
    rule: StopSettings
    metric: str
    maximize: bool
    points: Mapping[str, str]  # of each trial of the sweep by its id: the point that it is judged with
    _known: dict[int, dict[str, float]] = field(default_factory=dict)  # by rung and trial

    @classmethod
    def read(cls, folder: Path, document: Mapping[str, Any]) -> Rungs:
        """As `document` has it, which a Job's pods are given."""
        rule = StopSettings.model_validate(document["rule"])
        return cls(folder, rule, document["metric"], document["maximize"], document["points"])

    def document(self) -> dict[str, Any]:
        """All that `read` wants to know, but for the folder."""
        rule = self.rule.model_dump(mode="json")
        return {"rule": rule, "metric": self.metric, "maximize": self.maximize, "points": dict(self.points)}

    @property
    def _place(self) -> Path:
        return self.folder / "rungs" / quote(self.metric, safe="")

    def note(self, trial: str, curve: Curve) -> None:
        """Writes down the rungs that a trial's metric has reached."""
        for rung, value in reached(self.rule, curve).items():
            path = self._place / str(rung) / trial
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                runs.write_whole(path, repr(value))

    def look(self) -> bool:
        """Reads what others have noted since the last time, at the rungs of this rule; whether there was anything."""
        found = False
        steps = [int(name) for name in (os.listdir(self._place) if self._place.is_dir() else ())]
        for step in sorted(set(steps) & set(rungs(self.rule, max(steps, default=0)))):
            known = self._known.setdefault(step, {})
            for name in os.listdir(self._place / str(step)):
                text = "" if name in known else (self._place / str(step) / name).read_text(encoding="utf-8")
                if name in self.points and text:  # a file that a crash has left empty is read again the next time
                    known[name] = float(text)
                    found = True
        return found

    def given_up(self) -> set[str]:
        """The trials, by id, of the points that the rule gives up, by all that was read."""
        scores: dict[int, dict[str, list[float]]] = {}
        for rung, values in self._known.items():
            for trial in sorted(values):
                scores.setdefault(rung, {}).setdefault(self._judged_as(trial), []).append(values[trial])
        lost = given_up(self.rule, scores, self.maximize)
        return {trial for trial in self.points if self._judged_as(trial) in lost}

    def _judged_as(self, trial: str) -> str:
        return self.points[trial] if self.rule.over_seeds else trial


class Judge(threading.Thread):
    """Beside a trial's verb, in its process: notes its rungs; when it is given up, SIGTERM, by which it saves and leaves."""

    def __init__(self, rungs: Rungs, trial: str, length: int) -> None:
        super().__init__(daemon=True)
        self._rungs, self._trial = rungs, trial
        self._length = length  # steps: who has done them all is given up no more
        self._over = threading.Event()
        self._is_given_up = False
        self._metrics = rungs.folder / "trials" / trial / "metrics.jsonl"
        self._read_of = 0, 0  # the file that was read (its inode), and how much of it (bytes)
        self._curve: list[tuple[float, float]] = []
        self._reached = 0.0  # step

    def is_given_up(self) -> bool:
        """Whether the trial is, by what all have noted until now."""
        try:
            self._read()
            self._rungs.note(self._trial, self._curve)
            if not self._is_given_up and self._rungs.look() and self._reached < self._length:
                self._is_given_up = self._trial in self._rungs.given_up()
        except (OSError, ValueError) as error:  # a disk that is full or away for a while: the trial itself goes on
            print(f"{self._rungs.folder / 'rungs'}: {error}; judged again in a while", file=sys.stderr)
        return self._is_given_up

    def _read(self) -> None:
        """The lines of metrics that are new; all of them where a trial that goes on has written them anew."""
        if not self._metrics.is_file():
            return
        with self._metrics.open("rb") as file:
            about = os.fstat(file.fileno())
            if about.st_ino != self._read_of[0] or about.st_size < self._read_of[1]:
                self._read_of, self._curve = (about.st_ino, 0), []
            file.seek(self._read_of[1])
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read_of = about.st_ino, self._read_of[1] + len(whole)
        for line in map(json.loads, whole.splitlines()):
            self._reached = line["step"]
            value = line.get(self._rungs.metric)
            if isinstance(value, (int, float)):
                self._curve.append((line["step"], float(value)))

    def run(self) -> None:
        """Until the trial is over; asked to leave again and again once it is given up, as a signal may come too early."""
        wait = SECONDS_BETWEEN_LOOKS
        while not self._over.wait(wait):
            begin = time.monotonic()
            if self.is_given_up():
                os.kill(os.getpid(), signal.SIGTERM)
                wait = SECONDS_TO_LEAVE
            else:
                wait = max(SECONDS_BETWEEN_LOOKS, (time.monotonic() - begin) / SHARE_OF_TIME)

    def end(self) -> bool:
        """The verb has ended; whether it was stopped for being given up."""
        self._over.set()
        self.join()
        return self._is_given_up
