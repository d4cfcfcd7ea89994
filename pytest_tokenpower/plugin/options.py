"""Options and ini values, read and checked once, as immutable values.

Every pytest run imports this. Named tuples are made quicker than dataclasses, and annotations that are no strings
need not be compiled one by one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import pytest

from pytest_tokenpower.core.settings import (
    CHILD_VARIABLE,
    DEFAULT_BASELINE_RUNS,
    DEFAULT_WARMUP_ROUNDS,
    MOST_ALPHA,
    NO_FACTORS,
    Factors,
    ReportTarget,
    Settings,
    Severity,
    fraction,
)
from pytest_tokenpower.errors import UsageError

if TYPE_CHECKING:
    from pytest_tokenpower.core.types import Scope
    from pytest_tokenpower.reporting.columns import Layout


PLAIN_SOURCES = frozenset({"auto", "nvml", "amd", "rapl", "hwmon", "ipmi", "model", "simulated"})
"""Values of --energy-source that need no look before the tests; others name a file, a server or a plugin's meter."""


def add_options(parser: pytest.Parser) -> None:
    """Declare the options and ini values; the defaults live in :func:`read_settings`."""
    group = parser.getgroup("energy", "energy per token (pytest-tokenpower)")
    group.addoption(
        "--energy-source",
        metavar="SOURCE",
        help="what measures: auto (default: the GPU's meter, RAPL where there is no accelerator), nvml, amd, intel, "
        "jetson, rapl, hwmon, ipmi, redfish[:URL], prometheus[:URL], trtllm[:URL], remote:URL, ray[:SOURCE], model "
        "(CPU-time model), ecologits:PROVIDER/MODEL, simulated, simulated:virtual (on a time of its own), "
        "simulated:SCENARIO.json, replay:RECORDING, or what a plugin adds; several with commas between them, such as "
        "nvml,rapl",
    )
    group.addoption(
        "--energy-scope",
        metavar="SCOPE",
        help="whose joules make J/token: gpu, cpu, dram, module, node or rack (default: gpu where one is measured, "
        "else cpu); other scopes that are measured are shown, too",
    )
    group.addoption(
        "--energy-baseline",
        metavar="REF|NAME|PATH",
        help="compare with the stored runs of a git ref (its merge base with HEAD and the commits before it), with "
        "runs saved under a name, or with a file or folder",
    )
    group.addoption(
        "--energy-rerun-baseline",
        action="store_true",
        default=None,
        help="measure the baseline's commit anew, in turn with this one and in fresh processes (A B B A), instead of "
        "reading stored runs",
    )
    group.addoption(
        "--energy-max-seconds",
        metavar="SECONDS",
        help="how long this run may spend in all on restarts: a test whose comparison is doubtful is measured anew "
        "in fresh processes, up to twice, when all tests have run (default: 0, no restarts)",
    )
    group.addoption("--energy-save", metavar="NAME", help="store this run under a name")
    group.addoption(
        "--energy-autosave", action="store_true", default=None, help="store this run under its commit"
    )
    group.addoption(
        "--energy-storage",
        metavar="PATH",
        help="where runs are stored (default: tokenpower in the repository's git folder, which `git clean` keeps)",
    )
    group.addoption(
        "--energy-columns",
        metavar="NAMES",
        default="",
        help="columns of the table, with commas between them: test, joules_per_token, error, prefill, decode, watts, "
        "ttft, tpot, change, interval, cost, carbon, verdict, and every figure by its name (default: as many as the "
        "terminal is wide)",
    )
    group.addoption(
        "--energy-sort",
        metavar="BY",
        default="run",
        help="order of the table: run (default), name, joules_per_token, change or verdict",
    )
    group.addoption(
        "--energy-group-by",
        metavar="BY",
        default="none",
        help="groups in the table: none (default), file, func or param",
    )
    group.addoption("--energy-json", metavar="PATH", help="write this run's record to a file")
    group.addoption(
        "--energy-report",
        metavar="[FORMAT:]PATH",
        action="append",
        help="write a report of this run: PATH.html (one page that opens without a network), PATH.md (a summary; on "
        "GitHub also the job's summary and an annotation), PATH.csv, or FORMAT:PATH with comment, annotation, json, "
        "bencher, github-action-benchmark, openmetrics, trace or pytest-benchmark; may be given several times",
    )
    group.addoption(
        "--energy-record",
        metavar="PATH",
        help="write the timeline and the windows of this run to a recording, for `tokenpower analyse` and "
        "--energy-source=replay:PATH; each xdist worker writes its own, with its name before the suffix",
    )
    group.addoption(
        "--energy-only", action="store_true", default=None, help="skip the tests that measure no energy"
    )
    group.addoption(
        "--energy-skip", action="store_true", default=None, help="skip the tests that measure energy"
    )
    group.addoption(
        "--energy-resume",
        action="store_true",
        default=None,
        help="suites: take over the cells that an interrupted run has finished, and measure the others",
    )
    group.addoption(
        "--energy-simulated-engines",
        action="store_true",
        default=None,
        help="suites: have a forecast stand for every engine, to try a suite out with --energy-source=simulated",
    )
    group.addoption(
        "--energy-disable", action="store_true", default=None, help="run energy tests once, without measuring"
    )
    for name, (kind, default, _, text) in INI.items():
        parser.addini(name, f"{text}; default: {default or 'none'}", type=kind, default=None)


