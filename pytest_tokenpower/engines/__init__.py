"""Inference engines behind one protocol; each engine's own module is imported only when it is used."""
