"""Tables, curves and lineage of fake workspaces, written as `runs.Run` and `snapshots.write` write them."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from toy_dataset import toy_info, write_toy

import report
from flexrl import dataset_report, ledger, lineage, plots, provenance, runs, snapshots, statistics, words
from flexrl.config import Settings, UserError
from flexrl.motor_settings import MotorSettings

ROOT = Path(__file__).parent.parent
START, END = "2026-11-20T10:00:00+00:00", "2026-11-20T10:12:00+00:00"


def write_run(
    folder: Path,
    seed: int = 0,
    how: str = "finished",
    lines: list[dict[str, Any]] | None = None,
    parents: Mapping[str, str] | None = None,
    learning_rate: float = 1e-3,
) -> Path:
    """A run of 4,000 steps in four rollouts, with an evaluation at 2,000 (return 100) and at 4,000 (return 80)."""
    folder.mkdir(parents=True)
    world = {"kind": "motor", "body": "humanoid", "task": "walk_forward"}
    settings = {"num_steps": 4000, "seed": seed, "world": world, "learner": {"name": "ppo", "lr": learning_rate}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    attempt: dict[str, Any] = {"start": START, "from_step": 0, "command": f"train.py --name {folder.name}", "how": how}
    attempt |= {
        "git_commit": "0123456789abcdef",
        "git_diff_sha256": None,
        "python": "3.11",
        "packages": {},
        "hardware": {},
    }
    if how != "running":
        attempt |= {"end": END, "to_step": 4000}
    lineage = {
        "name": folder.name,
        "settings_sha256": "0",
        "seed": seed,
        "parents": dict(parents or {}),
        "attempts": [attempt],
    }
    (folder / "lineage.json").write_text(json.dumps(lineage))
    (folder / ".lock").touch()
    write_metrics(folder, default_lines(seed) if lines is None else lines)
    return folder


def write_metrics(folder: Path, lines: list[dict[str, Any]], tail: str = "") -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)


def default_lines(seed: int = 0) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {
            "step": 1000 * i,
            "rollout/return": 10.0 * i,
            "reward/alive": 3.0,
            "reward/gait": 0.1 * i,
            "time/env_steps_per_second": 100.0 * i,
        }
        for i in range(1, 5)
    ]
    lines[1] |= {"eval/return": 100.0 + 10 * seed, "eval/mean_speed": 0.5}
    lines[3] |= {"eval/return": 80.0 + 10 * seed, "eval/mean_speed": 1.0}
    return lines


def write_snapshot(run: Path, name: str = "best", weights: bytes = b"weights") -> Path:
    """A snapshot with the run's lineage as it was while the run went on."""
    lineage = json.loads((run / "lineage.json").read_bytes())
    lineage["attempts"][-1] = {k: v for k, v in lineage["attempts"][-1].items() if k not in ("end", "to_step")} | {
        "how": "running"
    }
    about = {"kind": "sb3", "num_steps": 2000}
    files = {
        "policy.safetensors": weights,
        "snapshot.json": json.dumps(about).encode(),
        "lineage.json": json.dumps(lineage).encode(),
    }
    snapshots.write(run / name, files)
    return run / name


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
    report.main()


