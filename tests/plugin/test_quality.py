"""Quality beside joules: recorded, shown, held to a floor, and scored once for each engine of a suite."""

from __future__ import annotations

import json

import pytest

from pytest_tokenpower.core.records import Figure
from tests.support.projects import Project


def scored(project: Project, score: str, floor: str = "") -> None:
    project.tests(f"""
@pytest.mark.power_budget(min_rounds=2, max_rounds=2{floor})
def test_chat(energy):
    energy(generate)
    energy.quality({score})
""")


def test_a_score_is_a_figure_of_the_record(project: Project) -> None:
    project.tests("""
from pytest_tokenpower.workloads import Score

@quick
def test_chat(energy):
    energy(generate)
    energy.quality(Score(0.8, 0.05, "exact match on 64 questions"))
""")
    result, run = project.measure("--energy-columns=test,quality,verdict")
    result.assert_outcomes(passed=1)
    [one] = run.measurements
    assert one.figures["quality"] == Figure(0.8, 0.05)
    assert one.facts["quality.score"] == "exact match on 64 questions"
    result.stdout.fnmatch_lines(["test_chat*0.8*"])


def test_a_score_below_its_floor_fails_the_test(project: Project) -> None:
    scored(project, "0.79", ", quality=0.8")
    result, run = project.measure()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*BELOW FLOOR 0.79 (limit 0.8): test_chat: quality is below its floor.*"])
    assert [verdict.kind for verdict in run.measurements[0].verdicts] == ["below floor"]
    scored(project, "0.8", ", quality=0.8")
    project.run().assert_outcomes(passed=1)


def test_a_floor_without_a_score_is_inconclusive_and_says_so(project: Project) -> None:
    project.tests("""
@pytest.mark.power_budget(min_rounds=2, max_rounds=2, quality=0.8)
def test_chat(energy):
    energy(generate)
""")
    _, run = project.measure()
    [verdict] = run.measurements[0].verdicts
    assert (verdict.kind, verdict.reason) == (
        "inconclusive",
        "no quality was given: call energy.quality(score)",
    )
    project.ini("energy_inconclusive = fail")
    project.run().assert_outcomes(failed=1)


@pytest.mark.parametrize(
    ("score", "words"),
    [
        ("-1", "energy.quality: Score(value=-1): must be a finite number of at least 0"),
        ("0.5), energy.quality(0.5", "energy.quality() was called twice: a test has one score"),
    ],
)
def test_what_is_no_score_fails_the_test(project: Project, score: str, words: str) -> None:
    scored(project, score)
    result = project.run()
    result.assert_outcomes(failed=1)
    assert words in result.stdout.str()


ENGINE = """
from types import SimpleNamespace

from pytest_tokenpower import TokenCount
from pytest_tokenpower.engines import EngineIdentity, Generation
from pytest_tokenpower.meters.simulation.virtual_time import VIRTUAL_TIME

class Echo:
    device_ids = ()

    def __init__(self, model, answer="yes", seconds=0.02):
        self.answer, self.seconds = answer, seconds
        self.identity = EngineIdentity("echo", "1", "m")

    def encode(self, text):
        return [3 + ord(one) for one in text]

    def decode(self, ids):
        return "".join(chr(one - 3) for one in ids)

    def generate(self, batch):
        with open("batches.txt", "a") as stream:
            stream.write(f"{batch.new_tokens} ")
        VIRTUAL_TIME.sleep(self.seconds)
        ids = self.encode(self.answer.ljust(batch.new_tokens))[:batch.new_tokens]
        return Generation([ids] * len(batch.prompts), batch.tokens)

    def close(self):
        pass

def score(engine):
    return 0.25 if engine.answer == "yes" else 0.5
"""

SUITE = """
[axes]
model = "openai/anything"
engine = ["right", "wrong"]
batch = [1, 2]
prompt_tokens = 4
new_tokens = 8

[engines.right]
adapter = "echo:Echo"
isolated = false
options = { seconds = 0.04 }

[engines.wrong]
adapter = "echo:Echo"
isolated = false
options = { answer = "no" }

[quality]
file = "questions.jsonl"
new_tokens = 3

[limits]
min_rounds = 2
max_rounds = 2

[[budget]]
where = { engine = "wrong" }
quality = 0.9

[[claim]]
name = "the fast one answers worse"
where = { batch = 1 }
of = { engine = "right" }
to = { engine = "wrong" }
figure = "quality"
at_least = 1.1
"""


