"""The command line of a verb: its options as settings, a user's mistake as one line, its end as an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from flexrl import config, exit_codes, snapshots
from flexrl.config import Settings, UserError
from flexrl.runs import Failed, Run, check_name

S = TypeVar("S", bound=Settings)
LEFT_OVER = (".lock", ".config.yaml.new")  # what a start that could not write its settings left


def verb(main: Callable[[], None]) -> NoReturn:
    """Runs a script's `main`; a user's mistake becomes one line on stderr and exit code 2, without a traceback."""
    try:
        main()
    except UserError as error:
        print(str(error), file=sys.stderr)
        sys.exit(exit_codes.USER_ERROR)
    except Failed as error:
        print(str(error), file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `play.py | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(exit_codes.NOBODY_READS)
    except KeyboardInterrupt:
        sys.exit(exit_codes.INTERRUPTED)
    sys.exit(exit_codes.DONE)


class Parser(argparse.ArgumentParser):
    """argparse, with mistakes as one line; options are written out, as `--resum` could be a mistake."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"allow_abbrev": False} | arguments)

    def error(self, message: str) -> NoReturn:
        """Raises UserError instead of printing the usage."""
        raise UserError(f"{Path(sys.argv[0]).name}: {message} (see --help)")


@dataclass(frozen=True)
class Flag:
    """An option of a verb that stands for a setting; `to_set` makes of what was given what --set would be given."""

    option: str
    metavar: str
    help: str
    to_set: Callable[[list[str]], str]


def begin(model: type[S], doc: str | None, rehearse: Callable[[S, bool], None], flags: Sequence[Flag] = ()) -> tuple[S, Run[S]]:
    """Reads the command line of a verb that makes a run, checks everything, and returns its settings and the run.

    `rehearse(settings, is_new)` builds what they ask for, small, and raises UserError where they cannot work; `is_new`:
    the run does not go on from a state of its own.
    Nothing is written before the run is entered. `--check` prints the resolved settings and exits with 0.
    """
    parser = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", help="the run's folder in the workspace")
    parser.add_argument("--config", type=Path, help="YAML file of settings; without it, the defaults")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting, such as seed=1")
    parser.add_argument("--resume", action="store_true", help="go on with the run of that name, exactly where it was saved")
    parser.add_argument("--check", action="store_true", help="print the resolved settings and exit")
    parser.add_argument("--workspace", type=Path, default=Path("workspace"), help="where runs live (default: workspace)")
    for flag in flags:
        parser.add_argument(flag.option, action="append", metavar=flag.metavar, help=flag.help)
    arguments = parser.parse_args()
    given = [(flag, getattr(arguments, flag.option.removeprefix("--").replace("-", "_"))) for flag in flags]
    arguments.set = [flag.to_set(texts) for flag, texts in given if texts] + arguments.set
    if arguments.name is None and not arguments.check:
        raise UserError("--name: every run needs one, such as --name walk_1")
    name = check_name(arguments.name or "check")
    folder: Path = arguments.workspace / name
    if arguments.resume and (folder / "config.yaml").is_file():
        settings = config.load(model, folder / "config.yaml", arguments.set)
        _check_goes_on(config.load(model, folder / "config.yaml"), settings, folder)
        if arguments.config is not None:
            _check_same(settings, config.load(model, arguments.config, arguments.set), folder, arguments.config)
    elif arguments.resume and arguments.config is None:
        raise UserError(f"--resume: there is no run {folder}; leave --resume away to start it")
    else:
        settings = config.load(model, arguments.config, arguments.set)
    try:
        rehearse(settings, not arguments.resume or not snapshots.exists(folder / "latest"))
    except UserError as error:
        said = [f"--set {text}" for text in arguments.set if _is_of(text.partition("=")[0], str(error).partition(":")[0])]
        raise UserError(f"{said[0] if len(said) == 1 else arguments.config or 'settings'}: {error}") from None
    if arguments.check:
        print(config.to_yaml(settings), end="")
        sys.exit(exit_codes.DONE)
    if not arguments.resume and folder.is_dir() and any(path.name not in LEFT_OVER for path in folder.iterdir()):
        raise UserError(f"{folder}: there is a run of this name; add --resume to go on with it, or take another --name")
    return settings, Run(folder, settings)


def _is_of(key: str, other: str) -> bool:
    """Whether one of two settings is the other or a part of it: world.goal of world."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _check_goes_on(saved: Settings, settings: Settings, folder: Path) -> None:
    """UserError if --set, given with --resume, changes what the saved training state was made with."""
    free = type(settings).may_change
    for key, old, new in _differences(saved.model_dump(mode="json"), settings.model_dump(mode="json")):
        if not any(f"{key}.".startswith(f"{prefix}.") for prefix in free):
            raise UserError(
                f"--set {key}={new}: {folder} was trained with {old}, and goes on with it; "
                f"with --resume only these may change: {', '.join(free)}; or start a run of another --name"
            )


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two trees of plain values differ: dotted key, old and new value."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, old, new


def _check_same(saved: Settings, given: Settings, folder: Path, path: Path) -> None:
    """UserError if the file given with --resume says something else than the run's own settings."""
    old, new = saved.model_dump(mode="json"), given.model_dump(mode="json")
    for key in old:
        if old[key] != new[key]:
            hint = f"leave --config away, or change it with --set {key}=..."
            raise UserError(
                f"{path}: {key} is not what {folder / 'config.yaml'} says; a resumed run keeps its settings: {hint}"
            )
