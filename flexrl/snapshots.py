"""One folder a snapshot: safetensors, JSON and YAML, a manifest of hashes written last; never pickle."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from flexrl.config import UserError

FORMAT = 1  # goes up when a reader of the old files would misread the new ones
MANIFEST = "manifest.json"
ANOTHER = "use another snapshot of the run"


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put `files` (name: content) into `folder`, replacing a snapshot that is there, so that no moment is without one.

    The new folder is complete, manifest last, before it takes the old one's name; `recover` finishes what a kill between
    the two renames leaves. Raises OSError with the old snapshot unharmed.
    """
    new, old = _siblings(folder)
    recover(folder)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        for name, content in files.items():
            _write_file(new / name, content)
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        manifest = {"format": FORMAT, "files": hashes}
        _write_file(new / MANIFEST, json.dumps(manifest, indent=1).encode())
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _siblings(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def recover(folder: Path) -> None:
    """Finish a replacement that was cut between its two renames: the new folder if it is whole, else the old one.

    For the folder's only writer: a reader would take the new folder from under it.
    """
    new, old = _siblings(folder)
    if folder.exists() or not old.exists():
        return
    os.replace(new if (new / MANIFEST).exists() else old, folder)


def exists(folder: Path) -> bool:
    """Whether a snapshot is there; a folder without a manifest is none."""
    return (folder / MANIFEST).is_file()


def missing(folder: Path) -> list[str]:
    """The files that its manifest names and that are not there; UserError if it cannot be read."""
    return [name for name in read_manifest(folder) if not (folder / name).is_file()]


def read_manifest(folder: Path, cure: str = ANOTHER) -> dict[str, str]:
    """The hash of each file by name, as the manifest has it; UserError if there is none, or none that can be read."""
    if not exists(folder):
        if not folder.exists() and _siblings(folder)[1].exists():
            raise UserError(f"{folder}: was cut while being replaced; train.py --resume of its run mends it")
        if not folder.exists():
            raise UserError(f"{folder}: no such snapshot{_nearby(folder)}")
        raise UserError(f"{folder}: is not a snapshot (it has no {MANIFEST}){_nearby(folder)}")
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        version, hashes = manifest["format"], dict(manifest["files"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / MANIFEST}: is damaged; {cure}") from None
    if version != FORMAT:
        raise UserError(f"{folder}: is of snapshot format {version}, this flex-rl reads {FORMAT}; use the one that wrote it")
    outside = next((name for name in hashes if Path(name).name != name), None)
    if outside is not None:
        raise UserError(f"{folder / MANIFEST}: names a file outside the snapshot: {outside!r}")
    return hashes


def check(folder: Path, cure: str = ANOTHER) -> dict[str, str]:
    """The snapshot's file hashes, every one compared with its file; UserError names the first that is damaged, and the cure."""
    hashes = read_manifest(folder, cure)
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: is missing; {cure}")
        if file_hash(path) != expected:
            raise UserError(f"{path}: is damaged (its SHA-256 is not the manifest's); {cure}")
    return hashes


def _nearby(folder: Path) -> str:
    """The snapshots below a run's folder, for who named the run instead, or a run's others, or one beside it of a like name."""
    candidates = [base / name for base in (folder, folder.parent) for name in ("best", "latest")]
    beside = sorted(path.parent.name for path in folder.parent.glob(f"*/{MANIFEST}"))
    candidates += [folder.parent / name for name in difflib.get_close_matches(folder.name, beside, n=1)]
    found = [str(path) for path in candidates if (path / MANIFEST).is_file()]
    return f"; did you mean '{found[0]}'?" if found else "; train.py makes them, and examples/pretrained/ has some"


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(folder: Path) -> str:
    """One hash for the whole snapshot: that of its manifest, which holds all others."""
    return file_hash(folder / MANIFEST)


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Named arrays as one safetensors file."""
    return save({name: np.asarray(array, order="C") for name, array in arrays.items()})


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file; UserError if it is none."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError) as error:
        raise UserError(f"{path}: is not a whole safetensors file: {error}") from None


def pack_tree(tree: Any) -> tuple[bytes, bytes]:
    """A tree of dicts, lists, plain values and arrays as JSON (arrays by reference) and a safetensors file."""
    arrays: dict[str, np.ndarray] = {}
    skeleton = _to_json(tree, "", arrays)
    return json.dumps(skeleton).encode(), pack_arrays(arrays)


def unpack_tree(document: bytes, arrays: Mapping[str, np.ndarray]) -> Any:
    """The tree that `pack_tree` wrote."""
    return _from_json(json.loads(document), arrays)


def _to_json(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, np.ndarray):
        name = path or "array"
        arrays[name] = value.reshape(1) if value.ndim == 0 else value
        return {"$array": name, "shape": list(value.shape)}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _to_json(item, f"{path}/{key}", arrays) for key, item in value.items()}
        return {"$items": [[key, _to_json(item, f"{path}/{key}", arrays)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_to_json(item, f"{path}/{i}", arrays) for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _from_json(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if "$array" in value:
            return arrays[value["$array"]].reshape(value["shape"])
        if "$items" in value:
            return {key: _from_json(item, arrays) for key, item in value["$items"]}
        return {key: _from_json(item, arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_json(item, arrays) for item in value]
    return value
