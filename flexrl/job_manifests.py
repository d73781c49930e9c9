"""A sweep's trials as Kubernetes manifests: the templates of k8s/, their holes filled as data."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from flexrl import exit_codes, job_rules, provenance, trial
from flexrl.config import UserError
from flexrl.rungs import Rungs
from flexrl.sweep_settings import ResourceSettings, SweepSettings
from flexrl.sweeps import ROOT, Trial

Target = Literal["local", "kind", "gke"]
Manifest = dict[str, Any]
TEMPLATES = ROOT / "k8s"
TRIALS_FILE = "trials.json.gz"
KIND_SHARE = 0.5  # of what a trial takes: Kind's own pods ask for 0.95 cores, and two trials are to fit on two
MAX_CONFIG_MAP = 1 << 20  # bytes, of etcd
UNITS = {
    "P": 10**15,
    "E": 10**18,
    "Pi": 2**50,
    "Ei": 2**60,
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
HOLE = re.compile(r"\$\{(\w+)\}")
SEEN_BY_PODS = ("workspace", "examples")  # folders of the image's /app that are as they are here: a volume, a copy
LOCAL_IMAGE = "localhost/flex-rl@sha256:" + "0" * 64  # what runs here is this folder


@dataclass(frozen=True)
class TrialJob:
    """Trials that take the same: their Job, what its pods read, and which trial each index is."""

    job: Manifest
    config_map: Manifest
    trials: tuple[str, ...]  # id of each index

    @property
    def name(self) -> str:
        """The Job's, and its ConfigMap's."""
        return str(self.job["metadata"]["name"])

    @property
    def spec(self) -> Manifest:
        """The Job's."""
        spec: Manifest = self.job["spec"]
        return spec

    @property
    def pod(self) -> Manifest:
        """What each of its pods is."""
        pod: Manifest = self.spec["template"]["spec"]
        return pod

    @property
    def container(self) -> Manifest:
        """What a pod runs."""
        container: Manifest = self.pod["containers"][0]
        return container

    @property
    def num_gpus(self) -> int:
        """That one of its trials takes."""
        return int(self.container["resources"]["limits"].get("nvidia.com/gpu", "0"))


def render(
    sweep: SweepSettings,
    trials: Sequence[Trial],
    target: Target,
    image: str | None = None,
    commit: str | None = None,
    num_attempts: int = 0,
    everyone: Sequence[Trial] | None = None,
) -> list[TrialJob]:
    """The Jobs that run these trials on the target, one for all that take the same; UserError if they do not fit.

    `num_attempts` that they have had already: trials that failed are run again by a Job of another name.
    `everyone`: all trials of the sweep, which they are judged with; null: these.
    `commit`: of the folder that they are submitted from; what their image was built from, its own label says.
    """
    image = image or LOCAL_IMAGE
    if target != "local":
        check_inputs(sweep, trials, target)
    if not job_rules.is_immutable(image):
        how = "make load-image prints its name" if target == "kind" else "NAME@sha256:..., which docker push prints"
        raise UserError(f"--image {image}: without a digest it may become another: {how}")
    groups: dict[str, list[Trial]] = {}
    for each in trials:
        groups.setdefault(each.resources.model_dump_json(), []).append(each)
    if target != "local" and sweep.parallelism < len(groups):  # here the runner counts over all of them
        kinds = f"its trials take {len(groups)} kinds of resources, each a Job that runs one at least"
        raise UserError(f"{sweep.name}: parallelism: {sweep.parallelism}, but {kinds}; write {len(groups)} or more")
    rungs = rungs_of(sweep, everyone or trials)
    shares = share_out(sweep.parallelism, [len(group) for group in groups.values()])
    return [
        _render(sweep, group, rungs, target, image, commit, num_attempts, share)
        for group, share in zip(groups.values(), shares, strict=True)
    ]


def check_inputs(sweep: SweepSettings, trials: Sequence[Trial], target: Target) -> None:
    """UserError if a trial reads what no pod sees: its workspace/ is the cluster's disk, its examples/ the image's."""
    for path in dict.fromkeys(path for each in trials for path in each.inputs):
        if os.path.normpath(path).split(os.sep)[0] not in SEEN_BY_PODS:
            how = "a pod sees workspace/ and examples/; copy it there (docs/CLUSTER.md), and write its path from this folder"
            raise UserError(f"{sweep.name}: {path}: no pod of {target} has it: {how}")


def for_this_machine(sweep: SweepSettings, trials: Sequence[Trial], target: Target) -> list[Trial]:
    """The trials as they can be rehearsed here, whatever GPUs there are: pods have their own; UserError if they have none."""
    if target == "local":
        return list(trials)
    rehearsed = []
    for each in trials:
        if str(getattr(each.settings, "device", "")).startswith("cuda"):
            if target == "kind":
                raise UserError(f"{sweep.name}: {each.title}: device: cuda, but pods of Kind have no GPU; write device: auto")
            if not each.resources.gpu:
                how = "write resources: {gpu: 1}, or device: auto"
                raise UserError(f"{sweep.name}: {each.title}: device: cuda, but resources.gpu gives its pod none; {how}")
            each = replace(each, settings=each.settings.model_copy(update={"device": "auto"}))
        rehearsed.append(each)
    return rehearsed


