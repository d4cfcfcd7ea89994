"""Suite files are refused where they are wrong, by file, line and what is valid; editors get the same schema."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.core.denominators import PER
from pytest_tokenpower.core.settings import Limits
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.suites.grid import Suite
from pytest_tokenpower.suites.instances import instances
from pytest_tokenpower.suites.lines import line_of
from pytest_tokenpower.suites.schema import AXES, Axes, Denominator, LimitsTable, json_schema, parse_suite

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]

PLAIN = """\
[suite]
title = "precision"

[axes]
model = "llama-3.1-8b"
engine = "vllm"
batch = [8, 64]

[variants]
bf16 = {}
fp8 = { quantization = "fp8" }

[[claim]]
name = "FP8 saves"
of = { variant = "fp8" }
to = { variant = "bf16" }
at_most = 0.85
"""


def complaint(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        instances(Suite.parse(text, Path("s.energy.toml")))
    return str(caught.value)


def test_a_plain_suite_is_read() -> None:
    suite = parse_suite(PLAIN, "s")
    assert suite.axes.given() == {"model": ("llama-3.1-8b",), "engine": ("vllm",), "batch": (8, 64)}
    assert suite.claim[0].of == Axes(variant="fp8")


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        (
            "[8, 64]",
            '[8, "x"]',
            7,
            "axes.batch[1]: 'x': is no whole number; valid: a whole number of at least 1",
        ),
        ("[8, 64]", "0", 7, "axes.batch: 0: "),
        (
            "batch = [8",
            "bach = [8",
            7,
            "axes.bach: there is no such field; valid are model, engine, variant,",
        ),
        (
            "title",
            "titel",
            2,
            "suite.titel: there is no such field; valid are title, seed, runs, run_scatter",
        ),
        (
            "of = { variant",
            "of = { varient",
            15,
            "claim[0].of.varient: there is no such field; valid are model,",
        ),
        ("0.85", "-1", 17, "claim[0].at_most: -1: "),
        ("at_most = 0.85", 'at_most = 0.85\nseverity = "loud"', 18, "valid: report, fail"),
        ("at_most = 0.85", "", 13, "claim[0]: a ratio wants of, to, and at_most or at_least"),
        ("[axes]", "[axes", 4, "no TOML"),
        ("at_most = 0.85\n", "[claim", 17, "no TOML"),
        ("[suite]", "[sweet]", 1, "sweet: there is no such field; valid are axes, suite, models"),
        ('"vllm"', '"vlm"', 6, "axes.engine: engine 'vlm': use one of vllm,"),
        (
            '"llama-3.1-8b"',
            '"llama"',
            5,
            "axes.model: 'llama' is no model: give a name of `tokenpower models`",
        ),
        ('"llama-3.1-8b"', '"./nowhere"', 5, "nowhere: there is no such folder"),
        ("[8, 64]", '8\nprompts = "alpaca"', 8, "'alpaca' is no set of prompts; there are random"),
        ("[8, 64]", '8\nvariant = "int4"', 8, "'int4' is no variant; there are bf16, fp8"),
        ("[8, 64]", "8\narrivals = { poisson = 1, concurrency = 2 }", 8, "either concurrency or poisson"),
        ("[8, 64]", "[]", 7, "axes.batch: is an empty list"),
        ("[8, 64]", "[8, 8]", 7, "axes.batch: 8 is there twice"),
        (
            "[8, 64]",
            '8\nquantization = "awq"',
            12,
            "variants.fp8.quantization: is 'fp8', and the axis quantization",
        ),
        (
            "[variants]",
            "[engines.vlm]\n[variants]",
            9,
            "engines.vlm: no axis names it; of engines there are vllm",
        ),
        ("[variants]", '[variants]\n"x y" = {}', 10, "variants.x y: a name is without spaces"),
        ("[variants]", "[limits]\nquality = 0.5\n[variants]", 10, "limits.quality: nothing is scored"),
        (
            "[[claim]]",
            "[[budget]]\nwhere = { batch = 9 }\njoules = 1\n[[claim]]",
            13,
            "no cell has these values",
        ),
        ("[[claim]]", "[[budget]]\nwhere = { batch = 8 }\n[[claim]]", 13, "limits nothing: give it a limit"),
        (
            "[[claim]]",
            '[[slo]]\nname = "c"\nttft_ms = 1\nwhere = { batch = 9 }\n[[claim]]',
            13,
            "no cell has these values",
        ),
        (
            "[[claim]]",
            '[[slo]]\nname = "c"\nttft_ms = 1\npercentile = 95\n[[claim]]',
            16,
            "valid: 50, 90, 99",
        ),
        ("at_most = 0.85", 'at_most = 0.85\nalong = "batch"', 13, "along is of shapes, not read here"),
        ("at_most = 0.85", "at_most = 0.85\nat_least = 0.9", 13, "at_least is above at_most"),
        ("at_most = 0.85", "at_most = inf", 17, "claim[0].at_most: inf is no limit"),
        ("at_most = 0.85", 'at_most = 0.85\nwithin = "1.2.3%"', 18, "valid: a share in quotes"),
        ("[[claim]]", "[[exclude]]\nbatch = 9\n[[claim]]", 13, "exclude[0]: leaves out nothing"),
        ('engine = "vllm"\n', "", 4, "axes: lacks engine"),
        # A value in a list of several lines, in a table of a list, and under the header of a table in one.
        ("[8, 64]", '[\n  8,  # "no, 1]"\n  "x",\n]', 9, "axes.batch[1]: 'x': is no whole number"),
        (
            "[suite]",
            "exclude = [\n  { batch = 8 },\n  { bach = 8 },\n]\n[suite]",
            3,
            "exclude[1].bach: there is",
        ),
        (
            "at_most = 0.85",
            "at_most = 0.85\n[claim.where]\nbatch = 0",
            19,
            "claim[0].where.batch: 0: must be",
        ),
        (
            'title = "precision"\n\n[axes]\nmodel = "llama-3.1-8b"',
            'title = """\n[axes]\nmodel = 1"""\n\n[axes]\nmodel = ""',
            7,
            "axes.model: '': must not be empty",
        ),
        ("[variants]", "[[claims]]\n[variants]", 9, "claims: there is no such field"),
        (
            "[variants]",
            '[models.m]\nrandom = "tiny"\ndtype = "fp8"\n[variants]',
            11,
            "valid: bfloat16, float16, float32",
        ),
        ("bf16 = {}", 'bf16 = { tensor_parallel = "2" }', 10, "valid: a whole number of at least 1"),
        ("[8, 64]", "8\nkv_cache_dtype = 8", 8, "8: is no text or list; valid: a text, or a list of them"),
        (
            "[8, 64]",
            "8\narrivals = { poisson = inf }",
            8,
            "axes.arrivals.poisson: inf is no limit and no rate",
        ),
        ("[variants]", "[limits]\njoules = nan\n[variants]", 10, "limits.joules: nan is no limit"),
        ("[variants]", '[limits]\nregression = "0 %"\n[variants]', 10, "valid: a share in quotes above 0"),
        (
            "[variants]",
            '[limits]\nper = "word"\n[variants]',
            10,
            "valid: prompt_token, response, token, total_token",
        ),
        (
            "[variants]",
            "[limits]\nmax_rounds = 3\n[variants]",
            10,
            "max_rounds: 3 is below min_rounds, which is 6",
        ),
        (
            "[variants]",
            '[models.m]\nrandom = "tiny"\n[variants]',
            9,
            "models.m: no axis names it; of models there",
        ),
        (
            "[variants]",
            '[prompts]\nrandom = { hub = "a/b" }\n[variants]',
            10,
            "prompts.random: is the name of prompts made",
        ),
        ("[[claim]]", "[[include]]\nbatch = 64\n[[claim]]", 13, "include[0]: adds nothing"),
        (
            "[8, 64]",
            f"{list(range(1, 401))}\nnew_tokens = {list(range(1, 401))}",
            4,
            "320,000 cells are more than",
        ),
        ("at_most = 0.85", 'at_most = 0.85\nwithin = "3%"', 13, "within is of shapes, not read here"),
        ("at_most = 0.85", "at_most = 0.85\nwhere = { batch = 9 }", 13, "none has batch = 9; valid: 8, 64"),
        ("of = { variant", 'of = { dtype = "fp8", variant', 13, 'none has dtype = "fp8", or any dtype'),
    ],
)
def test_what_is_wrong_is_said_with_its_line(old: str, new: str, line: int, words: str) -> None:
    text = PLAIN.replace(old, new, 1)
    assert text != PLAIN
    said = complaint(text)
    assert said.startswith(f"s.energy.toml:{line}: ")
    assert words in said


def test_a_table_of_a_model_is_checked_where_it_stands() -> None:
    text = PLAIN.replace('"llama-3.1-8b"', '"mine"') + '\n[models.mine]\nrandom = "nobody"\n'
    assert complaint(text).startswith(
        "s.energy.toml:20: models.mine.random: 'nobody' is no model of the registry"
    )
    text = text.replace('random = "nobody"', 'random = "tiny"\nhub = "a/b"')
    assert complaint(text) == "s.energy.toml:19: models.mine: one of random, path and hub is wanted"


@pytest.mark.skipif(metadata.version("msgspec") < "0.22", reason="an older msgspec orders a schema otherwise")
def test_the_schema_for_editors_is_that_of_the_code() -> None:
    checked_in = json.loads((ROOT / "docs" / "suite.schema.json").read_text("utf-8"))
    assert checked_in == json.loads(json.dumps(json_schema())), "python docs/write_suite_schema.py"


def test_editors_accept_and_refuse_what_the_code_does() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(json_schema())
    good = tomllib.loads(PLAIN)
    assert check.is_valid(good)
    for wrong in ({"axes": {"batch": 0}}, {"axes": {"bach": 1}}, {}, {**good, "claim": [{"figure": "x"}]}):
        assert not check.is_valid(wrong)
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, type(parse_suite(PLAIN, "s")))


TABLES = st.lists(
    st.tuples(
        st.booleans(), st.sampled_from(["a", "b", "c.d"]), st.lists(st.sampled_from("xyz"), unique=True)
    ),
    max_size=6,
    unique_by=lambda table: table[1],
)


@given(TABLES, st.integers(0, 3))
def test_each_value_is_found_on_its_own_line(tables: list[tuple[bool, str, list[str]]], blank: int) -> None:
    lines, places = ["# a file"] + [""] * blank, {}
    for listed, name, keys in tables:
        place: tuple[Any, ...] = tuple(name.split("."))
        lines.append(f"[[{name}]]" if listed else f"[{name}]  # a table")
        place += (0,) if listed else ()
        places[place] = len(lines)
        for key in keys:
            lines.append(f"{key} = 1")
            inner: tuple[Any, ...] = (*place, key)
            places[inner] = len(lines)
    text = "\n".join(lines)
    tomllib.loads(text)
    for place, line in places.items():
        assert line_of(text, place) == line
        assert line_of(text, (*place, "unknown")) == line


def test_axes_are_named_as_the_engines_and_workloads_name_them() -> None:
    assert {"dtype", "quantization", "kv_cache_dtype", "tensor_parallel", "pipeline_parallel"} < set(AXES)
    assert {"batch", "prompt_tokens", "new_tokens", "arrivals"} < set(AXES)


def test_what_power_budget_takes_is_taken_by_limits() -> None:
    assert set(LimitsTable.__struct_fields__) == set(Limits._fields)
    assert get_args(Denominator) == tuple(PER)


def test_prompts_that_no_axis_names_are_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "s.energy.toml"
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    path.write_text(PLAIN + '[prompts]\np = { file = "p.jsonl" }\n', "utf-8")
    with pytest.raises(
        UsageError, match=r's\.energy\.toml:19: prompts\.p: no axis names it; give it prompts = "p"'
    ):
        Suite.read(path)


@pytest.mark.parametrize(("encoding", "line", "byte"), [("latin-1", 18, "0xf6"), ("utf-16", 1, "0xff")])
def test_a_file_in_another_encoding_is_told_by_its_line(
    tmp_path: Path, encoding: str, line: int, byte: str
) -> None:
    path = tmp_path / "s.energy.toml"
    path.write_text(PLAIN + "# Größe\n", encoding)
    with pytest.raises(UsageError, match=rf"s\.energy\.toml:{line}: no TOML: byte {byte} is no UTF-8"):
        Suite.read(path)


def test_a_file_that_is_not_there_is_a_mistake_of_the_suite(tmp_path: Path) -> None:
    path = tmp_path / "s.energy.toml"
    path.write_text(PLAIN + '[prompts]\np = { file = "no.jsonl" }\n', "utf-8")
    with pytest.raises(
        UsageError, match=r"s\.energy\.toml:19: prompts\.p\.file: .*no\.jsonl: there is no such file"
    ):
        Suite.read(path)
    # As Windows editors write it.
    path.write_text("\ufeff" + PLAIN, "utf-8")
    assert len(Suite.read(path).cells) == 4
