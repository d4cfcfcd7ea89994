"""Run tests' workloads under measurement. Knows no pytest."""
