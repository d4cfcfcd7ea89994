"""Where records are kept, and which of them are the baseline: store, git history, keys."""
