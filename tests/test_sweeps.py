"""Sweeps: what they come to, what is run again, what a kill costs, what is refused; and their manifests."""

from __future__ import annotations

import base64
import copy
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import psutil
import pytest
from tiny_sweep import IMAGE, ROOT, TINY, command, submit, trials_of, written

from flexrl import exit_codes, job_manifests, job_rules, machine, snapshots, sweeps, trial
from flexrl.config import UserError
from flexrl.local_runner import Runner
from flexrl.statistics import interquartile_mean
from flexrl.sweep_ledger import Attempt, Ledger, Status
from flexrl.sweep_plan import make_plan
from flexrl.sweep_settings import load_sweep
from flexrl.sweeps import Trial, code_digest, identity, rehearsals
from flexrl.training import TrainSettings

GAMMAS = {"small": 0.9, "large": 0.95, "as_small": 0.99}


def test_axes_come_to_every_combination(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        grid={"learner.gamma": [0.9, 0.99], "learner.policy_kwargs.net_arch": [[8], [16, 16]]},
        zip={"world.num_envs": [2, 4], "learner.n_steps": [128, 64]},
        list=[{"name": "plain"}, {"name": "bold", "set": {"learner.ent_coef": 0.1}}],
        include=[{"learner.gamma": 0.5}],
        exclude=[{"learner.gamma": 0.9, "name": "bold"}],
        seeds=[3, 7],
    )
    trials = trials_of(path)
    assert len(trials) == (2 * 2 * 4 - 4 + 1) * 2
    assert len({t.id for t in trials}) == len({t.title for t in trials}) == len(trials)
    assert {(t.settings.world.num_envs, t.settings.learner.n_steps) for t in trials[:-2]} == {(2, 128), (4, 64)}
    assert {t.settings.seed for t in trials} == {3, 7}
    bold = [t for t in trials if t.point.get("name") == "bold"]
    assert all(t.settings.learner.ent_coef == 0.1 and t.settings.learner.gamma == 0.99 for t in bold)
    assert trials[0].title == "plain num_envs=2 n_steps=128 gamma=0.9 net_arch=[8] seed=3"
    assert trials[-1].settings.learner.gamma == 0.5


def test_random_points_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    axes = {"learner.learning_rate": {"log_uniform": [1e-5, 1e-2]}, "learner.n_epochs": {"whole": [1, 4]}}
    path = written(tmp_path, grid=None, random={"n": 50, "seed": 1, "axes": axes}, seeds=1)
    trials = trials_of(path)
    rates = [t.settings.learner.learning_rate for t in trials]
    assert all(1e-5 <= rate <= 1e-2 for rate in rates)
    assert sum(rate < 3e-4 for rate in rates) in range(15, 36)  # half of them below the geometric middle
    assert {t.settings.learner.n_epochs for t in trials} == {1, 2, 3, 4}
    assert [t.id for t in trials_of(path)] == [t.id for t in trials]
    other = written(tmp_path, grid=None, random={"n": 50, "seed": 2, "axes": axes}, seeds=1)
    assert not {t.id for t in trials_of(other)} & {t.id for t in trials}


def test_a_trial_is_known_by_all_that_decides_it(tmp_path: Path) -> None:
    first = trials_of(written(tmp_path))[0]
    assert trials_of(written(tmp_path))[0].id == first.id
    known = {first.id}
    code = code_digest("train.py")
    known.add(identity("train.py", first.settings, "other code", None, {}))
    known.add(identity("train.py", first.settings, code, IMAGE, {}))
    known.add(identity("train.py", first.settings, code, None, {"examples/pretrained/humanoid_walk": "abc"}))
    known.add(identity("train.py", first.settings.model_copy(update={"seed": 9}), code, None, {}))
    known.add(identity("train.py", first.settings.model_copy(update={"num_steps": 9}), code, None, {}))
    assert len(known) == 6
    assert identity("train.py", first.settings, code, None, {}) == first.id


def test_code_counts_as_what_decides(tmp_path: Path) -> None:
    for name in ("flexrl", "train.py", "requirements.txt"):
        source = ROOT / name
        subprocess.run(["cp", "-r", str(source), str(tmp_path / name)], check=True)
    assert code_digest("train.py", tmp_path) == code_digest("train.py")
    with (tmp_path / "flexrl" / "rewards.py").open("a") as file:
        file.write("# changed\n")
    assert code_digest("train.py", tmp_path) != code_digest("train.py")


def pairs_of(trials: list[Trial]) -> set[tuple[tuple[str, str], ...]]:
    """Every two values of different axes that some trial has together."""
    points = [sorted((key, str(value)) for key, value in t.point.items()) for t in trials]
    return {pair for point in points for pair in itertools.combinations(point, 2)}


def test_few_rehearsals_have_every_two_values_together(tmp_path: Path) -> None:
    """Numbers with numbers and with words: a network may not fit the snapshot that another axis begins with."""
    grid = {"learner.gamma": [0.9, 0.95, 0.99], "learner.n_epochs": [1, 2, 3], "video": [True, False]}
    trials = trials_of(written(tmp_path, grid=grid, zip={"learner.policy_kwargs.net_arch": [[8], [16], [8, 8]]}))
    chosen = rehearsals(trials)
    assert len(trials) == 3 * 3 * 2 * 3 * 2  # with the seeds
    assert pairs_of(chosen) == pairs_of(trials)
    assert 9 <= len(chosen) <= 12
    one = trials_of(written(tmp_path, grid=None))
    assert rehearsals(one) == one[:1]
    assert rehearsals([]) == []


