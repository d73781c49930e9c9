"""What trials a sweep comes to, and what each of them is known by."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flexrl import config, snapshots
from flexrl.collection import CollectSettings
from flexrl.collection import rehearse as rehearse_collection
from flexrl.config import Settings, UserError
from flexrl.early_stopping import rungs
from flexrl.offline_settings import TrainDTSettings
from flexrl.offline_training import rehearse as rehearse_offline_training
from flexrl.playing import PlaySettings
from flexrl.playing import rehearse as rehearse_playing
from flexrl.policies import WITHOUT_SNAPSHOT
from flexrl.sweep_settings import RandomSettings, ResourceSettings, SearchSettings, SweepSettings
from flexrl.training import TrainSettings
from flexrl.training import rehearse as rehearse_training
from flexrl.yaml_values import Value, nearest, placed

ROOT = Path(__file__).resolve().parent.parent
MANY = 10_000  # trials that nobody starts by mistake
LEVELS = 10  # numbers of an axis that are tried together with those of another
CHOOSES = (".name", ".kind")  # settings that decide which others there are


@dataclass(frozen=True)
class Verb:
    """A command that a sweep can run, and what of it the sweep must know."""

    model: type[Any]
    rehearse: Callable[[Any, bool], None]
    inputs: Callable[[Any], list[str]]  # folders that its settings name
    length: str  # the setting that says how far it goes
    unit: str  # what that counts


def _inputs_of_training(settings: TrainSettings) -> list[str]:
    return settings.parents


def _inputs_of_collection(settings: CollectSettings) -> list[str]:
    paths = [path for model in settings.models for path in (model.path, *model.others)]
    return [path for path in paths if path not in WITHOUT_SNAPSHOT]


def _inputs_of_offline_training(settings: TrainDTSettings) -> list[str]:
    return [*map(str, settings.datasets), *([settings.init_from] if settings.init_from else [])]


def _inputs_of_playing(settings: PlaySettings) -> list[str]:
    return [settings.model] if settings.model not in WITHOUT_SNAPSHOT else []


VERBS = {
    "train.py": Verb(TrainSettings, rehearse_training, _inputs_of_training, "num_steps", "steps"),
    "collect.py": Verb(CollectSettings, rehearse_collection, _inputs_of_collection, "num_steps", "steps"),
    "train_dt.py": Verb(TrainDTSettings, rehearse_offline_training, _inputs_of_offline_training, "num_updates", "updates"),
    "play.py": Verb(PlaySettings, rehearse_playing, _inputs_of_playing, "num_episodes", "episodes"),
}


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    id: str  # hash of all that decides what comes of it
    label: str  # where it stands on the axes, as people read it, the seed excepted
    seed: int
    point: Mapping[str, Any]  # its values by dotted name, and `name`, if it is one of a list
    settings: Settings
    num_steps: int  # env steps, updates or episodes that it is to come to
    inputs: Mapping[str, str]  # content hash of each folder that it reads
    resources: ResourceSettings = field(default_factory=ResourceSettings)

    @property
    def title(self) -> str:
        """Its label and its seed."""
        return f"{self.label} seed={self.seed}" if self.label else f"seed={self.seed}"


def expand(sweep: SweepSettings, path: Path, *, image: str | None = None, many: bool = False) -> list[Trial]:
    """All trials of the sweep in `path`, each with settings that its verb takes.

    `image`: digest of the image that they run in. UserError in one line, for too many trials too unless `many`.
    """
    check_number(sweep, path, many)
    verb, code = VERBS[sweep.verb], code_digest(sweep.verb)
    _check_names(sweep, path)
    layers = {name: config.read(verb.model, name) for name in {_config_of(sweep, path, point) for point in _points(sweep)}}
    shared = [config.override(key, placed(value, f"{path}: set: {key}")) for key, value in sweep.set.items()]
    names = _short_names(sweep)
    trials: list[Trial] = []
    unused = set(range(len(sweep.exclude)))
    digests: dict[str, str] = {}  # of inputs
    taken: set[int] = set()  # seeds that the verb's settings have been seen to take
    for point in _points(sweep):
        left_out = [i for i, rule in enumerate(sweep.exclude) if all(point.get(key) == value for key, value in rule.items())]
        if left_out:
            unused -= set(left_out)
            continue
        source = _config_of(sweep, path, point)
        experiment = next((e for e in sweep.list if e.name == point.get("name")), None)
        resources = (experiment and experiment.resources) or sweep.resources
        values = {**(experiment.set if experiment else {}), **{key: value for key, value in point.items() if key != "name"}}
        values = dict(sorted(values.items(), key=lambda item: not f".{item[0]}".endswith(CHOOSES)))  # what chooses comes first
        own = [config.override(key, placed(value, f"{path}: {key}={_show(value)}")) for key, value in values.items()]
        settings: Any = None
        for seed in sweep.all_seeds:
            if settings is None or seed not in taken:
                last = config.override("seed", Value(seed, f"{path}: seeds"))
                settings = config.settle(verb.model, [layers[source], *shared, *own, last], str(source or path))
                _check_taken(settings, values, path)
                taken.add(seed)
            else:  # the same but for the seed; to settle each anew is a third of a plan
                settings = settings.model_copy(update={"seed": seed})
            for name in verb.inputs(settings):
                digests[name] = digests.get(name) or input_digest(name)
            inputs = {name: digests[name] for name in verb.inputs(settings)}
            digest = identity(sweep.verb, settings, code, image, inputs)
            length = int(getattr(settings, verb.length))
            trials.append(Trial(digest, _label(point, names), seed, point, settings, length, inputs, resources))
    if unused:
        raise UserError(f"{path}: exclude: no point agrees with {_show(dict(sweep.exclude[min(unused)]))}")
    if not trials:
        raise UserError(f"{path}: comes to no trial; `exclude` leaves none")
    return _distinct(trials, path, sweep, names)


def check_number(sweep: SweepSettings, path: Path, many: bool) -> None:
    """UserError if it comes to more trials than anybody starts by mistake, unless `many` are meant."""
    if sweep.num_points > MANY and not many:
        raise UserError(f"{path}: comes to {sweep.num_points:,} trials; add --yes if that is what you want")


def _config_of(sweep: SweepSettings, path: Path, point: Mapping[str, Any]) -> Path | None:
    name = next((e.config for e in sweep.list if e.name == point.get("name") and e.config), sweep.config)
    return path.parent / name if name else None


def _points(sweep: SweepSettings) -> Iterator[dict[str, Any]]:
    """Where the axes lead, seeds excepted."""
    lists: list[dict[str, Any]] = [{"name": e.name} for e in sweep.list] or [{}]
    zips = [dict(zip(sweep.zip, values, strict=True)) for values in zip(*sweep.zip.values(), strict=True)] or [{}]
    grids = [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]
    at_random = [{}] if sweep.random is None else drawn(sweep.random, sweep.random.n)
    for parts in itertools.product(lists, zips, grids, at_random) if sweep.search is None else ():
        yield {key: value for part in parts for key, value in part.items()}
    yield from sweep.include


def drawn(settings: RandomSettings | SearchSettings, n: int) -> list[dict[str, Any]]:
    """Points at random, the same ones for the same seed."""
    rng = np.random.default_rng(settings.seed)
    return [{key: distribution.draw(rng) for key, distribution in settings.axes.items()} for _ in range(n)]


def _short_names(sweep: SweepSettings) -> dict[str, str]:
    """The last word of each axis, or as many as tell it from the others."""
    keys = dict.fromkeys([*sweep.zip, *sweep.grid, *(sweep.random.axes if sweep.random else {})])
    keys |= dict.fromkeys(key for point in sweep.include for key in point)
    short = {}
    for key in keys:
        parts = key.split(".")
        for n in range(1, len(parts) + 1):
            short[key] = ".".join(parts[-n:])
            if not any(other != key and f".{other}".endswith(f".{short[key]}") for other in keys):
                break
    return short


def _show(value: Any) -> str:
    """A value without spaces, numbers in few digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (dict, list, bool)) or value is None:
        return json.dumps(value, separators=(",", ":")).replace('"', "")
    return str(value)


