"""Settings as people write them, and the one line they get for a mistake."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from flexrl import config, sweeps
from flexrl.config import UserError
from flexrl.sweep_settings import SweepSettings, load_sweep
from flexrl.training import TrainSettings, rehearse

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.yaml"))


VERBS: dict[str, type[config.Settings]] = {
    **{name: verb.model for name, verb in sweeps.VERBS.items()},
    "submit_sweep.py": SweepSettings,
}


def settings_of(path: Path) -> type[config.Settings]:
    """The settings of the verb that an example's first comment runs."""
    return next(VERBS[word] for word in path.read_text(encoding="utf-8").split() if word in VERBS)


def write(folder: Path, text: str, name: str = "a.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def complaint(path: Path | None, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        config.load(TrainSettings, path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_load_and_begin_with_their_command(path: Path) -> None:
    config.load(settings_of(path), path)
    lines = path.read_text(encoding="utf-8").splitlines()
    starts = tuple(f"# python {verb} --{'sweep' if verb == 'submit_sweep.py' else 'name'}" for verb in VERBS)
    assert any(line.startswith(starts) and path.name in line for line in lines[:2])


@pytest.mark.parametrize(
    ("name", "num_trials"), [("half_cheetah_sweep", 3 * 2 * 3), ("play_sweep", 2 * 2 * 2), ("half_cheetah_skills_sweep", 4)]
)
def test_the_sweeps_among_the_examples_come_to_their_trials(
    name: str, num_trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parent.parent
    monkeypatch.chdir(root)
    path = root / "examples" / f"{name}.yaml"
    assert len(sweeps.expand(load_sweep(path), path)) == num_trials


def test_resolved_settings_read_back_the_same(tmp_path: Path) -> None:
    for path in EXAMPLES:
        settings = config.load(settings_of(path), path)
        assert config.load(settings_of(path), write(tmp_path, config.to_yaml(settings))) == settings


@pytest.mark.parametrize(
    ("text", "number"), [("3e-4", 3e-4), ("1e-3", 1e-3), ("1.0e-3", 1e-3), (".5", 0.5), ("1", 1.0), ("2_0", 20.0)]
)
def test_numbers_as_people_write_them(tmp_path: Path, text: str, number: float) -> None:
    settings = config.load(TrainSettings, write(tmp_path, f"learner: {{learning_rate: {text}}}"))
    assert settings.learner.learning_rate == number


def test_whole_numbers_may_have_an_exponent_and_are_decimal(tmp_path: Path) -> None:
    assert config.load(TrainSettings, write(tmp_path, "num_steps: 2e6")).num_steps == 2_000_000
    assert config.load(TrainSettings, write(tmp_path, "seed: 010")).seed == 10


def test_unknown_key_names_line_and_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "num_steps: 100\nlearner:\n  learning_rte: 1e-4\n")
    assert complaint(path) == f"{path}:3: learner: no key 'learning_rte' here; did you mean 'learning_rate'?"


def test_unknown_key_at_the_top_and_deep_down(tmp_path: Path) -> None:
    path = write(tmp_path, "num_stepz: 100\n")
    assert complaint(path) == f"{path}:1: no key 'num_stepz' here; did you mean 'num_steps'?"
    path = write(tmp_path, "learner:\n  policy_kwargs:\n    net_arhc: [64]\n")
    assert complaint(path) == f"{path}:3: learner.policy_kwargs: no key 'net_arhc' here; did you mean 'net_arch'?"


def test_a_bare_yes_is_no_number(tmp_path: Path) -> None:
    path = write(tmp_path, "learner:\n  gamma: yes\n")
    message = complaint(path)
    assert message.startswith(f"{path}:2: learner.gamma: expected a number, found")
    assert "YAML reads a bare 'yes'" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("world: {body: humanoit}", "did you mean 'humanoid'?"),
        ("world: {task: walk_foward}", "did you mean 'walk_forward'?"),
        ("world: {body: half_cheetah, task: walk_forward}", "half_cheetah has no task 'walk_forward'"),
        ("world: {kind: gymnasium, id: Ant-v55}", "did you mean 'Ant-v5'?"),
        ("world: {kind: motr}", "did you mean 'motor'?"),
        ("learner: {name: pppo}", "did you mean 'ppo'?"),
        ("learner: {gamma: 1.5}", "less than or equal to 1"),
        ("learner: {n_steps: many}", "expected a whole number"),
        ("learner: {batch_size: 0.5}", "whole number"),
        ("learner: {policy_kwargs: {activation_fn: elo}}", "did you mean 'elu'?"),
        ("world: {stagger: maybe}", "world.stagger: expected true or false, found 'maybe'"),
        ("world: {stagger: 3}", "expected true or false, found 3"),
        ("num_steps: -5", "greater than or equal to 1"),
        ("num_steps: .nan", "expected a"),
        ("- 1\n- 2", "expected a mapping"),
        ("just words", "expected a mapping"),
        ("", "is empty"),
        ("a: [1, 2", "not valid YAML"),
        ("seed: 1\nseed: 2", "a second time"),
        ("world: {tasks: {walk_forward: {rewards: {uprite: 1}}}}", "no reward term 'uprite'"),
        ("learner: &a {name: ppo}\nworld: *a", ":2: not valid YAML: an alias; write the value out"),
        ("seed: " + "[" * 3000, "nested too deep"),
        ("seed: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_mistakes_get_one_line_with_the_file_and_a_cure(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)
    message = complaint(path)
    assert words in message
    assert message.startswith(str(path))


def test_missing_file_circle_and_folder(tmp_path: Path) -> None:
    write(tmp_path, "seed: 1", "walk.yaml")
    assert "did you mean" in complaint(tmp_path / "wolk.yaml")
    assert "is a folder" in complaint(tmp_path)
    write(tmp_path, "base: two.yaml", "one.yaml")
    write(tmp_path, "base: one.yaml", "two.yaml")
    assert "circular base: one.yaml -> two.yaml -> one.yaml" in complaint(tmp_path / "one.yaml")
    path = write(tmp_path, "seed: 1\nbase: wolk.yaml", "three.yaml")
    write(tmp_path, "seed: 1", "humanoid_run_forward.yaml")
    write(tmp_path, "seed: 1", "humanoid_v5.yaml")
    assert "did you mean" in (told := complaint(tmp_path / "humanoid_rnu.yaml"))
    assert "humanoid_run_forward.yaml'?" in told
    hint = f"did you mean '{tmp_path / 'walk.yaml'}'?"
    assert complaint(path) == f"{path}:2: base: {tmp_path / 'wolk.yaml'}: no such file; {hint}"


def test_settings_that_do_not_go_together_name_the_line_of_the_one_to_change(tmp_path: Path) -> None:
    path = write(tmp_path, "world: {num_envs: 64}\nlearner:\n  name: sac\n  buffer_size: 100\n")
    assert complaint(path) == f"{path}:4: learner.buffer_size: expected at least 10 steps of each of the 64 envs"


def test_base_file_then_file_then_set(tmp_path: Path) -> None:
    write(tmp_path, "num_steps: 100\nseed: 5\nlearner: {gamma: 0.9, n_steps: 8}", "base.yaml")
    path = write(tmp_path, "base: base.yaml\nlearner: {gamma: 0.8}")
    settings = config.load(TrainSettings, path, ["learner.n_steps=16"])
    assert (settings.num_steps, settings.seed) == (100, 5)
    assert (settings.learner.gamma, settings.learner.n_steps) == (0.8, 16)


def test_another_learner_does_not_inherit_the_first_ones_settings(tmp_path: Path) -> None:
    write(tmp_path, "learner: {name: ppo, n_steps: 8}", "base.yaml")
    path = write(tmp_path, "base: base.yaml\nlearner: {name: sac, tau: 0.01}")
    assert config.load(TrainSettings, path).learner.name == "sac"
    write(tmp_path, "learner: {n_steps: 8}\nworld: {num_envs: 4}", "base.yaml")  # ppo and motor, unsaid
    settings = config.load(TrainSettings, path, ["world.kind=motor"])
    assert (settings.learner.n_steps, settings.world.num_envs) == (1, 4)


def test_a_device_that_only_others_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(UserError, match=r"^device: there is no mps here, which Apple's machines have; write auto$"):
        rehearse(config.load(TrainSettings, None, ["device=mps"]), True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["learner.policy_kwargs.optimizer_kwargs={foo: 1}"], "unexpected keyword argument 'foo'"),
        (["learner={name: sac, target_entropy: foo}"], "could not convert string to float: 'foo'"),
        (["learner={name: sac, policy_kwargs: {net_arch: {pi: [8], vf: [8]}}}"], "no key 'qf'"),
        (["learner.name=sac", "world={kind: gymnasium, id: CartPole-v1}"], "action spaces"),
        (["learner.max_action_std=0.2", "world={kind: gymnasium, id: CartPole-v1}"], "max_action_std: only actions that are"),
        (["world={kind: gymnasium, id: FrozenLake-v1}"], "normalize_observations: "),
        (["world={kind: gymnasium, id: Blackjack-v1}"], "a Tuple space cannot be put into a snapshot"),
        (["device=cuda:99"], "device: there is no cuda:99"),
        (["world={kind: gymnasium, id: Ant-v5, kwargs: {foo: 1}}"], "unexpected keyword argument 'foo'"),
        (["world={kind: gymnasium, id: Ant-v5, kwargs: {xml_file: no_such.xml}}"], "world: File "),
        (
            ["world={kind: gymnasium, id: flexrl/Humanoid-v0, kwargs: {num_envs: 4}}"],
            "world: num_envs: a Gymnasium environment is one simulation",
        ),
    ],
)
def test_what_libraries_refuse_is_refused_before_a_run_begins(settings: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        rehearse(config.load(TrainSettings, None, settings), True)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        ["world.randomise.push=0.5", "evaluation.task=v5"],
        ["world={task: mixed, switch: [3, 8]}", "evaluation.task=walk_forward"],
    ],
)
def test_what_evaluations_leave_away_does_not_keep_them_from_another_task(settings: list[str]) -> None:
    assert config.load(TrainSettings, None, settings).evaluation.task == settings[1].partition("=")[2]