def table_of(workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    call(monkeypatch, "runs", "--workspace", workspace, "--json")
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- runs


def test_the_tables_numbers(workspace, monkeypatch, capsys):
    write_run(workspace / "walk")
    row = table_of(workspace, monkeypatch, capsys)["walk"]
    assert (row["world"], row["learner"], row["seed"]) == ("humanoid walk_forward", "ppo", 0)
    assert (row["num_steps"], row["planned_steps"]) == (4000, 4000)
    assert (row["last_return"], row["best_return"], row["best_step"]) == (80.0, 100.0, 2000)
    assert row["steps_per_second"] == 400.0  # the last quarter of four lines is the last line
    assert (row["state"], row["problems"]) == ("finished", [])


def test_steps_per_second_is_the_median_of_the_last_quarter(workspace):
    speeds = [1.0] * 9 + [100.0, 300.0, 5000.0]  # the last 3 of 12; one of them an outlier
    lines = [{"step": i, "time/env_steps_per_second": speed} for i, speed in enumerate(speeds, 1)]
    assert ledger.summarise(write_run(workspace / "walk", lines=lines)).steps_per_second == 300.0


def test_a_collection_and_what_learns_from_it_are_rows_too(workspace):
    lines = [{"step": 2000, "time/env_steps_per_second": 300.0}]  # what came after had no line of its own
    write_run(workspace / "walks", lines=lines)
    settings: dict[str, Any] = {"num_steps": 4000, "models": [{"path": "workspace/humanoid/best"}, {"path": "random"}]}
    (workspace / "walks" / "config.yaml").write_text(yaml.safe_dump({**settings, "world": None}))
    write_run(workspace / "dt", lines=[{"step": 50, "time/updates_per_second": 6.0}], how="running")
    settings = {"num_updates": 100, "datasets": ["workspace/walks"], "model": {"kind": "dt", "layers": 3}}
    (workspace / "dt" / "config.yaml").write_text(yaml.safe_dump(settings))
    walks, dt = (ledger.summarise(workspace / name) for name in ("walks", "dt"))
    assert (walks.world, walks.learner, walks.num_steps, walks.planned_steps) == (None, "humanoid, random", 4000, 4000)
    assert (dt.world, dt.learner, dt.num_steps, dt.planned_steps, dt.steps_per_second) == ("walks", "dt", 50, 100, 6.0)


@pytest.mark.parametrize(
    ("how", "state"),
    [
        ("finished", "finished"),
        ("stopped: SIGTERM", "stopped"),
        ("failed: Failed('the physics diverged')", "failed"),
        ("running", "killed"),
    ],
)
def test_how_a_run_ended(workspace, how, state):
    assert ledger.summarise(write_run(workspace / "walk", how=how)).state == state


def test_a_run_is_running_while_its_lock_is_held(workspace):
    run = write_run(workspace / "walk", how="running")
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert ledger.summarise(run).state == "running"
    assert ledger.summarise(run).state == "killed"


def test_a_real_run_is_read_as_it_writes(workspace, monkeypatch):
    class TinySettings(Settings):
        num_steps: int = 20
        seed: int = 7

    monkeypatch.setattr(provenance, "_gpus", dict)  # they cost an import of torch, here and for TensorBoard
    run = runs.Run(workspace / "real", TinySettings())
    run.parents["somewhere"] = "f" * 64
    run._writer = type("Writer", (), {"add_scalar": lambda *_: None, "close": lambda _: None})()
    with run:
        run.log(10, {"eval/return": 5.0})
        assert ledger.summarise(run.folder).state == "running"
    row = ledger.summarise(run.folder)
    assert (row.state, row.seed, row.num_steps, row.planned_steps, row.last_return) == ("finished", 7, 10, 20, 5.0)
    assert lineage.trace(run.folder).parents[0].mark == "missing"


def test_broken_runs_are_rows_that_say_what_is_wrong(workspace, monkeypatch, capsys):
    (write_run(workspace / "no_config") / "config.yaml").unlink()
    (write_run(workspace / "bad_config") / "config.yaml").write_text("a: [")
    (write_run(workspace / "list_config") / "config.yaml").write_text("- 1")
    (write_run(workspace / "odd_config") / "config.yaml").write_text("{num_steps: .inf, seed: yes, world: 3, learner: [ppo]}")
    (write_run(workspace / "no_lineage") / "lineage.json").unlink()
    (write_run(workspace / "bad_lineage") / "lineage.json").write_bytes(b'{"name": "bad_lin')
    (write_run(workspace / "empty_lineage") / "lineage.json").write_text(
        '{"name": "x", "seed": 0, "parents": {}, "attempts": []}'
    )
    (write_run(workspace / "no_metrics") / "metrics.jsonl").unlink()
    (write_run(workspace / "binary_metrics") / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    write_metrics(write_run(workspace / "bad_metrics"), default_lines(), "x\ny\n[1]\n")
    write_metrics(write_run(workspace / "odd_metrics"), [{"step": 5, "eval/return": "high", "time/env_steps_per_second": None}])
    (workspace / "no_run").mkdir()
    rows = table_of(workspace, monkeypatch, capsys)
    problems = {name: "; ".join(row["problems"]) for name, row in rows.items()}
    assert problems == {
        "no_config": "config.yaml: missing",
        "bad_config": "config.yaml: damaged",
        "list_config": "config.yaml: damaged",
        "odd_config": "",
        "no_lineage": "lineage.json: missing",
        "bad_lineage": "lineage.json: damaged",
        "empty_lineage": "lineage.json: damaged",
        "no_metrics": "metrics.jsonl: missing",
        "binary_metrics": "metrics.jsonl: damaged",
        "bad_metrics": "metrics.jsonl: 3 of 7 lines damaged",
        "odd_metrics": "",
    }
    assert rows["no_lineage"]["state"] == "broken"
    assert rows["no_config"]["best_return"] == 100.0  # what can be read is shown
    assert rows["no_metrics"]["num_steps"] == 4000  # then the lineage knows
    call(monkeypatch, "runs", "--workspace", workspace)
    printed = capsys.readouterr().out
    assert all(problem in printed for problem in problems.values())


def test_sweeps_are_named_beside_the_runs(workspace, monkeypatch, capsys):
    write_run(workspace / "walk")
    call(monkeypatch, "runs", "--workspace", workspace)
    assert "sweeps" not in capsys.readouterr().out
    for name in ("rates", "begun"):
        (workspace / "sweeps" / name).mkdir(parents=True)
    (workspace / "sweeps" / "rates" / "trials.json").write_text("{}")
    call(monkeypatch, "runs", "--workspace", workspace)
    assert "sweeps: rates; submit_sweep.py status NAME shows their trials" in capsys.readouterr().out


def test_a_line_that_a_kill_has_cut_is_no_damage(workspace):
    run = write_run(workspace / "walk")
    write_metrics(run, default_lines(), '{"step": 5000, "eval/re')
    row = ledger.summarise(run)
    assert (row.problems, row.num_steps) == ((), 4000)


def test_curves_of_what_learns_offline(workspace, monkeypatch, capsys):
    lines = [{"step": 50 * i, "train/loss": 1.0 / i, "time/updates_per_second": 6.0} for i in (1, 2)]
    write_run(workspace / "dt", lines=lines)
    (workspace / "dt" / "config.yaml").write_text(yaml.safe_dump({"num_updates": 100, "model": {"kind": "dt"}}))
    groups = plots.group_by_seed([plots.read_curves(workspace / "dt")])
    panels = plots.make_panels(groups)
    assert [panel.title for panel in panels] == ["Loss on held-out episodes (faint: while training)", "Throughput"]
    assert [axes.get_xlabel() for axes in plots.draw(groups, panels).axes] == ["updates"] * 2
    write_run(workspace / "odd", lines=[{"step": 1, "train/std": 0.5}])
    with pytest.raises(
        UserError, match="curves: none of the usual metrics was logged; name some with --metric, such as train/std"
    ):
        plots.make_panels(plots.group_by_seed([plots.read_curves(workspace / "odd")]))


def test_where_steps_go_back_the_later_attempt_counts(workspace):
    first = [{"step": 1000 * i, "eval/return": 999.0} for i in (1, 2, 3)]
    again = [{"step": 1000 * i, "eval/return": float(i)} for i in (1, 2)]
    row = ledger.summarise(write_run(workspace / "walk", lines=first + again, how="running"))
    assert (row.num_steps, row.best_return) == (2000, 2.0)


def test_returns_that_are_no_numbers_do_not_become_the_best(workspace):
    lines = [
        {"step": 1, "eval/return": 3.0},
        {"step": 2, "eval/return": math.nan},
        {"step": 3, "eval/return": math.inf},
    ]
    row = ledger.summarise(write_run(workspace / "walk", lines=lines, how="running"))
    assert (row.best_return, row.last_return, row.num_steps) == (3.0, 3.0, 3)


@pytest.mark.parametrize("columns", [80, 140])
def test_the_table_fits_its_terminal(workspace, monkeypatch, capsys, columns):
    write_run(workspace / "humanoid_walk_forward_at_night_7")
    write_run(workspace / "fell", how="failed: Failed('[bold]the physics diverged[/]')")
    monkeypatch.setenv("COLUMNS", str(columns))
    call(monkeypatch, "runs", "--workspace", workspace)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= columns
    for text in ("4k/4k", "80", "100", "400", "finished", "failed", "humanoid walk_forward", "ppo", " s "):
        assert text in printed
    assert "fell: failed: Failed('[bold]the physics diverged[/]')" in printed


def test_an_empty_workspace(workspace, monkeypatch, capsys):
    workspace.mkdir()
    assert table_of(workspace, monkeypatch, capsys) == {}
    call(monkeypatch, "runs", "--workspace", workspace)
    assert "has no runs" in capsys.readouterr().out


# ---- curves


def curves_of(workspace: Path, **runs_and_settings: tuple[int, float]) -> list[plots.Curves]:
    return [
        plots.read_curves(write_run(workspace / name, seed=seed, learning_rate=rate))
        for name, (seed, rate) in runs_and_settings.items()
    ]


def test_runs_that_differ_in_their_seed_are_one_group(workspace):
    curves = curves_of(workspace, slow_s0=(0, 1e-3), fast_0=(0, 1e-2), slow_s1=(1, 1e-3), fast_1=(1, 1e-2), alone_3=(3, 0.1))
    groups = plots.group_by_seed(curves)
    assert [group.label for group in groups] == ["slow (2 seeds)", "fast (2 seeds)", "alone_3"]
    assert [run.name for run in groups[0].members] == ["slow_s0", "slow_s1"]


def test_the_same_seed_twice_is_no_second_seed(workspace):
    curves = curves_of(workspace, old_0=(0, 1e-3), old_1=(1, 1e-3), new_0=(0, 1e-3), new_1=(1, 1e-3))
    assert [group.label for group in plots.group_by_seed(curves)] == ["old (2 seeds)", "new (2 seeds)"]
    twins = curves_of(workspace / "twins", x_0=(0, 1e-3), x_00=(0, 1e-3))
    assert [group.label for group in plots.group_by_seed(twins)] == ["x_0", "x_00"]


@pytest.mark.parametrize(
    ("name", "seed", "stem"),
    [
        ("walk_2", 2, "walk"),
        ("walk-s2", 2, "walk"),
        ("walk_seed02", 2, "walk"),
        ("walk.seed_2", 2, "walk"),
        ("walk_12", 2, "walk_12"),
        ("humanoid_v5", 5, "humanoid_v5"),
        ("2", 2, "2"),
    ],
)
def test_a_names_stem(name, seed, stem):
    assert plots.Curves(name, {"seed": seed}, {}).stem == stem


def test_mean_and_interval_over_seeds():
    # at step 2 the straight lines are at 2, 4 and 9: mean 5; a resample's mean lies between 2 and 9
    ends = [(0.0, 4.0), (0.0, 8.0), (0.0, 18.0)]
    series = [ledger.Series(np.array([0.0, 4.0]), np.array(pair)) for pair in ends]
    series.append(ledger.Series(np.array([0.0, 2.0, 6.0]), np.array([0.0, 5.0, 5.0])))
    steps, mean, low, high = plots.mean_and_interval(series)
    np.testing.assert_array_equal(steps, [0, 2, 4])  # as far as all have come
    np.testing.assert_allclose(mean, [0, 5, (4 + 8 + 18 + 5) / 4])
    assert low[0] == high[0] == 0  # all the same
    assert 2 < low[1] < 5 < high[1] < 9
    # normal approximation: 1.96 * standard deviation (of n) / sqrt(n)
    half = 1.96 * np.std([2, 4, 9, 5]) / 2
    assert high[1] - low[1] == pytest.approx(2 * half, rel=0.15)
    again = plots.mean_and_interval(series)
    np.testing.assert_array_equal(low, again[2])


def test_one_run_has_no_spread():
    steps, mean, low, high = plots.mean_and_interval([ledger.Series(np.array([1.0, 2.0]), np.array([3.0, 4.0]))])
    np.testing.assert_allclose([mean, low, high], [[3, 4]] * 3)
    np.testing.assert_array_equal(steps, [1, 2])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (950, "950"),
        (20480, "20.5k"),
        (999_600, "1M"),
        (4e6, "4M"),
        (-2500, "-2.5k"),
        (0.25, "0.25"),
        (1e-17, "0"),
    ],
)
def test_short_numbers(value, text):
    assert words.short(value) == text


