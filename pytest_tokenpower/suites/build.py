"""From a cell to what runs it: the engine that it asks for, and the work that it is given."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.engines.registry import OPTION_OF
from pytest_tokenpower.engines.spec import EngineSpec
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.models.random_weights import write_random_model
from pytest_tokenpower.models.registry import architecture, load_models
from pytest_tokenpower.suites.grid import Cell, Suite, Values
from pytest_tokenpower.suites.schema import SETTINGS, Arrival
from pytest_tokenpower.workloads.arrivals import AllAtOnce, Arrivals, Concurrency, Poisson
from pytest_tokenpower.workloads.base import FixedShape, Workload
from pytest_tokenpower.workloads.prompts import PromptSet
from pytest_tokenpower.workloads.quality import ExactMatch, Likelihood, Quality

WEIGHTS_VARIABLE = "TOKENPOWER_WEIGHTS"
"""Environment variable that names the folder that random weights are written to, and kept in."""

_SPELLINGS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def engine_of(suite: Suite, cells: Sequence[Cell], *, simulated: Clock | None = None) -> EngineSpec:
    """Return the engine that these cells share; random weights are written where they are not there yet.

    ``simulated`` is the clock on which a forecast stands for it; None: nothing does.
    Raises UsageError and EngineError.
    """
    values = cells[0].values
    table = suite.engine(values["engine"])
    adapter = str(table.adapter)
    settings = {name: values[name] for name in SETTINGS if values.get(name) not in (None, "none")}
    if simulated is not None:
        model = suite.model(values["model"])
        name = model.random or model.hub or str(suite.folder(str(model.path)))
        known = next((each.name for each in load_models().values() if each.hub == name), name)
        return EngineSpec("simulated", known, isolated=False, stands_for=adapter, clock=simulated, **settings)
    names = OPTION_OF.get(adapter)
    options: dict[str, Any] = {
        **({} if suite.table.quality is not None else _longest(suite, adapter, cells)),
        **{
            name if names is None else names[name]: _SPELLINGS.get(value, value) if name == "dtype" else value
            for name, value in settings.items()
            if names is None or name in names
        },
        **table.options,
    }
    if (variant := suite.table.variants.get(values.get("variant", ""))) is not None:
        options |= variant.options
    return EngineSpec(
        adapter,
        checkpoint(suite, values["model"]),
        isolated=table.isolated,
        env=table.env,
        **options,
    )


def _longest(suite: Suite, adapter: str, cells: Sequence[Cell]) -> dict[str, int]:
    """Tell vLLM what the work needs, or it keeps room for the model's longest context."""
    lengths = [suite.longest_prompt(cell) for cell in cells]
    if not adapter.startswith("vllm") or None in lengths:
        return {}
    return {
        "max_model_len": max(
            (length or 0) + cell.values["new_tokens"] for length, cell in zip(lengths, cells, strict=True)
        )
    }


def checkpoint(suite: Suite, name: str) -> str:
    """Return the folder or hub id of a model."""
    model = suite.model(name)
    if model.random is None:
        return model.hub or str(suite.folder(str(model.path)))
    folder = Path(os.environ.get(WEIGHTS_VARIABLE) or Path.home() / ".cache" / "tokenpower" / "weights")
    if not model.weights:
        folder = folder / f"{model.random}-config" / model.random
        folder.mkdir(parents=True, exist_ok=True)
        config = architecture(model.random).hub_config(model.dtype)
        (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
        return str(folder)
    return str(
        write_random_model(
            folder / f"{model.random}-{model.dtype}-{model.seed}",
            model.random,
            seed=model.seed,
            dtype=model.dtype,
        )
    )


def declared(cell: Cell) -> dict[str, Fact]:
    """Return the settings that the engine is held to, and that are part of the measurement's key."""
    return {name: cell.values[name] for name in SETTINGS if cell.values.get(name) not in (None, "auto")}


def work_of(suite: Suite, cell: Cell) -> Workload:
    """Return the cell's work; raises UsageError, also where a file has fewer prompts than the batch asks for."""
    values = cell.values
    arrivals = _arrivals(values["arrivals"])
    batch, new_tokens, prompt_tokens = values["batch"], values["new_tokens"], values.get("prompt_tokens")
    if values["prompts"] == "random":
        shape = suite.architecture(values["model"])
        vocab = min(32_000, 32_000 if shape is None else shape.shape.vocab)
        return FixedShape(batch, int(prompt_tokens or 0), new_tokens, vocab=vocab, arrivals=arrivals)
    table = suite.table.prompts[values["prompts"]]
    limits: Values = {
        "new_tokens": new_tokens,
        "limit": batch,
        "max_prompt_tokens": prompt_tokens,
        "arrivals": arrivals,
        "tokens": table.tokens,
    }
    if table.file is not None:
        found = PromptSet.read(suite.folder(table.file), **limits)
    else:
        found = PromptSet.from_hub(str(table.hub), split=table.split, subset=table.subset, **limits)
    if table.tokens is None and len(found.texts) < batch:
        raise UsageError(
            f"{suite.path}: prompts.{values['prompts']}: there are {len(found.texts)} prompts, and batch = {batch} "
            "asks for more"
        )
    return found


def quality_of(suite: Suite) -> Quality | None:
    """Return what scores the engines; None where nothing does. Raises UsageError."""
    table = suite.table.quality
    if table is None:
        return None
    if table.call is not None:
        module, _, name = table.call.partition(":")
        try:
            found: Quality = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise suite.wrong(("quality", "call"), f"cannot be imported: {error}") from None
        return found
    path = suite.folder(str(table.file))
    if table.score == "likelihood":
        return Likelihood.read(path, limit=table.limit)
    return ExactMatch.read(path, new_tokens=table.new_tokens, limit=table.limit)


def _arrivals(value: str | Arrival) -> Arrivals:
    if not isinstance(value, Arrival):
        return AllAtOnce()
    if value.concurrency is not None:
        return Concurrency(value.concurrency)
    return Poisson(float(value.poisson or 0), value.seed)
