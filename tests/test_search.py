"""Which points of a sweep are gone on with, and where a search looks next."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from tiny_sweep import TINY, submit, trials_of, written

from flexrl.config import UserError
from flexrl.early_stopping import StopSettings, given_up, reached
from flexrl.rungs import Judge, Rungs
from flexrl.search import Search
from flexrl.sweep_ledger import Attempt, Ledger, Status
from flexrl.sweep_plan import make_plan
from flexrl.sweep_settings import Distribution, SearchSettings, load_sweep
from flexrl.sweeps import rehearse


def curve(level: float, end: int = 900) -> list[tuple[float, float]]:
    return [(step, level * step) for step in range(100, end + 1, 100)]


def lost(settings: StopSettings, curves: dict[str, list[list[tuple[float, float]]]], maximize: bool = True) -> set[str]:
    """The points that are given up, by the curves of each point's seeds."""
    scores: dict[int, dict[str, list[float]]] = {}
    for name, seeds in curves.items():
        for each in seeds:
            for rung, value in reached(settings, each).items():
                scores.setdefault(rung, {}).setdefault(name, []).append(value)
    return given_up(settings, scores, maximize)


def test_a_point_is_given_up_only_where_its_interval_is_below() -> None:
    clear = {"good": [curve(1.0), curve(1.01), curve(1.02)], "bad": [curve(0.1), curve(0.11), curve(0.12)]}
    asha = StopSettings(min_steps=300, factor=3)
    assert lost(asha, clear) == {"bad"}
    assert lost(asha, clear, maximize=False) == {"good"}
    unsure = {"good": clear["good"], "bad": [curve(0.1), curve(0.5), curve(1.5)]}  # its interval reaches over the other
    assert lost(asha, unsure) == set()
    one_seed = {"good": clear["good"], "bad": [curve(0.1)]}
    assert lost(asha, one_seed) == set()
    early = {name: [c[:2] for c in seeds] for name, seeds in clear.items()}  # nobody has reached the first rung
    assert lost(asha, early) == set()
    alone = StopSettings(min_steps=300, factor=2, over_seeds=False)
    assert lost(alone, {str(i): [curve(i)] for i in range(1, 7)}) == {"1", "2", "3"}
    median = StopSettings(rule="median", min_steps=300, over_seeds=False)
    assert lost(median, {str(i): [curve(i)] for i in range(1, 6)}) == {"1", "2"}


