"""All eight skills of the humanoid from nothing, by the clock: the walk; then what is done on two feet, and running and getting
up beside it, a core each; then all as one.

    python bench/hour.py --workspace workspace/hour
    python bench/skills.py --model workspace/hour/joined_2/latest    # what came of it

The bar is 60 minutes on two cores, every skill at 90 %. A training that takes longer is stopped in time, as it is then; on a
slower machine `--share 0.6` gives each that share of its steps.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event

import yaml
from trainings import ROOT, command_of, told

SHARED = {"video": "false", "evaluation.every": "null", "evaluation.episodes": "8"}
JOINING = 720.0  # s that the last three trainings are left, at least
CHANGING = 420.0  # s of them that the last two are left
LAST = 230.0  # s of those that the last one is left
BEGINNING = 60.0  # s that a training needs, or it leaves nothing to go on from
ENDING = 25.0  # s that a training takes to save and to evaluate, once it is asked to leave


def start(name: str, config: str, workspace: Path, settings: Mapping[str, object]) -> subprocess.Popen[bytes]:
    """A training in the background; its log is <workspace>/<name>.log."""
    with (workspace / f"{name}.log").open("wb") as log:
        command = command_of(name, config, workspace, {**SHARED, **settings})
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def wait(process: subprocess.Popen[bytes], until: float) -> None:
    """Until it is over, or asked to save and leave at `until` (monotonic s)."""
    try:
        code = process.wait(max(until - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
        return
    if code:
        raise SystemExit(f"{' '.join(map(str, process.args))}: exit code {code}")  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=ROOT / "workspace" / "hour")
    parser.add_argument("--minutes", type=float, default=60.0, help="in all; what is not over then is stopped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps that the settings name, for all but the walk")
    arguments = parser.parse_args()
    workspace = arguments.workspace.resolve()
    if workspace.exists():
        raise SystemExit(f"--workspace {workspace}: there is something of this name; name another one")
    workspace.mkdir(parents=True)
    begin = time.monotonic()
    end = begin + arguments.minutes * 60 - ENDING
    running: list[subprocess.Popen[bytes]] = []

    def train(name: str, until: float, **more: object) -> None:
        began = time.monotonic()
        if until - began < BEGINNING:
            raise SystemExit(f"no time is left for {name}; try --share 0.6")
        config = f"humanoid_{name}"
        steps = yaml.safe_load((ROOT / "examples" / f"{config}.yaml").read_text())["num_steps"]
        share = arguments.share if more else 1.0
        settings = {"seed": arguments.seed, "num_steps": int(steps * share), **more}
        running.append(start(name, config, workspace, settings))
        wait(running[-1], until)
        now = time.monotonic()
        print(f"{name:<16} {(now - began) / 60:5.1f} min   at {(now - begin) / 60:5.1f}", flush=True)

    def latest(name: str) -> Path:
        return told(workspace) / name / "latest"

    has_run = Event()

    def on_two_feet() -> None:
        train("feet", end - JOINING, init_from=latest("walk_forward"))
        has_run.wait()
        train("run_2", end - JOINING, init_from=latest("feet"), init_apart=f"{{run_forward: {latest('run')}}}")
        train("feet_2", end - JOINING, init_from=latest("feet"))

    def run_and_up() -> None:
        try:
            train("run", end - JOINING, init_from=latest("walk_forward"))
        finally:
            has_run.set()
        train("up", end - JOINING, init_from=latest("walk_forward"))

    train("walk_forward", end)
    with ThreadPoolExecutor() as pool:
        try:
            for side in as_completed([pool.submit(on_two_feet), pool.submit(run_and_up)]):
                side.result()
        except BaseException:
            for process in running:
                process.terminate()
            raise
    train("joined", end - CHANGING, init_from=latest("feet_2"), init_apart=f"{{recover: {latest('up')}}}")
    train("changes", end - LAST, init_from=latest("joined"))
    train("joined_2", end, init_from=latest("changes"), init_apart=f"{{run_forward: {latest('run_2')}}}")


if __name__ == "__main__":
    main()
