"""Models to measure: true architectures as data, what fits, and random weights where there is no hub."""

from pytest_tokenpower.models.architecture import Architecture
from pytest_tokenpower.models.random_weights import write_random_model
from pytest_tokenpower.models.registry import Model, find_model, load_models

__all__ = ["Architecture", "Model", "find_model", "load_models", "write_random_model"]
