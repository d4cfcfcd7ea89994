"""Money and carbon of a million tokens: by exact values, with the source of each factor and what is missing."""

from __future__ import annotations

import re

import msgspec
import pytest

from pytest_tokenpower.core.records import Figure, MeasurementRecord, RoundRecord
from pytest_tokenpower.core.settings import NO_FACTORS, Factors
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.reporting.columns import Layout, table
from pytest_tokenpower.reporting.costs import cost_of, countries, explained, read_factors


def measured(joules_per_token: float = 3.6, scope: str = "gpu") -> MeasurementRecord:
    figures = {"joules_per_token": Figure(joules_per_token, 0.01)}
    return MeasurementRecord(
        "t.py::t", {}, "measured", scope, "power ring", (), comparable=True, figures=figures
    )


def test_a_kilowatt_hour_for_a_million_tokens_of_3_6_joules() -> None:
    cost = cost_of(measured(), Factors(0.25, "EUR", 400.0, "as configured"))
    assert cost is not None
    assert (cost.kwh, cost.money, cost.grams) == (1.0, 0.25, 400.0)
    with_overhead = cost_of(measured(), Factors(0.25, "EUR", None, "", 1.5))
    assert with_overhead is not None
    assert (with_overhead.kwh, with_overhead.money, with_overhead.grams) == (1.5, 0.375, None)


def test_an_estimate_has_the_data_centre_s_overhead_already() -> None:
    estimated = msgspec.structs.replace(measured(), provenance="estimated")
    cost = cost_of(estimated, Factors(None, "", 400.0, "as configured", 1.5))
    assert cost is not None
    assert (cost.kwh, cost.grams) == (1.0, 400.0)


def test_an_api_charges_by_the_token_and_nothing_else_does() -> None:
    factors = read_factors("0.25", "USD", None, None, "0.5 2")
    rounds = tuple(RoundRecord(at, 1.0, 720.0, 0.0, 300, 200) for at in range(2))
    dropped = RoundRecord(2, 1.0, 720.0, 0.0, 9000, 200, reasons=("spoilt",))
    estimated = msgspec.structs.replace(measured(), provenance="estimated", rounds=(*rounds, dropped))
    cost = cost_of(estimated, factors)
    assert cost is not None
    assert cost.money == pytest.approx(2 + 0.5 * 300 / 200)
    own = cost_of(measured(), factors)
    assert own is not None
    assert own.money == 0.25
    alone = cost_of(measured(), read_factors(None, "USD", None, None, "0.5 2"))
    assert alone is not None
    assert alone.money is None
    assert explained(factors, ["node"])[2] == (
        "An API's price: 0.5 USD per million input tokens, cached ones too, and 2 per million output tokens, as "
        "configured (energy_token_prices)."
    )


@pytest.mark.parametrize("text", ["1", "1 2 3", "a b", "-1 2", "1,2"])
def test_prices_that_are_not_two_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"energy_token_prices={text}: must be two prices"):
        read_factors(None, "USD", None, None, text)
    with pytest.raises(UsageError, match="energy_token_prices is given without energy_currency"):
        read_factors(None, None, None, None, "1 2")


def test_without_factors_or_without_a_figure_there_is_no_cost() -> None:
    assert cost_of(measured(), NO_FACTORS) is None
    assert cost_of(measured(), Factors(pue=1.2)) is None
    invalid = MeasurementRecord("t", {}, "measured", "gpu", "", (), comparable=False)
    assert cost_of(invalid, Factors(0.25, "EUR")) is None


def test_every_factor_names_its_source_and_what_was_not_measured_is_missing() -> None:
    factors = read_factors("0.25", "EUR", "DEU", None)
    assert explained(factors, ["gpu", "gpu", "node", "cpu+dram"]) == [
        "Mtok: a million generated tokens.",
        "Price: 0.25 EUR/kWh, as configured (energy_price).",
        "Carbon: 380.9 gCO2e/kWh, Germany 2023, yearly average of generation, Our World in Data's energy data set as "
        "packaged by CodeCarbon 3.3.2.",
        "The data centre's overhead (cooling, conversion) is not in it: no energy_pue is configured.",
        "Missing from it, as only gpu energy was measured: CPUs, memory, fans and the rest of the node.",
        "Missing from it, as only node energy was measured: network and storage outside the node.",
        "Missing from it, as only cpu+dram energy was measured: GPUs, fans and the rest of the node.",
    ]
    assert explained(NO_FACTORS, ["gpu"]) == []


def test_the_table_of_countries_is_sound() -> None:
    source, table = countries()
    assert "Our World in Data" in source
    assert len(table) > 200
    for code, country in table.items():
        assert re.fullmatch("[A-Z]{3}", code)
        assert 0 < country.grams_per_kwh < 1500
        assert 2021 <= country.year <= 2023


@pytest.mark.parametrize("text", ["-1", "inf", "nan", "XXX", "12 g"])
def test_a_carbon_intensity_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"carbon_intensity={text}"):
        read_factors(None, None, text, None)


def test_the_terminal_has_a_column_for_each_factor_that_is_known() -> None:
    lines = [line for line, _ in table([measured()], Layout(factors=Factors(0.25, "EUR", 400.0)), 120)]
    assert lines[0].split() == ["test", "J/token", "±95", "%", "EUR/Mtok", "gCO2e/Mtok", "verdict"]
    assert lines[2].split() == ["t", "3.600", "0.5", "%", "0.25", "400", "measured"]
    plain = [line for line, _ in table([measured()], Layout(), 120)]
    assert "Mtok" not in plain[0]
