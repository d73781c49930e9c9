"""Learning offline: windows, the transformer's context, exact resume, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_dataset import write_toy

from flexrl import config, phrasings, playing, snapshots
from flexrl.config import UserError
from flexrl.dataset import Dataset, open_dataset
from flexrl.dt import ACTION, BODY, GOAL, RETURN, Block, Context, DecisionTransformer, Dropout, Sizes, random_words
from flexrl.offline_settings import TrainDTSettings
from flexrl.offline_training import rehearse
from flexrl.playing import PlaySettings
from flexrl.policies import load_policy, open_snapshot
from flexrl.tasks import SKILLS as SKILLS_OF
from flexrl.tasks import find_task
from flexrl.text_encoders import NUM_FEATURES, embed, find_encoder
from flexrl.windows import WindowSampler, split

ROOT = Path(__file__).parent.parent
SKILLS = ROOT / "examples" / "pretrained" / "humanoid_skills"
TRANSFORMER = ROOT / "examples" / "pretrained" / "humanoid_dt"
KNOWN = ("skill", "command", "place", "words")
SIZES = Sizes(body=5, goal=(3, 2), action=2, has_return=True, context=6, max_time=50, layers=2, heads=2, width=16, dropout=0.0)


def script(name: str, workspace: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / name), "--workspace", str(workspace), *arguments]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    workspace = tmp_path_factory.mktemp("dt")
    settings = ("num_envs=8", "num_threads=1", "switch=[0.5, 1.5]", "shard_steps=1000")
    arguments = ("--name", "data", "--model", str(SKILLS), "--steps", "8000")
    done = run(script("collect.py", workspace, *arguments, *[part for text in settings for part in ("--set", text)]))
    assert done.returncode == 0, done.stderr
    return open_dataset(workspace / "data")


def everything(dataset: Dataset) -> np.ndarray:
    return np.ones(len(dataset.episodes), bool)


def some_inputs(batch: int, steps: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> torch.Tensor:
        return torch.randn(batch, steps, size, generator=generator)

    times = torch.arange(steps).repeat(batch, 1)
    inputs = {BODY: draw(5), GOAL: draw(5), ACTION: draw(2).tanh(), RETURN: draw(1)[..., 0], "time": times}
    return inputs | {"target": inputs[ACTION], "valid": torch.ones(batch, steps, dtype=torch.bool)}


def some_model(sizes: Sizes = SIZES) -> DecisionTransformer:
    torch.manual_seed(0)
    model = DecisionTransformer(sizes).eval()
    with torch.no_grad():  # far from the small numbers that it begins with
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def test_windows_are_slices_of_the_episodes(dataset: Dataset) -> None:
    sampler = WindowSampler([dataset], [everything(dataset)], ["skill", "command", "place"], 20)
    assert (sampler.body_size, sampler.goal_size) == (65, 13)
    longest = int(np.argmax(dataset.episodes.length))
    steps = dataset.episode(longest)
    length = len(steps["reward"])
    for first in (0, 7, length - 20, length - 5):
        window = sampler.read(np.array([longest]), np.array([first]), np.random.default_rng(0))
        n = min(20, length - first)
        rows = slice(first, first + n)
        np.testing.assert_array_equal(window.body[0, :n], steps["observation"][rows, :65])
        np.testing.assert_array_equal(window.goal[0, :n], steps["observation"][rows, 65:])
        np.testing.assert_array_equal(window.action[0, :n], steps["action"][rows])
        to_go = [steps["reward"][t:].sum(dtype=float) for t in range(first, first + n)]
        np.testing.assert_allclose(window.returns_to_go[0, :n], to_go, rtol=1e-5)
        assert window.valid[0].sum() == n
        assert not window.body[0, n:].any()
        assert window.time[0, 0] == first


def test_windows_are_read_with_few_files_open(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    assert len(np.unique(dataset.episodes.shard)) > 3
    expected = WindowSampler([dataset], [everything(dataset)], ["command"], 5).draw(200, rng)
    monkeypatch.setattr("flexrl.dataset.MAX_OPEN", 2)
    copied = shutil.copytree(dataset.folder, tmp_path / "copied")
    twice = [open_dataset(copied), open_dataset(dataset.folder)]  # the first is the one that is drawn from
    select = [everything(dataset), ~everything(dataset)]
    sampler = WindowSampler(twice, select, ["command"], 5)
    windows = sampler.draw(200, np.random.default_rng(3))
    for name in ("body", "goal", "action", "returns_to_go", "time", "valid"):
        np.testing.assert_array_equal(getattr(windows, name), getattr(expected, name))
    for path in copied.glob("*.arrow"):
        os.truncate(path, path.stat().st_size // 10)  # where observations are
    with pytest.raises(UserError, match=r"\.arrow: is cut or damaged; copy the dataset anew"):
        sampler.draw(200, np.random.default_rng(3))


def test_open_files_and_maps_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty files of steps in each of two datasets, all of them read."""
    monkeypatch.setattr("flexrl.dataset.MAX_OPEN", 6)
    monkeypatch.setattr("flexrl.dataset.MAX_MAPPED", 3)
    both = [write_toy(tmp_path / name, range(40), length=5, shard_steps=5) for name in ("one", "two")]
    before = len(os.listdir("/proc/self/fd"))
    windows = WindowSampler(both, [everything(data) for data in both], [], 2).draw(2000, np.random.default_rng(0))
    assert len(np.unique(windows.returns_to_go[:, 0])) > 40
    for data in both:
        assert data.skills_of(everything(data)) == [0]
        actions = [data.episode(i)["action"][0, 0] for i in range(40)]
        assert len(np.unique(actions)) == 40
    assert len(os.listdir("/proc/self/fd")) - before <= 6 + 2 * 3


