"""Meters, one module per interface; the simulated and the modelled one among them."""