def is_blank(path: Path) -> bool:
    """Whether a picture has hardly any coloured pixel, axes and text being grey."""
    pixels = np.asarray(Image.open(path).convert("RGB"), int)
    return bool(np.mean(np.ptp(pixels, axis=2) > 60) < 1e-3)


def test_the_usual_panels_of_two_groups(workspace, monkeypatch, capsys, tmp_path):
    curves_of(workspace, slow_s0=(0, 1e-3), slow_s1=(1, 1e-3), fast=(0, 1e-2))
    out = tmp_path / "curves.png"
    call(
        monkeypatch,
        "curves",
        "slow_s0",
        "slow_s1",
        workspace / "fast",
        "slow_s0",
        "--workspace",
        workspace,
        "--out",
        out,
    )
    assert f"wrote {out}" in capsys.readouterr().out
    assert not is_blank(out)
    groups = plots.group_by_seed([plots.read_curves(workspace / name) for name in ("slow_s0", "slow_s1", "fast")])
    panels = plots.make_panels(groups)
    titles = [panel.title for panel in panels]
    assert titles[2:4] == ["Reward terms of slow (2 seeds)", "Reward terms of fast"]
    assert [panel.unit for panel in panels] == [
        "return per episode",
        "m/s",
        "weighted reward per step",
        "weighted reward per step",
        "steps/s",
    ]
    assert [(line.label, line.faint) for line in panels[0].lines] == [
        ("slow (2 seeds)", True),
        ("fast", True),
        ("slow (2 seeds)", False),
        ("fast", False),
    ]
    assert [line.label for line in panels[2].lines] == ["alive", "gait"]
    axes = plots.draw(groups, panels).axes[0]
    slow = next(line for line in axes.lines if line.get_label() == "slow (2 seeds)" and line.get_marker() == "o")
    np.testing.assert_allclose(slow.get_xydata(), [[2000, 105], [4000, 85]])  # means of 100 and 110, of 80 and 90
    assert len(axes.collections) == 1  # only two seeds have an interval
    assert axes.xaxis.get_major_formatter()(4000, 0) == "4k"


