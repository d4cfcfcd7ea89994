"""From hardware to a timeline: the meters, the background collector, the clocks. Nothing here knows of tests.

The names below are public: what a meter of one's own implements, and the values that it gives.
"""

from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.types import Conditions, CounterReading, Device, Meter, PowerSamples, Reading

__all__ = ["Clock", "Conditions", "CounterReading", "Device", "Meter", "PowerSamples", "Reading"]
