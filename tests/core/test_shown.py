"""What others wrote is printed without acting on a terminal or a CI service."""

from __future__ import annotations

import io
import json
import re
from typing import TextIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.core.shown import ShownStream, shown
from pytest_tokenpower.core.text import short_test_name


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain text: 3 % ± 1, 30 °C", "plain text: 3 % ± 1, 30 °C"),
        ("\x1b]0;OWNED\x07\x1b[2J", r"\u001b]0;OWNED\u0007\u001b[2J"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("one\u2028::error::two\x85::error::three", r"one\u2028::error::two\u0085::error::three"),
        ("half\udc80\U000e0041", r"half\udc80\udb40\udc41"),
        ("a\r::error::b", r"a\u000d::error::b"),
        ("ok\n::error file=a.py::b", "ok\n\\u003a:error file=a.py::b"),
        ("  \u00a0::add-mask::passed", "  \u00a0\\u003a:add-mask::passed"),
        ("say ##vso[task.complete] and ##[group]", r"say \u0023#vso[task.complete] and \u0023#[group]"),
        ("##teamcity[testFailed name='x']", r"\u0023#teamcity[testFailed name='x']"),
        ("section_start:15:x", r"\u0073ection_start:15:x"),
        ("travis_fold:start:x", r"\u0074ravis_fold:start:x"),
        ("--- a group", r"\u002d-- a group"),
        ("^^^ +++", r"\u005e^^ +++"),
        ("---  -----\nname  value", "---  -----\nname  value"),
        ("## heading\ntest_a.py::test_b", "## heading\ntest_a.py::test_b"),
    ],
)
def test_what_would_act_is_written_out(text: str, seen: str) -> None:
    assert shown(text) == seen


@given(st.text(st.characters(codec=None)))
def test_nothing_that_acts_is_left_and_nothing_else_is_touched(text: str) -> None:
    seen = shown(text)
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]", seen
    )
    assert not any(line.lstrip().startswith("::") for line in seen.splitlines())
    assert shown(seen) == seen
    seen.encode()


@given(st.text(st.sampled_from('\x1b\x9b\u202e\u2028#[:vso\n"\\ \U000e0041a')))
def test_json_stays_the_same_data(text: str) -> None:
    document = json.dumps({"said": text}, ensure_ascii=False, indent=1)
    assert json.loads(shown(document)) == {"said": text}


@given(
    st.lists(st.sampled_from(["::error", "a", "\n", " ", ":", "##", "vso[", "\x1b[2J"])),
    st.sets(st.integers(0, 20)),
)
def test_a_stream_shows_lines_however_they_come(parts: list[str], flushes: set[int]) -> None:
    target = io.StringIO()
    stream = ShownStream(cast("TextIO", target))
    for at, part in enumerate(parts):
        stream.write(part)
        if at in flushes and part == "\n":
            stream.flush()
    stream.flush()
    assert target.getvalue() == shown("".join(parts))


def test_the_rest_of_a_line_that_was_flushed_is_no_beginning() -> None:
    target = io.StringIO()
    stream = ShownStream(cast("TextIO", target))
    for part in ("waiting ", "::error"):
        stream.write(part)
        stream.flush()
    stream.write(" done\n::error\n")
    assert target.getvalue() == "waiting ::error done\n\\u003a:error\n"


def test_a_test_is_called_by_one_line_whatever_is_in_its_name() -> None:
    assert short_test_name("a.py::T::test[std::sort-[0]::error::x]") == "test[std::sort-[0]::error::x]"
    assert short_test_name("a[b]/t.py::test") == "test"
    assert short_test_name("test") == "test"
    assert short_test_name("a.py::T::test[x\ny\u2028z\x85]") == "test[x y z ]"
    assert short_test_name("a[b]/c.py::T::test[d::e[f]]") == "test[d::e[f]]"
    assert short_test_name("measure()") == "measure()"
