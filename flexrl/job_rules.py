"""What the Kubernetes API server refuses about a Job though its schema allows it, as one line each.

After the server's own validation (pkg/apis/batch/validation of Kubernetes 1.36), the documentation of Jobs, and what
PodSecurity's profile `restricted`, which the namespace enforces, says of pods such as ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
IMMUTABLE = re.compile(r"@sha256:[0-9a-f]{64}$|:sha256-[0-9a-f]{12,64}$")  # the second is what `make load-image` tags
VOLUMES = ("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret")
MAX_PARALLELISM = 100_000
MAX_RULES = 20
ACTIONS = ("FailJob", "FailIndex", "Ignore", "Count")


def is_immutable(image: str) -> bool:
    """Whether the image's name holds its digest, so that it cannot become another."""
    return IMMUTABLE.search(image) is not None


def problems(job: Mapping[str, Any]) -> list[str]:
    """Everything that the server would refuse, or that would not do what it seems to; empty if there is nothing."""
    pod = job["spec"]["template"]["spec"]
    return [*_of_indexes(job), *_of_failure_policy(job), *_of_pods(job), *of_security(pod)]


def _of_indexes(job: Mapping[str, Any]) -> Iterator[str]:
    spec = job["spec"]
    indexed, completions = spec.get("completionMode") == "Indexed", spec.get("completions")
    parallelism = spec.get("parallelism", 1)
    if indexed and not isinstance(completions, int):
        yield "spec.completions: an Indexed Job says how many"
    for key in ("backoffLimitPerIndex", "maxFailedIndexes"):
        if key in spec and not indexed:
            yield f"spec.{key}: only an Indexed Job has it"
    if "backoffLimitPerIndex" in spec and spec["template"]["spec"].get("restartPolicy") != "Never":
        yield "spec.backoffLimitPerIndex: needs restartPolicy: Never, as what it counts are pods"
    if "maxFailedIndexes" in spec and "backoffLimitPerIndex" not in spec:
        yield "spec.maxFailedIndexes: needs backoffLimitPerIndex"
    if isinstance(completions, int):
        if spec.get("maxFailedIndexes", 0) > completions:
            yield f"spec.maxFailedIndexes: is more than the {completions} completions"
        if (
            completions > MAX_PARALLELISM
            and "backoffLimitPerIndex" in spec
            and not 0 <= spec.get("maxFailedIndexes", -1) <= 10_000
        ):
            yield "spec.maxFailedIndexes: must be at most 10,000 with more than 100,000 completions"
    if indexed and isinstance(parallelism, int) and parallelism > MAX_PARALLELISM:
        yield f"spec.parallelism: is more than {MAX_PARALLELISM:,}"
    host = (
        f"{job['metadata']['name']}-{completions - 1}" if indexed and isinstance(completions, int) else job["metadata"]["name"]
    )
    if not DNS_LABEL.fullmatch(host):
        yield f"metadata.name: its last pod's host name '{host}' is no DNS label (lower case, at most 63)"


def _of_failure_policy(job: Mapping[str, Any]) -> Iterator[str]:
    spec = job["spec"]
    policy, pod = spec.get("podFailurePolicy"), spec["template"]["spec"]
    if policy is None:
        return
    if pod.get("restartPolicy") != "Never":
        yield "spec.podFailurePolicy: needs restartPolicy: Never, as what it judges are pods that have ended"
    if spec.get("podReplacementPolicy", "Failed") != "Failed":
        yield "spec.podReplacementPolicy: only Failed goes with podFailurePolicy"
    rules = policy.get("rules", [])
    if len(rules) > MAX_RULES:
        yield f"spec.podFailurePolicy.rules: more than {MAX_RULES}"
    names = {container["name"] for kind in ("containers", "initContainers") for container in pod.get(kind, [])}
    for i, rule in enumerate(rules):
        where = f"spec.podFailurePolicy.rules[{i}]"
        if rule.get("action") not in ACTIONS:
            yield f"{where}.action: expected one of {', '.join(ACTIONS)}"
        if rule.get("action") == "FailIndex" and "backoffLimitPerIndex" not in spec:
            yield f"{where}.action: FailIndex needs backoffLimitPerIndex"
        if ("onExitCodes" in rule) == ("onPodConditions" in rule):
            yield f"{where}: exactly one of onExitCodes and onPodConditions"
        codes = rule.get("onExitCodes")
        if codes is not None:
            yield from _of_exit_codes(codes, names, f"{where}.onExitCodes")
        for condition in rule.get("onPodConditions", []):
            if condition.get("status", "True") not in ("True", "False", "Unknown"):
                yield f'{where}.onPodConditions: the status is text: "True"'


