"""Datasets in the formats of others, read back by the packages (or by the layout) of those."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import minari
import numpy as np
import pyarrow.parquet as pq
import pytest
from minari.data_collector.episode_buffer import EpisodeBuffer
from toy_dataset import toy_info, write_toy

import collect as collect_py
from flexrl import config
from flexrl.config import UserError
from flexrl.dataset import Dataset, open_dataset
from flexrl.dataset_exports import export_minari
from flexrl.lineage import trace
from flexrl.offline_settings import TrainDTSettings
from flexrl.offline_training import rehearse

ROOT = Path(__file__).parent.parent
SKILLS = ROOT / "examples" / "pretrained" / "humanoid_skills"


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
        assert arrays["episode_words"].tolist() == [dataset.info.phrases[goal].words for goal in arrays["goal"][starts]]
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
    ancestors = trace(workspace / "back").parents
    assert {Path(ancestor.path).name for ancestor in ancestors} >= {"metadata.json"}
    assert all(ancestor.mark == "intact" for ancestor in ancestors)
    for name in ("observation", "action", "reward", "terminated", "truncated"):
        np.testing.assert_array_equal(steps_of(ours, name), steps_of(dataset, name))
    np.testing.assert_allclose(ours.episodes.episode_return, dataset.episodes.episode_return, rtol=1e-5)
    assert ours.info.world["kwargs"]["switch"] == [0.5, 1.5]
    rehearse(config.load(TrainDTSettings, None, [f"datasets=[{ours.folder}]", "device=cpu"]), True)  # its world is made here


def test_an_export_to_minari_that_is_interrupted_leaves_nothing_and_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    dataset, whole = write_toy(tmp_path / "toy"), Dataset.episode

    def interrupted(self: Dataset, index: int, names: object = None) -> dict[str, np.ndarray]:
        if index == 2:
            assert not (tmp_path / "minari" / "toy").exists()
            raise KeyboardInterrupt
        return whole(self, index)

    (tmp_path / "minari" / ".toy.pendulum-v0.new").mkdir(parents=True)  # as one that was killed leaves it
    monkeypatch.setattr(Dataset, "episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_minari(dataset, "toy/pendulum-v0")
    assert list((tmp_path / "minari").iterdir()) == []
    assert os.environ["MINARI_DATASETS_PATH"] == str(tmp_path / "minari")
    monkeypatch.setattr(Dataset, "episode", whole)
    assert export_minari(dataset, "toy/pendulum-v0") == tmp_path / "minari" / "toy" / "pendulum-v0"
    assert minari.load_dataset("toy/pendulum-v0").total_episodes == 4
    assert [path.name for path in (tmp_path / "minari").iterdir()] == ["toy"]
    with pytest.raises(UserError, match=r"there is one already; `minari delete toy/pendulum-v0` removes it"):
        export_minari(dataset, "toy/pendulum-v0")


def call(monkeypatch: pytest.MonkeyPatch, workspace: Path, *arguments: str) -> str:
    """The line that collect.py ends with for a user's mistake."""
    monkeypatch.setattr(sys, "argv", ["collect.py", "--workspace", str(workspace), *arguments])
    with pytest.raises(UserError) as caught:
        collect_py.main()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def make_theirs(
    name: str,
    env: str | None = "Pendulum-v1",
    sizes: tuple[int, int] = (3, 1),
    data_format: str = "arrow",
    reward: float = 1.0,
) -> Path:
    """A dataset of Minari's with two episodes of noise; its folder."""
    rng = np.random.default_rng(0)
    buffers = [
        EpisodeBuffer(
            id=i,
            observations=rng.standard_normal((6, sizes[0])).astype(np.float32),
            actions=rng.uniform(-1, 1, (5, sizes[1])).astype(np.float32),
            rewards=[reward] * 5,
            terminations=[False] * 5,
            truncations=[False] * 4 + [True],
        )
        for i in range(2)
    ]
    spaces = [gymnasium.spaces.Box(-2, 2, (size,), np.float32) for size in sizes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        minari.create_dataset_from_buffers(
            name, buffers, env=env, observation_space=spaces[0], action_space=spaces[1], data_format=data_format
        )
    return Path(minari.storage.get_dataset_path(name))


def test_an_import_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    workspace, source = tmp_path / "workspace", make_theirs("toy/noise-v0")

    def refused(path: Path, *arguments: str) -> str:
        told = call(monkeypatch, workspace, "--name", "theirs", "--import-minari", str(path), *arguments)
        assert not list(workspace.glob("*"))
        assert not list(workspace.glob(".*"))
        return told

    (tmp_path / "empty").mkdir()
    assert "no such folder" in refused(tmp_path / "nowhere")
    assert "is no Minari dataset (it has no metadata.json)" in refused(tmp_path / "empty")
    assert "--env Pendulm-v1: Gymnasium knows no environment" in refused(source, "--env", "Pendulm-v1")
    metadata = json.loads((source / "data" / "metadata.json").read_bytes())
    command = json.dumps({"id": "a-v0", "entry_point": "os:system", "kwargs": {"command": f"touch {tmp_path / 'ran'}"}})
    for changes, words in (
        ({"total_episodes": 0}, "has no episodes"),
        ({"minari_version": "0.0.1"}, "cannot be read: The installed Minari version"),
        (
            {"action_space": json.dumps({"type": "Discrete", "dtype": "int64", "start": 1, "n": 3})},
            "its actions are choices from 1 on",
        ),
        ({"action_space": json.dumps({"type": "MultiBinary", "n": 3})}, "its actions are no vectors"),
        ({"action_space": None, "env_spec": command}, "metadata.json does not tell its spaces"),  # Minari would run it
        ({"env_spec": 7}, "cannot be read: "),
        ({"observation_space": metadata["action_space"]}, "the steps of episode 0 do not fit its spaces"),
    ):
        (source / "data" / "metadata.json").write_text(json.dumps(metadata | changes))
        assert words in refused(source)
    assert not (tmp_path / "ran").exists()
    (source / "data" / "metadata.json").write_text("[]")
    assert "metadata.json does not tell its spaces" in refused(source)
    (source / "data" / "metadata.json").write_text(json.dumps(metadata))
    parts = list((source / "data" / "1").glob("*.arrow"))
    kept = parts[0].read_bytes()
    parts[0].write_bytes(kept[: len(kept) // 2])
    assert f"--import-minari {source}: cannot be read:" in refused(source)
    parts[0].write_bytes(kept)
    arguments = ["collect.py", "--workspace", str(workspace), "--name", "theirs", "--import-minari", str(source)]
    monkeypatch.setattr(sys, "argv", arguments)
    with monkeypatch.context() as broken:  # dataset and lineage appear together or not at all
        broken.setattr(collect_py, "files_of", lambda source: [tmp_path / "gone"])
        with pytest.raises(UserError, match=r"theirs: cannot be written \(No such file"):
            collect_py.main()
    assert not list(workspace.iterdir())
    collect_py.main()
    assert json.loads((workspace / "theirs" / "lineage.json").read_bytes())["name"] == "theirs"
    assert open_dataset(workspace / "theirs").info.world == {"kind": "gymnasium", "id": "Pendulum-v1", "kwargs": {}}
    assert json.loads((workspace / "theirs" / "lineage.json").read_bytes())["attempts"][-1]["how"] == "finished"


def test_a_dataset_in_one_file_is_imported_and_a_cut_one_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5, in which Minari serves its own."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    source, workspace = make_theirs("toy/one-v0", data_format="hdf5"), tmp_path / "workspace"
    arguments = ["collect.py", "--workspace", str(workspace), "--name", "theirs", "--import-minari", str(source)]
    monkeypatch.setattr(sys, "argv", arguments)
    collect_py.main()
    ours, theirs = open_dataset(workspace / "theirs"), minari.load_dataset("toy/one-v0")
    for i, episode in enumerate(theirs.iterate_episodes()):
        np.testing.assert_array_equal(ours.episode(i, ["observation"])["observation"], episode.observations[:-1])
        np.testing.assert_array_equal(ours.episode(i, ["action"])["action"], episode.actions)
    file = source / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:1000])
    told = call(monkeypatch, workspace, "--name", "cut", "--import-minari", str(source))
    assert told.startswith(f"--import-minari {source}: cannot be read:")
    assert [path.name for path in workspace.iterdir()] == ["theirs"]


def test_numbers_that_are_none_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    source = make_theirs("toy/endless-v0", reward=float("inf"))
    told = call(monkeypatch, tmp_path / "workspace", "--name", "theirs", "--import-minari", str(source))
    assert "cannot be read: episode 0 has infinite numbers, or what is none (NaN)" in told


def test_choices_are_imported_and_exported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    actions = np.array([1, 0, 1, 1, 0])
    buffer = EpisodeBuffer(
        id=0,
        observations=np.zeros((6, 4), np.float32),
        actions=actions,
        rewards=[1.0] * 5,
        terminations=[False] * 4 + [True],
        truncations=[False] * 5,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        minari.create_dataset_from_buffers("toy/choices-v0", [buffer], env="CartPole-v1", data_format="arrow")
    source = str(minari.storage.get_dataset_path("toy/choices-v0"))
    monkeypatch.setattr(
        sys, "argv", ["collect.py", "--workspace", str(tmp_path), "--name", "theirs", "--import-minari", source]
    )
    collect_py.main()
    ours = open_dataset(tmp_path / "theirs")
    assert (ours.info.action_size, ours.info.action_low, ours.info.action_high) == (1, (0.0,), (1.0,))
    export_minari(ours, "toy/again-v0")
    again = next(minari.load_dataset("toy/again-v0").iterate_episodes())
    np.testing.assert_array_equal(again.actions, actions)


def test_a_dataset_of_no_known_environment_is_told_at_once_and_can_be_given_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    source = make_theirs("toy/noise-v0", env=None)
    for name, given in (("theirs", ()), ("known", ("--env", "Pendulum-v1"))):
        arguments = ["collect.py", "--workspace", str(tmp_path), "--name", name, "--import-minari", str(source), *given]
        monkeypatch.setattr(sys, "argv", arguments)
        collect_py.main()
        told = capsys.readouterr().err
        assert ("what learns from it cannot be played: it does not say which environment it is of" in told) == (
            name == "theirs"
        )
    rehearse(config.load(TrainDTSettings, None, [f"datasets=[{tmp_path / 'known'}]", "device=cpu"]), True)
    told = call(monkeypatch, tmp_path, "--name", "theirs", "--export", "minari", "toy/again-v0")
    assert told.startswith(f"--export minari: {tmp_path / 'theirs'}: it does not say which environment it is of; import it")
    assert not (tmp_path / "minari" / "toy" / "again-v0").exists()


@pytest.mark.parametrize("kind", ["npz", "lerobot", "minari"])
def test_where_nothing_can_be_written_an_export_says_so_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    info = toy_info(seconds_per_step=0.05, phrases=[("swing", "swing up")])
    write_toy(tmp_path / "toy", info=info, rows=[{"skill": 0, "goal": 0}] * 4)
    (tmp_path / "file").write_text("")  # where a folder would have to be
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file"))
    to = "toy-v0" if kind == "minari" else str(tmp_path / "file" / "to")
    told = call(monkeypatch, tmp_path, "--name", "toy", "--export", kind, to)
    assert told.startswith(f"--export {kind} {to}: cannot be written: ")


def test_a_full_disk_leaves_nothing_of_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy(tmp_path / "toy")

    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    told = call(monkeypatch, tmp_path, "--name", "toy", "--export", "npz", str(tmp_path / "out" / "toy.npz"))
    assert told.endswith("toy.npz: cannot be written: No space left on device; name another place")
    assert list((tmp_path / "out").iterdir()) == []


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
        # as LeRobot checks them: from frame to frame 1 / fps, within 0.1 ms
        assert np.abs(np.diff(mine["timestamp"].to_numpy()) - 1 / info["fps"]).max(initial=0) < 1e-4
        np.testing.assert_allclose(mine["timestamp"].to_numpy(), np.arange(row["length"]) / info["fps"], rtol=1e-6)
    assert info["fps"] == 67  # of 66.7
    stats = json.loads((path / "meta" / "stats.json").read_bytes())
    assert set(stats) == {"observation.state", "action", "next.reward", "command"}
    np.testing.assert_allclose(stats["action"]["mean"], steps_of(dataset, "action").mean(axis=0), atol=1e-5)
    assert stats["action"]["count"] == [dataset.info.num_steps]


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
