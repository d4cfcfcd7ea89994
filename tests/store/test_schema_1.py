"""Runs that were stored in the first schema are read: their strings become fields."""

import json

from pytest_tokenpower.core.records import Figure, PhaseSplit, ScopeFigure, decode_run, encode_run
from pytest_tokenpower.gate.messages import message

RUN = {
    "type": "tokenpower-run",
    "id": "1",
    "created": "2026-11-22T21:24:20Z",
    "measurements": [
        {
            "test": "test_a.py::test_chat",
            "key": {"schema": 1},
            "provenance": "measured",
            "scope": "gpu",
            "method": "power ring",
            "rounds": [],
            "comparable": True,
            "facts": {
                "phases.mixed_share": 0.36,
                "phases.condition": 2.1,
                "beside.node.span_seconds": 83.2,
                "beside.node.share_in_rounds": 0.64,
                "beside.rack.absent": "no answer",
                "engine.dtype": "bfloat16",
            },
            "figures": {
                "joules_per_token": {"value": 0.24, "stderr": 0.001},
                "node_joules_per_token": {"value": 0.4, "stderr": 0.01},
                "cpu_modelled_joules_per_token": {"value": 0.02, "stderr": 0.01},
            },
            "verdicts": [
                {"kind": "regressed", "message": "0.24 is above.\n  95 % interval.", "change": 0.06}
            ],
            "arms": {"baseline": []},
            "tries": 2,
        }
    ],
}


def test_what_was_text_is_read_into_fields() -> None:
    run = decode_run(json.dumps(RUN).encode(), source="old")
    (measured,) = run.measurements
    assert measured.facts == {"engine.dtype": "bfloat16"}
    assert measured.figures == {"joules_per_token": Figure(0.24, 0.001)}
    assert sorted(measured.other_scopes, key=lambda one: one.scope) == [
        ScopeFigure("cpu", "modelled", Figure(0.02, 0.01)),
        ScopeFigure("node", "measured", Figure(0.4, 0.01), "", 83.2, 0.64),
        ScopeFigure("rack", "measured", None, "no answer"),
    ]
    assert measured.phase_split == PhaseSplit(0.36, 2.1)
    assert (measured.variants, measured.attempts) == ({"baseline": ()}, 2)
    assert measured.verdicts[0].notes == ("95 % interval.",)
    assert "0.24 is above." in message(measured.verdicts[0], measured.test)
    assert decode_run(encode_run(run), source="new") == run