def test_a_name_where_a_mapping_is_due_is_answered_with_the_mapping(tmp_path: Path) -> None:
    assert complaint(None, "learner=sac") == "--set learner=sac: learner: expected a mapping, such as {name: sac}, found 'sac'"
    (path := tmp_path / "a.yaml").write_text("world: humanoid\n")
    assert complaint(path) == f"{path}:1: world: expected a mapping, such as {{kind: motor}}, found 'humanoid'"
    path.write_text("learner.gamma: 0.9\n")
    assert complaint(path).endswith("no key 'learner.gamma' here; write learner as a mapping of its own (dots are for --set)")
    found = complaint(None, "learner.max_action_std={start: 0.5, end: -1}")
    assert found.endswith("learner.max_action_std: expected numbers above 0, found -1")
    found = complaint(None, "learner={name: ppo, min_action_std: 0.2, max_action_std: {start: 0.5, end: 0.1}}")
    assert found.endswith("learner.min_action_std: expected at most max_action_std, at the start and at the end")


def test_a_parent_that_does_not_fit_is_refused_before_a_run_begins() -> None:
    parent = Path(__file__).parent.parent / "examples" / "pretrained" / "humanoid_walk"
    settings = config.load(TrainSettings, None, ["world.body=half_cheetah", f"init_from={parent}", "world.task=v5"])
    with pytest.raises(UserError, match="its body is humanoid, here it is half_cheetah"):
        rehearse(settings, True)
    rehearse(settings, False)  # a run that goes on needs its parent no more
    missing = settings.model_copy(update={"init_from": "nowhere"})
    with pytest.raises(UserError, match=r"^init_from: nowhere: no such snapshot"):
        rehearse(missing, True)


def test_set_mistakes_name_the_flag() -> None:
    assert complaint(None, "learner.gama=0.9") == ("--set learner.gama=0.9: learner: no key 'gama' here; did you mean 'gamma'?")
    assert "expected KEY=VALUE" in complaint(None, "learner.gamma")


def test_the_sweep_in_the_readme_is_one(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    block = re.search(r"```yaml\n(verb:.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    shutil.copy(root / "examples" / "half_cheetah_v5.yaml", tmp_path)
    path = write(tmp_path, block[1], "sweep.yaml")
    trials = sweeps.expand(load_sweep(path), path)
    assert len(trials) == (2 * 2 * 20 - 20 + 1) * 5
    sweeps.rehearse(load_sweep(path), trials[:1], path)  # its rule can give trials up
