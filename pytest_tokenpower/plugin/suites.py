"""Suites in pytest: a file holds engines, an engine its cells, and a cell is a test as any other."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.engines.protocol import Engine
from pytest_tokenpower.errors import EngineError, MeterError, UsageError
from pytest_tokenpower.meters.simulation.virtual_time import VIRTUAL_TIME
from pytest_tokenpower.models.memory import GIB
from pytest_tokenpower.plugin.edge import fail, said
from pytest_tokenpower.plugin.marker import read_budget
from pytest_tokenpower.plugin.opening import open_energy
from pytest_tokenpower.plugin.state import MEASUREMENT, SETTINGS, failure_of, is_worker, session_of, test_id
from pytest_tokenpower.plugin.sweeps import journal_of
from pytest_tokenpower.reporting.suites import duration
from pytest_tokenpower.suites.build import declared, engine_of, quality_of, work_of
from pytest_tokenpower.suites.estimate import Estimate, Machine, estimate, load_seconds, this_machine
from pytest_tokenpower.suites.grid import Cell, Suite
from pytest_tokenpower.suites.instances import instances
from pytest_tokenpower.suites.order import Visit, visits
from pytest_tokenpower.suites.resume import FILE, FINGERPRINT, measured_here
from pytest_tokenpower.suites.schema import SUFFIX
from pytest_tokenpower.workloads.quality import Score

_MACHINE: pytest.StashKey[Machine] = pytest.StashKey()


class SuiteFile(pytest.File):
    """A suite: its cells in the order in which they are measured."""

    suite: Suite
    cells: tuple[CellItem, ...] = ()

    def collect(self) -> Iterator[CellItem]:
        """Read the file and make its cells; raises CollectError that names the line."""
        try:
            self.suite = Suite.read(self.path)
            instances(self.suite)
        except UsageError as error:
            raise self.CollectError(str(error)) from None
        if not self.config.pluginmanager.has_plugin("tokenpower-engines"):
            self.config.pluginmanager.register(EngineKeeper(), "tokenpower-engines")
        self.cells = tuple(self._cells())
        yield from self.cells

    def _cells(self) -> Iterator[CellItem]:
        machine = machine_of(self.config)
        for visit in visits(self.suite):
            loaded = LoadedEngine(self.suite, visit, self.config)
            for at, cell in enumerate(visit.cells):
                yield CellItem.from_parent(
                    self,
                    name=visit.name(cell),
                    cell=cell,
                    foretold=estimate(self.suite, cell, machine),
                    place=visit.first + at,
                    loaded=loaded,
                )

    def __repr__(self) -> str:
        runs = [each for each in self.cells if not each.foretold.skipped]
        parts = [f"{len(self.cells)} cell{'s' if len(self.cells) != 1 else ''}"]
        if known := [each.foretold.seconds for each in runs if each.foretold.seconds is not None]:
            engines = {each.loaded: each.loaded.adapter for each in runs}
            seconds = sum(known) + sum(map(load_seconds, engines.values()))
            parts.append(f"about {duration(seconds)} on an H100")
        if sizes := [each.foretold.board_bytes for each in runs if each.foretold.board_bytes]:
            parts.append(f"up to {max(sizes) / GIB:.1f} GiB a board")
        if skipped := len(self.cells) - len(runs):
            parts.append(f"{skipped} will be skipped")
        return f"<Suite {self.name}{': ' if self.cells else ''}{', '.join(parts) if self.cells else ''}>"


class LoadedEngine:
    """The engine of some cells in a row: loaded by the first of them, closed after the last."""

    def __init__(self, suite: Suite, visit: Visit, config: pytest.Config) -> None:
        self.suite, self.visit, self._config = suite, visit, config
        self._engine: Engine | None = None
        self._broken: Exception | None = None
        self.score: Score | None = None

    @property
    def adapter(self) -> str:
        """The adapter's name."""
        return str(self.suite.engine(self.visit.cells[0].values["engine"]).adapter)

    def get(self) -> Engine:
        """Return the running engine; raises, for each of its cells, why it does not load or cannot be scored."""
        if self._broken is not None:
            raise self._broken
        if self._engine is None:
            chosen = self._config.stash[SETTINGS]
            try:
                clock = None
                if chosen.simulated_engines:
                    nothing = VIRTUAL_TIME.clock
                    clock = nothing if chosen.disabled else session_of(self._config).telemetry().clock
                spec = engine_of(self.suite, self.visit.cells, simulated=clock)
                # Mistakes in what scores it are told before anything is loaded or measured.
                unscored = chosen.simulated_engines or chosen.disabled
                quality = None if unscored else quality_of(self.suite)
                engine = spec.load()
                if quality is not None and self.score is None:
                    # Its answers do not depend on the cell.
                    try:
                        self.score = Score.of(quality(engine))
                    except BaseException:
                        engine.close()
                        raise
                self._engine = engine
            except Exception as error:
                # Loading it once more, for the next cell, would end no better.
                self._broken = error
                raise
        return self._engine

    def close(self) -> None:
        """Close the engine; who asks for it next loads it anew."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()


class EngineKeeper:
    """Has an engine closed after the last of its cells, and before anything else measures."""

    def __init__(self) -> None:
        self._loaded: LoadedEngine | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        try:
            return (yield)
        finally:
            if isinstance(item, CellItem):
                self._loaded = item.loaded
                # Another xdist worker may be next on the board.
                shared = isinstance(nextitem, CellItem) and nextitem.loaded is item.loaded
                if not shared or is_worker(item.config):
                    item.loaded.close()

    def pytest_sessionfinish(self) -> None:
        if self._loaded is not None:
            self._loaded.close()


class CellItem(pytest.Item):
    """A cell as a test."""

    parent: SuiteFile
    # Tests that measure are known by this.
    fixturenames = ("energy",)

    def __init__(
        self, *, cell: Cell, foretold: Estimate, place: int, loaded: LoadedEngine, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.cell, self.foretold, self.place, self.loaded = cell, foretold, place, loaded
        if cell.limits:
            self.add_marker(pytest.mark.power_budget(**cell.limits))
        self.add_marker(pytest.mark.energy_cell(**_plain(cell)))
        self._open = ExitStack()

    @property
    def suite_file(self) -> str:
        """The suite's path from pytest's root directory."""
        return self.parent.nodeid

    @property
    def fingerprint(self) -> str:
        """What tells the cell from others, its name aside; each of its runs is one of its own."""
        return f"{self.parent.suite.fingerprint(self.cell)}-{self.loaded.visit.run}"

    def setup(self) -> None:
        """Skip what cannot run here, take hold of the GPUs, and have the engine loaded."""
        if self.foretold.skipped:
            pytest.skip(said(self.foretold.skipped))
        self._finished = None
        if not self.config.stash[SETTINGS].disabled:
            self._finished = journal_of(self.config, self.suite_file).of(test_id(self), self.fingerprint)
        if self._finished is not None:
            # On a machine that measures nothing what is finished can still be judged.
            with suppress(MeterError):
                if not measured_here(self._finished, session_of(self.config).telemetry().devices):
                    self._finished = None
        if self._finished is None:
            self._energy = self._open.enter_context(open_energy(self))
            # A mistake in the prompts is told before an engine is loaded for it.
            self.work = work_of(self.parent.suite, self.cell)
            self.engine = self.loaded.get()

    def runtest(self) -> None:
        """Measure the cell, or judge what an interrupted sweep has measured of it."""
        if self._finished is not None:
            from pytest_tokenpower.runner.outcome import judge_again

            chosen = self.config.stash[SETTINGS]
            measured = judge_again(self._finished, read_budget(self), session_of(self.config))
            self.stash[MEASUREMENT] = measured
            if complaint := failure_of(self.name, measured, chosen):
                fail(complaint)
            return
        suite, head = self.parent.suite, self.parent.suite.table.suite
        self._energy.declare(**declared(self.cell))
        self._energy.note(
            **{f"cell.{name}": value for name, value in _plain(self.cell).items()},
            **{FILE: self.suite_file, FINGERPRINT: self.fingerprint},
            **{"suite.place": self.place, "suite.run": self.loaded.visit.run, "suite.seed": head.seed},
        )
        if suite.table.quality is not None and self.config.stash[SETTINGS].simulated_engines:
            self._energy.note(**{"quality.absent": "a simulated engine answers nothing that could be scored"})
        try:
            self._energy.run(self.engine, self.work)
            if self.loaded.score is not None:
                self._energy.quality(self.loaded.score)
        except EngineError:
            # Its process may be gone.
            self.loaded.close()
            raise

    def teardown(self) -> None:
        """Let go of the GPUs."""
        self._open.close()

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Say where the cell stands."""
        # In brackets, or pytest would show its dots as colons.
        return self.path, None, f"{self.path.name.removesuffix(SUFFIX)}[{self.name}]"

    def __repr__(self) -> str:
        if self.foretold.skipped:
            return f"<Cell {self.name}: will be skipped, {self.foretold.skipped}>"
        parts = []
        if self.foretold.seconds is not None:
            parts.append(f"about {duration(self.foretold.seconds)}")
        if self.foretold.board_bytes is not None:
            parts.append(f"{self.foretold.board_bytes / GIB:.1f} GiB a board")
        return f"<Cell {self.name}{': ' if parts else ''}{', '.join(parts)}>"


def machine_of(config: pytest.Config) -> Machine:
    """Return the machine that the cells would run on, looked at once a run."""
    if _MACHINE not in config.stash:
        config.stash[_MACHINE] = this_machine(simulated=config.stash[SETTINGS].simulated_engines)
    return config.stash[_MACHINE]


def _plain(cell: Cell) -> dict[str, Fact]:
    """Return the cell's values, arrivals as text."""
    return {
        name: value if isinstance(value, str | int) else repr(value)
        for name, value in cell.values.items()
        if value is not None
    }
