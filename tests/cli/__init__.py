"""Tests of the `tokenpower` command."""