PLAIN_LAYOUT = (("columns", ""), ("sort", "run"), ("group-by", "none"))
"""The options of the table, each with its default."""


def layout_of(config: pytest.Config) -> Layout:
    """Read how the table is to look; raises UsageError."""
    from pytest_tokenpower.reporting.columns import layout

    found = layout(*(config.getoption(f"--energy-{name}") for name, _ in PLAIN_LAYOUT))
    return found._replace(factors=_factors(config))


_Kind = Literal["string", "bool", "int", "float", "args"]

INI: dict[str, tuple[_Kind, object, str, str]] = {
    "energy_source": ("string", "auto", "a source", "default of --energy-source"),
    "energy_scope": ("string", "", "a scope", "default of --energy-scope"),
    "energy_baseline": ("string", "", "names with commas between them", "default of --energy-baseline"),
    "energy_max_seconds": (
        "float",
        0.0,
        "a number of seconds, 0 for no restarts",
        "default of --energy-max-seconds",
    ),
    "energy_storage": ("string", "", "a path", "default of --energy-storage"),
    "energy_require_hardware": (
        "bool",
        False,
        "true or false",
        "a missing meter fails the test instead of skipping it (true, false)",
    ),
    "energy_missing_baseline": (
        "string",
        "warn",
        "warn or fail",
        "what a test without comparable stored runs does (warn, fail)",
    ),
    "energy_inconclusive": (
        "string",
        "warn",
        "warn or fail",
        "what an inconclusive comparison does (warn, fail)",
    ),
    "energy_key_ignore": (
        "args",
        (),
        "a list of key fields",
        "key fields that may differ from the baseline, a list, or separated by spaces",
    ),
    "energy_regression": (
        "string",
        "3%",
        "a share in quotes, such as '3%' or '0.03'",
        "how much more energy per token fails a test without a limit of its own",
    ),
    "energy_alpha": (
        "string",
        "1%",
        "a share in quotes of at most 2.5 %, such as '1%'",
        "how often a run of identical code may fail, over all its comparisons together",
    ),
    "energy_length_tolerance": (
        "string",
        "10%",
        "a share in quotes, such as '10%', or '0%' for equal lengths only",
        "how far the token counts of a run and its baseline may lie apart to be compared at equal lengths",
    ),
    "energy_baseline_runs": (
        "int",
        DEFAULT_BASELINE_RUNS,
        "an integer of at least 1",
        "how many stored runs make the baseline, newest first",
    ),
    "energy_price": ("string", "", "a price per kWh", "what a kWh costs, for the cost of a million tokens"),
    "energy_currency": ("string", "", "a currency", "the currency of the prices, such as EUR"),
    "energy_token_prices": (
        "string",
        "",
        "two prices per million tokens",
        'what an API charges per million input and per million output tokens, such as "0.15 0.60"',
    ),
    "carbon_intensity": (
        "string",
        "",
        "gCO2e per kWh, or a country's three letters",
        "gCO2e per kWh, or a country (DEU, USA, ...) whose yearly average is taken from a table",
    ),
    "energy_pue": (
        "string",
        "",
        "a number of at least 1",
        "the data centre's total energy over that of its IT",
    ),
    "energy_warmup_rounds": (
        "int",
        DEFAULT_WARMUP_ROUNDS,
        "an integer of at least 0",
        "rounds that are run before measuring",
    ),
}
"""Each ini value by its name: the type that pytest reads it as, its default, what is valid, and its help."""