def test_trials_see_for_themselves_that_they_are_given_up(tmp_path: Path) -> None:
    """By small files in the sweep's folder: those that run, those that have not begun, those that a kill has cut."""
    points = {"a0": "a", "a1": "a", "b0": "b", "b1": "b"}
    told = Rungs(tmp_path, StopSettings(min_steps=300), "eval/return", True, points).document()
    judges = {key: Judge(Rungs.read(tmp_path, json.loads(json.dumps(told))), key, 1000) for key in points}
    for key in points:
        (tmp_path / "trials" / key).mkdir(parents=True)

    def write(key: str, level: float, end: int) -> None:
        lines = [json.dumps({"step": step, "eval/return": value}) for step, value in curve(level, end)]
        (tmp_path / "trials" / key / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 990, "eval/ret']))

    write("a0", 1.0, 900)
    write("a1", 1.01, 200)
    write("b0", 0.1, 300)
    assert not any(judge.is_given_up() for judge in judges.values())
    assert sorted(path.name for path in (tmp_path / "rungs" / "eval%2Freturn" / "300").iterdir()) == ["a0", "b0"]
    write("a1", 1.01, 100)  # it was cut, and goes on from before
    assert not judges["a1"].is_given_up()
    write("a1", 1.01, 400)
    write("b1", 0.12, 300)
    judges["a1"].is_given_up()
    judges["b1"].is_given_up()
    assert {key for key, judge in judges.items() if judge.is_given_up()} == {"b0", "b1"}
    write("b1", 0.12, 400)  # a trial that is over is given up no more
    assert not Judge(Rungs.read(tmp_path, told), "b1", 400).is_given_up()
    patient = Rungs(tmp_path, StopSettings(min_steps=350), "eval/return", True, points)  # another rule has rungs of its own
    assert not patient.look()
    (tmp_path / "rungs" / "eval%2Freturn" / "300" / "b0").write_text("")
    assert not Judge(Rungs.read(tmp_path, told), "b1", 1000).is_given_up()  # a damaged one costs a look, not the trial
    stranger = Rungs.read(tmp_path, told | {"points": {"c0": "c", "c1": "c"}})  # other trials of the same folder
    assert not stranger.look()


def test_a_sweep_gives_up_what_falls_behind(tmp_path: Path) -> None:
    """Judged by a metric that is known beforehand: the learning rate. The better rate comes first and is whole."""
    changes = {"set": {**TINY["set"], "num_steps": 20_000, "save_every": 30}, "grid": {"learner.learning_rate": [1e-3, 1e-4]}}
    path = written(tmp_path, **changes, metric="train/learning_rate", stop={"min_steps": 1000, "over_seeds": False})
    done = submit(path, tmp_path / "workspace")
    assert done.returncode == 0, done.stdout + done.stderr
    ledger = Ledger(tmp_path / "workspace" / "sweeps" / "tiny")
    for entry in ledger.entries().values():
        status, step = ledger.status(entry.id), ledger.step_of(entry.id)
        if entry.point["learner.learning_rate"] == 1e-3:
            assert (status.state, step) == ("done", 20_224)
        else:
            assert status.state == "given up"
            assert 1000 <= step < 20_000
            assert status.attempts[-1].how == "given up: others of the sweep do better"
    again = submit(path, tmp_path / "workspace")
    assert "= 4 done" in again.stdout
    whole = submit(written(tmp_path, **changes, metric="train/learning_rate"), tmp_path / "workspace")  # without the rule
    assert whole.returncode == 0, whole.stderr
    assert "2 done" in whole.stdout
    assert {ledger.status(key).state for key in ledger.entries()} == {"done"}
    assert {ledger.step_of(key) for key in ledger.entries()} == {20_224}


@pytest.mark.parametrize(
    ("every", "min_steps", "fits"), [(None, 100, False), (700, 100, True), (1900, 600, False), (100, 2000, False)]
)
def test_a_rule_that_could_never_give_a_trial_up_is_refused(
    every: int | None, min_steps: int, fits: bool, tmp_path: Path
) -> None:
    """2,000 steps: an evaluation must come before a rung does (x 3 each), and the rung before the end."""
    changed = {**TINY["set"], "evaluation": {"every": every, "episodes": 1}}
    path = written(tmp_path, set=changed, stop={"min_steps": min_steps})
    if fits:
        rehearse(load_sweep(path), trials_of(path), path)
        return
    with pytest.raises(UserError, match=r"stop: no trial has eval/return at a rung before its end \(2,000 at most"):
        rehearse(load_sweep(path), trials_of(path), path)


def test_another_judge_takes_nobody_s_word(tmp_path: Path) -> None:
    """What was given up by one metric is run again where another decides, or less of it is better."""
    stop = {"min_steps": 100}
    path = written(tmp_path, stop=stop)
    trials, ledger = trials_of(path), Ledger(tmp_path / "sweeps" / "tiny")
    ledger.submit(load_sweep(path), trials, None)
    for each in trials:
        ledger.set_status(each.id, Status("given up", [Attempt(start="2026-01-01T00:00:00Z", end="2026-01-01T00:01:00Z")]))

    def kinds(**changes: Any) -> set[str]:
        sweep = load_sweep(written(tmp_path, **changes))
        return {row.kind for row in make_plan(sweep, trials, ledger, tmp_path).rows}

    assert kinds(stop=stop) == {"done"}
    assert kinds(stop={**stop, "metric": "eval/return"}) == {"failed"}  # another rule, if by the same metric
    assert kinds(stop=stop, metric="eval/success") == {"failed"}
    assert kinds(stop=stop, maximize=False) == {"failed"}
    judged = written(tmp_path, stop={**stop, "metric": "eval/success"})
    ledger.submit(load_sweep(judged), trials, None)
    assert kinds(stop={**stop, "metric": "eval/success"}, metric="eval/length") == {"done"}  # what the report compares


def test_a_search_goes_where_it_is_better_and_goes_on_alike(tmp_path: Path) -> None:
    axes = {"x": Distribution(uniform=(-4.0, 4.0)), "kind": Distribution(choice=[[1], [2, 3]])}
    settings = SearchSettings(n=24, at_a_time=3, axes=axes)

    def run(folder: Path, rounds_at_once: int) -> list[dict[str, Any]]:
        """A search that is opened anew every so many rounds."""
        while True:
            search = Search(settings, folder, maximize=True)
            for _ in range(rounds_at_once):
                points = search.points()
                if search.is_over:
                    return points
                search.tell({i: -((p["x"] - 1.0) ** 2) - len(p["kind"]) for i, p in enumerate(points) if i != 4})

    whole, stopped = run(tmp_path / "whole", 100), run(tmp_path / "stopped", 1)
    assert whole == stopped
    assert len(whole) == 24
    early, late = ([abs(p["x"] - 1.0) for p in part] for part in (whole[:10], whole[14:]))
    assert sum(late) / len(late) < 0.7 * sum(early) / len(early)
    with pytest.raises(UserError, match="its search has other axes; give the sweep another name"):
        Search(SearchSettings(n=24, axes={"x": Distribution(uniform=(-1.0, 1.0))}), tmp_path / "whole", maximize=True)


def test_a_point_that_failed_and_is_run_again_is_told(tmp_path: Path) -> None:
    settings = SearchSettings(n=6, at_a_time=3, axes={"x": Distribution(uniform=(0.0, 1.0))})
    search = Search(settings, tmp_path, maximize=True)
    first = search.points()
    search.tell({0: 0.1, 1: 0.2})
    second = search.points()
    assert second[:3] == first
    search.tell({0: 0.1, 1: 0.2, 2: 0.9, 3: 0.3, 4: 0.4, 5: 0.5})
    search.tell({0: 0.1, 1: 0.2, 2: 0.9, 3: 0.3, 4: 0.4, 5: 0.5})  # by a search that goes on
    assert search.is_over
    assert search.points() == second
    told = [(trial.params["x"], trial.value) for trial in search._study.get_trials() if trial.value is not None]
    assert sorted(value for _, value in told) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.9]
    assert (first[2]["x"], 0.9) in told


