"""The statistics of the verdict: pure functions, each formula with its source."""
