"""Sweeps over models, engines and work as declarative files, and the claims that are held against them. Pure."""
