"""Tables, plots and lineage of what is in workspace/.

    python report.py runs
    python report.py curves walk_s0 walk_s1 walk_s2 --out curves.png
    python report.py dataset workspace/walk_data
    python report.py lineage workspace/walk_s0/best

Runs whose settings differ in the seed only are one curve, with a 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from flexrl import command_line, ledger, lineage, plots
from flexrl.config import UserError
from flexrl.ledger import RunSummary
from flexrl.lineage import Ancestor
from flexrl.words import duration, rounded, short

COLOURS = {"running": "cyan", "finished": "green", "intact": "green", "stopped": "yellow", "changed": "yellow"}
COLOURS |= dict.fromkeys(("failed", "killed", "broken", "damaged", "missing"), "red")
WIDE = 110  # columns of a terminal from which on a run's world and learner have columns of their own


def main() -> None:
    arguments = read_arguments()
    if arguments.verb == "runs":
        rows = [ledger.summarise(folder) for folder in ledger.list_folders(arguments.workspace)]
        print(to_json([asdict(row) for row in rows])) if arguments.json else print_table(
            rows, ledger.list_sweeps(arguments.workspace)
        )
    elif arguments.verb == "curves":
        draw_curves(arguments)
    elif arguments.verb == "dataset":
        tell_dataset(ledger.find(arguments.path, arguments.workspace), arguments)
    else:
        root = lineage.trace(ledger.find(arguments.path, arguments.workspace))
        print(to_json(asdict(root))) if arguments.json else print_tree(root)


def read_arguments() -> argparse.Namespace:
    parser = command_line.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = command_line.Parser(add_help=False)
    common.add_argument("--workspace", type=Path, default=Path("workspace"), help="where runs live")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="runs|curves|dataset|lineage")
    table = verbs.add_parser("runs", parents=[common], help="a table of the workspace")
    curves = verbs.add_parser("curves", parents=[common], help="learning curves as a picture, seeds averaged")
    curves.add_argument("runs", nargs="+", metavar="RUN", help="a run's name in the workspace, or its folder")
    curves.add_argument("--out", type=Path, default=Path("curves.png"), help=".png, .svg or .pdf (default: curves.png)")
    curves.add_argument("--metric", nargs="+", action="extend", default=[], help="panels of these, such as train/std")
    data = verbs.add_parser("dataset", parents=[common], help="what is in a dataset: counts, returns, pictures")
    data.add_argument("path", metavar="PATH", help="a dataset's name in the workspace, or its folder")
    data.add_argument("--out", type=Path, help="where the pictures go (default: the dataset's folder)")
    data.add_argument("--no-pictures", action="store_true", help="the table alone")
    tree = verbs.add_parser("lineage", parents=[common], help="the ancestors of a run or snapshot, checked by hash")
    tree.add_argument("path", metavar="PATH", help="a run's name in the workspace, or a run's or a snapshot's folder")
    for verb in (table, data, tree):
        verb.add_argument("--json", action="store_true", help="print JSON, and nothing else, on stdout")
    return parser.parse_args()


def to_json(value: Any) -> str:
    return json.dumps(value, indent=1, default=lambda model: model.model_dump(mode="json"))


def print_table(rows: Sequence[RunSummary], sweeps: Sequence[str]) -> None:
    """A line a run, with what is wrong under its name, then why runs stopped or failed, and which sweeps have trials."""
    console = Console()
    wide = console.width >= WIDE
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
    for name in ("run", "world", "learner") if wide else ("run",):
        table.add_column(f"\n{name}", overflow="fold")
    for name in ("\nsteps", "last\nreturn", "best\nreturn", "\nsteps/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("\nstate")
    table.add_column("changed\nago", no_wrap=True)
    for row in rows:
        first, about = Text(row.name), (row.world or "-", row.learner or "-")
        first.append("" if wide else f"\n{', '.join(about)}", "dim")
        first.append("".join(f"\n{problem}" for problem in row.problems), "red")
        steps = "/".join("-" if count is None else short(count) for count in (row.num_steps, row.planned_steps))
        numbers = [rounded(number) for number in (row.last_return, row.best_return, row.steps_per_second)]
        age = duration((datetime.now(UTC) - datetime.fromisoformat(row.changed)).total_seconds())
        state = Text(row.state, COLOURS.get(row.state, ""))
        table.add_row(first, *(map(Text, about) if wide else ()), steps, *numbers, state, age)
    console.print(table if rows else "the workspace has no runs")
    for row in rows:
        if row.state in ("failed", "stopped"):
            console.print(Text(f"{row.name}: {row.how}", COLOURS[row.state]))
    if sweeps:
        console.print(f"sweeps: {', '.join(sweeps)}; submit_sweep.py status NAME shows their trials", highlight=False)


def tell_dataset(folder: Path, arguments: argparse.Namespace) -> None:
    """A line a skill and policy, size and memory; histograms and a contact sheet as pictures. Every byte is compared first."""
    # imported here because the tables of runs need neither Arrow nor MuJoCo, which take a second
    from flexrl import dataset_report, render
    from flexrl.dataset import open_dataset

    dataset = open_dataset(folder)
    dataset.verify()
    info, groups = dataset.info, dataset_report.groups_of(dataset)
    size = sum(path.stat().st_size for path in dataset.folder.glob("*.arrow"))
    if arguments.json:
        print(to_json({"info": info.model_dump(mode="json"), "bytes": size, "groups": [asdict(group) for group in groups]}))
    else:
        table = Table(box=None, pad_edge=False)
        for name in ("skill at the end", "policy", "episodes", "steps", "return", "length", "success", "fell", "noise"):
            table.add_column(name, justify="left" if name in ("skill at the end", "policy") else "right")
        for g in groups:
            noise = f"{g.noise[0]:g}" if g.noise[0] == g.noise[1] else f"{g.noise[0]:g} to {g.noise[1]:g}"
            success, fallen = ("" if share is None else f"{share:.0%}" for share in (g.success, g.fallen))
            returns = f"{rounded(g.mean_return)} ± {rounded(g.std_return)}"
            row = (
                f"{g.num_episodes:,}",
                short(g.num_steps),
                returns,
                f"{g.mean_length:.0f}",
                success,
                fallen,
                noise,
            )
            table.add_row(Text(g.skill), Text(g.policy), *row)
        (Console() if sys.stdout.isatty() else Console(width=160)).print(table)
        bytes_a_step = size / max(info.num_steps, 1)
        memory = f"read as windows: 64 of 20 steps take {64 * 20 * bytes_a_step / 2**20:,.1f} MiB of memory"
        seconds = f", {duration(info.num_steps * info.seconds_per_step)} of motion" if info.seconds_per_step else ""
        print(f"{info.num_steps:,} steps in {info.num_episodes:,} episodes{seconds}; {size / 2**20:,.1f} MiB on disk")
        print(f"{bytes_a_step:,.0f} bytes a step; {memory}")
        print(
            f"a step: observation {info.observation_size}, action {info.action_size}, state {info.state_size or 'not recorded'}"
        )
    if arguments.no_pictures:
        return
    out = arguments.out or folder
    dataset_report.draw_histograms(dataset, out / "returns.png")
    print(f"wrote {out / 'returns.png'}", file=sys.stderr)
    if info.state_size:
        try:
            dataset_report.draw_episodes(dataset, out / "episodes.png")
            print(f"wrote {out / 'episodes.png'}", file=sys.stderr)
        except render.RenderError as error:
            print(f"no frames: {error}", file=sys.stderr)


def draw_curves(arguments: argparse.Namespace) -> None:
    """The picture; runs that have logged nothing yet are named and left out."""
    out: Path = arguments.out
    if out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"--out {out}: expected the name of a .png, .svg or .pdf file")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent} to write it to")
    folders = dict.fromkeys(ledger.find(text, arguments.workspace).resolve() for text in arguments.runs)
    curves = [plots.read_curves(folder) for folder in folders]
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
        raise UserError(f"--out {out}: cannot be written: {error.strerror or error}") from None
    print(f"wrote {out}")


def print_tree(root: Ancestor) -> None:
    """The ancestors on stdout; into a file or a pipe without breaks, so that commands can be copied."""
    console = Console() if sys.stdout.isatty() else Console(width=10_000)
    console.print(grow(root, Tree(describe(root))))


def grow(ancestor: Ancestor, tree: Tree) -> Tree:
    """The tree with the ancestor's own ancestors below it."""
    for parent in ancestor.parents:
        grow(parent, tree.add(describe(parent)))
    return tree


