"""Where a sweep goes next, by what it has found: Optuna's TPE, its journal in the sweep's folder.

It goes round by round: all points of a round are run before the next are chosen, by the submitter, who alone has the journal.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexrl.config import UserError
from flexrl.sweep_settings import Distribution, SearchSettings

AGAIN = "again"  # of a point that had failed, and was run again: the number of the one that failed


class Search:
    """Points that were asked for, and what they came to; the same ones again for the same results, however often it stops.

    Kept in `folder`; `only_told`: what it finds there stays as it is.
    """

    def __init__(self, settings: SearchSettings, folder: Path, maximize: bool, only_told: bool = False) -> None:
        self._settings = settings
        self._optuna = _import()
        journal = folder / "search.journal"
        if only_told:
            self._copy = tempfile.TemporaryDirectory()  # as long as this search
            copied = Path(self._copy.name) / journal.name
            journal = Path(shutil.copyfile(journal, copied)) if journal.is_file() else copied
        else:
            folder.mkdir(parents=True, exist_ok=True)
        storages = self._optuna.storages
        storage = storages.JournalStorage(storages.journal.JournalFileBackend(str(journal)))
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
            # a sampler of its own for each point, so that a stop in between changes nothing; the lie: points of this
            # round, which nobody has told of, count as bad ones, so that the next keeps away from them
            seed = self._settings.seed + len(self._trials())
            self._study.sampler = self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            trial = self._study.ask()
            point = {key: self._suggest(trial, key, axis) for key, axis in self._settings.axes.items()}
            trial.set_user_attr("point", point)
        return [trial.user_attrs["point"] for trial in self._trials()]

    def tell(self, scores: Mapping[int, float]) -> None:
        """What points came to, by their number; a point without a score has failed, until it is run again and has one."""
        states = self._optuna.trial.TrialState
        again = {trial.user_attrs[AGAIN] for trial in self._study.get_trials(deepcopy=False) if AGAIN in trial.user_attrs}
        for number, trial in enumerate(self._trials()):
            score = scores.get(number, math.nan)
            if trial.state == states.RUNNING and math.isnan(score):
                self._study.tell(trial.number, state=states.FAIL)
            elif trial.state == states.RUNNING:
                self._study.tell(trial.number, score)
            elif trial.state == states.FAIL and number not in again and not math.isnan(score):
                # a failed one of Optuna's stays so: what it came to is told by another of the same place
                same = {"params": trial.params, "distributions": trial.distributions, "user_attrs": {AGAIN: number}}
                self._study.add_trial(self._optuna.trial.create_trial(value=score, **same))

    @property
    def is_over(self) -> bool:
        """Whether all points have been asked for and told."""
        return len(self._trials()) >= self._settings.n and not self._open()

    def _trials(self) -> list[Any]:
        """Those that were asked for, in order."""
        return [trial for trial in self._study.get_trials(deepcopy=False) if AGAIN not in trial.user_attrs]

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
