"""Datasets: what is recorded, exactly; what a kill leaves; what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pyarrow as pa
import pytest
import yaml
from gymnasium import spaces
from toy_dataset import write_toy

from flexrl import collector, config, snapshots
from flexrl.collection import CollectSettings, describe, make_crew, open_models, rehearse, world_of
from flexrl.config import UserError
from flexrl.dataset import Column, Dataset, open_dataset
from flexrl.dataset_writer import DatasetWriter
from flexrl.motor_settings import MotorSettings
from flexrl.physics import BODIES, Physics
from flexrl.policies import load_policy, open_snapshot
from flexrl.worlds import closing, make_world

ROOT = Path(__file__).parent.parent
SKILLS = ROOT / "examples" / "pretrained" / "humanoid_skills"
SMALL = ("num_envs=8", "num_threads=1", "switch=[0.5, 1.5]", "noise=[0, 0.3]")


def collect(workspace: Path, name: str, *arguments: str, model: Path | str | None = SKILLS, steps: int = 3000) -> list[str]:
    models = ["--model", str(model)] if model else []
    return [
        *(sys.executable, str(ROOT / "collect.py"), "--name", name, "--workspace", str(workspace)),
        *(*models, "--steps", str(steps), *[part for text in (*SMALL, *arguments) for part in ("--set", text)]),
    ]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def made(workspace: Path, name: str, *arguments: str, model: Path | str | None = SKILLS, steps: int = 3000) -> Dataset:
    done = run(collect(workspace, name, *arguments, model=model, steps=steps))
    assert done.returncode == 0, done.stderr
    return open_dataset(workspace / name)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return made(tmp_path_factory.mktemp("collect"), "skills", "shard_steps=1000", steps=9000)


def test_a_dataset_is_whole_episodes_and_says_what_they_are(dataset: Dataset) -> None:
    table, info = dataset.episodes, dataset.info
    assert info.num_steps == table.length.sum() == 9000
    assert info.num_episodes == len(table)
    assert [block.name for block in info.observation if block.is_goal] == ["one_hot", "command", "place"]
    skill_columns = info.columns_of(is_goal=True)[: len(info.skills)]
    for i in range(len(table)):
        steps = dataset.episode(i)
        assert len(steps["reward"]) == table.length[i]
        assert steps["reward"].sum() == pytest.approx(table.episode_return[i], rel=1e-4)
        assert (steps["observation"][:, skill_columns].argmax(axis=1) == steps["skill"]).all()
        assert {info.phrases[goal].skill for goal in steps["goal"]} == {info.skills[skill] for skill in steps["skill"]}
        assert np.count_nonzero(np.diff(steps["skill"])) <= table.num_switches[i]
        assert steps["terminated"][-1] == table.terminated[i]
        assert steps["terminated"][-1] != steps["truncated"][-1]
        assert not (steps["terminated"] | steps["truncated"])[:-1].any()
        assert table.goal[i] == steps["goal"][0]
        assert dataset.words[i] == info.phrases[steps["goal"][0]].words
    assert table.num_switches.sum() > 0
    assert set(np.unique(table.noise)) == {0.0, 0.3}


def test_what_was_acted_without_noise_is_what_the_policy_does(dataset: Dataset) -> None:
    policy = load_policy(open_snapshot(SKILLS))
    for i in range(len(dataset.episodes)):
        steps = dataset.episode(i)
        error = np.abs(policy.act(np.array(steps["observation"])) - steps["action"]).max()
        assert np.abs(policy.act(np.array(steps["observation"])) - steps["intended"]).max() < 1e-5
        if dataset.episodes.noise[i] == 0:
            assert error < 1e-5
        else:
            assert error > 0.1


@pytest.mark.parametrize("physics", ["fast", "v5"])
def test_recorded_actions_replay_to_the_same_bits_from_any_step(tmp_path: Path, physics: str) -> None:
    dataset = made(tmp_path, "replayed", f"physics={physics}", "shard_steps=500", steps=2400)
    nq, nv = 24, 23
    longest = int(np.argmax(dataset.episodes.length))
    steps = dataset.episode(longest)
    for first in (0, len(steps["reward"]) // 2):
        bodies = Physics(BODIES["humanoid"], physics, 2, 1, exact_contacts=False)
        bodies.resume_from(np.array([0, 1]), np.tile(steps["state"][first], (2, 1)))
        high = bodies.model.actuator_ctrlrange[:, 1]
        for t in range(first, len(steps["reward"]) - 1):
            bodies.step(np.tile(steps["action"][t] * high, (2, 1)))
            assert (bodies.qpos == steps["state"][t + 1, 1 : 1 + nq]).all()
            assert (bodies.qvel == steps["state"][t + 1, 1 + nq : 1 + nq + nv]).all()


def test_statistics_are_those_of_the_steps(dataset: Dataset) -> None:
    observation = np.concatenate([dataset.episode(i)["observation"] for i in range(len(dataset.episodes))]).astype(float)
    stats = dataset.stats["observation"]
    np.testing.assert_allclose(stats["mean"], observation.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(stats["std"], observation.std(axis=0), atol=1e-6)
    assert (np.array(stats["max"]) == observation.max(axis=0)).all()


def test_a_killed_collection_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole = made(tmp_path, "whole", "shard_steps=500", steps=12_000)
    killed = 0
    for after in (1, 2):  # files
        process = subprocess.Popen(collect(tmp_path, f"cut{after}", "shard_steps=500", steps=12_000), cwd=ROOT)
        folder = tmp_path / f"cut{after}"
        while not (folder / f"{after - 1:05d}.arrow").exists() and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        (folder / ".latest.new").mkdir(exist_ok=True)  # as a kill in the middle of a save leaves it
        (folder / ".latest.new" / "collection.json").write_text("{")
        done = run([sys.executable, str(ROOT / "collect.py"), "--name", folder.name, "--workspace", str(tmp_path), "--resume"])
        assert done.returncode == 0, done.stderr
        assert open_dataset(folder).sha256 == whole.sha256
    assert killed > 0


def test_more_steps_can_be_collected_later(tmp_path: Path) -> None:
    whole = made(tmp_path, "whole", "shard_steps=500", steps=8000)
    made(tmp_path, "more", "shard_steps=500", steps=4000)
    command = [sys.executable, str(ROOT / "collect.py"), "--name", "more", "--workspace", str(tmp_path), "--resume"]
    done = run([*command, "--set", "num_steps=8000"])
    assert done.returncode == 0, done.stderr
    assert open_dataset(tmp_path / "more").sha256 == whole.sha256


def test_a_policy_that_changed_is_not_gone_on_with(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    shutil.copytree(SKILLS, policy)
    command = [sys.executable, str(ROOT / "collect.py"), "--name", "d", "--workspace", str(tmp_path)]
    begun = run([*command, "--model", str(policy), "--steps", "2000", "--set", "num_envs=4", "--set", "num_threads=1"])
    assert begun.returncode == 0, begun.stderr
    before = open_dataset(tmp_path / "d").sha256
    files = {path.name: path.read_bytes() for path in policy.iterdir() if path.name != snapshots.MANIFEST}
    snapshots.write(policy, files | {"snapshot.json": files["snapshot.json"] + b" "})
    done = run([*command, "--resume", "--set", "num_steps=4000"])
    assert done.returncode == 2
    assert "is not what" in done.stderr
    assert open_dataset(tmp_path / "d").sha256 == before


@pytest.mark.parametrize("shard_steps", [300, 65_536])
def test_a_finished_dataset_is_left_alone(tmp_path: Path, shard_steps: int) -> None:
    """Also where going on would make other episodes."""
    world = "world={kind: gymnasium, id: Pendulum-v1, subprocesses: false}"
    command = [sys.executable, str(ROOT / "collect.py"), "--name", "p", "--workspace", str(tmp_path)]
    sizes = ["--set", "num_envs=4", "--set", f"shard_steps={shard_steps}"]
    assert run([*command, "--model", "random", "--steps", "1700", "--set", world, *sizes]).returncode == 0
    before = open_dataset(tmp_path / "p").sha256
    done = run([*command, "--resume"])
    assert done.returncode == 0, done.stderr
    assert "is finished" in done.stdout
    assert open_dataset(tmp_path / "p").sha256 == before


def test_several_models_share_the_simulations_by_weight(tmp_path: Path) -> None:
    models = f"models=[{{path: {SKILLS}, weight: 3}}, {{path: random}}]"
    dataset = made(tmp_path, "mixed", models, "noise=[0]", model=None)
    steps = [dataset.episodes.length[dataset.episodes.policy == policy].sum() for policy in (0, 1)]
    assert steps == [2250, 750]
    assert [policy.path for policy in dataset.info.policies] == [str(SKILLS), "random"]
    lineage = json.loads((dataset.folder / "lineage.json").read_bytes())
    assert list(lineage["parents"].values()) == [dataset.info.policies[0].sha256]


def test_a_transformer_acts_by_the_part_of_its_goal_that_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    texts = ("null", "[words, command, place]", "[skill, command, place]")
    models = ", ".join(f"{{path: examples/pretrained/humanoid_dt, prompt: {text}}}" for text in texts)
    settings = config.load(CollectSettings, None, [f"models=[{models}]", "num_envs=3", "num_threads=1"])
    rehearse(settings, True)
    parents = open_models(settings)
    with closing(make_world(world_of(settings, parents), 0)) as world:
        info = describe(settings, world_of(settings, parents), world, parents)
        assert [policy.prompt for policy in info.policies] == [
            None,
            ["words", "command", "place"],
            ["skill", "command", "place"],
        ]
        crew = make_crew(settings, parents, world)
        crew.reset(np.ones(3, bool))
        obs = np.tile(world.reset()[:1], (3, 1))
        other = obs.copy()
        other[:, 65:73] = np.roll(other[:, 65:73], 1, axis=1)  # asks for another skill, in the same words
        asked, _ = crew.act(obs)
        crew.reset(np.ones(3, bool))
        changed = np.abs(crew.act(other)[0] - asked).max(axis=1)
        assert changed[1] < 1e-5
        assert min(changed[0], changed[2]) > 1e-3


def test_a_gymnasium_world_is_collected_without_states(tmp_path: Path) -> None:
    world = "world={kind: gymnasium, id: Pendulum-v1, subprocesses: false}"
    done = run(
        [
            *(sys.executable, str(ROOT / "collect.py"), "--name", "p", "--workspace", str(tmp_path), "--model", "random"),
            *("--steps", "900", "--set", world, "--set", "num_envs=4", "--set", "noise=[0.1]"),
        ]
    )
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(tmp_path / "p")
    assert dataset.info.state_size == 0
    assert dataset.info.skills == ()
    assert (dataset.episodes.goal == -1).all()
    assert set(dataset.words) == {"Pendulum-v1"}
    assert (dataset.episodes.length[~dataset.episodes.cut] == 200).all()
    assert dataset.episodes.cut.sum() == 4
    more = [sys.executable, str(ROOT / "collect.py"), "--name", "p", "--workspace", str(tmp_path), "--resume"]
    done = run([*more, "--set", "num_steps=1900"])
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(tmp_path / "p")
    table = dataset.episodes
    for column in ("observation", "action"):  # nothing is drawn twice
        assert len({float(dataset.episode(i)[column][0, 0]) for i in range(len(table))}) == len(table)
    assert len(set(zip(table.seed, table.number, strict=True))) == len(table)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "00000.arrow").unlink(), "00000.arrow: is missing"),
        (lambda folder: os.truncate(folder / "00000.arrow", 1000), "00000.arrow: is cut or damaged (1,000 bytes"),
        (lambda folder: (folder / "manifest.json").unlink(), "was not finished; python collect.py --name"),
        (
            lambda folder: [
                (folder / name).unlink() for name in ("manifest.json", "dataset.yaml")
            ],  # as it goes on, or was killed
            "was not finished; python collect.py --name copy --workspace",
        ),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json: is damaged"),
        (lambda folder: (folder / "dataset.yaml").write_text("format: 2"), "dataset.yaml: is cut or damaged"),
        (lambda folder: shutil.rmtree(folder), "no such dataset; collect.py makes one"),
    ],
)
def test_a_damaged_dataset_is_refused_in_a_line(dataset: Dataset, tmp_path: Path, damage: object, words: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(dataset.folder, folder)
    damage(folder)  # type: ignore[operator]
    with pytest.raises(UserError) as caught:
        open_dataset(folder)
    assert words in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_byte_that_changed_is_found(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(dataset.folder, folder)
    content = bytearray((folder / "00001.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "00001.arrow").write_bytes(content)
    with pytest.raises(UserError, match=r"00001\.arrow: is damaged .*; copy the dataset anew, or collect it again$"):
        open_dataset(folder).verify()


def test_a_table_from_before_its_words_is_still_read(dataset: Dataset, tmp_path: Path) -> None:
    """What it does not tell is read from the steps; and a collection that was begun then goes on."""
    folder = tmp_path / "older"
    shutil.copytree(dataset.folder, folder)
    batch = pa.ipc.open_file(pa.memory_map(str(dataset.folder / "episodes.arrow"))).get_batch(0)
    batch = batch.select([name for name in batch.schema.names if name != "goal"])
    with pa.OSFile(str(folder / "episodes.arrow"), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as file:
        file.write_batch(batch)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"]["episodes.arrow"] = snapshots.file_hash(folder / "episodes.arrow")
    manifest["sizes"]["episodes.arrow"] = (folder / "episodes.arrow").stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    older = open_dataset(folder)
    assert (older.episodes.goal == -1).all()
    assert older.words == dataset.words
    writer = DatasetWriter(folder, dataset.info, 1000)
    writer.set_state(None)
    state = writer.get_state()
    del state["table"]["goal"]
    writer.set_state(state | {"table": {name: np.zeros(3, np.int64) for name in state["table"]}})
    assert writer.get_state()["table"]["goal"].tolist() == [-1, -1, -1]


def test_an_episode_may_be_many_times_as_long_as_a_file(tmp_path: Path) -> None:
    data = write_toy(tmp_path / "long", returns=(1.0, 2.0), length=9000, shard_steps=10)
    assert data.episodes.length.tolist() == [9000, 9000]
    assert data.episode(1)["reward"].sum() == pytest.approx(2.0, rel=1e-4)


def test_a_file_of_another_dataset_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    other = made(tmp_path, "walk", "switch=null", model=ROOT / "examples" / "pretrained" / "humanoid_walk", steps=1000)
    folder = tmp_path / "copy"
    shutil.copytree(dataset.folder, folder)
    shutil.copy(other.folder / "00000.arrow", folder / "00000.arrow")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["sizes"]["00000.arrow"] = (folder / "00000.arrow").stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"00000\.arrow: holds other columns"):
        open_dataset(folder).shard(0)


class ToyEnv(gymnasium.Env):
    """Shows and takes those spaces; without them it misses a package, and says so in two lines."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, shows: spaces.Space | None, takes: spaces.Space | None, render_mode: str | None = None) -> None:
        if shows is None or takes is None:
            raise gymnasium.error.DependencyNotInstalled('Box2D is missing,\n  pip install "it"')
        self.observation_space, self.action_space = shows, takes


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["models=[{path: nowhere}]"], "models: nowhere: no such snapshot"),
        (["models=[{path: random}]"], "world: random needs one"),
        (["noise=[-1]"], "noise: expected numbers from 0"),
        (["switch=[1, 2]"], "switch: only a mixed world has several skills; write null"),
        (["skills={walk_forward: 1}"], "skills: this world has no skill 'walk_forward' to weigh"),
        (["models=[{path: examples/pretrained/humanoid_dt}]", "switch=[6, 2]"], "world: switch: expected"),
        (["models=[{path: examples/pretrained/humanoid_dt}]", "skills={follow: 0}"], "world: skills: one weight at least"),
        (
            ["models=[{path: examples/pretrained/humanoid_walk}, {path: examples/pretrained/humanoid_skills}]"],
            "was trained with",
        ),
        (["models=[{path: examples/pretrained/humanoid_walk, weight: 1000}, {path: zero}]"], "would have no simulation"),
        (["world={kind: gymnasium, id: CartPole-v1}", "models=[{path: random}]", "noise=[0.1]"], "noise: only actions that"),
        (["world={kind: gymnasium, id: FrozenLake-v1}", "models=[{path: random}]"], "world: only observations that are"),
        (["world={kind: gymnasium, id: toy/Picture-v0}", "models=[{path: random}]"], "and it shows Box(8, 8, 3)"),
        (["world={kind: gymnasium, id: toy/Buttons-v0}", "models=[{path: random}]"], "and it takes MultiDiscrete(2,)"),
        (["world={kind: gymnasium, id: toy/Table-v0}", "models=[{path: random}]"], "and it takes Box(2, 2)"),
        (["world={kind: gymnasium, id: toy/Extra-v0}", "models=[{path: random}]"], 'world: Box2D is missing, pip install "it"'),
        (["models=[{path: examples/pretrained/humanoid_walk, prompt: [words]}]"], "humanoid_walk has no prompt; leave it away"),
        (
            ["models=[{path: examples/pretrained/humanoid_walk, target_return: 5}]"],
            "humanoid_walk does not see what an episode",
        ),
        (["models=[{path: examples/pretrained/humanoid_dt, prompt: [wrods]}]"], "humanoid_dt: prompt: it never saw 'wrods'"),
        (
            ["world={kind: gymnasium, id: Pendulum-v1}", "models=[{path: zero, prompt: [words]}]"],
            "models: prompt, target_return: zero sees no goal",
        ),
    ],
)
def test_what_cannot_be_collected_is_refused_before_anything_is_written(
    overrides: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    vector, picture = spaces.Box(-1, 1, (3,)), spaces.Box(0, 255, (8, 8, 3), np.uint8)
    for name, shows, takes in (
        ("Picture", picture, vector),
        ("Buttons", vector, spaces.MultiDiscrete([2, 3])),
        ("Table", vector, spaces.Box(-1, 1, (2, 2))),
        ("Extra", None, None),
    ):
        registered = gymnasium.envs.registration.EnvSpec(f"toy/{name}-v0", ToyEnv, kwargs={"shows": shows, "takes": takes})
        monkeypatch.setitem(gymnasium.registry, f"toy/{name}-v0", registered)
    with pytest.raises(UserError) as caught:
        rehearse(config.load(CollectSettings, None, overrides), True)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_collected_is_the_world_at_full_difficulty(dataset: Dataset) -> None:
    world = MotorSettings.model_validate(dataset.info.world)
    assert world.curriculum is None
    assert world.randomise is None
    assert world.switch == (0.5, 1.5)
    assert yaml.safe_load((dataset.folder / "config.yaml").read_text())["num_steps"] == 9000


def test_report_tells_what_is_in_a_dataset(dataset: Dataset, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "report.py"), "dataset", str(dataset.folder)]
    done = run([*command, "--out", str(tmp_path)])
    assert done.returncode == 0, done.stderr
    assert "9,000 steps in" in done.stdout
    assert (tmp_path / "returns.png").stat().st_size > 10_000
    assert (tmp_path / "episodes.png").stat().st_size > 50_000  # of eight skills eight frames each
    told = json.loads(run([*command, "--json", "--no-pictures"]).stdout)
    assert sum(group["num_steps"] for group in told["groups"]) == 9000
    assert sum(group["num_episodes"] for group in told["groups"]) == len(dataset.episodes)
    missing = run([*command[:-1], str(tmp_path)])
    assert missing.returncode == 2
    assert "is no dataset" in missing.stderr