def share_out(parallelism: int, sizes: Sequence[int]) -> list[int]:
    """How many trials of each group run at a time: one at least, the others where most trials wait for each."""
    shares = [1] * len(sizes)
    for _ in range(min(parallelism, sum(sizes)) - len(sizes)):
        next_one = max((i for i, size in enumerate(sizes) if shares[i] < size), key=lambda i: sizes[i] / shares[i])
        shares[next_one] += 1
    return shares


def rungs_of(sweep: SweepSettings, trials: Sequence[Trial]) -> Manifest | None:
    """What trials of the sweep judge themselves by; null without a rule."""
    if sweep.stop is None:
        return None
    points = {each.id: each.label for each in trials}
    return Rungs(Path(), sweep.stop, sweep.stop.metric or sweep.metric, sweep.maximize, points).document()


def _render(
    sweep: SweepSettings,
    trials: Sequence[Trial],
    rungs: Manifest | None,
    target: Target,
    image: str,
    commit: str | None,
    num_attempts: int,
    at_a_time: int,
) -> TrialJob:
    resources = trials[0].resources
    packed = pack_trials(sweep, trials, rungs)
    if len(packed) * 4 / 3 > MAX_CONFIG_MAP * 0.95:
        raise UserError(f"{sweep.name}: its {len(trials):,} trials do not fit into one ConfigMap; make two sweeps of it")
    decides = json.dumps([[t.id for t in trials], num_attempts, rungs], sort_keys=True)
    digest = hashlib.sha256(decides.encode()).hexdigest()
    name = job_name(sweep.name, digest, len(trials))
    labels = {
        "app.kubernetes.io/name": "flex-rl",
        "app.kubernetes.io/component": sweep.verb.removesuffix(".py").replace("_", "-"),
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/managed-by": "submit-sweep",
        "flex-rl/sweep": sweep.name,
        "kueue.x-k8s.io/queue-name": sweep.queue,
    }
    annotations = {"flex-rl/sweep-digest": f"sha256:{digest}", "flex-rl/submitted-from": commit}
    holes = {
        "name": name,
        "labels": labels,
        "annotations": annotations,
        "completions": len(trials),
        "parallelism": at_a_time,
        "retries": sweep.retries,
        "max_failed": None if sweep.max_failed is None else min(sweep.max_failed, len(trials)),
        "failure_rules": failure_rules(sweep.deadline is not None),
        "deadline": sweep.deadline,
        "image": image,
        "env": [*environment(sweep, resources), *([] if target == "local" else whereabouts(name, image))],
        "resources": resources_of(resources),
        "node_selector": node_selector(resources),
        "tolerations": tolerations(resources),
        "trials": {TRIALS_FILE: base64.b64encode(packed).decode()},
    }
    job, config_map = (fill(_read(TEMPLATES / file), holes) for file in ("job.yaml", "configmap.yaml"))
    if target != "local":
        uid, gid = (os.getuid(), os.getgid()) if os.getuid() else (10001, 10001)  # root is refused
        small = {
            "cpu": f"{cpus(resources.cpu) * KIND_SHARE * 1000:.0f}m",
            "memory": f"{num_bytes(resources.memory) * KIND_SHARE / UNITS['Mi']:.0f}Mi",
        }
        job = merge(job, fill(_read(TEMPLATES / f"{target}.yaml"), {"uid": uid, "gid": gid, "small": small}))
    return TrialJob(without_nulls(job), without_nulls(config_map), tuple(each.id for each in trials))


def job_name(sweep: str, digest: str, completions: int) -> str:
    """The Job's name: the sweep's, cut so that its pods' host names ('-<index>' behind it) are DNS labels."""
    room = 63 - len(f"-{max(completions - 1, 0)}") - 7
    return f"{sweep[:room].rstrip('-')}-{digest[:6]}"