@pytest.fixture
def echo(project: Project) -> Project:
    project.file("echo.py", ENGINE)
    project.file("conftest.py", "import sys\nsys.path.insert(0, '.')\n")
    rows = [{"prompt": "is it?", "answer": "yes"}] * 3 + [{"prompt": "is it not?", "answer": "no"}]
    project.file("questions.jsonl", "\n".join(map(json.dumps, rows)))
    project.file("quality.energy.toml", SUITE)
    return project


def test_a_suites_engines_are_scored_once_each_on_a_data_set(echo: Project) -> None:
    result, run = echo.measure("--energy-report=page.html")
    result.assert_outcomes(passed=2, failed=2)
    found = {one.test.rpartition("::")[2]: one.figures["quality"].value for one in run.measurements}
    assert found == {
        "anything-right-in4-out8-b1": 0.75,
        "anything-right-in4-out8-b2": 0.75,
        "anything-wrong-in4-out8-b1": 0.25,
        "anything-wrong-in4-out8-b2": 0.25,
    }
    assert (echo.path / "batches.txt").read_text().split().count("3") == 2
    result.stdout.fnmatch_lines(["*BELOW FLOOR 0.25 (limit 0.9): anything-wrong-in4-out8-b?: quality*"])
    assert [(claim.word, round(claim.ratio or 0, 6)) for claim in run.claims] == [("not told", 3.0)]
    page = (echo.path / "page.html").read_text()
    assert '"trade_offs":[["anything-right-in4-out8-b1"' in page.replace(" ", "")


def test_a_suites_engines_are_scored_by_a_callable(echo: Project) -> None:
    text = SUITE.replace('file = "questions.jsonl"\nnew_tokens = 3', 'call = "echo:score"')
    echo.file("quality.energy.toml", text)
    _, run = echo.measure("-k", "b1")
    assert {one.figures["quality"].value for one in run.measurements} == {0.25, 0.5}
    echo.file("quality.energy.toml", text.replace("echo:score", "echo:nothing"))
    result = echo.run("-k", "right and b1")
    result.stdout.fnmatch_lines(["*quality.energy.toml:20: quality.call: cannot be imported: *nothing*"])


def test_an_engine_that_cannot_be_scored_is_loaded_once_for_all_its_cells(echo: Project) -> None:
    echo.file(
        "echo.py",
        ENGINE
        + """
class Counted(Echo):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        with open("loaded.txt", "a") as stream:
            stream.write("once ")

def score(engine):
    raise ValueError("no judge is there")
""",
    )
    suite = SUITE.partition("[limits]")[0].replace("echo:Echo", "echo:Counted")
    suite = suite.replace('file = "questions.jsonl"\nnew_tokens = 3', 'call = "echo:score"')
    echo.file("quality.energy.toml", suite)
    result = echo.run()
    result.assert_outcomes(errors=4)
    result.stdout.fnmatch_lines(["*ValueError: no judge is there*"])
    assert (echo.path / "loaded.txt").read_text() == "once once "
    # Nor is one loaded for prompts that are not there.
    suite = suite.partition("[quality]")[0] + '[prompts]\nfew = { file = "questions.jsonl" }\n'
    echo.file("quality.energy.toml", suite.replace("batch = [1, 2]", 'batch = 5\nprompts = "few"'))
    result = echo.run()
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*prompts.few: there are 4 prompts, and batch = 5 asks for more"])
    assert (echo.path / "loaded.txt").read_text() == "once once "


def test_a_simulated_engine_has_no_quality(project: Project) -> None:
    project.file("questions.jsonl", '{"prompt": "a", "answer": "b"}')
    project.file(
        "s.energy.toml",
        '[axes]\nmodel = "llama-3.1-8b"\nengine = "vllm"\n[quality]\nfile = "questions.jsonl"\n'
        "[limits]\nmin_rounds = 2\nmax_rounds = 2\nquality = 0.5\n",
    )
    _, run = project.measure("--energy-simulated-engines")
    [one] = run.measurements
    assert "quality" not in one.figures
    assert one.verdicts[0].reason == "a simulated engine answers nothing that could be scored"
