"""What is kept of a sweep on a cluster when nobody follows it: cancelled, moved, removed by its TTL, run elsewhere, failed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_cluster import ToyCluster
from toy_sweep import IMAGE, VANISHED, NoSettings, a_sweep, check, kubeconfig

import submit_sweep
from flexrl import fetching, on_cluster, submission
from flexrl.config import UserError
from flexrl.follower import Follower
from flexrl.job_manifests import TrialJob
from flexrl.sweep_ledger import Ledger
from flexrl.sweep_settings import SweepSettings
from flexrl.sweeps import Trial

OTHER_IMAGE = "registry.example/flex-rl@sha256:" + "ef" * 32


def until(is_so: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_over(toy: ToyCluster, job: str) -> bool:
    conditions = toy.objects["jobs", job]["status"].get("conditions", [])
    return any(condition["type"] in ("Complete", "Failed") for condition in conditions)


@pytest.fixture
def reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[ToyCluster], None]:
    """Makes the toy what the kubeconfig names, as `toy`."""

    def point_at(toy: ToyCluster) -> None:
        path = str(kubeconfig(tmp_path, toy))
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", path)

    return point_at


Reach = Callable[[ToyCluster], None]


def submit_held(toy: ToyCluster, jobs: list[TrialJob], ledger: Ledger) -> None:
    """Its pods print their first lines and stay at that."""
    ledger.note_jobs(jobs, "toy")
    toy.held = True
    toy.client().submit(jobs)
    until(lambda: len(toy.logs) == sum(len(job.trials) for job in jobs))


def test_what_finished_unseen_is_noted_before_it_is_cancelled(tmp_path: Path, reach: Reach) -> None:
    jobs, trials, ledger = a_sweep(tmp_path, 2)
    with ToyCluster(lambda index, number: 0) as toy:
        reach(toy)
        ledger.note_jobs(jobs, "toy")
        toy.client().submit(jobs)
        until(lambda: is_over(toy, jobs[0].name))
        assert on_cluster.cancel("tiny", ledger) == [jobs[0].name]
        assert not [plural for plural, _ in toy.objects if plural in ("jobs", "configmaps", "pods")]
    check(ledger, trials, lambda index, number: 0)
    assert ledger.jobs() == []  # nothing is left to be asked for


def test_what_a_cancelled_pod_has_printed_is_kept(tmp_path: Path, reach: Reach) -> None:
    jobs, trials, ledger = a_sweep(tmp_path, 1)
    with ToyCluster(lambda index, number: 0) as toy:
        reach(toy)
        submit_held(toy, jobs, ledger)
        on_cluster.cancel("tiny", ledger)
    assert ledger.log_of(trials[0], 0).read_text() == f"begins\n{VANISHED}"
    assert ledger.status(trials[0]).state == "waiting"


def test_a_sweep_whose_job_is_over_moves_to_another_cluster(
    tmp_path: Path, reach: Reach, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flexrl.cluster.GKE_CONTEXT", tmp_path / ".gke_context")
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(yaml.safe_dump({"set": {"world": {"body": "half_cheetah", "task": "v5"}}, "seeds": 2}))
    asked = submission.Submission(sweep, tmp_path / "workspace", "kind", IMAGE)
    with ToyCluster(lambda index, number: 0) as toy:
        reach(toy)
        assert submission.submit(asked)
    ledger = Ledger(tmp_path / "workspace" / "sweeps" / "tiny")
    ledger.note_jobs(ledger.jobs(), "kind-flex-rl")  # which `make cluster-down` has taken out of the kubeconfig since
    moved = submission.Submission(sweep, tmp_path / "workspace", "gke", OTHER_IMAGE)
    with ToyCluster(lambda index, number: 0) as toy:
        reach(toy)
        assert submission.submit(moved)
        assert [plural for plural, _ in toy.created] == ["configmaps", "jobs"]
    assert ledger.context() == "toy"
    assert "no context" not in capsys.readouterr().err


def test_a_cluster_that_is_no_more_is_told_once(tmp_path: Path, reach: Reach, capsys: pytest.CaptureFixture[str]) -> None:
    """Its Job was not seen to end, so its trials are cut, and run again wherever the sweep goes next."""
    jobs, trials, ledger = a_sweep(tmp_path, 2)
    with ToyCluster(lambda index, number: 0) as toy:
        reach(toy)
        submit_held(toy, jobs, ledger)
        ledger.note_jobs(jobs, "kind-flex-rl")
        Follower(toy.client(), jobs, ledger).look()
        assert [ledger.status(key).state for key in trials] == ["running"] * 2
        on_cluster.catch_up(ledger, "gke")
        told = capsys.readouterr().err
        assert told.startswith(f"Job {jobs[0].name}: the kubeconfig has no context kind-flex-rl any more; ")
        assert told.count("\n") == 1
        on_cluster.catch_up(ledger, "gke")
        assert capsys.readouterr().err == ""
    assert [ledger.status(key).state for key in trials] == ["waiting"] * 2
    assert [ledger.log_of(key, 0).read_text() for key in trials] == [f"begins\n{VANISHED}"] * 2


def test_a_job_that_its_ttl_removed_has_left_what_was_looked_at(
    tmp_path: Path, reach: Reach, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs, trials, ledger = a_sweep(tmp_path, 3)
    with ToyCluster(lambda index, number: 2 if index else 0) as toy:
        reach(toy)
        ledger.note_jobs(jobs, "toy")
        toy.client().submit(jobs)
        until(lambda: is_over(toy, jobs[0].name))
        assert on_cluster.look(ledger) == []
        assert toy.remove_finished() == [jobs[0].name]
        assert not [plural for plural, _ in toy.objects if plural != "events"]  # the trials went with it
        num_asked = toy.num_requests
        on_cluster.catch_up(ledger, "kind")
        assert toy.num_requests == num_asked  # nothing is left to be asked
    check(ledger, trials, lambda index, number: 2 if index else 0)
    assert capsys.readouterr().err == ""


def test_a_job_that_its_ttl_removed_unseen_is_told(tmp_path: Path, reach: Reach, capsys: pytest.CaptureFixture[str]) -> None:
    """What was seen before is kept, the rest runs again, from where it was saved."""
    jobs, trials, ledger = a_sweep(tmp_path, 2)
    with ToyCluster(lambda index, number: 0) as toy:
        reach(toy)
        submit_held(toy, jobs, ledger)
        on_cluster.look(ledger)
        toy.held = False
        until(lambda: is_over(toy, jobs[0].name))
        toy.remove_finished()
        on_cluster.catch_up(ledger, "kind")
        told = capsys.readouterr().err
        assert told == (
            f"Job {jobs[0].name}: is not there (its day after the end is over, somebody deleted it, or it was never created); "
            "what nobody had looked at before is lost, and its trials go on from latest/\n"
        )
        assert [ledger.status(key).state for key in trials] == ["waiting"] * 2
        assert [ledger.log_of(key, 0).read_text() for key in trials] == [VANISHED] * 2
        on_cluster.run(jobs, ledger, "kind", lambda: None)
    assert [[a.how for a in ledger.status(key).attempts] for key in trials] == [["its pod vanished", "done"]] * 2


def test_a_job_may_be_gone_a_day_after_its_end_while_another_of_the_sweep_runs(tmp_path: Path) -> None:
    jobs, trials, ledger = a_sweep(tmp_path, 2, num_jobs=2)
    with ToyCluster(lambda index, number: 0) as toy:
        cluster = toy.client(patience=2.0)
        cluster.submit(jobs[:1])
        until(lambda: is_over(toy, jobs[0].name))
        toy.held = True
        cluster.submit(jobs[1:])

        def show(*_: object) -> None:
            if toy.held and ledger.status(trials[0]).state == "done":
                assert toy.remove_finished() == [jobs[0].name]
                toy.held = False

        assert Follower(cluster, jobs, ledger, show).run() == "Complete"
    assert [ledger.status(key).state for key in trials] == ["done"] * 2


def test_trials_of_a_job_go_when_it_does(tmp_path: Path) -> None:
    jobs, _, _ = a_sweep(tmp_path, 1)
    with ToyCluster(lambda index, number: 0) as toy:
        cluster = toy.client()
        cluster.submit(jobs)
        owners = toy.objects["configmaps", jobs[0].name]["metadata"]["ownerReferences"]
        uid = toy.objects["jobs", jobs[0].name]["metadata"]["uid"]
        assert owners == [{"apiVersion": "batch/v1", "kind": "Job", "name": jobs[0].name, "uid": uid}]
        until(lambda: is_over(toy, jobs[0].name))
        toy.remove_finished()
        assert ("configmaps", jobs[0].name) not in toy.objects

        # of an earlier Job of the name, removed while the new one is made: it is created again
        cluster.submit(jobs)
        create = cluster.batch.create_namespaced_job
        toy.objects.pop(("jobs", jobs[0].name))

        def create_late(*arguments: Any, **options: Any) -> Any:
            toy.objects.pop(("configmaps", jobs[0].name))
            return create(*arguments, **options)

        cluster.batch.create_namespaced_job = create_late
        assert cluster.submit(jobs)
        uid = toy.objects["jobs", jobs[0].name]["metadata"]["uid"]
        assert [o["uid"] for o in toy.objects["configmaps", jobs[0].name]["metadata"]["ownerReferences"]] == [uid]


def test_what_runs_on_a_cluster_does_not_run_here_too(tmp_path: Path, reach: Reach, capsys: pytest.CaptureFixture[str]) -> None:
    jobs, trials, ledger = a_sweep(tmp_path / "sweeps", 1)
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(yaml.safe_dump({"set": {"world": {"body": "half_cheetah", "task": "v5"}}}))
    with ToyCluster(lambda index, number: 0) as toy:
        reach(toy)
        ledger.note_jobs(jobs, "toy")
        toy.held = True
        toy.client().submit(jobs)
        until(lambda: toy.logs)
        line = f"tiny: runs already, on toy as {jobs[0].name}; wait for it, or submit_sweep.py cancel tiny first"
        with pytest.raises(UserError) as caught:
            submission.submit(submission.Submission(sweep, tmp_path))
        assert str(caught.value) == line
        toy.held = False
        until(lambda: is_over(toy, jobs[0].name))
        on_cluster.catch_up(ledger, "local")  # it is over, and what it came to is noted
        check(ledger, trials, lambda index, number: 0)
    status = ledger.status(trials[0])
    status.state = "running"
    ledger.set_status(trials[0], status)
    capsys.readouterr()
    on_cluster.catch_up(ledger, "local")  # the cluster is down: nobody can say
    assert capsys.readouterr().err.startswith(f"Job {jobs[0].name}: may still run on toy, which cannot be asked (the cluster ")


def test_a_job_that_nobody_could_ask_about_is_cancelled_still(
    tmp_path: Path, reach: Reach, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sweep runs here meanwhile, and the Job has not been forgotten."""
    jobs, _, ledger = a_sweep(tmp_path / "sweeps", 1)
    here = Trial("f" * 12, "", 0, {}, NoSettings(), 10, {})
    ledger.submit(SweepSettings(name="tiny"), [here], None)
    assert ledger.ran_here
    monkeypatch.setattr("sys.argv", ["submit_sweep.py", "cancel", "tiny", "--workspace", str(tmp_path)])
    with pytest.raises(UserError, match=r"^tiny: nothing of it runs here$"):
        submit_sweep.main()
    with ToyCluster(lambda index, number: 0) as toy:
        reach(toy)
        ledger.note_jobs(jobs, "toy")
        toy.held = True
        toy.client().submit(jobs)
        submit_sweep.main()
        assert capsys.readouterr().out == f"tiny: {jobs[0].name} deleted\n"


