"""Follows a sweep's Jobs until they are over: every attempt, why it ended, its log, in the ledger."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

from kubernetes import watch
from kubernetes.client.exceptions import ApiException

from flexrl import exit_codes, runs, trial
from flexrl.cluster import NO_ANSWER, Cluster, over, why_of
from flexrl.dossier import compile_dossier
from flexrl.job_manifests import TrialJob, action_of
from flexrl.provenance import now
from flexrl.runs import Failed
from flexrl.sweep_ledger import OVER, Attempt, Ledger, State, Status, obstacles

JOB_LABEL, INDEX_LABEL = "batch.kubernetes.io/job-name", "batch.kubernetes.io/job-completion-index"
WATCH_SECONDS = 20.0
STARTING = ("ContainerCreating", "PodInitializing")  # reasons to wait that pass by themselves
LONGEST_NOTE = 300  # characters of what a cluster says of a pod
LOG_LINES = 100_000  # of an attempt's log that are kept at most, the last ones
LOG_PATIENCE = 10.0  # s: a machine that is taken away answers with 500 for good


@dataclass
class Follower:
    """Keeps the ledger true to what the cluster does, until all Jobs are over."""

    cluster: Cluster
    jobs: Sequence[TrialJob]  # of one sweep
    ledger: Ledger
    # called after each look with what runs, how many have not begun, and what is in the way of others
    show: Callable[[Mapping[str, Status], int, Sequence[str]], None] = lambda running, left, notes: None
    logs_of: str | None = None  # the trial whose pods' logs are read while they run; null: all trials
    _peeked: dict[str, float] = field(default_factory=dict)  # when (monotonic s) each pod's log was read while it ran
    _suspended: dict[str, str] = field(default_factory=dict)  # Jobs that wait to be admitted, and why
    _statuses: dict[str, Status] = field(default_factory=dict)
    _num_begun: dict[str, int] = field(default_factory=dict)  # of each trial's attempts, by the run's own lineage
    _ended: dict[str, str] = field(default_factory=dict)  # how Jobs ended that need not be asked for again
    _is_interrupted: bool = False

    def run(self) -> str:
        """Until all are over: 'Complete', or 'Failed' if one is; Failed (the exception) if one is gone before.

        KeyboardInterrupt at Ctrl-C, even if the exception is lost where it was raised, in a destructor say.
        """
        if threading.current_thread() is not threading.main_thread():
            return self._follow()
        before = signal.signal(signal.SIGINT, self._interrupt)
        try:
            return self._follow()
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self._is_interrupted = True
        raise KeyboardInterrupt

    def _follow(self) -> str:
        self._read_ledger()
        while True:
            if self._is_interrupted:
                raise KeyboardInterrupt
            hows, version = self._look()
            self._show()
            if None not in hows:
                return "Failed" if "Failed" in hows else "Complete"
            for pod in self._watch_pods(version):
                self._note_pod(pod)
                self._show()

    def look(self) -> list[str]:
        """Once: brings the ledger up to date; what is in the way of trials that do not run."""
        self._read_ledger()
        self._look()
        return self._notes()

    def _look(self) -> tuple[list[str | None], str | None]:
        """How each Job ended, null while it goes on; the version of the list of pods, from which a watch goes on."""
        left = [job for job in self.jobs if job.name not in self._ended]
        told = [self._read_job(job.name) for job in left]
        pods = self._list_pods()
        for pod in sorted(pods["items"], key=lambda pod: str(pod["metadata"].get("creationTimestamp"))):
            self._note_pod(pod)
            self._peek(pod)
        self._note_vanished({pod["metadata"]["name"] for pod in pods["items"]})
        for job, state in zip(left, told, strict=True):
            self._note_job(job, state)
            how = over(state)
            if how is not None:  # a day later it is gone, while other Jobs of the sweep may still run
                self._ended[job.name] = how
        return [self._ended.get(job.name) for job in self.jobs], pods["metadata"].get("resourceVersion")

    def _show(self) -> None:
        running = {key: status for key, status in self._statuses.items() if status.state == "running"}
        waiting = sum(status.state == "waiting" for status in self._statuses.values())
        self.show(running, waiting, self._notes())

    def _notes(self) -> list[str]:
        suspended = [f"Job {name}: is suspended: {why}" for name, why in self._suspended.items()]
        return [*suspended, *obstacles(self._statuses.values())]

    def _read_ledger(self) -> None:
        self._statuses = {key: self.ledger.status(key) for job in self.jobs for key in job.trials}
        for key, status in self._statuses.items():
            runs = any(attempt.end is None for attempt in status.attempts)
            self._num_begun[key] = max(len(self.ledger.resumed_at(key)) - runs, 0)

    def _read_job(self, name: str) -> dict[str, Any]:
        try:
            return self.cluster.look(self.cluster.batch.read_namespaced_job, name, self.cluster.namespace)
        except ApiException as error:
            if error.status == 404:
                raise Failed(
                    f"Job {name}: is gone; somebody deleted it, or its day after the end is over; submit the sweep again"
                ) from None
            raise

    @property
    def _selector(self) -> str:
        """Of the Jobs' pods."""
        return f"{JOB_LABEL} in ({','.join(job.name for job in self.jobs)})"

    def _list_pods(self) -> dict[str, Any]:
        return self.cluster.look(self.cluster.core.list_namespaced_pod, self.cluster.namespace, label_selector=self._selector)

    def _watch_pods(self, version: str | None) -> Iterator[dict[str, Any]]:
        """Pods as they change, for a while; a watch that breaks ends early, and the next look lists them all again."""
        seconds = min(WATCH_SECONDS, self.cluster.patience)
        try:
            for event in watch.Watch().stream(
                self.cluster.core.list_namespaced_pod,
                self.cluster.namespace,
                label_selector=self._selector,
                resource_version=version,
                timeout_seconds=max(int(seconds), 1),
                _request_timeout=(5.0, seconds + 5.0),
                deserialize=False,
            ):
                if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                    yield event["object"]
                    if event["type"] != "ADDED" and _exit(event["object"]) is not None:
                        return  # the Job's own status has changed with it
        except (ApiException, *NO_ANSWER, json.JSONDecodeError, KeyError):
            self.cluster.sleep(0.2)

    def _note_pod(self, pod: Mapping[str, Any]) -> None:
        """An attempt as the pod tells it; its log is kept as soon as it has ended."""
        labels = pod["metadata"].get("labels", {})
        index = labels.get(INDEX_LABEL)
        job = next((job for job in self.jobs if job.name == labels.get(JOB_LABEL)), None)
        if job is None or index is None:
            return
        key, name = job.trials[int(index)], pod["metadata"]["name"]
        status = self._statuses[key]
        attempt = next((a for a in status.attempts if a.pod == name), None)
        if attempt is None:
            attempt = Attempt(start=pod["metadata"].get("creationTimestamp") or now(), pod=name, is_logged=False)
            status.attempts.append(attempt)
            self.ledger.set_status(key, status)
        node = pod.get("spec", {}).get("nodeName")
        if node is not None and attempt.node != node:
            attempt.node = node
            self.ledger.set_status(key, status)
        obstacle = _obstacle(pod)
        state: State = "waiting" if obstacle else "running"
        if status.state not in OVER and attempt.end is None and (attempt.obstacle, status.state) != (obstacle, state):
            attempt.obstacle, status.state = obstacle, state
            self.ledger.set_status(key, status)
        code = _exit(pod)
        if code is None or attempt.end is not None:
            return
        attempt.end, attempt.exit_code, attempt.obstacle = now(), code, None
        disrupted = any(c["type"] == "DisruptionTarget" and c["status"] == "True" for c in pod["status"].get("conditions", []))
        attempt.how = "preempted" if disrupted and code != exit_codes.DONE else exit_codes.meaning_of(code).words
        if code == exit_codes.DONE and any(state.get("message") == trial.GIVEN_UP for state in _terminated(pod)):
            attempt.how = trial.GIVEN_UP
        attempt.counted = code != exit_codes.DONE and action_of(job.spec, code, disrupted) == "Count"
        self._count_steps(key, attempt)
        self._keep_log(key, attempt, pod)
        if code != exit_codes.DONE:
            self._keep_dossier(key, attempt, pod)
        self.ledger.set_status(key, status)

    def _count_steps(self, key: str, attempt: Attempt) -> None:
        """What an attempt that has ended did, and did again; nothing where the cluster's workspace is not this one (GKE)."""
        attempts, begun = self._statuses[key].attempts, self.ledger.resumed_at(key)
        number = attempts.index(attempt)
        before = attempts[number - 1] if number else None
        attempt.to_step = self.ledger.step_of(key)
        if len(begun) > self._num_begun.get(key, 0):
            attempt.from_step, self._num_begun[key] = begun[-1], len(begun)
            if before is not None:
                before.lost_steps = max(before.to_step - attempt.from_step, 0)
        elif before is not None:  # it did not come so far as to begin: what the one before has lost is still to be seen
            attempt.to_step = before.to_step

    def _keep_log(self, key: str, attempt: Attempt, pod: Mapping[str, Any]) -> None:
        """What the pod printed, or, where it is gone, the end of it, which its status holds."""
        path = self.ledger.log_of(key, self._statuses[key].attempts.index(attempt))
        try:
            log = self._read_log(str(attempt.pod))
        except (ApiException, Failed) as error:
            last = "\n".join(state.get("message") or state.get("reason") or "" for state in _terminated(pod))
            earlier = path.read_text(encoding="utf-8") if path.is_file() else ""
            why = why_of(error) if isinstance(error, ApiException) else str(error).partition(";")[0]
            log = f"{earlier}(its log cannot be read: {why}; the end of what it printed:)\n{last}\n"
        path.write_text(log, encoding="utf-8")
        attempt.is_logged = True

    def _keep_dossier(self, key: str, attempt: Attempt, pod: Mapping[str, Any]) -> None:
        """What the cluster tells of the pod besides, as long as it does: an hour."""
        dossier = compile_dossier(self.cluster, str(attempt.pod), attempt.node, pod, attempt.exit_code)
        path = self.ledger.dossier_of(key, self._statuses[key].attempts.index(attempt))
        runs.write_whole(path, json.dumps(dossier.document(), indent=1))

    def _peek(self, pod: Mapping[str, Any]) -> None:
        """What a pod has printed so far: if its machine is taken away, this is all that is left."""
        if pod.get("status", {}).get("phase") != "Running":
            return
        name = pod["metadata"]["name"]
        if time.monotonic() - self._peeked.get(name, -WATCH_SECONDS) < WATCH_SECONDS:
            return
        key, number = next(
            (key, number)
            for key, status in self._statuses.items()
            for number, attempt in enumerate(status.attempts)
            if attempt.pod == name
        )
        if self.logs_of not in (None, key):
            return
        self._peeked[name] = time.monotonic()
        try:
            log = self._read_log(name)
        except (ApiException, Failed):
            return  # its container is only starting, or it has just ended: the next look tells
        self.ledger.log_of(key, number).write_text(log, encoding="utf-8")

    def _read_log(self, name: str) -> str:
        core = self.cluster.core
        impatient = replace(self.cluster, patience=min(self.cluster.patience, LOG_PATIENCE))
        return impatient.call(core.read_namespaced_pod_log, name, self.cluster.namespace, tail_lines=LOG_LINES) or ""

    def _note_vanished(self, present: set[str]) -> None:
        """Attempts whose pods were gone before they were seen to end."""
        for key, status in self._statuses.items():
            for number, attempt in enumerate(status.attempts):
                if attempt.pod is not None and attempt.end is None and attempt.pod not in present:
                    _note_lost(self.ledger, key, number, attempt)
                    self._keep_dossier(key, attempt, {})
                    self.ledger.set_status(key, status)

    def _note_job(self, job: TrialJob, state: Mapping[str, Any]) -> None:
        """Which trials are over, as the Job's controller counts them."""
        told = state.get("status", {})
        self._suspended.pop(job.name, None)
        for condition in told.get("conditions") or []:
            if condition["type"] == "Suspended" and condition["status"] == "True":
                why = condition.get("message") or "nobody says why"
                queue = job.job["metadata"]["labels"].get("kueue.x-k8s.io/queue-name")
                self._suspended[job.name] = f"{why}{f'; its queue is {queue}' if queue else ''}"
        for index, key in enumerate(job.trials):
            status = self._statuses[key]
            before = status.state
            codes = [attempt.exit_code for attempt in status.attempts]
            if index in indexes(told.get("completedIndexes")):
                hows = [attempt.how for attempt in status.attempts]
                is_given_up = hows[-1:] == [trial.GIVEN_UP] or self.ledger.is_given_up(key)
                status.state = "given up" if is_given_up else "done"
            elif index in indexes(told.get("failedIndexes")):
                status.state = "refused" if codes and codes[-1] == exit_codes.USER_ERROR else "failed"
            elif any(attempt.end is None and attempt.obstacle is None for attempt in status.attempts):
                status.state = "running"
            else:
                status.state = "waiting"
            if status.state != before:
                self.ledger.set_status(key, status)


