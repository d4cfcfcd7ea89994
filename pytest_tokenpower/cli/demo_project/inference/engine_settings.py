"""How the demo's engine is set up: what its "pull requests" change."""

CACHE = "dynamic"
