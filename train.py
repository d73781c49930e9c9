"""Learn a motor skill online: PPO, recurrent PPO, A2C, SAC, TQC or CrossQ.

    python train.py --name humanoid_walk_forward --config examples/humanoid_walk_forward.yaml

Everything it makes lies in workspace/<name>/: latest/ to go on with (--resume), best/ to watch (play.py).
"""

from __future__ import annotations

import json
import sys

import numpy as np
import psutil
import torch

from flexrl import command_line, machine, runs, snapshots
from flexrl.learners import Learner, make_learner
from flexrl.motor_settings import MotorSettings
from flexrl.policies import copied, snapshot_files
from flexrl.progress import Progress
from flexrl.provenance import python
from flexrl.training import TrainSettings, evaluate, find_parents, judged_by, make_training_world, make_video, rehearse
from flexrl.warm_start import init_from
from flexrl.worlds import closing


def main() -> None:
    settings, run = command_line.begin(TrainSettings, __doc__, rehearse)
    torch.set_num_threads(settings.torch_threads or machine.num_cores())
    parents = find_parents(settings, run)
    with run, closing(make_training_world(settings)) as world:
        learner = make_learner(
            settings.learner,
            world,
            num_steps=settings.num_steps,
            seed=settings.seed,
            device=settings.device,
            replay_folder=run.folder / "replay",
        )
        if parents is not None:
            init_from(learner, parents, settings.world)
            run.confirm_parents()
        best = resume(run, learner)
        if learner.num_steps >= settings.num_steps:
            print(f"{run.folder} is finished; to train on: --resume --set num_steps=... (more)", file=sys.stderr)
        with Progress(settings.num_steps, learner.num_steps) as progress:
            while learner.num_steps < settings.num_steps:
                before = learner.num_steps
                metrics = learner.improve() | {"time/memory_gb": psutil.Process().memory_info().rss / 2**30}
                check_finite(metrics)
                if is_due(settings.evaluation.every, before, learner.num_steps, settings.num_steps):
                    progress.say("evaluating")
                    scores = evaluate(settings, learner)
                    metrics |= scores
                    is_best = scores["eval/return"] > best
                    if is_best and run.write_snapshot(run.best, snapshot_files(learner, settings, scores)):
                        best = scores["eval/return"]
                if "eval/return" in metrics or is_due(settings.log_every, before, learner.num_steps, settings.num_steps):
                    run.log(learner.num_steps, metrics)
                if settings.snapshot_every and is_due(settings.snapshot_every, before, learner.num_steps, settings.num_steps):
                    files = snapshot_files(learner, settings, metrics)
                    run.write_snapshot(run.folder / "snapshots" / str(learner.num_steps), files)
                remember(run, learner, settings, best)
                if run.save(force=learner.must_save(), every=settings.save_every):
                    learner.saved()
                progress.update(learner.num_steps, metrics, best)
                run.check_stop()
                check_divergence(metrics)
    if settings.video and isinstance(settings.world, MotorSettings):
        make_video(settings, run, run.best_or_latest)
    print(f"watch it: {python()} play.py --model {run.best_or_latest}")


def is_due(every: int | None, before: int, now: int, end: int) -> bool:
    """Whether a multiple of `every` was passed between `before` and `now` steps, or the end reached."""
    return now >= end or (every is not None and now // every > before // every)


def remember(run: runs.Run[TrainSettings], learner: Learner, settings: TrainSettings, best: float) -> None:
    """This moment, copied, as what run.save writes: a snapshot that plays, and the training's whole state."""
    state = learner.get_state() | {"best": best, "best_by": judged_by(settings)}
    state["modules"].pop("policy")  # its weights are policy.safetensors
    plays = copied(learner, settings, {})

    def files() -> dict[str, bytes]:
        document, arrays = snapshots.pack_tree(state)
        return plays() | {"training.json": document, "training.safetensors": arrays}

    run.remember(learner.num_steps, files)


def resume(run: runs.Run[TrainSettings], learner: Learner) -> float:
    """Puts the learner where latest/ is, if there is one; returns the best evaluation's return so far."""
    if not snapshots.exists(run.latest):
        learner.saved()  # whatever an attempt that saved nothing left in the replay buffer's files
        return -np.inf
    arrays = snapshots.read_arrays(run.latest / "training.safetensors")
    state = snapshots.unpack_tree((run.latest / "training.json").read_bytes(), arrays)
    state["modules"]["policy"] = snapshots.read_arrays(run.latest / "policy.safetensors")
    learner.set_state(state)
    learner.saved()
    run.resumed_from(learner.num_steps)
    print(f"going on {learner.how_exact()} at step {learner.num_steps:,}", file=sys.stderr)
    if state["best_by"] != judged_by(run.settings):
        return -np.inf
    if learner.how_exact() != "exactly" and snapshots.exists(run.best):  # it may be newer, and will not come again
        about = json.loads((run.best / "snapshot.json").read_bytes())
        return max(float(state["best"]), float(about["scores"]["eval/return"]))
    return float(state["best"])


def check_finite(metrics: dict[str, float]) -> None:
    """Failed, if a loss is no number any more; this update is not remembered, so latest/ keeps the state before it."""
    for name in ("train/loss", "train/value_loss", "train/actor_loss", "train/critic_loss"):
        if not np.isfinite(metrics.get(name, 0.0)):
            raise runs.Failed(
                f"{name} is {metrics[name]}: the weights are lost; latest/ is from before; lower learner.learning_rate"
            )


def check_divergence(metrics: dict[str, float]) -> None:
    """Failed, if the engine lost more than 1 % of the episodes (one of the first hundred) that ran during this rollout."""
    if metrics.get("world/diverged_share", 0.0) > 0.01:
        raise runs.Failed(
            f"the physics diverged in {metrics['world/diverged_share']:.1%} of the episodes of a rollout (at most 1 % may); "
            "the run is saved; look for too strong motors, or train in physics: v5"
        )


if __name__ == "__main__":
    command_line.verb(main)
