"""Datasets in the formats of others, read back by the packages (or by the layout) of those."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import minari
import numpy as np
import pyarrow.parquet as pq
import pytest

from flexrl.dataset import Dataset, open_dataset

ROOT = Path(__file__).parent.parent
SKILLS = ROOT / "examples" / "pretrained" / "humanoid_skills_ppo"


def collect(workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "MINARI_DATASETS_PATH": str(workspace / "minari")}
    command = [sys.executable, str(ROOT / "collect.py"), "--workspace", str(workspace), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    workspace = tmp_path_factory.mktemp("export")
    settings = ("num_envs=4", "num_threads=1", "switch=[0.5, 1.5]", "noise=[0.3]", "shard_steps=500")
    arguments = ("--name", "skills", "--model", str(SKILLS), "--steps", "2400")
    done = collect(workspace, *arguments, *[part for text in settings for part in ("--set", text)])
    assert done.returncode == 0, done.stderr
    return open_dataset(workspace / "skills")


def steps_of(dataset: Dataset, name: str) -> np.ndarray:
    return np.concatenate([dataset.episode(i)[name] for i in range(len(dataset.episodes))])


def test_npz_holds_every_column(dataset: Dataset) -> None:
    path = dataset.folder.parent / "skills.npz"
    assert collect(dataset.folder.parent, "--name", "skills", "--export", "npz", str(path)).returncode == 0
    with np.load(path) as arrays:
        for name in ("observation", "action", "reward", "skill", "command", "state", "terminated"):
            np.testing.assert_array_equal(arrays[name], steps_of(dataset, name))
        starts = arrays["episode_start"]
        assert (np.diff(starts) == dataset.episodes.length[:-1]).all()
        np.testing.assert_array_equal(arrays["episode_return"], dataset.episodes.episode_return)
    refused = collect(dataset.folder.parent, "--name", "skills", "--export", "npz", str(path))
    assert refused.returncode == 2
    assert refused.stderr.strip() == f"{path}: is there already; remove it, or name another place"


def test_minari_opens_it_steps_its_world_and_comes_back(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = dataset.folder.parent
    done = collect(workspace, "--name", "skills", "--export", "minari", "humanoid/skills-v0")
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(workspace / "minari"))
    theirs = minari.load_dataset("humanoid/skills-v0")
    assert (theirs.total_steps, theirs.total_episodes) == (dataset.info.num_steps, dataset.info.num_episodes)
    for episode in theirs.iterate_episodes():
        steps = dataset.episode(int(episode.id))
        np.testing.assert_array_equal(episode.observations[:-1], steps["observation"])
        np.testing.assert_array_equal(episode.observations[-1], dataset.episodes.final_observation[int(episode.id)])
        np.testing.assert_array_equal(episode.actions, steps["action"])
        np.testing.assert_array_equal(episode.infos["state"][:-1], steps["state"])
    env = theirs.recover_environment()
    assert isinstance(env, gymnasium.Env)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (dataset.info.observation_size,)
    assert np.isfinite(env.step(env.action_space.sample())[1])
    back = collect(workspace, "--name", "back", "--import-minari", str(workspace / "minari" / "humanoid" / "skills-v0"))
    assert back.returncode == 0, back.stderr
    ours = open_dataset(workspace / "back")
    for name in ("observation", "action", "reward", "terminated", "truncated"):
        np.testing.assert_array_equal(steps_of(ours, name), steps_of(dataset, name))
    np.testing.assert_allclose(ours.episodes.episode_return, dataset.episodes.episode_return, rtol=1e-5)


def test_lerobot_gets_its_layout(dataset: Dataset) -> None:
    path = dataset.folder.parent / "lerobot"
    done = collect(dataset.folder.parent, "--name", "skills", "--export", "lerobot", str(path))
    assert done.returncode == 0, done.stderr
    info = json.loads((path / "meta" / "info.json").read_bytes())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"]) == (dataset.info.num_episodes, dataset.info.num_steps)
    frames = pq.read_table(path / "data")
    assert set(info["features"]) == set(frames.column_names)
    assert frames["index"].to_pylist() == list(range(dataset.info.num_steps))
    np.testing.assert_array_equal(np.array(frames["action"].to_pylist(), np.float32), steps_of(dataset, "action"))
    episodes = pq.read_table(path / "meta" / "episodes").to_pylist()
    tasks = pq.read_table(path / "meta" / "tasks.parquet").to_pylist()
    for row in episodes:
        mine = frames.slice(row["dataset_from_index"], row["length"])
        assert set(mine["episode_index"].to_pylist()) == {row["episode_index"]}
        assert mine["next.done"].to_pylist() == [False] * (row["length"] - 1) + [True]
        assert {tasks[index]["__index_level_0__"] for index in mine["task_index"].to_pylist()} == set(row["tasks"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--export", "csv", "a.csv"), "--export csv: expected minari NAME, lerobot FOLDER or npz FILE"),
        (("--export", "npz"), "expected 2 arguments"),
        (("--export", "minari", "a/b/c/d"), "--export minari a/b/c/d"),
        (("--import-minari", "nowhere"), "there is something of this name"),
    ],
)
def test_a_wrong_export_is_refused_in_a_line(dataset: Dataset, arguments: tuple[str, ...], words: str) -> None:
    done = collect(dataset.folder.parent, "--name", "skills", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
