"""Roll policies out into a dataset of whole episodes.

    python collect.py --name walk_data --model examples/pretrained/humanoid_walk --steps 200_000

It lies in workspace/<name>/: Arrow files of steps, a table of episodes, what made them. --resume goes on after a stop.
A dataset that is there goes out to other formats, and one of Minari's comes in:

    python collect.py --name walk_data --export minari humanoid/walk-v0
    python collect.py --name walk_data --export lerobot walk_lerobot
    python collect.py --name walk_data --export npz walk.npz
    python collect.py --name theirs --import-minari ~/.minari/datasets/mujoco/halfcheetah/medium-v0
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from flexrl import command_line, runs, snapshots
from flexrl.collection import CollectSettings, describe, make_crew, open_models, rehearse, world_of
from flexrl.collector import Collector
from flexrl.config import Settings, UserError
from flexrl.dataset import columns_of, open_dataset
from flexrl.dataset_exports import export_lerobot, export_minari, export_npz, whole
from flexrl.dataset_imports import files_of, import_minari
from flexrl.dataset_writer import DatasetWriter
from flexrl.motor_world import MotorWorld
from flexrl.progress import Progress
from flexrl.provenance import python
from flexrl.worlds import closing, make_world, recorded_world, why

FLAGS = (
    command_line.Flag(
        *(
            "--model",
            "PATH",
            "who acts, in place of the settings' models: a snapshot's folder, random or zero; several times for several",
        ),
        lambda texts: f"models={json.dumps([{'path': text} for text in texts])}",
    ),
    command_line.Flag("--steps", "N", "env steps in all (default: 200_000)", lambda texts: f"num_steps={texts[-1]}"),
)


def main() -> None:
    for option, other in (("--export", export), ("--import-minari", import_from_minari)):
        if any(text.partition("=")[0] == option for text in sys.argv[1:]):
            other()
            return
    settings, run = command_line.begin(CollectSettings, __doc__, rehearse, FLAGS)
    if is_finished(run):
        print(f"{run.folder} is finished; --set num_steps=N makes it longer")
        return
    torch.set_num_threads(1)  # the cores are the physics'
    parents = open_models(settings)
    world_settings = world_of(settings, parents)
    paths = [
        path
        for model, parent in zip(settings.models, parents, strict=True)
        for path in (*([model.path] if parent is not None else []), *model.others)
    ]
    run.is_made = (run.folder / snapshots.MANIFEST).is_file()  # a dataset of one file has no latest/
    if not (snapshots.exists(run.latest) or run.is_made):
        for path in paths:
            run.add_parent(path, Path(path))
    with run, closing(make_world(world_settings, settings.seed)) as world:
        for path in paths:
            cure = "collect that under another --name"
            run.check_parent("models", path, snapshots.content_hash(Path(path)), cure)
        info = describe(settings, world_settings, world, parents)
        writer = DatasetWriter(run.folder, info, settings.shard_steps)
        crew = make_crew(settings, parents, world)
        collector = Collector(world, crew, columns_of(info), settings.noise, settings.seed)
        with Recording(run, collector, writer) as recording, Progress(settings.num_steps, collector.num_steps) as progress:
            clock = Clock(collector.num_steps)
            while collector.num_steps < settings.num_steps:
                num_files, ended = recording.num_files, recording.step()
                if ended:
                    clock.count(ended)
                    metrics = clock.metrics(collector.num_steps)
                    progress.update(collector.num_steps, metrics, -np.inf)
                    if recording.num_files > num_files:
                        run.log(collector.num_steps, metrics)
                run.check_stop()
        recording.finish()
    cut = open_dataset(run.folder).episodes.cut
    left = f", {cut.sum():,} of them cut at its end (more steps or fewer num_envs make whole ones)" if cut.mean() > 0.5 else ""
    print(f"{writer.num_steps:,} steps in {writer.num_episodes:,} episodes{left}: {run.folder}")
    print(f"look at them: {python()} report.py dataset {run.folder}")


def is_finished(run: runs.Run[CollectSettings]) -> bool:
    """Whether a dataset is there that has all of its steps, were they few enough for a single file."""
    is_dataset = (run.folder / snapshots.MANIFEST).is_file()
    return is_dataset and open_dataset(run.folder).info.num_steps >= run.settings.num_steps


def export() -> None:
    """A finished dataset of the workspace in another format."""
    parser = command_line.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="the dataset's folder in the workspace")
    parser.add_argument("--workspace", type=Path, default=Path("workspace"), help="where it lives (default: workspace)")
    parser.add_argument(
        "--export", nargs=2, required=True, metavar=("FORMAT", "TO"), help="minari, lerobot or npz, and where to"
    )
    arguments = parser.parse_args()
    kind, to = arguments.export
    if kind not in ("minari", "lerobot", "npz"):
        raise UserError(f"--export {kind}: expected minari NAME, lerobot FOLDER or npz FILE")
    dataset = open_dataset(arguments.workspace / runs.check_name(arguments.name))
    dataset.verify()
    try:
        if kind == "minari":
            to = export_minari(dataset, to)
        else:
            (export_lerobot if kind == "lerobot" else export_npz)(dataset, Path(to))
    except OSError as error:
        raise UserError(f"--export {kind} {to}: cannot be written: {error.strerror or error}; name another place") from None
    print(f"wrote {to}")


def import_from_minari() -> None:
    """One of Minari's datasets as a dataset of the workspace."""
    parser = command_line.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="the new dataset's folder in the workspace")
    parser.add_argument("--workspace", type=Path, default=Path("workspace"), help="where it is to live (default: workspace)")
    parser.add_argument("--import-minari", type=Path, required=True, metavar="PATH", help="the folder of Minari's dataset")
    parser.add_argument("--env", metavar="ID", help="the Gymnasium environment that it is of (default: the one that it names)")
    arguments = parser.parse_args()
    folder = arguments.workspace / runs.check_name(arguments.name)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: there is something of this name; take another --name")
    try:
        with whole(folder) as temporary:  # dataset and lineage appear together
            info = import_minari(arguments.import_minari, temporary, arguments.env)
            run = runs.Run(temporary, ImportSettings(source=str(arguments.import_minari), env=arguments.env), arguments.name)
            for file in files_of(arguments.import_minari):
                run.add_parent(str(file), file)
            with run:
                run.num_steps = info.num_steps
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another place with --workspace") from None
    print(f"{info.num_steps:,} steps in {info.num_episodes:,} episodes: {folder}")
    try:
        recorded_world(info.world)
    except ValueError as error:
        print(f"what learns from it cannot be played: {why(error)}; import it again with --env ID", file=sys.stderr)