def test_a_seed_that_is_behind_hides_nothing(workspace):
    ahead, behind = curves_of(workspace, walk_0=(0, 1e-3), walk_1=(1, 1e-3))
    only = {"eval/return": ledger.Series(np.array([1000.0]), np.array([50.0]))}
    behind = plots.Curves(behind.name, behind.settings, only)  # its only point lies before the other's first
    groups = plots.group_by_seed([ahead, behind])
    axes = plots.draw(groups, plots.make_panels(groups, ["eval/return"])).axes[0]
    drawn = np.concatenate([line.get_xydata() for line in axes.lines])
    assert {(1000, 50), (2000, 100), (4000, 80)} <= {(x, y) for x, y in drawn}


def test_many_points_are_averaged_not_dropped():
    series = ledger.Series(np.arange(1000.0), np.arange(1000.0) % 2)
    thin = plots._thin(series)
    assert len(thin.steps) <= plots.MAX_POINTS
    assert abs(thin.values.mean() - 0.5) < 0.06


def test_a_run_of_several_skills_shows_their_success_instead_of_a_hundred_reward_terms(workspace):
    lines = [
        {"step": step, "eval/return": 1.0, "eval/success": 0.5, "eval/success/walk": 1.0, "eval/success/turn": step / 2000}
        | {f"reward/{skill}/{term}": 1.0 for skill in ("walk", "turn") for term in ("alive", "gait")}
        for step in (1000, 2000)
    ]
    run = plots.read_curves(write_run(workspace / "mixed", lines=lines))
    panels = plots.make_panels(plots.group_by_seed([run]))
    assert [panel.title for panel in panels][1:] == ["Success by skill in evaluations"]
    assert [line.label for line in panels[1].lines] == ["walk", "turn"]
    assert list(panels[1].lines[1].series[0].values) == [0.5, 1.0]


