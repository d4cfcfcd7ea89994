"""Draws the README's picture of a red pull request, from the demo's own comment: `python docs/draw_pull_request.py`.

It needs Debian's chromium and markdown-it-py (group test). The page stands for GitHub's; the words are the comment's.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from markdown_it import MarkdownIt

PICTURE = Path(__file__).parent / "images" / "pull-request.png"

PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; padding: 16px; width: 928px; background: #fff; color: #1f2328;
  font: 14px/1.5 -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; }}
.check, .comment {{ border: 1px solid #d1d9e0; border-radius: 6px; margin-bottom: 16px; }}
.check {{ padding: 12px 16px; display: flex; gap: 12px; align-items: center; }}
.cross {{ width: 28px; height: 28px; border-radius: 50%; background: #d1242f; color: #fff; text-align: center;
  font: bold 16px/28px sans-serif; }}
.grey {{ color: #59636e; }}
.comment > header {{ background: #f6f8fa; border-bottom: 1px solid #d1d9e0; padding: 8px 16px; }}
.comment > div {{ padding: 4px 16px 8px; }}
table {{ border-collapse: collapse; }} th, td {{ border: 1px solid #d1d9e0; padding: 5px 12px; }}
code {{ font: 12px ui-monospace, "DejaVu Sans Mono", monospace; }}
code {{ background: #eff1f3; border-radius: 6px; padding: 2px 5px; }}
pre {{ background: #f6f8fa; border-radius: 6px; padding: 12px; white-space: pre-wrap; }}
pre code {{ background: none; padding: 0; }}
</style>
<div class="check"><div class="cross">✕</div><div><strong>Some checks were not successful</strong>
<div class="grey">energy / gate: 1 failing, 1 successful check</div></div></div>
<div class="comment"><header><strong>github-actions</strong> <span class="grey">bot commented</span></header>
<div>{body}</div></div>
"""


def main() -> None:
    """Play the demo, have its comment written, and photograph it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenpower = [sys.executable, "-m", "pytest_tokenpower"]
        subprocess.run(
            [*tokenpower, "demo", "--simulated", f"--keep={folder}"], check=True, stdout=subprocess.DEVNULL
        )
        subprocess.run(
            [
                *(
                    sys.executable,
                    "-m",
                    "pytest",
                    "--energy-source=simulated:virtual",
                    "--energy-baseline=main",
                ),
                f"--energy-report=comment:{folder / 'comment.md'}",
            ],
            cwd=folder / "repository",
            check=False,
            stdout=subprocess.DEVNULL,
        )
        text = (folder / "comment.md").read_text(encoding="utf-8")
        html = folder / "page.html"
        html.write_text(
            PAGE.format(body=MarkdownIt("commonmark").enable("table").render(text)), encoding="utf-8"
        )
        height = 184 + 18 * len(re.findall("\n", text))
        subprocess.run(
            [
                *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
                *(f"--user-data-dir={folder / 'profile'}", f"--window-size=960,{height}"),
                *(f"--screenshot={PICTURE}", html.as_uri()),
            ],
            check=True,
            stderr=subprocess.DEVNULL,
        )
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
