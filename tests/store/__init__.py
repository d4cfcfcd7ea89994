"""Tests of the store, git history and the key."""
