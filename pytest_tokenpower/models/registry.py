"""The model registry: TOML files of models, ours in ``data/`` and the user's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.models.architecture import Architecture, dtype_name

MODELS_VARIABLE = "TOKENPOWER_MODELS"
"""Environment variable that names a TOML file of the user's own models."""


@dataclass(frozen=True)
class Model:
    """A model of the registry.

    ``parameters`` is the published exact count where there is one; ``other`` of them are outside of the decoder
    that ``architecture`` describes. ``dtype`` is that of the weights as engines run them unless told otherwise.
    """

    name: str
    architecture: Architecture
    hub: str | None = None
    dtype: str = "bf16"
    parameters: int | None = None
    other: int = 0
    source: str = ""
    note: str = ""


def load_models(file: str | os.PathLike[str] | None = None) -> Mapping[str, Model]:
    """Load all models by name: ours, then those of ``file`` (default: of TOKENPOWER_MODELS, if set), which win.

    Raises UsageError that names the file, the table and the field that is wrong.
    """
    path = os.fspath(file) if file is not None else os.environ.get(MODELS_VARIABLE, "")
    return {**_ours(), **read_models(path)} if path else _ours()


def find_model(name: str, file: str | os.PathLike[str] | None = None) -> Model:
    """Find a model by its name or hub id.

    Args:
        name: Of the registry, or the hub's.
        file: As for :func:`load_models`.

    Returns:
        The model.

    Raises:
        UsageError: For an unknown one; lists what is known.
    """
    models = load_models(file)
    if name in models:
        return models[name]
    for model in models.values():
        if model.hub is not None and model.hub.lower() == name.lower():
            return model
    raise UsageError(
        f"unknown model {name!r}: use one of {', '.join(models)}, or add it to a file named by {MODELS_VARIABLE}"
    )


def architecture(name: str) -> Architecture:
    """Find an architecture by its model's name in the registry; raises UsageError that lists the known ones."""
    return find_model(name).architecture


def read_models(file: str | os.PathLike[str]) -> dict[str, Model]:
    """Read the models of one TOML file; raises UsageError as :func:`load_models`."""
    path = Path(file)
    try:
        models = _parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: this file of models cannot be read: {error}") from error
    for model in models.values():
        check_count(model, str(path))
    return models


def check_count(model: Model, file: str) -> None:
    """Raise UsageError where the published count is not what the architecture gives."""
    counted = model.architecture.parameters + model.other
    if model.parameters not in (None, counted):
        raise UsageError(
            f'{file}: ["{model.name}"] parameters = {model.parameters}: its config gives {counted} '
            f"(with other = {model.other}); correct what is wrong, or leave parameters out"
        )


@cache
def _ours() -> Mapping[str, Model]:
    folder = resources.files("pytest_tokenpower.models") / "data"
    return {
        name: model
        for file in _FILES
        for name, model in _parse((folder / file).read_text(encoding="utf-8"), file).items()
    }


_FILES = (
    "llama.toml",
    "qwen.toml",
    "mistral.toml",
    "falcon.toml",
    "gemma.toml",
    "phi.toml",
    "gpt-oss.toml",
    "deepseek.toml",
    "ours.toml",
)


def _parse(text: str, file: str) -> dict[str, Model]:
    try:
        tables = msgspec.toml.decode(text)
    except msgspec.DecodeError as error:
        raise UsageError(f"{file}: no TOML: {error}") from error
    return {name: _model(file, name, table) for name, table in tables.items()}


def _model(file: str, name: str, table: Any) -> Model:
    where = f'{file}: ["{name}"]'
    if not isinstance(table, dict):
        raise UsageError(f"{file}: {name} stands outside of a table; a model is a table of its own")
    table = dict(table)
    config = table.pop("config", None)
    if not isinstance(config, dict):
        raise UsageError(f"{where} lacks its table config: the fields of the model's config.json")
    for field, value in table.items():
        wanted = _FIELDS.get(field)
        if wanted is None:
            raise UsageError(f"{where} {field}: no such field; use {', '.join(_FIELDS)}, config")
        if not isinstance(value, wanted) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            kind = "a text" if wanted is str else "a whole number of 0 or more"
            raise UsageError(f"{where} {field} = {value!r}: {kind} is wanted")
    try:
        table["dtype"] = dtype_name(table.get("dtype", "bf16"))
    except UsageError as error:
        raise UsageError(f"{where} {error}") from error
    try:
        return Model(name, Architecture(name, config), **table)
    except UsageError as error:
        raise UsageError(f'{file}: ["{name}".config] {error}') from error


_FIELDS: Mapping[str, type] = {
    "hub": str,
    "dtype": str,
    "parameters": int,
    "other": int,
    "source": str,
    "note": str,
}
