"""The `tokenpower` command."""
