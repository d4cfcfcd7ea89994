"""What a comparison of two variants says of itself."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_tokenpower.gate.messages import message
from pytest_tokenpower.gate.verdict import Policy, judge_variants
from pytest_tokenpower.stats.comparison import Blocks


@pytest.mark.parametrize(("rise", "kind"), [(1.12, "inconclusive"), (1.5, "regressed")])
def test_two_blocks_that_decide_nothing_say_from_where_on_they_would(rise: float, kind: str) -> None:
    candidate = np.array([[0.0, 1.0, 1.0, 0.0]] * 2)
    verdict = judge_variants([Blocks(rise**candidate, candidate)], Policy(0.03), at_most=0.03)
    said = message(verdict, "t.py::test_x", failing=kind == "regressed")
    assert verdict.kind == kind
    assert "2 ABBA blocks in 1 restart" in said
    assert ("Not decided: " in said) is (kind == "inconclusive")
    assert ("a rise of J/token fails here from 17 % on" in said) is (kind == "inconclusive")
    assert ("until three restarts tell, both are taken to differ by 1 % from process to process" in said) is (
        kind == "inconclusive"
    )
