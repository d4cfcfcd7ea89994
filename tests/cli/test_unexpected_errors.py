"""An error that nobody foresaw ends in one line; --traceback shows where it came from."""

import pytest

from pytest_tokenpower import cli


def _fails(_: object) -> int:
    raise ZeroDivisionError("first\nsecond")


def test_one_line_unless_asked_for_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pytest_tokenpower.cli import doctor

    monkeypatch.setattr(doctor, "run", _fails)
    assert cli.main(["doctor"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tokenpower doctor: unexpected ZeroDivisionError: first second")
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor", "--traceback"])
