"""A sweep's Job on Kubernetes: submitted once, followed until it is over, its logs kept, by the official client."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import urllib3
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from flexrl import exit_codes
from flexrl.config import UserError
from flexrl.job_manifests import Manifest, action_of, cpus, num_bytes
from flexrl.provenance import now
from flexrl.runs import Failed
from flexrl.sweep_ledger import OVER, Attempt, Ledger, Status

NAMESPACE = "flex-rl"
DIGEST = "flex-rl/sweep-digest"
JOB_LABEL, INDEX_LABEL = "batch.kubernetes.io/job-name", "batch.kubernetes.io/job-completion-index"
RIGHTS = (  # of the submitter, each a verb, an API group and a resource: k8s/access.yaml
    *((verb, "batch", "jobs") for verb in ("create", "get", "list")),
    *((verb, "", "configmaps") for verb in ("create", "get")),
    *((verb, "", "pods") for verb in ("list", "watch")),
    ("get", "", "pods/log"),
    ("list", "", "resourcequotas"),
)
PASSING = (429, 500, 502, 503, 504)  # HTTP statuses after which the same request may succeed
NO_ANSWER = (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)
REQUEST_TIMEOUT = (5.0, 30.0)  # s: to connect, to answer
WATCH_SECONDS = 20.0
LOG_LINES = 100_000  # of an attempt's log that are kept at most, the last ones
LOG_PATIENCE = 10.0  # s: a machine that is taken away answers with 500 for good


def connect(context: str | None = None) -> client.ApiClient:
    """A client of the kubeconfig's cluster (or of the pod's own); UserError if there is none."""
    try:
        return config.new_client_from_config(context=context)
    except (ConfigException, OSError) as error:
        try:
            config.load_incluster_config()
        except ConfigException:
            why = " ".join(str(error).split())
            raise UserError(f"no cluster: {why}; make cluster-up starts one here, make kubeconfig names GKE's") from None
        return client.ApiClient()


@dataclass
class Cluster:
    """One namespace of a cluster, asked again while it does not answer."""

    api: client.ApiClient
    namespace: str = NAMESPACE
    patience: float = 300.0  # s that a request is tried again for
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        self.batch, self.core = client.BatchV1Api(self.api), client.CoreV1Api(self.api)
        self.authorization = client.AuthorizationV1Api(self.api)

    def call(self, ask: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What the server answers; tried again after 429, 5xx and broken connections, each time after a longer wait.

        ApiException for other refusals, Failed when the patience is over.
        """
        waited, wait = 0.0, 0.2
        while True:
            try:
                return ask(*arguments, **options, _request_timeout=REQUEST_TIMEOUT)
            except ApiException as error:
                if error.status not in PASSING:
                    raise
                asked = (error.headers or {}).get("Retry-After", "")
                why, pause = f"HTTP {error.status}", float(asked) if str(asked).isdecimal() else wait
            except NO_ANSWER as error:
                why, pause = type(error).__name__, wait
            if waited + pause > self.patience:
                raise Failed(f"the cluster does not answer ({why}) for {waited:.0f} s; the same command goes on")
            pause *= 0.75 + 0.5 * random.random()  # so that many clients do not come back together
            self.sleep(pause)
            waited, wait = waited + pause, min(wait * 2, 20.0)

    def tree(self, answer: Any) -> dict[str, Any]:
        """An answer as plain values, by the names of the API."""
        return dict(self.api.sanitize_for_serialization(answer))

    def check(self, job: Manifest) -> None:
        """UserError if the cluster cannot be reached, has no such namespace, forbids it, or could never fit a pod."""
        impatient = Cluster(self.api, self.namespace, min(self.patience, 10.0), self.sleep)
        try:
            impatient.call(self.core.read_namespaced_service_account, "flex-rl-train", self.namespace)
        except Failed as error:
            host = self.api.configuration.host
            raise UserError(f"{host}: {str(error).partition(';')[0]}; is it up? kubectl cluster-info says more") from None
        except ApiException as error:
            if error.status in (401, 403):
                raise UserError(
                    f"namespace {self.namespace}: forbidden ({_why(error)}); ask for the rights of k8s/access.yaml"
                ) from None
            if error.status == 404:
                files = "k8s/namespace.yaml -f k8s/access.yaml"
                raise UserError(
                    f"namespace {self.namespace}: is not set up ({_why(error)}); kubectl apply -f {files}"
                ) from None
            raise
        self._check_rights()
        self._check_quota(job)

    def _check_rights(self) -> None:
        for verb, group, resource in RIGHTS:
            kind, _, part = resource.partition("/")
            asked = {"namespace": self.namespace, "verb": verb, "group": group, "resource": kind, "subresource": part}
            review = client.V1SelfSubjectAccessReview.from_dict({"spec": {"resourceAttributes": asked}})
            answer = self.tree(self.call(self.authorization.create_self_subject_access_review, review))
            if not answer["status"]["allowed"]:
                raise UserError(
                    f"namespace {self.namespace}: you may not {verb} {resource}; ask for the rights of k8s/access.yaml"
                )

    def _check_quota(self, job: Manifest) -> None:
        wanted = job["spec"]["template"]["spec"]["containers"][0]["resources"]
        asked = {f"requests.{name}": quantity for name, quantity in {**wanted["requests"], **wanted["limits"]}.items()}
        for quota in self.tree(self.call(self.core.list_namespaced_resource_quota, self.namespace)).get("items", []):
            for name, limit in quota.get("spec", {}).get("hard", {}).items():
                if name in asked and _amount(asked[name]) > _amount(limit):
                    raise UserError(
                        f"resources: a trial wants {name} {asked[name]}, the quota of {self.namespace} allows {limit}"
                    )

    def submit(self, job: Manifest, config_map: Manifest) -> bool:
        """Creates both unless they are there; whether the Job is new. UserError if another Job of this sweep still runs."""
        name, sweep = job["metadata"]["name"], job["metadata"]["labels"]["flex-rl/sweep"]
        jobs = self.tree(self.call(self.batch.list_namespaced_job, self.namespace, label_selector=f"flex-rl/sweep={sweep}"))
        for other in jobs.get("items", []):
            same = other["metadata"]["name"] == name
            if not same and other["metadata"]["labels"].get("flex-rl/sweep") == sweep and _over(other) is None:
                running = other["metadata"]["name"]
                raise UserError(f"{sweep}: runs already, as {running}; wait for it, or submit_sweep.py cancel {sweep} first")
        self._create(
            self.core.create_namespaced_config_map, self.core.read_namespaced_config_map, config_map, client.V1ConfigMap
        )
        return self._create(self.batch.create_namespaced_job, self.batch.read_namespaced_job, job, client.V1Job)

    def _create(self, create: Any, read: Any, manifest: Manifest, model: Any) -> bool:
        """Creates it; a connection that breaks may have created it all the same, which the next try is told (409)."""
        name = manifest["metadata"]["name"]
        try:
            self.call(create, self.namespace, model.from_dict(manifest))
        except ApiException as error:
            if error.status != 409:
                raise UserError(f"{manifest['kind']} {name}: refused: {_why(error)}") from None
            found = self.tree(self.call(read, name, self.namespace))
            same = (found["metadata"].get("annotations") or {}).get(DIGEST) == manifest["metadata"].get("annotations", {}).get(
                DIGEST
            )
            if not same:
                raise UserError(
                    f"{manifest['kind']} {name}: is there already, of other trials; delete it, or rename the sweep"
                ) from None
            return False
        return True

    def has(self, job: Manifest) -> bool:
        """Whether that very Job is there, over or not."""
        try:
            found = self.tree(self.call(self.batch.read_namespaced_job, job["metadata"]["name"], self.namespace))
        except ApiException as error:
            if error.status == 404:
                return False
            raise
        return bool((found["metadata"].get("annotations") or {}).get(DIGEST) == job["metadata"]["annotations"][DIGEST])

    def cancel(self, sweep: str) -> list[str]:
        """Ends all Jobs of a sweep, their pods included, and removes their trials; their names."""
        names = []
        for job in self.tree(
            self.call(self.batch.list_namespaced_job, self.namespace, label_selector=f"flex-rl/sweep={sweep}")
        )["items"]:
            name = job["metadata"]["name"]
            if job["metadata"]["labels"].get("flex-rl/sweep") != sweep:
                continue
            for delete in (self.batch.delete_namespaced_job, self.core.delete_namespaced_config_map):
                try:
                    self.call(delete, name, self.namespace, propagation_policy="Background")
                except ApiException as error:
                    if error.status != 404:  # gone already
                        raise
            names.append(name)
        return names