def test_points_of_a_round_keep_away_from_each_other(tmp_path: Path) -> None:
    """Though nobody knows yet what they come to: each counts as a bad one until it is told."""
    settings = SearchSettings(n=40, at_a_time=20, axes={"x": Distribution(uniform=(0.0, 1.0))})
    search = Search(settings, tmp_path, maximize=True)
    search.tell({i: -abs(point["x"] - 0.5) for i, point in enumerate(search.points())})
    second = [point["x"] for point in search.points()[20:]]
    assert statistics.stdev(second) > 0.1  # without that it is 0.015: all twenty where the best one was


def test_a_plan_of_a_search_that_has_begun_writes_nothing(tmp_path: Path) -> None:
    axes = {"learner.learning_rate": {"log_uniform": [1e-4, 1e-2]}}
    changes = {"grid": None, "seeds": 1, "include": [{"learner.learning_rate": 0.5}]}
    path = written(tmp_path, **changes, search={"n": 6, "at_a_time": 2, "axes": axes})
    sweep, folder = load_sweep(path), tmp_path / "w" / "sweeps" / "tiny"
    Search(sweep.search, folder, maximize=True).points()
    ledger = Ledger(folder)
    ledger.submit(sweep, trials_of(path), None)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    for options in (["--plan"], ["--render", str(tmp_path / "job.yaml")]):
        done = submit(path, tmp_path / "w", *options)
        assert done.returncode == 0, done.stderr
        assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    planned = submit(path, tmp_path / "w", "--plan")
    assert "tiny: 3 trials of train.py:" in planned.stdout  # two points of a round, and the one that was included
    assert len(Search(sweep.search, folder, maximize=True).points()) == 2


def test_a_sweep_searches(tmp_path: Path) -> None:
    axes = {"learner.learning_rate": {"log_uniform": [1e-4, 1e-2]}}
    path = written(tmp_path, grid=None, seeds=1, metric="train/learning_rate", search={"n": 5, "at_a_time": 2, "axes": axes})
    done = submit(path, tmp_path / "workspace")
    assert done.returncode == 0, done.stdout + done.stderr
    ledger = Ledger(tmp_path / "workspace" / "sweeps" / "tiny")
    assert len(ledger.entries()) == 5
    assert all(ledger.status(key).state == "done" for key in ledger.entries())
    again = submit(path, tmp_path / "workspace")
    assert "= 5 done" in again.stdout
    both = submit(written(tmp_path, search={"n": 5, "axes": axes}), tmp_path / "workspace")
    assert both.returncode == 2
    assert "search: chooses all points itself" in both.stderr