def _show_exactly(value: Any) -> str:
    """The same, numbers with all their digits."""
    return repr(value) if isinstance(value, float) else _show(value)


def _label(point: Mapping[str, Any], names: Mapping[str, str], exact: bool = False) -> str:
    """A point as people read it; `exact`: numbers with all their digits."""
    shown = {key: _show_exactly(value) if exact else _show(value) for key, value in point.items()}
    return " ".join(text if key == "name" else f"{names[key]}={text}" for key, text in shown.items())


def _distinct(trials: Sequence[Trial], path: Path, sweep: SweepSettings, names: Mapping[str, str]) -> list[Trial]:
    """Each trial once, what was drawn twice left out; labels as long as they must be to differ."""
    is_drawn = sweep.random is not None or sweep.search is not None
    by_id: dict[str, Trial] = {}
    for trial in trials:
        if trial.id in by_id and not is_drawn:
            other = by_id[trial.id].title
            again = "stands there twice" if other == trial.title else f"and '{other}' are the same trial"
            raise UserError(f"{path}: '{trial.title}' {again}; keep one")
        by_id.setdefault(trial.id, trial)
    count = Counter(trial.title for trial in by_id.values())
    distinct = [
        trial if count[trial.title] == 1 else replace(trial, label=_label(trial.point, names, exact=True))
        for trial in by_id.values()
    ]
    twice = next((title for title, number in Counter(trial.title for trial in distinct).items() if number > 1), None)
    if twice is not None:
        raise UserError(f"{path}: two trials would be called '{twice}'; give their axes other values")
    return distinct


