"""A sweep on a cluster: its Jobs submitted and followed, looked at, cancelled, what they came to fetched."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kubernetes.client.exceptions import ApiException

from flexrl import fetching, sweep_screen
from flexrl.cluster import Cluster, connect, context_of, is_known, over, why_of
from flexrl.config import UserError
from flexrl.follower import Follower, give_up
from flexrl.job_manifests import Target, TrialJob
from flexrl.runs import Failed
from flexrl.sweep_ledger import Ledger

SECONDS_TO_LOOK = 5.0  # that a cluster has to answer who only asks how a sweep stands


@contextmanager
def _in_one_line() -> Iterator[None]:
    """What a cluster refuses, and nobody has explained better, as a UserError."""
    try:
        yield
    except ApiException as error:
        raise UserError(f"the cluster refuses (HTTP {error.status}): {why_of(error)}; kubectl says more") from None


@_in_one_line()
def catch_up(ledger: Ledger, target: Target) -> None:
    """Follows the Jobs that were submitted before, if the cluster still has them: to their end, maybe long ago.

    A cluster is not asked about Jobs that are known to be over, so the sweep may move to another. UserError if what goes on
    there is now to run here too (`target` local).
    """
    noted = [job for job in ledger.jobs() if not ledger.has_ended(job)]
    if not noted:
        return
    if target == "local":
        _check_is_over(noted, ledger)
        return
    context = ledger.context()
    if context is not None and not is_known(context):
        names = ", ".join(job.name for job in noted)
        lost = "what it had not told yet is taken for lost, and its trials for cut"
        print(f"Job {names}: the kubeconfig has no context {context} any more; {lost}", file=sys.stderr)
        with ledger.locked():
            _give_up(ledger, noted)
        return
    cluster = connect(context)
    cluster.check()
    there = [job for job in noted if cluster.has(job)]
    with ledger.locked():
        _forget(ledger, noted, there)
        for job in there:
            print(f"Job {job.name}: was submitted before; following it", file=sys.stderr)
        if there:
            follow(cluster, there, ledger)


def _forget(ledger: Ledger, noted: list[TrialJob], there: list[TrialJob]) -> None:
    """Those of the Jobs that are not there any more, which is told."""
    gone = [job for job in noted if job not in there]
    for job in gone:
        why = "its day after the end is over, somebody deleted it, or it was never created"
        lost = "what nobody had looked at before is lost, and its trials go on from latest/"
        print(f"Job {job.name}: is not there ({why}); {lost}", file=sys.stderr)
    _give_up(ledger, gone)


def _give_up(ledger: Ledger, jobs: list[TrialJob]) -> None:
    """Their pods' attempts end with them; they are asked for no more."""
    if jobs:
        give_up(ledger, jobs)
        names = {job.name for job in jobs}
        ledger.note_jobs([job for job in ledger.jobs() if job.name not in names], ledger.context())


def _check_is_over(jobs: list[TrialJob], ledger: Ledger) -> None:
    """UserError if a Job still runs there; told if nobody can say."""
    where, name = ledger.context() or "the cluster", jobs[0].job["metadata"]["labels"]["flex-rl/sweep"]
    with ledger.locked():
        try:
            cluster = connect(ledger.context(), patience=SECONDS_TO_LOOK)
            _look(cluster, ledger)
            running = [job.name for job in jobs if cluster.has(job) and over(cluster.read(job)) is None]
        except (UserError, Failed) as error:
            why = str(error).partition(";")[0]
            print(f"Job {jobs[0].name}: may still run on {where}, which cannot be asked ({why})", file=sys.stderr)
            return
    if running:
        raise UserError(
            f"{name}: runs already, on {where} as {running[0]}; wait for it, or submit_sweep.py cancel {name} first"
        )


@_in_one_line()
def run(jobs: list[TrialJob], ledger: Ledger, target: Target, note: Callable[[], None], fetches: bool = False) -> None:
    """As Jobs of the target's cluster, followed until they are over; Ctrl-C leaves them running.

    `fetches`: what they come to is fetched then, which wants rights of its own on GKE.
    """
    cluster = connect(context_of(target))
    cluster.check(jobs, fetches=fetches and target == "gke")
    with ledger.locked():
        note()
        for key in (key for job in jobs for key in job.trials):
            ledger.forgive(key)
        ledger.note_jobs(jobs, cluster.context)  # before they are there, so that they are found again whatever happens
        new = cluster.submit(jobs)
        for job in jobs:
            how = "created" if job.name in new else "is there already"
            print(f"Job {job.name}: {how}; Ctrl-C leaves it running", file=sys.stderr)
        follow(cluster, jobs, ledger)


def follow(cluster: Cluster, jobs: list[TrialJob], ledger: Ledger) -> None:
    """To their end, what runs on the screen."""
    with sweep_screen.Screen(ledger, [key for job in jobs for key in job.trials]) as screen:
        Follower(cluster, jobs, ledger, screen.show).run()


def look(ledger: Ledger, logs_of: str = "") -> list[str] | None:
    """Brings the ledger of a sweep on a cluster up to date where nobody follows it; what is in the way of its trials.

    `logs_of`: the trial whose pods' logs are read while they run. Null if the cluster does not let one look, which is told.
    """
    try:
        with ledger.looked_at() as is_mine, _in_one_line():
            return _look(connect(ledger.context(), patience=SECONDS_TO_LOOK), ledger, logs_of) if is_mine else None
    except (UserError, Failed) as error:
        print(f"as it was when somebody last looked: {str(error).partition(';')[0]}", file=sys.stderr)
        return None


def _look(cluster: Cluster, ledger: Ledger, logs_of: str | None = None) -> list[str]:
    """As `look`, by who holds the ledger; Jobs that are known to be over are asked for no more."""
    noted = [job for job in ledger.jobs() if not ledger.has_ended(job)]
    there = [job for job in noted if cluster.has(job)]
    _forget(ledger, noted, there)
    return Follower(cluster, there, ledger, logs_of=logs_of).look() if there else []


@_in_one_line()
def bring(name: str, ledger: Ledger) -> list[str]:
    """Fetches what finished there and is not in this workspace yet: the ids; Failed if a trial does not come whole."""
    cluster = connect(ledger.context())
    cluster.check()
    fetched, missing = fetching.fetch(name, ledger, cluster)
    if missing:
        come = f"{len(fetched)} trials came, these did not come whole: {', '.join(missing)}"
        raise Failed(f"{name}: {come}; the same command tries them again")
    return fetched


@_in_one_line()
def cancel(name: str, ledger: Ledger) -> list[str]:
    """Deletes its Jobs and their pods, once what they came to and printed is noted; the names of those Jobs."""
    cluster = connect(ledger.context())
    cluster.check()
    with ledger.looked_at() as is_mine:
        if is_mine:  # else who follows it keeps logs, and sees that it is gone
            _look(cluster, ledger)
        names = cluster.cancel(name)
        if is_mine:
            _give_up(ledger, [job for job in ledger.jobs() if job.name in names])
    return names
