"""Which data an offline training takes, how it counts it, and what it refuses at the door; all on made-up datasets."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_dataset import PENDULUM, toy_info, write_toy

import train_dt
from flexrl import config
from flexrl.config import UserError
from flexrl.dataset import BlockInfo, DatasetInfo
from flexrl.motor_settings import MotorSettings, resolve_tasks
from flexrl.offline import OfflineLearner
from flexrl.offline_settings import TrainDTSettings
from flexrl.offline_training import judge, make_learner, open_all, policy_of, rehearse, world_of
from flexrl.policies import open_snapshot
from flexrl.text_encoders import NUM_FEATURES, Encoder, hashed_ngrams
from flexrl.windows import Windows, WindowSampler, check_alike, split

TRANSFORMER = Path(__file__).parent.parent / "examples" / "pretrained" / "humanoid_dt"
BC = ("model={kind: bc, hidden: [8]}", "torch_threads=1", "device=cpu")


def settings_of(*overrides: str) -> TrainDTSettings:
    return config.load(TrainDTSettings, None, [*BC, *overrides])


def refused(*overrides: str) -> str:
    """The one line that a training with these settings is refused with, as --check finds it."""
    with pytest.raises(UserError) as caught:
        rehearse(settings_of(*overrides), True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def learner_of(*overrides: str) -> OfflineLearner:
    torch.manual_seed(0)
    settings = settings_of(*overrides)
    return make_learner(settings, train_dt.open_all(settings))[0]


def train(monkeypatch: pytest.MonkeyPatch, workspace: Path, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train_dt.py", "--workspace", str(workspace), *arguments])
    train_dt.main()


def sets(*settings: str) -> list[str]:
    return [part for text in settings for part in ("--set", text)]


# ---- which episodes


def test_the_best_tenth_is_of_all_datasets_together(tmp_path: Path) -> None:
    """Ten episodes with returns around 100, ten around 1,000: the best tenth, two of the twenty, is of the second alone."""
    medium = write_toy(tmp_path / "medium", range(100, 110))
    expert = write_toy(tmp_path / "expert", range(1000, 1010))
    kept = [learned | held for learned, held in split([medium, expert], top=0.1, held_out=0.5)]
    assert [mask.sum() for mask in kept] == [0, 2]
    assert sorted(expert.episodes.episode_return[kept[1]]) == [1008, 1009]
    sampler = learner_of(f"datasets=[{medium.folder}, {expert.folder}]", "top=0.1", "held_out=0").sampler
    assert sampler.num_steps == 20  # of two episodes
    everything = split([medium, expert], top=1.0, held_out=0.2)
    assert [(learned.sum(), held.sum()) for learned, held in everything] == [(8, 2), (8, 2)]


def test_returns_are_learned_from_whole_episodes(tmp_path: Path) -> None:
    """One that the collection's end cut has brought less than it would have; who sees no returns learns from it too."""
    data = write_toy(tmp_path / "data", range(1, 11), rows=[{"cut": True}] * 4)
    kept = [learned for learned, _ in split([data], top=1.0, held_out=0.0, whole=True)]
    assert kept[0].tolist() == [False] * 4 + [True] * 6
    best = [learned for learned, _ in split([data], top=0.5, held_out=0.0, whole=True)]
    assert best[0].tolist() == [False] * 7 + [True] * 3
    everything = f"datasets=[{data.folder}]", "held_out=0"
    assert learner_of(*everything).sampler.num_steps == 100
    assert learner_of(*everything, "model={kind: dt, layers: 1, width: 8, heads: 1}").sampler.num_steps == 60
    cut = write_toy(tmp_path / "cut", rows=[{"cut": True}] * 4)
    assert split([cut], top=1.0, held_out=0.0, whole=True)[0][0].all()  # there is nothing else


def test_of_two_that_succeed_alike_the_one_that_predicts_better_is_best() -> None:
    best = {"score": -np.inf, "loss": np.inf, "waited": 0}
    seen = [(0.5, 3.0), (1.0, 2.0), (1.0, 2.5), (1.0, 1.5), (0.9, 1.0), (1.0, 1.2)]
    kept = [judge(best, {"eval/success": success, "eval/loss": loss}) for success, loss in seen]
    assert kept == [True, True, False, True, False, True]
    assert (best["score"], best["loss"], best["waited"]) == (1.0, 1.0, 1)