def test_of_a_pod_that_failed_its_events_and_its_machine_are_kept(tmp_path: Path) -> None:
    jobs, [key], ledger = a_sweep(tmp_path, 1)
    ends: list[int | str] = ["disrupted", 75, 0]
    with ToyCluster(lambda index, number: ends[number]) as toy:
        cluster = toy.client()
        cluster.submit(jobs)
        Follower(cluster, jobs, ledger).run()
    dossiers = [json.loads(ledger.dossier_of(key, number).read_bytes()) for number in (0, 1)]
    assert [(d["node"], d["exit_code"], d["message"]) for d in dossiers] == [
        ("node-0", 137, "ends with disrupted"),
        ("node-1", 75, "ends with 75"),
    ]
    assert dossiers[0]["conditions"] == ["DisruptionTarget:"]
    told = {"time": "2026-01-01T00:00:01+00:00", "kind": "Warning", "reason": "TaintManagerEviction", "count": 1}
    assert dossiers[0]["events"] == [told | {"message": "Marking for deletion Pod"}]
    assert dossiers[1]["events"] == []
    assert not ledger.dossier_of(key, 2).exists()  # it is done
    assert [attempt.node for attempt in ledger.status(key).attempts] == ["node-0", "node-1", "node-2"]


def test_a_pod_that_vanished_is_known_by_its_events(tmp_path: Path) -> None:
    jobs, [key], ledger = a_sweep(tmp_path, 1)
    with ToyCluster(lambda index, number: 0 if number else "vanishes") as toy:
        cluster = toy.client()
        toy.held = True
        cluster.submit(jobs)
        until(lambda: toy.logs)
        Follower(cluster, jobs, ledger).look()
        toy.held = False
        Follower(cluster, jobs, ledger).run()
    assert [attempt.how for attempt in ledger.status(key).attempts] == ["its pod vanished", "done"]
    dossier = json.loads(ledger.dossier_of(key, 0).read_bytes())
    assert (dossier["node"], dossier["exit_code"]) == ("node-0", None)
    assert [event["reason"] for event in dossier["events"]] == ["NodeNotReady"]


def test_a_cluster_that_tells_no_events_is_followed_all_the_same(tmp_path: Path) -> None:
    jobs, trials, ledger = a_sweep(tmp_path, 1)
    with ToyCluster(lambda index, number: 1 - number) as toy:
        toy.refused["events"] = 403
        cluster = toy.client()
        cluster.submit(jobs)
        Follower(cluster, jobs, ledger).run()
    check(ledger, trials, lambda index, number: 1 - number)
    dossier = json.loads(ledger.dossier_of(trials[0], 0).read_bytes())
    why = "namespace flex-rl: forbidden (no events for you)"
    assert (dossier["node"], dossier["events"], dossier["no_events"]) == ("node-0", [], why)


def test_a_pod_whose_creation_was_not_answered_is_used_and_removed() -> None:
    with ToyCluster(lambda index, number: 0, {1: "late"}) as toy:
        with fetching._pod("tiny", IMAGE, toy.client()) as name:
            assert [key for key in toy.objects if key[0] == "pods"] == [("pods", name)]
        assert toy.objects == {}
