"""Each export as its consumer reads it."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from pytest_tokenpower.analysis.rounds import good
from pytest_tokenpower.core.records import decode_run, encode_run
from pytest_tokenpower.reporting.exports.records import schema_text
from pytest_tokenpower.reporting.formats import render
from pytest_tokenpower.reporting.report import Report
from tests.support.reports import (
    FACTORS,
    HOSTILE,
    embedding,
    hostile,
    measured,
    ordinary,
    report,
    run,
    verdict,
)

ROOT = Path(__file__).parents[2]

BMF_SCHEMA = {
    "$id": "https://bencher.dev/bmf.json",
    "$schema": "http://json-schema.org/draft-07/schema",
    "type": "object",
    "patternProperties": {
        ".+": {
            "type": "object",
            "patternProperties": {
                ".+": {
                    "type": "object",
                    "properties": {
                        "value": {"type": "number"},
                        "lower_value": {"type": "number"},
                        "upper_value": {"type": "number"},
                    },
                    "required": ["value"],
                }
            },
        }
    },
}
"""As Bencher publishes it (bencher.dev/bmf.json)."""


def rows(of: Report) -> list[dict[str, str]]:
    return list(csv.DictReader(render("csv", of).splitlines()))


# ---- CSV ---------------------------------------------------------------------------------------------------------


def test_csv_has_a_row_for_each_test_and_a_column_for_each_variable() -> None:
    found = rows(ordinary())
    assert [row["test"].rpartition("::")[2] for row in found] == [
        "test_chat[bf16]", "test_chat[fp8]", "test_budget", "test_new", "test_hot",
    ]  # fmt: skip
    first, second, *_, hot = found
    assert (first["param.dtype"], first["axis.dtype"], first["engine.max_num_seqs"]) == ("bf16", "bf16", "64")
    assert (first["rounds"], first["rounds_dropped"]) == ("10", "1")
    assert (second["verdict"], second["change"], second["limit"]) == ("regressed", "0.061", "0.03")
    assert float(first["joules_per_token"]) == pytest.approx(1.0, abs=0.01)
    assert float(first["cost_per_million_tokens"]) == pytest.approx(1 / 3.6 * 1.2 * 0.3, abs=0.002)
    assert first["currency"] == "EUR"
    # What is not known is empty, not 0.
    assert hot["joules_per_token"] == hot["change"] == hot["cost_per_million_tokens"] == ""


def test_csv_of_tests_with_different_columns_is_one_table() -> None:
    found = rows(
        report(measured(facts={"param.batch": 8}), measured("t.py::b", facts={"engine.dtype": "fp8"}))
    )
    assert [(row["param.batch"], row["engine.dtype"]) for row in found] == [("8", ""), ("", "fp8")]


def test_csv_carries_any_text() -> None:
    [row] = csv.DictReader(render("csv", hostile()).splitlines(keepends=True))
    assert row["provenance"] == HOSTILE


# ---- JSON --------------------------------------------------------------------------------------------------------


def test_records_keep_to_the_published_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema validates")
    published = ROOT / "docs" / "run.schema.json"
    # An older msgspec orders a schema otherwise.
    if metadata.version("msgspec") >= "0.22":
        assert published.read_text("utf-8") == schema_text(), (
            "tokenpower report --format=schema -o docs/run.schema.json"
        )
    schema = json.loads(published.read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for each in (ordinary(), hostile(), Report((run(),))):
        for line in render("json", each).rstrip("\n").split("\n"):
            assert list(validator.iter_errors(json.loads(line))) == []
            assert decode_run(line.encode(), source="export") in each.runs
    broken = json.loads(encode_run(run(measured())))
    del broken["measurements"][0]["test"]
    assert list(validator.iter_errors(broken))


# ---- dashboards --------------------------------------------------------------------------------------------------


def test_bencher_reads_values_with_their_intervals() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema validates")
    found = json.loads(render("bencher", ordinary()))
    jsonschema.Draft7Validator(BMF_SCHEMA).validate(found)
    # An invalid measurement is no point of a curve.
    assert len(found) == 4
    measures = found["tests/test_energy.py::test_chat[fp8]"]
    value = measures["joules-per-token"]
    assert value["lower_value"] < value["value"] < value["upper_value"]
    assert measures["eur-per-million-tokens"]["value"] == pytest.approx(1.041 / 3.6 * 1.2 * 0.3, abs=0.001)
    # Names and slugs of measures have at most 64 characters.
    assert all(len(name) <= 64 for each in found.values() for name in each)
    assert all(len(name) <= 1024 for name in json.loads(render("bencher", hostile())))


def test_what_was_not_measured_is_another_line_of_a_dashboard() -> None:
    simulated = report(measured(provenance="simulated"))
    [name] = json.loads(render("bencher", simulated))
    [entry] = json.loads(render("github-action-benchmark", simulated))
    assert name == entry["name"] == "tests/test_energy.py::test_chat[bf16] (simulated)"


def test_github_action_benchmark_reads_joules_per_token() -> None:
    found = json.loads(render("github-action-benchmark", ordinary()))
    assert len(found) == 4
    for entry in found:
        # What its extractCustomBenchmarkResult takes over.
        assert {name: type(value) for name, value in entry.items()} == {
            "name": str, "unit": str, "value": float, "range": str, "extra": str,
        }  # fmt: skip
        assert entry["unit"] == "J/token"
        assert entry["range"].startswith("± ")
    assert "EUR per million tokens: 0.1041" in found[1]["extra"]


def test_what_generates_nothing_is_followed_per_prompt_token() -> None:
    [entry] = json.loads(render("github-action-benchmark", report(embedding())))
    assert (entry["unit"], round(entry["value"], 4)) == ("J/prompt token", 0.4025)
    [measures] = json.loads(render("bencher", report(embedding()))).values()
    assert "joules-per-prompt-token" in measures
    assert "joules-per-token" not in measures


# ---- OpenMetrics -------------------------------------------------------------------------------------------------


def families(of: Report) -> dict[str, list[Any]]:
    parser = pytest.importorskip("prometheus_client.openmetrics.parser", reason="prometheus_client reads it")
    return {
        family.name: family.samples
        for family in parser.text_string_to_metric_families(render("openmetrics", of))
    }


def test_prometheus_own_parser_reads_openmetrics() -> None:
    samples = families(ordinary())
    short = [sample.labels["test"].rpartition("::")[2] for sample in samples["tokenpower_joules_per_token"]]
    # The figures of an invalid measurement are no points of a line.
    assert short == ["test_chat[bf16]", "test_chat[fp8]", "test_budget", "test_new"]
    assert [sample.value for sample in samples["tokenpower_failing"]] == [0, 1, 1, 0, 1]
    assert [sample.labels["verdict"] for sample in samples["tokenpower_run"]] == [
        "passed", "regressed", "over budget", "no baseline", "invalid",
    ]  # fmt: skip
    cost = samples["tokenpower_cost_per_million_tokens"][0]
    assert cost.labels["currency"] == "EUR"
    assert math.isclose(cost.timestamp, 1795837320.0, abs_tol=1)


def test_openmetrics_carries_any_text() -> None:
    [cost] = families(hostile())["tokenpower_cost_per_million_tokens"]
    assert cost.labels["currency"] == HOSTILE
    assert families(report()) == {}


def test_a_test_is_one_line_over_its_runs() -> None:
    later = run(
        measured(watts=520, verdicts=(verdict("regressed", 0.06),)),
        id="9" * 32, created="2026-11-29T03:42:00.000000Z", commit="f" * 40,
    )  # fmt: skip
    samples = families(Report((later, run(measured()))))["tokenpower_joules_per_token"]
    assert [sample.timestamp for sample in samples] == sorted(sample.timestamp for sample in samples)
    assert samples[0].labels == samples[1].labels
    assert not samples[0].labels.keys() & {"run", "commit", "verdict"}


@pytest.mark.parametrize("make", [ordinary, hostile])
def test_prometheus_itself_takes_openmetrics_in(make: Any, tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's prometheus)")
    text = render("openmetrics", make())
    (tmp_path / "run.om").write_text(text, "utf-8")
    done = subprocess.run(
        [promtool, "tsdb", "create-blocks-from", "openmetrics", "run.om", "blocks"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    count = sum(not line.startswith("#") for line in text.rstrip("\n").split("\n"))
    assert f" {count} " in done.stdout


@pytest.mark.parametrize("chosen", ["csv", "github-action-benchmark", "openmetrics", "pytest-benchmark"])
def test_a_cost_names_its_factors_and_what_is_missing_from_it(chosen: str) -> None:
    text = render(chosen, ordinary())
    for said in (
        "Price: 0.3 EUR/kWh, as configured (energy_price).",
        "Carbon: 380 gCO2e/kWh, as configured (carbon_intensity).",
        "Missing from it, as only gpu energy was measured: CPUs",
    ):
        assert said in text


# ---- Chrome trace ------------------------------------------------------------------------------------------------


def test_a_trace_has_rounds_phases_and_power_on_one_clock() -> None:
    each = report(measured())
    events = json.loads(render("trace", each))["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C"}
    # The trace event format: what each kind must have.
    for event in events:
        needed = {
            "M": {"name", "pid", "args"},
            "X": {"name", "ts", "dur", "pid", "tid"},
            "C": {"name", "ts", "pid", "args"},
        }
        assert needed[event["ph"]] <= event.keys()
    rounds = [event for event in events if event.get("cat") == "round"]
    assert [event["name"] for event in rounds][1:3] == ["round 2", "round 3 (dropped)"]
    assert (rounds[0]["ts"], rounds[0]["dur"]) == (100e6, 2e6)
    assert rounds[0]["args"]["mean_watts"] == pytest.approx(500)
    phases = [event for event in events if event.get("cat") == "phase"]
    assert (phases[0]["name"], phases[0]["ts"], phases[0]["dur"]) == ("prefill", 100e6, 2e5)
    power = [event for event in events if event["ph"] == "C"]
    assert len(power) == 1000
    # A step is set where the one before it ended.
    assert power[1]["ts"] == pytest.approx(99.5e6 + 21_000)
    assert json.loads(render("trace", Report((run(measured()),))))["traceEvents"]


# ---- pytest-benchmark --------------------------------------------------------------------------------------------


def test_pytest_benchmark_json_has_seconds_in_its_statistics_and_energy_beside_them() -> None:
    saved = json.loads(render("pytest-benchmark", ordinary()))
    assert len(saved["benchmarks"]) == 5
    first = saved["benchmarks"][0]
    kept = good(ordinary().runs[0].measurements[0].rounds)
    assert first["stats"]["rounds"] == len(kept) == 9
    assert first["stats"]["mean"] == 2.0
    assert (first["param"], first["params"]) == ("bf16", {"dtype": "bf16"})
    assert first["extra_info"]["energy.joules_per_token"] == pytest.approx(1.0, abs=0.01)
    assert not [name for name in first["stats"] if "joule" in name]


def test_pytest_benchmark_compares_it(tmp_path: Path) -> None:
    if importlib.util.find_spec("pytest_benchmark") is None:
        pytest.skip("pytest-benchmark is not installed")
    for number, watts in enumerate((500, 520), 1):
        one = report(measured(watts=watts, verdicts=(verdict("passed", 0.003),)), factors=FACTORS)
        (tmp_path / f"000{number}_run.json").write_text(render("pytest-benchmark", one))
    ended = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", *sorted(map(str, tmp_path.glob("*.json")))],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.count("test_chat[bf16]") == 2
    assert "2.0000" in ended.stdout