def test_of_one_episode_nothing_is_held_out(tmp_path: Path) -> None:
    few = write_toy(tmp_path / "few", range(10))
    assert [(learned.sum(), held.sum()) for learned, held in split([few], top=0.05, held_out=0.05)] == [(1, 0)]
    rehearse(settings_of(f"datasets=[{few.folder}]", "top=0.05"), True)
    with pytest.raises(UserError, match=r"^top: no episode of .*few is left to learn from; raise it, or write held_out: 0$"):
        WindowSampler([few], [np.zeros(10, bool)], [], 1)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"world": {**PENDULUM, "id": "MountainCarContinuous-v0"}}, "another environment than"),
        ({"world": {**PENDULUM, "kwargs": {"g": 1.6}}}, "another world.kwargs than"),
        ({"world": {**PENDULUM, "action": "servo"}}, "another world.action than"),
        ({"action_low": (-1.0,)}, "another lower bound of actions than"),
        ({"action_high": (1.0,)}, "another upper bound of actions than"),
        ({"seconds_per_step": 0.05}, "another time between steps than"),
        ({"body": "humanoid"}, "another body than"),
        ({"action_size": 2, "action_low": (-2.0, -2.0), "action_high": (2.0, 2.0)}, "another action size than"),
    ],
)
def test_datasets_of_different_worlds_are_not_learned_from_together(tmp_path: Path, other: dict, words: str) -> None:
    one, two = write_toy(tmp_path / "one"), write_toy(tmp_path / "two", info=toy_info(**other))
    with pytest.raises(UserError) as caught:
        check_alike([one, two])
    assert f"datasets: {two.folder} has {words} {one.folder}" in str(caught.value)
    assert str(caught.value).endswith("train on one of them")
    check_alike([one, replace(two, info=one.info)])


# ---- the world of the data


@pytest.mark.parametrize(
    ("world", "sizes", "words"),
    [
        ({"kind": "gymnasium", "id": None}, (3, 1), "it does not say which environment it is of"),
        ({"kind": "gymnasium", "id": "AdroitHandPen-v1"}, (3, 1), "Gymnasium knows no environment 'AdroitHandPen-v1'"),
        ({**PENDULUM, "kwargs": {"wind": 1}}, (3, 1), "unexpected keyword argument 'wind'"),
        (PENDULUM, (17, 1), "has observations of shape (17,), its world Pendulum-v1 here has (3,)"),
        (PENDULUM, (3, 6), "has actions of shape (6,), its world Pendulum-v1 here has (1,)"),
        ({**PENDULUM, "id": "CartPole-v1"}, (4, 1), "has actions that are choices, which no model here predicts"),
    ],
)
def test_data_whose_world_cannot_be_stepped_is_refused_before_training(
    tmp_path: Path, world: dict, sizes: tuple[int, int], words: str
) -> None:
    dataset = write_toy(tmp_path / "theirs", info=toy_info(world, sizes=sizes))
    told = refused(f"datasets=[{dataset.folder}]")
    assert told.startswith(f"datasets: {dataset.folder}")
    assert words in told
    if "choices" not in words:
        assert told.endswith("collect it again, or import it again with --env ID")


def test_check_ends_with_2_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_toy(tmp_path / "theirs", info=toy_info({"kind": "gymnasium", "id": None}))
    with pytest.raises(UserError, match="does not say which environment"):
        train(monkeypatch, tmp_path, "--name", "m", "--check", "--dataset", str(dataset.folder), *sets(*BC))
    assert not (tmp_path / "m").exists()


def test_a_world_is_made_with_the_keyword_arguments_that_it_was_recorded_with(tmp_path: Path) -> None:
    """MuJoCo's Ant shows 27 numbers without contact forces, and 105 with them."""
    pytest.importorskip("mujoco")
    world = {"kind": "gymnasium", "id": "Ant-v5", "kwargs": {"include_cfrc_ext_in_observation": False}}
    info = toy_info(world, sizes=(27, 8), action_low=(-1.0,) * 8, action_high=(1.0,) * 8)
    dataset = write_toy(tmp_path / "ant", info=info)
    rehearse(settings_of(f"datasets=[{dataset.folder}]"), True)
    plain = write_toy(tmp_path / "plain", info=info.model_copy(update={"world": {**world, "kwargs": {}}}))
    assert "has observations of shape (27,), its world Ant-v5 here has (105,)" in refused(f"datasets=[{plain.folder}]")


