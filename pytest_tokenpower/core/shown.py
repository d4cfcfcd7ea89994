"""Text of others at the edge where it is printed: nothing in it reaches the terminal, or a CI service, as a command."""

from __future__ import annotations

import re
from typing import TextIO

_COLOURS = re.compile(r"\x1b\[[0-9;]*[mK]")
"""What engines colour their logs with: the words stay."""

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and line end, DEL, C1
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"  # what turns, hides or ends a line
    "\ud800-\udfff\U000e0000-\U000e007f]"  # halves of characters, tags
)

_COMMAND = re.compile(
    r"""
    ^(?P<margin>\s*)                           # services skip what is before it
    (?P<start>:(?=:)                           # ::error of GitHub and Forgejo
      |s(?=ection_(?:start|end):)              # GitLab
      |t(?=ravis_(?:fold|time):)
      |-(?=--\ [^\s-])|\+(?=\+\+\ )|~(?=~~\ )|\^(?=\^\^\ )   # Buildkite
    )
    |\#(?=\#\w*\[)                             # ##vso[, ##[group], ##teamcity[ anywhere in a line
    """,
    re.VERBOSE | re.MULTILINE,
)


def shown(text: str) -> str:
    r"""Text as it may be printed: what would act instead of being read is written as ``\uXXXX``.

    Tabs and line ends stay. The form is that of JSON's strings, so that a document of JSON remains the same data.
    """
    if text.isascii() and text.isprintable() and "##" not in text and not text.startswith(_STARTS):
        return text
    text = _UNSEEN.sub(_escaped, _COLOURS.sub("", text))
    return _COMMAND.sub(_disarmed, text)


_STARTS = (" ", ":", "s", "t", "-", "+", "~", "^")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code > 0xFFFF:
        high, low = divmod(code - 0x10000, 0x400)
        return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
    return f"\\u{code:04x}"


def _disarmed(match: re.Match[str]) -> str:
    sign = match["start"] or match[0]
    return f"{match['margin'] or ''}\\u{ord(sign):04x}"


class ShownStream:
    """A text stream that passes whole lines on as :func:`shown`; the rest of a line when it is flushed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._pending = ""
        self._inside = False

    @property
    def plain(self) -> TextIO:
        """The stream itself, for a command that is meant."""
        return self._stream

    def write(self, text: str) -> int:
        """Take text; pass on the lines that are complete."""
        self._pending += text
        if "\n" in text:
            whole, _, self._pending = self._pending.rpartition("\n")
            self._pass_on(whole + "\n")
            self._inside = False
        return len(text)

    def flush(self) -> None:
        """Pass on what there is."""
        if self._pending:
            self._pass_on(self._pending)
            self._pending, self._inside = "", True
        self._stream.flush()

    def _pass_on(self, text: str) -> None:
        # What goes on with a line that was begun is not at its start.
        self._stream.write(shown(f".{text}")[1:] if self._inside else shown(text))

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
