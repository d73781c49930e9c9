"""Learn a policy offline, from datasets: a Decision Transformer, or behaviour cloning beside it.

    python train_dt.py --name dt --config examples/dt_humanoid.yaml --dataset workspace/skills_data

It lies in workspace/<name>/ as a training does: latest/ to go on with (--resume), best/ to watch (play.py).
Several GPUs train one model, each on batches of its own:

    torchrun --nproc-per-node 4 train_dt.py --name dt --config examples/dt_humanoid.yaml
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import yaml

from flexrl import command_line, machine, parallel, runs, snapshots
from flexrl.offline import OfflineLearner
from flexrl.offline_settings import EvaluationSettings, TrainDTSettings
from flexrl.offline_training import (
    evaluate,
    judge,
    make_learner,
    open_all,
    out_of_patience,
    rehearse,
    snapshot_files,
)
from flexrl.progress import Progress
from flexrl.provenance import python

FLAGS = (
    command_line.Flag(
        "--dataset", "PATH", "a folder that collect.py made; several times for several", lambda t: f"datasets={json.dumps(t)}"
    ),
)


def main() -> None:
    peers = parallel.join()
    (lead if peers.leads else follow)(peers)
    peers.leave()


def lead(peers: parallel.Peers) -> None:
    """The whole training, but for the other processes' gradients."""
    with contextlib.ExitStack() as stack:
        with peers.opening():
            settings, run = command_line.begin(TrainDTSettings, __doc__, rehearse, FLAGS)
            use_cores(settings, peers)
            run.unit = "update"
            datasets = open_all(settings)
            for dataset in datasets:
                dataset.verify()
            if not snapshots.exists(run.latest):
                for path, dataset in zip(settings.datasets, datasets, strict=True):
                    run.add_parent(path, dataset.folder)
                if settings.init_from is not None:
                    run.add_parent(settings.init_from, Path(settings.init_from))
            stack.enter_context(run)
            latest = run.latest if snapshots.exists(run.latest) else None  # now that a save which was cut is mended
            if latest is not None:
                for path, dataset in zip(settings.datasets, datasets, strict=True):
                    cure = f"go on with its weights under another --name and --set init_from={run.latest}"
                    run.check_parent("datasets", path, dataset.sha256, cure)
            learner, held_out = make_learner(settings, datasets, peers, latest)
            best = resume(run, settings, learner)
        peers.agree({"settings": settings.model_dump(mode="json"), "latest": latest and str(latest)})
        peers.agree("begin")  # when all of them have read latest/, which is written from here on
        with Progress(settings.num_updates, learner.num_updates, "updates") as progress:
            while peers.agree(learner.num_updates < settings.num_updates and not out_of_patience(settings, best)):
                ends = learner.num_updates + 1 >= settings.num_updates
                is_judged = (learner.num_updates + 1) % settings.evaluation.every == 0 or ends
                if is_judged:  # an evaluation that is cut is made again
                    remember(run, settings, learner, best)
                with contextlib.ExitStack() as turn:
                    if peers.size == 1:  # several do not wait: at a signal those that do not lead are gone at once
                        turn.enter_context(run.uninterrupted())
                    metrics = learner.improve()
                    check_finite(run, metrics)
                    if is_judged:
                        turn.close()
                        run.check_stop()
                        progress.say("evaluating")
                        metrics |= evaluate(settings, learner, held_out)
                        files = snapshot_files(settings, learner, metrics)
                        if judge(best, metrics):
                            run.write_snapshot(run.best, files)
                    if is_judged or learner.num_updates % settings.log_every == 0:
                        run.log(learner.num_updates, metrics | {"time/memory_gb": psutil.Process().memory_info().rss / 2**30})
                        progress.update(learner.num_updates, metrics, best["score"])
                    if run.is_due(settings.save_every) or ends or run.stop_signal is not None:
                        remember(run, settings, learner, best)
                        run.save(force=True)
                run.check_stop()
        if learner.num_updates < settings.num_updates:
            why = f"the held-out loss had not fallen for {settings.patience} evaluations"
            print(f"ended after {learner.num_updates:,} updates: {why}", file=sys.stderr)
            remember(run, settings, learner, best)
    print(f"watch it: {python()} play.py --model {run.best_or_latest}")


def check_finite(run: runs.Run[TrainDTSettings], metrics: dict[str, float]) -> None:
    """Failed, if a number is none any more; this update is not remembered, so latest/ keeps an earlier state."""
    for name in ("train/loss", "train/grad_norm"):
        if not np.isfinite(metrics[name]):
            saved = f", from init_from: {run.latest}, which is from before" if snapshots.exists(run.latest) else ""
            why = f"{name} is {metrics[name]}: the weights are lost"
            raise runs.Failed(f"{why}; take a lower learning_rate under another --name{saved}")


def follow(peers: parallel.Peers) -> None:
    """The part of a process that does not lead: from where the leader is, its gradients, as long as the leader goes on."""
    told = peers.agree(None)
    if told is None:  # the leader could not begin, and says why
        return
    settings = TrainDTSettings.model_validate(told["settings"])
    use_cores(settings, peers)
    latest = Path(told["latest"]) if told["latest"] else None
    learner, _ = make_learner(settings, open_all(settings), peers, latest)
    if latest is not None:
        learner.set_state(read_state(latest))
    peers.agree(None)
    while peers.agree(None):
        learner.improve()


def use_cores(settings: TrainDTSettings, peers: parallel.Peers) -> None:
    """Torch's threads: those asked for, or this process's share of the cores."""
    torch.set_num_threads(settings.torch_threads or machine.num_cores(peers.local_size))


def remember(
    run: runs.Run[TrainDTSettings], settings: TrainDTSettings, learner: OfflineLearner, best: dict[str, float]
) -> None:
    """This moment, copied, as what run.save writes: a snapshot that plays, and the training's whole state."""
    state = learner.get_state() | {"best": dict(best)}
    state.pop("model")  # its weights are policy.safetensors
    plays = snapshot_files(settings, learner, {})
    document, arrays = snapshots.pack_tree(state)
    run.remember(learner.num_updates, lambda: plays | {"training.json": document, "training.safetensors": arrays})


def resume(run: runs.Run[TrainDTSettings], settings: TrainDTSettings, learner: OfflineLearner) -> dict[str, float]:
    """Puts the learner where latest/ is, if there is one; returns what was best so far.

    Nothing was, where it is judged by something else from now on: scores of different measures do not compare.
    """
    none = {"score": -np.inf, "loss": np.inf, "waited": 0}
    if not snapshots.exists(run.latest):
        return none
    state = read_state(run.latest)
    learner.set_state(state)
    run.resumed_from(learner.num_updates)
    print(f"going on exactly at update {learner.num_updates:,}", file=sys.stderr)
    before = EvaluationSettings.model_validate(yaml.safe_load((run.latest / "settings.yaml").read_text())["evaluation"])
    if before.model_copy(update={"every": settings.evaluation.every}) != settings.evaluation:
        print("evaluations are others from here on; best/ is chosen anew", file=sys.stderr)
        return none
    return dict(state["best"])


def read_state(latest: Path) -> dict[str, Any]:
    """What `remember` wrote, the weights included."""
    arrays = snapshots.read_arrays(latest / "training.safetensors")
    state: dict[str, Any] = snapshots.unpack_tree((latest / "training.json").read_bytes(), arrays)
    return state | {"model": snapshots.read_arrays(latest / "policy.safetensors")}


if __name__ == "__main__":
    command_line.verb(main)