def test_experts_act_where_their_skill_is_asked_for(tmp_path: Path) -> None:
    """And nowhere else: two trainings of another seed each, which hardly began, so that they differ."""
    world = "world={task: mixed, goal: [one_hot, command, place], skills: {walk_forward: 1, turn_left: 1}, num_envs: 8}"
    for seed in (1, 2):
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            "--name",
            f"seed{seed}",
            "--workspace",
            str(tmp_path),
            "--set",
            world,
        ]
        done = run([*command, "--set", f"seed={seed}", "--set", "num_steps=200", "--set", "video=false"])
        assert done.returncode == 0, done.stderr
    base, expert = tmp_path / "seed1" / "best", tmp_path / "seed2" / "best"
    models = f"models=[{{path: {base}, experts: {{turn_left: {expert}}}}}]"
    dataset = made(tmp_path, "experts", models, "noise=[0]", "switch=[0.3, 0.6]", model=None, steps=1600)
    policies = {0: load_policy(open_snapshot(base)), 1: load_policy(open_snapshot(expert))}
    turn = dataset.info.skills.index("turn_left")
    acted = set()
    for i in range(len(dataset.episodes)):
        steps = dataset.episode(i)
        for which, policy in policies.items():
            mine = steps["skill"] == turn if which else steps["skill"] != turn
            if mine.any():
                acted.add(which)
                error = np.abs(policy.act(np.array(steps["observation"][mine])) - steps["action"][mine]).max()
                assert error < 1e-5
    assert acted == {0, 1}
    lineage = json.loads((dataset.folder / "lineage.json").read_bytes())
    assert set(lineage["parents"]) == {str(base), str(expert)}
    models = f"models=[{{path: {base}, teacher: {{path: {base}, experts: {{turn_left: {expert}}}}}}}]"
    taught = made(tmp_path, "taught", models, "noise=[0.2]", "switch=[0.3, 0.6]", model=None, steps=800)
    for i in range(len(taught.episodes)):
        steps = taught.episode(i)
        observation, turns = np.array(steps["observation"]), steps["skill"] == turn
        should = np.where(turns[:, None], policies[1].act(observation), policies[0].act(observation))
        assert np.abs(should - steps["intended"]).max() < 1e-5
        assert np.abs(policies[0].act(observation) - steps["action"]).max() > 0.1  # the noise


