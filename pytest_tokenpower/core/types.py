"""The types that every room shares."""

from __future__ import annotations

from typing import Literal

Fact = str | int | float | bool | None

Scope = Literal["gpu", "cpu", "dram", "module", "node", "rack"]

Provenance = Literal["measured", "modelled", "simulated", "replayed"]
