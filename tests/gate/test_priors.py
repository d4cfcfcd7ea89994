"""What stored runs teach of the noise of tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_tokenpower.gate.evidence import Boards
from pytest_tokenpower.gate.priors import Priors
from pytest_tokenpower.stats.scatter import Noise
from pytest_tokenpower.store.baseline import Baseline
from pytest_tokenpower.store.git import Repository
from pytest_tokenpower.store.store import Store
from tests.support.histories import OTHER, at_level, regressed
from tests.support.repositories import Git, plain_git, run


def test_a_regression_that_nobody_accepted_is_no_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_git(monkeypatch, tmp_path)

    def learned(folder: str, level: float) -> Noise:
        """Return what five runs of another test teach; the fourth was recorded as regressed, at this level."""
        git, store = Git.init(tmp_path / folder), Store(tmp_path / folder / "store")
        for number, factor in enumerate((1.0, 1.001, 0.999, level, 1.0)):
            commit = git.commit(f"change {number}")
            found = regressed(f"main@{commit[:7]}") if factor == level else ()
            store.write(run(number, at_level(factor, OTHER, verdicts=found, seed=number), commit=commit))
        baseline = Baseline.resolve("main", store, Repository.discover(git.path), folder=git.path)
        return Priors().of(baseline, at_level(), Boards())

    assert learned("rise", 1.3) == learned("hardly", 1.0009)