# ---- damage


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_shard_that_was_damaged_meanwhile_is_found_by_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_toy(tmp_path / "data")
    train(monkeypatch, tmp_path, "--name", "m", "--dataset", str(dataset.folder), *sets(*BC, "num_updates=2"))
    shard = dataset.folder / "00000.arrow"
    damage(shard)
    with pytest.raises(UserError) as caught:
        train(monkeypatch, tmp_path, "--name", "m", "--resume", "--set", "num_updates=4")
    why = "is damaged (its SHA-256 is not the manifest's); copy the dataset anew, or collect it again"
    assert str(caught.value) == f"{shard}: {why}"


# ---- how long, how much, how exactly


def test_patience_ends_a_training_that_does_not_become_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate of next to nothing: the second and the third evaluation are as the first."""
    dataset = write_toy(tmp_path / "data", range(10))
    still = ("learning_rate=1e-30", "weight_decay=0", "num_updates=50", "evaluation={every: 2, batches: 1}")
    arguments = ("--name", "m", "--dataset", str(dataset.folder))
    train(monkeypatch, tmp_path, *arguments, *sets(*BC, *still, "patience=2"))
    lines = [json.loads(line) for line in (tmp_path / "m" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval/loss" in line] == [2, 4, 6]
    assert "ended after 6 updates: the held-out loss had not fallen for 2 evaluations" in capsys.readouterr().err
    assert json.loads((tmp_path / "m" / "latest" / "snapshot.json").read_bytes())["num_steps"] == 6


def test_scores_of_another_measure_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_toy(tmp_path / "data", range(10))
    arguments = ("--name", "m", "--dataset", str(dataset.folder))
    train(
        monkeypatch, tmp_path, *arguments, *sets(*BC, "num_updates=2", "evaluation={every: 1, batches: 1}", "learning_rate=0.1")
    )
    train(monkeypatch, tmp_path, "--name", "m", "--resume", *sets("num_updates=3", "evaluation={batches: 2}"))
    assert "best/ is chosen anew" in capsys.readouterr().err
    assert json.loads((tmp_path / "m" / "best" / "snapshot.json").read_bytes())["num_steps"] == 3


def test_patience_needs_episodes_that_are_held_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"patience: no episode is held out to wait for; write held_out: 0\.05, or patience"):
        settings_of("patience=3", "held_out=0")
    one = write_toy(tmp_path / "one", [1.0])
    assert "patience: no episode can be held out of so few" in refused(f"datasets=[{one.folder}]", "patience=3")


def test_shares_of_windows_hide_a_part_of_the_goal_and_never_all(tmp_path: Path) -> None:
    dataset = write_toy(tmp_path / "data", info=two_skills(), length=12)
    dt = ("model={kind: dt, width: 8, context: 6, layers: 1}", "goal=[skill, command]", "held_out=0")
    learner = learner_of(f"datasets=[{dataset.folder}]", *dt, "hide={skill: 0.5, command: 0.2, return: 0.3}")
    shown = learner._hidden(20_000).numpy()  # of skill, command and return, each window
    of_windows = shown.reshape(20_000, -1, 3)
    assert (of_windows == of_windows[:, :1]).all()  # the same at all of its steps
    share = of_windows[:, 0].mean(axis=0)
    # where both would be hidden one is shown all the same
    np.testing.assert_allclose(share, [0.5 + 0.1 / 2, 0.8 + 0.1 / 2, 0.7], atol=0.015)
    assert of_windows[:, 0, :2].any(axis=1).all()
    assert not of_windows[:, 0].all()


def two_skills() -> DatasetInfo:
    """Of a half-cheetah that runs or stands."""
    world = MotorSettings(body="half_cheetah", task="mixed", skills={"run_forward": 1, "stand_still": 1}).model_dump(
        mode="json"
    )
    phrases = [("run_forward", "run"), ("stand_still", "stand")]
    bounds = {"action_low": (-1.0,) * 6, "action_high": (1.0,) * 6}
    return toy_info(world, "half_cheetah", (23, 6), phrases, observation=(BlockInfo(name="proprio", size=23),), **bounds)


def windows_of(rows: slice, whole: Windows) -> Windows:
    return Windows(**{name: array[rows] for name, array in vars(whole).items()})


@pytest.mark.parametrize("model", ["{kind: bc, hidden: [8]}", "{kind: dt, width: 8, context: 6, layers: 1, dropout: 0}"])
def test_accumulated_batches_are_one_batch_of_the_whole_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """Windows of the transformer that an episode's end cuts have fewer steps, and those of the first batch are shorter."""
    dataset = write_toy(tmp_path / "data", length=12)
    data = (f"datasets=[{dataset.folder}]", "held_out=0", f"model={model}", "max_grad_norm=1e9")
    whole = learner_of(*data, "batch_size=12")
    parts = learner_of(*data, "batch_size=4", "accumulate=3")
    drawn = whole.sampler.draw(12, np.random.default_rng(0))
    order = np.argsort(drawn.valid.sum(axis=1), kind="stable")
    drawn = Windows(**{name: array[order] for name, array in vars(drawn).items()})
    batches = [windows_of(slice(i, i + 4), drawn) for i in (0, 4, 8)]
    monkeypatch.setattr(whole.sampler, "draw", lambda count, rng: drawn)
    monkeypatch.setattr(parts.sampler, "draw", lambda count, rng: batches.pop(0))
    metrics = whole.improve(), parts.improve()
    assert metrics[1]["train/loss"] == pytest.approx(metrics[0]["train/loss"], rel=1e-5)
    for ours, its in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        assert (ours.grad is None) == (its.grad is None)
        if ours.grad is not None and its.grad is not None:
            torch.testing.assert_close(ours.grad, its.grad, rtol=1e-4, atol=1e-6)
    assert not batches


