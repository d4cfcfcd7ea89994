"""`tokenpower compare A prometheus:URL`: a baseline beside a service, by a real Prometheus and by its answers."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from pytest_tokenpower.cli.compare_service import moment
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.store.store import Store
from tests.support.commands import Command
from tests.support.histories import stored_levels
from tests.support.loopback import Request, serving
from tests.support.prometheus import needs_prometheus, prometheus
from tests.support.repositories import Git

ENERGY, TOKENS = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "vllm:generation_tokens_total"
BASELINE = 100 / 256


@pytest.fixture(autouse=True)
def baseline(git: Git, store: Store) -> None:
    stored_levels(git, store, [1.0] * 3)


@pytest.mark.slow
@needs_prometheus
def test_a_real_prometheus(tmp_path: Path, tokenpower: Command) -> None:
    """Two boards at 300 W each make 1500 tokens a second: 0.4 J/token."""
    zero_s = time.time()

    def metrics(request: Request) -> None:
        passed = time.time() - zero_s
        boards = "".join(
            f'{ENERGY}{{UUID="GPU-{at}",modelName="NVIDIA H100"}} {1e9 + passed * 300_000:.0f}\n'
            for at in (1, 2)
        )
        text = (
            f"# TYPE {ENERGY} counter\n{boards}"
            f'# TYPE {TOKENS} counter\n{TOKENS}{{model_name="llama"}} {passed * 1500:.0f}\n'
        )
        request.answer(200, text.encode(), **{"Content-Type": "text/plain; version=0.0.4"})

    with serving(metrics) as target, prometheus(tmp_path, target) as url:
        deadline = time.monotonic() + 120
        while True:
            ended = tokenpower("compare", "main", f"prometheus:{url}", "--since=10m")
            if (
                re.search(r": [4-9]\d{3} J|: \d{5,} J|: [\d.]+e\+\d+ J", ended.out)
                or time.monotonic() > deadline
            ):
                break
            time.sleep(0.5)
    assert (ended.code, ended.err) == (0, "")
    figure, error = map(
        float, re.findall(r"^service   ([\d.]+) ± ([\d.]+) J/token", ended.out, re.MULTILINE)[0]
    )
    assert abs(figure - 0.4) <= error + 0.004
    assert error < 0.15
    assert re.search(
        r"^The service takes [+-][\d.]+ % \[[+-][\d.]+, [+-][\d.]+\] for a token\.$", ended.out, re.MULTILINE
    )
    assert "No verdict: these are not the same thing." in ended.out
    assert "Unlike in gpu.count: the service has 2, the test 1." in ended.out
    assert "Unlike in gpu.name" not in ended.out


def answering(series: dict[str, list[tuple[dict[str, str], list[tuple[float, float]]]]]):  # type: ignore[no-untyped-def]
    """Play the API for range selectors."""

    def answer(request: Request) -> None:
        asked = {name: values[0] for name, values in parse_qs(urlsplit(request.path).query).items()}
        query, _, span = asked["query"].removesuffix("ms]").rpartition("[")
        end = float(asked["time"])
        result = [
            {
                "metric": labels,
                "values": [[t, str(v)] for t, v in rows if end - float(span) / 1000 <= t <= end],
            }
            for labels, rows in series.get(query, [])
        ]
        found = [one for one in result if one["values"]]
        body = {"status": "success", "data": {"resultType": "matrix", "result": found}}
        request.answer(200, json.dumps(body).encode())

    return answer


def counted(first: float, last: float, rate: float, step: float = 60.0) -> list[tuple[float, float]]:
    return [(first + at * step, rate * at * step) for at in range(int((last - first) / step) + 1)]


def test_a_day_comes_in_pieces_and_a_board_that_changes_its_labels_is_one(tokenpower: Command) -> None:
    start = 1_763_800_000.0
    end = start + 86_400
    rows = counted(start, end, 400_000)
    boards = [({"UUID": "GPU-1", "pod": "a"}, rows[:700]), ({"UUID": "GPU-1", "pod": "b"}, rows[700:])]
    with serving(
        answering({ENERGY: boards, TOKENS: [({"model_name": "llama"}, counted(start, end, 1000))]})
    ) as url:
        ended = tokenpower(
            "compare",
            "main",
            f"prometheus:{url}",
            "--since=2025-11-22T08:26:40Z",
            "--until=2025-11-23T08:26:40+00:00",
        )
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("service   0.4 ± ")
    assert (
        "2025-11-22 08:26:40 to 2025-11-23 08:26:40 UTC: 3.456e+07 J, 86400000 tokens, 400 W, 1000 tok/s"
        in ended.out
    )
    assert f"baseline  {BASELINE:.2f}" in ended.out


def test_what_cannot_be_compared_is_said(tokenpower: Command) -> None:
    now = time.time()
    half = [
        ({"UUID": "GPU-1"}, counted(now - 3600, now - 1800, 9e5)),
        ({"UUID": "GPU-2"}, counted(now - 3600, now, 9e5)),
    ]
    with serving(answering({ENERGY: half, TOKENS: [({}, counted(now - 3600, now, 1000))]})) as url:
        ended = tokenpower("compare", "main", f"prometheus:{url}")
        assert ended.code == 4
        assert re.search(r"GPU-1 has samples for 1[78]\d0 of 3[56]\d0 s", ended.err)
        ended = tokenpower("compare", "main", f"prometheus:{url}", "--energy=nothing")
        assert (ended.code, "--unit: name what nothing counts, joules or millijoules" in ended.err) == (
            4,
            True,
        )
        ended = tokenpower("compare", "main", f"prometheus:{url}", "--energy=nothing", "--unit=joules")
        assert "no energy counter has samples in this range" in ended.err
        ended = tokenpower("compare", "main", f"prometheus:{url}", "--energy=sum(x)", "--unit=joules")
        assert "sum(x): must be a metric with its matchers" in ended.err
        ended = tokenpower("compare", "main", f"prometheus:{url}", "--since=99999999d")
        assert "--since=99999999d: a range is at most 732 days long" in ended.err
        ended = tokenpower("compare", "main", f"prometheus:{url}", "--until=2h")
        assert "--since=1h is not before --until=2h" in ended.err
    ended = tokenpower("compare", "main", "prometheus:http://127.0.0.1:9")
    assert (ended.code, "http://127.0.0.1:9" in ended.err) == (4, True)
    assert "prometheus:URL: " in tokenpower("compare", "main", "prometheus:").err


def test_a_reading_of_power_is_no_counter(tokenpower: Command) -> None:
    now = time.time()
    watts = [(t, 300.0 + 7 * (at % 3)) for at, (t, _) in enumerate(counted(now - 3600, now, 1))]
    series: dict[str, list[tuple[dict[str, str], list[tuple[float, float]]]]] = {
        "power": [({"UUID": "GPU-1"}, watts)],
        TOKENS: [({}, counted(now - 3600, now, 1000))],
    }
    with serving(answering(series)) as url:
        ended = tokenpower("compare", "main", f"prometheus:{url}", "--energy=power", "--unit=joules")
    assert (ended.code, ended.out) == (4, "")
    assert re.search(r"GPU-1 falls (19|20) times in (59|60) changes, .*: it is no counter", ended.err)
    # A server that is hardly used and restarted twice.
    made = [
        (now - 3600 + 60 * at, float((0, 900, 900, 0, 0, 700, 0, 0, 800, 800)[at * 10 // 61]))
        for at in range(61)
    ]
    series = {ENERGY: [({"UUID": "GPU-1"}, counted(now - 3600, now, 3e5))], TOKENS: [({}, made)]}
    with serving(answering(series)) as url:
        ended = tokenpower("compare", "main", f"prometheus:{url}")
    assert (ended.code, ended.err) == (0, "")
    assert " 2400 tokens, " in ended.out
    assert "2 resets of counters" in ended.out


def test_times() -> None:
    assert moment("90m", 10_000.0) == 4600.0
    assert moment("2025-11-22T08:26:40Z", 0.0) == 1_763_800_000.0
    with pytest.raises(UsageError, match="must be a time such as"):
        moment("yesterday", 0.0)
