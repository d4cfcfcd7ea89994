"""From records to verdicts: pure functions."""
