"""The types that every room shares."""

from __future__ import annotations

from typing import Literal

Fact = str | int | float | bool | None

Scope = Literal["gpu", "cpu", "dram", "module", "node", "rack"]
"""What a device's energy stands for. A GPU figure is never called a node figure. A module (Grace Hopper) is a GPU, the
CPU beside it and the memory of both: its joules hold those of its parts, so they are never added to them."""

Provenance = Literal["measured", "modelled", "simulated", "replayed", "estimated"]
"""Where a number comes from; part of the key, so that a modelled joule never meets a measured one."""
