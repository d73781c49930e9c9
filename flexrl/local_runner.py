"""Runs a sweep's Jobs on this machine as Kubernetes would: the same manifest, one process where a pod would be."""

from __future__ import annotations

import base64
import copy
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil

from flexrl import exit_codes, machine, trial
from flexrl.config import UserError
from flexrl.job_manifests import TrialJob, action_of, cpus, num_bytes
from flexrl.provenance import now
from flexrl.runs import OutOfResources
from flexrl.sweep_ledger import OVER, Attempt, Ledger, Status

POLL = 0.2  # s


@dataclass(frozen=True)
class Chaos:
    """Kills (-9) a share of all attempts on purpose, each somewhere on its way, the same ones for the same seed."""

    kill: float  # share of attempts
    seed: int = 0

    def where(self, trial_id: str, attempt: int, begin: int, end: int) -> int | None:
        """The step after which this attempt is killed; null: it is left alone."""
        rng = random.Random(f"{self.seed} {trial_id} {attempt}")
        return begin + int(rng.random() * (end - begin)) if rng.random() < self.kill else None


@dataclass
class Process:
    """An attempt that runs."""

    job: TrialJob
    index: int
    process: subprocess.Popen[bytes]
    status: Status
    killed_after: int | None  # step; by Chaos
    deadline: float  # monotonic s
    num_known: int  # attempts that its lineage told of before
    asked_at: float | None = None  # monotonic s: when it was asked to stop
    disrupted: bool = False
    overdue: bool = False
    gpus: tuple[str, ...] = ()

    @property
    def trial(self) -> str:
        """Its id."""
        return self.job.trials[self.index]

    @property
    def attempt(self) -> Attempt:
        """Its row in the status."""
        return self.status.attempts[-1]


@dataclass
class Room:
    """What of this machine no trial has taken."""

    cores: float
    memory: float  # bytes
    gpus: list[str]  # as CUDA_VISIBLE_DEVICES names them

    @classmethod
    def of_this_machine(cls) -> Room:
        """All of it, but for the GPUs, which are looked for when a Job wants some."""
        return cls(machine.num_threads(with_openmp=False), psutil.virtual_memory().total, [])

    def check(self, job: TrialJob) -> None:
        """UserError if a trial of the Job can never fit."""
        wanted = job.container["resources"]["requests"]
        if cpus(wanted["cpu"]) > self.cores:
            raise UserError(f"resources.cpu: a trial wants {cpus(wanted['cpu']):g} cores, this machine has {self.cores:g}")
        if num_bytes(wanted["memory"]) > self.memory:
            has, wants = self.memory / 2**30, num_bytes(wanted["memory"]) / 2**30
            raise UserError(f"resources.memory: a trial wants {wants:.1f} GiB, this machine has {has:.1f}")
        if job.num_gpus and not self.gpus:
            import torch  # here, as it takes a second

            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            present = torch.cuda.device_count() if torch.cuda.is_available() else 0
            self.gpus = visible.split(",")[:present] if visible else [str(i) for i in range(present)]
        if job.num_gpus > len(self.gpus):
            raise UserError(f"resources.gpu: a trial wants {job.num_gpus}, this machine has {len(self.gpus)}")

    def has(self, job: TrialJob) -> bool:
        """Whether a trial of the Job fits now."""
        wanted = job.container["resources"]["requests"]
        fits = cpus(wanted["cpu"]) <= self.cores + 1e-6 and num_bytes(wanted["memory"]) <= self.memory
        return fits and job.num_gpus <= len(self.gpus)

    def take(self, job: TrialJob) -> tuple[str, ...]:
        """Room for a trial of the Job; its GPUs."""
        wanted = job.container["resources"]["requests"]
        self.cores -= cpus(wanted["cpu"])
        self.memory -= num_bytes(wanted["memory"])
        gpus, self.gpus = tuple(self.gpus[: job.num_gpus]), self.gpus[job.num_gpus :]
        return gpus

    def give_back(self, job: TrialJob, gpus: Sequence[str]) -> None:
        """What a trial of the Job had taken."""
        wanted = job.container["resources"]["requests"]
        self.cores += cpus(wanted["cpu"])
        self.memory += num_bytes(wanted["memory"])
        self.gpus.extend(gpus)