def give_up(ledger: Ledger, jobs: Sequence[TrialJob]) -> None:
    """The Jobs are gone, and with them what their pods went on to do."""
    for key in (key for job in jobs for key in job.trials):
        status = ledger.status(key)
        lost = [number for number, attempt in enumerate(status.attempts) if attempt.pod is not None and attempt.end is None]
        for number in lost:
            _note_lost(ledger, key, number, status.attempts[number])
        if lost or status.state == "running":
            status.state = "waiting" if status.state == "running" else status.state
            ledger.set_status(key, status)


def _note_lost(ledger: Ledger, key: str, number: int, attempt: Attempt) -> None:
    """An attempt that nobody saw end."""
    attempt.end, attempt.how, attempt.is_logged, attempt.obstacle = now(), "its pod vanished", True, None
    with ledger.log_of(key, number).open("a", encoding="utf-8") as log:
        log.write("(the pod vanished; what it printed after this is lost)\n")


def indexes(text: str | None) -> set[int]:
    """The numbers of '1,3-5'."""
    found: set[int] = set()
    for part in (text or "").split(","):
        if part:
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found


def _terminated(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return [status["state"]["terminated"] for status in statuses if "terminated" in status.get("state", {})]


def _obstacle(pod: Mapping[str, Any]) -> str | None:
    """Why a pod does not run yet, as its status says; null if it does, or is only starting."""
    told = pod.get("status", {})
    if told.get("phase") != "Pending":
        return None
    for container in told.get("containerStatuses") or []:
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") not in (None, *STARTING):
            return " ".join(f"{waiting['reason']} {waiting.get('message', '')}".split())[:LONGEST_NOTE]
    for condition in told.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return " ".join(str(condition.get("message") or condition.get("reason")).split())[:LONGEST_NOTE]
    return None


def _exit(pod: Mapping[str, Any]) -> int | None:
    """The exit code of a pod that has ended; null while it goes on. A pod without one was killed."""
    if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
        return None
    codes = [int(state["exitCode"]) for state in _terminated(pod)]
    return codes[0] if codes else exit_codes.KILLED
