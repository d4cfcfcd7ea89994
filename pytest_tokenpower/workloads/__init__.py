"""Workloads: what an engine is given to do in each round, as frozen values with a fingerprint for the key."""

from pytest_tokenpower.workloads.arrivals import AllAtOnce, Arrivals, Concurrency, Poisson
from pytest_tokenpower.workloads.base import Batch, FixedShape, GivenBatch, Workload
from pytest_tokenpower.workloads.prompts import PromptSet

__all__ = [
    "AllAtOnce",
    "Arrivals",
    "Batch",
    "Concurrency",
    "FixedShape",
    "GivenBatch",
    "Poisson",
    "PromptSet",
    "Workload",
]
