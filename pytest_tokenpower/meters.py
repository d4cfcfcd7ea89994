"""Meters of one's own: what a meter implements, and the values that it gives."""

from pytest_tokenpower.telemetry.clock import Clock
from pytest_tokenpower.telemetry.types import Conditions, CounterReading, Device, Meter, PowerSamples, Reading

__all__ = ["Clock", "Conditions", "CounterReading", "Device", "Meter", "PowerSamples", "Reading"]
