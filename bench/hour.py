"""All eight skills of the humanoid from nothing, by the clock: the walk, then feet and getting up side by side, then joined.

    python bench/hour.py --workspace workspace/hour
    python bench/skills.py --model workspace/hour/joined/latest --repeats 0      # what came of it

The bar is 60 minutes on two cores, every skill at 90 %. A training that takes longer is stopped in time, as it is then.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = {"video": "false", "evaluation.every": "null", "evaluation.episodes": "8"}
JOINING = 75.0  # s


def start(name: str, config: str, workspace: Path, settings: Mapping[str, object]) -> subprocess.Popen[bytes]:
    """A training in the background; its log is <workspace>/<name>.log."""
    command = [sys.executable, "train.py", "--name", name, "--config", f"examples/{config}.yaml", "--workspace", str(workspace)]
    command += [part for key, value in {**SHARED, **settings}.items() for part in ("--set", f"{key}={value}")]
    with (workspace / f"{name}.log").open("wb") as log:
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
        raise SystemExit(f"{' '.join(map(str, process.args))}: exit code {code}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=ROOT / "workspace" / "hour")
    parser.add_argument("--minutes", type=float, default=60.0, help="in all; what is not over then is stopped")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    workspace = arguments.workspace.resolve()
    workspace.mkdir(parents=True)
    begin = time.monotonic()
    until = begin + arguments.minutes * 60 - JOINING
    told = begin

    def tell(what: str) -> None:
        nonlocal told
        now = time.monotonic()
        print(f"{what:<28} {(now - told) / 60:5.1f} min   {(now - begin) / 60:5.1f} in all", flush=True)
        told = now

    def train(name: str, config: str, **more: object) -> subprocess.Popen[bytes]:
        return start(name, config, workspace, {"seed": arguments.seed, **more})

    wait(train("walk", "humanoid_walk_forward"), until)
    tell("walk")
    walk = workspace / "walk" / "latest"
    up = train("up", "humanoid_up", init_from=walk)
    wait(train("feet", "humanoid_feet", init_from=walk), until)
    tell("feet, up beside it")
    wait(train("feet_2", "humanoid_feet_2", init_from=workspace / "feet" / "latest"), until)
    tell("feet_2, up beside it")
    wait(up, until)
    tell("up")
    apart = f"{{recover: {workspace / 'up' / 'latest'}}}"
    wait(train("joined", "humanoid_joined", init_from=workspace / "feet_2" / "latest", init_apart=apart), float("inf"))
    tell("joined")


if __name__ == "__main__":
    main()
