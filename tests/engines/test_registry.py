"""Engines by name: those of this package, those that a plugin adds, and what may not be added."""

from __future__ import annotations

import importlib.util

import pytest

from pytest_tokenpower.engines import registry as plugin_engines
from pytest_tokenpower.engines.registry import ENGINES, factory, reference
from pytest_tokenpower.errors import UsageError
from tests.support.projects import Project

ENGINE = '''
from pytest_tokenpower.workloads.base import Batch
from pytest_tokenpower.engines.protocol import EngineIdentity, Generation


class Mine:
    """Says the same token over and over."""

    device_ids = ()

    def __init__(self, model, token=7):
        self.token = token
        self.identity = EngineIdentity("mine", "1.0", model)

    def generate(self, batch):
        ids = [[self.token] * batch.new_tokens for _ in batch.prompts]
        return Generation(ids, batch.tokens)

    def close(self):
        pass
'''

TESTS = """
from pytest_tokenpower.engines.spec import EngineSpec
from pytest_tokenpower.workloads import FixedShape
from pytest_tokenpower.engines.execution import Execution

SPECS = [EngineSpec("mine", "a-model", isolated=isolated, token=9) for isolated in (False, True)]


@pytest.mark.parametrize("spec", SPECS)
def test_it(spec):
    with spec.start() as engine:
        generation = Execution(engine, FixedShape(2, 4, 3))()
    assert [list(ids) for ids in generation.token_ids] == [[9] * 3] * 2
    assert engine.identity.engine == "mine"
"""

CONFTEST = "def pytest_tokenpower_engines():\n    return {engines!r}\n"


def hook(engines: object) -> str:
    return CONFTEST.replace("{engines!r}", repr(engines))


@pytest.mark.parametrize("engine", ENGINES)
def test_every_name_leads_to_a_module_that_is_there(engine: str) -> None:
    module, _, name = reference(engine).partition(":")
    assert importlib.util.find_spec(module) is not None
    # The adapters import without the package that they adapt.
    assert callable(factory(engine))
    assert name


def test_a_plugin_adds_an_engine_for_this_process_and_for_its_own(project: Project) -> None:
    project.file("my_engine.py", ENGINE)
    project.file("conftest.py", hook({"mine": "my_engine:Mine"}))
    project.tests(TESTS)
    project.run().assert_outcomes(passed=2)
    # What a run has added ends with it.
    with pytest.raises(UsageError, match="engine 'mine': use one of vllm, "):
        reference("mine")


def test_the_folder_that_has_it_knows_it(project: Project) -> None:
    project.file("my_engine.py", ENGINE)
    project.file("inner/conftest.py", hook({"mine": "my_engine:Mine"}))
    body = "\n\ndef test_it():\n    reference('{name}')\n"
    head = "from pytest_tokenpower.engines.registry import reference"
    project.file("test_before.py", head + body.format(name="vllm"))
    project.file("inner/test_inner.py", head + body.format(name="mine"))
    project.run("test_before.py", "inner").assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("engines", "complaint"),
    [
        (
            {"vllm": "m:C"},
            "names an engine 'vllm', which pytest-tokenpower itself has already: choose another",
        ),
        ({"mine": "my_engine.Mine"}, "has 'my_engine.Mine' for the engine 'mine': give 'module:name'"),
        ({"mine": 3}, "has 3 for the engine 'mine': give 'module:name'"),
        ({"a:b": "a:b"}, "names an engine 'a:b': a name is text without a colon"),
        (None, "returned None: it must return a mapping"),
    ],
)
def test_what_a_plugin_may_not_add(project: Project, engines: object, complaint: str) -> None:
    project.file("conftest.py", hook(engines))
    project.tests("from pytest_tokenpower.engines.spec import EngineSpec\n\nspec = EngineSpec('vllm', 'm')\n")
    result = project.run()
    result.assert_outcomes(errors=1)
    output = result.stdout.str()
    assert f"conftest.py: pytest_tokenpower_engines {complaint}" in output


def test_two_plugins_with_one_name(project: Project) -> None:
    for name in ("first", "second"):
        project.file(f"{name}.py", hook({"mine": f"{name}:C"}))
    project.file("conftest.py", "pytest_plugins = ['first', 'second']\n")
    project.tests("from pytest_tokenpower.engines.spec import EngineSpec\n\nspec = EngineSpec('mine', 'm')\n")
    result = project.run()
    result.assert_outcomes(errors=1)
    result.stdout.re_match_lines(
        [
            r".*(first|second): pytest_tokenpower_engines names an engine 'mine', which (first|second) has already"
        ]
    )


def test_each_folder_has_its_own(project: Project) -> None:
    """As its conftest file is seen by its tests alone, and by its modules as they are imported."""
    for folder in ("alpha", "beta"):
        project.file(f"{folder}/conftest.py", hook({"mine": f"engine_of_{folder}:C"}))
        project.tests(
            "from pytest_tokenpower.engines.registry import reference\n\n"
            "found = reference('mine')\n\n"
            "def test_it():\n"
            f"    assert found == reference('mine') == 'engine_of_{folder}:C'\n",
            f"{folder}/test_{folder}.py",
        )
    project.run("--import-mode=importlib", "-o", "pythonpath=.").assert_outcomes(passed=2)


def test_nobody_is_asked_where_no_engine_is_looked_up(project: Project) -> None:
    project.file("conftest.py", "def pytest_tokenpower_engines():\n    raise RuntimeError('asked')\n")
    project.tests("def test_it():\n    pass\n\n@quick\ndef test_energy(energy):\n    energy(generate)\n")
    project.run().assert_outcomes(passed=2)


def test_the_last_run_that_began_is_asked() -> None:
    first = plugin_engines.register_source(lambda: {"first": "a:b"})
    second = plugin_engines.register_source(lambda: {"second": "a:b"})
    assert dict(plugin_engines.plugin_engines()) == {"second": "a:b"}
    second()
    assert reference("first") == "a:b"
    first()
    assert dict(plugin_engines.plugin_engines()) != {"first": "a:b"}