@dataclass
class Follower:
    """Keeps the ledger true to what the cluster does, until the Job is over."""

    cluster: Cluster
    job: Manifest
    trials: Sequence[str]  # id of each index
    ledger: Ledger
    # called after each look
    show: Callable[[], None] = lambda: None
    _statuses: dict[str, Status] = field(default_factory=dict)
    _is_interrupted: bool = False

    def run(self) -> str:
        """Until the Job is over: 'Complete' or 'Failed'; Failed (the exception) if it is gone before.

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
        self._statuses = {key: self.ledger.status(key) for key in self.trials}
        name = self.job["metadata"]["name"]
        while True:
            if self._is_interrupted:
                raise KeyboardInterrupt
            try:
                job = self.cluster.tree(self.cluster.call(self.cluster.batch.read_namespaced_job, name, self.cluster.namespace))
            except ApiException as error:
                if error.status == 404:
                    raise Failed(f"Job {name}: is gone; somebody deleted it; submit the sweep again") from None
                raise
            pods = self._list_pods(name)
            for pod in sorted(pods["items"], key=lambda pod: str(pod["metadata"].get("creationTimestamp"))):
                self._note_pod(pod)
                self._peek(pod)
            self._note_vanished({pod["metadata"]["name"] for pod in pods["items"]})
            self._note_job(job)
            self.show()
            over = _over(job)
            if over is not None:
                return over
            for pod in self._watch_pods(name, pods["metadata"].get("resourceVersion")):
                self._note_pod(pod)
                self.show()

    def _list_pods(self, name: str) -> dict[str, Any]:
        selector = f"{JOB_LABEL}={name}"
        return self.cluster.tree(
            self.cluster.call(self.cluster.core.list_namespaced_pod, self.cluster.namespace, label_selector=selector)
        )

    def _watch_pods(self, name: str, version: str | None) -> Iterator[dict[str, Any]]:
        """Pods as they change, for a while; a watch that breaks ends early, and the next look lists them all again."""
        seconds = min(WATCH_SECONDS, self.cluster.patience)
        try:
            for event in watch.Watch().stream(
                self.cluster.core.list_namespaced_pod,
                self.cluster.namespace,
                label_selector=f"{JOB_LABEL}={name}",
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
        if labels.get(JOB_LABEL) != self.job["metadata"]["name"] or index is None:
            return
        key, name = self.trials[int(index)], pod["metadata"]["name"]
        status = self._statuses[key]
        attempt = next((a for a in status.attempts if a.pod == name), None)
        if attempt is None:
            attempt = Attempt(start=pod["metadata"].get("creationTimestamp") or now(), pod=name, is_logged=False)
            status.attempts.append(attempt)
            status.state = "running" if status.state not in OVER else status.state
            self.ledger.set_status(key, status)
        code = _exit(pod)
        if code is None or attempt.end is not None:
            return
        attempt.end, attempt.exit_code = now(), code
        disrupted = any(c["type"] == "DisruptionTarget" and c["status"] == "True" for c in pod["status"].get("conditions", []))
        attempt.how = "preempted" if disrupted and code != exit_codes.DONE else exit_codes.meaning_of(code).words
        attempt.counted = code != exit_codes.DONE and action_of(self.job["spec"], code, disrupted) == "Count"
        self._keep_log(key, attempt, pod)
        self.ledger.set_status(key, status)

    def _keep_log(self, key: str, attempt: Attempt, pod: Mapping[str, Any]) -> None:
        """What the pod printed, or, where it is gone, the end of it, which its status holds."""
        path = self.ledger.log_of(key, self._statuses[key].attempts.index(attempt))
        try:
            log = self._read_log(str(attempt.pod))
        except (ApiException, Failed) as error:
            last = "\n".join(state.get("message") or state.get("reason") or "" for state in _terminated(pod))
            earlier = path.read_text(encoding="utf-8") if path.is_file() else ""
            why = _why(error) if isinstance(error, ApiException) else str(error).partition(";")[0]
            log = f"{earlier}(its log cannot be read: {why}; the end of what it printed:)\n{last}\n"
        path.write_text(log, encoding="utf-8")
        attempt.is_logged = True

    def _peek(self, pod: Mapping[str, Any]) -> None:
        """What a pod has printed so far: if its machine is taken away, this is all that is left."""
        if pod.get("status", {}).get("phase") != "Running":
            return
        name, index = pod["metadata"]["name"], pod["metadata"]["labels"][INDEX_LABEL]
        key = self.trials[int(index)]
        number = next(i for i, attempt in enumerate(self._statuses[key].attempts) if attempt.pod == name)
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
                    attempt.end, attempt.how, attempt.is_logged = now(), "its pod vanished", True
                    with self.ledger.log_of(key, number).open("a", encoding="utf-8") as log:
                        log.write("(the pod vanished; what it printed after this is lost)\n")
                    self.ledger.set_status(key, status)

    def _note_job(self, job: Mapping[str, Any]) -> None:
        """Which trials are over, as the Job's controller counts them."""
        told = job.get("status", {})
        for key, index in zip(self.trials, range(len(self.trials)), strict=True):
            status = self._statuses[key]
            before = status.state
            codes = [attempt.exit_code for attempt in status.attempts]
            if index in indexes(told.get("completedIndexes")):
                status.state = "done"
            elif index in indexes(told.get("failedIndexes")):
                status.state = "refused" if codes and codes[-1] == exit_codes.USER_ERROR else "failed"
            elif any(attempt.end is None for attempt in status.attempts):
                status.state = "running"
            else:
                status.state = "waiting"
            if status.state != before:
                self.ledger.set_status(key, status)