def _ini(config: pytest.Config, name: str) -> Any:
    """Return an ini value of its declared type, from either spelling of TOML or an ini file, or its default.

    Raises UsageError that names it and what is valid.
    """
    _, default, valid, _ = INI[name]
    try:
        value = config.getini(name)
    # A type that does not fit: pytest says it in its own words, and before version 9 with a traceback.
    except (TypeError, ValueError, pytest.UsageError) as error:
        given = _given(error)
        raise UsageError(f"ini {name}{given}: must be {valid}") from None
    return default if value is None or value in ("", []) else value


def _given(error: Exception) -> str:
    """Return the value that pytest's message complains of, as ``=VALUE``; empty where it does not say."""
    found = re.search(
        r"(?:got \w+: |got: |value |literal for \w+\(\) with base 10: |to float: )(.+)$", str(error)
    )
    return f"={found[1].strip(chr(39))}" if found else ""


def read_settings(config: pytest.Config) -> Settings:
    """Command line, then ini, then default; raises UsageError that names the option and its valid values."""

    def text(option: str, ini: str) -> str:
        given = config.getoption(option)
        return str(_ini(config, ini) if given is None else given)

    _check_none_is_empty(config)
    if config.getoption("--energy-only") and config.getoption("--energy-skip"):
        raise UsageError("--energy-only and --energy-skip together leave no test: give one of them")
    rootdir = config.rootpath
    child = CHILD_VARIABLE in os.environ
    storage = text("--energy-storage", "energy_storage")
    json = config.getoption("--energy-json")
    record = config.getoption("--energy-record")
    return Settings(
        disabled=bool(config.getoption("--energy-disable")),
        source=_source(config, text("--energy-source", "energy_source")),
        scope=_scope(text("--energy-scope", "energy_scope")),
        save=None if child else config.getoption("--energy-save"),
        autosave=not child and bool(config.getoption("--energy-autosave")),
        storage=(config.invocation_params.dir if config.getoption("--energy-storage") else rootdir) / storage
        if storage
        else None,
        json=config.invocation_params.dir / json if json else None,
        record=_of_worker(config.invocation_params.dir / record, config) if record and not child else None,
        reports=() if child else _reports(config),
        baselines=() if child else _names("--energy-baseline", text("--energy-baseline", "energy_baseline")),
        baselines_of_ini=config.getoption("--energy-baseline") is None,
        rerun_baseline=not child and bool(config.getoption("--energy-rerun-baseline")),
        restart_seconds=0.0
        if child
        else _seconds("--energy-max-seconds", text("--energy-max-seconds", "energy_max_seconds")),
        baseline_runs=_at_least(1, config, "energy_baseline_runs"),
        require_hardware=bool(_ini(config, "energy_require_hardware")),
        missing_baseline=_severity(config, "energy_missing_baseline"),
        inconclusive=_severity(config, "energy_inconclusive"),
        key_ignore=checked_key_ignore(
            [name for each in _ini(config, "energy_key_ignore") for name in each.replace(",", " ").split()]
        ),
        regression=fraction("ini energy_regression", _ini(config, "energy_regression")),
        length_tolerance=_tolerance(_ini(config, "energy_length_tolerance")),
        alpha=_alpha(_ini(config, "energy_alpha")),
        warmup_rounds=_at_least(0, config, "energy_warmup_rounds"),
        only=bool(config.getoption("--energy-only")),
        skip=bool(config.getoption("--energy-skip")),
        given=_given_options(config),
        factors=_factors(config),
        resume=not child and bool(config.getoption("--energy-resume")),
        simulated_engines=bool(config.getoption("--energy-simulated-engines")),
    )


