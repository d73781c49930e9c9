"""Tables, plots and lineage of what is in workspace/.

python report.py runs
python report.py curves walk_s0 walk_s1 walk_s2 --out curves.png
python report.py lineage workspace/walk_s0/best
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from flexrl import plots, runs
from flexrl.config import UserError
from flexrl.plots import Ancestor, Attempt, RunSummary, short

COLOURS = {
    **{"running": "cyan", "finished": "green", "stopped": "yellow", "failed": "red", "killed": "red", "broken": "red"},
    **{"intact": "green", "changed": "yellow", "damaged": "red", "missing": "red"},
}
WIDE = 110  # columns of a terminal from which on a run's world and learner have columns of their own

MANY = 4  # attempts from which on only the first and the last are told


def main() -> None:
    arguments = read_arguments()
    if arguments.verb == "runs":
        show_runs([plots.summarise(folder) for folder in plots.list_folders(arguments.workspace)], arguments)
    elif arguments.verb == "curves":
        draw_curves(arguments)
    else:
        show_lineage(plots.trace(plots.find(arguments.path, arguments.workspace)), arguments)


def read_arguments() -> argparse.Namespace:
    parser = runs.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = runs.Parser(add_help=False)
    common.add_argument(
        "--workspace", type=Path, default=Path("workspace"), help="where runs live (default: workspace)"
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="runs|curves|lineage")
    table = verbs.add_parser("runs", parents=[common], help="a table of the workspace")
    curves = verbs.add_parser("curves", parents=[common], help="learning curves as a picture, seeds averaged")
    curves.add_argument("runs", nargs="+", metavar="RUN", help="a run's name in the workspace, or its folder")
    curves.add_argument(
        "--out", type=Path, default=Path("curves.png"), help="a .png, .svg or .pdf (default: curves.png)"
    )
    curves.add_argument(
        "--metric", nargs="+", action="extend", default=[], metavar="NAME", help="panels of these, such as train/std"
    )
    tree = verbs.add_parser(
        "lineage", parents=[common], help="the ancestors of a run or a snapshot, each compared with its hash"
    )
    tree.add_argument(
        "path", metavar="PATH", help="a run's name in the workspace, or the folder of a run or a snapshot"
    )
    for verb in (table, tree):
        verb.add_argument("--json", action="store_true", help="print JSON, and nothing else, on stdout")
    return parser.parse_args()


def show_runs(rows: Sequence[RunSummary], arguments: argparse.Namespace) -> None:
    """A line a run, then why the failed ones failed."""
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    console = Console()
    wide = console.width >= WIDE
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
    for name in ("run", "world", "learner") if wide else ("run",):
        table.add_column(name, overflow="fold")
    for name in ("steps", "last\nreturn", "best\nreturn", "steps/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", overflow="fold")
    table.add_column("changed", no_wrap=True)
    for row in rows:
        about = (row.world or "-", row.learner or "-")
        first = [Text(row.name), *map(Text, about)] if wide else [Text(row.name).append("\n" + ", ".join(about), "dim")]
        state = Text("\n".join((row.state, *row.problems)), "red" if row.problems else COLOURS.get(row.state, ""))
        steps = f"{show(row.num_steps)}/{show(row.planned_steps)}"
        age = f"{duration((datetime.now(UTC) - datetime.fromisoformat(row.changed)).total_seconds())} ago"
        numbers = (show(row.last_return), show(row.best_return), show(row.env_steps_per_second))
        table.add_row(*first, steps, *numbers, state, age)
    console.print(table if rows else f"{arguments.workspace} has no runs")
    for row in rows:
        if row.how and row.state in ("failed", "stopped"):
            console.print(Text(f"{row.name}: {row.how}", COLOURS[row.state]))


def show(value: float | None) -> str:
    """A number in a table."""
    return "-" if value is None else short(value)


def duration(seconds: float) -> str:
    """The largest unit that fits: 40 s, 12 min, 5 h, 3 d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def draw_curves(arguments: argparse.Namespace) -> None:
    """The picture; runs that have logged nothing yet are named and left out."""
    out: Path = arguments.out
    if out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"--out {out}: expected the name of a .png, .svg or .pdf file")
    folders = {
        folder.resolve(): folder for folder in (plots.find(text, arguments.workspace) for text in arguments.runs)
    }
    curves = [plots.read_curves(folder) for folder in folders.values()]
    for run in curves:
        if not run.metrics:
            print(f"{run.name}: has logged nothing yet; left out", file=sys.stderr)
    groups = plots.group_by_seed([run for run in curves if run.metrics])
    if not groups:
        raise UserError("curves: none of these runs has logged anything yet")
    panels = plots.make_panels(groups, arguments.metric)
    try:
        plots.draw(groups, panels).savefig(out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    print(f"wrote {out}")


def show_lineage(root: Ancestor, arguments: argparse.Namespace) -> None:
    """The tree, children above what they were made from."""
    if arguments.json:
        print(json.dumps(asdict(root), indent=1, default=lambda lineage: lineage.model_dump(mode="json")))
        return
    Console().print(grow(root, Tree(describe(root), guide_style="dim")))


def grow(ancestor: Ancestor, tree: Tree) -> Tree:
    """The tree with the ancestor's own ancestors below it."""
    for parent in ancestor.parents:
        grow(parent, tree.add(describe(parent)))
    return tree


def describe(ancestor: Ancestor) -> Text:
    """What it is and how it lies there; then, unless it stands in the tree already, what made it."""
    lineage = ancestor.lineage
    text = Text(lineage.name if lineage else Path(ancestor.path).name, "bold").append(
        f"  {ancestor.path}", "not bold dim"
    )
    found, recorded = ancestor.content_hash, ancestor.recorded_hash
    if ancestor.mark:
        of = "" if ancestor.snapshot in (None, ancestor.path) else f"{Path(str(ancestor.snapshot)).name} "
        text.append(f"  {of}{(found or recorded or '')[:12]} ", "not bold").append(
            ancestor.mark, COLOURS[ancestor.mark]
        )
        text.append(f", was {str(recorded)[:12]}" if ancestor.mark == "changed" else "", "not bold yellow")
    else:
        text.append("  no snapshot yet", "not bold yellow")
    lines = [ancestor.problem] if ancestor.problem else []
    if ancestor.repeated:
        lines.append("stands above already; not told again")
    elif lineage:
        if ancestor.num_steps is not None:
            lines.append(f"snapshot at step {ancestor.num_steps:,}")
        lines += history(lineage.attempts, ancestor.state)
    elif ancestor.mark != "missing":
        lines.append("no lineage is known")
    return text.append("".join(f"\n{line}" for line in lines), "not bold default")


def history(attempts: Sequence[Attempt], state: str | None) -> list[str]:
    """Command, code, time, steps and end of the attempts; of many, the first and the last."""
    lines: list[str] = []
    for i, attempt in enumerate(attempts):
        if len(attempts) > MANY and i == 1:
            lines.append(f"... {len(attempts) - 2} more attempts ...")
        if len(attempts) > MANY and 0 < i < len(attempts) - 1:
            continue
        how = attempt.how
        if how == "running":  # the run wrote this line when it began
            how = "end not known" if state is None else state if attempt is attempts[-1] else "killed"
        code = attempt.git_commit[:10] if attempt.git_commit else "not known"
        code += " with uncommitted changes" if attempt.git_diff_sha256 else ""
        steps = f"from step {attempt.from_step:,}" + (f" to {attempt.to_step:,}" if attempt.to_step is not None else "")
        took = f" ({duration((attempt.end - attempt.start).total_seconds())})" if attempt.end else ""
        lines += [attempt.command, f"{attempt.start:%Y-%m-%d %H:%M %Z}{took}, code {code}", f"{steps}, {how}"]
    return lines


if __name__ == "__main__":
    runs.verb(main)
