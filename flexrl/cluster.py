"""A cluster by the official client: asked again while it does not answer, checked, and given a sweep's Job once."""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config import kube_config
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
    *((verb, "", "configmaps") for verb in ("create", "get", "patch")),
    *((verb, "", "pods") for verb in ("list", "watch")),
    ("get", "", "pods/log"),
    ("list", "", "resourcequotas"),
)
RIGHTS_TO_FETCH = (("create", "", "pods"), ("get", "", "pods"), ("delete", "", "pods"), ("create", "", "pods/exec"))
RIGHTS_TO_LOOK = tuple(right for right in RIGHTS if right[0] in ("get", "list", "watch"))
COUNTED = ("pods", "count/pods", "configmaps", "count/configmaps", "count/jobs.batch")  # what a sweep needs one of at least
FORBIDDEN = (401, 403)  # HTTP statuses
PASSING = (429, 500, 502, 503, 504)  # HTTP statuses after which the same request may succeed
NO_ANSWER = (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)
BROKEN_TLS = 0  # the status that the client gives an answer that never came, as the encryption failed
DISTRUST = re.compile(r"certificate verify failed[^('\"]*|certificate[^('\"]*expired[^('\"]*", re.IGNORECASE)
# what reading a kubeconfig raises if it is not there, is no YAML, or is none that the client understands
NO_KUBECONFIG = (ConfigException, OSError, yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError)
REQUEST_TIMEOUT = (5.0, 30.0)  # s: to connect, to answer


def connect(context: str | None = None, patience: float = 300.0) -> Cluster:
    """The kubeconfig's cluster of that context, or of its current one (or the pod's own); UserError if there is none."""
    asked = client.Configuration()
    asked.retries = False  # `Cluster.call` tries again, and counts
    try:
        config.load_kube_config(context=context, client_configuration=asked)
        return Cluster(client.ApiClient(asked), context=context, patience=patience)
    except NO_KUBECONFIG as error:
        if isinstance(error, ConfigException):
            try:
                config.load_incluster_config(client_configuration=asked)
                return Cluster(client.ApiClient(asked), context=context, patience=patience)
            except ConfigException:
                pass  # nor is this a pod
        raise UserError(
            f"no cluster: {_why_no_kubeconfig(error)}; make cluster-up starts one here, make kubeconfig names GKE's"
        ) from None


def context_of(target: Target) -> str | None:
    """The kubeconfig's context for the target: what `make cluster-up` or `make kubeconfig` made, else its current one, told.

    Null without a kubeconfig.
    """
    made = KIND_CONTEXT
    if target == "gke":
        made = GKE_CONTEXT.read_text(encoding="utf-8").strip() if GKE_CONTEXT.is_file() else ""
    if made and is_known(made):
        return made
    try:
        _, current = config.list_kube_config_contexts()
    except NO_KUBECONFIG:
        return None  # `connect` tells
    print(f"cluster: {current['name']}, kubectl's current context", file=sys.stderr)
    return str(current["name"])


def is_known(context: str) -> bool:
    """Whether the kubeconfig, which need not have a current one, has this context; UserError if it cannot be read."""
    try:
        merged = kube_config.KubeConfigMerger(kube_config.KUBE_CONFIG_DEFAULT_LOCATION).config
        return merged is not None and context in {node.value["name"] for node in merged.value["contexts"]}
    except ConfigException:
        return False  # it is empty
    except NO_KUBECONFIG as error:
        raise UserError(f"no cluster: {_why_no_kubeconfig(error)}; mend it, or name another in KUBECONFIG") from None


