"""What writing costs: collect.py beside stepping without writing, beside Minari's DataCollector, and its memory.

    python bench/collect.py                      # rates, about 15 minutes (--alone: without Minari, 6)
    python bench/collect.py --memory 5_000_000   # peak memory and bytes a step of a long collection, and opening it

`rate`: collect.py with humanoid_skills, beside the same policy stepping the same world with nothing kept, turn by turn.
`minari`: a policy of Humanoid-v5's own observations, in Gymnasium's environment under DataCollector and in ours, in v5 and in
fast physics (`pip install 'minari[create]'` first: DataCollector needs jax).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gymnasium
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from flexrl.collection import CollectSettings, make_crew, open_models, world_of
from flexrl.dataset import open_dataset
from flexrl.offline import OfflineLearner  # noqa: F401 (what a training imports counts as its memory)
from flexrl.policies import load_policy, open_snapshot
from flexrl.windows import WindowSampler
from flexrl.worlds import make_world

ROOT = Path(__file__).resolve().parent.parent
SKILLS = ROOT / "examples" / "pretrained" / "humanoid_skills"


def collected(settings: CollectSettings, folder: Path) -> float:
    """Steps a second of collect.py, its files and its saves included, between its first file and its last."""
    command = [sys.executable, "collect.py", "--name", "rate", "--workspace", str(folder), "--model", settings.models[0].path]
    command += ["--steps", str(settings.num_steps), "--set", f"physics={settings.physics}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (folder / "rate" / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(folder)
    if len(rows) < 2:
        raise SystemExit(f"--steps {settings.num_steps}: too few for two files to be written; write 400_000 or more")
    return (rows[-1]["step"] - rows[0]["step"]) / (rows[-1]["time/seconds"] - rows[0]["time/seconds"])


def stepped(settings: CollectSettings) -> float:
    """Steps a second of the same policy in the same world, nothing kept."""
    parents = open_models(settings)
    world = make_world(world_of(settings, parents), settings.seed)
    crew = make_crew(settings, parents, world)
    world.seed(settings.seed)
    obs = world.reset()
    crew.reset(np.ones(world.num_envs, bool))
    begin, num_steps = time.perf_counter(), 0
    while num_steps < settings.num_steps:
        obs, _, done, _ = world.step(crew.act(obs)[0])
        crew.reset(done)
        num_steps += world.num_envs
    return num_steps / (time.perf_counter() - begin)


def data_collector(model: Path, num_steps: int) -> float:
    """Steps a second of Minari's DataCollector round Gymnasium's Humanoid-v5, written to disk at the end."""
    import minari

    policy = load_policy(open_snapshot(model))
    env = minari.DataCollector(gymnasium.make("Humanoid-v5"), data_format="arrow")
    obs, _ = env.reset(seed=0)
    policy.reset(np.ones(1, bool))
    begin = time.perf_counter()
    for _ in range(num_steps):
        obs, _, terminated, truncated, _ = env.step(policy.act(obs[None])[0])
        if terminated or truncated:
            policy.reset(np.ones(1, bool))
            obs, _ = env.reset()
    env.create_dataset("bench/humanoid-v0")
    return num_steps / (time.perf_counter() - begin)


def v5_policy(workspace: Path) -> Path:
    """A policy of Humanoid-v5's own observations and actions, from a second of training."""
    world = "world={task: v5, observation: v5, action: v5, num_envs: 64}"
    command = [sys.executable, "train.py", "--name", "v5", "--workspace", str(workspace), "--set", world]
    command += ["--set", "num_steps=8192", "--set", "video=false", "--set", "learner={name: ppo, policy: MlpPolicy}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return workspace / "v5" / "best"


def long_collection(num_steps: int, workspace: Path) -> None:
    """Peak memory and bytes a step of collect.py, and of a process that opens what it made and draws windows."""
    command = [sys.executable, "collect.py", "--name", "long", "--workspace", str(workspace), "--model", str(SKILLS)]
    begin = time.perf_counter()
    subprocess.run(
        [*command, "--steps", str(num_steps)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    size = sum(path.stat().st_size for path in (workspace / "long").glob("*.arrow"))
    print(
        f"collect.py: {num_steps / (time.perf_counter() - begin):,.0f} steps/s over {num_steps:,} steps, start and end included"
    )
    print(f"collect.py: peak memory {peak:.2f} GiB, {size / num_steps:,.0f} bytes a step", flush=True)
    child = subprocess.run(
        [sys.executable, __file__, "--open", str(workspace / "long")], cwd=ROOT, check=True, capture_output=True, text=True
    )
    told = json.loads(child.stdout)
    print(f"opening it: first batch after {told['first']:.2f} s, 1,000 batches of 64 x 20 in {told['all']:.1f} s")
    print(f"peak memory {told['peak']:.0f} MiB, of which {told['before']:.0f} MiB before it was opened")


def open_and_draw(folder: Path) -> None:
    """What `long_collection` asks a fresh process for."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    begin = time.perf_counter()
    dataset = open_dataset(folder)
    sampler = WindowSampler([dataset], [np.ones(len(dataset.episodes), bool)], ["skill", "command", "place"], 20)
    rng = np.random.default_rng(0)
    sampler.draw(64, rng)
    first = time.perf_counter() - begin
    for _ in range(999):
        sampler.draw(64, rng)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"first": first, "all": time.perf_counter() - begin, "before": before, "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=400_000, help="of a turn; the first file is full when the first episodes end"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="leave Minari's DataCollector away")
    parser.add_argument("--memory", type=int, help="steps of one long collection, instead of the rates")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.open:
        open_and_draw(arguments.open)
        return
    with tempfile.TemporaryDirectory() as temporary:
        workspace = Path(temporary)
        if arguments.memory:
            long_collection(arguments.memory, workspace)
            return
        rates(arguments, workspace)


def rates(arguments: argparse.Namespace, workspace: Path) -> None:
    def settings(model: Path, physics: str) -> CollectSettings:
        return CollectSettings.model_validate(
            {"models": [{"path": str(model)}], "num_steps": arguments.steps, "physics": physics}
        )

    ratios = []
    for repeat in range(arguments.repeats):
        (folder := workspace / f"rate{repeat}").mkdir()
        plain, written = stepped(settings(SKILLS, "same")), collected(settings(SKILLS, "same"), folder)
        ratios.append(written / plain)
        print(f"stepping {plain:,.0f} steps/s, collecting {written:,.0f} steps/s: {ratios[-1]:.3f}", flush=True)
    print(f"collecting / stepping: {statistics.median(ratios):.3f} (median of {arguments.repeats})", flush=True)
    if arguments.alone:
        return
    os.environ["MINARI_DATASETS_PATH"] = str(workspace / "minari")
    model = v5_policy(workspace)
    found: dict[str, list[float]] = {"v5": [], "fast": []}
    for repeat in range(arguments.repeats):
        peer = data_collector(model, 5000)
        shutil.rmtree(workspace / "minari")
        for physics in found:
            (folder := workspace / f"{physics}{repeat}").mkdir()
            ours = collected(settings(model, physics), folder)
            found[physics].append(ours / peer)
            print(
                f"DataCollector {peer:,.0f} steps/s, collect.py in {physics} {ours:,.0f} steps/s: {found[physics][-1]:.1f}",
                flush=True,
            )
    for physics, values in found.items():
        print(f"collect.py in {physics} / DataCollector: {statistics.median(values):.1f} (median of {arguments.repeats})")


if __name__ == "__main__":
    main()
