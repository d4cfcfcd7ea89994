"""Telemetry: meters, the background collector and the timeline. It knows nothing of tests."""
