"""Where a sweep goes next, by what it has found: Optuna's TPE, its journal in the sweep's folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexrl.config import UserError
from flexrl.sweep_settings import Distribution, SearchSettings


class Search:
    """Points that were asked for, and what they came to; the same ones again for the same results, however often it stops.

    Kept in `folder`; null: nowhere.
    """

    def __init__(self, settings: SearchSettings, folder: Path | None, maximize: bool) -> None:
        self._settings = settings
        self._optuna = _import()
        storages = self._optuna.storages
        storage = storages.InMemoryStorage()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            storage = storages.JournalStorage(storages.journal.JournalFileBackend(str(folder / "search.journal")))
        self._study = self._optuna.create_study(
            storage=storage, study_name="sweep", direction="maximize" if maximize else "minimize", load_if_exists=True
        )
        axes = {key: axis.model_dump(mode="json") for key, axis in settings.axes.items()}
        if self._study.user_attrs.setdefault("axes", axes) != axes:
            raise UserError(f"{folder}: its search has other axes; give the sweep another name")
        self._study.set_user_attr("axes", axes)

    def points(self) -> list[dict[str, Any]]:
        """All points so far, those of the next round included."""
        while len(self._trials()) < self._settings.n and len(self._open()) < self._settings.at_a_time:
            # a sampler of its own for each point, so that a stop in between changes nothing
            self._study.sampler = self._optuna.samplers.TPESampler(seed=self._settings.seed + len(self._trials()))
            trial = self._study.ask()
            point = {key: self._suggest(trial, key, axis) for key, axis in self._settings.axes.items()}
            trial.set_user_attr("point", point)
        return [trial.user_attrs["point"] for trial in self._trials()]

    def tell(self, scores: Mapping[int, float]) -> None:
        """What points came to, by their number; a point without a score has failed."""
        for trial in self._open():
            score = scores.get(trial.number, math.nan)
            state = self._optuna.trial.TrialState
            if math.isnan(score):
                self._study.tell(trial.number, state=state.FAIL)
            else:
                self._study.tell(trial.number, score)

    @property
    def is_over(self) -> bool:
        """Whether all points have been asked for and told."""
        return len(self._trials()) >= self._settings.n and not self._open()

    def _trials(self) -> list[Any]:
        return list(self._study.get_trials(deepcopy=False))

    def _open(self) -> list[Any]:
        return [trial for trial in self._trials() if trial.state == self._optuna.trial.TrialState.RUNNING]

    def _suggest(self, trial: Any, key: str, axis: Distribution) -> Any:
        if axis.uniform is not None:
            return trial.suggest_float(key, *axis.uniform)
        if axis.log_uniform is not None:
            return trial.suggest_float(key, *axis.log_uniform, log=True)
        if axis.whole is not None:
            return trial.suggest_int(key, *axis.whole)
        assert axis.choice is not None
        index = trial.suggest_categorical(key, list(range(len(axis.choice))))  # by number: a choice may be a list
        return axis.choice[index]


def _import() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError("search: needs Optuna: pip install optuna==5.0.0") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
