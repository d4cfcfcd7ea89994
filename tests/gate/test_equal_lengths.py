"""Answers of another length: compared at equal lengths from the baseline's phases, with the uncertainty that leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from pytest_tokenpower.core.records import MeasurementRecord, PhaseRecord
from pytest_tokenpower.gate.equal_lengths import unlike_lengths
from pytest_tokenpower.store.baseline import ComparableRuns
from tests.support.measurements import measured
from tests.support.verdicts import judge_stored, text

PREFILL, DECODE = 0.05, 0.4
"""Joules a token of each."""


def run(
    generated: float = 200,
    prompt: int = 512,
    *,
    dearer: float = 1.0,
    phases: bool = True,
    wobble: float = 1.0,
) -> MeasurementRecord:
    """Eight rounds of one execution each; a fraction of a token makes the counts vary from round to round."""
    found = measured("t", 1.0)
    rounds = []
    for at, one in enumerate(found.rounds):
        tokens = int(generated) + (at % 8 < round(8 * (generated % 1)))
        prefill = PREFILL * prompt * dearer * wobble
        joules = prefill + DECODE * tokens * dearer * wobble
        rounds.append(
            replace(
                one,
                joules=joules * (1 + 0.001 * (-1) ** at),
                prompt_tokens=prompt,
                generated_tokens=tokens,
                phases={"prefill": PhaseRecord(prefill, 0.02 * prefill, 0.2)} if phases else {},
            )
        )
    return replace(found, rounds=tuple(rounds))


def stored(**more: object) -> ComparableRuns:
    runs = tuple(run(wobble=each, **more) for each in (0.999, 1.001, 1.0, 1.0015, 0.9985))  # type: ignore[arg-type]
    return ComparableRuns("main", runs, tuple("abcde"))


@pytest.mark.parametrize("generated", [201, 215, 190, 200.5])
@pytest.mark.parametrize("prompt", [512, 530])
def test_thirty_percent_more_is_found_at_other_lengths(generated: float, prompt: int) -> None:
    verdict = judge_stored(run(generated, prompt, dearer=1.3), stored(), 0.03)
    assert verdict.kind == "regressed"
    assert verdict.change == pytest.approx(0.3, abs=0.005)
    assert "Compared at equal lengths: the stored runs had 512 prefilled and 200 generated tokens" in text(
        verdict
    )


@pytest.mark.parametrize("generated", [190, 200.5, 201, 215])
def test_the_same_work_at_another_length_is_no_change(generated: float) -> None:
    verdict = judge_stored(run(generated), stored(), 0.03)
    assert verdict.kind in ("passed", "inconclusive")
    assert verdict.change == pytest.approx(0.0, abs=0.002)
    assert (verdict.change_low or 0) < 0 < (verdict.change_high or 0)


def test_equal_counts_are_exact_and_not_worth_a_word() -> None:
    same = judge_stored(run(), stored(), 0.03)
    assert "equal lengths" not in text(same)
    # What re-expressing leaves uncertain is in the interval.
    other = judge_stored(run(215), stored(), 0.03)
    assert (other.change_high or 0) - (other.change_low or 0) > (same.change_high or 0) - (
        same.change_low or 0
    )


def test_without_phases_a_token_more_is_bounded_and_more_is_refused() -> None:
    dearer = judge_stored(run(201, dearer=1.3, phases=False), stored(phases=False), 0.03)
    assert dearer.kind == "regressed"
    assert dearer.change == pytest.approx(0.3, abs=0.005)
    assert "their figures are re-expressed with prefill and decode not told apart, which leaves" in text(
        dearer
    )
    refused = judge_stored(run(210, phases=False), stored(phases=False), 0.03)
    assert refused.kind == "no baseline"
    assert "prefill and decode were not told apart" in text(refused)


@pytest.mark.parametrize(("generated", "prompt"), [(230, 512), (200, 400)])
def test_beyond_the_tolerance_three_remedies_are_named(generated: int, prompt: int) -> None:
    said = text(judge_stored(run(generated, prompt), stored(), 0.03))
    assert said.startswith("no baseline: test_it: nothing to compare with on main: not comparable: ")
    assert "more than the tolerance of 10%" in said
    for remedy in ("min_tokens == max_tokens", "store runs at the new lengths", "energy.compare"):
        assert remedy in said


def test_equal_lengths_of_which_a_cache_took_more_are_exact() -> None:
    """The key knows the share of a prefix cache to a few percent; what it took of each run differs a little."""
    key = {"prompt_tokens": 512, "generated_tokens": 200}

    def cached(one: MeasurementRecord, tokens: int) -> MeasurementRecord:
        return replace(
            one, key=key, rounds=tuple(replace(each, cached_prompt_tokens=tokens) for each in one.rounds)
        )

    runs = replace_runs(stored(phases=False), lambda one: cached(one, 400))
    verdict = judge_stored(cached(run(phases=False), 420), runs, 0.03)
    assert verdict.kind == "passed"
    assert "equal lengths" not in text(verdict)


def replace_runs(
    found: ComparableRuns, change: Callable[[MeasurementRecord], MeasurementRecord]
) -> ComparableRuns:
    return ComparableRuns(found.label, tuple(map(change, found.runs)), found.run_ids)


@pytest.mark.parametrize("place", range(5))
def test_a_stored_run_of_a_far_length_is_left_out_alone_wherever_it_stands(place: int) -> None:
    runs = [run(wobble=each) for each in (0.999, 1.001, 1.0, 1.0015)]
    runs.insert(place, run(300))
    verdict = judge_stored(run(201, dearer=1.3), ComparableRuns("main", tuple(runs), tuple("abcde")), 0.03)
    assert verdict.kind == "regressed"
    assert verdict.change == pytest.approx(0.3, abs=0.01)
    assert verdict.baseline_runs == tuple(each for at, each in enumerate("abcde") if at != place)
    assert "1 stored run left out, whose lengths lie too far apart" in text(verdict)


def test_keys_with_other_counts_are_never_taken_for_equal_ones() -> None:
    """The key of each run says its length, as it is where no count varies."""
    old = stored()
    keyed = tuple(
        replace(one, key={**one.key, "prompt_tokens": 512, "generated_tokens": 200}) for one in old.runs
    )
    new = replace(run(500), key={**run().key, "prompt_tokens": 512, "generated_tokens": 500})
    verdict = judge_stored(new, ComparableRuns("main", keyed, old.run_ids), 0.03)
    assert verdict.kind == "no baseline"
    assert "500 generated tokens here, 512 prefilled and 200 generated tokens there" in verdict.reason


@pytest.mark.parametrize(("generated", "prompt"), [(215, 512), (190, 530), (215.5, 490), (400, 512)])
def test_a_prefill_compared_per_prompt_token_has_no_decode_to_re_express(
    generated: float, prompt: int
) -> None:
    """What is compared is the prefill's joules: they are re-expressed, not the whole round's."""

    def per_prompt_token(one: MeasurementRecord) -> MeasurementRecord:
        return replace(one, key={**one.key, "denominator": "prompt_token"})

    runs = replace_runs(stored(), per_prompt_token)
    same = judge_stored(per_prompt_token(run(generated, prompt)), runs, 0.03)
    assert same.change == pytest.approx(0.0, abs=0.002)
    dearer = judge_stored(per_prompt_token(run(generated, prompt, dearer=1.3)), runs, 0.03)
    assert dearer.kind == "regressed"
    assert dearer.change == pytest.approx(0.3, abs=0.005)
    assert "0 generated" not in text(dearer)


def test_tokens_of_prompts_count_as_they_are_divided_by_cached_ones_too() -> None:
    """Joules per token of prompt and answer: a cache that took fewer makes no more tokens of the same prompt."""

    def cached(one: MeasurementRecord, tokens: int) -> MeasurementRecord:
        rounds = tuple(
            replace(each, cached_prompt_tokens=tokens, joules=(each.joules or 0) - PREFILL * tokens, phases={
                "prefill": PhaseRecord(PREFILL * (512 - tokens), 0.1, 0.2)
            })
            for each in one.rounds
        )  # fmt: skip
        return replace(one, key={**one.key, "denominator": "total_token"}, rounds=rounds)

    runs = replace_runs(stored(), lambda one: cached(one, 256))
    verdict = judge_stored(cached(run(200.5), 240), runs, 0.03)
    # The work of 16 tokens more that were prefilled is in what is expected.
    assert verdict.change == pytest.approx(0.0, abs=0.003)


def test_variants_of_unlike_lengths_are_said_to_be() -> None:
    assert unlike_lengths(run().rounds, run(203).rounds, "token", None) == ()
    [said] = unlike_lengths(run().rounds, run(260).rounds, "token", ("bf16", "FP8"))
    assert said.startswith(
        "Not at equal lengths: an execution of bf16 has 512 prefilled and 200 generated tokens, of FP8 512 prefilled "
        "and 260 generated tokens"
    )
    # Joules per prompt token are the prefill's.
    assert unlike_lengths(run().rounds, run(260).rounds, "prompt_token", None) == ()
    [said] = unlike_lengths(run().rounds, run(prompt=600).rounds, "prompt_token", None)
    assert "of the candidate 600 prefilled tokens" in said
