"""The option that names a store, of every command over it."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_storage(parser: argparse.ArgumentParser) -> None:
    """Declare the option that names another store than the repository's own."""
    parser.add_argument(
        "--storage",
        metavar="PATH",
        type=Path,
        help="where the runs are stored, as in --energy-storage (default: the repository's own store)",
    )
