"""Run a sweep: every combination of settings, here or on a cluster; what is done stays done.

    python submit_sweep.py --sweep examples/half_cheetah_sweep.yaml --plan
    python submit_sweep.py --sweep examples/half_cheetah_sweep.yaml --target local
    python submit_sweep.py status half-cheetah-sweep
    python submit_sweep.py logs half-cheetah-sweep TRIAL
    python submit_sweep.py report half-cheetah-sweep
    python submit_sweep.py cancel half-cheetah-sweep

It lies in workspace/sweeps/<name>/. Submitted again, finished trials are skipped, cut ones go on, failed ones are run again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexrl import command_line, exit_codes, trial
from flexrl.config import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from flexrl.job_manifests import Manifest
    from flexrl.local_runner import Chaos, Runner
    from flexrl.sweep_ledger import Ledger
    from flexrl.sweep_settings import SweepSettings
    from flexrl.sweeps import Trial

ASK_ABOUT = ("status", "logs", "report", "cancel")


def main() -> None:
    if sys.argv[1:] == ["trial"]:
        trial.become()
    if sys.argv[1:2] and sys.argv[1] in ASK_ABOUT:
        ask()
        return
    submit(read_submission())


def read_submission() -> argparse.Namespace:
    parser = command_line.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", type=Path, required=True, help="YAML file of the sweep")
    parser.add_argument("--target", choices=("local", "kind", "gke"), default="local", help="where it runs (default: local)")
    parser.add_argument("--plan", action="store_true", help="say what would be done, and stop there")
    parser.add_argument("--yes", action="store_true", help="however many trials there are")
    parser.add_argument("--image", help="the image by its digest, NAME@sha256:... (kind, gke)")
    parser.add_argument("--render", type=Path, metavar="FILE", help="write the manifests to this file, and stop there")
    parser.add_argument("--chaos", metavar="kill=SHARE,seed=N", help="kill so many attempts on the way: a test (local)")
    parser.add_argument("--workspace", type=Path, default=Path("workspace"), help="where runs live (default: workspace)")
    return parser.parse_args()


def submit(arguments: argparse.Namespace) -> None:
    # imported here because a trial, which only becomes its verb, must not wait for torch
    from flexrl import sweeps
    from flexrl.search import Search
    from flexrl.sweep_ledger import Ledger
    from flexrl.sweep_settings import load_sweep

    sweep = load_sweep(arguments.sweep)
    if arguments.target == "local" and arguments.image:
        raise UserError("--image: what runs here is this folder; leave it away, or take --target kind")
    if arguments.target != "local" and not arguments.image:
        raise UserError(f"--image: {arguments.target} needs one with a digest, as docker push or make load-image prints it")
    for key in ("stop", "search"):
        if getattr(sweep, key) is not None and arguments.target != "local":
            raise UserError(
                f"{arguments.sweep}: {key}: needs metrics while it runs, which --target local alone has; leave it away"
            )
    ledger = Ledger(arguments.workspace / "sweeps" / sweep.name)
    if arguments.target != "local" and not (arguments.plan or arguments.render):
        catch_up(ledger)
    if sweep.search is None:
        all_done = run_round(sweep, ledger, arguments)
    else:
        only_told = arguments.plan or arguments.render
        sweeps.expand(sweep.model_copy(update={"include": sweeps.drawn(sweep.search, 1)}), arguments.sweep)  # they are settings
        search = Search(sweep.search, ledger.folder if ledger.exists or not only_told else None, sweep.maximize)
        is_first = True
        while True:
            points = search.points()
            all_done = run_round(sweep.model_copy(update={"include": points}), ledger, arguments, is_first)
            is_first = False
            if only_told:
                return
            search.tell(scores_of(sweep, ledger, points))
            if search.is_over:
                break
    if not all_done:
        sys.exit(exit_codes.FAILED)


def scores_of(sweep: SweepSettings, ledger: Ledger, points: list[dict[str, Any]]) -> dict[int, float]:
    """What the points of a search came to over their seeds, by their number."""
    from flexrl.sweep_report import points_of

    found = points_of(sweep, ledger, is_told=False)
    return {number: p.score for number, point in enumerate(points) for p in found if p.values == point}


def run_round(sweep: SweepSettings, ledger: Ledger, arguments: argparse.Namespace, with_failed: bool = True) -> bool:
    """Plans the sweep and runs what is to be run, as the command line has it; whether all its trials are done.

    Trials that failed are run again, unless a search has seen them fail just now (not `with_failed`).
    """
    from flexrl import job_manifests, job_rules, provenance, sweep_screen, sweeps
    from flexrl.local_runner import Runner
    from flexrl.sweep_plan import make_plan

    trials = sweeps.expand(sweep, arguments.sweep, image=arguments.image, many=arguments.yes)
    sweeps.rehearse(sweep, trials, arguments.sweep)
    plan = make_plan(sweep, trials, ledger, arguments.workspace)
    chosen = [row.trial for row in plan.to_run if with_failed or row.kind != "failed"]
    commit = provenance.code_version(sweeps.ROOT)["git_commit"]
    tried = sum(len(ledger.status(t.id).attempts) for t in chosen)
    manifests = job_manifests.render(sweep, chosen or trials, arguments.target, arguments.image, commit, tried)
    wrong = job_rules.problems(manifests[0])
    if wrong:
        raise UserError(f"{arguments.sweep}: the Job would be refused: {wrong[0]}")
    if arguments.render:
        try:
            arguments.render.write_text(job_manifests.to_yaml(manifests), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--render {arguments.render}: {error.strerror}") from None
        print(f"wrote {arguments.render}")
        return True
    planned = {row.trial.id: row.planned_steps for row in plan.rows}
    if arguments.target == "local":
        runner = Runner(*manifests, [t.id for t in chosen or trials], planned, ledger, read_chaos(arguments.chaos))
    sweep_screen.print_plan(sweep, plan, runner.slots if arguments.target == "local" else sweep.parallelism)
    if arguments.plan:
        return True
    if not chosen:
        with ledger.locked():
            ledger.submit(sweep, trials, arguments.image)  # the metric may be another, points may be fewer
    elif arguments.target == "local":
        run_here(runner, ledger, sweep, trials)
    else:
        run_there(manifests, [t.id for t in chosen], ledger, lambda: ledger.submit(sweep, trials, arguments.image))
    if chosen:
        sweep_screen.print_status(ledger)
    return all(ledger.status(t.id).state in ("done", "given up") for t in trials)


def run_here(runner: Runner, ledger: Ledger, sweep: SweepSettings, trials: list[Trial]) -> None:
    """In processes of this machine, until all trials are over or Ctrl-C stops them."""
    from flexrl import provenance, sweep_screen, sweeps
    from flexrl.sweep_report import trials_to_give_up

    code = sweeps.code_digest(sweep.verb)

    def obstacle() -> str | None:
        """Trials are known by the code and the inputs that they began with."""
        if sweeps.code_digest(sweep.verb) != code:
            return "the code has changed since the sweep began"
        paths = {path: digest for t in trials for path, digest in t.inputs.items()}
        changed = [path for path, digest in paths.items() if sweeps.input_digest(path) != digest]
        return f"{changed[0]} has changed since the sweep began" if changed else None

    with ledger.locked():
        ledger.submit(sweep, trials, None)
        for key in runner.trials:
            ledger.forgive(key)
        with sweep_screen.Screen(ledger, runner.trials) as screen:
            runner.show, runner.judge, runner.obstacle = screen.show, lambda: trials_to_give_up(sweep, ledger), obstacle
            finished = runner.run()
    if not finished or runner.why_ended is not None:
        sweep_screen.print_status(ledger)
        why = runner.why_ended or "stopped"
        print(f"{why}; the same command goes on: {provenance.python()} {' '.join(sys.argv)}", file=sys.stderr)
        sys.exit(exit_codes.INTERRUPTED if not finished else exit_codes.FAILED)


def catch_up(ledger: Ledger) -> None:
    """Follows the Job that was submitted before, if the cluster still has it: to its end, which may have been long ago."""
    from flexrl.cluster import Cluster, connect
    from flexrl.follower import Follower

    noted = ledger.job()
    if noted is None:
        return
    job, trials = noted
    cluster = Cluster(connect())
    if cluster.has(job):
        with ledger.locked():
            print(f"Job {job['metadata']['name']}: was submitted before; following it", file=sys.stderr)
            Follower(cluster, job, trials, ledger).run()


def run_there(manifests: tuple[Manifest, Manifest], chosen: list[str], ledger: Ledger, note: Callable[[], None]) -> None:
    """As a Job of the kubeconfig's cluster, followed until it is over; Ctrl-C leaves it running."""
    from flexrl.cluster import Cluster, connect
    from flexrl.follower import Follower

    cluster = Cluster(connect())
    cluster.check(manifests[0])
    with ledger.locked():
        note()
        ledger.note_job(manifests[0], chosen)  # before it is there, so that it is found again whatever happens
        is_new = cluster.submit(*manifests)
        name = manifests[0]["metadata"]["name"]
        print(f"Job {name}: {'created' if is_new else 'is there already'}; Ctrl-C leaves it running", file=sys.stderr)
        Follower(cluster, manifests[0], chosen, ledger).run()


