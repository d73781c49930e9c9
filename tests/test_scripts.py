"""Every verb, small, as a person would type it."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import imageio.v3 as imageio
import pytest
import yaml

from flexrl import snapshots
from flexrl.runs import Run
from flexrl.training import TrainSettings

ROOT = Path(__file__).parent.parent
SMALL = [
    *("num_steps=1200", "world.num_envs=4", "world.num_threads=1", "torch_threads=1", "save_every=0", "video=false"),
    *("learner.n_steps=16", "learner.batch_size=32", "evaluation.every=600", "evaluation.episodes=2"),
]


def command(script: str, *arguments: str, settings: list[str] | None = None) -> list[str]:
    flags = [flag for setting in settings or [] for flag in ("--set", setting)]
    return [sys.executable, str(ROOT / script), *arguments, *flags]


def run(folder: Path, script: str, *arguments: str, settings: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(script, *arguments, settings=settings), cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a tiny training has run to its end."""
    folder = tmp_path_factory.mktemp("trained")
    done = run(folder, "train.py", "--name", "walk", settings=[*SMALL[:-5], "video=true", *SMALL[-4:]])
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"watch it: \S*python\S* play.py --model workspace/walk/best", done.stdout.strip())
    return folder


def test_a_run_leaves_what_the_house_promises(trained: Path) -> None:
    folder = trained / "workspace" / "walk"
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "lineage.json", "metrics.jsonl", "latest", "best", "videos"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert (folder / "videos" / "best.mp4").stat().st_size > 1000
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] >= 1200
    logged = set().union(*lines)
    assert {
        "rollout/return",
        "reward/walk_forward/upright",
        "train/value_loss",
        "train/approx_kl",
        "train/entropy_loss",
    } <= logged
    assert {"time/env_steps_per_second", "time/rollout_steps_per_second", "time/memory_gb", "world/diverged"} <= logged
    assert {"eval/return", "eval/stochastic/return"} <= logged
    lineage = json.loads((folder / "lineage.json").read_text())
    assert lineage["attempts"][-1]["how"] == "finished"
    assert lineage["attempts"][-1]["packages"]["mujoco"]
    for name in ("latest", "best"):
        assert "policy.safetensors" in snapshots.check(folder / name)
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pt", ".pth", ".zip")]