@dataclass
class Runner:
    """The Jobs of a sweep, each from its first index to its last."""

    jobs: Sequence[TrialJob]
    planned: Mapping[str, int]  # steps, by id
    ledger: Ledger
    chaos: Chaos | None = None
    at_a_time: int | None = None  # trials of all Jobs together; null: as many as the Jobs say
    # called now and then with what runs
    show: Callable[[Mapping[str, Status], int], None] = lambda running, left: None
    # asked before each start: why no more trials may be started; null: they may
    obstacle: Callable[[], str | None] = lambda: None
    running: list[Process] = field(default_factory=list)
    stop_signal: int | None = None
    why_ended: str | None = None  # before all trials were over

    def __post_init__(self) -> None:
        self._room = Room.of_this_machine()
        for job in self.jobs:
            self._room.check(job)
        self._at_a_time = self.at_a_time or sum(job.spec["parallelism"] for job in self.jobs)

    @property
    def trials(self) -> list[str]:
        """The ids of all, in the order in which they are tried."""
        return [key for job in self.jobs for key in job.trials]

    @property
    def slots(self) -> int:
        """How many run at a time when it begins."""
        room, count = copy.deepcopy(self._room), 0
        for job in itertools.chain.from_iterable([job] * len(job.trials) for job in self.jobs):
            if count < self._at_a_time and room.has(job):
                room.take(job)
                count += 1
        return count

    def run(self) -> bool:
        """All trials that are not over yet, until they are; whether it was not stopped. The ledger is written as it goes."""
        queue = [
            (job, index)
            for job in self.jobs
            for index, key in enumerate(job.trials)
            if self.ledger.status(key).state not in OVER
        ]
        with tempfile.TemporaryDirectory() as temporary, self._stopping():
            for job in self.jobs:
                mounted = Path(temporary) / job.name
                mounted.mkdir()
                for name, content in job.config_map["binaryData"].items():
                    (mounted / name).write_bytes(base64.b64decode(content))
            try:
                while (queue or self.running) and self.stop_signal is None:
                    while (place := self._next(queue)) is not None and self.why_ended is None:
                        self.why_ended = self.obstacle() or ("too many trials failed" if self._is_hopeless() else None)
                        if self.why_ended is None:
                            job, index = queue.pop(place)
                            self.running.append(self._start(job, index, Path(temporary) / job.name))
                    if not self.running:
                        break
                    time.sleep(POLL)
                    for process in list(self.running):
                        self._watch(process)
                        if process.process.poll() is not None:
                            self.running.remove(process)
                            if self._end(process):
                                queue.insert(0, (process.job, process.index))
                    self.show({process.trial: process.status for process in self.running}, len(queue))
            except OSError as error:
                raise OutOfResources(
                    f"{self.ledger.folder}: {error.strerror}; make room, and the same command goes on"
                ) from None
            finally:
                self._stop_all()
        return self.stop_signal is None

    def _next(self, queue: Sequence[tuple[TrialJob, int]]) -> int | None:
        """The place in the queue of the first trial that there is room for; null: nothing can be started now."""
        if len(self.running) >= self._at_a_time:
            return None
        return next((place for place, (job, _) in enumerate(queue) if self._room.has(job)), None)

    def _is_hopeless(self) -> bool:
        """Whether so many trials failed that the rest is not tried."""
        for job in self.jobs:
            failed = sum(self.ledger.status(key).state in ("failed", "refused") for key in job.trials)
            if failed > job.spec.get("maxFailedIndexes", len(job.trials)):
                return True
        return False

    def _start(self, job: TrialJob, index: int, mounted: Path) -> Process:
        key = job.trials[index]
        status = self.ledger.status(key)
        number = len(status.attempts)
        reached = self.ledger.step_of(key)
        if status.attempts and status.attempts[-1].end is None:  # the runner itself was killed
            status.attempts[-1].end, status.attempts[-1].how = now(), "its runner was killed"
            status.attempts[-1].to_step = reached
        status.attempts.append(Attempt(start=now(), to_step=reached))
        status.state = "running"
        self.ledger.set_status(key, status)
        gpus = self._room.take(job)
        known = len(self.ledger.resumed_at(key))
        with self.ledger.log_of(key, number).open("wb") as log:
            process = subprocess.Popen(
                _command(job),
                env=self._environment(job, index, mounted, gpus),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is the runner's; it stops them itself
            )
        planned = self.planned.get(key, 0)
        after = self.chaos.where(key, number, min(reached, planned), planned) if self.chaos else None
        deadline = time.monotonic() + job.pod.get("activeDeadlineSeconds", float("inf"))
        return Process(job, index, process, status, after, deadline, known, gpus=gpus)

    def _environment(self, job: TrialJob, index: int, mounted: Path, gpus: Sequence[str]) -> dict[str, str]:
        """The container's, where its volumes are folders of this machine."""
        folders = {"/etc/flex-rl": mounted, "/app/workspace/sweeps": self.ledger.folder.parent.resolve()}
        named = {}
        for variable in job.container["env"]:
            value = str(variable["value"])
            inside = next((folder for folder in folders if value.startswith(f"{folder}/")), None)
            named[variable["name"]] = str(folders[inside]) + value.removeprefix(inside) if inside else value
        named["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)  # a pod that asks for none sees none
        return {**os.environ, **named, trial.INDEX: str(index), trial.TIED: str(os.getpid()), "PYTHONUNBUFFERED": "1"}

    def _watch(self, process: Process) -> None:
        """Kills what Chaos chose, and what takes too long."""
        doomed = process.killed_after is not None and not process.disrupted
        if doomed and self.ledger.step_of(process.trial) > (process.killed_after or 0):
            process.disrupted = True
            process.process.kill()
        if time.monotonic() > process.deadline and not process.overdue:
            process.overdue = True
            self._ask(process)
        grace = process.job.pod["terminationGracePeriodSeconds"]
        if process.asked_at is not None and time.monotonic() > process.asked_at + grace:
            process.process.kill()

    def _ask(self, process: Process) -> None:
        """Asks it to save and leave."""
        process.asked_at = time.monotonic()
        process.process.terminate()

    def _end(self, process: Process) -> bool:
        """Writes down how an attempt ended; whether the trial is to be tried again."""
        code = process.process.wait()
        code = 128 - code if code < 0 else code
        self._room.give_back(process.job, process.gpus)
        attempt, status, key, spec = process.attempt, process.status, process.trial, process.job.spec
        before = status.attempts[-2] if len(status.attempts) > 1 else None
        begun = self.ledger.resumed_at(key)
        attempt.end, attempt.exit_code, attempt.to_step = now(), code, self.ledger.step_of(key)
        if len(begun) > process.num_known:  # it came so far as to begin
            attempt.from_step = begun[-1]
            if before is not None:
                before.lost_steps = max(before.to_step - attempt.from_step, 0)
        elif before is not None:  # what the attempt before has lost is still to be seen
            attempt.to_step = before.to_step
        is_stopped = self.stop_signal is not None and not process.overdue
        action = action_of(spec, code, process.disrupted or (is_stopped and code == exit_codes.PREEMPTED))
        attempt.how = self._words(code, process)
        attempt.counted = action == "Count" and code != exit_codes.DONE
        is_given_up = code == exit_codes.DONE and self.ledger.is_given_up(key)
        status.result = self.ledger.result_of(key) if code == exit_codes.DONE and not is_given_up else None
        if is_given_up:
            attempt.how = trial.GIVEN_UP
        elif code == exit_codes.DONE and status.result is None:
            attempt.how, attempt.counted = "done, but what it made is missing or damaged", True
        if is_given_up:
            status.state = "given up"
        elif status.result is not None:
            status.state = "done"
        elif action == "FailIndex":
            status.state = "refused"
        elif attempt.counted and status.num_counted > spec["backoffLimitPerIndex"]:
            status.state = "failed"
        else:
            status.state = "waiting"
        self.ledger.set_status(key, status)
        return status.state == "waiting"

    def _words(self, code: int, process: Process) -> str:
        if process.disrupted:
            return "killed by --chaos" if self.stop_signal is None else "killed: it did not stop in time"
        if process.overdue:
            return f"took longer than the deadline of {process.job.pod['activeDeadlineSeconds']} s"
        return exit_codes.meaning_of(code).words

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the loop between two polls."""

        def note(signum: int, frame: FrameType | None) -> None:
            self.stop_signal = signum

        handlers = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _stop_all(self) -> None:
        """Asks what still runs to save and leave, as the kubelet does, and kills what does not within the grace."""
        for process in self.running:
            process.process.terminate()
        begin = time.monotonic()
        for process in self.running:
            until = begin + process.job.pod["terminationGracePeriodSeconds"]
            try:
                process.process.wait(max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.disrupted = True
                process.process.kill()
            self._end(process)
        self.running.clear()


def _command(job: TrialJob) -> list[str]:
    """The container's command, with this Python and this folder for the image's."""
    python, *arguments = job.container["command"]
    assert python == "python"
    return [sys.executable, *(str(trial.ROOT / part) if part.endswith(".py") else part for part in arguments)]
