"""Submitting to Kubernetes over HTTP: once, to the end, every log kept, whatever the API server does meanwhile."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_cluster import ToyCluster
from toy_sweep import IMAGE, NoSettings, a_sweep, check, kubeconfig

from flexrl import job_manifests, runs, snapshots, trial
from flexrl.cluster import context_of
from flexrl.config import UserError
from flexrl.fetching import fetch
from flexrl.follower import INDEX_LABEL, JOB_LABEL, Follower, indexes
from flexrl.sweep_ledger import Ledger
from flexrl.sweep_settings import SweepSettings
from flexrl.sweeps import Trial

ROOT = Path(__file__).parent.parent


class Crash(Exception):
    """The machine that follows goes down."""


def test_a_job_runs_to_its_end_and_everything_is_noted(tmp_path: Path) -> None:
    outcomes = {0: [0], 1: [1, 0], 2: [2], 3: [1, 75], 4: ["disrupted", 143, "disrupted", 0]}

    def plan(index: int, number: int) -> int | str:
        return outcomes[index][number]

    jobs, trials, ledger = a_sweep(tmp_path, 5)
    with ToyCluster(plan) as toy:
        cluster = toy.client()
        cluster.check(jobs)
        assert cluster.submit(jobs)
        assert not cluster.submit(jobs)  # twice is once
        assert Follower(cluster, jobs, ledger).run() == "Failed"
        assert sorted(toy.created) == [("configmaps", jobs[0].name), ("jobs", jobs[0].name)]
    check(ledger, trials, plan)
    assert [ledger.status(key).num_counted for key in trials] == [0, 1, 0, 2, 0]


def test_logs_outlive_their_pods(tmp_path: Path) -> None:
    jobs, trials, ledger = a_sweep(tmp_path, 8)
    with ToyCluster(lambda index, number: 0) as toy:
        toy.removes_read = True
        cluster = toy.client()
        cluster.submit(jobs)
        Follower(cluster, jobs, ledger).run()
        until = time.monotonic() + 10
        while any(plural == "pods" for plural, _ in toy.objects):
            assert time.monotonic() < until
            time.sleep(0.01)
    check(ledger, trials, lambda index, number: 0)


def test_a_pod_that_vanishes_leaves_what_was_seen_of_it(tmp_path: Path) -> None:
    jobs, trials, ledger = a_sweep(tmp_path, 1)
    with ToyCluster(lambda index, number: 0) as toy:
        cluster = toy.client(patience=2.0)
        toy.held = True  # nothing ends
        cluster.submit(jobs)

        def take_machine_away(*_: object) -> None:
            status = ledger.status(trials[0])
            if len(status.attempts) == 1 and ledger.log_of(trials[0], 0).is_file() and not status.attempts[0].end:
                with toy.lock:
                    toy.held = False
                    del toy.objects["pods", str(status.attempts[0].pod)]

        Follower(cluster, jobs, ledger, take_machine_away).run()
    status = ledger.status(trials[0])
    assert [attempt.how for attempt in status.attempts] == ["its pod vanished", "done"]
    assert ledger.log_of(trials[0], 0).read_text() == "begins\n(the pod vanished; what it printed after this is lost)\n"


def test_steps_that_are_done_again_are_counted(tmp_path: Path) -> None:
    """By the runs' own lineage, where the cluster's workspace is this one, as on Kind."""
    jobs, [key], ledger = a_sweep(tmp_path, 1)
    run = ledger.trials / key
    run.mkdir(parents=True)

    def did(step: int, *began: int) -> None:
        (run / "metrics.jsonl").write_text(json.dumps({"step": step}) + "\n")
        (run / "lineage.json").write_text(json.dumps({"attempts": [{"from_step": step} for step in began]}))

    def pod(number: int, phase: str, code: int = 0) -> dict[str, Any]:
        labels = {JOB_LABEL: jobs[0].name, INDEX_LABEL: "0"}
        ended = [{"state": {"terminated": {"exitCode": code}}}] if phase != "Running" else []
        status = {"phase": phase, "containerStatuses": ended, "conditions": [{"type": "DisruptionTarget", "status": "True"}]}
        return {"metadata": {"name": f"pod-{number}", "labels": labels}, "status": status}

    with ToyCluster(lambda index, number: 0) as toy:
        follower = Follower(toy.client(), jobs, ledger)
        follower._read_ledger()
        follower._note_pod(pod(0, "Running"))
        did(900, 0)
        follower._note_pod(pod(0, "Failed", 137))
        follower._note_pod(pod(1, "Running"))
        follower._note_pod(pod(1, "Failed", 137))  # taken away before it began
        follower._note_pod(pod(2, "Running"))
        did(2000, 0, 500)
        follower._note_pod(pod(2, "Succeeded"))
    attempts = ledger.status(key).attempts
    assert [(a.from_step, a.to_step, a.lost_steps) for a in attempts] == [(0, 900, 0), (0, 900, 400), (500, 2000, 0)]
    assert ledger.status(key).lost_steps == 400


def test_another_sweep_of_the_name_waits_for_the_first(tmp_path: Path) -> None:
    jobs, _, _ = a_sweep(tmp_path, 2)
    others, _, _ = a_sweep(tmp_path, 3)
    with ToyCluster(lambda index, number: 1 / 0) as toy:  # type: ignore[arg-type, return-value]
        toy.stopped.set()  # nothing moves
        cluster = toy.client()
        cluster.submit(jobs)
        with pytest.raises(UserError, match=f"tiny: runs already, as {jobs[0].name}; wait for it, or .* cancel"):
            cluster.submit(others)
        assert cluster.cancel("tiny") == [jobs[0].name]
        assert toy.objects == {}
        assert cluster.submit(others)


def test_what_is_wrong_with_a_cluster_is_one_line(tmp_path: Path) -> None:
    jobs, _, _ = a_sweep(tmp_path, 2, target="gke", resources={"cpu": "8", "memory": "4Gi"})
    with ToyCluster(lambda index, number: 0) as toy:
        cluster = toy.client()
        cluster.check(jobs)
        quota = {"metadata": {"name": "q"}, "spec": {"hard": {"requests.cpu": "4000m", "requests.memory": "1Ti"}}}
        toy.objects["resourcequotas", "q"] = quota
        with pytest.raises(UserError, match=r"a trial wants requests.cpu 8, the quota of flex-rl allows 4000m"):
            cluster.check(jobs)
        for name, limit, line in (
            ("cpu", "4", r"wants cpu 8, the quota of flex-rl allows 4"),
            ("memory", "500000Ki", r"wants memory 4Gi, .* allows 500000Ki"),
            ("limits.memory", "1Gi", r"wants limits.memory 4Gi, .* allows 1Gi"),
            ("pods", "0", r"wants pods 1, .* allows 0"),
            ("count/jobs.batch", "0", r"wants count/jobs.batch 1, .* allows 0"),
            ("limits.cpu", "100", r"the quota of flex-rl counts limits.cpu, and so refuses a trial, which has none"),
        ):
            quota["spec"] = {"hard": {name: limit}}
            with pytest.raises(UserError, match=line):
                cluster.check(jobs)
        toy.allowed = False
        with pytest.raises(UserError, match=r"you may not create jobs; ask for the rights of k8s/access.yaml"):
            cluster.check(jobs)
        toy.has_namespace = False
        with pytest.raises(UserError, match=r"is not set up .*; kubectl apply -f k8s/namespace.yaml"):
            cluster.check(jobs)
        toy.faults = {toy.num_requests + 1: 403}
        with pytest.raises(UserError, match=r"namespace flex-rl: forbidden \(not now\)"):
            cluster.check(jobs)
        for ask in (lambda: cluster.has(jobs[0]), lambda: cluster.cancel("tiny"), lambda: cluster.submit(jobs)):
            toy.faults = {toy.num_requests + 1: 401}
            with pytest.raises(UserError, match=r"namespace flex-rl: forbidden \(not now\)"):
                ask()
    with pytest.raises(UserError, match=r"127.0.0.1.*does not answer .*; is it up\?"):
        toy.client().check(jobs)


def test_a_job_that_somebody_deleted_is_told(tmp_path: Path) -> None:
    jobs, _, ledger = a_sweep(tmp_path, 2)
    with ToyCluster(lambda index, number: 0) as toy:
        with pytest.raises(runs.Failed, match=r"is gone; somebody deleted it"):
            Follower(toy.client(), jobs, ledger).run()
        cluster = toy.client()
        jobs[0].config_map["metadata"]["labels"] = {"wrong": "l" * 64}
        assert cluster.submit(jobs)


FAULT_KINDS = [409, 429, 500, 503, "drop", "late", "cut", "restart"]
FAULTS = st.dictionaries(st.integers(1, 60), st.sampled_from(FAULT_KINDS), max_size=25)
OUTCOMES = st.lists(
    st.lists(st.sampled_from([0, 0, 1, 2, 75, 143, "disrupted", "vanishes"]), min_size=6, max_size=6), min_size=1, max_size=5
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(faults=FAULTS, outcomes=OUTCOMES, crashes=st.lists(st.integers(1, 6), max_size=3), num_jobs=st.sampled_from([1, 1, 2]))
def test_nothing_is_lost_and_nothing_doubled(
    faults: dict[int, Any], outcomes: list[list[int | str]], crashes: list[int], num_jobs: int
) -> None:
    """Fault sequences against the API, pods that vanish, a follower that goes down: each Job once, all states, all logs."""

    def plan(index: int, number: int) -> int | str:
        return outcomes[index][number] if number < 6 else 0

    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        # pauses count in full towards the patience, while the toy's are short: a dozen faults in a row would end it
        patch.setattr("flexrl.follower.LOG_PATIENCE", 3600.0)
        jobs, _, ledger = a_sweep(Path(temporary), len(outcomes), num_jobs)
        with ToyCluster(plan, faults) as toy:
            cluster = toy.client(patience=3600.0)
            cluster.submit(jobs)
            for after in crashes:
                left = [after]

                def show(*_: object, left: list[int] = left) -> None:
                    left[0] -= 1
                    if left[0] == 0:
                        raise Crash

                try:
                    cluster.submit(jobs)
                    Follower(cluster, jobs, ledger, show).run()
                except Crash:
                    continue
            cluster.submit(jobs)
            Follower(cluster, jobs, ledger).run()
            assert sorted(toy.created) == sorted((kind, job.name) for kind in ("configmaps", "jobs") for job in jobs)
            for job in jobs:
                uid, trials = (toy.objects[kind, job.name]["metadata"] for kind in ("jobs", "configmaps"))
                assert [owner["uid"] for owner in trials["ownerReferences"]] == [uid["uid"]]
        for job in jobs:
            check(ledger, list(job.trials), plan)


def test_the_command_follows_what_it_left_and_runs_again_what_failed(tmp_path: Path) -> None:
    ends = {0: [0], 1: [1, 1, 0], 2: [0], 3: [143, 0]}
    sweep = tmp_path / "tiny.yaml"
    values = {"set": {"world": {"body": "half_cheetah", "task": "v5"}}, "seeds": 4, "retries": 1}
    sweep.write_text(yaml.safe_dump(values))
    workspace = tmp_path / "workspace"
    command = [sys.executable, "submit_sweep.py", "--sweep", str(sweep), "--workspace", str(workspace)]
    command += ["--target", "kind", "--image", IMAGE]
    counts: dict[int, int] = {}

    def plan(index: int, number: int) -> int:
        index = index if len(toy.created) == 2 else 1  # the second Job has what failed alone
        counts[index] = counts.get(index, -1) + 1
        return ends[index][counts[index]]

    with ToyCluster(plan) as toy:
        environment = os.environ | {"KUBECONFIG": str(kubeconfig(tmp_path, toy))}
        toy.held = True
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        until = time.monotonic() + 120
        while not any(plural == "pods" for plural, _ in toy.objects):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        toy.held = False
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "was submitted before; following it" in done.stderr
        assert "! 1 failed" in done.stdout
        assert [plural for plural, _ in toy.created] == ["configmaps", "jobs", "configmaps", "jobs"]
        again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert again.returncode == 0
        assert "= 4 done" in again.stdout
        assert len(toy.created) == 4
    ledger = Ledger(workspace / "sweeps" / "tiny")
    by_seed = {entry.seed: ledger.status(entry.id) for entry in ledger.entries().values()}
    assert {seed: [a.exit_code for a in status.attempts] for seed, status in by_seed.items()} == ends
    assert all(status.state == "done" for status in by_seed.values())
    asked = [sys.executable, "submit_sweep.py", "--sweep", str(sweep), "--workspace", str(tmp_path / "other"), *command[6:]]
    gone = subprocess.run(asked, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert gone.returncode == 2
    assert "is it up? kubectl cluster-info says more" in gone.stderr


UNSCHEDULED = "0/1 nodes are available: 1 Insufficient cpu."
NO_IMAGE = {"waiting": {"reason": "ErrImageNeverPull", "message": "Container image is not present with pull policy of Never"}}
OBSTACLES = [
    ({"conditions": [{"type": "PodScheduled", "status": "False", "message": UNSCHEDULED}]}, f"3 pods wait: {UNSCHEDULED}"),
    (
        {
            "containerStatuses": [
                {"name": "train", "image": "", "imageID": "", "ready": False, "restartCount": 0, "state": NO_IMAGE}
            ]
        },
        "3 pods wait: ErrImageNeverPull Container image is not present with pull policy of Never",
    ),
]


@pytest.mark.parametrize(("obstacle", "said"), OBSTACLES, ids=["unscheduled", "no image"])
def test_why_pods_wait_is_told(tmp_path: Path, obstacle: dict[str, Any], said: str) -> None:
    jobs, trials, ledger = a_sweep(tmp_path, 3)
    with ToyCluster(lambda index, number: 0) as toy:
        toy.obstacle = obstacle
        cluster = toy.client()
        cluster.submit(jobs)
        seen: list[str] = []

        def show(running: object, left: int, notes: Sequence[str]) -> None:
            seen.extend(notes)
            if said in notes:
                assert [ledger.status(key).state for key in trials] == ["waiting"] * 3
                toy.obstacle = None

        Follower(cluster, jobs, ledger, show).run()
        assert said in seen
    check(ledger, trials, lambda index, number: 0)
    assert all(attempt.obstacle is None for key in trials for attempt in ledger.status(key).attempts)


def test_a_job_that_is_not_admitted_is_told(tmp_path: Path) -> None:
    jobs, _, ledger = a_sweep(tmp_path, 1)
    with ToyCluster(lambda index, number: 0) as toy:
        toy.suspended = "Job suspended"
        cluster = toy.client()
        cluster.submit(jobs)
        until = time.monotonic() + 20
        while not (notes := Follower(cluster, jobs, ledger).look()):
            assert time.monotonic() < until
        assert notes == [f"Job {jobs[0].name}: is suspended: Job suspended"]
        toy.suspended = None
        assert Follower(cluster, jobs, ledger).run() == "Complete"


def test_a_trial_that_gave_itself_up_is_neither_done_nor_failed(tmp_path: Path) -> None:
    jobs, trials, ledger = a_sweep(tmp_path, 2)
    with ToyCluster(lambda index, number: trial.GIVEN_UP if index else 0) as toy:
        cluster = toy.client()
        cluster.submit(jobs)
        assert Follower(cluster, jobs, ledger).run() == "Complete"
    assert [ledger.status(key).state for key in trials] == ["done", "given up"]
    assert ledger.status(trials[1]).attempts[-1].how == trial.GIVEN_UP


def test_a_watch_goes_on_after_a_restart_of_the_server(tmp_path: Path) -> None:
    """Nobody listens for a while, and the versions from before are unknown then."""
    jobs, trials, ledger = a_sweep(tmp_path, 4)
    with ToyCluster(lambda index, number: 0, dict.fromkeys((2, 7, 11), "restart")) as toy:
        cluster = toy.client()
        cluster.submit(jobs)
        assert Follower(cluster, jobs, ledger).run() == "Complete"
        assert toy.oldest > 0
    check(ledger, trials, lambda index, number: 0)


def test_how_a_sweep_stands_is_looked_up_where_nobody_follows_it(tmp_path: Path) -> None:
    """`status` and `logs` of a sweep whose submitter was stopped; what is known still, once the cluster is away."""
    jobs, trials, ledger = a_sweep(tmp_path / "sweeps", 2)

    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "submit_sweep.py", *arguments, "--workspace", str(tmp_path)]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)

    with ToyCluster(lambda index, number: 0) as toy:
        environment = os.environ | {"KUBECONFIG": str(kubeconfig(tmp_path, toy)), "COLUMNS": "200"}
        cluster = toy.client()
        ledger.note_jobs(jobs, "toy")
        toy.held = True
        cluster.submit(jobs)
        until = time.monotonic() + 60
        while (log := ask("logs", "tiny", trials[0])).stdout != "begins\n":
            assert time.monotonic() < until, log.stderr
        following = subprocess.Popen(
            [sys.executable, "submit_sweep.py", "logs", "tiny", trials[0], "--follow", "--workspace", str(tmp_path)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        time.sleep(1.0)
        toy.held = False
        assert following.communicate(timeout=60) == ("begins\nends with 0\n", None)
        while "2 trials: 2 done" not in (told := ask("status", "tiny")).stdout:
            assert time.monotonic() < until, told
    over = ask("status", "tiny")
    assert (over.returncode, over.stderr) == (0, "")  # nothing is left to be asked
    status = ledger.status(trials[0])
    status.state = "waiting"
    ledger.set_status(trials[0], status)
    away = ask("status", "tiny")
    assert away.returncode == 0
    assert away.stderr.startswith("as it was when somebody last looked: the cluster does not answer (")


def test_what_is_cancelled_does_not_seem_to_run(tmp_path: Path) -> None:
    jobs, trials, ledger = a_sweep(tmp_path / "sweeps", 2)
    with ToyCluster(lambda index, number: 0) as toy:
        environment = os.environ | {"KUBECONFIG": str(kubeconfig(tmp_path, toy))}
        ledger.note_jobs(jobs, "toy")
        toy.held = True
        cluster = toy.client()
        cluster.submit(jobs)
        while [ledger.status(key).state for key in trials] != ["running"] * 2:
            Follower(cluster, jobs, ledger).look()
        command = [sys.executable, "submit_sweep.py", "cancel", "tiny", "--workspace", str(tmp_path)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=60)
    assert [ledger.status(key).state for key in trials] == ["waiting"] * 2
    assert [ledger.status(key).attempts[0].how for key in trials] == ["its pod vanished"] * 2


def test_a_target_has_a_cluster_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever kubectl was used for last: what `make cluster-up` made for kind, what `make kubeconfig` noted for gke."""
    contexts = [
        {"name": name, "context": {"cluster": "c", "user": "u"}} for name in ("other", "kind-flex-rl", "gke_p_r_flex-rl")
    ]
    document = {"apiVersion": "v1", "kind": "Config", "current-context": "other", "contexts": contexts}
    document |= {"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}], "users": [{"name": "u", "user": {}}]}
    path = tmp_path / "kubeconfig.yaml"
    path.write_text(yaml.safe_dump(document))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    monkeypatch.setattr("flexrl.cluster.GKE_CONTEXT", tmp_path / ".gke_context")
    assert context_of("kind") == "kind-flex-rl"
    assert context_of("gke") == "other"  # nobody has noted one
    assert capsys.readouterr().err == "cluster: other, kubectl's current context\n"
    (tmp_path / ".gke_context").write_text("gke_p_r_flex-rl\n")
    assert context_of("gke") == "gke_p_r_flex-rl"
    document["contexts"] = contexts[:1]
    path.write_text(yaml.safe_dump(document))
    assert (context_of("kind"), context_of("gke")) == ("other", "other")


def test_index_ranges_are_read() -> None:
    assert indexes("1,3-5,7") == {1, 3, 4, 5, 7}
    assert indexes("") == indexes(None) == set()


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster's workspace, and a kubectl whose `exec` runs in it; a file `cut` there breaks the connection half-way."""
    workspace = tmp_path / "remote"
    workspace.mkdir()
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "kubectl").write_text(f"""#!{sys.executable}
import pathlib, subprocess, sys
command = [part.replace("/app/workspace", "{workspace}") for part in sys.argv[sys.argv.index("--") + 1 :]]
done = subprocess.run(command, stdout=subprocess.PIPE)
is_cut = pathlib.Path("{workspace}/cut").exists()
sys.stdout.buffer.write(done.stdout[: len(done.stdout) // 2] if is_cut else done.stdout)
sys.exit(1 if is_cut else done.returncode)
""")
    (tools / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return workspace


def test_what_finished_on_the_cluster_is_fetched_whole_or_not_at_all(tmp_path: Path, remote: Path) -> None:
    jobs, trials, ledger = a_sweep(tmp_path, 3)
    for key in trials:
        run = remote / "sweeps" / "tiny" / "trials" / key
        (run / "replay").mkdir(parents=True)
        (run / "replay" / "large").write_bytes(b"0" * 100)
        (run / "metrics.jsonl").write_text('{"step": 10, "eval/return": 1.0}\n')
        snapshots.write(run / "latest", {"policy.safetensors": key.encode() * 1000})
    (remote / "sweeps" / "tiny" / "trials" / trials[2] / "latest" / "policy.safetensors").write_bytes(b"damaged")
    trial.mark_in(remote / "sweeps" / "tiny" / "trials" / trials[1]).touch()  # nobody read its pod's last words
    with ToyCluster(lambda index, number: 0) as toy:
        cluster = toy.client()
        cluster.submit(jobs)
        Follower(cluster, jobs, ledger).run()
        (remote / "cut").touch()
        assert fetch("tiny", ledger, cluster) == ([], trials)
        assert not list(ledger.trials.iterdir())  # nothing half of it
        (remote / "cut").unlink()
        assert fetch("tiny", ledger, cluster) == (trials[:2], trials[2:])
        assert fetch("tiny", ledger, cluster) == ([], trials[2:])  # what is here is not fetched again
        assert not [name for plural, name in toy.objects if plural == "pods" and name.startswith("fetch-")]
    assert [ledger.status(key).state for key in trials] == ["done", "given up", "done"]
    assert ledger.status(trials[0]).result == ledger.result_of(trials[0]) is not None
    for key in trials[:2]:
        assert ledger.metrics_of(key) == [{"step": 10, "eval/return": 1.0}]
        assert not (ledger.trials / key / "replay").exists()
    assert sorted(path.name for path in ledger.trials.iterdir()) == trials[:2]


def test_a_search_goes_on_from_job_to_job(tmp_path: Path, remote: Path) -> None:
    """Each round a Job; what it came to is fetched before the next is chosen."""
    rate = "learner.learning_rate"
    values = {
        "set": {"world": {"body": "half_cheetah", "task": "v5"}},
        "search": {"n": 4, "at_a_time": 2, "axes": {rate: {"log_uniform": [1e-5, 1e-3]}}},
        "metric": "eval/return",
    }
    sweep, workspace = tmp_path / "tiny.yaml", tmp_path / "workspace"
    sweep.write_text(yaml.safe_dump(values))

    def plan(index: int, number: int) -> int:
        """The pod trains: its return is its learning rate."""
        name = [name for plural, name in toy.created if plural == "configmaps"][-1]
        packed = base64.b64decode(toy.objects["configmaps", name]["binaryData"][job_manifests.TRIALS_FILE])
        row, _ = trial.unpack(packed, index)
        run = remote / "sweeps" / "tiny" / "trials" / row["id"]
        snapshots.write(run / "latest", {"policy.safetensors": row["id"].encode()})
        line = {"step": 10, "eval/return": row["settings"]["learner"]["learning_rate"]}
        (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        return 0

    with ToyCluster(plan) as toy:
        environment = os.environ | {"KUBECONFIG": str(kubeconfig(tmp_path, toy))}
        command = [sys.executable, "submit_sweep.py", "--sweep", str(sweep), "--workspace", str(workspace)]
        command += ["--target", "gke", "--image", IMAGE]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert [plural for plural, _ in toy.created if plural != "pods"] == ["configmaps", "jobs"] * 2
        again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert "= 4 done" in again.stdout, again.stderr
    ledger = Ledger(workspace / "sweeps" / "tiny")
    scores = {entry.point[rate]: ledger.last_value(entry.id, "eval/return") for entry in ledger.entries().values()}
    assert len(scores) == 4
    assert all(point == score for point, score in scores.items())


def test_what_ran_here_is_not_fetched(tmp_path: Path) -> None:
    sweep = SweepSettings(name="tiny")
    ledger = Ledger(tmp_path / "sweeps" / "tiny")
    ledger.submit(sweep, [Trial("0" * 12, "", 0, {}, NoSettings(), 10, {})], None)
    command = [sys.executable, "submit_sweep.py", "fetch", "tiny", "--workspace", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"tiny: ran here; its trials are in {ledger.trials}\n")
