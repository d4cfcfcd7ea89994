"""Values that every room passes on: tokens, windows, records, settings. No numpy, no pytest, no I/O but JSON."""
