"""What a sweep costs: planning a thousand trials, and running eight trainings against a shell loop.

python bench/sweep.py                      # 1,000 trials: --plan, and expand + render + validate; seconds
python bench/sweep.py --run --seconds 60   # eight trainings of so long, by the sweep and by xargs -P beside it; 20 minutes
python bench/sweep.py --run --in-turn --seconds 120   # the same one after the other, each on all cores; 35 minutes
python bench/sweep.py --chaos              # a sweep of which a fifth of the attempts is killed, against one left alone
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from flexrl.machine import num_threads  # noqa: E402

NUM_TRAININGS = 8
TRAINING = {
    "world": {"body": "half_cheetah", "task": "v5", "num_envs": 32},
    "learner": {"n_steps": 64, "batch_size": 256, "n_epochs": 4},
    "evaluation": {"every": None, "episodes": 4},
    "video": False,
}


def write(path: Path, **values: Any) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def plan(folder: Path) -> None:
    """Wall times of a plan of a thousand trials, and of what a submission does before it asks the cluster."""
    grid = {"learner.learning_rate": [1e-4 * 1.3**i for i in range(10)], "learner.gamma": [0.9 + i / 100 for i in range(10)]}
    path = write(folder / "thousand.yaml", set=TRAINING, grid=grid, seeds=10)
    command = [sys.executable, "submit_sweep.py", "--sweep", str(path), "--workspace", str(folder / "workspace")]
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        subprocess.run([*command, "--plan"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begin)
    print(f"--plan of 1,000 trials: {statistics.median(seconds):.1f} s in the median of {len(seconds)} (bar: 5 s)", flush=True)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        image = "example/flex-rl@sha256:" + "0" * 64
        render = ["--target", "kind", "--image", image, "--render", str(folder / "job.yaml")]
        subprocess.run([*command, *render], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        validate = [sys.executable, "-m", "kubernetes_validate", "--strict", "-k", "1.34", str(folder / "job.yaml")]
        subprocess.run(validate, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begin)
    print(
        f"expand, render, validate: {statistics.median(seconds):.1f} s in the median of {len(seconds)} (bar: 20 s)", flush=True
    )


def run(folder: Path, wanted: float, repeats: int, in_turn: bool) -> None:
    """The same trainings by a sweep and by xargs at the same time, each on one half of the cores, and then on the other half.

    One after the other (`in_turn`: sweep, loop, loop, sweep) they also differ by what the machine does from quarter to
    quarter of an hour. What is spent outside of the runs, by their lineage, is told: plan, starts, noticing an end.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two cores at least are needed: one half for the sweep, the other for the shell loop")
    halves = [cores, cores] if in_turn else [cores[: len(cores) // 2], cores[len(cores) // 2 : 2 * (len(cores) // 2)]]
    num_steps = int(wanted * steps_per_second(folder))
    values = {**TRAINING, "num_steps": num_steps}
    print(f"{NUM_TRAININGS} trainings of {num_steps:,} steps, {len(halves[0])} at a time", flush=True)
    path = write(folder / "eight.yaml", set=values, seeds=NUM_TRAININGS, resources={"cpu": 1, "memory": "512Mi"})
    config = write(folder / "loop.yaml", **values)
    ratios, overheads = [], []
    for turn in range(2 * repeats):
        ours, theirs = folder / f"sweep{turn}", folder / f"loop{turn}"
        sweep = [sys.executable, "submit_sweep.py", "--sweep", str(path), "--workspace", str(ours)]
        loop = ["xargs", "-P", str(len(halves[0])), "-I{}", sys.executable, "train.py", "--name", "loop{}"]
        loop += ["--workspace", str(theirs), "--config", str(config), "--set", "seed={}"]
        with ThreadPoolExecutor(1 if in_turn else 2) as pool:
            both = [(sweep, halves[turn % 2]), (loop, halves[1 - turn % 2])]
            timed = [pool.submit(seconds_of, *each) for each in (both[::-1] if in_turn and turn % 2 else both)]
            of_sweep, of_loop = (each.result() for each in (timed[::-1] if in_turn and turn % 2 else timed))
        around = of_sweep - seconds_inside(ours / "sweeps" / "eight" / "trials", len(halves[0]))
        around_theirs = of_loop - seconds_inside(theirs, len(halves[0]))
        ratios.append(of_sweep / of_loop)
        overheads.append((around - around_theirs) / of_loop)
        print(f"sweep {of_sweep:.1f} s, shell loop {of_loop:.1f} s: {ratios[-1]:.3f}", flush=True)
        print(f"outside the runs: sweep {around:.1f} s, shell loop {around_theirs:.1f} s: {overheads[-1]:+.1%}", flush=True)
    print(f"sweep / shell loop: {statistics.geometric_mean(ratios):.3f} in the mean of {len(ratios)} turns (bar: 1.03)")
    print(f"what the sweep spends outside the runs more than the loop: {statistics.median(overheads):+.1%} of the loop")


def seconds_of(command: list[str], cores: list[int]) -> float:
    """Wall time of a command on these cores; xargs is given the numbers of the trainings."""
    begin = time.perf_counter()
    subprocess.run(
        ["taskset", "--cpu-list", ",".join(map(str, cores)), *command],
        cwd=ROOT,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        input="\n".join(map(str, range(NUM_TRAININGS))),
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - begin


def seconds_inside(runs: Path, at_a_time: int) -> float:
    """What the runs of a folder took by their lineage, so many at a time."""
    documents = [json.loads(path.read_bytes()) for path in runs.glob("*/lineage.json")]
    assert len(documents) == NUM_TRAININGS
    times = [[datetime.fromisoformat(d["attempts"][0][key]) for key in ("start", "end")] for d in documents]
    return sum((end - start).total_seconds() for start, end in times) / at_a_time


def steps_per_second(folder: Path) -> float:
    """Of one such training once it runs, another beside it on each other core."""
    seconds = []
    for num_steps in (20_000, 120_000):
        config = write(folder / "speed.yaml", **TRAINING, num_steps=num_steps)
        command = [sys.executable, "train.py", "--config", str(config), "--workspace", str(folder / f"speed_{num_steps}")]
        quiet = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "stdout": subprocess.DEVNULL}
        begin = time.perf_counter()
        names = map(str, range(num_threads()))
        for process in [subprocess.Popen([*command, "--name", name], **quiet) for name in names]:  # type: ignore[call-overload]
            process.wait()
        seconds.append(time.perf_counter() - begin)
    return 100_000 / (seconds[1] - seconds[0])


def chaos(folder: Path) -> None:
    """Hashes of what trials came to, with and without kills, and what the kills cost."""
    values = {**TRAINING, "num_steps": 60_000, "save_every": 0}
    results = []
    for name, options in (("calm", []), ("chaos", ["--chaos", "kill=0.2,seed=4"])):
        path = write(folder / "eight.yaml", set=values, seeds=NUM_TRAININGS, resources={"cpu": 1, "memory": "512Mi"})
        workspace = ["--workspace", str(folder / name)]
        command = [sys.executable, "submit_sweep.py", "--sweep", str(path), *workspace, *options]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        told = [sys.executable, "submit_sweep.py", "status", "eight", *workspace, "--json"]
        done = subprocess.run(told, cwd=ROOT, check=True, capture_output=True, text=True)
        results.append({row["id"]: row for row in json.loads(done.stdout)})
    calm, killed = results
    same = sum(calm[key]["result"] == killed[key]["result"] for key in calm)
    attempts = [attempt for row in killed.values() for attempt in row["attempts"]]
    num_kills = sum(attempt["how"] == "killed by --chaos" for attempt in attempts)
    lost = sum(attempt["lost_steps"] for attempt in attempts)
    print(f"{same} of {len(calm)} trials came to the same hash")
    print(f"{num_kills} of {len(attempts)} attempts were killed, {lost:,} of {60_000 * len(calm):,} steps done again")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--in-turn", action="store_true", help="one after the other, each on all cores")
    parser.add_argument("--chaos", action="store_true")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a training")
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.run:
            run(Path(temporary), arguments.seconds, arguments.repeats, arguments.in_turn)
        elif arguments.chaos:
            chaos(Path(temporary))
        else:
            plan(Path(temporary))


if __name__ == "__main__":
    main()