def test_one_of_one_is_no_certainty():
    low, high = statistics.share_interval(1, 1)
    assert (round(low, 3), high) == (0.207, 1.0)  # Wilson's, as published: 1 / (1 + 1.96^2)
    low, high = statistics.share_interval(81, 263)  # Newcombe 1998, table I
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert statistics.share_interval(0, 3)[0] == 0


def test_chosen_metrics(workspace, monkeypatch, tmp_path):
    curves_of(workspace, walk=(0, 1e-3))
    out = tmp_path / "some.svg"
    chosen = ("reward/gait", "rollout/return")
    call(monkeypatch, "curves", "walk", "--workspace", workspace, "--out", out, "--metric", *chosen)
    assert out.read_text().startswith("<?xml")
    panels = plots.make_panels(plots.group_by_seed([plots.read_curves(workspace / "walk")]), chosen)
    assert [panel.title for panel in panels] == list(chosen)
    with pytest.raises(UserError, match=r"no run has logged it; did you mean 'reward/gait'\?"):
        call(monkeypatch, "curves", "walk", "--workspace", workspace, "--out", out, "--metric", "reward/gate")


def test_a_run_that_has_logged_nothing_is_left_out(workspace, monkeypatch, capsys, tmp_path):
    write_run(workspace / "new", lines=[])
    write_run(workspace / "old")
    metric = ("--metric", "eval/return")
    call(monkeypatch, "curves", "new", "old", "--workspace", workspace, "--out", tmp_path / "c.png", *metric)
    assert capsys.readouterr().err == "new: has logged nothing yet; left out\n"
    with pytest.raises(UserError, match="none of these runs has logged anything yet"):
        call(monkeypatch, "curves", "new", "--workspace", workspace, "--out", tmp_path / "c.png")


# ---- lineage


@pytest.fixture
def family(in_tmp: Path) -> Path:
    """walk -> dataset -> dt: each made from the best snapshot of the one before; walk again a parent of dt."""
    workspace = Path("workspace")
    walk = write_snapshot(write_run(workspace / "walk"))
    hashes = {str(walk): snapshots.content_hash(walk)}
    middle = write_snapshot(write_run(workspace / "middle", parents=hashes))
    write_snapshot(write_run(workspace / "dt", parents={str(middle): snapshots.content_hash(middle)} | hashes))
    return workspace


def test_a_run_that_begins_anew_has_the_parents_that_it_begins_with(workspace, monkeypatch):
    monkeypatch.setattr(provenance, "_gpus", dict)
    parent = workspace / "parent"
    for content in ("one", "two"):  # the first attempt saved nothing, and its parent has changed since
        own = {"name": content, "parents": {}, "ancestry": {}}
        snapshots.write(parent / "best", {"lineage.json": json.dumps(own).encode()})
        run = runs.Run(workspace / "child", Settings())
        run.add_parent("parent", parent / "best")
        with run:
            pass
    kept = json.loads((workspace / "child" / "lineage.json").read_bytes())
    assert kept["parents"] == run.parents
    assert [lineage["name"] for lineage in kept["ancestry"].values()] == ["two"]
    assert len(kept["attempts"]) == 2