class ImportSettings(Settings):
    """What an import is."""

    # the folder that was read
    source: str
    # the environment in place of the one that it names; null: that one
    env: str | None = None


class Clock:
    """Steps a second since the last time that it was asked, and what the last hundred episodes came to."""

    def __init__(self, num_steps: int) -> None:
        self._steps, self._time, self._speed = num_steps, time.perf_counter(), 0.0
        self._rows: list[tuple[float, int, float]] = []

    def count(self, rows: list[dict[str, Any]]) -> None:
        """Keeps how these episodes came out."""
        self._rows += [(row["episode_return"], row["length"], row["success"]) for row in rows]
        self._rows = self._rows[-100:]

    def metrics(self, num_steps: int) -> dict[str, float]:
        """By the names of a training's."""
        now = time.perf_counter()
        if now - self._time > 1.0:
            self._speed = (num_steps - self._steps) / (now - self._time)
            self._steps, self._time = num_steps, now
        rows = np.array(self._rows)
        metrics = {"time/env_steps_per_second": self._speed}
        if len(rows):
            metrics |= {"rollout/return": float(rows[:, 0].mean()), "rollout/length": float(rows[:, 1].mean())}
            judged = rows[np.isfinite(rows[:, 2]), 2]
            metrics |= {"rollout/success": float(judged.mean())} if len(judged) else {}
        return metrics


class Recording:
    """A collection on its way to disk: files in the background, and latest/, which tells of the last file's end."""

    def __init__(self, run: runs.Run[CollectSettings], collector: Collector, writer: DatasetWriter) -> None:
        self._run, self._collector, self._writer = run, collector, writer
        self.num_files = 0  # begun
        self._moment: dict[str, Any] | None = None  # the collector's state when the file that is being written was full
        self._resume()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._remember()  # the run saves it as it ends

    def step(self) -> list[dict[str, Any]]:
        """One control step; the rows of the episodes that ended with it. Files that they fill are begun."""
        rows, is_file_begun = [], False
        for episode in self._collector.step():
            self._writer.add(episode.steps, episode.row)
            rows.append({**episode.row, "length": len(episode.steps["reward"])})
            if self._writer.is_full:
                self._save()
                self._writer.flush()
                is_file_begun = True
        if is_file_begun:
            self._writer.flush()  # what is left over of a step in which many ended: a moment lies between two files
            self._moment = self._collector.get_state()
            self.num_files = self._writer.num_shards
        elif self._writer.is_settled:
            self._save()
        return rows

    def finish(self) -> None:
        """The episodes that go on are cut, and the dataset is complete."""
        for episode in self._collector.cut():
            self._writer.add(episode.steps, episode.row)
            if self._writer.is_full:
                self._writer.flush()
        self._run.num_steps = self._collector.num_steps
        self._writer.finish()

    def _save(self) -> None:
        if self._moment is not None:
            self._remember()
            self._run.save(force=True)

    def _remember(self) -> None:
        """The moment, with the writer's (once the file is on disk), as what run.save writes."""
        if self._moment is None:
            return
        moment, self._moment = self._moment, None
        document, arrays = snapshots.pack_tree({"collector": moment, "writer": self._writer.get_state()})
        self._run.remember(moment["num_steps"], lambda: {"collection.json": document, "collection.safetensors": arrays})

    def _resume(self) -> None:
        """Puts both where latest/ is, if there is one, or begins."""
        latest = self._run.latest
        if not snapshots.exists(latest):
            self._writer.set_state(None)
            self._collector.begin()
            return
        arrays = snapshots.read_arrays(latest / "collection.safetensors")
        state = snapshots.unpack_tree((latest / "collection.json").read_bytes(), arrays)
        self._writer.set_state(state["writer"])
        self._collector.set_state(state["collector"])
        self._run.resumed_from(self._collector.num_steps)
        exact = isinstance(self._collector.world, MotorWorld)
        how = "exactly" if exact else "with new episodes (a Gymnasium world has no state to save)"
        print(f"going on {how} at step {self._collector.num_steps:,}", file=sys.stderr)


if __name__ == "__main__":
    command_line.verb(main)
