"""A child run leaves alone what the run that started it writes, wherever the options for that come from.

They may be on the command line, in the ini file or in ``PYTEST_ADDOPTS``; so each is taken back when it has been read.
"""

from __future__ import annotations

import argparse
import os

# By the names under which the options are kept: pytest's own, then those of other plugins.
_TAKEN_BACK: dict[str, object] = {
    "xmlpath": None,
    "log_file": os.devnull,
    "pastebin": None,
    "basetemp": None,
    # Nobody is there to debug it, and its cache is its own: that knows no last failure.
    **dict.fromkeys(("usepdb", "trace", "lf", "failedfirst", "newfirst", "cacheclear"), False),
    **dict.fromkeys(("stepwise", "stepwise_skip", "stepwise_reset"), False),
    "last_failed_no_failures": "all",
    "cov_source": [],
    "htmlpath": None,
    "report_log": None,
    "json_report": False,
    "csv_path": None,
    "mdpath": None,
    "md_report_output": None,
    "allure_report_dir": None,
    "store_durations": False,
    "benchmark_autosave": None,
    "benchmark_save": None,
    "benchmark_json": None,
}


def leave_alone(options: argparse.Namespace) -> None:
    """Take back what would write into files of the run that waits for this one."""
    for name, value in _TAKEN_BACK.items():
        if hasattr(options, name):
            setattr(options, name, value)
