"""Pure functions from a timeline and windows to energy: no clock, no I/O, no pytest."""
