"""Ini values have the types that they are declared with, in an ini file and in both spellings of TOML."""

import pytest

from pytest_tokenpower.plugin.options import read_settings

NATIVE = pytest.mark.skipif(pytest.version_tuple < (9, 0), reason="[tool.pytest] is read from pytest 9 on")

SPELLINGS = {
    "pytest.ini": """
[pytest]
energy_require_hardware = true
energy_baseline_runs = 7
energy_max_seconds = 12.5
energy_key_ignore = engine_version, axis.dtype
energy_regression = 4%
""",
    "pyproject.toml": """
[tool.pytest.ini_options]
energy_require_hardware = true
energy_baseline_runs = "7"
energy_max_seconds = "12.5"
energy_key_ignore = ["engine_version", "axis.dtype"]
energy_regression = "4%"
""",
    "native/pyproject.toml": """
[tool.pytest]
energy_require_hardware = true
energy_baseline_runs = 7
energy_max_seconds = 12.5
energy_key_ignore = ["engine_version", "axis.dtype"]
energy_regression = "4%"
""",
}


@pytest.mark.parametrize(
    "spelling", [pytest.param(name, marks=NATIVE if "native" in name else ()) for name in SPELLINGS]
)
def test_each_spelling_gives_the_same_settings(pytester: pytest.Pytester, spelling: str) -> None:
    (pytester.path / spelling.rpartition("/")[2]).write_text(SPELLINGS[spelling])
    chosen = read_settings(pytester.parseconfig())
    assert chosen.require_hardware is True
    assert (chosen.baseline_runs, chosen.restart_seconds, chosen.regression) == (7, 12.5, 0.04)
    assert chosen.key_ignore == ("engine_version", "axis.dtype")


WRONG = {
    "energy_require_hardware": ("1.5", "true or false"),
    "energy_baseline_runs": ('"many"', "an integer of at least 1"),
    "energy_warmup_rounds": ("true", "an integer of at least 0"),
    "energy_max_seconds": ('"soon"', "a number of seconds, 0 for no restarts"),
    "energy_key_ignore": ("3", "a list of key fields"),
    "energy_regression": ("0.03", "a share in quotes, such as '3%' or '0.03'"),
    "energy_inconclusive": ("false", "warn or fail"),
}


@NATIVE
@pytest.mark.parametrize("name", WRONG)
def test_a_value_of_another_type_is_a_mistake_that_is_named(pytester: pytest.Pytester, name: str) -> None:
    value, valid = WRONG[name]
    pytester.path.joinpath("pyproject.toml").write_text(f"[tool.pytest]\n{name} = {value}\n")
    pytester.makepyfile("def test_nothing(): pass")
    result = pytester.runpytest("-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    [line] = [line for line in result.stderr.lines if "energy_" in line]
    assert line.startswith(f"ERROR: ini {name}")
    assert line.endswith(f": must be {valid}")


@pytest.mark.parametrize(
    ("name", "value"),
    [("energy_baseline_runs", "many"), ("energy_max_seconds", "soon"), ("energy_require_hardware", "maybe")],
)
def test_so_is_text_that_cannot_be_read_as_it(pytester: pytest.Pytester, name: str, value: str) -> None:
    pytester.makeini(f"[pytest]\n{name} = {value}\n")
    pytester.makepyfile("def test_nothing(): pass")
    result = pytester.runpytest("-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: ini {name}={value}: must be *"])