def test_an_expert_acts_in_the_place_of_a_policy_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names = ", ".join(f"{skill}: 1" for skill in open_snapshot(SKILLS).settings.world.skills)
    world = f"world={{task: mixed, goal: [one_hot, command, place], skills: {{{names}}}}}"
    models = "models=[{path: zero, experts: {turn_left: examples/pretrained/humanoid_skills}}]"
    settings = config.load(CollectSettings, None, [world, models, "num_envs=2", "num_threads=1", "switch=null"])
    rehearse(settings, True)
    parents = open_models(settings)
    with closing(make_world(world_of(settings, parents), settings.seed)) as stepped:
        obs = np.array(stepped.reset())
        crew, skills = make_crew(settings, parents, stepped), stepped.batch.skills
        crew.reset(np.ones(2, bool))
        at = [block.name for block in stepped.batch.observation.blocks].index("one_hot")
        first = sum(len(block.mirror.source) for block in stepped.batch.observation.blocks[:at])
        obs[:, first : first + len(skills)] = 0.0
        obs[0, first + skills.index("turn_left")] = obs[1, first + skills.index("turn_right")] = 1.0
        actions, _ = crew.act(obs)
    assert (np.abs(actions).max(axis=1) > 0).tolist() == [True, False]


def test_a_file_that_is_missing_is_found_before_more_is_collected(tmp_path: Path) -> None:
    made(tmp_path, "d", "shard_steps=500", steps=4000)
    command = [sys.executable, str(ROOT / "collect.py"), "--name", "d", "--workspace", str(tmp_path), "--resume"]
    shard = tmp_path / "d" / "00000.arrow"

    def refused() -> str:
        (tmp_path / "d" / "manifest.json").unlink(missing_ok=True)
        done = run([*command, "--set", "num_steps=8000"])
        assert done.returncode == 2
        return done.stderr.splitlines()[-1]

    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert refused().endswith("00000.arrow: is cut or damaged; put it back as it was, or collect it again under another --name")
    shard.unlink()
    assert refused().endswith("00000.arrow: is missing; put it back, or collect it again under another --name")


