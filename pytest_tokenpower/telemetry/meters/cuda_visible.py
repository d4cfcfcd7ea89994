"""Which of NVML's GPUs a CUDA program sees: CUDA_VISIBLE_DEVICES, and the order that it counts in."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pytest_tokenpower.errors import MeterUnavailable


def visible_indices(visible: str | None, uuids: Sequence[str], names: Sequence[str]) -> list[int]:
    """The NVML indices that a value of CUDA_VISIBLE_DEVICES (None: not set) leaves, in its own order.

    ``uuids`` and ``names`` are those of all GPUs in NVML's order. Raises MeterUnavailable where the value names a
    MIG slice, nothing or something ambiguous.
    """
    if visible is None:
        return list(range(len(uuids)))
    models = sorted(set(names))
    chosen: list[int] = []
    for part in (part.strip() for part in visible.split(",")):
        if part.startswith("MIG-"):
            raise MeterUnavailable(
                f"CUDA_VISIBLE_DEVICES names the MIG slice {part}: NVML reports the power of the whole board, "
                "so the energy of one slice cannot be measured; run energy tests on a GPU without MIG"
            )
        if part.startswith("GPU-"):
            matches = [index for index, uuid in enumerate(uuids) if uuid.startswith(part)]
            if len(matches) != 1:
                raise MeterUnavailable(
                    f"CUDA_VISIBLE_DEVICES names {part}, which matches {len(matches)} of the GPUs {', '.join(uuids)}"
                )
            chosen += matches
            continue
        # CUDA hides this entry and all after it when one is not a valid index ("-1", "NoDevFiles").
        if not part.isdigit() or int(part) >= len(uuids):
            break
        if len(models) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            raise MeterUnavailable(
                f"CUDA_VISIBLE_DEVICES={visible} counts in CUDA's order, which is not NVML's on a machine "
                f"with different GPUs ({', '.join(models)}): set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name "
                "the GPUs by UUID (nvidia-smi -L)"
            )
        chosen.append(int(part))
    if not chosen:
        raise MeterUnavailable(f"CUDA_VISIBLE_DEVICES={visible!r} leaves no GPU visible")
    return chosen