def test_every_step_is_as_likely_to_be_the_first(dataset: Dataset) -> None:
    sampler = WindowSampler([dataset], [everything(dataset)], [], 2)
    windows = sampler.draw(4000, np.random.default_rng(0))
    lengths = dataset.episodes.length
    expected = (lengths / lengths.sum()).astype(float)
    late = np.mean(windows.time[:, 0] >= 100)
    assert late == pytest.approx(np.sum(expected * np.maximum(0, 1 - 100 / lengths)), abs=0.04)


def test_a_model_does_not_see_what_comes_later() -> None:
    model, inputs = some_model(), some_inputs(2, 6)
    before = model(inputs)
    for name in (BODY, GOAL, RETURN, ACTION):
        changed = {**inputs, name: inputs[name].clone()}
        changed[name][:, 3] += 1.0
        after = model(changed)
        first = 4 if name == ACTION else 3  # an action follows the answer of its step
        torch.testing.assert_close(after[:, :first], before[:, :first])
        assert (after[:, first:] - before[:, first:]).abs().max() > 1e-3


def test_without_a_token_for_it_what_was_done_is_not_seen() -> None:
    model, inputs = some_model(replace(SIZES, has_action=False)), some_inputs(2, 6)
    other = {**inputs, ACTION: -inputs[ACTION]}
    torch.testing.assert_close(model(other), model(inputs), rtol=0, atol=0)
    assert not any("from_action" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("sizes", [SIZES, replace(SIZES, has_return=False), replace(SIZES, has_action=False)])
def test_acting_with_kept_keys_is_reading_all_anew(sizes: Sizes) -> None:
    """Over many more steps than the context holds, with episodes that begin at different times."""
    model, num_steps = some_model(sizes), 25
    inputs, context = some_inputs(3, num_steps), Context(model, 3)
    begins = {0: [True] * 3, 4: [False, True, False], 11: [True, False, False], 12: [False, False, True]}
    first, stretch = np.zeros(3, int), 0  # where each episode began, and the steps that the cache holds
    for t in range(num_steps):
        if t in begins:
            context.begin(torch.tensor(begins[t]))
            first[begins[t]] = t
        stretch = stretch + 1 if stretch < SIZES.context else SIZES.context // 2 + 1
        now = {name: tensor[:, t : t + 1] for name, tensor in inputs.items() if name not in (ACTION, "target", "valid")}
        answer = context.act(now)
        context.took(inputs[ACTION][:, t])
        for i in range(3):
            seen = slice(max(first[i], t + 1 - stretch), t + 1)
            whole = model({name: tensor[i : i + 1, seen] for name, tensor in inputs.items()})
            torch.testing.assert_close(answer[i], whole[0, -1], atol=2e-5, rtol=1e-4)


def test_dropout_is_torch_s() -> None:
    torch.manual_seed(0)
    drop, x = Dropout(0.1).train(), torch.ones(1000, 101, requires_grad=True)
    y = drop(x)
    assert (y == 0).float().mean().item() == pytest.approx(0.1, abs=0.005)
    assert y.max().item() == pytest.approx(1 / 0.9, rel=1e-4)
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
    torch.manual_seed(0)
    assert torch.equal(drop(x), y)
    assert torch.equal(drop.eval()(x), x)


def test_the_bits_of_dropout_are_even_and_independent() -> None:
    torch.manual_seed(0)
    words = random_words(200_000)
    bits = torch.stack([(words >> i) & 1 for i in range(64)]).double() * 2 - 1
    assert bits.mean(dim=1).abs().max() < 0.012  # five deviations of the mean of as many coins
    for lag in (1, 2, 64, 128):
        assert (bits[:, lag:] * bits[:, :-lag]).mean(dim=1).abs().max() < 0.012
    among = bits @ bits.t() / 200_000
    assert among.fill_diagonal_(0).abs().max() < 0.012
    assert not torch.equal(words, random_words(200_000))


def test_attention_under_dropout_is_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out for the CPU; without anything dropped it is scaled_dot_product_attention."""
    block = some_model(replace(SIZES, dropout=0.5)).blocks[0]
    assert isinstance(block, Block)
    x = torch.randn(3, 8, 16)
    expected = block(x)
    block.train()
    monkeypatch.setattr(Dropout, "forward", lambda self, x: x)
    monkeypatch.setattr(Dropout, "onto", lambda self, shortcut, x: shortcut + x)
    torch.testing.assert_close(block(x), expected)


def test_gradients_that_are_written_out_are_autograds() -> None:
    """The two-layer network's, and those of what is added to a shortcut, factors given."""
    torch.manual_seed(0)
    block = some_model().blocks[0].double()
    assert isinstance(block, Block)
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    weights = [x, block.up.weight, block.up.bias, block.down.weight, block.down.bias]
    outputs = []
    for training in (False, True):
        block.train(training)
        y = block._two_layers(x)
        outputs.append((y, torch.autograd.grad(y.square().sum(), weights)))
    torch.testing.assert_close(outputs[1], outputs[0])
    drop, shortcut = Dropout(0.3).train(), torch.randn(4, 50, requires_grad=True)
    z = torch.randn(4, 50, requires_grad=True)
    pairs = []
    for ask in (lambda: shortcut + drop(z), lambda: drop.onto(shortcut, z)):
        torch.manual_seed(1)
        y = ask()
        pairs.append((y, torch.autograd.grad(y.square().sum(), [shortcut, z])))
    torch.testing.assert_close(pairs[1], pairs[0])
    assert torch.equal(drop.eval().onto(shortcut, z), shortcut + z)


def test_the_last_block_answers_for_the_asked_tokens_alone() -> None:
    block = some_model().blocks[1]
    assert isinstance(block, Block)
    x = torch.randn(3, 12, 16)
    torch.testing.assert_close(block.forward_some(x, 2, 4), block(x)[:, 2::4])


def test_a_context_goes_on_from_its_state() -> None:
    model, inputs = some_model(), some_inputs(2, 9)
    one, other = Context(model, 2), Context(model, 2)

    def act(context: Context, t: int) -> torch.Tensor:
        answer = context.act(
            {name: tensor[:, t : t + 1] for name, tensor in inputs.items() if name not in (ACTION, "target", "valid")}
        )
        context.took(inputs[ACTION][:, t])
        return answer

    for t in range(5):
        act(one, t)
    other.set_state(one.get_state())
    for t in range(5, 9):
        assert torch.equal(act(one, t), act(other, t))


def test_what_is_hidden_does_not_matter() -> None:
    model, inputs = some_model(), some_inputs(2, 6)
    given = torch.ones(2, 6, 3, dtype=torch.bool)
    torch.testing.assert_close(model(inputs | {"given": given}), model(inputs))
    given[..., 1] = given[..., 2] = False
    changed = inputs[GOAL].clone()
    changed[..., 3:] += 5.0  # the second part
    hidden = {**inputs, GOAL: changed, RETURN: inputs[RETURN] + 3.0, "given": given}
    torch.testing.assert_close(model(hidden), model(inputs | {"given": given}))


def test_bins_are_even_and_their_loss_falls() -> None:
    model = some_model(replace(SIZES, bins=8))
    assert model.to_bin(torch.tensor([-1.0, -0.76, -0.74, 0.0, 0.99, 1.0])).tolist() == [0, 0, 1, 4, 7, 7]
    inputs = some_inputs(4, 6)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    before = model.loss(inputs).item()
    for _ in range(150):
        optimiser.zero_grad()
        loss = model.loss(inputs)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.3 * before
    chosen = model.to_actions(model(inputs))
    assert (chosen - inputs[ACTION]).abs().mean() < 0.2
    assert chosen.shape == inputs[ACTION].shape


def test_steps_after_the_end_do_not_count() -> None:
    model, inputs = some_model(), some_inputs(2, 6)
    inputs["valid"][:, 4:] = False
    changed = {**inputs, "target": inputs["target"].clone()}
    changed["target"][:, 4:] = 0.9
    assert model.loss(changed).item() == pytest.approx(model.loss(inputs).item(), rel=1e-6)


def test_the_best_tenth_is_kept_and_others_are_held_out(dataset: Dataset) -> None:
    table = dataset.episodes
    [(learned, held)] = split([dataset], top=0.3, held_out=0.2)
    kept = learned | held
    assert not (learned & held).any()
    assert held.any()
    assert table.episode_return[kept].min() >= table.episode_return[~kept].max()
    assert table.length[kept].sum() >= 0.3 * table.length.sum()


def test_as_many_are_held_out_as_are_asked_for(tmp_path: Path) -> None:
    data = write_toy(tmp_path / "toy", np.arange(100.0), length=2)
    for share in (0.05, 0.13, 0.3, 0.4, 0.5):
        [(learned, held)] = split([data], top=1.0, held_out=share)
        assert held.sum() == pytest.approx(100 * share, abs=1)
        assert (learned ^ held).all()
        np.testing.assert_array_equal(held, split([data], top=1.0, held_out=share)[0][1])
    held = np.flatnonzero(split([data], top=1.0, held_out=0.1)[0][1])
    assert len(set(held % 10)) > 4  # ten simulations with ten episodes each: not those of one or two of them


TRAIN = (
    "num_updates=60",
    "evaluation={every: 20, batches: 2}",
    "torch_threads=1",
    "save_every=0",
    "learning_rate=1e-3",
    "warmup=5",
)


def train(workspace: Path, name: str, dataset: Dataset, *settings: str) -> list[str]:
    parts = [part for text in (*TRAIN, *settings) for part in ("--set", text)]
    return script("train_dt.py", workspace, "--name", name, "--dataset", str(dataset.folder), *parts)


def test_a_killed_training_goes_on_to_the_same_weights(dataset: Dataset, tmp_path: Path) -> None:
    settings = ("goal=[skill, command]", "hide=0.3", "model={width: 32, context: 8}")
    whole = run(train(tmp_path, "whole", dataset, *settings))
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(train(tmp_path, "cut", dataset, *settings), cwd=ROOT)
    while process.poll() is None and not snapshots.exists(tmp_path / "cut" / "best"):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    again = run(script("train_dt.py", tmp_path, "--name", "cut", "--resume"))
    assert again.returncode == 0, again.stderr
    assert "going on exactly" in again.stderr
    for name in ("latest", "best"):
        ours, its = (snapshots.read_arrays(tmp_path / which / name / "policy.safetensors") for which in ("whole", "cut"))
        assert all(np.array_equal(ours[key], its[key]) for key in ours)
    lineage = json.loads((tmp_path / "whole" / "lineage.json").read_bytes())
    assert lineage["parents"] == {str(dataset.folder): dataset.sha256}


def test_a_training_that_is_interrupted_keeps_its_last_update(dataset: Dataset, tmp_path: Path) -> None:
    settings = ("goal=[skill]", "model={kind: gcbc, hidden: [8]}", "save_every=3600", "num_updates=1_000_000", "log_every=1")
    settings += ("evaluation.every=1_000_000",)
    process = subprocess.Popen(train(tmp_path, "cut", dataset, *settings), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and len(metrics.read_bytes().splitlines()) > 5):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGINT
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert f"stopped by SIGINT at update {last:,}" in told
    state = json.loads((tmp_path / "cut" / "latest" / "training.json").read_bytes())
    assert state["num_updates"] == last >= 5


@pytest.mark.parametrize("model", ["{width: 32, context: 8}", "{kind: bc, hidden: [32]}", "{kind: gcbc, hidden: [32]}"])
def test_what_was_learned_plays_and_collects(dataset: Dataset, tmp_path: Path, model: str) -> None:
    goal = "[]" if "kind: bc" in model else "[skill, command, place]"
    done = run(train(tmp_path, "m", dataset, f"model={model}", f"goal={goal}", "evaluation.episodes=2"))
    assert done.returncode == 0, done.stderr
    best = tmp_path / "m" / "best"
    policy = load_policy(open_snapshot(best))
    assert policy.act(np.zeros((3, 65 + 13 * (goal != "[]")), np.float32)).shape == (3, 17)
    played = run([sys.executable, str(ROOT / "play.py"), "--model", str(best), "--episodes", "2", "--json"])
    assert played.returncode == 0, played.stderr
    assert len(json.loads(played.stdout)["episodes"]) == 2
    arguments = ("--name", "again", "--model", str(best), "--steps", "400")
    collected = run(script("collect.py", tmp_path, *arguments, "--set", "num_envs=4", "--set", "noise=[0.1]"))
    assert collected.returncode == 0, collected.stderr
    aimed = run(
        [sys.executable, "play.py", "--model", str(best), "--episodes", "1", "--target-return", "500", "--goal", "turn_left"]
    )
    if "context" in model:
        assert aimed.returncode == 0, aimed.stderr
    else:
        assert (aimed.returncode, "does not see what an episode is to bring" in aimed.stderr) == (2, True)
    for arguments, words in (
        (
            ("play.py", "--model", str(best), "--export-sb3", str(tmp_path / "a.zip")),
            "has no Stable-Baselines3 model to export",
        ),
        (("play.py", "--model", str(best), "--stochastic"), "its actions have no noise to sample"),
        (
            ("train.py", "--name", "x", "--workspace", str(tmp_path), "--set", f"init_from={best}"),
            "train_dt.py goes on with it",
        ),
    ):
        refused = run([sys.executable, *arguments])
        assert refused.returncode == 2
        assert words in refused.stderr
        assert refused.stderr.count("\n") == 1
    lineage = run([sys.executable, str(ROOT / "report.py"), "lineage", str(tmp_path / "again")])
    assert "train_dt.py" in lineage.stdout
    assert str(dataset.folder) in lineage.stdout


def test_words_are_shown_as_a_world_shows_them(dataset: Dataset, tmp_path: Path) -> None:
    done = run(train(tmp_path, "words", dataset, "model={width: 32, context: 8}", "goal=[words, command]", "num_updates=2"))
    assert done.returncode == 0, done.stderr
    snapshot = open_snapshot(tmp_path / "words" / "best")
    assert snapshot.settings.world.goal == ["embedding", "command"]
    assert snapshot.about["goal_columns"] == list(range(65, 65 + 2 * NUM_FEATURES + 3))


def test_each_window_draws_words_of_its_skill(dataset: Dataset) -> None:
    sampler = WindowSampler([dataset], [everything(dataset)], ["skill", "words"], 40)
    windows = sampler.draw(300, np.random.default_rng(0))
    num_skills = len(dataset.info.skills)
    encode = find_encoder("hashed_ngrams").encode
    owners: dict[bytes, set[str]] = {}
    for phrase in dataset.info.phrases:
        owners.setdefault(encode(phrase.words).astype(np.float32).tobytes(), set()).add(phrase.skill)
    seen = set()
    for i in range(300):
        for goal in windows.goal[i][windows.valid[i]]:
            words = goal[num_skills : num_skills + NUM_FEATURES].tobytes()
            assert dataset.info.skills[int(goal[:num_skills].argmax())] in owners[words]
            seen.add(words)
        skills = windows.goal[i, :, :num_skills].argmax(axis=1)[windows.valid[i]]
        assert len(np.unique(windows.goal[i, :, num_skills:][windows.valid[i]], axis=0)) == len(np.unique(skills))
    assert len(seen) > 5 * num_skills
    sampler = WindowSampler([dataset], [everything(dataset)], ["words"], 2, word_variants=10)
    drawn = sampler.draw(300, np.random.default_rng(0)).goal[:, 0, :NUM_FEATURES]
    known = np.mean([row.tobytes() in owners for row in drawn])
    assert 0.05 < known < 0.6  # the phrases themselves, and what their copies have left as it was


def test_no_distorted_copy_is_a_phrase_that_is_held_out() -> None:
    families = [family for family in vars(phrasings).values() if isinstance(family, phrasings.Family)]
    told = (ROOT / "README.md").read_text()
    assert "Of the 26 that a skill of the humanoid has, 10, other verbs and typing errors, are held out" in told
    for skill in SKILLS_OF["humanoid"]:
        words = find_task("humanoid", skill).words
        assert (len(words.train), len(words.held_out)) == (16, 10)
    again = 0
    for family in families:
        for count in (3, 20, 200):
            copies = phrasings.with_copies(family.train, count)
            assert copies[:: count + 1] == list(family.train)
            assert not phrasings.HELD_OUT & set(copies)
            rng = np.random.default_rng(0)  # what was no such phrase at once stays what it was
            for i, copy in enumerate(copies):
                first = copy if i % (count + 1) == 0 else phrasings.distorted(family.train[i // (count + 1)], rng)
                assert first == copy or first in phrasings.HELD_OUT
                again += first != copy
    assert again > 10
    assert len(phrasings.with_copies(["get pu"], 50)) == 51  # held out itself, and copied all the same


def test_words_that_are_held_out_are_not_learned_from(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexrl.windows.HELD_OUT", {dataset.info.phrases[0].words})
    with pytest.raises(UserError, match=r"^goal: .* has words that are held out, such as "):
        WindowSampler([dataset], [everything(dataset)], ["words"], 2)
    WindowSampler([dataset], [everything(dataset)], ["skill"], 2)


def test_a_policy_is_prompted_with_what_it_learned(dataset: Dataset, tmp_path: Path) -> None:
    settings = ("model={width: 32, context: 8, returns: false, actions: false}", "goal=[skill, words, command]")
    hide = "hide={skill: 0.5, words: 0.5}"
    done = run(train(tmp_path, "m", dataset, *settings, hide, "num_updates=2"))
    assert done.returncode == 0, done.stderr
    best = tmp_path / "m" / "best"
    snapshot = open_snapshot(best)
    skills = len(dataset.info.skills)
    obs = np.random.default_rng(0).standard_normal((3, 65 + skills + 2 * NUM_FEATURES + 3)).astype(np.float32)
    other = obs.copy()
    other[:, 65 : 65 + skills] += 1.0
    assert np.abs(load_policy(snapshot).act(obs) - load_policy(snapshot).act(other)).max() > 1e-6
    without = [load_policy(snapshot, prompt=["words", "command"]).act(o) for o in (obs, other)]
    np.testing.assert_array_equal(*without)
    for prompt, words in (
        ("words", "it was never without command"),
        ("command,place", "it never saw 'place'; it knows skill, words, command"),
    ):
        refused = run([sys.executable, "play.py", "--model", str(best), "--prompt", prompt])
        assert refused.returncode == 2
        assert words in refused.stderr
        assert refused.stderr.count("\n") == 1
    refused = run([sys.executable, "play.py", "--model", str(SKILLS), "--prompt", "words"])
    assert (refused.returncode, "has no prompt" in refused.stderr) == (2, True)


def test_a_sentence_of_ones_own_is_played_at_the_skill_it_is_closest_to() -> None:
    words = "could you walk a little forwards"

    def actions_of(settings: PlaySettings) -> tuple[str, list[np.ndarray]]:
        with playing.opened(settings) as (policy, world):
            (skill,) = playing.skills_played(world)
            obs = world.reset()
            vector = embed([words], find_encoder("hashed_ngrams"))[0].astype(np.float32)
            np.testing.assert_array_equal(obs[0, -2 * NUM_FEATURES :], vector)
            policy.reset(np.ones(1, bool))
            first = policy.act(obs)
            obs[:, 65 : 65 + len(world.batch.skills)] = 0.5
            policy.reset(np.ones(1, bool))
            return skill, [first, policy.act(obs)]

    asked = PlaySettings(model=str(TRANSFORMER), num_episodes=1, words=words)
    skill, (first, second) = actions_of(asked)
    assert skill == "walk_forward"
    np.testing.assert_allclose(first, second, atol=1e-5)  # nobody told it the skill
    skill, (first, second) = actions_of(asked.model_copy(update={"skill": "turn_left", "prompt": list(KNOWN)}))
    assert skill == "turn_left"
    assert np.abs(first - second).max() > 1e-3


def test_what_a_sentence_was_taken_for_is_said() -> None:
    play = [sys.executable, "play.py", "--model", str(TRANSFORMER), "--episodes", "1", "--prompt", "words", "--words"]
    for words, said in (
        ("get back on your feet", "recover (its closest words: 'get on your feet', 0.89 of 1)"),
        ("make me a coffee", ", which is a guess (its closest words: "),
    ):
        done = run([*play, words])
        assert (done.returncode, said in done.stderr) == (0, True), done.stderr
        assert f"{words!r}: " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--model", str(SKILLS), "--words", "walk"), f"--words: {SKILLS} reads none; name one of its skills"),
        (("--model", str(TRANSFORMER), "--words", " , "), "--words: ' , ' is like nothing that is known here"),
        (("--model", str(TRANSFORMER), "--words", ""), "--words: expected a sentence of at most 300 letters"),
        (("--model", "random", "--words", "walk"), "--words: random reads none"),
        (("--model", str(TRANSFORMER), "--words", "walk", "--prompt", "skill,command"), "--prompt: it leaves the words out"),
    ],
)
def test_sentences_that_cannot_be_followed_are_refused(arguments: tuple[str, ...], line: str) -> None:
    refused = run([sys.executable, "play.py", "--episodes", "1", *arguments])
    assert refused.returncode == 2
    assert line in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_skill_that_the_data_never_showed_is_refused(tmp_path: Path) -> None:
    skills = ("--set", "skills={turn_left: 1, stand_still: 1}", "--set", "switch=null", "--set", "num_envs=4")
    assert run(script("collect.py", tmp_path, "--name", "d", "--model", str(SKILLS), "--steps", "400", *skills)).returncode == 0
    data = open_dataset(tmp_path / "d")
    assert [data.info.skills[i] for i in data.skills_of(everything(data))] == ["stand_still", "turn_left"]
    done = run(train(tmp_path, "m", data, "model={kind: gcbc, hidden: [16]}", "goal=[skill]", "num_updates=2"))
    assert done.returncode == 0, done.stderr
    play = [sys.executable, "play.py", "--model", str(tmp_path / "m" / "best"), "--episodes", "1"]
    refused = run([*play, "--goal", "walk_forward"])
    assert refused.returncode == 2
    assert "--goal: the data of" in refused.stderr
    assert "never showed walk_forward; it showed stand_still, turn_left" in refused.stderr
    collect = ("--name", "more", "--model", str(tmp_path / "m" / "best"), "--steps", "100", "--set", "num_envs=2")
    refused = run(script("collect.py", tmp_path, *collect, "--set", "skills={walk_forward: 1}"))
    assert refused.returncode == 2
    assert "skills" in refused.stderr.partition("the data of")[0]
    assert "never showed walk_forward" in refused.stderr
    assert not (tmp_path / "more").exists()
    pupil = tmp_path / "m" / "best"
    for models in (f"{{path: {pupil}, experts: {{walk_forward: {pupil}}}}}", f"{{path: zero, teacher: {{path: {pupil}}}}}"):
        skills = ", ".join(f"{skill}: 1" for skill in data.info.skills)
        world = f"world={{task: mixed, goal: [one_hot], skills: {{{skills}}}}}"
        asked = ("--name", "more", "--set", world, "--set", f"models=[{models}]", "--set", "skills={walk_forward: 1}")
        refused = run(script("collect.py", tmp_path, *asked, "--set", "num_envs=2"))
        assert refused.returncode == 2
        assert "never showed walk_forward" in refused.stderr
    assert run([*play, "--goal", "turn_left"]).returncode == 0


def test_two_processes_train_one_model_and_go_on_exactly(dataset: Dataset, tmp_path: Path) -> None:
    together = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = ("model={width: 16, context: 4}", "device=cpu", "evaluation={every: 1000, batches: 1}")

    def weights(name: str) -> dict[str, np.ndarray]:
        return snapshots.read_arrays(tmp_path / name / "latest" / "policy.safetensors")

    done = run(together + train(tmp_path, "whole", dataset, *settings, "num_updates=20")[1:])
    assert done.returncode == 0, done.stderr
    done = run(together + train(tmp_path, "parts", dataset, *settings, "num_updates=8")[1:])
    assert done.returncode == 0, done.stderr
    more = script("train_dt.py", tmp_path, "--name", "parts", "--resume", "--set", "num_updates=20")
    alone = run(more)
    assert (alone.returncode, alone.stderr.count("\n")) == (2, 1)
    assert "was trained by 2 process(es), not 1" in alone.stderr
    done = run(together + more[1:])
    assert done.returncode == 0, done.stderr
    assert "going on exactly at update 8" in done.stderr
    assert all(np.array_equal(array, weights("parts")[key]) for key, array in weights("whole").items())
    assert run(train(tmp_path, "alone", dataset, *settings, "num_updates=20")).returncode == 0
    assert any(not np.array_equal(array, weights("alone")[key]) for key, array in weights("whole").items())


def test_other_data_under_the_same_name_is_refused(tmp_path: Path) -> None:
    collect = script("collect.py", tmp_path, "--name", "d", "--model", str(SKILLS), "--steps", "400", "--set", "num_envs=4")
    assert run(collect).returncode == 0
    assert run(train(tmp_path, "m", open_dataset(tmp_path / "d"), "num_updates=2", "model={kind: bc}")).returncode == 0
    more = script("collect.py", tmp_path, "--name", "d", "--resume", "--set", "num_steps=800")
    assert run(more).returncode == 0
    refused = run(script("train_dt.py", tmp_path, "--name", "m", "--resume", "--set", "num_updates=4"))
    assert refused.returncode == 2
    assert "is not what" in refused.stderr
    assert "init_from=" in refused.stderr


def test_training_goes_on_from_an_earlier_model(dataset: Dataset, tmp_path: Path) -> None:
    first = run(train(tmp_path, "first", dataset, "model={width: 32, context: 8}"))
    assert first.returncode == 0, first.stderr
    parent = tmp_path / "first" / "latest"
    second = run(train(tmp_path, "second", dataset, "model={width: 32, context: 8}", f"init_from={parent}"))
    assert second.returncode == 0, second.stderr
    losses = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["eval/loss"] for name in ("first", "second")
    ]
    assert losses[1] < losses[0]
    other = run(train(tmp_path, "third", dataset, "model={width: 16, context: 8}", f"init_from={parent}"))
    assert other.returncode == 2
    assert "has another model, goal or body" in other.stderr
    assert other.stderr.count("\n") == 1
    refused = run(train(tmp_path, "fourth", dataset, "model={width: 32, context: 8, heads: 2}", f"init_from={parent}"))
    assert refused.returncode == 2  # the weights fit, and would mean something else
    assert "its model.heads is 1, here it is 2; write what it has" in refused.stderr
    assert not (tmp_path / "fourth").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.kind=gcbc"], "goal: gcbc needs one"),
        (["model.kind=bc", "goal=[skill]"], "goal: bc sees none"),
        (["model={width: 30, heads: 4}"], "model.width: expected a multiple"),
        (["goal=[skill, skill]"], "goal: expected each part once"),
        (["model={kind: bc, hidden: [0]}"], "model.hidden.0: "),
        (["model.returns=false", "hide=0.5"], "hide: only a dt with a return, or a goal of several parts"),
        (["model.returns=false", "goal=[skill]", "hide=0.5"], "hide: only a dt with a return, or a goal of several parts"),
        (["goal=[skill]", "hide={words: 0.5}"], "hide: there is no words to hide; there is skill, return"),
        (["goal=[skill]", "hide={skil: 0.5}"], "hide: there is no part 'skil' of a goal"),
        (["goal=[skill]", "hide={skill: 1.5}"], "hide: skill: expected a share from 0 to below 1, found 1.5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        config.load(TrainDTSettings, None, overrides)
    assert words in str(caught.value)


def test_data_that_does_not_fit_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    def refused(*overrides: str) -> str:
        with pytest.raises(UserError) as caught:
            rehearse(config.load(TrainDTSettings, None, overrides), True)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "datasets: nowhere: no such dataset" in refused("datasets=[nowhere]")
    walk = ("--name", "walk", "--model", str(SKILLS.parent / "humanoid_walk"), "--steps", "200", "--set", "num_envs=2")
    assert run(script("collect.py", tmp_path, *walk)).returncode == 0
    both = refused(f"datasets=[{dataset.folder}, {tmp_path / 'walk'}]")
    assert f"{tmp_path / 'walk'} has another observation than {dataset.folder}" in both
    assert "does not show where a command" in refused(f"datasets=[{tmp_path / 'walk'}]", "goal=[place]")
    world = ("--set", "world={kind: gymnasium, id: Pendulum-v1, subprocesses: false}")
    assert run(script("collect.py", tmp_path, "--name", "p", "--model", "random", "--steps", "400", *world)).returncode == 0
    assert "is of a world without skills" in refused(f"datasets=[{tmp_path / 'p'}]", "goal=[skill]")
