"""Where records live and which of them are the baseline: store, git history, key."""