def indexes(text: str | None) -> set[int]:
    """The numbers of '1,3-5'."""
    found: set[int] = set()
    for part in (text or "").split(","):
        if part:
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found


def _over(job: Mapping[str, Any]) -> str | None:
    """'Complete' or 'Failed' if the Job is; null while it goes on."""
    for condition in job.get("status", {}).get("conditions") or []:
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return str(condition["type"])
    return None


def _terminated(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return [status["state"]["terminated"] for status in statuses if "terminated" in status.get("state", {})]


def _exit(pod: Mapping[str, Any]) -> int | None:
    """The exit code of a pod that has ended; null while it goes on. A pod without one was killed."""
    if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
        return None
    codes = [int(state["exitCode"]) for state in _terminated(pod)]
    return codes[0] if codes else exit_codes.KILLED


def _why(error: ApiException) -> str:
    """What the server says, in one line."""
    try:
        return " ".join(str(json.loads(error.body)["message"]).split())
    except (ValueError, KeyError, TypeError):
        return f"HTTP {error.status} {error.reason}"


def _amount(quantity: str) -> float:
    try:
        return cpus(quantity) if quantity.endswith("m") else num_bytes(quantity)
    except (ValueError, KeyError):
        return float("inf")  # a form that nobody writes, such as 1e3: it forbids nothing here, the server judges it
