"""Workloads: what an engine is given to do in each round, as frozen values with a fingerprint for the key."""

from pytest_tokenpower.workloads.arrivals import AllAtOnce, Arrivals, Concurrency, Poisson
from pytest_tokenpower.workloads.base import Batch, FixedShape, GivenBatch, Workload
from pytest_tokenpower.workloads.prompts import PromptSet
from pytest_tokenpower.workloads.quality import ExactMatch, Likelihood, Score

__all__ = [
    "AllAtOnce",
    "Arrivals",
    "Batch",
    "Concurrency",
    "ExactMatch",
    "FixedShape",
    "GivenBatch",
    "Likelihood",
    "Poisson",
    "PromptSet",
    "Score",
    "Workload",
]
