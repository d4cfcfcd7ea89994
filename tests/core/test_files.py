"""Files are replaced as a whole, and what killed writers left is removed."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from pytest_tokenpower.core.files import SWEPT_AFTER_S, replacing, scratch_prefix, write_whole


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_whole(path, b"old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.json"]


def test_a_link_stays_one_and_its_file_keeps_its_mode(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    write_whole(link, b"new")
    assert link.is_symlink()
    assert (real.read_bytes(), real.stat().st_mode & 0o777) == (b"new", 0o640)


def test_what_is_no_file_is_written_to_as_it_is(tmp_path: Path) -> None:
    write_whole(Path("/dev/null"), b"gone")
    assert not Path("/dev/null").is_file()


def test_only_what_has_no_writer_any_more_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    old, young, other = (tmp_path / f".{name}.tmp" for name in ("out.json.1", "out.json.2", "notes"))
    for each in (old, young, other):
        each.touch()
    for each in (old, other):
        os.utime(each, (time.time() - SWEPT_AFTER_S - 60,) * 2)
    write_whole(path, b"new")
    assert sorted(os.listdir(tmp_path)) == [".notes.tmp", ".out.json.2.tmp", "out.json"]


def test_folders_of_killed_processes_are_swept_a_day_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with subprocess.Popen(["true"]) as ended:
        pass
    mine, gone = scratch_prefix("engine"), f"tokenpower-engine-{ended.pid}-"
    for name in (f"{mine}old", f"{gone}old", f"{gone}young", "tokenpower-locks-old"):
        (tmp_path / name).mkdir()
        if name.endswith("old"):
            os.utime(tmp_path / name, (0, 0))
    (tmp_path / f"{gone}link").symlink_to(tmp_path / f"{gone}young")
    scratch_prefix("server")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([f"{mine}old", f"{gone}young", f"{gone}link", "tokenpower-locks-old"])