def test_bfloat16_is_of_the_products_alone(tmp_path: Path) -> None:
    dataset = write_toy(tmp_path / "data", length=12)
    small = (f"datasets=[{dataset.folder}]", "held_out=0", "model={kind: dt, width: 16, context: 6, layers: 1, dropout: 0}")
    learners = [learner_of(*small, f"precision={name}", "learning_rate=1e-3") for name in ("float32", "bfloat16")]
    losses = np.array([[learner.improve()["train/loss"] for _ in range(3)] for learner in learners])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
    assert (losses[1] != losses[0]).all()
    for learner in learners:
        assert {parameter.dtype for parameter in learner.model.parameters()} == {torch.float32}
        assert all(torch.isfinite(parameter).all() for parameter in learner.model.parameters())


# ---- what an earlier model knew


def test_words_are_read_by_the_encoder_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = MotorSettings(body="half_cheetah", task="run_forward").model_dump(mode="json")
    blocks = (BlockInfo(name="proprio", size=23),)
    bounds = {"action_low": (-1.0,) * 6, "action_high": (1.0,) * 6}
    info = toy_info(world, "half_cheetah", (23, 6), [("run_forward", "run")], observation=blocks, **bounds)
    data = f"datasets=[{write_toy(tmp_path / 'toy', range(3), info).folder}]"
    model = "model={kind: gcbc, hidden: [4]}"
    assert refused(data, model, "goal=[words]", "encoder=transformer:nowhere").startswith("encoder: nowhere holds no encoder")
    with pytest.raises(UserError, match="encoder: the goal has no words that it could read"):
        settings_of(data, model, "goal=[command]", "encoder=hashed_ngrams")
    with pytest.raises(UserError, match="encoder: expected hashed_ngrams, or transformer: and a folder, found 'bert'"):
        settings_of(data, model, "goal=[words]", "encoder=bert")
    (tmp_path / "cut").mkdir()  # as a clone without its large files leaves it
    (tmp_path / "cut" / "config.json").write_text('{"model_type": "bert"}')
    for file in ("tokenizer.json", "model.safetensors"):
        (tmp_path / "cut" / file).write_text("version 1")
    told = refused(data, model, "goal=[words]", f"encoder=transformer:{tmp_path / 'cut'}")
    assert told.startswith(f"encoder: {tmp_path / 'cut'} cannot be read: ")
    for file in ("windows", "offline_training", "goals"):
        monkeypatch.setattr(f"flexrl.{file}.find_encoder", lambda name: Encoder(3, lambda phrase: np.full(3, len(name))))
    settings = settings_of(data, model, "goal=[words]", "encoder=transformer:large")
    rehearse(settings, True)
    learner = make_learner(settings, open_all(settings))[0]
    assert (learner.sampler.draw(2, np.random.default_rng(0)).goal == len("transformer:large")).all()
    assert learner.sampler.goal_size == 6
    assert world_of(settings, learner).encoder == "transformer:large"


