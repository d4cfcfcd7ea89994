"""pytester for the test-suite: pytest wants plugins to be named in the topmost conftest. The examples have it, too."""

pytest_plugins = ["pytester"]