def test_ancestors_that_are_gone_are_told_by_what_their_children_kept(workspace, monkeypatch, capsys):
    class TinySettings(Settings):
        num_steps: int = 20

    monkeypatch.setattr(provenance, "_gpus", dict)
    parent = None
    for name in ("walk", "skills", "refined"):
        monkeypatch.setattr(sys, "argv", ["train.py", "--name", name])
        run = runs.Run(workspace / name, TinySettings())
        if parent is not None:
            run.add_parent(str(parent), parent)
        with run:
            run.write_snapshot(run.best, {"snapshot.json": b'{"num_steps": 5}'})
        parent = run.best
    shutil.copytree(workspace / "refined" / "best", workspace.parent / "shipped")
    shutil.rmtree(workspace / "walk")
    shutil.copytree(workspace / "refined", workspace / "walk")  # another run has taken its name
    walk = lineage.trace(workspace.parent / "shipped").parents[0].parents[0]
    assert (walk.mark, walk.lineage.name, walk.repeated, walk.num_steps) == ("changed", "walk", False, None)
    shutil.rmtree(workspace)
    call(monkeypatch, "lineage", str(workspace.parent / "shipped"))
    printed = capsys.readouterr().out
    assert printed.count("missing") == 2
    for name in ("walk", "skills", "refined"):
        assert f"train.py --name {name}\n" in printed
    root = lineage.trace(workspace.parent / "shipped")
    assert [one.path for one in root.parents[0].parents] == [str(workspace / "walk" / "best")]


def test_the_tree_of_ancestors(family, monkeypatch, capsys):
    call(monkeypatch, "lineage", "dt", "--json")
    root = json.loads(capsys.readouterr().out)
    assert (root["path"], root["snapshot"], root["mark"], root["num_steps"]) == (
        "workspace/dt",
        "workspace/dt/best",
        "intact",
        2000,
    )
    attempt = root["lineage"]["attempts"][0]
    assert (attempt["command"], attempt["how"], attempt["git_commit"][:4]) == ("train.py --name dt", "finished", "0123")
    middle, again = root["parents"]
    assert (middle["path"], middle["mark"], middle["state"]) == ("workspace/middle/best", "intact", "finished")
    assert middle["content_hash"] == middle["recorded_hash"] == snapshots.content_hash(family / "middle" / "best")
    assert [parent["path"] for parent in middle["parents"]] == ["workspace/walk/best"]
    assert (again["path"], again["repeated"], again["mark"]) == ("workspace/walk/best", True, "intact")
    call(monkeypatch, "lineage", "dt")
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    walk = snapshots.content_hash(family / "walk" / "best")
    for text in (
        "dt workspace/dt best ",
        f"workspace/walk/best {walk[:12]} intact",
        "train.py --name middle",
        "2026-11-20 10:00 UTC (12 min), code 0123456789",
    ):
        assert text in printed
    assert "from step 0 to 4,000, finished" in printed
    assert printed.count("train.py --name walk") == 1
    assert "stands above already" in printed


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def marks(run: Path) -> dict[str, str | None]:
    """Each ancestor's mark by its path."""
    found: dict[str, str | None] = {}

    def walk(ancestor: lineage.Ancestor) -> None:
        found[ancestor.path] = ancestor.mark
        for parent in ancestor.parents:
            walk(parent)

    walk(lineage.trace(run))
    return found


def test_a_damaged_byte_is_seen(family):
    flip(family / "walk" / "best" / "policy.safetensors")
    assert marks(family / "dt") == {
        "workspace/dt": "intact",
        "workspace/middle/best": "intact",
        "workspace/walk/best": "damaged",
    }
    problem = lineage.trace(family / "walk").problem
    assert problem is not None
    assert "policy.safetensors: is damaged" in problem


def test_a_damaged_lineage_is_a_damaged_snapshot(family, monkeypatch, capsys):
    shutil.copytree(family / "middle" / "best", "elsewhere")
    flip(Path("elsewhere/lineage.json"))
    assert lineage.trace(Path("elsewhere")).mark == "damaged"
    Path("elsewhere/lineage.json").write_text("{")
    call(monkeypatch, "lineage", "elsewhere")
    assert "damaged" in capsys.readouterr().out


def test_a_manifest_that_is_damaged_or_gone(family):
    (family / "walk" / "best" / "manifest.json").write_text("{")
    (family / "middle" / "best" / "manifest.json").unlink()
    found = marks(family / "dt")
    assert (found["workspace/walk/best"], found["workspace/middle/best"]) == ("damaged", "damaged")


def test_a_deleted_parent_is_missing(family):
    shutil.rmtree(family / "middle")
    assert marks(family / "dt") == {
        "workspace/dt": "intact",
        "workspace/middle/best": "missing",
        "workspace/walk/best": "intact",
    }


def test_another_snapshot_in_the_same_place_is_changed(family, monkeypatch, capsys):
    recorded = snapshots.content_hash(family / "walk" / "best")
    write_snapshot(family / "walk", weights=b"other weights")
    assert marks(family / "dt")["workspace/walk/best"] == "changed"
    call(monkeypatch, "lineage", "dt")
    assert f"changed, was {recorded[:12]}" in " ".join(capsys.readouterr().out.split())


