"""A sweep that a toy cluster runs: its Jobs, its ledger, how its trials are to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from toy_cluster import ToyCluster

from flexrl import job_manifests, runs
from flexrl.sweep_ledger import Ledger
from flexrl.sweep_settings import SweepSettings
from flexrl.sweeps import Trial

IMAGE = "registry.example/flex-rl@sha256:" + "cd" * 32
VANISHED = "(the pod vanished; what it printed after this is lost)\n"


class NoSettings(runs.Settings):
    """Of a trial that nobody runs."""

    num_steps: int = 10


def a_sweep(
    folder: Path, num_trials: int, num_jobs: int = 1, target: job_manifests.Target = "kind", **changes: Any
) -> tuple[list[job_manifests.TrialJob], list[str], Ledger]:
    sweep = SweepSettings(name="tiny", seeds=num_trials, parallelism=3, retries=1, **changes)
    takes = [sweep.resources.model_copy(update={"spot": True} if number else {}) for number in range(num_jobs)]
    trials = [Trial(f"{i:012x}", "", i, {}, NoSettings(), 10, {}, takes[i % num_jobs]) for i in range(num_trials)]
    jobs = job_manifests.render(sweep, trials, target, IMAGE)
    ledger = Ledger(folder / "tiny")
    ledger.submit(sweep, trials, IMAGE)
    return jobs, [t.id for t in trials], ledger


def expected(plan: Callable[[int, int], int | str], index: int, free: tuple[Any, ...]) -> tuple[str, list[int | str]]:
    """How a trial ends under `retries: 1`, and what each of its attempts came to."""
    outcomes: list[int | str] = []
    counted = 0
    while True:
        outcome = plan(index, len(outcomes))
        outcomes.append(outcome)
        if outcome in (0, 2):
            return ("done" if outcome == 0 else "refused"), outcomes
        counted += outcome not in (*free, "vanishes")
        if counted > 1:
            return "failed", outcomes


def check(
    ledger: Ledger,
    trials: list[str],
    plan: Callable[[int, int], int | str],
    free: tuple[Any, ...] = ("disrupted", 143),
) -> None:
    """Every trial ended as the plan has it, every attempt is known, every log is whole.

    Of a pod that vanished there is an attempt which says so, if anybody saw it while it ran.
    """
    for index, key in enumerate(trials):
        state, outcomes = expected(plan, index, free)
        status = ledger.status(key)
        assert status.state == state
        known = {int(str(attempt.pod).rsplit("-", 1)[1]): place for place, attempt in enumerate(status.attempts)}
        assert len(known) == len(status.attempts)
        lost = {number for number, outcome in enumerate(outcomes) if outcome == "vanishes"}
        assert set(range(len(outcomes))) - lost <= set(known) <= set(range(len(outcomes)))
        for number, place in known.items():
            attempt, log = status.attempts[place], ledger.log_of(key, place).read_text()
            assert attempt.node == f"node-{number}"
            if number in lost:
                assert (attempt.exit_code, attempt.how, attempt.counted) == (None, "its pod vanished", False)
                assert log in (VANISHED, f"begins\n{VANISHED}")
                continue
            outcome = outcomes[number]
            assert attempt.exit_code == (137 if outcome == "disrupted" else outcome)
            assert (attempt.how == "preempted") == (outcome in ("disrupted", 143))
            assert attempt.counted == (outcome not in (0, 2, *free))
            assert log == f"begins\nends with {outcome}\n"


def kubeconfig(folder: Path, toy: ToyCluster) -> Path:
    path = folder / "kubeconfig.yaml"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "toy",
        "contexts": [{"name": "toy", "context": {"cluster": "toy", "user": "me"}}],
        "clusters": [{"name": "toy", "cluster": {"server": toy.address}}],
        "users": [{"name": "me", "user": {}}],
    }
    path.write_text(yaml.safe_dump(document))
    return path
