"""Snapshots: whole or not at all, and never harmed by the next one."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from flexrl import snapshots
from flexrl.config import UserError


def files(value: int) -> dict[str, bytes]:
    return {"a.bin": bytes([value]) * 100, "b.bin": b"b"}


def test_a_snapshot_replaces_another_whole(tmp_path: Path) -> None:
    folder = tmp_path / "best"
    snapshots.write(folder, files(1))
    first = snapshots.content_hash(folder)
    snapshots.write(folder, files(2))
    assert snapshots.content_hash(folder) != first
    assert set(snapshots.check(folder)) == {"a.bin", "b.bin"}
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_full_disk_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "best"
    snapshots.write(folder, files(1))

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(snapshots, "_write_file", full)
    with pytest.raises(OSError, match="No space left"):
        snapshots.write(folder, files(2))
    assert (folder / "a.bin").read_bytes() == files(1)["a.bin"]
    snapshots.check(folder)


def test_a_kill_between_the_two_renames_is_finished(tmp_path: Path) -> None:
    folder = tmp_path / "latest"
    for new_is_whole, expected in ((True, 2), (False, 1)):
        snapshots.write(folder, files(1))
        snapshots.write(tmp_path / "other", files(2))
        os.replace(folder, tmp_path / ".latest.old")
        os.replace(tmp_path / "other", tmp_path / ".latest.new")
        if not new_is_whole:
            (tmp_path / ".latest.new" / snapshots.MANIFEST).unlink()
        with pytest.raises(UserError, match="was cut while being replaced"):
            snapshots.check(folder)
        snapshots.recover(folder)
        assert snapshots.exists(folder)
        assert (folder / "a.bin").read_bytes()[0] == expected
        snapshots.write(folder, files(3))


@pytest.mark.parametrize("name", ["a.bin", "manifest.json"])
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "best"
    snapshots.write(folder, files(1))
    content = bytearray((folder / name).read_bytes())
    content[0] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: is damaged"):
        snapshots.check(folder)


def test_missing_files_versions_and_folders_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "best"
    snapshots.write(folder, files(1))
    with pytest.raises(UserError, match=r"did you mean '.*best'"):
        snapshots.check(tmp_path / "run")
    with pytest.raises(UserError, match=r"no such snapshot; train\.py makes them"):
        snapshots.check(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no such snapshot; did you mean '.*run.best'"):
        snapshots.check(tmp_path / "run" / "bset")
    (folder / "a.bin").unlink()
    with pytest.raises(UserError, match=r"a\.bin: is missing"):
        snapshots.check(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(UserError, match="of snapshot format 99"):
        snapshots.check(folder)
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": {"../../x": "0"}}))
    with pytest.raises(UserError, match="outside the snapshot"):
        snapshots.check(folder)


def test_a_tree_of_arrays_and_values_comes_back() -> None:
    from safetensors.numpy import load

    tree = {
        "a": np.arange(3),
        "b": [1, None, "x", {"c": np.float64(2.5)}],
        3: {"d": np.array(7.0)},
        "e": np.zeros((0, 2)),
    }
    document, arrays = snapshots.pack_tree(tree)
    back = snapshots.unpack_tree(document, load(arrays))
    np.testing.assert_array_equal(back["a"], tree["a"])
    assert back["b"] == [1, None, "x", {"c": 2.5}]
    assert back[3]["d"].shape == ()
    assert back["e"].shape == (0, 2)
