"""A simulator of its own: boards, occasions, processes, rounds, host pace and GPU temperature, by the physics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pytest_tokenpower.stats.comparison import Run

WATTS = 125.0


@dataclass(frozen=True)
class Machine:
    """SDs of logs. ``waiting_share`` of J/token is drawn by waiting; ``leakage`` per °C."""

    run_sd: float = 0.003
    occasion_sd: float = 0.0
    board_sd: float = 0.0
    pace_sd: float = 0.0
    round_sd: float = 0.005
    waiting_share: float = 0.2
    leakage: float = 0.0
    celsius_sd: float = 0.0
    rounds: int = 10

    def runs(
        self,
        rng: np.random.Generator,
        count: int,
        *,
        change: float = 0.0,
        work: float = 0.0,
        slower: float = 0.0,
        occasions: int | None = None,
        board: str = "A",
        board_effect: float = 0.0,
        first_occasion: int = 0,
    ) -> list[Run]:
        """``count`` runs on ``occasions`` occasions (default: one each).

        ``change`` is of J/token as a whole, ``work`` of the active joules, ``slower`` of the seconds.
        """
        number = count if occasions is None else occasions
        shared = self.occasion_sd * rng.standard_normal(number)
        found = []
        for at in range(count):
            place = at * number // count
            joules = 0.2
            seconds = (joules * self.waiting_share / WATTS * (1 + slower)) * np.exp(
                self.pace_sd * (rng.standard_normal() + rng.standard_normal(self.rounds))
            )
            active = joules * (1 - self.waiting_share) * (1 + work)
            level = np.log1p(change) + board_effect + shared[place] + self.run_sd * rng.standard_normal()
            celsius = (
                50
                + self.celsius_sd * rng.standard_normal()
                + 0.3 * np.arange(self.rounds)
                - 0.15 * self.rounds
            )
            noise = self.round_sd * rng.standard_normal(self.rounds)
            values = (active + WATTS * seconds) * np.exp(level + noise + self.leakage * (celsius - 50))
            found.append(
                Run(
                    tuple(values.tolist()),
                    tuple(seconds.tolist()),
                    tuple(celsius.tolist()),
                    board=board,
                    host="host",
                    occasion=f"{first_occasion + place}",
                )
            )
        return found
