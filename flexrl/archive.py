"""Copies a workspace that runs go on in to another disk: python -m flexrl.archive FROM TO

What is new of it, each file whole, snapshots and datasets whole or not at all. `k8s/archive_gke.yaml` runs it, with a bucket as
the other disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from flexrl import command_line, snapshots
from flexrl.config import UserError
from flexrl.runs import Failed

LEFT_OUT = ("lost+found", "replay")  # a file system's own; what only an unfinished run reads, and large
TRIES = 3  # for what changes while it is copied


def archive(source: Path, target: Path) -> tuple[int, list[Path]]:
    """How many files were copied, and what could not be had whole, as it changed each time."""
    num_copied, broken = 0, []
    for folder, files in _folders(source):
        there = target / folder.relative_to(source)
        if snapshots.MANIFEST in files:
            number = next((n for n in (_copy_snapshot(folder, there) for _ in range(TRIES)) if n is not None), None)
            if number is None and folder.exists():
                broken.append(folder)
            num_copied += number or 0
        else:
            num_copied += sum(_copy_if_new(folder / name, there / name) for name in files)
    return num_copied, broken


def _folders(source: Path) -> Iterator[tuple[Path, list[str]]]:
    def complain(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # gone since
            raise error

    for folder, folders, files in os.walk(source, onerror=complain):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in LEFT_OUT)
        yield Path(folder), sorted(name for name in files if not name.startswith("."))


def _copy_snapshot(folder: Path, there: Path) -> int | None:
    """How many files were copied of a folder with a manifest, which goes last; null if it was replaced meanwhile."""
    try:
        manifest = (folder / snapshots.MANIFEST).read_bytes()
        if (there / snapshots.MANIFEST).is_file() and (there / snapshots.MANIFEST).read_bytes() == manifest:
            return 0
        (there / snapshots.MANIFEST).unlink(missing_ok=True)
        names = [path.name for path in folder.iterdir() if path.is_file() and path.name != snapshots.MANIFEST]
        for name in names:
            _copy(folder / name, there / name)
        if (folder / snapshots.MANIFEST).read_bytes() != manifest:
            return None
    except FileNotFoundError:
        return None
    (there / snapshots.MANIFEST).write_bytes(manifest)
    return len(names) + 1


def _copy_if_new(file: Path, there: Path) -> bool:
    """Whether it was copied: it is not there yet, has another size there, or has changed since."""
    try:
        about = file.stat()
        if there.is_file() and there.stat().st_size == about.st_size and there.stat().st_mtime > about.st_mtime:
            return False
        _copy(file, there)
    except FileNotFoundError:
        return False  # it is gone, as temporary files are
    return True


def _copy(file: Path, there: Path) -> None:
    there.parent.mkdir(parents=True, exist_ok=True)
    temporary = there.with_name(f".{there.name}.new")
    shutil.copyfile(file, temporary)
    os.replace(temporary, there)


def main() -> None:
    """Exit code 1 if something could not be had whole."""
    parser = command_line.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    if not arguments.source.is_dir():
        raise UserError(f"{arguments.source}: there is no such folder to copy; name a workspace")
    try:
        num_copied, broken = archive(arguments.source, arguments.target)
    except OSError as error:
        raise Failed(f"{error.filename or arguments.target}: {error.strerror}; what was copied is whole") from None
    print(f"{num_copied:,} files copied to {arguments.target}", file=sys.stderr)
    if broken:
        raise Failed(f"{', '.join(map(str, broken))}: changed each time; the next archive has them")


if __name__ == "__main__":
    command_line.verb(main)