def _check_names(sweep: SweepSettings, path: Path) -> None:
    """UserError if `include` or `exclude` speak of what is not there."""
    named = {experiment.name for experiment in sweep.list}
    axes = {*sweep.zip, *sweep.grid, *(sweep.random.axes if sweep.random else {}), *(["name"] if named else [])}
    if "seed" in axes or any("seed" in point for point in sweep.include):
        raise UserError(f"{path}: seed: is no axis; write seeds: [0, 1, 2], or how many")
    for rule in sweep.exclude:
        for key in rule:
            if key not in axes:
                raise UserError(f"{path}: exclude: there is no axis '{key}'{nearest(key, sorted(axes))}")
    for point in (*sweep.include, *sweep.exclude):
        if "name" in point and point["name"] not in named:
            raise UserError(
                f"{path}: nothing in `list` is called '{point['name']}'{nearest(str(point['name']), sorted(named))}"
            )


def _check_taken(settings: Settings, values: Mapping[str, Any], path: Path) -> None:
    """UserError if a value of a point did not come through: another setting has replaced what it was a part of."""
    tree = settings.model_dump(mode="json")
    for key, value in values.items():
        found: Any = tree
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if isinstance(value, (int, float, str)) and found != value:
            raise UserError(
                f"{path}: {key}={_show(value)} is lost, as another setting of the point replaces what it belongs to"
            )


def identity(verb: str, settings: Settings, code: str, image: str | None, inputs: Mapping[str, str]) -> str:
    """Twelve hex digits: the hash of all that decides what a run comes to."""
    document = {
        "verb": verb,
        "settings": settings.model_dump(mode="json"),
        "code": code,
        "image": image,
        "inputs": dict(sorted(inputs.items())),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:12]


def code_digest(verb: str, root: Path = ROOT) -> str:
    """The hash of the verb, of flexrl/ and of the packages that they are pinned to."""
    digest = hashlib.sha256()
    for path in [root / verb, root / "requirements.txt", *sorted((root / "flexrl").rglob("*.py"))]:
        digest.update(f"{path.relative_to(root)}\0{snapshots.file_hash(path)}\n".encode())
    return digest.hexdigest()


