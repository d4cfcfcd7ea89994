"""How the demo's engine is set up: what its "pull requests" change."""

KV_CACHE_DTYPE = "fp8"