def test_as_many_simulations_as_the_world_has_unless_others_are_asked_for() -> None:
    gym = "world={kind: gymnasium, id: Pendulum-v1, num_envs: 3}"
    motor = "world={num_envs: 5, num_threads: 1}"
    for world, more, number in ((gym, [], 3), (gym, ["num_envs=4"], 4), (motor, [], 5), (motor, ["num_envs=4"], 4)):
        settings = config.load(CollectSettings, None, ["models=[{path: random}]", world, *more])
        made = world_of(settings, [None])
        assert made.num_envs == number
        assert getattr(made, "num_threads", 1) == 1
    with pytest.raises(UserError, match=r"world.randomise: is for training; a dataset is of the task as it is; write null"):
        config.load(CollectSettings, None, ["models=[{path: random}]", "world={randomise: {mass: [0.9, 1.1]}}"])


def test_steps_wait_in_a_ring_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "FIRST_CAPACITY", 4)
    pending = collector.Pending({"reward": Column(np.dtype(np.float32)), "action": Column(np.dtype(np.float32), (2,))}, 3)
    rng, expected, longest = np.random.default_rng(0), [[] for _ in range(3)], 0
    for step in range(60):
        rewards = rng.standard_normal(3).astype(np.float32)
        pending.put("reward", rewards)
        pending.put("action", np.stack([rewards, -rewards], axis=1))
        pending.advance()
        for i in range(3):
            expected[i].append(rewards[i])
        if step == 30:
            other = collector.Pending({"reward": Column(np.dtype(np.float32)), "action": Column(np.dtype(np.float32), (2,))}, 3)
            other.set_state(pending.get_state())
            pending = other
        for i in np.flatnonzero(rng.random(3) < (0.3, 0.1, 0.02)):
            steps = pending.take(int(i))
            np.testing.assert_array_equal(steps["reward"], expected[i])
            longest = max(longest, len(expected[i]))
            np.testing.assert_array_equal(steps["action"], np.stack([expected[i], np.negative(expected[i])], axis=1))
            expected[i] = []
    assert longest > 8


def test_a_full_disk_ends_with_75_and_the_run_goes_on_from_there(tmp_path: Path) -> None:
    whole = made(tmp_path, "whole", "shard_steps=2000")
    command = collect(tmp_path, "cut", "shard_steps=2000")
    limit = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({1 << 20}, {1 << 20})); "
    limited = [sys.executable, "-c", limit + "os.execv(sys.argv[1], sys.argv[1:])", *command]
    done = run(limited)
    assert done.returncode == 75, done.stderr
    assert "make room, and --resume goes on" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    done = run([*command, "--resume"])
    assert done.returncode == 0, done.stderr
    assert open_dataset(tmp_path / "cut").sha256 == whole.sha256
