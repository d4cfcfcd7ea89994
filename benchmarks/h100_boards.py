"""What fixed work foretells of a board: the spread of J/token between four H100s, before and after.

``python benchmarks/h100_boards.py`` writes docs/results/h100-boards.md from docs/results/data/h100-boards.json, the
mean ln(joules) of each process.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from reporting import table, versions_line

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PIECES = {
    "8192³ bf16 matmul, at the power limit": ("matmul",),
    "40 GEMMs of 32 rows in a CUDA graph, bound by memory": ("gemms",),
    "the mean of the two": ("matmul", "gemms"),
    "device copy": ("copy",),
    "waiting": ("waiting",),
}


def page(data: dict[str, Any]) -> list[str]:
    """Return the lines of the page."""
    processes = data["log_joules"]["work"]
    means = {
        name: {board: statistics.fmean(each) for board, each in boards.items()}
        for name, boards in data["log_joules"].items()
    }
    work = means["work"]
    within = statistics.fmean(statistics.variance(each) for each in processes.values()) ** 0.5
    rows = [("nothing", f"{100 * statistics.stdev(work.values()):.2f} %")]
    for said, names in PIECES.items():
        left = [
            level - statistics.fmean(means[name][board] for name in names) for board, level in work.items()
        ]
        rows.append((said, f"{100 * statistics.stdev(left):.2f} %"))
    return [
        "# What fixed work foretells of four H100s",
        "",
        f"Boards: {len(work)} x {data['board']} of one host, power limit {data['power_limit_watts']} W. Driver "
        f"{data['driver']}.  ",
        versions_line(data["versions"]),
        f"Date: {data['date']}. Command: `python benchmarks/h100_boards.py`, of the mean ln(joules) of each process "
        "in `docs/results/data/h100-boards.json`.",
        "",
        f"The work is an 8B model in bf16 with 32 prompts and 64 new tokens each, "
        f"{sum(map(len, processes.values()))} fresh processes in all; within a board they scatter by "
        f"{100 * within:.2f} %. The pieces of fixed work ran for some seconds each in processes of their own, two or "
        "three a board. Their joules are taken as read and subtracted on the log scale with a slope of 1.",
        "",
        *table("subtracted | SD between the boards that remains", rows),
        "Four boards give an SD to within a factor of two or so, and the mean of the two pieces was chosen with these "
        "boards in sight: over [eight H200s](h200-aa.md#boards), measured later, it leaves more. The gate counts 0.7 % "
        "after calibration.",
    ]


if __name__ == "__main__":
    found = json.loads((RESULTS / "data" / "h100-boards.json").read_text(encoding="utf-8"))
    (RESULTS / "h100-boards.md").write_text("\n".join(page(found)) + "\n", encoding="utf-8")
