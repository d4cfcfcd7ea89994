"""vLLM: offline, asynchronous and as a server."""