def test_of_many_numbers_the_ends_and_ranges_are_rehearsed(tmp_path: Path) -> None:
    axes = {"learner.gamma": {"uniform": [0.9, 0.99]}, "learner.ent_coef": {"uniform": [0, 1]}}
    axes["learner.learning_rate"] = {"log_uniform": [1e-5, 1e-2]}
    trials = trials_of(written(tmp_path, grid=None, seeds=1, random={"n": 300, "axes": axes}))
    chosen = rehearsals(trials)
    assert 60 < len(chosen) < 200  # three times eight ranges with eight: 64 at least
    for key in axes:
        values, tried = sorted(t.point[key] for t in trials), {t.point[key] for t in chosen}
        assert {values[0], values[-1]} <= tried
        for i in range(8):  # each eighth of them
            assert tried & set(values[1 + i * 298 // 8 + 1 : 1 + (i + 1) * 298 // 8])


def test_a_pair_of_numbers_that_cannot_be_built_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a verb that takes each of two values, but not both together."""

    def check(settings: TrainSettings, is_new: bool) -> None:
        if settings.learner.n_epochs == 3 and settings.learner.ent_coef == 0.1:
            raise UserError("learner: cannot be built")

    monkeypatch.setitem(sweeps.VERBS, "train.py", dataclasses.replace(sweeps.VERBS["train.py"], rehearse=check))
    path = written(tmp_path, grid={"learner.n_epochs": [1, 2, 3], "learner.ent_coef": [0.0, 0.1, 0.2]})
    with pytest.raises(UserError, match=r"tiny.yaml: n_epochs=3 ent_coef=0.1 seed=0: learner: cannot be built"):
        sweeps.rehearse(load_sweep(path), trials_of(path), path)


def test_what_chooses_comes_first_and_nothing_is_lost(tmp_path: Path) -> None:
    changes = {"set": {"world": TINY["set"]["world"]}, "grid": None, "seeds": 1}
    zipped = {"learner.learning_rate": [1e-3, 2e-3], "learner.name": ["sac", "tqc"]}
    trials = trials_of(written(tmp_path, **changes, zip=zipped))
    assert [(t.settings.learner.name, t.settings.learner.learning_rate) for t in trials] == [("sac", 1e-3), ("tqc", 2e-3)]
    replaced = {"learner.gamma": [0.9], "learner": [{"name": "sac"}]}
    with pytest.raises(UserError, match=r"learner.gamma=0.9 is lost, as another setting of the point replaces"):
        trials_of(written(tmp_path, **changes, zip=replaced))


def test_what_is_drawn_twice_is_run_once(tmp_path: Path) -> None:
    axes = {"learner.n_epochs": {"choice": [1, 2, 3]}}
    assert len(trials_of(written(tmp_path, grid=None, seeds=1, random={"n": 20, "axes": axes}))) == 3
    axes = {"learner.gamma": {"uniform": [0.99, 0.9901]}}
    titles = [t.title for t in trials_of(written(tmp_path, grid=None, seeds=1, random={"n": 30, "axes": axes}))]
    assert len(set(titles)) == 30


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grid": {"learner.learning_rte": [1e-3]}}, "no key 'learning_rte' here; did you mean 'learning_rate'?"),
        (
            {"list": [{"name": "a", "resources": {"cpus": 2}}]},
            "list.0.resources: no key 'cpus' here; did you mean 'cpu'?",
        ),
        ({"grid": {"learner.gamma": [2.0]}}, "learner.gamma=2: learner.gamma: expected"),
        ({"grid": {"learner.gamma": []}}, "grid.learner.gamma: has no values"),
        ({"zip": {"learner.gamma": [0.9, 0.99], "learner.n_epochs": [1]}}, "zip: expected as many values of each"),
        ({"grid": {"num_steps": list(range(1, 5001))}, "seeds": 200}, "comes to 1,000,000 trials; add --yes"),
        ({"exclude": [{"learner.gama": 0.9}]}, "exclude: there is no axis 'learner.gama'"),
        ({"include": [{"name": "bold"}]}, "nothing in `list` is called 'bold'"),
        ({"include": [{"learner.learning_rate": 1e-4}]}, "stands there twice; keep one"),
        ({"exclude": [{"learner.learning_rate": 1e-4}, {"learner.learning_rate": 1e-3}]}, "comes to no trial"),
        ({"random": {"n": 2, "axes": {"learner.gamma": {"uniform": [1, 0]}}}}, "expected two rising numbers"),
        ({"random": {"n": 2, "axes": {"learner.gamma": {}}}}, "expected one of uniform, log_uniform, whole or choice"),
        ({"config": "nothing.yaml"}, "nothing.yaml: no such file"),
        ({"verb": "trian.py"}, "did you mean 'train.py'?"),
        (
            {"verb": "finetune_llm.py"},
            "verb: a sweep runs train.py, collect.py, train_dt.py, play.py, and no other verb; found 'finetune_llm.py'",
        ),
        (
            {"grid": None, "seeds": 1000, "search": {"n": 10_000, "axes": {"learner.gamma": {"uniform": [0.9, 0.99]}}}},
            "comes to 10,000,000 trials; add --yes",
        ),
        ({"seeds": 0}, "seeds: expected how many seeds"),
        ({"metric": "eval/retrun"}, "did you mean 'eval/return'?"),
        ({"metric": "speed"}, "metric: expected a metric of metrics.jsonl"),
        ({"grid": {"seed": [1, 2]}}, "seed: is no axis; write seeds"),
        ({"exclude": [{"learner.learning_rate": 0.5}]}, "exclude: no point agrees"),
        ({"seeds": [1, 1]}, "seeds: expected different whole numbers"),
        ({"resources": {"cpu": "many"}}, "resources.cpu"),
        ({"resources": {"cpu": 0}}, "resources.cpu"),
        ({"resources": {"cpu": "2Gi"}}, "resources.cpu"),
        ({"resources": {"memory": "500m"}}, "resources.memory"),
        ({"set": {"init_from": "nowhere"}}, "nowhere: is no snapshot"),
        ({"name": "Tiny_1"}, "name: expected"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        trials_of(written(tmp_path, **changes))
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value) or "nowhere" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_trials_of_one_name_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One begins with nothing, the other with a snapshot of that name."""
    monkeypatch.chdir(tmp_path)
    snapshots.write(Path("null"), {"policy.safetensors": b""})
    with pytest.raises(UserError) as caught:
        trials_of(written(tmp_path, grid={"init_from": [None, "null"]}))
    called = "two trials would be called 'init_from=null seed=0'; give their axes other values"
    assert str(caught.value) == f"{tmp_path / 'tiny.yaml'}: {called}"


def test_what_cannot_be_built_is_refused_before_anything_starts(tmp_path: Path) -> None:
    path = written(tmp_path, grid={"device": ["cpu", "cuda:77"]})
    done = submit(path, tmp_path / "workspace")
    assert done.returncode == 2, done.stderr
    assert "device=cuda:77 seed=0: device: there is no cuda:77" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "workspace").exists()


def test_a_sweep_runs_once_and_only_what_changed_again(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    done = submit(written(tmp_path), workspace)
    assert done.returncode == 0, done.stdout + done.stderr
    ledger = Ledger(workspace / "sweeps" / "tiny")
    entries = ledger.entries()
    assert len(entries) == 4
    results = {key: ledger.status(key).result for key in entries}
    assert len(set(results.values())) == 4
    again = submit(written(tmp_path), workspace)
    assert again.returncode == 0
    assert "= 4 done" in again.stdout
    more = submit(written(tmp_path, grid={"learner.learning_rate": [1e-4, 3e-3]}), workspace, "--plan")
    assert "+ 2 new  = 2 done" in more.stdout
    changed = submit(written(tmp_path, set={**TINY["set"], "num_steps": 3000}), workspace, "--plan")
    assert "~ 4 changed" in changed.stdout
    assert "steps/s each, as earlier runs made" in changed.stdout
    report = subprocess.run(
        [sys.executable, "submit_sweep.py", "report", "tiny", "--workspace", str(workspace), "--json"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    points = json.loads(report.stdout)
    assert [len(point["scores"]) for point in points] == [2, 2]
    assert points[0]["iqm"] >= points[1]["iqm"]
    assert points[0]["iqm"] == pytest.approx(sum(points[0]["scores"]) / 2)
    assert points[0]["interval"][0] <= points[0]["iqm"] <= points[0]["interval"][1]
    assert (ledger.folder / "report.png").stat().st_size > 5000
    rows = (ledger.folder / "report.csv").read_text().splitlines()
    assert rows[0] == "trial,learner.learning_rate,seed,state,attempts,lost_steps,steps,eval/return"
    assert len(rows) == 5
    chaotic = submit(written(tmp_path), tmp_path / "chaos", "--chaos", "kill=0.7,seed=1")
    assert chaotic.returncode == 0, chaotic.stdout + chaotic.stderr
    other = Ledger(tmp_path / "chaos" / "sweeps" / "tiny")
    assert {key: other.status(key).result for key in other.entries()} == results
    attempts = [attempt for key in results for attempt in other.status(key).attempts]
    assert sum(attempt.how == "killed by --chaos" for attempt in attempts) == len(attempts) - 4 > 0
    assert all(0 <= attempt.lost_steps <= 1000 for attempt in attempts)  # it saves after every rollout of 256 steps
    assert any(attempt.from_step > 0 for attempt in attempts)
    assert not any(attempt.counted for attempt in attempts)


@pytest.mark.parametrize("how", ["Ctrl-C", "cancel"])
def test_a_stop_is_clean_and_the_same_command_goes_on(tmp_path: Path, how: str) -> None:
    path, workspace = written(tmp_path, set={**TINY["set"], "num_steps": 90_000}, grid=None), tmp_path / "workspace"
    ledger = Ledger(workspace / "sweeps" / "tiny")
    process = subprocess.Popen(command(path, workspace), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while time.monotonic() < until and not any(ledger.step_of(key) for key in ledger.entries()):
        time.sleep(0.1)
    if how == "Ctrl-C":
        refused = submit(path, workspace)
        assert refused.returncode == 2
        assert "another process is running this sweep" in refused.stderr
        process.send_signal(signal.SIGINT)
    else:
        asked = [sys.executable, "submit_sweep.py", "cancel", "tiny", "--workspace", str(workspace)]
        subprocess.run(asked, cwd=ROOT, check=True, timeout=60)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors
    stopped = {key: ledger.status(key) for key in ledger.entries()}
    cut = [key for key, status in stopped.items() if status.attempts and status.state != "done"]
    assert cut
    assert all(stopped[key].state == "waiting" and stopped[key].attempts[0].exit_code == 143 for key in cut)
    done = submit(path, workspace)
    assert done.returncode == 0, done.stdout + done.stderr
    for key in cut:
        status = ledger.status(key)
        assert status.state == "done"
        assert status.attempts[1].from_step > 0
        assert status.num_counted == 0


def test_bad_settings_are_never_retried_and_failures_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb that ends as it is told, in place of train.py, under the manifest's own rules."""
    path = written(tmp_path, grid=None, seeds=5, retries=1, parallelism=2)
    sweep, trials = load_sweep(path), trials_of(path)
    ledger = Ledger(tmp_path / "sweep")
    ledger.submit(sweep, trials, None)
    codes = [[2], [1, 1, 0], [75, 0], [143, 143, 143, 0], [-9, 1, 0]]  # by trial and attempt; -9: killed by the kernel
    script = tmp_path / "ends.py"
    script.write_text(
        "import json, os, sys\n"
        f"codes = {codes}[int(os.environ['JOB_COMPLETION_INDEX'])]\n"
        "path = os.environ['FLEXRL_WORKSPACE'] + '/' + os.environ['JOB_COMPLETION_INDEX']\n"
        "number = len(open(path).read()) if os.path.exists(path) else 0\n"
        "open(path, 'a').write('.')\n"
        "os.kill(os.getpid(), 9) if codes[number] == -9 else sys.exit(codes[number])\n"
    )
    monkeypatch.setattr(Ledger, "result_of", lambda self, trial: "made")
    [one] = job_manifests.render(sweep, trials, "local")
    one.container["command"] = ["python", str(script)]
    environment = one.container["env"]
    next(variable for variable in environment if variable["name"] == trial.WORKSPACE)["value"] = "/app/workspace/sweeps/sweep"
    runner = Runner([one], {}, ledger)
    assert runner.run()
    statuses = [ledger.status(t.id) for t in trials]
    assert [status.state for status in statuses] == ["refused", "failed", "done", "done", "failed"]
    assert [[a.exit_code for a in status.attempts] for status in statuses] == [
        [2],
        [1, 1],
        [75, 0],
        [143, 143, 143, 0],
        [137, 1],
    ]
    assert [status.num_counted for status in statuses] == [0, 2, 1, 0, 2]


def test_trials_that_take_different_machines_have_jobs_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=8 << 30))
    monkeypatch.setattr(machine, "num_threads", lambda with_openmp: 4)
    kinds: list[dict[str, Any]] = [{"name": name, "set": {"learner.gamma": gamma}} for name, gamma in GAMMAS.items()]
    kinds[1]["resources"] = {"memory": "6Gi", "cpu": 2}
    path = written(tmp_path, grid=None, list=kinds, seeds=2, parallelism=3, max_failed=3, resources={"memory": "2Gi"})
    sweep, trials = load_sweep(path), trials_of(path)
    small, large = job_manifests.render(sweep, trials, "local")
    ids = [t.id for t in trials]
    assert [*small.trials, *large.trials] == [ids[0], ids[1], ids[4], ids[5], ids[2], ids[3]]
    assert [job.container["resources"]["requests"]["memory"] for job in (small, large)] == ["2Gi", "6Gi"]
    assert [job.spec["parallelism"] for job in (small, large)] == [2, 1]
    assert {"name": "OMP_NUM_THREADS", "value": "2"} in large.container["env"]
    for job in (small, large):
        assert job_rules.problems(job.job) == []
        packed = base64.b64decode(job.config_map["binaryData"][job_manifests.TRIALS_FILE])
        assert [trial.unpack(packed, index)[0]["id"] for index in range(len(job.trials))] == list(job.trials)
    ledger = Ledger(tmp_path / "sweep")
    ledger.submit(sweep, trials, None)
    times = tmp_path / "times"
    script = tmp_path / "notes.py"
    script.write_text(
        "import os, time\n"
        "def note(sign):\n"
        f"    with open({str(times)!r}, 'a') as file:\n"
        "        file.write(f'{sign} {os.environ[\"OMP_NUM_THREADS\"]}\\n')\n"
        "note(1)\ntime.sleep(0.4)\nnote(-1)\n"
    )
    monkeypatch.setattr(Ledger, "result_of", lambda self, trial: "made")
    for job in (small, large):
        job.container["command"] = ["python", str(script)]
    assert Runner([small, large], {}, ledger, at_a_time=1).slots == 1
    runner = Runner([small, large], {}, ledger)
    assert runner.slots == 3
    assert runner.run()
    assert {ledger.status(key).state for key in ids} == {"done"}
    taken, most = 0, 0
    for line in times.read_text().splitlines():
        sign, cores = map(int, line.split())
        taken += sign * (6 if cores == 2 else 2)  # GiB
        most = max(most, taken)
    assert most == 8


def test_parallelism_bounds_all_jobs_together(tmp_path: Path) -> None:
    """Here the runner counts; on a cluster each Job runs by itself, so they share it out."""
    kinds = [{"name": f"m{n}", "set": {"learner.gamma": 0.9 + n / 100}, "resources": {"memory": f"{n}Gi"}} for n in (1, 2, 3)]
    path = written(tmp_path, grid=None, list=kinds, include=[{"name": "m1", "learner.n_epochs": 2}], seeds=5, parallelism=7)
    sweep, trials = load_sweep(path), trials_of(path)
    shares = [job.spec["parallelism"] for job in job_manifests.render(sweep, trials, "gke", IMAGE)]
    assert shares == [3, 2, 2]  # of 10, 5 and 5 trials
    for parallelism, sizes in ((3, [1, 10, 1]), (5, [1, 10, 1]), (100, [2, 3]), (8, [1]), (9, [3, 1, 400, 50])):
        shares = job_manifests.share_out(parallelism, sizes)
        assert sum(shares) == min(parallelism, sum(sizes))
        assert all(1 <= share <= size for share, size in zip(shares, sizes, strict=True))
    few = sweep.model_copy(update={"parallelism": 2})
    with pytest.raises(UserError) as caught:
        job_manifests.render(few, trials, "kind", IMAGE)
    kinds_of = "its trials take 3 kinds of resources, each a Job that runs one at least"
    assert str(caught.value) == f"tiny: parallelism: 2, but {kinds_of}; write 3 or more"
    planned = submit(written(tmp_path, grid=None, list=kinds, seeds=2, parallelism=1), tmp_path / "w", "--plan")
    assert planned.returncode == 0, planned.stderr
    jobs = job_manifests.render(few, trials, "local")
    assert Runner(jobs, {}, Ledger(tmp_path / "sweep"), at_a_time=few.parallelism).slots <= 2


def test_what_a_job_was_submitted_from_is_not_told_of_its_image(tmp_path: Path) -> None:
    path = written(tmp_path)
    [one] = job_manifests.render(load_sweep(path), trials_of(path, image=IMAGE), "gke", IMAGE, "abc-dirty")
    metadata = one.job["metadata"]
    assert metadata["annotations"]["flex-rl/submitted-from"] == "abc-dirty"
    assert not any("commit" in key or "version" in key for key in {**metadata["annotations"], **metadata["labels"]})


def test_what_a_plan_says_of_time_counts_evaluations_and_saves(tmp_path: Path) -> None:
    path = written(tmp_path, grid=None, seeds=3)
    sweep, trials = load_sweep(path), trials_of(path)
    ledger = Ledger(tmp_path / "sweeps" / "tiny")
    assert make_plan(sweep, trials, ledger, tmp_path).steps_per_second is None
    ledger.submit(sweep, trials, None)
    attempts = [
        {"start": "2026-01-01T00:00:00Z", "end": "2026-01-01T00:01:40Z", "from_step": 0, "to_step": 300},
        {"start": "2026-01-01T01:00:00Z", "end": "2026-01-01T01:01:40Z", "from_step": 200, "to_step": 500},
        {"start": "2026-01-01T02:00:00Z", "from_step": 500},
    ]
    lineage = {"name": "x", "seed": 0, "parents": {}, "attempts": [{"command": "", "how": "", **a} for a in attempts]}
    for key, document in zip([t.id for t in trials], (json.dumps(lineage), "damaged", json.dumps(lineage)), strict=True):
        (ledger.trials / key).mkdir()
        (ledger.trials / key / "lineage.json").write_text(document)
    plan = make_plan(sweep, trials, ledger, tmp_path)
    assert plan.steps_per_second == pytest.approx(3.0)
    assert plan.hours(2) == pytest.approx(plan.steps_left / 3.0 / 2 / 3600)


def test_a_log_is_followed_until_its_attempt_is_over(tmp_path: Path) -> None:
    path = written(tmp_path, grid=None, seeds=1)
    [one] = trials_of(path)
    ledger = Ledger(tmp_path / "sweeps" / "tiny")
    ledger.submit(load_sweep(path), [one], None)
    asked = [sys.executable, "submit_sweep.py", "logs", "tiny", one.id[:6], "--workspace", str(tmp_path)]
    early = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (early.returncode, early.stderr) == (2, f"{one.id}: has not been started yet\n")
    ledger.set_status(one.id, Status("running", [Attempt(start="2026-01-01T00:00:00Z")]))
    log = ledger.log_of(one.id, 0)
    log.write_text("first\n")
    now = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    assert now.stdout == "first\n"
    with ledger.locked():
        process = subprocess.Popen([*asked, "--follow"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        with log.open("a") as file:
            file.write("second\n")
        assert process.stdout.readline() == "second\n"
        with log.open("a") as file:
            file.write("last\n")
        ledger.set_status(one.id, Status("done", [Attempt(start="2026-01-01T00:00:00Z", end="2026-01-01T00:01:00Z")]))
        assert process.communicate(timeout=60)[0] == "last\n"
    ledger.set_status(one.id, Status("running", [Attempt(start="2026-01-01T00:00:00Z")]))  # and nobody runs it
    subprocess.run([*asked, "--follow"], cwd=ROOT, check=True, timeout=60, stdout=subprocess.DEVNULL)


def test_a_finished_dataset_that_has_lost_a_file_is_told(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "sweeps" / "tiny")
    run = ledger.trials / "0123456789ab"
    snapshots.write(run, {"00000.arrow": b"a", "00001.arrow": b"b"})
    assert ledger.is_intact(run.name)
    (run / "00001.arrow").unlink()
    with pytest.raises(UserError, match=r"00001.arrow: is missing; remove .*0123456789ab, and the trial is run again"):
        ledger.is_intact(run.name)


def test_a_damaged_trial_costs_itself_alone(tmp_path: Path) -> None:
    """Its lineage is empty, as after a power loss; another trial ends well without making anything."""
    path, workspace = written(tmp_path, grid=None), tmp_path / "workspace"
    assert submit(path, workspace).returncode == 0
    ledger = Ledger(workspace / "sweeps" / "tiny")
    first, second = ledger.entries()
    for key in (first, second):
        ledger.set_status(key, Status())
    (ledger.trials / first / "lineage.json").write_text("")
    done = submit(path, workspace)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert ledger.status(first).state == "refused"
    assert "lineage.json: is damaged" in ledger.log_of(first, 0).read_text()
    assert ledger.status(second).state == "done"


def test_nothing_is_started_once_the_code_has_changed(tmp_path: Path) -> None:
    path = written(tmp_path, grid=None)
    sweep, trials = load_sweep(path), trials_of(path)
    ledger = Ledger(tmp_path / "sweep")
    ledger.submit(sweep, trials, None)
    [one] = job_manifests.render(sweep, trials, "local")
    runner = Runner([one], {}, ledger, obstacle=lambda: "the code has changed")
    assert runner.run()
    assert runner.why_ended == "the code has changed"
    assert not any(ledger.status(t.id).attempts for t in trials)


def test_a_trial_that_takes_too_long_counts(tmp_path: Path) -> None:
    path = written(tmp_path, grid=None, seeds=1, retries=1, deadline=1)
    sweep, trials = load_sweep(path), trials_of(path)
    ledger = Ledger(tmp_path / "sweep")
    ledger.submit(sweep, trials, None)
    script = tmp_path / "waits.py"
    script.write_text("import signal, time\nsignal.signal(15, lambda *_: None)\nwhile True:\n    time.sleep(1)\n")
    [one] = job_manifests.render(sweep, trials, "local")
    one.container["command"] = ["python", str(script)]
    one.pod["terminationGracePeriodSeconds"] = 1  # it does not heed SIGTERM
    assert Runner([one], {}, ledger).run()
    status = ledger.status(trials[0].id)
    assert status.state == "failed"
    assert [attempt.how for attempt in status.attempts] == ["took longer than the deadline of 1 s"] * 2


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    path = written(tmp_path, max_failed=1, queue="gpus", resources={"gpu": 1, "accelerator": "nvidia-l4", "spot": True})
    return job_manifests.render(load_sweep(path), trials_of(path, image=IMAGE), "gke", IMAGE, "abc")[0].job


@pytest.mark.parametrize("version", ["1.33", "1.34", "1.37"])
@pytest.mark.parametrize("target", ["local", "kind", "gke"])
def test_manifests_are_what_kubernetes_takes(tmp_path: Path, target: Any, version: str) -> None:
    for number, resources in enumerate(({}, {"gpu": 2, "accelerator": "nvidia-l4", "spot": True, "cpu": "500m"})):
        path = written(tmp_path, resources=resources, queue="gpus" if number else None, deadline=3600 if number else None)
        image = None if target == "local" else IMAGE
        [one] = job_manifests.render(load_sweep(path), trials_of(path, image=image), target, image)
        assert job_rules.problems(one.job) == []
        for manifest in (one.job, one.config_map):
            kubernetes_validate.validate(manifest, version, strict=True)
        pod = one.pod
        assert ("nodeSelector" in pod) == (target != "kind" and number == 1)
        packed = base64.b64decode(one.config_map["binaryData"][job_manifests.TRIALS_FILE])
        assert trial.unpack(packed, 3)[0]["id"] == trials_of(path, image=image)[3].id


def broken(job: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of the Job with a dotted key set to the value, or without it (null)."""
    job = copy.deepcopy(job)
    *parents, last = key.split(".")
    level: Any = job
    for part in parents:
        level = level[int(part)] if part.isdigit() else level[part]
    if value is None:
        del level[last]
    else:
        level[int(last) if last.isdigit() else last] = value
    return job


POD, TRAIN = "spec.template.spec", "spec.template.spec.containers.0"
RULE = "spec.podFailurePolicy.rules.0"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("spec.completionMode", "NonIndexed", "only an Indexed Job has it"),
        ("spec.completions", None, "an Indexed Job says how many"),
        (f"{POD}.restartPolicy", "OnFailure", "needs restartPolicy: Never"),
        (f"{POD}.restartPolicy", "Always", "Never or OnFailure"),
        ("spec.maxFailedIndexes", 5, "more than the 4 completions"),
        ("spec.backoffLimitPerIndex", None, "maxFailedIndexes: needs backoffLimitPerIndex"),
        ("spec.backoffLimitPerIndex", None, "FailIndex needs backoffLimitPerIndex"),
        ("spec.parallelism", 100_001, "spec.parallelism: is more than 100,000"),
        ("metadata.name", "a" * 62, "is no DNS label"),
        ("metadata.name", "Tiny", "is no DNS label"),
        ("spec.podReplacementPolicy", "TerminatingOrFailed", "only Failed goes with podFailurePolicy"),
        (f"{RULE}.onExitCodes.containerName", "trian", "there is no container 'trian'"),
        (f"{RULE}.onExitCodes.values", [0, 2], "0 is no failure"),
        (f"{RULE}.onExitCodes.values", [78, 2], "must rise, each once"),
        (f"{RULE}.onExitCodes.values", [2, 2], "must rise, each once"),
        (f"{RULE}.onExitCodes.values", [], "1 to 255"),
        (f"{RULE}.onExitCodes", None, "exactly one of onExitCodes and onPodConditions"),
        (f"{RULE}.onPodConditions", [{"type": "DisruptionTarget"}], "exactly one of onExitCodes and onPodConditions"),
        ("spec.podFailurePolicy.rules.2.onPodConditions.0.status", True, "the status is text"),
        (f"{RULE}.action", "Retry", "expected one of FailJob"),
        ("spec.podFailurePolicy.rules", [{"action": "Ignore", "onPodConditions": []}] * 21, "more than 20"),
        (f"{TRAIN}.resources.requests.cpu", 1, 'quantities are text, such as "1"'),
        (f"{TRAIN}.resources.limits", {"memory": "1Gi"}, ""),
        (f"{TRAIN}.resources", {"requests": {"nvidia.com/gpu": "1"}}, "is set as a limit"),
        (f"{TRAIN}.resources.requests.memory", None, "resources.requests.memory: quotas and queues count"),
        (f"{TRAIN}.image", "flex-rl:latest", "without a digest"),
        (f"{POD}.hostNetwork", True, "hostNetwork: a pod has nothing of its machine's"),
        (f"{POD}.volumes", [{"name": "trials", "hostPath": {"path": "/"}}], "volume 'trials': hostPath: only configMap"),
        (f"{POD}.securityContext.runAsUser", 0, "runAsNonRoot: must be true, and runAsUser not 0"),
        (f"{POD}.securityContext.runAsNonRoot", None, "runAsNonRoot: must be true"),
        (f"{POD}.securityContext.seccompProfile", None, "seccompProfile: must be RuntimeDefault"),
        (f"{TRAIN}.securityContext.privileged", True, "privileged: must not be"),
        (f"{TRAIN}.securityContext.allowPrivilegeEscalation", None, "allowPrivilegeEscalation: must be false"),
        (f"{TRAIN}.securityContext.capabilities", {"drop": ["ALL"], "add": ["SYS_ADMIN"]}, "must drop ALL, and add none"),
        (f"{TRAIN}.securityContext.readOnlyRootFilesystem", False, "readOnlyRootFilesystem: must be true"),
        (f"{POD}.volumes", [], "there is no volume 'trials'"),
    ],
)
def test_what_the_api_server_would_refuse_is_told_before(job: dict[str, Any], key: str, value: Any, said: str) -> None:
    assert job_rules.problems(job) == []
    found = job_rules.problems(broken(job, key, value))
    assert any(said in problem for problem in found) if said else not found


def test_one_table_of_exit_codes_for_runner_and_cluster(job: dict[str, Any]) -> None:
    rules = job["spec"]["podFailurePolicy"]["rules"]
    actions = {"never": "FailIndex", "free": "Ignore"}
    for code in range(1, 256):
        retry = exit_codes.meaning_of(code).retry
        matching = [rule["action"] for rule in rules if code in rule.get("onExitCodes", {}).get("values", [])]
        assert matching == ([actions[retry]] if retry in actions else [])


def test_names_of_jobs_leave_room_for_their_pods() -> None:
    for length, completions in ((5, 1), (40, 1), (40, 1000), (40, 100_000)):
        name = job_manifests.job_name("a" * length, "0123456789", completions)
        assert len(f"{name}-{completions - 1}") <= 63
        assert name.endswith("-012345")


def test_an_image_without_a_digest_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(
        UserError, match=r"--image flex-rl:1: without a digest it may become another: make load-image prints its name"
    ):
        job_manifests.render(load_sweep(path), trials_of(path), "kind", "flex-rl:1")


def test_what_no_pod_was_told_is_one_line() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FLEXRL")}
    done = subprocess.run(
        [sys.executable, "submit_sweep.py", "trial"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("submit_sweep.py trial: is what a sweep's Job runs; FLEXRL_TRIALS")


def test_a_machine_too_small_is_told(tmp_path: Path) -> None:
    for resources, said in (({"cpu": 4096}, "resources.cpu: a trial wants 4096"), ({"memory": "900Ti"}, "resources.memory")):
        done = submit(written(tmp_path, resources=resources), tmp_path / "workspace")
        assert done.returncode == 2
        assert said in done.stderr


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    assert interquartile_mean([1.0, 2.0, 3.0]) == 2.0
    assert interquartile_mean([-100.0, 1.0, 2.0, 900.0]) == 1.5
    assert interquartile_mean([0.0, 0.0, 1.0, 2.0, 3.0, 6.0, 99.0, 99.0]) == 3.0


def test_verbs_are_those_that_stand_in_the_root() -> None:
    assert all((ROOT / name).is_file() for name in sweeps.VERBS)


def test_two_files_do_not_share_a_ledger(tmp_path: Path) -> None:
    folder = tmp_path / "w" / "sweeps" / "a-b"
    for name in ("a_b.yaml", "a-b.yaml"):
        written(tmp_path, name=None, seeds=1).rename(tmp_path / name)
    path = tmp_path / "a_b.yaml"
    assert load_sweep(path).name == load_sweep(tmp_path / "a-b.yaml").name == "a-b"
    Ledger(folder).submit(load_sweep(path), trials_of(path), None, path)
    assert submit(path, tmp_path / "w", "--plan").returncode == 0
    other = submit(tmp_path / "a-b.yaml", tmp_path / "w", "--plan")
    holds = f"{folder} holds the sweep of a_b.yaml, which has the same name"
    cure = f"write another name, or remove {folder / 'file'} if it is the same sweep"
    assert (other.returncode, other.stderr) == (2, f"{tmp_path / 'a-b.yaml'}: name: {holds}; {cure}\n")


def test_chaos_is_of_this_machine(tmp_path: Path) -> None:
    for target, image in (("kind", "flex-rl:sha256-abcdef012345"), ("gke", IMAGE)):
        done = submit(written(tmp_path), tmp_path, "--target", target, "--image", image, "--chaos", "kill=0.2")
        line = f"--chaos: kills processes of this machine, not pods of {target}; write --target local\n"
        assert (done.returncode, done.stderr) == (2, line)


def test_evaluations_can_be_swept(tmp_path: Path) -> None:
    changes = {
        "verb": "play.py",
        "set": {"num_episodes": 2, "model": "examples/pretrained/humanoid_walk"},
        "grid": {"physics": ["v5", "fast"]},
        "seeds": [0, 5],
        "metric": "eval/mean_speed",
    }
    path = written(tmp_path, **changes)
    done = submit(path, tmp_path / "w")
    assert done.returncode == 0, done.stderr
    ledger = Ledger(tmp_path / "w" / "sweeps" / "tiny")
    results = [ledger.status(key).result for key in ledger.entries()]
    assert len(set(results)) == 4
    assert None not in results
    assert all(entry.inputs for entry in ledger.entries().values())
    told = subprocess.run(
        [sys.executable, "submit_sweep.py", "report", "tiny", "--workspace", str(tmp_path / "w"), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [len(point["scores"]) for point in json.loads(told.stdout)] == [2, 2]


def test_what_was_done_and_is_gone_is_run_again(tmp_path: Path) -> None:
    path = written(tmp_path, grid=None, seeds=1)
    assert submit(path, tmp_path / "w").returncode == 0
    ledger = Ledger(tmp_path / "w" / "sweeps" / "tiny")
    (key,) = ledger.entries()
    before = ledger.status(key).result
    latest = ledger.trials / key / "latest" / "policy.safetensors"
    latest.write_bytes(latest.read_bytes()[:-1])
    damaged = submit(path, tmp_path / "w")
    assert damaged.returncode == 2
    assert damaged.stderr.endswith(f"remove {ledger.trials / key}, and the trial is run again\n")
    shutil.rmtree(ledger.trials / key)
    again = submit(path, tmp_path / "w")
    assert again.returncode == 0, again.stderr
    assert ledger.status(key).result == ledger.result_of(key) == before


def test_no_axis_long_names_and_tags_are_told(tmp_path: Path) -> None:
    empty, long = tmp_path / "empty.yaml", tmp_path / f"{'a' * 41}.yaml"
    empty.write_text("grid: {}\n")
    long.write_text("grid: {learner.gamma: [0.9]}\n")
    with pytest.raises(UserError, match=r"empty.yaml: grid: has no axis; write one, such as"):
        load_sweep(empty)
    with pytest.raises(UserError, match=r"name: a{41} has more than 40 characters, as a Job's may have; write a shorter name"):
        load_sweep(long)
    long.write_text("name: short\ngrid: {learner.gamma: [0.9]}\n")
    assert load_sweep(long).name == "short"
    tagged = submit(long, tmp_path, "--target", "gke", "--image", "repo/flex-rl:sha256-abcdef012345", "--plan")
    line = "--image repo/flex-rl:sha256-abcdef012345: has no digest; write NAME@sha256:..., as make push-image prints it\n"
    assert (tagged.returncode, tagged.stderr) == (2, line)