def read_chaos(text: str | None) -> Chaos | None:
    """`kill=0.2,seed=1`."""
    from flexrl.local_runner import Chaos

    if text is None:
        return None
    try:
        values = dict(part.split("=") for part in text.split(","))
        chaos = Chaos(float(values.pop("kill")), int(values.pop("seed", "0")))
        if values or not 0 <= chaos.kill <= 0.9:
            raise ValueError
    except (ValueError, KeyError):
        raise UserError(f"--chaos {text}: expected kill=SHARE,seed=N with a share up to 0.9, such as kill=0.2,seed=1") from None
    return chaos


def ask() -> None:
    """The verbs about a sweep that was submitted."""
    from flexrl import sweep_screen
    from flexrl.sweep_ledger import Ledger

    parser = command_line.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=ASK_ABOUT)
    parser.add_argument("name", help="the sweep's")
    if sys.argv[1] == "logs":
        parser.add_argument("trial", help="a trial's id, or its beginning")
        parser.add_argument("--attempt", type=int, help="which attempt, from 0 (default: the last)")
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else, on stdout (status, report)")
    parser.add_argument("--workspace", type=Path, default=Path("workspace"), help="where runs live (default: workspace)")
    arguments = parser.parse_args()
    ledger = Ledger(arguments.workspace / "sweeps" / arguments.name)
    sweep = ledger.read_sweep()
    if arguments.verb == "status":
        if arguments.json:
            print(to_json([asdict(entry) | asdict(ledger.status(entry.id)) for entry in ledger.entries().values()]))
        else:
            sweep_screen.print_status(ledger)
    elif arguments.verb == "logs":
        print_log(ledger, arguments.trial, arguments.attempt)
    elif arguments.verb == "cancel":
        cancel(sweep.name, ledger)
    else:
        report(sweep, ledger, arguments.json)


