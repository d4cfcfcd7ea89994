"""What a million generated tokens cost in money and carbon, by factors that somebody has named. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import msgspec

from pytest_tokenpower.analysis.rounds import good
from pytest_tokenpower.core.records import MeasurementRecord
from pytest_tokenpower.core.settings import Factors
from pytest_tokenpower.errors import UsageError

JOULES_PER_KWH = 3.6e6

TOKENS = 1_000_000

_NOT_IN: Mapping[str, str] = {
    "gpu": "CPUs, memory, fans and the rest of the node",
    "cpu": "GPUs, memory, fans and the rest of the node",
    "dram": "GPUs, CPUs, fans and the rest of the node",
    "module": "fans and the rest of the node",
    "node": "network and storage outside the node",
    "rack": "",
}
"""What is not in the joules of a scope."""


@dataclass(frozen=True)
class Cost:
    """What a million generated tokens take; None where no factor is known."""

    kwh: float
    money: float | None
    grams: float | None


def cost_of(measured: MeasurementRecord, factors: Factors) -> Cost | None:
    """Return the cost of a million tokens at the measurement's own scope; None without factors or J/token."""
    figure = measured.figures.get("joules_per_token")
    if not factors or figure is None:
        return None
    # EcoLogits' estimates hold the overhead of the provider's data centre.
    pue = 1.0 if measured.provenance == "estimated" else factors.pue or 1.0
    kwh = figure.value * TOKENS / JOULES_PER_KWH * pue
    return Cost(kwh, _money(measured, kwh, factors), None if factors.carbon is None else kwh * factors.carbon)


def _money(measured: MeasurementRecord, kwh: float, factors: Factors) -> float | None:
    """Whose hardware is not measured here charges by the token; other work costs its electricity."""
    if measured.provenance != "estimated":
        return None if factors.price is None else kwh * factors.price
    if factors.token_prices is None:
        return None
    rounds = [one.record for one in good(measured.rounds)]
    prompt, generated = (
        sum(one.prompt_tokens for one in rounds),
        sum(one.generated_tokens for one in rounds),
    )
    read, written = factors.token_prices
    return read * prompt / generated + written if generated else None


def explained(factors: Factors, scopes: Iterable[str]) -> list[str]:
    """Where each factor is from, and which parts were not measured and so are missing from the result."""
    if not factors:
        return []
    lines = ["Mtok: a million generated tokens."]
    if factors.price is not None:
        lines.append(f"Price: {factors.price:g} {factors.currency}/kWh, as configured (energy_price).")
    if factors.token_prices is not None:
        read, written = factors.token_prices
        lines.append(
            f"An API's price: {read:g} {factors.currency} per million input tokens, cached ones too, and {written:g} "
            "per million output tokens, as configured (energy_token_prices)."
        )
    if factors.carbon is not None:
        lines.append(f"Carbon: {factors.carbon:g} gCO2e/kWh, {factors.carbon_source}.")
    if factors.pue is None:
        lines.append(
            "The data centre's overhead (cooling, conversion) is not in it: no energy_pue is configured."
        )
    else:
        lines.append(f"PUE: {factors.pue:g}, as configured (energy_pue).")
    for scope in dict.fromkeys(scopes):
        parts = scope.split("+")
        missing = _NOT_IN.get(scope, "parts that were not measured") if len(parts) == 1 else _missing(parts)
        if missing:
            lines.append(f"Missing from it, as only {scope} energy was measured: {missing}.")
    return lines


def _missing(parts: list[str]) -> str:
    names = {"gpu": "GPUs", "cpu": "CPUs", "dram": "memory"}
    left = [name for scope, name in names.items() if scope not in parts]
    return ", ".join([*left, "fans and the rest of the node"])


class Country(NamedTuple):
    """A country's carbon intensity of electricity in gCO2e/kWh, in one year."""

    name: str
    grams_per_kwh: float
    year: int


@cache
def countries() -> tuple[str, Mapping[str, Country]]:
    """Return the table's source, and its countries by ISO 3166 alpha-3 code."""
    table = msgspec.toml.decode(files(__package__).joinpath("carbon_intensity.toml").read_text("utf-8"))
    return table["source"], {code: Country(*row) for code, row in table["countries"].items()}


def read_factors(
    price: str | None,
    currency: str | None,
    carbon: str | None,
    pue: str | None,
    token_prices: str | None = None,
) -> Factors:
    """Read the factors as a person writes them; raises UsageError that names the one that is wrong.

    Args:
        price: money per kWh.
        currency: what the prices are in; they go together.
        carbon: gCO2e per kWh, or a country's alpha-3 code.
        pue: the data centre's total energy over its IT energy.
        token_prices: what an API charges per million input and per million output tokens, with a blank between.
    """
    prices = [name for name, text in (("energy_price", price), ("energy_token_prices", token_prices)) if text]
    if bool(prices) != bool(currency):
        given, missing = (prices[0], "energy_currency") if prices else ("energy_currency", "energy_price")
        raise UsageError(f"{given} is given without {missing}: a price needs both")
    intensity, source = _carbon_intensity(carbon) if carbon else (None, "")
    return Factors(
        _number("energy_price", price, "a price per kWh", 0.0) if price else None,
        (currency or "").strip(),
        intensity,
        source,
        _number("energy_pue", pue, "a number of at least 1", 1.0) if pue else None,
        _token_prices(token_prices) if token_prices else None,
    )


def _token_prices(text: str) -> tuple[float, float]:
    valid = 'two prices per million tokens, of input and of output, such as "0.15 0.60"'
    try:
        read, written = (_number("energy_token_prices", each, valid, 0.0) for each in text.split())
    except (UsageError, ValueError):
        raise UsageError(f"energy_token_prices={text}: must be {valid}") from None
    return read, written


def _number(name: str, text: str, valid: str, least: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number < 1e6:
        raise UsageError(f"{name}={text}: must be {valid}")
    return number


def _carbon_intensity(text: str) -> tuple[float, str]:
    """Return the intensity that a number or a country's code names, and its source."""
    source, table = countries()
    if (country := table.get(text.strip().upper())) is not None:
        return country.grams_per_kwh, f"{country.name} {country.year}, {source}"
    valid = f"a number of gCO2e per kWh, or one of {len(table)} countries' three letters (DEU, USA: ISO 3166 alpha-3)"
    return _number("carbon_intensity", text, valid, 0.0), "as configured (carbon_intensity)"