def input_digest(path: str) -> str:
    """The content hash of a snapshot or dataset; UserError if it is none."""
    folder = Path(path)
    if not (folder / snapshots.MANIFEST).is_file():
        raise UserError(f"{path}: is no snapshot and no finished dataset; a trial needs it")
    return snapshots.content_hash(folder)


def rehearsals(trials: Sequence[Trial]) -> list[Trial]:
    """Few trials that have every value of every axis, and every two values of different axes that some trial has together.

    Guaranteed is: what cannot be built because of one value, or of two, such as a network of one axis that does not fit
    the snapshot of another, shows in one of them; what takes three values may not. Of an axis with more than `LEVELS`
    numbers, as `random` draws them, not each is tried but `LEVELS` ranges of them, the smallest and the largest by
    themselves. The settings of every trial, of all values together, have been validated before (`expand`).
    """
    by_label: dict[str, Trial] = {}
    for trial in trials:
        by_label.setdefault(trial.label, trial)  # a seed changes nothing
    points = list(by_label.values())
    covered = _covered(points)
    left = set().union(*covered)
    chosen: list[Trial] = []
    # greedily; what a trial adds only shrinks, so it is counted anew only where it comes to the top
    queue = [(-len(parts), place) for place, parts in enumerate(covered)]
    heapq.heapify(queue)
    while left:
        gain, place = queue[0]
        now = -len(covered[place] & left)
        if now != gain:
            heapq.heapreplace(queue, (now, place))
        else:
            chosen.append(points[place])
            left -= covered[place]
    return chosen


def _covered(trials: Sequence[Trial]) -> list[set[tuple[tuple[str, str], ...]]]:
    """Of each trial the values that are tried by trying it, pairs of them, and () for a sweep without axes."""
    axes = dict.fromkeys(key for trial in trials for key in trial.point)
    levels = {key: _levels([trial.point.get(key) for trial in trials]) for key in axes}
    found = []
    for trial in trials:
        values = [(key, levels[key][_show_exactly(value)]) for key, value in trial.point.items()]
        found.append({(), *((value,) for value in values)} | set(itertools.combinations(sorted(values), 2)))
    return found


def _levels(values: Sequence[Any]) -> dict[str, str]:
    """What each value of an axis is tried as: itself, or the range that it lies in, where there are many numbers."""
    numbers = sorted({value for value in values if _is_number(value)})
    levels = {_show_exactly(value): _show_exactly(value) for value in values}
    if len(numbers) > LEVELS:
        inner = numbers[1:-1]
        levels |= {_show_exactly(value): f"range {i * (LEVELS - 2) // len(inner)}" for i, value in enumerate(inner)}
    return levels


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_stop(sweep: SweepSettings, trials: Sequence[Trial], path: Path) -> None:
    """UserError if no trial is evaluated in time to be given up at a rung."""
    stop, metric, _ = sweep.judged_by
    if stop is None or not metric.startswith("eval/") or not trials:
        return
    for trial in trials:
        every = getattr(getattr(trial.settings, "evaluation", None), "every", None)
        if every is not None and any(rung >= every for rung in rungs(stop, trial.num_steps - 1)):
            return
    last = max(trial.num_steps for trial in trials)
    raise UserError(
        f"{path}: stop: no trial has {metric} at a rung before its end ({last:,} at most; rungs begin at {stop.min_steps:,}); "
        "write a smaller evaluation.every or min_steps"
    )


def rehearse(sweep: SweepSettings, trials: Sequence[Trial], path: Path) -> None:
    """Builds what `rehearsals` chooses as the verb's --check does; UserError for what cannot be."""
    _check_stop(sweep, trials, path)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small matrices: threads that wait for cores which others have made it a hundred times as long
    try:
        for trial in rehearsals(trials):
            try:
                VERBS[sweep.verb].rehearse(trial.settings, True)
            except UserError as error:
                raise UserError(f"{path}: {trial.title}: {error}") from None
    finally:
        torch.set_num_threads(num_threads)
