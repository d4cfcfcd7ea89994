"""An error that nobody foresaw ends in one line that names a file to attach; --traceback shows it at once."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_tokenpower import cli
from pytest_tokenpower.cli import doctor


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(_: object) -> int:
        raise ZeroDivisionError("first\nsecond https://bob:s3cret@host/x")

    monkeypatch.setattr(doctor, "run", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.usefixtures("failing")
def test_one_line_and_a_file_to_attach(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tokenpower doctor: unexpected ZeroDivisionError: first second https://host/x; ")
    found = re.search(r"with (\S+tokenpower-fault-\S+\.txt)", line)
    assert found is not None
    report = Path(found[1]).read_text()
    assert "in fail" in report
    assert "pytest-tokenpower" in report.splitlines()[0]
    assert "s3cret" not in line + report


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_no_fault_of_ours() -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "pytest_tokenpower", "models"],
            stdout=full,
            check=False,
            stderr=subprocess.PIPE,
            text=True,
        )
    said = "tokenpower: the output: No space left on device: make room, and run it again\n"
    assert (ended.returncode, ended.stderr) == (4, said)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [("models >&-", 0), ("models nowhere/nothing 2>&-", 4), ("list <&- >&- 2>&-", 4)],
)
def test_closed_streams_take_what_is_said_to_them(arguments: str, code: int, tmp_path: Path) -> None:
    ended = subprocess.run(
        ["sh", "-c", f'"$0" -m pytest_tokenpower {arguments}', sys.executable],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout + ended.stderr) == (code, "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps a folder that is somebody's current one")
def test_a_current_folder_that_was_removed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert cli.main(["list"]) == 4
    assert capsys.readouterr().err == (
        "tokenpower list: the current folder was removed: change into one that is there\n"
    )


@pytest.mark.usefixtures("failing")
def test_the_traceback_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--traceback"]) == 3
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert said.splitlines()[-1].startswith("tokenpower doctor: unexpected ZeroDivisionError")
    assert "s3cret" not in said


def test_without_room_for_a_file_the_line_is_all(
    capsys: pytest.CaptureFixture[str], failing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/dev/null")
    assert cli.main(["doctor"]) == 3
    assert capsys.readouterr().err.startswith("tokenpower doctor: unexpected ZeroDivisionError: first second")
