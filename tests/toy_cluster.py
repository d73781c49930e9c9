"""A Kubernetes API over HTTP that fits a test: Jobs, ConfigMaps, pods, their logs, a watch, a Job controller, and faults."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from typing import Any

import kubernetes_validate
from kubernetes import client
from toy_api import Handler, refusal

from flexrl import job_rules
from flexrl.cluster import Cluster
from flexrl.follower import INDEX_LABEL, JOB_LABEL

FEW_TICKS, MOST_TICKS = 3, 200  # that a pod which vanishes runs for


class ToyCluster:
    """Runs a Job's pods one `tick` at a time; `plan` says how each attempt of an index ends: an exit code, 'disrupted', the
    last words of a pod that ends well, or 'vanishes' (it is gone with its machine, of an even index once somebody has seen
    it run, of an odd one soon).

    `faults` by number of the request: 409 (a conflict), 429, 500, 503, 'drop' (the connection breaks before anything is done),
    'late' (it is done, and the answer is lost), 'cut' (a watch breaks after its first event), 'restart' (nobody answers for a
    while, and then old versions are unknown: a watch from one is told 410, as its first event).
    """

    def __init__(self, plan: Callable[[int, int], int | str], faults: dict[int, Any] | None = None) -> None:
        self.plan, self.faults = plan, faults or {}
        self.lock = threading.RLock()
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}  # (plural, name)
        self.events: list[tuple[int, str, dict[str, Any]]] = []  # of pods: version, type, pod
        self.version, self.num_requests, self.created = 0, 0, []
        self.logs: dict[str, str] = {}
        self.allowed, self.has_namespace = True, True
        self.denied: set[str] = set()  # rights that one has not, such as 'create pods/exec'
        self.refused: dict[str, int] = {}  # HTTP status that whoever asks for a plural is told
        self.ages: dict[str, int] = {}  # ticks that pods which vanish have run for
        self.seen: set[str] = set()  # pods that somebody was told of while they ran
        self.attempts: dict[tuple[str, int], int] = {}
        self.over: dict[str, tuple[set[int], set[int]]] = {}  # by Job: indexes that are done, and that failed
        self.counts: dict[str, dict[int, int]] = {}  # by Job: failures of each index that count
        self.held = False  # pods that run go on
        self.obstacle: dict[str, Any] | None = None  # the status of pods that cannot begin
        self.suspended: str | None = None  # why no Job may begin
        self.oldest = 0  # version that a watch may begin from
        self.removes_read = False  # pods that have ended, once somebody has read their log
        self.read: set[str] = set()
        self.stopped = threading.Event()
        self.away_until = 0.0  # monotonic s: the server restarts
        handler = type("TheHandler", (Handler,), {"cluster": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.threads = [
            threading.Thread(target=self.server.serve_forever, args=(0.01,)),
            threading.Thread(target=self._control),
        ]

    @property
    def is_away(self) -> bool:
        return time.monotonic() < self.away_until

    def restart(self) -> None:
        """Away for a while; then versions from before are unknown."""
        self.away_until = time.monotonic() + 0.05
        self.version += 1
        self.oldest = self.version

    def __enter__(self) -> ToyCluster:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()
        for thread in self.threads:
            thread.join()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def client(self, patience: float = 20.0) -> Cluster:
        configuration = client.Configuration(host=self.address, retries=False)
        return Cluster(client.ApiClient(configuration), patience=patience, sleep=lambda s: time.sleep(min(s, 0.02)))

    def _control(self) -> None:
        while not self.stopped.wait(0.01):
            with self.lock:
                for (plural, _), job in list(self.objects.items()):
                    if plural == "jobs":
                        self._advance(job)

    def _advance(self, job: dict[str, Any]) -> None:
        """One tick: pods that wait run, pods that run end, those that must are started again."""
        status, spec, name = job["status"], job["spec"], job["metadata"]["name"]
        ended = [
            o for (plural, _), o in self.objects.items() if plural == "pods" and o["status"]["phase"] in ("Succeeded", "Failed")
        ]
        for pod in ended if self.removes_read else []:
            if pod["metadata"]["name"] in self.read:
                del self.objects["pods", pod["metadata"]["name"]]
                self._tell("DELETED", pod)
        if any(condition["type"] != "Suspended" for condition in status.get("conditions", [])):
            return
        status["conditions"] = [{"type": "Suspended", "status": "True" if self.suspended else "False"}]
        if self.suspended:
            status["conditions"][0]["message"] = self.suspended
            return
        done, failed = self.over.setdefault(name, (set(), set()))
        pods = [
            pod
            for (plural, _), pod in self.objects.items()
            if plural == "pods" and pod["metadata"]["labels"].get(JOB_LABEL) == name
        ]
        for pod in pods:
            phase = pod["status"]["phase"]
            if phase == "Pending" and self.obstacle is not None:
                if pod["status"] != {"phase": "Pending", **self.obstacle}:
                    pod["status"] = {"phase": "Pending", **self.obstacle}
                    self._tell("MODIFIED", pod)
            elif phase == "Pending":
                pod["status"] = {"phase": "Running"}
                self.logs[pod["metadata"]["name"]] = "begins\n"
                self._tell("MODIFIED", pod)
            elif phase == "Running" and not self.held:
                self._finish(job, pod, done, failed)
        active = {int(p["metadata"]["labels"][INDEX_LABEL]) for p in pods if p["status"]["phase"] in ("Pending", "Running")}
        for index in range(spec["completions"]):
            if len(active) < spec["parallelism"] and index not in done | failed | active:
                self._start(name, index)
                active.add(index)
        status["completedIndexes"], status["failedIndexes"] = (",".join(map(str, sorted(s))) for s in (done, failed))
        if len(done | failed) == spec["completions"]:
            status["conditions"] = [{"type": "Failed" if failed else "Complete", "status": "True"}]

    def _start(self, job: str, index: int) -> None:
        number = self.attempts[job, index] = self.attempts.get((job, index), -1) + 1
        name = f"{job}-{index}-{number}"
        labels = {JOB_LABEL: job, INDEX_LABEL: str(index)}
        metadata = {"name": name, "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"}
        spec = {"nodeName": f"node-{number}", "containers": []}
        self.objects["pods", name] = {"metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}
        self._tell("ADDED", self.objects["pods", name])

    def _finish(self, job: dict[str, Any], pod: dict[str, Any], done: set[int], failed: set[int]) -> None:
        index = int(pod["metadata"]["labels"][INDEX_LABEL])
        name = pod["metadata"]["name"]
        number = int(name.rsplit("-", 1)[1])
        outcome = self.plan(index, number)
        if outcome == "vanishes":
            self._age(index, name)
            return
        is_told = isinstance(outcome, str) and outcome != "disrupted"
        code = 137 if outcome == "disrupted" else 0 if is_told else int(outcome)
        self.logs[name] += f"ends with {outcome}\n"
        terminated = {"exitCode": code, "message": outcome if is_told else f"ends with {outcome}"}
        container = {"name": "train", "image": "flex-rl", "imageID": "", "ready": False, "restartCount": 0}
        container["state"] = {"terminated": terminated}
        pod["status"] = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [container]}
        if outcome == "disrupted":
            pod["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True"}]
            self._report(name, "TaintManagerEviction", "Marking for deletion Pod")
        self._tell("MODIFIED", pod)
        counts = self.counts.setdefault(job["metadata"]["name"], {})
        if code == 0:
            done.add(index)
            return
        action = judge(job["spec"], pod["status"])
        if action == "FailIndex":
            failed.add(index)
        elif action == "Count":
            counts[index] = counts.get(index, 0) + 1
            if counts[index] > job["spec"]["backoffLimitPerIndex"]:
                failed.add(index)

    def _report(self, pod: str, reason: str, message: str) -> None:
        """An event of a pod."""
        name = f"{pod}.{self.version:x}"
        about = {"kind": "Pod", "name": pod, "namespace": "flex-rl"}
        told = {"type": "Warning", "reason": reason, "message": message, "lastTimestamp": "2026-01-01T00:00:01Z", "count": 1}
        self.objects["events", name] = {"metadata": {"name": name, "namespace": "flex-rl"}, "involvedObject": about, **told}

    def _age(self, index: int, name: str) -> None:
        """A pod whose machine goes; nobody hears its last words, and the Job's controller starts another, uncounted."""
        self.ages[name] = self.ages.get(name, 0) + 1
        is_late = self.ages[name] > (MOST_TICKS if index % 2 == 0 else FEW_TICKS)
        if is_late or (index % 2 == 0 and name in self.seen):
            self._report(name, "NodeNotReady", "Node is not ready")
            self.delete("pods", name)

    def note_seen(self, pod: dict[str, Any]) -> None:
        """Somebody was told of it."""
        if pod["status"].get("phase") == "Running":
            self.seen.add(pod["metadata"]["name"])

    def delete(self, plural: str, name: str) -> dict[str, Any]:
        """And what belongs to it, as the garbage collector does: a Job's pods, and ConfigMaps that name it as their owner."""
        gone = self.objects.pop((plural, name))
        if plural == "pods":
            self._tell("DELETED", gone)
        if plural == "jobs":  # another of its name begins anew
            self.over.pop(name, None)
            self.counts.pop(name, None)
        for (kind, other), o in list(self.objects.items()):
            owners = [owner["uid"] for owner in o["metadata"].get("ownerReferences", [])]
            is_pod = plural == "jobs" and kind == "pods" and o["metadata"]["labels"].get(JOB_LABEL) == name
            if is_pod or ("uid" in gone["metadata"] and gone["metadata"]["uid"] in owners):
                self.delete(kind, other)
        return gone

    def remove_finished(self) -> list[str]:
        """The Jobs that are over, as their TTL does; their names."""
        with self.lock:
            jobs = [o for (kind, _), o in self.objects.items() if kind == "jobs"]
            over = [
                job["metadata"]["name"]
                for job in jobs
                if any(c["type"] in ("Complete", "Failed") for c in job["status"].get("conditions", []))
            ]
            for name in over:
                self.delete("jobs", name)
        return over

    def _tell(self, kind: str, pod: dict[str, Any]) -> None:
        self.version += 1
        self.events.append((self.version, kind, json.loads(json.dumps(pod))))

    def create(self, plural: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        kubernetes_validate.validate(body, "1.34", strict=True)
        name = body["metadata"]["name"]
        if (plural, name) in self.objects:
            return 409, refusal(409, f'{plural} "{name}" already exists', "AlreadyExists")
        if plural == "jobs":
            wrong = job_rules.problems(body)
            if wrong:
                return 422, refusal(422, wrong[0])
            body["status"] = {}
            body["metadata"]["uid"] = f"uid-{len(self.created)}"
        if plural == "pods":  # one that no Job has made
            body["status"] = {"phase": "Running"}
        self.objects[plural, name] = body
        self.created.append((plural, name))
        return 201, body


def judge(spec: dict[str, Any], status: dict[str, Any]) -> str:
    """What the Job's controller does about a pod that failed: the action of its policy's first rule that matches, or Count.

    After pod_failure_policy.go of Kubernetes: of containers only exit codes that are not 0 are looked at; of a pod's
    conditions one that has the type and the status suffices.
    """
    codes = {c["name"]: c["state"]["terminated"]["exitCode"] for c in status["containerStatuses"]}
    conditions = [(c["type"], c["status"]) for c in status.get("conditions", [])]
    for rule in spec["podFailurePolicy"]["rules"]:
        on_codes, on_conditions = rule.get("onExitCodes"), rule.get("onPodConditions", [])
        if on_codes is not None:
            looked_at = [code for name, code in codes.items() if code != 0 and on_codes.get("containerName", name) == name]
            is_in = on_codes["operator"] == "In"
            if any((code in on_codes["values"]) == is_in for code in looked_at):
                return str(rule["action"])
        if any((c["type"], c.get("status", "True")) in conditions for c in on_conditions):
            return str(rule["action"])
    return "Count"
