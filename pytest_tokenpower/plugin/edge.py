"""Where the plugin's words reach pytest: shown without what would act in a log, and our own faults in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest

from pytest_tokenpower.errors import TokenPowerError


def said(words: object) -> str:
    """Words of ours (an error, a reason) as they may be printed."""
    # Not needed until something has to be said: every pytest run imports this.
    from pytest_tokenpower.core.credentials import without_credentials
    from pytest_tokenpower.core.shown import shown

    return shown(without_credentials(str(words)))


def fail(words: object) -> NoReturn:
    """Fail the test in these words alone, without a traceback into the plugin."""
    raise pytest.fail.Exception(said(words), pytrace=False) from None


def refuse(words: object) -> NoReturn:
    """Refuse the run."""
    raise pytest.UsageError(said(words)) from None


@contextmanager
def faults_end_in(end: Callable[[str], object]) -> Iterator[None]:
    """Give errors that nobody foresaw to ``end`` in one line; errors that are meant for the user pass."""
    try:
        yield
    except (TokenPowerError, pytest.UsageError, pytest.exit.Exception):
        raise
    except Exception as error:
        from pytest_tokenpower.core.faults import describe_fault

        words = describe_fault(error)
    else:
        return
    end(words)


class Lines:
    """pytest's terminal reporter, for text with others' words in it."""

    def __init__(self, reporter: pytest.TerminalReporter) -> None:
        self._reporter = reporter

    def write_sep(self, sep: str, title: str, **markup: bool) -> None:
        """Write a line across the terminal with a title in it."""
        self._reporter.write_sep(sep, said(title), **markup)

    def write_line(self, line: str, **markup: bool) -> None:
        """Write a line."""
        self._reporter.write_line(said(line), **markup)
