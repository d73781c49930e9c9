"""What a cluster refuses and what it is refused: conflicts, certificates, kubeconfigs, rights, inputs, GPUs, exit codes."""

from __future__ import annotations

import base64
import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from toy_cluster import ToyCluster, judge
from toy_sweep import IMAGE, NoSettings, a_sweep, check, expected, kubeconfig

from flexrl import exit_codes, job_manifests, job_rules, local_runner, on_cluster, pod, provenance, snapshots, submission, trial
from flexrl.cluster import Cluster, connect, context_of
from flexrl.config import UserError
from flexrl.follower import Follower
from flexrl.sweep_ledger import Ledger
from flexrl.sweep_settings import ResourceSettings, SweepSettings
from flexrl.sweeps import Trial
from flexrl.training import TrainSettings

ROOT = Path(__file__).parent.parent


def read_config_from(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))


# conflicts


@pytest.mark.parametrize("number", [2, 3, 4])  # the list of Jobs is first; the ConfigMap, the Job, the owner
def test_a_conflict_passes(tmp_path: Path, number: int) -> None:
    """A quota whose counters race says 409 too, and has created nothing."""
    jobs, trials, ledger = a_sweep(tmp_path, 2)
    with ToyCluster(lambda index, number: 0, {number: 409}) as toy:
        cluster = toy.client()
        assert cluster.submit(jobs) == [jobs[0].name]
        Follower(cluster, jobs, ledger).run()
        assert toy.created == [("configmaps", jobs[0].name), ("jobs", jobs[0].name)]
    check(ledger, trials, lambda index, number: 0)


def test_what_is_taken_and_then_is_not_there_is_created(tmp_path: Path) -> None:
    """Who deletes it may be faster than who reads it."""
    jobs, _, _ = a_sweep(tmp_path, 1)
    with ToyCluster(lambda index, number: 0) as toy:
        cluster = toy.client(patience=2.0)
        cluster.submit(jobs)
        read, toy.held = cluster.batch.read_namespaced_job, True

        def read_too_late(*arguments: Any, **options: Any) -> Any:
            with toy.lock:
                toy.delete("jobs", jobs[0].name)
            cluster.batch.read_namespaced_job = read
            return read(*arguments, **options)

        cluster.batch.read_namespaced_job = read_too_late
        assert cluster.submit(jobs) == [jobs[0].name]


# what cannot be reached or read, in one line


def test_a_certificate_that_is_not_trusted_is_one_line(tmp_path: Path) -> None:
    told = (
        "SSLError\nHTTPSConnectionPool(host='10.0.0.1', port=443): Max retries exceeded with url: /api (Caused by SSLError("
        "SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate "
        "(_ssl.c:1006)')))"
    )
    api = client.ApiClient(client.Configuration(host="https://10.0.0.1", retries=False))
    cluster = Cluster(api, patience=1.0, sleep=lambda s: None)
    num_asked = []

    def ask(**_: Any) -> None:
        num_asked.append(1)
        raise ApiException(status=0, reason=told)

    with pytest.raises(UserError) as caught:
        cluster.call(ask)
    how = "make kubeconfig (GKE) or kind export kubeconfig --name flex-rl (Kind) writes its kubeconfig anew"
    said = "is not trusted (certificate verify failed: self-signed certificate)"
    assert str(caught.value) == f"https://10.0.0.1: {said}; {how}"
    assert len(num_asked) == 1  # it would be no better the next time


def test_who_does_not_speak_tls_does_not_answer(tmp_path: Path) -> None:
    jobs, _, _ = a_sweep(tmp_path, 1)
    with ToyCluster(lambda index, number: 0) as toy:
        host = toy.address.replace("http:", "https:")
        cluster = Cluster(client.ApiClient(client.Configuration(host=host, retries=False)), patience=1.0, sleep=lambda s: None)
        with pytest.raises(
            UserError, match=r"^https://127\.0\.0\.1:\d+: the cluster does not answer \(SSLError .*is it up\?"
        ) as e:
            cluster.check(jobs)
    assert "\n" not in str(e.value)


