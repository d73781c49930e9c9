"""A sweep on a cluster: its Jobs submitted and followed, looked at, cancelled, what they came to fetched."""

from __future__ import annotations

import sys
from collections.abc import Callable

from flexrl import fetching, sweep_screen
from flexrl.cluster import Cluster, connect, context_of
from flexrl.config import UserError
from flexrl.follower import Follower
from flexrl.job_manifests import Target, TrialJob
from flexrl.runs import Failed
from flexrl.sweep_ledger import Ledger

SECONDS_TO_LOOK = 5.0  # that a cluster has to answer who only asks how a sweep stands


def catch_up(ledger: Ledger) -> None:
    """Follows the Jobs that were submitted before, if the cluster still has them: to their end, maybe long ago."""
    noted = ledger.jobs()
    if not noted:
        return
    cluster = connect(ledger.context())
    cluster.check()
    jobs = [job for job in noted if cluster.has(job)]
    if jobs:
        with ledger.locked():
            for job in jobs:
                print(f"Job {job.name}: was submitted before; following it", file=sys.stderr)
            follow(cluster, jobs, ledger)


def run(jobs: list[TrialJob], ledger: Ledger, target: Target, note: Callable[[], None]) -> None:
    """As Jobs of the target's cluster, followed until they are over; Ctrl-C leaves them running."""
    cluster = connect(context_of(target))
    cluster.check(jobs)
    with ledger.locked():
        note()
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
        with ledger.looked_at() as is_mine:
            if not is_mine:
                return None
            cluster = connect(ledger.context(), patience=SECONDS_TO_LOOK)
            there = {job.name for job in ledger.jobs() if cluster.has(job)}
            gone = [job for job in ledger.jobs() if job.name not in there]
            if gone:
                Follower(cluster, gone, ledger).give_up()
            jobs = [job for job in ledger.jobs() if job.name in there]
            return Follower(cluster, jobs, ledger, logs_of=logs_of).look() if jobs else []
    except (UserError, Failed) as error:
        print(f"as it was when somebody last looked: {str(error).partition(';')[0]}", file=sys.stderr)
        return None


def bring(name: str, ledger: Ledger) -> list[str]:
    """Fetches what finished there and is not in this workspace yet: the ids; Failed if a trial does not come whole."""
    cluster = connect(ledger.context())
    cluster.check()
    fetched, missing = fetching.fetch(name, ledger, cluster)
    if missing:
        come = f"{len(fetched)} trials came, these did not come whole: {', '.join(missing)}"
        raise Failed(f"{name}: {come}; the same command tries them again")
    return fetched


def cancel(name: str, ledger: Ledger) -> list[str]:
    """Deletes its Jobs and their pods; the names of those Jobs."""
    cluster = connect(ledger.context())
    cluster.check()
    names = cluster.cancel(name)
    with ledger.looked_at() as is_mine:
        if is_mine:  # else who follows it sees that it is gone
            Follower(cluster, [job for job in ledger.jobs() if job.name in names], ledger).give_up()
    return names
