"""Submits a sweep: plans it, and runs what is to be run on this machine or a cluster, round after round if it searches."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flexrl import exit_codes, job_manifests, job_rules, provenance, sweep_screen, sweeps
from flexrl.config import UserError
from flexrl.job_manifests import Target, TrialJob
from flexrl.local_runner import Chaos, Runner
from flexrl.search import Search
from flexrl.sweep_ledger import Ledger
from flexrl.sweep_plan import make_plan
from flexrl.sweep_report import points_of
from flexrl.sweep_settings import SweepSettings, load_sweep
from flexrl.sweeps import Trial


@dataclass(frozen=True)
class Submission:
    """What the command line asks for."""

    path: Path  # the sweep's file
    workspace: Path
    target: Target = "local"
    image: str | None = None  # with a digest; of a cluster's target only
    only_plan: bool = False
    render_to: Path | None = None  # write the manifests there, and stop
    many: bool = False  # however many trials there are
    chaos: Chaos | None = None

    @property
    def only_told(self) -> bool:
        """Whether nothing is run."""
        return self.only_plan or self.render_to is not None


def submit(asked: Submission) -> bool:
    """Whether all trials of the sweep are done, or given up by its own rule; UserError in one line before anything is run."""
    sweep = load_sweep(asked.path)
    check_target(sweep, asked)
    ledger = Ledger(asked.workspace / "sweeps" / sweep.name)
    ledger.check_is_of(asked.path)
    if not asked.only_told and ledger.jobs():
        from flexrl import on_cluster  # its client takes a second to import

        on_cluster.catch_up(ledger, asked.target)
    if sweep.search is None:
        return run_round(sweep, ledger, asked)
    sweeps.check_number(sweep, asked.path, asked.many)  # of the whole search, as its rounds are small
    asked = replace(asked, many=True)
    first = sweep.model_copy(update={"include": [*sweep.include, *sweeps.drawn(sweep.search, 1)]})
    sweeps.expand(first, asked.path, many=True)  # its axes are settings
    search = Search(sweep.search, ledger.folder, sweep.maximize, only_told=asked.only_told)
    is_first = True
    while True:
        points = search.points()
        all_done = run_round(sweep.model_copy(update={"include": [*sweep.include, *points]}), ledger, asked, is_first)
        is_first = False
        if asked.only_told:
            return True
        if asked.target != "local":
            from flexrl import on_cluster

            on_cluster.bring(sweep.name, ledger)
        search.tell(scores_of(sweep, ledger, points))
        if search.is_over:
            return all_done


def check_target(sweep: SweepSettings, asked: Submission) -> None:
    """UserError if the sweep cannot run there."""
    if asked.target == "local" and asked.image:
        raise UserError("--image: what runs here is this folder; leave it away, or take --target kind")
    if asked.target != "local" and asked.chaos:
        raise UserError(f"--chaos: kills processes of this machine, not pods of {asked.target}; write --target local")
    if asked.target != "local" and not asked.image:
        raise UserError(
            f"--image: {asked.target} needs one with a digest, as make load-image (kind) and make push-image (gke) print it"
        )
    if asked.target == "gke" and "@sha256:" not in str(asked.image):
        raise UserError(f"--image {asked.image}: has no digest; write NAME@sha256:..., as make push-image prints it")
    if asked.target == "gke" and sweep.search is not None and shutil.which("kubectl") is None:
        raise UserError(f"{asked.path}: search: fetches what each round came to by kubectl, which is not installed")


def scores_of(sweep: SweepSettings, ledger: Ledger, points: list[dict[str, Any]]) -> dict[int, float]:
    """What the points of a search came to over their seeds, by their number."""
    found = points_of(sweep, ledger, is_told=False)
    return {number: p.score for number, point in enumerate(points) for p in found if p.values == point}


def run_round(sweep: SweepSettings, ledger: Ledger, asked: Submission, with_failed: bool = True) -> bool:
    """Plans the sweep and runs what is to be run, as the command line has it; whether all its trials are done.

    Trials that failed are run again, unless a search has seen them fail just now (not `with_failed`).
    """
    trials = sweeps.expand(sweep, asked.path, image=asked.image, many=asked.many)
    plan = make_plan(sweep, trials, ledger, asked.workspace)
    to_run = job_manifests.for_this_machine(sweep, [row.trial for row in plan.to_run], asked.target)
    sweeps.rehearse(sweep, to_run, asked.path)
    chosen = [row.trial for row in plan.to_run if with_failed or row.kind != "failed"]
    jobs = render(sweep, chosen or trials, trials, ledger, asked)
    if asked.render_to:
        write_manifests(jobs, asked.render_to)
        return True
    planned = {row.trial.id: row.trial.num_steps for row in plan.rows}
    if asked.target == "local":
        try:
            runner = Runner(jobs, planned, ledger, asked.chaos, sweep.parallelism)
        except UserError as error:
            raise UserError(f"{asked.path}: {error}") from None
    sweep_screen.print_plan(sweep, plan, runner.slots if asked.target == "local" else sweep.parallelism)
    if asked.only_plan:
        return True
    if not chosen:
        with ledger.locked():
            ledger.submit(sweep, trials, asked.image, asked.path)  # the metric may be another, points may be fewer
    elif asked.target == "local":
        run_here(runner, ledger, sweep, trials, asked.path)
    else:
        from flexrl import on_cluster

        searches = sweep.search is not None
        on_cluster.run(jobs, ledger, asked.target, lambda: ledger.submit(sweep, trials, asked.image, asked.path), searches)
    if chosen:
        sweep_screen.print_status(ledger)
        print(f"{provenance.python()} submit_sweep.py report {sweep.name} compares them")
    return all(ledger.status(t.id).state in ("done", "given up") for t in trials)


def render(
    sweep: SweepSettings, trials: list[Trial], everyone: list[Trial], ledger: Ledger, asked: Submission
) -> list[TrialJob]:
    """The Jobs of these trials among those of `everyone`; UserError in the API server's place if it would refuse one."""
    code = provenance.code_version(sweeps.ROOT)
    commit = f"{code['git_commit']}{provenance.DIRTY}" if code["git_diff_sha256"] else code["git_commit"]
    tried = sum(len(ledger.status(t.id).attempts) for t in trials)
    jobs = job_manifests.render(sweep, trials, asked.target, asked.image, commit, tried, everyone)
    wrong = [problem for job in jobs for problem in job_rules.problems(job.job)]
    if wrong:
        raise UserError(f"{asked.path}: the Job would be refused: {wrong[0]}")
    return jobs