BAD_CONFIGS = ["a: [1\nb: {", "- 1\n- 2\n", "text", "contexts: 3\n", "\x00\x01", "clusters: [{}]\ncontexts: [{}]\n"]


@pytest.mark.parametrize("text", BAD_CONFIGS)
def test_a_kubeconfig_that_is_none_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    path = tmp_path / "kubeconfig.yaml"
    path.write_text(text)
    read_config_from(path, monkeypatch)
    for ask in (lambda: context_of("kind"), lambda: connect("kind-flex-rl"), connect):
        with pytest.raises(UserError, match=r"^no cluster: (the kubeconfig cannot be read|Invalid kube-config file)") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_a_target_has_its_cluster_though_no_context_is_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ToyCluster(lambda index, number: 0) as toy:
        path = kubeconfig(tmp_path, toy)
    document = yaml.safe_load(path.read_text())
    del document["current-context"]
    document["contexts"][0]["name"] = "kind-flex-rl"
    path.write_text(yaml.safe_dump(document))
    read_config_from(path, monkeypatch)
    assert context_of("kind") == "kind-flex-rl"


def test_another_refusal_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    """What nobody has thought of: here a server that takes no such request."""
    jobs, _, ledger = a_sweep(tmp_path / "sweeps", 1)
    with ToyCluster(lambda index, number: 0) as toy:
        ledger.note_jobs(jobs, "toy")
        environment = os.environ | {"KUBECONFIG": str(kubeconfig(tmp_path, toy))}
        toy.refused["jobs"] = 405
        command = [sys.executable, "submit_sweep.py", "cancel", "tiny", "--workspace", str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "the cluster refuses (HTTP 405): no jobs for you; kubectl says more\n"


def test_a_search_asks_first_for_the_rights_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would need them only hours later, when its first round is over."""
    monkeypatch.setattr("flexrl.cluster.GKE_CONTEXT", tmp_path / ".gke_context")
    jobs, _, ledger = a_sweep(tmp_path, 1, target="gke")
    for right in ("create pods", "delete pods", "create pods/exec"):
        with ToyCluster(lambda index, number: 0) as toy:
            read_config_from(kubeconfig(tmp_path, toy), monkeypatch)
            toy.denied = {right}
            with pytest.raises(UserError, match=f"you may not {right}; ask for the rights of k8s/access.yaml"):
                on_cluster.run(jobs, ledger, "gke", lambda: None, fetches=True)
            assert toy.created == []
            toy.client().check(jobs)  # a sweep that does not search needs none of them


# inputs


def an_input(folder: Path, content: bytes = b"weights") -> str:
    snapshots.write(folder, {"policy.safetensors": content})
    return snapshots.content_hash(folder)


def test_the_digests_of_inputs_travel_with_their_trial() -> None:
    sweep = SweepSettings(name="tiny")
    trials = [Trial("0" * 12, "", 0, {}, NoSettings(), 10, {"workspace/walk/best": "ab" * 32})]
    row, _ = trial.unpack(job_manifests.pack_trials(sweep, trials, None), 0)
    assert row["inputs"] == {"workspace/walk/best": "ab" * 32}


def test_a_pod_refuses_inputs_that_are_not_those_of_its_trial(tmp_path: Path) -> None:
    digest = an_input(tmp_path / "walk")
    trials = [Trial("0" * 12, "", 0, {}, NoSettings(), 10, {"walk": digest})]
    packed = job_manifests.pack_trials(SweepSettings(name="tiny"), trials, None)
    (tmp_path / "trials").write_bytes(packed)
    told = {trial.TRIALS: str(tmp_path / "trials"), trial.WORKSPACE: str(tmp_path / "sweep"), trial.INDEX: "0"}

    def become() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "submit_sweep.py"), "trial"]
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ | told, capture_output=True, text=True, timeout=120, check=False
        )

    other = an_input(tmp_path / "walk", b"others")
    done = become()
    line = f"walk: is another than was submitted: here is {other[:12]}, the trial was submitted with {digest[:12]}"
    assert (done.returncode, done.stderr) == (2, f"{line}; copy it here, or submit the sweep again\n")
    (tmp_path / "walk" / snapshots.MANIFEST).unlink()
    done = become()
    assert done.returncode == exit_codes.USER_ERROR
    assert done.stderr == ("walk: is not on this machine's disk; docs/CLUSTER.md says how a trial's inputs come to a cluster\n")
    assert not (tmp_path / "sweep").exists()
    an_input(tmp_path / "walk")
    pod._check_inputs({str(tmp_path / "walk"): digest})  # as it was: nothing is said


@pytest.mark.parametrize("path", ["/data/walk", "walk", "workspace/../walk", "../workspace/walk"])
def test_inputs_that_no_pod_sees_are_refused_at_the_door(path: str) -> None:
    trials = [Trial("0" * 12, "", 0, {}, NoSettings(), 10, {path: "ab" * 32})]
    with pytest.raises(UserError) as caught:
        job_manifests.render(SweepSettings(name="tiny"), trials, "gke", IMAGE)
    assert str(caught.value).startswith(f"tiny: {path}: no pod of gke has it: a pod sees workspace/ and examples/; copy it")
    job_manifests.render(SweepSettings(name="tiny"), trials, "local")
    for seen in ("workspace/walk/best", "./workspace/walk/best", "examples/policies/walk"):
        trials = [Trial("0" * 12, "", 0, {}, NoSettings(), 10, {seen: "ab" * 32})]
        assert job_manifests.render(SweepSettings(name="tiny"), trials, "kind", IMAGE)


def test_the_pod_that_carries_inputs_keeps_to_the_restricted_profile() -> None:
    manifest = yaml.safe_load((ROOT / "k8s" / "carry.yaml").read_text())
    assert not list(job_rules.of_security(manifest["spec"]))
    mounted = manifest["spec"]["containers"][0]["volumeMounts"]
    assert mounted == [{"name": "workspace", "mountPath": "/app/workspace"}]  # where the trials' pods have it


# GPUs


def cuda_trial(gpu: int) -> Trial:
    return Trial("0" * 12, "", 0, {}, TrainSettings(device="cuda:7"), 10, {}, ResourceSettings(gpu=gpu))


def test_a_gpu_of_the_cluster_need_not_be_here(tmp_path: Path) -> None:
    sweep = SweepSettings(name="tiny")
    [rehearsed] = job_manifests.for_this_machine(sweep, [cuda_trial(8)], "gke")
    assert rehearsed.settings == TrainSettings(device="auto")
    assert job_manifests.for_this_machine(sweep, [cuda_trial(8)], "local") == [cuda_trial(8)]
    with pytest.raises(
        UserError, match=r"device: cuda, but resources.gpu gives its pod none; write resources: \{gpu: 1\}, or device: auto"
    ):
        job_manifests.for_this_machine(sweep, [cuda_trial(0)], "gke")
    with pytest.raises(UserError, match=r"device: cuda, but pods of Kind have no GPU; write device: auto"):
        job_manifests.for_this_machine(sweep, [cuda_trial(8)], "kind")


def test_a_sweep_for_gpus_is_planned_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "tiny.yaml"
    values = {"set": {"world": {"body": "half_cheetah", "task": "v5"}, "device": "cuda"}, "resources": {"gpu": 1}}
    sweep.write_text(yaml.safe_dump(values))
    asked = submission.Submission(sweep, tmp_path / "workspace", "gke", IMAGE, render_to=tmp_path / "jobs.yaml")
    assert submission.submit(asked)
    config_map = next(iter(yaml.safe_load_all((tmp_path / "jobs.yaml").read_text())))
    row, _ = trial.unpack(base64.b64decode(config_map["binaryData"][job_manifests.TRIALS_FILE]), 0)
    assert row["settings"]["device"] == "cuda"  # what is rehearsed here is not what runs there


# lineage


def test_a_pod_tells_its_lineage_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [job], _, _ = a_sweep(tmp_path, 1, target="gke")
    env = {each["name"]: each.get("value") or each["valueFrom"]["fieldRef"]["fieldPath"] for each in job.container["env"]}
    assert env[provenance.IMAGE] == IMAGE
    assert env[provenance.JOB] == job.name
    assert (env[provenance.POD], env[provenance.NODE]) == ("metadata.name", "spec.nodeName")
    for name, value in {**env, "JOB_COMPLETION_INDEX": "3", provenance.POD: "pod-1", provenance.NODE: "node-1"}.items():
        if name.startswith(("FLEXRL", "JOB")):
            monkeypatch.setenv(name, value)
    told = {"image": IMAGE, "job": job.name, "index": "3", "pod": "pod-1", "node": "node-1"}
    assert provenance.here()["pod"] == told
    monkeypatch.delenv(provenance.POD)  # as on a laptop
    assert "pod" not in provenance.here()
    [here], _, _ = a_sweep(tmp_path, 1, target="local")
    assert not {each["name"] for each in here.container["env"]} & {provenance.IMAGE, provenance.POD}


# rules of Jobs that could hide each other


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"podFailurePolicy": None, "podReplacementPolicy": None, "restartPolicy": "OnFailure"},
            ["spec.backoffLimitPerIndex: needs restartPolicy: Never, as what it counts are pods"],
        ),
        (
            {"backoffLimitPerIndex": None, "maxFailedIndexes": None, "rules": 0, "restartPolicy": "OnFailure"},
            ["spec.podFailurePolicy: needs restartPolicy: Never, as what it judges are pods that have ended"],
        ),
        (
            {"backoffLimitPerIndex": None, "podFailurePolicy": None, "completionMode": "NonIndexed", "maxFailedIndexes": None},
            [],
        ),
        (
            {"podFailurePolicy": None, "completionMode": "NonIndexed", "maxFailedIndexes": None},
            ["spec.backoffLimitPerIndex: only an Indexed Job has it"],
        ),
        (
            {"backoffLimitPerIndex": None, "podFailurePolicy": None, "completionMode": "NonIndexed", "maxFailedIndexes": 1},
            ["spec.maxFailedIndexes: only an Indexed Job has it", "spec.maxFailedIndexes: needs backoffLimitPerIndex"],
        ),
    ],
    ids=["per index, never", "policy, never", "nothing wrong", "per index, indexed", "failed indexes, indexed"],
)
def test_each_rule_of_a_job_speaks_for_itself(tmp_path: Path, changes: dict[str, Any], said: list[str]) -> None:
    [job], _, _ = a_sweep(tmp_path, 2)
    manifest = copy.deepcopy(job.job)
    spec = manifest["spec"]
    for key, value in changes.items():
        if key == "restartPolicy":
            spec["template"]["spec"][key] = value
        elif key == "rules":
            spec["podFailurePolicy"]["rules"] = [r for r in spec["podFailurePolicy"]["rules"] if r["action"] != "FailIndex"]
        elif value is None:
            spec.pop(key, None)
        else:
            spec[key] = value
    assert job_rules.problems(manifest) == said


# one table of exit codes: the manifest's, the controller's, the local runner's

OUTCOMES: dict[int, list[int | str]] = {
    0: [0],
    1: [1, 0],
    2: [2],
    3: [75, 137],
    4: [143, 143, 0],
    5: [143, 1, 143, 0],
    6: [137, 143, 0],
}


@pytest.mark.parametrize("deadline", [None, 3600])
def test_every_exit_code_means_the_same_here_and_there(tmp_path: Path, deadline: int | None) -> None:
    [job], _, _ = a_sweep(tmp_path, 1, deadline=deadline)
    for code in range(1, 256):
        container = {"name": "train", "state": {"terminated": {"exitCode": code}}}
        for disrupted in (False, True):
            conditions = [{"type": "DisruptionTarget", "status": "True"}] if disrupted else []
            there = judge(job.spec, {"containerStatuses": [container], "conditions": conditions})
            assert job_manifests.action_of(job.spec, code, disrupted) == there
            retry = exit_codes.meaning_of(code).retry
            counted = retry == "counted" or (retry == "free" and deadline is not None)
            assert there == ("FailIndex" if retry == "never" else "Count" if counted and not disrupted else "Ignore")


@pytest.mark.parametrize("deadline", [None, 3600], ids=["no deadline", "deadline"])
def test_a_sweep_ends_here_as_it_does_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deadline: int | None) -> None:
    """The same exit codes, attempt by attempt, by the local runner and by a Job's controller that reads the policy itself."""

    def plan(index: int, number: int) -> int | str:
        return OUTCOMES[index][number]

    free = ("disrupted", 143) if deadline is None else ("disrupted",)
    jobs, trials, there = a_sweep(tmp_path / "there", len(OUTCOMES), deadline=deadline)
    with ToyCluster(plan) as toy:
        cluster = toy.client()
        cluster.submit(jobs)
        Follower(cluster, jobs, there).run()
    check(there, trials, plan, free=free)

    jobs, trials, here = a_sweep(tmp_path / "here", len(OUTCOMES), target="local", deadline=deadline)
    run_locally(tmp_path, monkeypatch, jobs, here, {key: OUTCOMES[i] for i, key in enumerate(trials)})
    assert summary(here, trials) == summary(there, trials)
    assert [here.status(key).state for key in trials] == [expected(plan, i, free)[0] for i in range(len(trials))]
    assert here.status(trials[4]).state == ("done" if deadline is None else "failed")


def summary(ledger: Ledger, trials: list[str]) -> list[tuple[str, list[tuple[int | None, bool]]]]:
    statuses = [ledger.status(key) for key in trials]
    return [(status.state, [(a.exit_code, a.counted) for a in status.attempts]) for status in statuses]


def run_locally(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    jobs: list[job_manifests.TrialJob],
    ledger: Ledger,
    outcomes: dict[str, Any],
) -> None:
    """By the local runner, where a trial's process is one that ends as it is told to."""
    for key in outcomes:
        snapshots.write(ledger.trials / key / "latest", {"policy.safetensors": b"weights"})
    (folder / "plan.json").write_text(json.dumps(list(outcomes.values())))
    script = f"""
import json, os, pathlib, signal, sys, time
index = int(os.environ["JOB_COMPLETION_INDEX"])
count = pathlib.Path({str(folder)!r}, f"count{{index}}")
number = len(count.read_text()) if count.exists() else 0
count.write_text("x" * (number + 1))
end = json.load(open(pathlib.Path({str(folder)!r}, "plan.json")))[index][number]
if end == "hangs":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    time.sleep(60)
sys.exit(end)
"""
    monkeypatch.setattr(local_runner, "_command", lambda job: [sys.executable, "-c", script])
    assert local_runner.Runner(jobs, {}, ledger).run()


def test_a_trial_that_takes_too_long_is_counted_here_and_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kubelet ends it by SIGTERM as well, so with a deadline 143 cannot be free, or it would be tried for ever."""
    jobs, trials, there = a_sweep(tmp_path / "there", 1, deadline=2)
    with ToyCluster(lambda index, number: 143) as toy:
        cluster = toy.client()
        cluster.submit(jobs)
        Follower(cluster, jobs, there).run()
    jobs, trials, here = a_sweep(tmp_path / "here", 1, target="local", deadline=2)
    run_locally(tmp_path, monkeypatch, jobs, here, {trials[0]: ["hangs", "hangs"]})
    assert summary(here, trials) == summary(there, trials) == [("failed", [(143, True)] * 2)]
