"""A Kubernetes API over HTTP that fits a test: Jobs, ConfigMaps, pods, their logs, a watch, a Job controller, and faults."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

import kubernetes_validate
from kubernetes import client

from flexrl import job_rules
from flexrl.cluster import Cluster
from flexrl.follower import INDEX_LABEL, JOB_LABEL

PLURALS = {"jobs": "Job", "configmaps": "ConfigMap", "pods": "Pod", "resourcequotas": "ResourceQuota"}


class ToyCluster:
    """Runs a Job's pods one `tick` at a time; `plan` says how each attempt of an index ends: an exit code, 'disrupted', or the
    last words of a pod that ends well.

    `faults` by number of the request: 429, 500, 503, 'drop' (the connection breaks before anything is done), 'late' (it is
    done, and the answer is lost), 'cut' (a watch breaks after its first event), 'restart' (nobody answers for a while, and
    then old versions are unknown: a watch from one is told 410, as its first event).
    """

    def __init__(self, plan: Callable[[int, int], int | str], faults: dict[int, Any] | None = None) -> None:
        self.plan, self.faults = plan, faults or {}
        self.lock = threading.RLock()
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}  # (plural, name)
        self.events: list[tuple[int, str, dict[str, Any]]] = []  # of pods: version, type, pod
        self.version, self.num_requests, self.created = 0, 0, []
        self.logs: dict[str, str] = {}
        self.allowed, self.has_namespace = True, True
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
        handler = type("Handler", (_Handler,), {"cluster": self})
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
        self.objects["pods", name] = {"metadata": metadata, "spec": {"containers": []}, "status": {"phase": "Pending"}}
        self._tell("ADDED", self.objects["pods", name])

    def _finish(self, job: dict[str, Any], pod: dict[str, Any], done: set[int], failed: set[int]) -> None:
        index = int(pod["metadata"]["labels"][INDEX_LABEL])
        name = pod["metadata"]["name"]
        number = int(name.rsplit("-", 1)[1])
        outcome = self.plan(index, number)
        is_told = isinstance(outcome, str) and outcome != "disrupted"
        code = 137 if outcome == "disrupted" else 0 if is_told else int(outcome)
        self.logs[name] += f"ends with {outcome}\n"
        terminated = {"exitCode": code, "message": outcome if is_told else f"ends with {outcome}"}
        container = {"name": "train", "image": "flex-rl", "imageID": "", "ready": False, "restartCount": 0}
        container["state"] = {"terminated": terminated}
        pod["status"] = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [container]}
        if outcome == "disrupted":
            pod["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True"}]
        self._tell("MODIFIED", pod)
        counts = self.counts.setdefault(job["metadata"]["name"], {})
        if code == 0:
            done.add(index)
        elif code == 2:
            failed.add(index)
        elif outcome != "disrupted" and code != 143:
            counts[index] = counts.get(index, 0) + 1
            if counts[index] > job["spec"]["backoffLimitPerIndex"]:
                failed.add(index)

    def _tell(self, kind: str, pod: dict[str, Any]) -> None:
        self.version += 1
        self.events.append((self.version, kind, json.loads(json.dumps(pod))))

    def create(self, plural: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        kubernetes_validate.validate(body, "1.34", strict=True)
        name = body["metadata"]["name"]
        if (plural, name) in self.objects:
            return 409, _refusal(409, f'{plural} "{name}" already exists')
        if plural == "jobs":
            wrong = job_rules.problems(body)
            if wrong:
                return 422, _refusal(422, wrong[0])
            body["status"] = {}
        if plural == "pods":  # one that no Job has made
            body["status"] = {"phase": "Running"}
        self.objects[plural, name] = body
        self.created.append((plural, name))
        return 201, body


def _refusal(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}


class _Handler(BaseHTTPRequestHandler):
    cluster: ToyCluster
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return

    def _answer(self, code: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _break(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _handle(self) -> None:
        cluster = self.cluster
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        with cluster.lock:
            cluster.num_requests += 1
            fault = cluster.faults.get(cluster.num_requests)
        try:
            if fault == "restart":
                with cluster.lock:
                    cluster.restart()
                self._break()
            elif fault == "drop" or cluster.is_away:
                self._break()
            elif isinstance(fault, int):
                self._answer(fault, _refusal(fault, "not now"), {"Retry-After": "1"} if fault == 429 else None)
            elif "watch=true" in self.path.lower():
                self._watch(cut=fault is not None)
            else:
                with cluster.lock:
                    code, answer = self._act(body)
                    content = answer if isinstance(answer, str) else json.loads(json.dumps(answer))
                if fault == "late":
                    self._break()
                else:
                    self._answer(code, content)
        except (BrokenPipeError, ConnectionResetError):
            return  # the client has left

    do_GET = do_POST = do_DELETE = do_PATCH = _handle

    def _act(self, body: dict[str, Any]) -> tuple[int, Any]:
        cluster, url = self.cluster, urlparse(self.path)
        parts = url.path.strip("/").split("/")
        if "selfsubjectaccessreviews" in parts:
            return 201, {**body, "status": {"allowed": cluster.allowed}}
        parts = parts[parts.index("namespaces") + 2 :]
        if parts[0] == "serviceaccounts":
            return (
                (200, {"metadata": {"name": parts[1]}})
                if cluster.has_namespace
                else (404, _refusal(404, "serviceaccounts not found"))
            )
        plural, name = parts[0], parts[1] if len(parts) > 1 else None
        if self.command == "POST":
            return cluster.create(plural, body)
        if name is None:
            return 200, {
                "kind": PLURALS[plural] + "List",
                "metadata": {"resourceVersion": str(cluster.version)},
                "items": self._chosen(plural, url.query),
            }
        if (plural, name) not in cluster.objects:
            return 404, _refusal(404, f'{plural} "{name}" not found')
        if parts[-1] == "log":
            if cluster.objects[plural, name]["status"]["phase"] in ("Succeeded", "Failed"):
                cluster.read.add(name)
            return 200, cluster.logs.get(name, "")
        if self.command == "DELETE":
            gone = cluster.objects.pop((plural, name))
            return 200, gone if plural == "pods" else {"kind": "Status", "status": "Success"}
        return 200, cluster.objects[plural, name]

    def _chosen(self, plural: str, query: str) -> list[dict[str, Any]]:
        selector = parse_qs(query).get("labelSelector", [""])[0]
        found = [o for (kind, _), o in self.cluster.objects.items() if kind == plural]
        several = re.fullmatch(r"(\S+) in \((.*)\)", selector)
        label, values = (several[1], several[2]) if several else selector.partition("=")[::2]
        return [o for o in found if not label or o["metadata"].get("labels", {}).get(label) in values.split(",")]

    def _watch(self, cut: bool) -> None:
        query = parse_qs(urlparse(self.path).query)
        seen = int(query.get("resourceVersion", ["0"])[0])
        until = time.monotonic() + float(query.get("timeoutSeconds", ["10"])[0])
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        if seen < self.cluster.oldest:
            gone = _refusal(410, "too old resource version")
            self.wfile.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return
        while time.monotonic() < until and not self.cluster.stopped.is_set() and not self.cluster.is_away:
            with self.cluster.lock:
                fresh = [event for event in self.cluster.events if event[0] > seen]
            for version, kind, pod in fresh:
                seen = version
                self.wfile.write(json.dumps({"type": kind, "object": pod}).encode() + b"\n")
                self.wfile.flush()
                if cut:
                    self._break()
                    return
            time.sleep(0.005)
