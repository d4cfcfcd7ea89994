"""EcoLogits' estimate of what a request to a provider's model takes: no meter, a model of the data centre."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import MeterUnavailable, UsageError
from pytest_tokenpower.meters.types import Device

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Estimator:
    """A provider's model as EcoLogits knows it."""

    provider: str
    model: str
    version: str
    impacts: Any = field(repr=False)

    @classmethod
    def of(cls, name: str) -> Estimator:
        """Find ``PROVIDER/MODEL``; raises UsageError, and MeterUnavailable where EcoLogits is not installed."""
        provider, _, model = name.partition("/")
        if not provider or not model:
            raise UsageError(
                f"--energy-source=ecologits:{name}: give PROVIDER/MODEL, such as ecologits:openai/gpt-4o-mini"
            )
        try:
            from importlib.metadata import version

            from ecologits.tracers.utils import llm_impacts

            found = cls(provider, model, version("ecologits"), llm_impacts)
        except ImportError as error:
            raise MeterUnavailable(
                f"ecologits: estimates need a package that does not import ({error}): "
                "pip install 'pytest-tokenpower[ecologits]'"
            ) from error
        found.joules(1, 1.0)
        return found

    def joules(self, tokens: int, seconds: float) -> tuple[float, float]:
        """Return the least and the most energy of a request that generates so many tokens in so many seconds."""
        try:
            told = self.impacts(
                provider=self.provider,
                model_name=self.model,
                output_token_count=tokens,
                request_latency=seconds,
            )
        except KeyError as error:
            raise UsageError(f"ecologits:{self.provider}/{self.model}: EcoLogits knows no {error}") from None
        if told.energy is None:
            why = "; ".join(str(getattr(each, "message", each)) for each in told.errors or ())
            raise UsageError(f"ecologits:{self.provider}/{self.model}: EcoLogits has no estimate: {why}")
        kwh = told.energy.value
        low, high = getattr(kwh, "min", kwh), getattr(kwh, "max", kwh)
        return JOULES_PER_KWH * float(low), JOULES_PER_KWH * float(high)

    @property
    def device(self) -> Device:
        """What stands in the place of a meter's device."""
        low, high = self.joules(100, 1.0)
        facts: dict[str, Fact] = {"ecologits": self.version}
        return Device(
            id="ecologits",
            scope="node",
            name=f"{self.provider}/{self.model} (estimated by EcoLogits {self.version})",
            meter="ecologits",
            provenance="estimated",
            key_facts={"provider": self.provider, "model": self.model, **facts},
            facts={"range_share": round((high - low) / (high + low), 3)},
        )
