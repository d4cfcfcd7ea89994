"""Which boards are ours, of those that NVML lists: what is hidden from a CUDA program cannot harm its measurement.

A board that does not answer is no reason to fail as long as it is known not to be ours: a neighbour that has fallen off
the bus, one that a device cgroup keeps for another job.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytest_tokenpower.errors import MeterUnavailable

TROUBLE = "sudo dmesg has the driver's reason; a reset or a reboot may help"
"""What to do about a board that fails, in brackets after what has failed."""

WHOLE = "whole board"
"""The fact ``mig`` of a board that is cut into slices, all of which are the test's."""


@dataclass(frozen=True)
class VisibleBoard:
    """A board of ours; ``mig`` is None where it is whole, else how it stands with its slices (WHOLE)."""

    handle: Any
    uuid: str
    mig: str | None = None


@dataclass(frozen=True)
class ListedBoard:
    """A board as NVML lists it, ``index`` as CUDA counts; ``error`` says why ``uuid`` is not known."""

    index: int
    handle: Any
    uuid: str | None
    error: str | None = None


def visible_indices(visible: str | None, uuids: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the NVML indices that a value of CUDA_VISIBLE_DEVICES (None: not set) leaves, in its own order.

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
        if not part.isdecimal() or int(part) >= len(uuids):
            break
        if len(models) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            raise MeterUnavailable(
                f"CUDA_VISIBLE_DEVICES={visible} counts in CUDA's order, which is not NVML's on a machine "
                f"with different GPUs ({', '.join(models)}): set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name "
                "the GPUs by UUID (nvidia-smi -L)"
            )
        chosen.append(int(part))
    if not chosen:
        raise MeterUnavailable(
            f"CUDA_VISIBLE_DEVICES={visible!r} leaves no GPU visible: its first entry must be a number below "
            f"{len(uuids)}, or a UUID as nvidia-smi -L lists them"
        )
    return chosen


def visible_boards(nvml: Any, visible: str | None) -> list[VisibleBoard]:
    """Return the boards that a value of CUDA_VISIBLE_DEVICES (None: not set) leaves, in its order.

    Raises MeterUnavailable where it leaves none, where it cannot be said which it leaves, where one of them does not
    answer, and where the slices of a board are not all ours.
    """
    if visible is not None and any(part.strip().startswith("MIG-") for part in visible.split(",")):
        return _of_slices(nvml, [part.strip() for part in visible.split(",")])
    return [_whole(nvml, board) for board in chosen_boards(nvml, visible)]


def list_boards(nvml: Any) -> list[ListedBoard]:
    """All boards that a CUDA program could be given, also those that do not answer.

    One that this process may not open is none of them: CUDA does not count it either. Raises MeterUnavailable where no
    board may be opened, or NVML counts none.
    """
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        raise MeterUnavailable(
            f"NVML could not count the GPUs: nvmlDeviceGetCount failed: {error} ({TROUBLE})"
        ) from error
    listed: list[ListedBoard] = []
    denied: list[str] = []
    for index in range(count):
        handle, call = None, "nvmlDeviceGetHandleByIndex"
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            call = "nvmlDeviceGetUUID"
            listed.append(ListedBoard(len(listed), handle, text(nvml.nvmlDeviceGetUUID(handle))))
        except nvml.NVMLError as error:
            forbidden = getattr(error, "value", None) == getattr(nvml, "NVML_ERROR_NO_PERMISSION", object())
            if forbidden and handle is None:
                denied.append(f"{call} failed: {error}")
            else:
                why = f"GPU {index}: {call} failed: {error} ({TROUBLE})"
                listed.append(ListedBoard(len(listed), handle, None, why))
    if denied and not listed:
        raise MeterUnavailable(
            f"none of the {len(denied)} NVIDIA GPUs may be opened by this process ({denied[0]}: a device cgroup keeps "
            "them for others): ask the scheduler for a GPU"
        )
    return listed


def chosen_boards(nvml: Any, visible: str | None) -> list[ListedBoard]:
    """Return the boards that a value of CUDA_VISIBLE_DEVICES leaves, in its order, all of which answer.

    Raises MeterUnavailable as :func:`visible_boards`, and for the name of a slice.
    """
    listed = list_boards(nvml)
    if not listed:
        raise MeterUnavailable("the NVIDIA driver lists no GPU")
    silent = next((board for board in listed if board.uuid is None), None)
    answering = [board for board in listed if board.uuid is not None]
    if visible is None:
        if silent is not None:
            raise MeterUnavailable(f"{silent.error}{hide([board.uuid or '' for board in answering])}")
        return listed
    named = [part for part in (part.strip() for part in visible.split(",")) if part.startswith("GPU-")]
    if silent is not None and (
        lost := [part for part in named if not any((each.uuid or "").startswith(part) for each in answering)]
    ):
        raise MeterUnavailable(
            f"CUDA_VISIBLE_DEVICES names {lost[0]}, which is none of the GPUs that answer "
            f"({', '.join(board.uuid or '' for board in answering) or 'none does'}) and may be one that does not: "
            f"{silent.error}"
        )
    uuids = [board.uuid or "" for board in listed]
    names = [_name(nvml, board) for board in answering]
    # What does not tell its name is taken to be like the others: were it another model, CUDA_DEVICE_ORDER would matter
    # for the boards that answer, too, and they are asked.
    told = [name for name in names if name is not None]
    chosen = visible_indices(visible, uuids, told)
    for part, index in zip((part.strip() for part in visible.split(",")), chosen, strict=False):
        if part.isdecimal() and silent is not None and index >= silent.index:
            raise MeterUnavailable(
                f"CUDA_VISIBLE_DEVICES={visible} counts a GPU that does not answer ({silent.error}), and CUDA may not: "
                f"name the GPUs by UUID (there answer {', '.join(board.uuid or '' for board in answering) or 'none'})"
            )
    # One that is named twice draws its power once.
    return [listed[index] for index in dict.fromkeys(chosen)]


def hide(others: Sequence[str]) -> str:
    """How to leave a board out, to be put after what is wrong with it; ``others`` are the UUIDs of the rest."""
    return f"; if the tests do not use it, hide it: CUDA_VISIBLE_DEVICES={','.join(others)}" if others else ""


def _name(nvml: Any, board: ListedBoard) -> str | None:
    try:
        return text(nvml.nvmlDeviceGetName(board.handle))
    except (nvml.NVMLError, UnicodeDecodeError):
        return None


# --- boards that are cut into slices


def _whole(nvml: Any, board: ListedBoard) -> VisibleBoard:
    """Return a board as a whole; one in MIG mode if all of its slices are seen here."""
    uuid = board.uuid or ""
    if not is_cut(nvml, board.handle):
        return VisibleBoard(board.handle, uuid)
    return VisibleBoard(
        board.handle, uuid, _all_slices(nvml, board.handle, uuid, _slices(nvml, board.handle))
    )


def _of_slices(nvml: Any, parts: Sequence[str]) -> list[VisibleBoard]:
    """Return the boards of the slices that are named, each with all of its slices among them."""
    found: dict[str, tuple[Any, list[Any]]] = {}
    for part in dict.fromkeys(parts):
        if not part.startswith("MIG-"):
            raise MeterUnavailable(
                f"CUDA_VISIBLE_DEVICES={','.join(parts)} names MIG slices and whole GPUs: name either"
            )
        try:
            piece = nvml.nvmlDeviceGetHandleByUUID(part)
            board = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(piece)
            uuid = text(nvml.nvmlDeviceGetUUID(board))
        except nvml.NVMLError as error:
            raise MeterUnavailable(
                f"CUDA_VISIBLE_DEVICES names the MIG slice {part}, which NVML does not find ({error}): nvidia-smi -L "
                "lists them"
            ) from error
        found.setdefault(uuid, (board, []))[1].append(piece)
    return [
        VisibleBoard(board, uuid, _all_slices(nvml, board, uuid, pieces))
        for uuid, (board, pieces) in found.items()
    ]


def _all_slices(nvml: Any, board: Any, uuid: str, pieces: Sequence[Any]) -> str:
    """WHOLE; raises MeterUnavailable where the slices are not known to be the whole board."""
    parts = _compute_slices(nvml, pieces)
    total = _most_slices(nvml, board)
    if parts is not None and total is not None and parts >= total:
        return WHOLE
    told = "" if parts is None or total is None else f" ({parts} of {total} are this test's)"
    raise MeterUnavailable(
        f"{uuid} runs in MIG mode: NVML reports the power of the whole board, so the energy of one slice cannot be "
        f"measured{told}; run energy tests on a GPU without MIG, or on all of its slices"
    )


def is_cut(nvml: Any, handle: Any) -> bool:
    """Whether a board is in MIG mode, so that a program sees a slice of it."""
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        return False  # a board that knows no MIG
    return bool(current)


def _slices(nvml: Any, board: Any) -> list[Any]:
    pieces = []
    try:
        for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(board)):
            try:
                pieces.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(board, index))
            except nvml.NVMLError:
                continue  # no slice there
    except nvml.NVMLError:
        return []
    return pieces


def _compute_slices(nvml: Any, pieces: Sequence[Any]) -> int | None:
    """How many seventh parts (or whatever the board is cut into) the pieces have together."""
    try:
        return sum(int(nvml.nvmlDeviceGetAttributes(piece).computeInstanceSliceCount) for piece in pieces)
    except nvml.NVMLError:
        return None


def _most_slices(nvml: Any, board: Any) -> int | None:
    """Into how many parts the board can be cut: those of its largest instance."""
    counts = []
    for profile in range(getattr(nvml, "NVML_GPU_INSTANCE_PROFILE_COUNT", 0)):
        try:
            counts.append(int(nvml.nvmlDeviceGetGpuInstanceProfileInfo(board, profile).sliceCount))
        except nvml.NVMLError:
            continue
    return max(counts, default=None)


def text(value: str | bytes) -> str:
    """NVML's strings as text; a name in another encoding is no reason to fail."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
