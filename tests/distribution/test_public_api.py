"""The public face: what may be imported from where, as docs/api.md promises it."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

from pytest_tokenpower import errors

PUBLIC = {
    "pytest_tokenpower": "AllAtOnce Batch Concurrency Energy EngineSpec FixedShape GivenBatch Poisson PromptSet "
    "Result Timeouts TokenCount __version__ measure",
    "pytest_tokenpower.engines": "Engine EngineIdentity EngineSpec Generation Latency Serving Step Timeouts",
    "pytest_tokenpower.meters": "Clock Conditions CounterReading Device Meter PowerSamples Reading",
    "pytest_tokenpower.models": "Architecture Model find_model load_models write_random_model",
    "pytest_tokenpower.records": "Figure MeasurementRecord PhaseRecord PhaseSplit RoundRecord RunRecord ScopeFigure "
    "VerdictRecord decode_run message",
    "pytest_tokenpower.workloads": "AllAtOnce Arrivals Batch Concurrency ExactMatch FixedShape GivenBatch "
    "Likelihood Poisson PromptSet Score Workload",
}
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", PUBLIC)
def test_each_public_module_offers_its_names(module: str) -> None:
    loaded = importlib.import_module(module)
    assert sorted(loaded.__all__) == sorted(PUBLIC[module].split())
    for name in loaded.__all__:
        assert getattr(loaded, name) is not None


def test_every_error_is_one_of_ours() -> None:
    ours = [
        each for _, each in inspect.getmembers(errors, inspect.isclass) if each.__module__ == errors.__name__
    ]
    assert len(ours) > 5
    assert all(issubclass(each, errors.TokenPowerError) for each in ours)


@pytest.mark.parametrize("module", PUBLIC)
def test_the_page_of_the_interface_names_the_module(module: str) -> None:
    assert f"| `{module}` |" in (ROOT / "docs" / "api.md").read_text("utf-8")


def test_readme_docs_and_examples_use_nothing_else() -> None:
    allowed = {*PUBLIC, "pytest_tokenpower.errors"}
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.py")):
        used = re.findall(
            r"^\s*(?:from|import) (pytest_tokenpower[\w.]*)", path.read_text("utf-8"), re.MULTILINE
        )
        assert set(used) <= allowed, path
