"""`python -m pytest_tokenpower` is the `tokenpower` command."""

import sys

from pytest_tokenpower.cli import main

if __name__ == "__main__":
    sys.exit(main())
