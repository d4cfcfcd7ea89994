"""Models to measure: true architectures, written locally with random weights where there is no hub."""

from pytest_tokenpower.models.architecture import ARCHITECTURES, Architecture, architecture
from pytest_tokenpower.models.random_weights import write_random_model

__all__ = ["ARCHITECTURES", "Architecture", "architecture", "write_random_model"]
