"""Metadata of a build: the README with links that resolve where its files are not beside it, as on PyPI."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"(!?)(\[[^\]]*\])\((?![a-z]+:|#)([^)\s]+)\)")


class ReadmeHook(MetadataHookInterface):
    """Lead the README's relative links to the repository that ``[project.urls]`` names."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the readme."""
        source = metadata["urls"]["Source"]

        def absolute(link: re.Match[str]) -> str:
            return f"{link[1]}{link[2]}({source}/{'raw' if link[1] else 'blob'}/main/{link[3]})"

        text = (Path(self.root) / "README.md").read_text("utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": RELATIVE.sub(absolute, text)}
