"""Wall clock from nothing to one policy for all eight humanoid skills, on this machine's cores.

    python bench/hour.py                      # then, to judge what came of it:
    python bench/skills.py --model workspace/hour_precise/latest

Three trainings, each from the one before: a walk, all skills, all skills with precision. What has ended in workspace/ before
is not done again and counts with the time that its lineage tells; `--resume` goes on with what was cut.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# name of the run, its settings
STAGES = [("hour_walk", "humanoid_walk_forward"), ("hour_skills", "humanoid_apart"), ("hour_precise", "humanoid_apart_2")]


def minutes_told(folder: Path) -> float:
    """What the attempts of a run took, by its lineage: from its settings being read to its last snapshot."""
    attempts = json.loads((folder / "lineage.json").read_bytes())["attempts"]
    times = [(datetime.fromisoformat(a["start"]), datetime.fromisoformat(a["end"])) for a in attempts if "end" in a]
    return sum((end - start).total_seconds() for start, end in times) / 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workspace", type=Path, default=ROOT / "workspace")
    arguments = parser.parse_args()
    total, before = 0.0, None
    for name, config in STAGES:
        folder = arguments.workspace / name
        command = [sys.executable, "train.py", "--name", name, "--workspace", str(arguments.workspace)]
        if (folder / "latest").exists():
            command.append("--resume")
        else:
            command += ["--config", f"examples/{config}.yaml", "--set", f"seed={arguments.seed}", "--set", "video=false"]
            command += ["--set", "evaluation.every=null"]
            command += [] if before is None else ["--set", f"init_from={before / 'latest'}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        minutes = minutes_told(folder)
        total, before = total + minutes, folder
        steps = json.loads((folder / "latest" / "snapshot.json").read_bytes())["num_steps"]
        print(f"{name}: {steps:,} steps in {minutes:.1f} min, its one evaluation included", flush=True)
    print(f"from nothing to {before}/latest: {total:.1f} min (bar 60, aim 30)")


if __name__ == "__main__":
    main()