def test_a_parent_that_is_replaced_while_it_is_read_is_noticed(family: Path, in_tmp):
    run = runs.Run(in_tmp / "child", Settings())
    parent = family / "walk" / "best"
    run.add_parent("workspace/walk/best", parent)
    run.confirm_parents()
    snapshots.write(parent, {"policy.safetensors": b"newer", "lineage.json": b"{}"})
    with pytest.raises(runs.Failed, match="workspace/walk/best: was replaced while it was read; --resume begins anew"):
        run.confirm_parents()
    shutil.rmtree(parent)
    with pytest.raises(runs.Failed, match="was replaced while it was read"):
        run.confirm_parents()


def test_a_file_can_be_a_parent(in_tmp):
    Path("prompts.txt").write_text("walk forward")
    run = write_run(Path("workspace/lm"), parents={"prompts.txt": snapshots.file_hash(Path("prompts.txt"))})
    assert marks(run)["prompts.txt"] == "intact"
    Path("prompts.txt").write_text("walk backward")
    assert marks(run)["prompts.txt"] == "changed"


def test_a_snapshot_copied_elsewhere_knows_where_it_comes_from(family, monkeypatch, capsys, tmp_path):
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(family / "middle" / "best", copy)
    ancestor = lineage.trace(copy)
    assert ancestor.lineage is not None
    assert (ancestor.lineage.name, ancestor.mark, ancestor.num_steps, ancestor.state) == (
        "middle",
        "intact",
        2000,
        None,
    )
    assert [parent.mark for parent in ancestor.parents] == ["intact"]
    call(monkeypatch, "lineage", copy)
    assert "end not known" in capsys.readouterr().out  # the copy was written before its run ended


def test_a_snapshot_without_a_lineage_of_its_own_takes_its_runs(family):
    run = family / "walk"
    snapshots.write(run / "latest", {"policy.safetensors": b""})
    write_snapshot(run, "snapshots/2000")
    for name in ("latest", "best", "snapshots/2000"):
        ancestor = lineage.trace(run / name)
        assert ancestor.lineage is not None
        assert (ancestor.lineage.name, ancestor.state) == ("walk", "finished")


def test_a_run_before_its_first_snapshot(in_tmp, monkeypatch, capsys):
    write_run(Path("workspace/new"), how="running")
    call(monkeypatch, "lineage", "new")
    printed = capsys.readouterr().out
    assert "no snapshot yet" in printed
    assert "from step 0, killed" in printed


