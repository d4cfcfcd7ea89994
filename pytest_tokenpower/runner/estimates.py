"""Rounds without a meter: tokens and time are measured, the energy is a named model's estimate."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_tokenpower.analysis.other_scopes import OtherScopes
from pytest_tokenpower.analysis.rounds import Evaluation, percentiles
from pytest_tokenpower.core.records import RoundRecord
from pytest_tokenpower.core.types import Scope
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.meters.adapters.ecologits import Estimator
from pytest_tokenpower.meters.collector import Collector
from pytest_tokenpower.runner.telemetry import TelemetrySession


class Estimates(TelemetrySession):
    """Gives each round the energy that the estimator says of its requests; nothing is read."""

    def __init__(self, estimator: Estimator, scope: Scope | None = None) -> None:
        super().__init__(Collector(()), (estimator.device,), scope)
        self.collector.timeline.add_device(estimator.device)
        self._estimator = estimator

    def shortest_window_ns(self) -> float:
        """Any round is long enough, and no request is repeated for its length."""
        return 0.0

    def evaluate(self, windows: Sequence[RoundWindow]) -> Evaluation:
        """Estimate each round."""
        method = f"EcoLogits {self._estimator.version}"
        return Evaluation(tuple(map(self._round, windows)), frozenset({method}) if windows else frozenset())

    def failed_for_good(self, start_ns: int) -> bool:
        """Nothing can fail."""
        return False

    def other_scopes(self, windows: Sequence[RoundWindow], rounds: Sequence[RoundRecord]) -> OtherScopes:
        """There are none."""
        return OtherScopes(tuple(rounds))

    def _round(self, window: RoundWindow) -> RoundRecord:
        tokens, seconds = window.tokens, (window.end_ns - window.start_ns) / 1e9
        # A model of one request, linear in its tokens: the requests of a round are alike, and as long as they can be.
        requests = max(tokens.responses, 1)
        low, high = self._estimator.joules(round(tokens.generated / requests), seconds / window.repeats)
        joules = requests * (low + high) / 2
        return RoundRecord(
            start_ns=window.start_ns,
            seconds=seconds,
            joules=joules,
            # The range is the model's own, alike in all rounds: no scatter that would average.
            stderr_joules=0.0,
            prompt_tokens=tokens.prompt,
            generated_tokens=tokens.generated,
            responses=tokens.responses,
            cached_prompt_tokens=tokens.cached_prompt,
            repeats=window.repeats,
            latency=percentiles(window.latencies),
            reasons=window.reasons,
        )
