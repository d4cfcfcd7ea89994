"""Keys: canonical, equal after a trip through JSON, and clear about what differs."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.meters.types import Device
from pytest_tokenpower.store.keys import (
    PROTECTED,
    KeyDifference,
    canonical_fact,
    describe,
    differences,
    ignoring,
    label,
    major_minor,
    make_key,
    stated,
)

FACTS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
KEYS = st.dictionaries(st.text(max_size=8) | st.sampled_from(["gpu.name", "axis.n"]), FACTS, max_size=6)


def through_json(key: Mapping[str, Fact]) -> dict[str, Fact]:
    return msgspec.json.decode(msgspec.json.encode(key), type=dict[str, Fact])


def board(number: int = 0, **facts: Fact) -> Device:
    key_facts = {"memory_mib": 81559, "power_limit_watts": 700.0, "driver_major": 580, "mig": False, **facts}
    return Device(
        f"GPU-{number}", "gpu", "NVIDIA H100 80GB HBM3", "nvml", "measured", key_facts, {"host": number}
    )


def test_the_key_of_a_measurement() -> None:
    key = make_key(
        devices=[board(0), board(1)],
        provenance="measured",
        scope="gpu",
        method="power ring",
        engine="vllm",
        engine_version="0.26.1.dev3+g12ab",
        model="llama-3-8b",
        axes={"quantization": "fp8", "tensor_parallel": 2},
        workload="1f2e",
        tokens=[TokenCount(4096, 2048, 32)],
    )
    assert key == {
        "axis.quantization": "fp8",
        "axis.tensor_parallel": 2,
        "engine": "vllm",
        "engine_version": "0.26",
        "generated_tokens": 2048,
        "gpu.count": 2,
        "gpu.driver_major": 580,
        "gpu.memory_mib": 81559,
        "gpu.meter": "nvml",
        "gpu.mig": False,
        "gpu.name": "NVIDIA H100 80GB HBM3",
        "gpu.power_limit_watts": 700,
        "method": "power ring",
        "model": "llama-3-8b",
        "prompt_tokens": 4096,
        "provenance": "measured",
        "responses": 32,
        "schema": 1,
        "scope": "gpu",
        "workload": "1f2e",
    }
    assert list(key) == sorted(key)


def test_another_board_of_the_same_kind_is_no_difference() -> None:
    first, second = (
        make_key(devices=[board(number)], provenance="measured", scope="gpu") for number in (1, 2)
    )
    assert differences(first, second) == ()


def test_unlike_devices_are_grouped_whatever_their_order() -> None:
    cpu = Device("cpu0", "cpu", "EPYC", "cpu_model", "modelled", {"cores": 64})
    devices = [board(0), board(1, power_limit_watts=500.0), board(2), cpu]
    key = make_key(devices=devices, provenance="measured", scope="node")
    assert key == make_key(devices=devices[::-1], provenance="measured", scope="node")
    counts = {
        (key["gpu1.power_limit_watts"], key["gpu1.count"]),
        (key["gpu2.power_limit_watts"], key["gpu2.count"]),
    }
    assert counts == {(700, 2), (500, 1)}
    assert (key["cpu.cores"], key["cpu.provenance"]) == (64, "modelled")
    assert "gpu1.provenance" not in key


def test_energy_that_was_read_otherwise_is_not_compared() -> None:
    ring, counter, unknown = (
        make_key(devices=[board()], provenance="measured", scope="gpu", method=method)
        for method in ("power ring", "energy counter", "")
    )
    assert describe(differences(ring, counter)) == "meter method: power ring here, energy counter there"
    assert "method" not in unknown
    assert differences(ignoring(ring, ["method"]), ignoring(counter, ["method"])) == ()


@given(KEYS | st.dictionaries(st.text(), st.floats()), KEYS)
def test_a_key_equals_itself_after_json_and_nothing_else(
    axes: dict[str, Fact], others: dict[str, Fact]
) -> None:
    key, other = (
        make_key(devices=[], provenance="modelled", scope="cpu", axes=each) for each in (axes, others)
    )
    assert through_json(key) == key
    assert differences(key, through_json(key)) == ()
    assert (differences(key, other) == ()) == (repr(key) == repr(other))


@given(KEYS, KEYS)
def test_differences_are_exact_and_symmetric(here: dict[str, Fact], there: dict[str, Fact]) -> None:
    found = differences(here, there)
    assert [each.field for each in found] == sorted({each.field for each in found})
    assert tuple(KeyDifference(each.field, each.there, each.here) for each in found) == differences(
        there, here
    )
    rest = {name: value for name, value in here.items() if name not in {each.field for each in found}}
    assert all(value is None or there[name] == value for name, value in rest.items())


def test_true_is_not_one() -> None:
    assert differences({"axis.graphs": True}, {"axis.graphs": 1}) == (KeyDifference("axis.graphs", True, 1),)
    assert differences({"axis.graphs": True}, {"axis.graphs": True}) == ()


def test_unknown_equals_unknown_only() -> None:
    assert differences({"gpu.mig": None}, {}) == ()
    assert differences({"gpu.mig": False}, {}) == (KeyDifference("gpu.mig", False, None),)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (350.0, 350),
        (0.1, 0.1),
        (-0.0, 0),
        (1e300, 1e300),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (2**70, str(2**70)),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        ("\udc80", "\\udc80"),
    ],
)
def test_values_that_json_would_change(value: object, expected: Fact) -> None:
    found = canonical_fact(value, "x")
    assert (found, type(found)) == (expected, type(expected))


def test_a_value_that_is_no_fact_is_refused() -> None:
    with pytest.raises(UsageError, match=r"axis\.batch.*\[8\]"):
        make_key(devices=[], provenance="measured", scope="gpu", axes={"batch": [8]})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("version", "short"),
    [
        ("0.26.1", "0.26"),
        ("v1.2", "1.2"),
        ("5.19.0rc1", "5.19"),
        ("2.13.0+cu130", "2.13"),
        ("nightly", "nightly"),
    ],
)
def test_versions_are_cut_to_major_and_minor(version: str, short: str) -> None:
    assert major_minor(version) == short


KEY: dict[str, Fact] = {
    "schema": 1,
    "provenance": "measured",
    "scope": "gpu",
    "gpu.name": "H100",
    "gpu.mig": False,
    "gpu.provenance": "modelled",
    "axis.quantization": "fp8",
    "engine_version": "0.26",
}


@pytest.mark.parametrize(
    ("patterns", "gone"),
    [
        ((), set()),
        (("quantization",), {"axis.quantization"}),
        ("quantization", {"axis.quantization"}),
        (("axis.quant*",), {"axis.quantization"}),
        (("engine_version", "gpu.name"), {"engine_version", "gpu.name"}),
        (("gpu.*",), {"gpu.name", "gpu.mig"}),
        (("*",), {"gpu.name", "gpu.mig", "axis.quantization", "engine_version"}),
        (("GPU.*", "name", "absent"), set()),
    ],
)
def test_ignoring(patterns: tuple[str, ...] | str, gone: set[str]) -> None:
    assert KEY.keys() - ignoring(KEY, patterns).keys() == gone


@pytest.mark.parametrize("name", [*PROTECTED, "gpu.provenance", "cpu2.provenance", ""])
def test_what_must_always_agree_cannot_be_ignored(name: str) -> None:
    with pytest.raises(UsageError, match="must always agree"):
        ignoring(KEY, ["quantization", name])


@given(KEYS, st.lists(st.text("agm.*?", min_size=1, max_size=3), max_size=3))
def test_ignoring_takes_away_and_changes_nothing(key: dict[str, Fact], patterns: list[str]) -> None:
    left = ignoring(key, patterns)
    assert left.items() <= key.items()
    assert ignoring(left, patterns) == left
    for pattern in patterns:
        assert pattern not in left


def test_differences_as_a_sentence() -> None:
    here: dict[str, Fact] = {"gpu.name": "NVIDIA H100", "gpu.power_limit_watts": 700, "gpu.mig": False}
    there: dict[str, Fact] = {"gpu.name": "NVIDIA A100", "gpu.power_limit_watts": 400, "axis.dtype": "bf16"}
    assert describe(differences(here, there)) == (
        "dtype: none declared here, bf16 there; GPU MIG: no here, unknown there; "
        "GPU model: NVIDIA H100 here, NVIDIA A100 there; GPU power limit: 700 W here, 400 W there"
    )


def test_a_board_is_named_once() -> None:
    here: dict[str, Fact] = {"gpu.model": "NVIDIA H100", "gpu.name": "NVIDIA H100", "gpu.memory_gib": 80}
    assert stated(here) == "GPU model NVIDIA H100, GPU memory 80 GiB"
    there = {**here, "gpu.model": "NVIDIA A100", "gpu.name": "NVIDIA A100"}
    assert describe(differences(here, there)) == "GPU model: NVIDIA H100 here, NVIDIA A100 there"


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("gpu.count", "number of GPUs"),
        ("gpu2.count", "number of devices like GPU 2"),
        ("gpu2.name", "GPU 2 model"),
        ("gpu.memory_mib", "GPU memory"),
        ("schema", "record schema"),
        ("method", "meter method"),
        ("axis.max_watts", "max_watts"),
        ("prompt_tokens", "prompt tokens per execution"),
    ],
)
def test_fields_have_names_for_people(field: str, expected: str) -> None:
    assert label(field) == expected


def test_the_share_of_cached_prompt_tokens_is_in_the_key_where_there_are_any() -> None:
    base = {"devices": (), "provenance": "measured", "scope": "gpu", "tokens": [TokenCount(100, 10)]}
    plain = make_key(**base)  # type: ignore[arg-type]
    shares = {share: make_key(**base, cached_share=share) for share in (0.8, 0.812, 0.79, 0.9)}  # type: ignore[arg-type]
    assert not any("cached" in name for name in plain)
    assert shares[0.8] == shares[0.812] == shares[0.79] == {**plain, "cached_prompt_percent": 80}
    assert str(differences(shares[0.9], plain)[0]) == (
        "prompt tokens from a prefix cache, in percent: 90 here, none there"
    )