def describe(ancestor: Ancestor) -> Text:
    """What it is and how it lies there; then, unless it stands in the tree already, what made it."""
    origin, mark = ancestor.lineage, ancestor.mark
    text = Text(f"{origin.name}  " if origin else "", "bold").append(ancestor.path, "not bold" if origin else "")
    if mark:
        snapshot = Path(ancestor.snapshot or ancestor.path).name
        inner = "" if snapshot == Path(ancestor.path).name else f"{snapshot} "
        text.append(f"  {inner}{(ancestor.content_hash or ancestor.recorded_hash or '')[:12]} ", "not bold")
        text.append(mark + (f", was {str(ancestor.recorded_hash)[:12]}" if mark == "changed" else ""), COLOURS[mark])
    else:
        text.append("  no snapshot yet", COLOURS["changed"])
    lines = [ancestor.problem] if ancestor.problem else []
    if ancestor.repeated:
        lines.append("stands above already")
    elif origin:
        lines += [f"snapshot at step {ancestor.num_steps:,}"] if ancestor.num_steps is not None else []
        lines += origin.tell(ancestor.state)
    elif mark != "missing":
        lines.append("no lineage is known")
    return text.append("".join(f"\n{line}" for line in lines), "not bold")


if __name__ == "__main__":
    command_line.verb(main)
