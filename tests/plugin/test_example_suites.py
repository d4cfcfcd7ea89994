"""The paper's suites, all of their cells, on the simulated board."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.projects import Project

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples" / "suites"


def test_the_papers_suites_run_and_judge_their_claims_on_the_simulated_board(project: Project) -> None:
    shutil.copytree(EXAMPLES, project.path / "suites")
    result, run = project.measure("--energy-simulated-engines", "suites")
    outcomes = result.parseoutcomes()
    assert set(outcomes) == {"passed"}
    assert outcomes["passed"] == len(run.measurements) >= 80
    files = {one.test.partition("::")[0] for one in run.measurements}
    assert files == {f"suites/{path.name}" for path in EXAMPLES.glob("*.toml")}
    words = {(claim.suite, claim.name): claim.word for claim in run.claims}
    assert len(words) > 40
    # What a roofline says of them is known; a node has no meter here.
    untestable = [name for (_, name), word in words.items() if word == "not testable here"]
    assert untestable == ["GPUs take more than 60 % of the node"]
    assert words["suites/e5_quantization.energy.toml", "FP8 saves 15 % and more [batch=32]"] == "confirmed"
    assert words["suites/e2_batch.energy.toml", "batch 256 against 32 [model=llama-3.1-8b]"] == "confirmed"