def _of_exit_codes(codes: Mapping[str, Any], names: set[str], where: str) -> Iterator[str]:
    values = codes.get("values", [])
    if codes.get("operator") == "In" and 0 in values:
        yield f"{where}.values: 0 is no failure"
    if list(values) != sorted(set(values)):
        yield f"{where}.values: must rise, each once"
    if not 1 <= len(values) <= 255:
        yield f"{where}.values: 1 to 255 of them"
    if "containerName" in codes and codes["containerName"] not in names:
        yield f"{where}.containerName: there is no container '{codes['containerName']}'"


def _of_pods(job: Mapping[str, Any]) -> Iterator[str]:
    pod = job["spec"]["template"]["spec"]
    if pod.get("restartPolicy") not in ("Never", "OnFailure"):
        yield "spec.template.spec.restartPolicy: a Job's pods have Never or OnFailure"
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    for container in [*pod.get("containers", []), *pod.get("initContainers", [])]:
        where = f"container '{container['name']}'"
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{where}: volumeMounts: there is no volume '{mount['name']}'"
        resources = container.get("resources", {})
        for name in ("cpu", "memory"):
            if name not in resources.get("requests", {}):
                yield f"{where}: resources.requests.{name}: quotas and queues count what a pod asks for; say how much"
        for kind in ("requests", "limits"):
            for name, quantity in resources.get(kind, {}).items():
                if not isinstance(quantity, str):
                    yield f'{where}: resources.{kind}.{name}: quantities are text, such as "{quantity}"'
        if "nvidia.com/gpu" in resources.get("requests", {}) and "nvidia.com/gpu" not in resources.get("limits", {}):
            yield f"{where}: nvidia.com/gpu: is set as a limit; the request follows"
        if not is_immutable(container.get("image", "")):
            yield f"{where}: image: without a digest it may become another"


def of_security(pod: Mapping[str, Any]) -> Iterator[str]:
    """What PodSecurity's profile `restricted` refuses of pods such as ours, and, stricter, roots that can be written."""
    own = pod.get("securityContext", {})
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield f"{name}: a pod has nothing of its machine's"
    for volume in pod.get("volumes", []):
        for kind in sorted(set(volume) - {"name", *VOLUMES}):
            yield f"volume '{volume['name']}': {kind}: only {', '.join(VOLUMES)}"
    for container in [*pod.get("containers", []), *pod.get("initContainers", [])]:
        where, context = f"container '{container['name']}'", container.get("securityContext", {})
        both = {**own, **context}
        if not both.get("runAsNonRoot") or both.get("runAsUser") == 0:
            yield f"{where}: securityContext.runAsNonRoot: must be true, and runAsUser not 0"
        if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{where}: securityContext.seccompProfile: must be RuntimeDefault"
        if context.get("privileged"):
            yield f"{where}: securityContext.privileged: must not be"
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{where}: securityContext.allowPrivilegeEscalation: must be false"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{where}: securityContext.capabilities: must drop ALL, and add none"
        if not context.get("readOnlyRootFilesystem"):
            yield f"{where}: securityContext.readOnlyRootFilesystem: must be true"
