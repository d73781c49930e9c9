"""Run a sweep: every combination of settings, here or on a cluster; what is done stays done.

    python submit_sweep.py --sweep examples/half_cheetah_sweep.yaml --plan
    python submit_sweep.py --sweep examples/half_cheetah_sweep.yaml --target local
    python submit_sweep.py status half-cheetah-sweep
    python submit_sweep.py logs half-cheetah-sweep TRIAL
    python submit_sweep.py report half-cheetah-sweep
    python submit_sweep.py fetch half-cheetah-sweep
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
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexrl import command_line, exit_codes
from flexrl.config import UserError
from flexrl.yaml_values import nearest

if TYPE_CHECKING:
    from flexrl.local_runner import Chaos
    from flexrl.sweep_ledger import Ledger
    from flexrl.sweep_settings import SweepSettings

FEW_SEEDS = 5
SECONDS_BETWEEN_LOOKS = 0.5  # at a file
SECONDS_BETWEEN_CALLS = 5.0  # to a cluster
ASK_ABOUT = ("status", "logs", "report", "fetch", "cancel")


def main() -> None:
    if sys.argv[1:] == ["trial"]:
        from flexrl import pod

        pod.become()
    if sys.argv[1:2] and sys.argv[1] in ASK_ABOUT:
        ask()
        return
    if sys.argv[1:] and not sys.argv[1].startswith("-"):
        raise UserError(
            f"{sys.argv[1]}: expected --sweep FILE, or one of {', '.join(ASK_ABOUT)}{nearest(sys.argv[1], ASK_ABOUT)}"
        )
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
    """Plans and runs what the command line names; exit code 1 if a trial failed."""
    from flexrl import submission  # here, as a trial, which only becomes its verb, must not wait for torch

    asked = submission.Submission(
        path=arguments.sweep,
        workspace=arguments.workspace,
        target=arguments.target,
        image=arguments.image,
        only_plan=arguments.plan,
        render_to=arguments.render,
        many=arguments.yes,
        chaos=read_chaos(arguments.chaos),
    )
    if not submission.submit(asked):
        sys.exit(exit_codes.FAILED)


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
        parser.add_argument("--follow", action="store_true", help="go on printing until that attempt is over")
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else, on stdout (status, report)")
    parser.add_argument("--workspace", type=Path, default=Path("workspace"), help="where runs live (default: workspace)")
    arguments = parser.parse_args()
    ledger = Ledger(arguments.workspace / "sweeps" / arguments.name)
    sweep = ledger.read_sweep()
    if arguments.verb == "status":
        notes = look(ledger)
        if arguments.json:
            print(to_json([asdict(entry) | asdict(ledger.status(entry.id)) for entry in ledger.entries().values()]))
        else:
            sweep_screen.print_status(ledger, notes)
    elif arguments.verb == "logs":
        print_log(ledger, arguments.trial, arguments.attempt, arguments.follow)
    elif arguments.verb == "cancel":
        cancel(sweep.name, ledger)
    elif arguments.verb == "fetch":
        fetch(sweep.name, ledger)
    else:
        look(ledger)
        report(sweep, ledger, arguments.json)


def look(ledger: Ledger, logs_of: str = "") -> list[str] | None:
    """What is in the way of trials on a cluster, where nobody follows them; null of what runs here, is followed, or over."""
    if ledger.ran_here or not ledger.jobs() or ledger.runner() is not None or ledger.is_over:
        return None
    from flexrl import on_cluster

    return on_cluster.look(ledger, logs_of)


def cancel(name: str, ledger: Ledger) -> None:
    """Ends what runs of it on the cluster; here Ctrl-C, or SIGTERM to its process, does."""
    if ledger.ran_here:
        process = ledger.runner()
        if process is not None:
            os.kill(process, signal.SIGTERM)
            print(f"{name}: asked process {process} to stop; its trials save and leave")
            return
        if all(ledger.has_ended(job) for job in ledger.jobs()):  # a cluster may not have told how one submitted before stands
            raise UserError(f"{name}: nothing of it runs here")
    from flexrl import on_cluster

    names = on_cluster.cancel(name, ledger)
    print(f"{name}: {', '.join(names) or 'nothing of it runs there'}{' deleted' if names else ''}")


def fetch(name: str, ledger: Ledger) -> None:
    """Brings what finished on the cluster into this workspace, where `report` and play.py look for it."""
    if ledger.ran_here:
        print(f"{name}: ran here; its trials are in {ledger.trials}")
        return
    from flexrl import on_cluster

    look(ledger)
    print(f"{name}: {len(on_cluster.bring(name, ledger))} trials fetched into {ledger.trials}")


def print_log(ledger: Ledger, start: str, attempt: int | None, follow: bool) -> None:
    """What an attempt printed; with `follow` what it goes on to print too."""
    found = [key for key in ledger.entries() if key.startswith(start)]
    if len(found) != 1:
        which = f": {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}" if found else ""
        raise UserError(f"{start}: {len(found)} trials of this sweep begin so{which}; `status` shows their ids")
    look(ledger, found[0])
    attempts = ledger.status(found[0]).attempts
    if not attempts:
        raise UserError(f"{found[0]}: has not been started yet")
    number = len(attempts) - 1 if attempt is None else attempt
    path = ledger.log_of(found[0], number)
    if number < len(attempts) and attempts[number].end is None:
        if follow:
            path.touch()  # it begins to print soon
        elif not path.is_file():
            obstacle = attempts[number].obstacle
            raise UserError(f"{found[0]}: has printed nothing yet{f'; its pod waits: {obstacle}' if obstacle else ''}")
    if not path.is_file():
        raise UserError(f"{path}: no such log; the trial has had {len(attempts)} attempts")
    printed = 0
    while True:
        is_over = not follow or ledger.status(found[0]).attempts[number].end is not None
        is_left = not is_over and ledger.ran_here and ledger.runner() is None  # its runner was killed
        with path.open(encoding="utf-8", errors="replace") as log:  # anew, as what a pod prints is written anew
            log.seek(printed)
            sys.stdout.write(log.read())
            sys.stdout.flush()
            printed = log.tell()
        if is_left:
            print(f"{found[0]}: nobody runs it here now; the command that submitted it goes on", file=sys.stderr)
        if is_over or is_left:
            return
        time.sleep(SECONDS_BETWEEN_LOOKS if ledger.ran_here else SECONDS_BETWEEN_CALLS)
        look(ledger, found[0])


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
        interval = " to ".join(map(rounded, p.interval)) if len(p.scores) > 1 else "-"
        table.add_row(p.label, rounded(p.score) if len(p.scores) else "-", interval, f"{len(p.scores)}/{p.num_trials}")
    console = Console()
    console.print(table)
    few = min(len(p.scores) for p in points if len(p.scores)) < FEW_SEEDS
    caution = f"; of less than {FEW_SEEDS} seeds it is little more than their range" if few else ""
    console.print(f"interquartile mean over seeds, interval by the bootstrap{caution}", highlight=False)
    console.print(f"{table_path}, {picture}", highlight=False, soft_wrap=True)


def number(value: float) -> float | None:
    """As JSON knows it, which has no nan."""
    return None if math.isnan(value) else value


def to_json(value: Any) -> str:
    return json.dumps(value, indent=1)


if __name__ == "__main__":
    command_line.verb(main)