def write_manifests(jobs: list[TrialJob], path: Path) -> None:
    """All of them as one file for kubectl."""
    manifests = [manifest for job in jobs for manifest in (job.config_map, job.job)]
    try:
        path.write_text(job_manifests.to_yaml(manifests), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--render {path}: {error.strerror}") from None
    print(f"wrote {path}")


def run_here(runner: Runner, ledger: Ledger, sweep: SweepSettings, trials: list[Trial], path: Path) -> None:
    """In processes of this machine, until all trials are over or Ctrl-C stops them."""
    code = sweeps.code_digest(sweep.verb)

    def obstacle() -> str | None:
        """Trials are known by the code and the inputs that they began with."""
        if sweeps.code_digest(sweep.verb) != code:
            return "the code has changed since the sweep began"
        paths = {path: digest for t in trials for path, digest in t.inputs.items()}
        changed = [path for path, digest in paths.items() if sweeps.input_digest(path) != digest]
        return f"{changed[0]} has changed since the sweep began" if changed else None

    with ledger.locked():
        ledger.submit(sweep, trials, None, path)
        for key in runner.trials:
            ledger.forgive(key)
        with sweep_screen.Screen(ledger, runner.trials) as screen:
            runner.show, runner.obstacle = screen.show, obstacle
            finished = runner.run()
    if not finished or runner.why_ended is not None:
        sweep_screen.print_status(ledger)
        why = runner.why_ended or "stopped"
        print(f"{why}; the same command goes on: {provenance.python()} {' '.join(sys.argv)}", file=sys.stderr)
        sys.exit(exit_codes.INTERRUPTED if not finished else exit_codes.FAILED)
