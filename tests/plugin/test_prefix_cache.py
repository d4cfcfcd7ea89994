"""Prompts from a prefix cache: said, asked for, in the key, and the same in all rounds; over HTTP, too."""

from __future__ import annotations

import pytest

from tests.support.projects import Project

PROJECT = """
import itertools

held = itertools.chain({held}, itertools.repeat({then}))

def answer():
    "As an OpenAI server answers that has a prefix cache."
    sleep(0.25)
    details = {{"cached_tokens": next(held)}}
    usage = {{"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100, "prompt_tokens_details": details}}
    return {{"object": "chat.completion", "choices": [{{"index": 0, "finish_reason": "stop"}}], "usage": usage}}

@pytest.mark.power_budget(min_rounds=4, max_rounds=4{marker})
def test_it(energy):
    energy(answer)
"""


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ("", "were not prefilled: switch it off for rounds that do all of their work"),
        (", prefix_cache=True", "were not prefilled, as asked for"),
    ],
)
def test_what_a_cache_held_is_said_and_in_the_key(project: Project, marker: str, said: str) -> None:
    project.tests(PROJECT.format(held=[800, 790], then=805, marker=marker))
    result, run = project.measure()
    result.assert_outcomes(passed=1)
    (measured,) = run.measurements
    assert measured.key["cached_prompt_percent"] == 80
    assert (measured.key["prompt_tokens"], measured.key["generated_tokens"]) == (1000, 100)
    assert {one.cached_prompt_tokens for one in measured.rounds} <= {790, 805}
    text = " ".join(result.stdout.str().split())
    assert f"test_it: 80 % of the prompt tokens came from a prefix cache and {said}" in text


def test_a_cache_that_fills_up_makes_no_measurement(project: Project) -> None:
    # The warm-up is one round: the first round that is measured still prefills half.
    project.tests(PROJECT.format(held=[0, 500], then=900, marker=", prefix_cache=True"))
    result, run = project.measure()
    result.assert_outcomes(failed=1)
    text = " ".join(result.stdout.str().split())
    assert "the prefix cache held 50 to 90 % of the prompt tokens from round to round" in text
    assert not run.measurements[0].comparable


def test_another_share_is_another_key(project: Project) -> None:
    project.tests(PROJECT.format(held=[], then=800, marker=""))
    project.run("--energy-save=cached").assert_outcomes(passed=1)
    project.tests(PROJECT.format(held=[], then=0, marker=""))
    result = project.run("--energy-baseline=name:cached")
    text = " ".join(result.stdout.str().split())
    assert "prompt tokens from a prefix cache, in percent: none here, 80 there" in text


ENGINE = """
from dataclasses import replace
from pytest_tokenpower import FixedShape
from pytest_tokenpower.engines import EngineIdentity, Generation

class Served:
    "An adapter of an engine whose prefix cache holds three quarters of each prompt."
    identity, device_ids = EngineIdentity("mine", "1", "tiny"), None

    def generate(self, batch):
        sleep(0.25)
        tokens = replace(batch.tokens, cached_prompt=batch.tokens.prompt * 3 // 4)
        return Generation([[1] * batch.new_tokens] * len(batch.prompts), tokens)

    def close(self):
        pass

@pytest.mark.power_budget(min_rounds=2, max_rounds=2{marker})
def test_it(energy):
    energy.run(Served(), FixedShape(4, 1000, 25))
"""


def test_an_engine_s_cache_is_measured_where_it_is_meant(project: Project) -> None:
    project.tests(ENGINE.format(marker=", prefix_cache=True"))
    result, run = project.measure()
    result.assert_outcomes(passed=1)
    (measured,) = run.measurements
    assert measured.key["cached_prompt_percent"] == 75
    assert {one.cached_prompt_tokens for one in measured.rounds} == {3000}
    project.tests(ENGINE.format(marker=""))
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*3000 of 4000 prompt tokens came from the engine's prefix cache and were not prefilled: switch it off *"
        ]
    )
