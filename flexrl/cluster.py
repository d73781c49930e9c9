"""A cluster by the official client: asked again while it does not answer, checked, and given a sweep's Job once."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from flexrl.config import UserError
from flexrl.job_manifests import Manifest, Target, TrialJob, cpus, num_bytes
from flexrl.runs import Failed
from flexrl.sweeps import ROOT

NAMESPACE = "flex-rl"
KIND_CONTEXT = "kind-flex-rl"  # what `kind create cluster --name flex-rl` calls it
GKE_CONTEXT = ROOT / "workspace" / ".gke_context"  # where `make kubeconfig` notes what gcloud has called it
DIGEST = "flex-rl/sweep-digest"
RIGHTS = (  # of the submitter, each a verb, an API group and a resource: k8s/access.yaml
    *((verb, "batch", "jobs") for verb in ("create", "get", "list")),
    *((verb, "", "configmaps") for verb in ("create", "get")),
    *((verb, "", "pods") for verb in ("list", "watch")),
    ("get", "", "pods/log"),
    ("list", "", "resourcequotas"),
)
RIGHTS_TO_LOOK = tuple(right for right in RIGHTS if right[0] in ("get", "list", "watch"))
COUNTED = ("pods", "count/pods", "configmaps", "count/configmaps", "count/jobs.batch")  # what a sweep needs one of at least
FORBIDDEN = (401, 403)  # HTTP statuses
PASSING = (429, 500, 502, 503, 504)  # HTTP statuses after which the same request may succeed
NO_ANSWER = (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)
REQUEST_TIMEOUT = (5.0, 30.0)  # s: to connect, to answer


def connect(context: str | None = None, patience: float = 300.0) -> Cluster:
    """The kubeconfig's cluster of that context, or of its current one (or the pod's own); UserError if there is none."""
    asked = client.Configuration()
    asked.retries = False  # `Cluster.call` tries again, and counts
    try:
        config.load_kube_config(context=context, client_configuration=asked)
    except (ConfigException, OSError) as error:
        try:
            config.load_incluster_config(client_configuration=asked)
        except ConfigException:
            why = " ".join(str(error).split())
            raise UserError(f"no cluster: {why}; make cluster-up starts one here, make kubeconfig names GKE's") from None
    return Cluster(client.ApiClient(asked), context=context, patience=patience)


def context_of(target: Target) -> str | None:
    """The kubeconfig's context for the target: what `make cluster-up` or `make kubeconfig` made, else its current one, told.

    Null without a kubeconfig.
    """
    try:
        contexts, current = config.list_kube_config_contexts()
    except (ConfigException, OSError):
        return None  # `connect` tells
    made = KIND_CONTEXT
    if target == "gke":
        made = GKE_CONTEXT.read_text(encoding="utf-8").strip() if GKE_CONTEXT.is_file() else ""
    if made in {context["name"] for context in contexts}:
        return made
    print(f"cluster: {current['name']}, kubectl's current context", file=sys.stderr)
    return str(current["name"])


@dataclass
class Cluster:
    """One namespace of a cluster, asked again while it does not answer."""

    api: client.ApiClient
    namespace: str = NAMESPACE
    context: str | None = None  # of the kubeconfig; null: its current one
    patience: float = 300.0  # s that a request is tried again for
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        self.batch, self.core = client.BatchV1Api(self.api), client.CoreV1Api(self.api)
        self.authorization = client.AuthorizationV1Api(self.api)

    def call(self, ask: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What the server answers; tried again after 429, 5xx and broken connections, each time after a longer wait.

        ApiException for other refusals, Failed when the patience is over.
        """
        begin, waited, wait = time.monotonic(), 0.0, 0.2
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
            waited = max(waited, time.monotonic() - begin)
            if waited + pause > self.patience:
                raise Failed(f"the cluster does not answer ({why}) for {waited:.0f} s; the same command goes on")
            pause *= 0.75 + 0.5 * random.random()  # so that many clients do not come back together
            self.sleep(pause)
            waited, wait = waited + pause, min(wait * 2, 20.0)

    def look(self, ask: Callable[..., Any], *arguments: Any, **options: Any) -> dict[str, Any]:
        """What the server answers, as plain values; UserError if it does not let one look."""
        try:
            return self.tree(self.call(ask, *arguments, **options))
        except ApiException as error:
            if error.status in FORBIDDEN:
                raise self._forbidden(error) from None
            raise

    def _forbidden(self, error: ApiException) -> UserError:
        return UserError(f"namespace {self.namespace}: forbidden ({why_of(error)}); ask for the rights of k8s/access.yaml")

    def tree(self, answer: Any) -> dict[str, Any]:
        """An answer as plain values, by the names of the API."""
        return dict(self.api.sanitize_for_serialization(answer))

    def check(self, jobs: Sequence[TrialJob] = ()) -> None:
        """UserError if the cluster cannot be reached, has no such namespace, forbids it, or could never fit a pod of `jobs`."""
        impatient = replace(self, patience=min(self.patience, 10.0))
        try:
            impatient.call(self.core.read_namespaced_service_account, "flex-rl-train", self.namespace)
        except Failed as error:
            host = self.api.configuration.host
            raise UserError(f"{host}: {str(error).partition(';')[0]}; is it up? kubectl cluster-info says more") from None
        except ApiException as error:
            if error.status in FORBIDDEN:
                raise self._forbidden(error) from None
            if error.status == 404:
                files = "k8s/namespace.yaml -f k8s/access.yaml"
                raise UserError(
                    f"namespace {self.namespace}: is not set up ({why_of(error)}); kubectl apply -f {files}"
                ) from None
            raise
        self._check_rights(RIGHTS if jobs else RIGHTS_TO_LOOK)
        for job in jobs:
            self._check_quota(job)

    def _check_rights(self, rights: Sequence[tuple[str, str, str]]) -> None:
        for verb, group, resource in rights:
            kind, _, part = resource.partition("/")
            asked = {"namespace": self.namespace, "verb": verb, "group": group, "resource": kind, "subresource": part}
            review = client.V1SelfSubjectAccessReview.from_dict({"spec": {"resourceAttributes": asked}})
            answer = self.tree(self.call(self.authorization.create_self_subject_access_review, review))
            if not answer["status"]["allowed"]:
                raise UserError(
                    f"namespace {self.namespace}: you may not {verb} {resource}; ask for the rights of k8s/access.yaml"
                )

    def _check_quota(self, job: TrialJob) -> None:
        requests, limits = job.container["resources"]["requests"], job.container["resources"]["limits"]
        asked = {**requests, **dict.fromkeys(COUNTED, "1"), **{f"limits.{name}": limit for name, limit in limits.items()}}
        asked |= {f"requests.{name}": quantity for name, quantity in {**requests, **limits}.items()}
        for quota in self.look(self.core.list_namespaced_resource_quota, self.namespace).get("items", []):
            for name, limit in quota.get("spec", {}).get("hard", {}).items():
                if name in asked and _amount(asked[name]) > _amount(limit):
                    raise UserError(
                        f"resources: a trial wants {name} {asked[name]}, the quota of {self.namespace} allows {limit}"
                    )
                if name in ("limits.cpu", "limits.memory") and name not in asked:
                    raise UserError(
                        f"resources: the quota of {self.namespace} counts {name}, and so refuses a trial, which has none; "
                        "take that line out of the quota, or add a LimitRange that gives pods one"
                    )

    def submit(self, jobs: Sequence[TrialJob]) -> list[str]:
        """Creates the Jobs of a sweep unless they are there; the names of the new ones.

        UserError if another Job of this sweep still runs.
        """
        names, sweep = [job.name for job in jobs], jobs[0].job["metadata"]["labels"]["flex-rl/sweep"]
        there = self.look(self.batch.list_namespaced_job, self.namespace, label_selector=f"flex-rl/sweep={sweep}")
        for other in there.get("items", []):
            running = other["metadata"]["name"]
            if running not in names and other["metadata"]["labels"].get("flex-rl/sweep") == sweep and over(other) is None:
                raise UserError(f"{sweep}: runs already, as {running}; wait for it, or submit_sweep.py cancel {sweep} first")
        core, batch = self.core, self.batch
        for job in jobs:
            self._create(core.create_namespaced_config_map, core.read_namespaced_config_map, job.config_map, client.V1ConfigMap)
        return [
            job.name
            for job in jobs
            if self._create(batch.create_namespaced_job, batch.read_namespaced_job, job.job, client.V1Job)
        ]

    def _create(self, create: Any, read: Any, manifest: Manifest, model: Any) -> bool:
        """Creates it; a connection that breaks may have created it all the same, which the next try is told (409)."""
        name = manifest["metadata"]["name"]
        try:
            self.call(create, self.namespace, model.from_dict(manifest))
        except ApiException as error:
            if error.status != 409:
                raise UserError(f"{manifest['kind']} {name}: refused: {why_of(error)}") from None
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

    def has(self, job: TrialJob) -> bool:
        """Whether that very Job is there, over or not."""
        try:
            found = self.look(self.batch.read_namespaced_job, job.name, self.namespace)
        except ApiException as error:
            if error.status == 404:
                return False
            raise
        return bool((found["metadata"].get("annotations") or {}).get(DIGEST) == job.job["metadata"]["annotations"][DIGEST])

    def cancel(self, sweep: str) -> list[str]:
        """Ends all Jobs of a sweep, their pods included, and removes the trials of all its Jobs; the names of those Jobs."""
        names = self._delete_all(self.batch.list_namespaced_job, self.batch.delete_namespaced_job, sweep)
        self._delete_all(self.core.list_namespaced_config_map, self.core.delete_namespaced_config_map, sweep)
        return names

    def _delete_all(self, find: Callable[..., Any], delete: Callable[..., Any], sweep: str) -> list[str]:
        names = []
        for found in self.look(find, self.namespace, label_selector=f"flex-rl/sweep={sweep}")["items"]:
            name = found["metadata"]["name"]
            if found["metadata"]["labels"].get("flex-rl/sweep") != sweep:
                continue
            try:
                self.look(delete, name, self.namespace, propagation_policy="Background")
            except ApiException as error:
                if error.status != 404:  # gone already
                    raise
            names.append(name)
        return names


def over(job: Mapping[str, Any]) -> str | None:
    """'Complete' or 'Failed' if the Job is; null while it goes on."""
    for condition in job.get("status", {}).get("conditions") or []:
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return str(condition["type"])
    return None


def why_of(error: ApiException) -> str:
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
