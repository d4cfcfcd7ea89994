"""The samples of counters that a Prometheus has kept, over hours or weeks."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_tokenpower.core.credentials import without_credentials
from pytest_tokenpower.errors import MeterError, UsageError
from pytest_tokenpower.meters.adapters._http import checked_url, connect
from pytest_tokenpower.meters.adapters.no_reading import is_counted
from pytest_tokenpower.meters.adapters.prometheus import (
    DCGM_ENERGY,
    SELECTOR,
    Labels,
    ask,
    by_board,
    identity,
    matrix,
)
from pytest_tokenpower.meters.types import Samples

PIECE_S = 6 * 3600
"""Of one request: eight boards that are scraped each second make 170,000 samples."""

TIMEOUT_S = 30.0


class Archive:
    """A Prometheus server, read over a range of time; no scraped sample is left out or made up."""

    def __init__(self, url: str) -> None:
        server = checked_url(url, "prometheus:URL", "prometheus:http://prometheus:9090")
        if not url:
            raise UsageError("prometheus:URL: name the server, as in prometheus:http://prometheus:9090")
        self.shown = without_credentials(url.rstrip("/"))
        self._client = connect(server)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def counters(self, query: str, start_s: float, end_s: float) -> Mapping[Labels, Samples]:
        """Return the samples of each series of a plain selector from ``start_s`` to ``end_s``.

        Raises:
            UsageError: The query is an expression, whose values have times of their own.
            MeterError: The server does not answer with series, or a value is no count.
        """
        if SELECTOR.fullmatch(query) is None:
            raise UsageError(
                f"{query}: must be a metric with its matchers, as {DCGM_ENERGY}{{Hostname='node7'}}: the samples of a "
                "counter are wanted as they were scraped"
            )
        found: dict[Labels, list[tuple[int, float]]] = {}
        at = end_s
        while at > start_s:
            span = min(PIECE_S, at - start_s)
            data = ask(
                self._client,
                self.shown,
                "/api/v1/query",
                {"query": f"{query.strip()}[{max(round(span * 1000), 1)}ms]", "time": f"{at:.3f}"},
                TIMEOUT_S,
            )
            try:
                pieces = matrix(data["result"])
            except (ValueError, OverflowError) as error:
                raise MeterError(
                    f"Prometheus: {query} at {self.shown} gives what are no series: {error}"
                ) from error
            for labels, rows in pieces.items():
                known = found.setdefault(labels, [])
                # Pieces come newest first, and both ends of a range are in it.
                found[labels] = [row for row in rows if not known or row[0] < known[0][0]] + known
            at -= span
        for labels, rows in found.items():
            if not all(is_counted(value) or value == 0 for _, value in rows):
                raise MeterError(
                    f"Prometheus: {identity(labels)} has samples that are no count ({query} at {self.shown})"
                )
        return {labels: rows for labels, rows in found.items() if rows}


def by_device(series: Mapping[Labels, Samples], query: str) -> dict[str, Samples]:
    """Return the energy counter of each board; what an exporter repeats for slices or pods is one board's.

    Raises:
        MeterError: Series of one board give different values.
    """
    try:
        by_board(series)
    except ValueError as error:
        raise MeterError(
            f"Prometheus: {query} gives several series for one device ({error}); narrow it by matchers"
        ) from error
    merged: dict[str, dict[int, float]] = {}
    for labels, rows in series.items():
        # A pod that moved or an exporter that was started anew goes on with the same board under other labels.
        merged.setdefault(identity(labels), {}).update(rows)
    return {board: sorted(rows.items()) for board, rows in merged.items()}


def label_values(series: Mapping[Labels, Samples], label: str) -> tuple[str, ...]:
    """Return the values that a label has in some series."""
    return tuple(sorted({value for labels in series for name, value in labels if name == label}))