def cancel(name: str, ledger: Ledger) -> None:
    """Ends what runs of it on the cluster; here Ctrl-C, or SIGTERM to its process, does."""
    if all(entry.image is None for entry in ledger.entries().values()):
        process = ledger.runner()
        if process is None:
            raise UserError(f"{name}: nothing of it runs here")
        os.kill(process, signal.SIGTERM)
        print(f"{name}: asked process {process} to stop; its trials save and leave")
        return
    from flexrl.cluster import Cluster, connect

    names = Cluster(connect()).cancel(name)
    print(f"{name}: {', '.join(names) or 'nothing of it runs there'}{' deleted' if names else ''}")


def print_log(ledger: Ledger, start: str, attempt: int | None) -> None:
    """What an attempt printed."""
    found = [key for key in ledger.entries() if key.startswith(start)]
    if len(found) != 1:
        raise UserError(f"{start}: {len(found)} trials of this sweep begin so; `status` shows their ids")
    attempts = ledger.status(found[0]).attempts
    number = len(attempts) - 1 if attempt is None else attempt
    path = ledger.log_of(found[0], number)
    if not path.is_file():
        raise UserError(f"{path}: no such log; the trial has had {len(attempts)} attempts")
    sys.stdout.write(path.read_text(encoding="utf-8", errors="replace"))


def report(sweep: SweepSettings, ledger: Ledger, as_json: bool) -> None:
    """The points, best first; report.csv and report.png beside the trials."""
    from rich.console import Console
    from rich.table import Table

    from flexrl.sweep_report import draw_axes, points_of, write_csv
    from flexrl.words import rounded

    points = points_of(sweep, ledger)
    table_path, picture = ledger.folder / "report.csv", ledger.folder / "report.png"
    write_csv(table_path, sweep, ledger)
    draw_axes(picture, sweep, points)
    if as_json:
        rows = [
            {"point": p.values, "iqm": number(p.score), "interval": list(map(number, p.interval)), "scores": p.scores.tolist()}
            for p in points
        ]
        print(to_json(rows))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("point", sweep.metric, "95 %", "seeds"):
        table.add_column(name, justify="left" if name == "point" else "right")
    for p in points:
        low, high = map(rounded, p.interval)
        table.add_row(p.label, rounded(p.score), f"{low} to {high}", f"{len(p.scores)}/{p.num_trials}")
    console = Console()
    console.print(table)
    console.print(f"interquartile mean over seeds, bootstrap interval; {table_path}, {picture}", highlight=False)


def number(value: float) -> float | None:
    """As JSON knows it, which has no nan."""
    return None if math.isnan(value) else value


def to_json(value: Any) -> str:
    return json.dumps(value, indent=1)


if __name__ == "__main__":
    command_line.verb(main)