def test_parents_are_found_from_another_folder(family, monkeypatch, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    assert set(marks(tmp_path / "workspace" / "dt").values()) == {"intact"}


def test_a_circle_of_parents_ends(in_tmp, monkeypatch, capsys):
    for name, parent in (("a", "b"), ("b", "a")):
        write_snapshot(write_run(Path("workspace") / name, parents={f"workspace/{parent}/best": "0" * 64}))
    call(monkeypatch, "lineage", "workspace/a/best", "--json")
    root = json.loads(capsys.readouterr().out)
    assert root["parents"][0]["parents"][0]["repeated"]
    assert root["parents"][0]["parents"][0]["parents"] == []


def test_of_many_attempts_the_first_and_the_last_are_told(in_tmp, monkeypatch, capsys):
    run = write_run(Path("workspace/walk"))
    lineage = json.loads((run / "lineage.json").read_bytes())
    lineage["attempts"] = [lineage["attempts"][0] | {"from_step": i} for i in range(50)]
    (run / "lineage.json").write_text(json.dumps(lineage))
    call(monkeypatch, "lineage", "walk")
    printed = capsys.readouterr().out
    assert "... 48 more attempts ..." in printed
    assert "from step 49" in printed
    assert len(printed.splitlines()) < 10


# ---- datasets


def test_a_datasets_groups_come_in_its_own_order(tmp_path: Path) -> None:
    """Skills in that of the world, and for each the policies in that of dataset.yaml: not of their names, nor of chance."""
    policies, phrases = ["zebra", "ant", "mole", "cat", "owl", "bee"], [("walk", "walk"), ("run", "run")]
    rows = [{"skill": skill, "goal": skill, "policy": policy} for policy in (3, 0, 5, 4, 1, 2) for skill in (1, 0)]
    dataset = write_toy(tmp_path / "toy", [1.0] * 12, toy_info(phrases=phrases, policies=policies), rows=rows)
    groups = [(group.skill, group.policy) for group in dataset_report.groups_of(dataset)]
    assert groups == [(skill, policy) for skill in ("walk", "run") for policy in policies]


def test_of_episodes_that_the_collection_cut_nothing_is_said(tmp_path: Path) -> None:
    rows = [{"terminated": True}, {"terminated": False, "cut": True}, {"terminated": False, "cut": True}]
    (group,) = dataset_report.groups_of(write_toy(tmp_path / "toy", [1.0] * 3, rows=rows))
    assert group.fallen == 1.0
    (group,) = dataset_report.groups_of(write_toy(tmp_path / "all_cut", [1.0] * 2, rows=rows[1:]))
    assert group.fallen is None
    assert group.success is None


def test_a_datasets_contact_sheet_has_a_row_of_frames_for_each_skill(tmp_path: Path, monkeypatch, capsys) -> None:
    """Of bodies that stand at two heights; frames are 180 pixels wide and high, and eight side by side."""
    skills = ("stand_still", "walk_forward")
    world = MotorSettings(task="mixed", skills=dict.fromkeys(skills, 1.0), goal=["one_hot"])
    state = [0.0, 0.0, 0.0, 1.4, 1.0, *[0.0] * 43]  # time, positions (24 of them, a quaternion among them), velocities
    info = toy_info(
        world.model_dump(mode="json"), "humanoid", phrases=[(skill, skill) for skill in skills], seconds_per_step=0.015
    )
    info = info.model_copy(update={"state_size": len(state)})
    rows = [{"skill": i, "goal": i} for i in range(2)]
    dataset = write_toy(tmp_path / "toy", [1.0, 2.0], info, length=100, rows=rows, state=state)
    call(monkeypatch, "dataset", dataset.folder)
    told = capsys.readouterr()
    assert "200 steps in 2 episodes" in told.out
    if "no frames: no OpenGL" in told.err:
        pytest.skip("this machine cannot draw")
    sheet = np.asarray(Image.open(dataset.folder / "episodes.png"))
    assert sheet.shape[:2] == (2 * 180, 8 * 180)
    frames = sheet.reshape(2, 180, 8, 180, -1).swapaxes(1, 2)[..., :3]
    assert (frames.std(axis=(2, 3)).max(axis=-1) > 5).all()  # none of them is empty
    assert Image.open(dataset.folder / "returns.png").size[0] > 300


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["curves", "wlak"], "wlak: no such run or folder; did you mean 'walk'?"),
        (["lineage", "workspace/wlak/best"], "did you mean 'workspace/walk/best'?"),
        (["lineage", "xyz"], "xyz: no such run or folder; workspace has walk"),
        (["lineage", "nothing"], "nothing: is neither a run (no lineage.json) nor a snapshot (no manifest.json)"),
        (["curves", "workspace/walk/best"], "workspace/walk/best: is a snapshot, which has no curves; name its run"),
        (["curves", "walk", "--out", "c.jpeg"], "--out c.jpeg: expected the name of a .png, .svg or .pdf file"),
        (["curves", "walk", "--out", "no/c.png"], "--out no/c.png: there is no folder no to write it to"),
        (["runs", "--workspace", "none"], "none: no such folder"),
        (["lineage", "walk", "--workspace", "none"], "walk: no such run or folder; none has no runs"),
        (["table"], "argument runs|curves|dataset|lineage: invalid choice: 'table'"),
        ([], "the following arguments are required"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_write(in_tmp, monkeypatch, arguments, message):
    write_snapshot(write_run(Path("workspace/walk")))
    Path("nothing").mkdir()
    with pytest.raises(UserError) as error:
        call(monkeypatch, *arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def run_script(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "80"}
    command = [sys.executable, "-W", "error", str(ROOT / "report.py"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_script_ends_with_2_and_one_line_on_a_mistake(in_tmp):
    write_run(Path("workspace/walk"))
    done = run_script("curves", "wlak", folder=in_tmp)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "wlak: no such run or folder; did you mean 'walk'?\n"


def test_the_table_needs_neither_torch_nor_matplotlib(in_tmp):
    write_run(Path("workspace/walk"))
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['report.py', 'runs']; "
        "import report; report.main(); "
        "print(sorted({'torch', 'matplotlib', 'mujoco', 'gymnasium'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "walk" in done.stdout


def test_an_ancestor_of_two_parents_is_kept_once(tmp_path: Path) -> None:
    """Lineages of before, which tell parents within parents, are read too."""
    attempt = {"start": "2026-01-01T00:00:00+00:00", "command": "c", "how": "finished"}

    def told(name: str, parents: dict[str, str], ancestry: dict[str, object]) -> dict[str, object]:
        return {"name": name, "seed": 0, "parents": parents, "ancestry": ancestry, "attempts": [attempt]}

    root = told("root", {}, {})
    left, right = (told(name, {"r": "hash of root"}, {"r": root}) for name in ("left", "right"))
    child = told("child", {"a": "hash of left", "b": "hash of right"}, {"a": left, "b": right})
    flat = provenance.flat_ancestry(child)
    assert {key: value["name"] for key, value in flat.items()} == {
        "hash of root": "root",
        "hash of left": "left",
        "hash of right": "right",
    }
    assert all(value["ancestry"] == {} for value in flat.values())
    assert provenance.flat_ancestry({**child, "ancestry": flat}) == flat
    (tmp_path / "child").mkdir()
    (tmp_path / "child" / "lineage.json").write_text(json.dumps(child))
    tree = lineage.trace(tmp_path / "child")
    assert [parent.lineage.name for parent in tree.parents if parent.lineage] == ["left", "right"]
    assert tree.parents[0].parents[0].lineage == tree.parents[1].parents[0].lineage