def test_its_config_alone_starts_the_same_run_again(trained: Path) -> None:
    again = run(trained, "train.py", "--name", "again", "--config", "workspace/walk/config.yaml", settings=["video=false"])
    assert again.returncode == 0, again.stderr
    weights = [trained / "workspace" / name / "latest" / "policy.safetensors" for name in ("walk", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_second_run_of_the_name_is_refused(trained: Path) -> None:
    done = run(trained, "train.py", "--name", "walk")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "workspace/walk: there is a run of this name; add --resume to go on with it, or take another --name\n"
    )


def test_kill_and_resume_end_in_the_same_bits(trained: Path) -> None:
    """SIGKILL once a state is on disk; then --resume, to the weights of the run that nothing disturbed."""
    settings = [*SMALL[:-5], "video=true", *SMALL[-4:]]
    process = subprocess.Popen(
        command("train.py", "--name", "killed", settings=settings), cwd=trained, stderr=subprocess.DEVNULL
    )
    latest = trained / "workspace" / "killed" / "latest"
    while not (latest / "manifest.json").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    steps = json.loads((latest / "snapshot.json").read_text())["num_steps"]
    assert steps < 1200
    done = run(trained, "train.py", "--name", "killed", "--resume", settings=["video=false"])
    assert done.returncode == 0, done.stderr
    assert "going on exactly at step" in done.stderr
    for name in ("policy.safetensors", "normaliser.safetensors", "training.safetensors"):
        runs = [trained / "workspace" / run_name / "latest" / name for run_name in ("walk", "killed")]
        assert runs[0].read_bytes() == runs[1].read_bytes(), name
    lines = [json.loads(line)["step"] for line in (latest.parent / "metrics.jsonl").read_text().splitlines()]
    assert lines == sorted(set(lines))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_stop_saves_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    settings = [*SMALL, "num_steps=10_000_000", "save_every=1000"]
    process = subprocess.Popen(
        command("train.py", "--name", "long", settings=settings), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "workspace" / "long" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size > 0) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert f"stopped by {number.name} at step" in err
    assert re.search(r"go on with: \S*python\S* train.py --name long --resume", err)
    assert "Traceback" not in err
    snapshots.check(metrics.parent / "latest")
    how = json.loads((metrics.parent / "lineage.json").read_text())["attempts"][-1]["how"]
    assert how == f"stopped: {number.name}"


def test_a_signal_waits_until_what_is_being_written_is_written(tmp_path: Path) -> None:
    done = []

    def write() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        done.append("written")

    def go() -> None:
        with Run(tmp_path / "x", TrainSettings()) as run:
            run._survive("something", write)
            done.append("went on")

    with pytest.raises(SystemExit) as stopped:
        go()
    assert stopped.value.code == 130
    assert done == ["written"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_stop_ends_the_processes_of_gymnasium_worlds_too(tmp_path: Path, number: signal.Signals) -> None:
    settings = ["world={kind: gymnasium, id: Pendulum-v1, num_envs: 2}", "num_steps=10_000_000", "learner.n_steps=16"]
    settings += ["learner.batch_size=32", "log_every=32", "torch_threads=1"]
    started = command("train.py", "--name", "gym", settings=settings)
    process = subprocess.Popen(started, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    metrics = tmp_path / "workspace" / "gym" / "metrics.jsonl"
    # the second line is written once the first iteration is kept
    while not (metrics.exists() and metrics.read_text().count("\n") > 1) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, number)  # as a terminal's Ctrl-C reaches the workers too
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert f"stopped by {number.name} at step" in err
    assert "Traceback" not in err
    snapshots.check(metrics.parent / "latest")


def test_two_processes_cannot_share_a_run(tmp_path: Path) -> None:
    settings = [*SMALL, "num_steps=10_000_000"]
    first = subprocess.Popen(command("train.py", "--name", "one", settings=settings), cwd=tmp_path, stderr=subprocess.DEVNULL)
    latest = tmp_path / "workspace" / "one" / "latest" / "manifest.json"
    try:
        while not latest.exists() and first.poll() is None:
            time.sleep(0.01)
        second = run(tmp_path, "train.py", "--name", "one", "--resume")
        assert second.returncode == 2
        assert "another process is running it" in second.stderr
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train.py"], "--name: every run needs one"),
        (["train.py", "--name", "../x"], "--name '../x': expected letters"),
        (["train.py", "--name", "x", "--config", "nothing.yaml"], "nothing.yaml: no such file"),
        (["train.py", "--name", "x", "--resume"], "there is no run workspace/x"),
        (["train.py", "--name", "x", "--nmae", "y"], "unrecognized arguments: --nmae y"),
        (["train.py", "--name", "x", "--resum"], "unrecognized arguments: --resum"),
        (["play.py", "--model", "workspace/nothing/best"], "no such snapshot"),
        (["play.py", "--model", "random", "--episodes", "0"], "--episodes 0: expected"),
        (["play.py", "--model", "random", "--export-sb3", "a.zip"], "only a snapshot can be exported"),
        (["play.py", "--model", "random", "--video", "walk.avi"], "walk.avi"),
        (["play.py", "--model", "random", "--video", "/dev/null/walk.png"], "walk.png: cannot be written"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_ends_the_run_and_is_not_saved(tmp_path: Path) -> None:
    first = run(tmp_path, "train.py", "--name", "lost", settings=[*SMALL, "num_steps=128"])
    assert first.returncode == 0, first.stderr
    weights = tmp_path / "workspace" / "lost" / "latest" / "policy.safetensors"
    before = weights.read_bytes()
    done = run(tmp_path, "train.py", "--name", "lost", "--resume", settings=["num_steps=256", "learner.learning_rate=1e30"])
    assert done.returncode == 1
    assert "the weights are lost; latest/ is from before" in done.stderr.splitlines()[-1]
    assert weights.read_bytes() == before


def test_check_prints_the_settings_and_writes_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "train.py", "--check", settings=["num_steps=5e6"])
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["num_steps"] == 5_000_000
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_with_what_it_was_trained_with(trained: Path) -> None:
    shutil.copytree(trained / "workspace" / "walk", trained / "workspace" / "longer")
    resumed = ["train.py", "--name", "longer", "--resume"]
    done = run(trained, *resumed, settings=["world.num_envs=8"])
    assert done.returncode == 2
    assert done.stderr.startswith("--set world.num_envs=8: workspace/longer was trained with 4, and goes on with it; ")
    assert done.stderr.count("\n") == 1
    longer = run(trained, *resumed, settings=["num_steps=1300", "learner.learning_rate=1e-5", "world.num_threads=2"])
    assert longer.returncode == 0, longer.stderr
    assert json.loads((trained / "workspace/longer/latest/snapshot.json").read_text())["num_steps"] >= 1300
    assert "workspace/longer is finished; to train on: --resume --set num_steps=" in run(trained, *resumed).stderr
    shutil.rmtree(trained / "workspace" / "longer" / "best")
    early = run(trained, "play.py", "--model", "workspace/longer/best")
    assert early.stderr == "workspace/longer/best: no such snapshot; did you mean 'workspace/longer/latest'?\n"


def test_a_workspace_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "workspace").write_text("")
    done = run(tmp_path, "train.py", "--name", "x")
    assert done.returncode == 2
    assert "name another place with --workspace" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_shipped_walk_walks() -> None:
    walk = str(ROOT / "examples" / "pretrained" / "humanoid_walk")
    done = run(ROOT, "play.py", "--model", walk, "--episodes", "4", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)["summary"]
    assert summary["num_terminated"] == 0
    assert summary["mean_speed"]["mean"] > 1.0  # m/s


def test_a_run_without_its_saved_state_is_not_replaced(trained: Path) -> None:
    shutil.copytree(trained / "workspace" / "walk", trained / "workspace" / "cut")
    (trained / "workspace" / "cut" / "latest" / "manifest.json").unlink()
    before = (trained / "workspace" / "cut" / "metrics.jsonl").read_bytes()
    done = run(trained, "train.py", "--name", "cut", "--resume")
    assert done.returncode == 2
    assert "workspace/cut/latest: is not a snapshot (it has no manifest.json)" in done.stderr
    assert (trained / "workspace" / "cut" / "metrics.jsonl").read_bytes() == before


def test_play_prints_one_json_object(trained: Path) -> None:
    done = run(trained, "play.py", "--model", "workspace/walk/best", "--episodes", "3", "--seed", "5", "--json")
    assert done.returncode == 0, done.stderr
    played = json.loads(done.stdout)
    assert [episode["seed"] for episode in played["episodes"]] == [5, 6, 7]
    assert {"length", "return", "mean_speed", "terminated", "rewards"} <= set(played["episodes"][0])
    low, high = played["summary"]["return"]["interval"]
    assert low <= played["summary"]["return"]["mean"] <= high
    again = run(trained, "play.py", "--model", "workspace/walk/best", "--episodes", "3", "--seed", "5", "--json")
    assert again.stdout == done.stdout


def test_an_evaluation_is_a_run_of_its_own(trained: Path) -> None:
    (trained / "evaluation.yaml").write_text("model: workspace/walk/best\nnum_episodes: 3\nseed: 5\n")
    play = ["play.py", "--name", "judged", "--config", "evaluation.yaml"]
    done = run(trained, *play)
    assert done.returncode == 0, done.stderr
    folder = trained / "workspace" / "judged"
    played = json.loads((folder / "latest" / "episodes.json").read_text())
    told = run(trained, "play.py", "--model", "workspace/walk/best", "--episodes", "3", "--seed", "5", "--json")
    assert played == json.loads(told.stdout)
    assert json.loads((folder / "metrics.jsonl").read_text())["eval/return"] == played["summary"]["return"]["mean"]
    parent = snapshots.content_hash(trained / "workspace" / "walk" / "best")
    assert json.loads((folder / "lineage.json").read_text())["parents"] == {"workspace/walk/best": parent}
    before = (folder / "metrics.jsonl").read_bytes()
    again = run(trained, *play, "--resume")
    assert (again.returncode, again.stderr) == (0, "workspace/judged is finished\n")
    assert (folder / "metrics.jsonl").read_bytes() == before
    for wrong, line in (
        (["--set", "model=workspace/nothing"], "workspace/nothing: no such snapshot"),
        (["--set", "skill=walk_forwrd"], "did you mean 'walk_forward'?"),
        (["--set", "num_episodes=0"], "num_episodes"),
        (["--set", "target_return=5"], "does not see what an episode is to bring"),
    ):
        refused = run(trained, "play.py", "--name", "refused", "--set", "model=workspace/walk/best", *wrong)
        assert refused.returncode == 2
        assert line in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert not (trained / "workspace" / "refused").exists()


def test_a_policy_of_several_skills_is_played_skill_by_skill(tmp_path: Path) -> None:
    settings = [*SMALL, "world.task=mixed", "world.goal=[one_hot, command]", "num_steps=256", "world.num_envs=8"]
    done = run(tmp_path, "train.py", "--name", "mixed", settings=settings)
    assert done.returncode == 0, done.stderr
    logged = set().union(*map(json.loads, (tmp_path / "workspace" / "mixed" / "metrics.jsonl").read_text().splitlines()))
    assert {"eval/success", "reward/turn_left/track_yaw_rate", "rollout/success/follow"} <= logged
    play = ["play.py", "--model", "workspace/mixed/best", "--episodes"]
    episodes = json.loads(run(tmp_path, *play, "16", "--json").stdout)["episodes"]
    assert len({episode["skill"] for episode in episodes}) == 8
    assert all(isinstance(episode["success"], bool) for episode in episodes)
    shown = run(tmp_path, *play, "3")
    assert shown.stderr.startswith("not played: ")
    assert shown.stderr.endswith("; --episodes 8 plays each once\n")
    assert shown.stderr.count(",") == 4  # five names
    table = run(tmp_path, *play, "2", "--skill", "turn_left").stdout
    assert "success of turn_left" not in table  # one skill: one line
    assert "success: 0%" in table
    refused = run(tmp_path, *play, "2", "--skill", "dance")
    assert refused.returncode == 2
    assert refused.stderr.startswith("--skill: this world has no skill 'dance'; it has walk_forward, run_forward, ")
    elsewhere = run(tmp_path, *play, "2", "--task", "v5")
    assert (elsewhere.returncode, elsewhere.stderr[:51]) == (2, "--task: a policy that sees its goal is played at it")


def test_play_shows_a_table_and_a_copied_snapshot_plays(trained: Path, tmp_path: Path) -> None:
    copied = tmp_path / "elsewhere"
    subprocess.run(["cp", "-r", str(trained / "workspace" / "walk" / "best"), str(copied)], check=True)
    played = ["play.py", "--model", str(copied), "--episodes", "2", "--stochastic", "--physics", "fast"]
    done = run(tmp_path, *played, "--video", "steps.png")
    assert done.returncode == 0, done.stderr
    assert "95 % interval" in done.stdout
    assert "upright / step" in done.stdout
    pixels = imageio.imread(tmp_path / "steps.png")
    assert pixels.shape == (360, 8 * 200, 3)  # eight frames side by side
    assert pixels.std() > 10  # something is drawn


def test_a_damaged_snapshot_is_refused_with_its_file(trained: Path, tmp_path: Path) -> None:
    copied = tmp_path / "damaged"
    subprocess.run(["cp", "-r", str(trained / "workspace" / "walk" / "best"), str(copied)], check=True)
    weights = bytearray((copied / "policy.safetensors").read_bytes())
    weights[-1] ^= 1
    (copied / "policy.safetensors").write_bytes(weights)
    done = run(tmp_path, "play.py", "--model", str(copied))
    assert done.returncode == 2
    assert "policy.safetensors: is damaged" in done.stderr


def test_a_snapshot_of_another_observation_is_refused(trained: Path, tmp_path: Path) -> None:
    copied = tmp_path / "older"
    shutil.copytree(trained / "workspace" / "walk" / "best", copied)
    about = json.loads((copied / "snapshot.json").read_text())
    size = about["observation_space"]["shape"][0]
    about["observation_space"]["shape"] = [size - 1]
    files = {path.name: path.read_bytes() for path in copied.iterdir() if path.name != "manifest.json"}
    snapshots.write(copied, files | {"snapshot.json": json.dumps(about).encode()})
    done = run(tmp_path, "play.py", "--model", str(copied))
    assert done.returncode == 2
    assert f"its observation_space has shape ({size - 1},), here it is ({size},)" in done.stderr


def test_an_exported_zip_plays_under_plain_sb3_alike(trained: Path, tmp_path: Path) -> None:
    import numpy as np
    from stable_baselines3 import PPO

    from flexrl.policies import load_policy, open_snapshot

    done = run(tmp_path, "play.py", "--model", str(trained / "workspace/walk/best"), "--export-sb3", "walk")  # it is a .zip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "wrote walk_vecnormalize.pkl"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["walk.zip", "walk_vecnormalize.pkl"]
    model = PPO.load(tmp_path / "walk.zip", device="cpu")
    snapshot = open_snapshot(trained / "workspace/walk/best")
    policy = load_policy(snapshot)
    obs = np.random.default_rng(0).standard_normal((4, *model.observation_space.shape)).astype(np.float32)
    normalised = policy._normalise(obs)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(model.predict(normalised, deterministic=True)[0], policy.act(obs))


def test_a_full_disk_costs_a_warning_and_keeps_the_snapshot(tmp_path: Path) -> None:
    """A disk of one megabyte: the run goes on, says what it could not write, and ends with 75."""
    if os.geteuid() != 0 or subprocess.run(["mount", "--version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("this sandbox does not mount")
    try:
        big = ["learner.policy_kwargs.net_arch=[256, 256]"]
        done = run(tmp_path, "train.py", "--name", "x", "--workspace", str(disk), settings=[*SMALL, *big])
        assert done.returncode == 75, done.stderr
        assert "No space left" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (disk / "x" / "latest").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_files_import_downward_only() -> None:
    """The floors of docs/ARCHITECTURE.md, kept."""
    floors = {
        **dict.fromkeys(
            ("yaml_values", "config", "snapshots", "runs", "command_line", "exit_codes", "progress", "words", "statistics"), 0
        ),
        **dict.fromkeys(("provenance", "randomness", "machine", "trial"), 0),
        **dict.fromkeys(("physics", "body_state", "rewards", "resets", "measures", "tasks", "skill_sampling", "outcomes"), 1),
        **dict.fromkeys(("reference", "curriculum", "text_encoders", "phrasings", "randomise"), 1),
        **dict.fromkeys(("observations", "goals", "looks", "render", "viewer"), 1),
        **dict.fromkeys(("motor_settings", "assignments", "motor_batch", "motor_world", "gymnasium_envs", "worlds"), 2),
        **dict.fromkeys(("replay", "networks", "mlp", "lstm", "on_policy", "ppo", "recurrent_ppo"), 3),
        **dict.fromkeys(("learner_settings", "learners", "dataset", "dataset_writer"), 3),
        **dict.fromkeys(("windows", "dt", "parallel", "offline", "offline_policy", "offline_settings"), 3),
        **dict.fromkeys(("collector", "collection", "offline_training", "training"), 4),
        **dict.fromkeys(("dataset_exports", "dataset_imports", "dataset_report"), 4),
        **dict.fromkeys(
            ("policies", "tour", "warm_start", "normaliser", "evaluation", "playing", "lineage", "ledger", "plots"), 4
        ),
        **dict.fromkeys(
            (
                "early_stopping",
                "rungs",
                "pod",
                "search",
                "sweep_settings",
                "sweeps",
                "sweep_ledger",
                "sweep_plan",
                "sweep_report",
                "sweep_screen",
            ),
            5,
        ),
        **dict.fromkeys(("job_manifests", "job_rules", "local_runner", "cluster", "follower", "fetching"), 5),
        **dict.fromkeys(("dossier", "on_cluster", "submission", "archive"), 5),
    }
    files = {path.stem: path for path in (ROOT / "flexrl").glob("*.py") if path.stem != "__init__"}
    assert set(files) == set(floors)
    imports: dict[str, set[str]] = {}
    for name, path in files.items():
        modules = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.ImportFrom, ast.Import))]
        found: set[str] = set()
        for node in modules:
            if isinstance(node, ast.ImportFrom) and node.module == "flexrl":
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flexrl."):
                found.add(str(node.module).removeprefix("flexrl."))
            elif isinstance(node, ast.Import):
                found |= {alias.name.removeprefix("flexrl.") for alias in node.names if alias.name.startswith("flexrl.")}
        assert found <= set(floors), f"{name} imports a verb: {found - set(floors)}"
        assert all(floors[other] <= floors[name] for other in found), f"{name} imports upward: {found}"
        imports[name] = found
    while imports:  # no circle within a floor: some file must import none of those left
        leaves = {name for name, found in imports.items() if not found & set(imports)}
        assert leaves, f"a circle among {sorted(imports)}"
        imports = {name: found for name, found in imports.items() if name not in leaves}


def test_scripts_that_people_type_are_there() -> None:
    text = (ROOT / "Makefile").read_text()
    for target in ("train", "play", "collect", "test", "check", "tensorboard", "build-dev", "shell"):
        assert f"\n{target}:" in text
    assert (ROOT / ".ci" / "run").stat().st_mode & stat.S_IXUSR