def _why_no_kubeconfig(error: Exception) -> str:
    """In one line."""
    if isinstance(error, ConfigException):
        return " ".join(str(error).split())
    return f"the kubeconfig cannot be read ({' '.join(f'{type(error).__name__}: {error}'.split())})"


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
        """What the server answers; tried again after 429, 5xx, conflicts and broken connections, each time after a longer wait.

        ApiException for other refusals, UserError if its certificate is not trusted, Failed when the patience is over.
        """
        begin, waited, wait = time.monotonic(), 0.0, 0.2
        while True:
            try:
                return ask(*arguments, **options, _request_timeout=REQUEST_TIMEOUT)
            except ApiException as error:
                distrust = DISTRUST.search(str(error.reason)) if error.status == BROKEN_TLS else None
                if distrust is not None:
                    said = " ".join(distrust[0].split())
                    how = "make kubeconfig (GKE) or kind export kubeconfig --name flex-rl (Kind) writes its kubeconfig anew"
                    raise UserError(f"{self.api.configuration.host}: is not trusted ({said}); {how}") from None
                if not is_passing(error):
                    raise
                asked = (error.headers or {}).get("Retry-After", "")
                why, pause = _status_of(error), float(asked) if str(asked).isdecimal() else wait
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

    def check(self, jobs: Sequence[TrialJob] = (), fetches: bool = False) -> None:
        """UserError if the cluster cannot be reached, has no such namespace, forbids it, or could never fit a pod of `jobs`.

        `fetches`: what they come to is fetched later, which wants rights of its own.
        """
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
        self._check_rights((*(RIGHTS if jobs else RIGHTS_TO_LOOK), *(RIGHTS_TO_FETCH if fetches else ())))
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
        new = []
        for job in jobs:
            self._create(*self._config_maps, job.config_map)
        for job in jobs:
            made, is_new = self._create(*self._jobs, job.job)
            self._bind(job, made["metadata"]["uid"])
            if is_new:
                new.append(job.name)
        return new

    @property
    def _config_maps(self) -> tuple[Any, Any, Any]:
        return self.core.create_namespaced_config_map, self.core.read_namespaced_config_map, client.V1ConfigMap

    @property
    def _jobs(self) -> tuple[Any, Any, Any]:
        return self.batch.create_namespaced_job, self.batch.read_namespaced_job, client.V1Job

    def _bind(self, job: TrialJob, uid: str) -> None:
        """Makes the trials the Job's own, so that they go when it does: the same however often it is done.

        They may belong to an earlier Job of the name, and be removed for it just now: then they are created again.
        """
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job.name, "uid": uid}
        change, patch = {"metadata": {"ownerReferences": [owner]}}, self.core.patch_namespaced_config_map
        for is_last in (False, True):
            try:
                self.call(patch, job.name, self.namespace, change, _content_type="application/merge-patch+json")
                return
            except ApiException as error:
                if error.status in FORBIDDEN:
                    raise self._forbidden(error) from None
                if error.status != 404 or is_last:
                    raise UserError(f"ConfigMap {job.name}: refused: {why_of(error)}") from None
                self._create(*self._config_maps, job.config_map)

    def _create(self, create: Any, read: Any, model: Any, manifest: Manifest) -> tuple[dict[str, Any], bool]:
        """Creates it; what is there then, and whether it is new.

        A connection that breaks may have created it all the same, which the next try is told (409). What was there may be
        gone when it is read: then it is created after all.
        """
        name, begin, waited = manifest["metadata"]["name"], time.monotonic(), 0.0
        while True:
            try:
                return self.tree(self.call(create, self.namespace, model.from_dict(manifest))), True
            except ApiException as error:
                if error.status != 409:
                    raise UserError(f"{manifest['kind']} {name}: refused: {why_of(error)}") from None
                why = why_of(error)
            try:
                found = self.look(read, name, self.namespace)
            except ApiException as error:
                if error.status != 404:
                    raise
            else:
                if _digest(found) != _digest(manifest):
                    raise UserError(
                        f"{manifest['kind']} {name}: is there already, of other trials; delete it, or rename the sweep"
                    )
                return found, False
            if max(waited, time.monotonic() - begin) > self.patience:
                raise Failed(f"{manifest['kind']} {name}: cannot be created ({why}); the same command goes on")
            self.sleep(1.0)
            waited += 1.0

    def has(self, job: TrialJob) -> bool:
        """Whether that very Job is there, over or not."""
        try:
            found = self.read(job)
        except ApiException as error:
            if error.status == 404:
                return False
            raise
        return _digest(found) == _digest(job.job)

    def read(self, job: TrialJob) -> dict[str, Any]:
        """The Job of that name, as it stands; ApiException (404) if there is none."""
        return self.look(self.batch.read_namespaced_job, job.name, self.namespace)

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


def is_passing(error: ApiException) -> bool:
    """Whether the same request may succeed later.

    One of them is a 409 that is no 'AlreadyExists': two have changed the same thing at once, a quota's count say.
    """
    conflict = error.status == 409 and _said(error).get("reason") == "Conflict"
    return error.status in (BROKEN_TLS, *PASSING) or conflict


def why_of(error: ApiException) -> str:
    """What the server says, in one line."""
    return " ".join(str(_said(error).get("message") or f"HTTP {error.status} {error.reason}").split())


def _status_of(error: ApiException) -> str:
    return f"HTTP {error.status}" if error.status != BROKEN_TLS else " ".join(str(error.reason).split())


def _said(error: ApiException) -> dict[str, Any]:
    try:
        return dict(json.loads(error.body))
    except (ValueError, TypeError):
        return {}


def _digest(manifest: Mapping[str, Any]) -> str | None:
    """Of the trials that a Job or its ConfigMap is of."""
    return (manifest["metadata"].get("annotations") or {}).get(DIGEST)


def _amount(quantity: str) -> float:
    try:
        return cpus(quantity) if quantity.endswith("m") else num_bytes(quantity)
    except (ValueError, KeyError):
        return float("inf")  # a form that nobody writes, such as 1e3: it forbids nothing here, the server judges it
