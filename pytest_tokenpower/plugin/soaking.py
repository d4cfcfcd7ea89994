"""Soaks of tests: the marker, the file that a soak is resumed from, and what came of it."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_tokenpower.core.settings import CHILD_VARIABLE, SOAK_VARIABLE, fraction
from pytest_tokenpower.errors import StoreError, UsageError
from pytest_tokenpower.plugin.state import SETTINGS, session_of, test_id

if TYPE_CHECKING:
    from pytest_tokenpower.core.records import RoundRecord, VerdictRecord
    from pytest_tokenpower.runner.soak import Soak
    from pytest_tokenpower.suites.soak import SoakAsked, SoakBegun, Stretch


def soak_of(item: pytest.Item) -> Soak | None:
    """Return what a test is soaked by (`tokenpower soak`, its marker), None for nothing; raises UsageError."""
    asked, mark = os.environ.get(SOAK_VARIABLE), item.get_closest_marker("energy_soak")
    if asked is None and (mark is None or CHILD_VARIABLE in os.environ):
        return None
    if item.config.stash[SETTINGS].source.startswith("replay:"):
        return None
    from pytest_tokenpower.runner.soak import Soak
    from pytest_tokenpower.suites.soak import SoakAsked, SoakBegun, goes_on, stretch_seconds

    if asked is not None:
        what = SoakAsked.read(asked)
    else:
        assert mark is not None
        what = _of_marker(item, mark)
    session = session_of(item.config)
    head = session.repository.head if session.repository else None
    begun = SoakBegun(
        test_id(item),
        getattr(item, "fingerprint", None) or head or "",
        item.config.stash[SETTINGS].source,
        datetime.now(timezone.utc).isoformat(),
        session.telemetry().provenance,
    )
    out = Path(what.out)
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        stretches = goes_on(out, begun) if what.resume else []
    done_s = stretches[-1].at_s + stretches[-1].round.seconds if stretches else 0.0
    return Soak(
        what.seconds - done_s,
        stretch_seconds(what.seconds),
        _keeper(out, begun, stretches, done_s),
        lambda: _ended(stretches, what.max_drift, item.config.stash[SETTINGS].alpha, out),
    )


def _of_marker(item: pytest.Item, mark: pytest.Mark) -> SoakAsked:
    from pytest_tokenpower.suites.soak import SoakAsked

    where = f"{item.nodeid}: energy_soak"
    if mark.args or set(mark.kwargs) - {"hours", "max_drift"}:
        raise UsageError(f"{where} takes hours and max_drift, by name: energy_soak(hours=24, max_drift='2%')")
    hours, most = mark.kwargs.get("hours", 24), mark.kwargs.get("max_drift")
    if isinstance(hours, bool) or not isinstance(hours, int | float) or not 0 < hours < math.inf:
        raise UsageError(f"{where}(hours={hours!r}): must be a number above 0")
    try:
        limit = None if most is None else fraction(None, most)
    except UsageError as error:
        raise UsageError(f"{where}(max_drift={most!r}): {error}") from None
    test = test_id(item)
    name = re.sub(r"[^\w.+-]+", "_", test.rpartition("::")[2])[:80]
    digits = hashlib.sha256(test.encode()).hexdigest()[:8]
    out = session_of(item.config).store.path / "soaks" / f"{name}-{digits}.jsonl"
    resume = item.config.stash[SETTINGS].resume and out.exists()
    if not resume and out.exists():
        out.replace(out.with_suffix(".previous.jsonl"))
    return SoakAsked(hours * 3600, str(out), resume, limit)


def _keeper(
    out: Path, begun: SoakBegun, stretches: list[Stretch], done_s: float
) -> Callable[[float, RoundRecord], None]:
    from pytest_tokenpower.suites.soak import Stretch, encode_line

    if not stretches:
        with _writing(out):
            out.write_bytes(encode_line(begun))

    def keep(at_s: float, record: RoundRecord) -> None:
        stretches.append(Stretch(done_s + at_s, record))
        with _writing(out), out.open("ab") as stream:
            stream.write(encode_line(stretches[-1]))

    return keep


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{out}: the soak cannot be written: {error.strerror} (resumed, it goes on with what is there)"
        ) from None


def _ended(
    stretches: list[Stretch], limit: float | None, alpha: float, out: Path
) -> tuple[str, VerdictRecord | None]:
    from pytest_tokenpower.core.records import VerdictRecord
    from pytest_tokenpower.reporting.suites import drift_line
    from pytest_tokenpower.suites.soak import summarise

    found = summarise(stretches)
    said = f"{found.hours:.3g} h of continuous work; {drift_line(found, limit)}; {len(found.steps)} steps ({out})"
    if limit is None:
        return said, None
    if found.drift is None:
        return said, VerdictRecord("inconclusive", "soak", reason="the soak is too short to tell a drift")
    reason, change, most = (
        f"in {found.hours:.3g} h {drift_line(found, limit)}",
        found.drift.change,
        math.log1p(limit),
    )
    if change.p_above(most) < alpha:
        return said, VerdictRecord("over budget", "soak", reason=reason)
    if change.p_below(most) < alpha:
        return said, VerdictRecord("passed", "soak", reason=reason)
    more = f"that it is beyond it, or within, is not sure (energy_alpha = {alpha:g}): a longer soak tells"
    return said, VerdictRecord("inconclusive", "soak", reason=f"{reason}; {more}")