def _check_none_is_empty(config: pytest.Config) -> None:
    """Raise UsageError for an option that was given without a value: what it asks for would be left out unsaid."""
    plain = {f"energy_{name.replace('-', '_')}": default for name, default in PLAIN_LAYOUT}
    for name, value in vars(config.option).items():
        if not name.startswith("energy_") or value == plain.get(name):
            continue
        if any(
            isinstance(each, str) and not each.strip()
            for each in (value if isinstance(value, list) else [value])
        ):
            raise UsageError(
                f"--{name.replace('_', '-')} is empty, as a variable that is not set leaves it: give it a value, or "
                "leave the option away"
            )


def _given_options(config: pytest.Config) -> tuple[str, ...]:
    """Our own options, wherever they were given; others' may hold what is nobody's business."""
    plain = {f"energy_{name.replace('-', '_')}": default for name, default in PLAIN_LAYOUT}
    found = []
    for name, value in sorted(vars(config.option).items()):
        if name.startswith("energy_") and value is not None and value != plain.get(name):
            option = f"--{name.replace('_', '-')}"
            values = value if isinstance(value, list) else [value]
            found += [option if each is True else f"{option}={each}" for each in values]
    return tuple(found)


def _reports(config: pytest.Config) -> tuple[ReportTarget, ...]:
    if not (given := config.getoption("--energy-report")):
        return ()
    from pytest_tokenpower.reporting.formats import target

    return tuple(target(text, config.invocation_params.dir) for text in given)


def _factors(config: pytest.Config) -> Factors:
    names = ("energy_price", "energy_currency", "carbon_intensity", "energy_pue", "energy_token_prices")
    values = [str(_ini(config, name)) for name in names]
    if not any(values):
        return NO_FACTORS
    from pytest_tokenpower.reporting.costs import read_factors

    return read_factors(*values)


def _source(config: pytest.Config, source: str) -> str:
    """Put boards on a time of their own for engines that only wait, unless a scenario says what they live on."""
    if not config.getoption("--energy-simulated-engines"):
        return source
    if source.partition(":")[0] != "simulated":
        raise UsageError(
            f"--energy-simulated-engines with --energy-source={source}: what no engine does cannot be measured; use "
            "--energy-source=simulated"
        )
    return "simulated:virtual" if source == "simulated" else source


def _of_worker(path: Path, config: pytest.Config) -> Path:
    """``run.jsonl.gz`` on worker gw1 is ``run.gw1.jsonl.gz``: each process has its own timeline."""
    worker = getattr(config, "workerinput", {}).get("workerid")
    if worker is None:
        return path
    packed = ".gz" if path.suffix == ".gz" else ""
    plain = path.with_suffix("") if packed else path
    return plain.with_name(f"{plain.stem}.{worker}{plain.suffix}{packed}")


def checked_key_ignore(names: Sequence[str]) -> tuple[str, ...]:
    """Patterns of key fields that may differ; raises UsageError for one that never may."""
    if names:
        from pytest_tokenpower.store.keys import ignoring

        ignoring({}, names)
    return tuple(names)


def _names(option: str, value: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(",")) if value else ()
    if "" in names or len(set(names)) < len(names):
        raise UsageError(f"{option}={value}: must be different names, separated by commas")
    return names


def _scope(value: str) -> Scope | None:
    if not value:
        return None
    from pytest_tokenpower.core.types import Scope

    if value not in (valid := get_args(Scope)):
        raise UsageError(f"--energy-scope={value}: must be one of {', '.join(valid)}")
    return cast("Scope", value)


def _severity(config: pytest.Config, name: str) -> Severity:
    value = _ini(config, name)
    if value not in ("warn", "fail"):
        raise UsageError(f"ini {name}={value}: must be warn or fail")
    return cast(Severity, value)


def _seconds(name: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{name}={value}: must be a number of seconds, 0 for no restarts")
    return seconds


def _tolerance(value: object) -> float:
    return 0.0 if str(value).strip() in ("0", "0%") else fraction("ini energy_length_tolerance", value)


def _alpha(value: object) -> float:
    alpha = fraction("ini energy_alpha", value)
    if alpha > MOST_ALPHA:
        raise UsageError(f"ini energy_alpha={value}: must be {INI['energy_alpha'][2]}")
    return alpha


def _at_least(least: int, config: pytest.Config, name: str) -> int:
    value = _ini(config, name)
    if value < least:
        raise UsageError(f"ini {name}={value}: must be {INI[name][2]}")
    return int(value)