def failure_rules(with_deadline: bool) -> list[dict[str, Any]]:
    """The table of exit codes, as a Job's podFailurePolicy; what it does not name counts as a failure.

    A pod that meets its deadline is ended by SIGTERM as a preempted one is. So `with_deadline` only what Kubernetes itself
    calls a disruption is free, else a trial that always takes too long would be tried for ever.
    """

    def codes(retry: str) -> dict[str, Any]:
        values = sorted(code for code, meaning in exit_codes.MEANINGS.items() if meaning.retry == retry)
        return {"containerName": "train", "operator": "In", "values": values}

    rules: list[dict[str, Any]] = [{"action": "FailIndex", "onExitCodes": codes("never")}]
    if not with_deadline:
        rules.append({"action": "Ignore", "onExitCodes": codes("free")})
    return [*rules, {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]


def action_of(spec: Mapping[str, Any], code: int, disrupted: bool) -> str:
    """What a Job's podFailurePolicy says of an exit code: its first rule that matches, else Count."""
    for rule in spec["podFailurePolicy"]["rules"]:
        on = rule.get("onExitCodes")
        if on is not None and code != exit_codes.DONE and (code in on["values"]) == (on["operator"] == "In"):
            return str(rule["action"])
        if disrupted and any(condition["type"] == "DisruptionTarget" for condition in rule.get("onPodConditions", [])):
            return str(rule["action"])
    return "Count"


def environment(sweep: SweepSettings, resources: ResourceSettings) -> list[dict[str, str]]:
    """Where the trial finds what it is, and how many cores it may use."""
    cores = str(max(math.floor(cpus(resources.cpu)), 1))
    return [
        {"name": trial.TRIALS, "value": f"/etc/flex-rl/{TRIALS_FILE}"},
        {"name": trial.WORKSPACE, "value": f"/app/workspace/sweeps/{sweep.name}"},
        {"name": "OMP_NUM_THREADS", "value": cores},
        {"name": "HOME", "value": "/tmp"},
        {"name": "MPLCONFIGDIR", "value": "/tmp/matplotlib"},
    ]


def whereabouts(job: str, image: str) -> list[Manifest]:
    """What a pod is, which its run's lineage notes."""
    fields = {provenance.POD: "metadata.name", provenance.NODE: "spec.nodeName"}
    told = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    return [{"name": provenance.IMAGE, "value": image}, {"name": provenance.JOB, "value": job}, *told]


def resources_of(resources: ResourceSettings) -> Manifest:
    """Requests and limits of a container."""
    gpus = {"nvidia.com/gpu": str(resources.gpu)} if resources.gpu else {}
    requests = {"cpu": resources.cpu, "memory": resources.memory, "ephemeral-storage": "2Gi"}
    return {"requests": requests, "limits": {"memory": resources.memory, **gpus}}


def node_selector(resources: ResourceSettings) -> Manifest | None:
    """Which machines will do; null: any."""
    chosen = {}
    if resources.accelerator:
        chosen["cloud.google.com/gke-accelerator"] = resources.accelerator
    if resources.spot:
        chosen["cloud.google.com/gke-spot"] = "true"
    return chosen or None


def tolerations(resources: ResourceSettings) -> list[Manifest] | None:
    """Which taints do not matter; null: none."""
    allowed: list[Manifest] = []
    if resources.gpu:
        allowed.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    if resources.spot:
        allowed.append({"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"})
    return allowed or None


def cpus(quantity: str) -> float:
    """Cores of a quantity of Kubernetes: 2, 0.5, 500m."""
    return float(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1)


def num_bytes(quantity: str) -> float:
    """Bytes of a quantity of Kubernetes: 2Gi, 500M."""
    digits = quantity.rstrip("kKMGTPEi")
    return float(digits) * UNITS[quantity.removeprefix(digits)]


def pack_trials(sweep: SweepSettings, trials: Sequence[Trial], rungs: Manifest | None) -> bytes:
    """What each pod finds its trial in, and the rule."""
    rows = [
        {
            "id": t.id,
            "verb": sweep.verb,
            "length": t.num_steps,
            "settings": t.settings.model_dump(mode="json"),
            "inputs": dict(t.inputs),
        }
        for t in trials
    ]
    return trial.pack(rows, rungs)


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def fill(tree: Any, holes: Mapping[str, Any]) -> Any:
    """The tree with every text that is '${hole}' replaced by that value, whatever its type."""
    if isinstance(tree, dict):
        return {key: fill(value, holes) for key, value in tree.items()}
    if isinstance(tree, list):
        return [fill(value, holes) for value in tree]
    hole = HOLE.fullmatch(tree) if isinstance(tree, str) else None
    return holes[hole[1]] if hole else tree


def merge(tree: Any, patch: Any) -> Any:
    """`patch` laid over: mappings by key, lists of named mappings by name, null takes away."""
    if isinstance(tree, dict) and isinstance(patch, dict):
        return {**tree, **{key: merge(tree.get(key), value) for key, value in patch.items()}}
    if isinstance(tree, list) and isinstance(patch, list) and all(isinstance(item, dict) and "name" in item for item in patch):
        patches = {item["name"]: item for item in patch}
        known = [merge(item, patches.pop(item["name"], {})) for item in tree]
        return [*known, *patches.values()]
    return patch


def without_nulls(tree: Any) -> Any:
    """The tree without what was left open."""
    if isinstance(tree, dict):
        return {key: without_nulls(value) for key, value in tree.items() if value is not None}
    return [without_nulls(value) for value in tree] if isinstance(tree, list) else tree


def to_yaml(manifests: Sequence[Manifest]) -> str:
    """Several manifests as one file for kubectl."""
    return "---\n".join(yaml.safe_dump(manifest, sort_keys=False) for manifest in manifests)