def test_skills_have_returns_of_their_own_wherever_the_goal_names_them_and_are_those_that_were_learned(tmp_path: Path) -> None:
    info = two_skills()
    rows = [{"skill": skill, "goal": skill} for skill in (0, 0, 1, 1)]
    data = f"datasets=[{write_toy(tmp_path / 'toy', (10.0, 10.0, 50.0, 50.0), info, rows=rows).folder}]"
    model = "model={kind: dt, context: 2, layers: 1, heads: 1, width: 8}"
    settings = settings_of(data, model, "goal=[command, skill]", "held_out=0")
    learner = make_learner(settings, open_all(settings))[0]
    policy = policy_of(settings, learner)
    policy.reset(np.ones(2, bool))
    policy.act(np.concatenate([np.zeros((2, 23 + 3)), np.eye(2)], axis=1).astype(np.float32))
    assert policy.get_state()["to_go"].tolist() == [10.0, 50.0]
    assert world_of(settings, learner).skills == {"run_forward": 1.0, "stand_still": 1.0}
    settings = settings_of(data, model, "goal=[command, skill]", "held_out=0", "top=0.5")
    assert world_of(settings, make_learner(settings, open_all(settings))[0]).skills == {"run_forward": 0.0, "stand_still": 1.0}


def test_a_model_of_another_goal_or_other_skills_is_no_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped transformer's sizes fit the data of all three trainings; what its numbers mean only that of the first."""
    world = open_snapshot(TRANSFORMER).settings.world
    assert isinstance(world, MotorSettings)
    skills = list(resolve_tasks(world))
    blocks = (BlockInfo(name="proprio", size=65), BlockInfo(name="place", size=2, is_goal=True))

    def data_of(name: str, order: list[str]) -> str:
        told = {**world.model_dump(mode="json"), "skills": dict.fromkeys(order, 1.0)}
        phrases = [(skill, skill) for skill in order]
        bounds = {"action_low": (-1.0,) * 17, "action_high": (1.0,) * 17}
        info = toy_info(told, "humanoid", (67, 17), phrases, observation=blocks, **bounds)
        rows = [{"skill": i, "goal": i} for i in range(len(order))]
        return f"datasets=[{write_toy(tmp_path / name, range(len(order)), info, rows=rows).folder}]"

    model = "model={kind: dt, width: 128, heads: 4, layers: 3, context: 20, returns: false, dropout: 0}"
    same = (data_of("same", skills), model, f"init_from={TRANSFORMER}")
    rehearse(settings_of(*same, "goal=[skill, command, place, words]"), True)
    assert "sees the goal [skill, command, place, words], here it is [skill, place, command, words]" in refused(
        *same, "goal=[skill, place, command, words]"
    )
    others = (data_of("others", skills[::-1]), model, f"init_from={TRANSFORMER}")
    told = refused(*others, "goal=[skill, command, place, words]")
    assert f"knows the skills {', '.join(skills)}, the datasets have {', '.join(skills[::-1])}" in told
    for file in ("windows", "offline_training"):
        monkeypatch.setattr(f"flexrl.{file}.find_encoder", lambda name: Encoder(NUM_FEATURES, hashed_ngrams))
    told = refused(*same, "goal=[skill, command, place, words]", "encoder=transformer:other")
    assert "reads words by hashed_ngrams, here it is transformer:other; write encoder: hashed_ngrams" in told
