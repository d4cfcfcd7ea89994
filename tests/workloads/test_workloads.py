"""Workloads: the same work has the same fingerprint, other work another; bad input names what is wrong with it."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.errors import EngineError, UsageError
from pytest_tokenpower.workloads import (
    AllAtOnce,
    Concurrency,
    FixedShape,
    GivenBatch,
    Poisson,
    PromptSet,
    Workload,
)
from pytest_tokenpower.workloads.tokenizers import byte_ids, tokenizer_of

DATA = Path(__file__).parents[1] / "data" / "prompts"

shapes = st.builds(
    FixedShape,
    batch=st.integers(1, 5),
    prompt_tokens=st.integers(1, 40),
    new_tokens=st.integers(1, 9),
    seed=st.integers(0, 5),
    vocab=st.integers(8, 60_000),
    arrivals=st.sampled_from(
        [AllAtOnce(), Concurrency(2), Concurrency(3), Poisson(1.0), Poisson(1.0, seed=1)]
    ),
)


@given(shapes)
def test_a_shape_is_what_it_says(shape: FixedShape) -> None:
    batch = shape.to_batch()
    assert [len(prompt) for prompt in batch.prompts] == [shape.prompt_tokens] * shape.batch
    assert batch.new_tokens == shape.new_tokens
    assert all(3 <= token < shape.vocab for prompt in batch.prompts for token in prompt)
    assert shape.to_batch() == batch


@given(shapes, shapes)
def test_fingerprints_differ_exactly_where_workloads_do(one: FixedShape, other: FixedShape) -> None:
    assert (one == other) == (one.fingerprint == other.fingerprint)


def test_fingerprints_stay_from_version_to_version() -> None:
    # They are in stored keys: another value makes every stored run incomparable.
    assert FixedShape(32, 512, 256).fingerprint == "2bf986b7346c24bc"
    assert GivenBatch([[3, 4]], 2).fingerprint == "939624a9029ddeae"
    assert PromptSet(("a prompt",), 8).fingerprint == "eba269558ce66cde"
    assert FixedShape(2, 3, 1).to_batch().prompts == ((27021, 24255, 13460), (8287, 16362, 12959))


def test_prompts_are_neither_alike_nor_bunched() -> None:
    batch = FixedShape(4, 1000, 1).to_batch()
    assert len({tuple(prompt) for prompt in batch.prompts}) == 4
    ids = [token for prompt in batch.prompts for token in prompt]
    assert 0.45 < sum(ids) / len(ids) / 32_000 < 0.55


@pytest.mark.parametrize(
    "others",
    [
        [GivenBatch(ids, new) for ids, new in (([[3, 4], [5]], 2), ([[3], [4, 5]], 2), ([[3, 4], [5]], 3))],
        [
            PromptSet(("ab", "c"), 2),
            PromptSet(("a", "bc"), 2),
            PromptSet(("ab", "c"), 2, max_prompt_tokens=9),
        ],
    ],
)
def test_what_is_cut_elsewhere_is_other_work(others: list[Workload]) -> None:
    assert len({each.fingerprint for each in others}) == len(others)


@pytest.mark.parametrize("arrivals", [AllAtOnce(), Concurrency(4)])
def test_arrivals_at_once(arrivals: AllAtOnce | Concurrency) -> None:
    assert arrivals.seconds(3) == (0.0, 0.0, 0.0)
    assert arrivals.limit == (4 if isinstance(arrivals, Concurrency) else None)


@given(st.floats(0.1, 1000), st.integers(0, 100), st.integers(1, 50))
def test_poisson_arrivals_repeat_and_never_fall(per_second: float, seed: int, count: int) -> None:
    times = Poisson(per_second, seed).seconds(count)
    assert len(times) == count
    assert times[0] == 0
    assert list(times) == sorted(times)
    assert Poisson(per_second, seed).seconds(count + 3)[:count] == times


def test_poisson_arrivals_have_their_rate_and_spread() -> None:
    times = Poisson(20.0, seed=5).seconds(4001)
    waits = [later - earlier for earlier, later in pairwise(times)]
    mean = sum(waits) / len(waits)
    assert mean == pytest.approx(1 / 20, rel=0.05)
    # Exponential: as wide as it is long.
    assert (sum((wait - mean) ** 2 for wait in waits) / len(waits)) ** 0.5 == pytest.approx(mean, rel=0.08)


def test_alpaca() -> None:
    work = PromptSet.read(DATA / "alpaca.json", new_tokens=16)
    assert len(work.texts) == 3
    assert work.texts[0] == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName three things that a kitchen needs.\n\n### Response:"
    )
    assert "paired with an input" in work.texts[1]
    assert work.texts[1].endswith("### Input:\nThe dog, which was old, slept all day long.\n\n### Response:")
    rows = json.loads((DATA / "alpaca.json").read_text())
    assert all(row["output"] not in text for row, text in zip(rows, work.texts, strict=True))


def test_longbench_and_the_cut_in_the_middle() -> None:
    work = PromptSet.read(DATA / "longbench.jsonl", new_tokens=4, max_prompt_tokens=50)
    assert (
        work.texts[1] == "In spring the harbour shipped salt; in autumn it shipped wool.\n\nWhat was shipped?"
    )
    for prompt, text in zip(work.to_batch().prompts, work.texts, strict=True):
        assert list(prompt) == byte_ids(text)[:25] + byte_ids(text)[-25:]
    words = PromptSet.read(DATA / "longbench.jsonl", new_tokens=4, max_prompt_tokens=3)
    assert words.to_batch(lambda text: [len(word) for word in text.split()]).prompts[0] == (3, 10, 11)


def test_csv_and_limits() -> None:
    assert PromptSet.read(DATA / "own.csv", new_tokens=4).texts == (
        "Count to three, please.",
        "A line\nand another.",
    )
    assert len(PromptSet.read(DATA / "own.csv", new_tokens=4, limit=1).texts) == 1


@given(st.text())
def test_bytes_are_ids_that_no_two_texts_share(text: str) -> None:
    ids = byte_ids(text)
    assert all(3 <= each < 259 for each in ids)
    assert bytes(each - 3 for each in ids).decode("utf-8", "surrogatepass") == text


@pytest.mark.parametrize(
    ("name", "contents", "complaint"),
    [
        ("set.txt", "words", r"set\.txt: prompts are read from \.csv, \.json, \.jsonl files"),
        ("absent.csv", None, r"absent\.csv: cannot be read: No such file"),
        ("empty.csv", "prompt\n", r"empty\.csv: there is no prompt in it"),
        (
            "other.csv",
            "question,answer\na,b\n",
            r"other\.csv, line 2: has the fields question, answer; needed are",
        ),
        ("blank.csv", 'prompt\n"  "\n', r"blank\.csv, line 2: the prompt is empty"),
        ("bad.json", "[{]", r"bad\.json: is no JSON"),
        ("object.json", "{}", r"object\.json: must be a list of prompts, not dict"),
        ("numbers.json", "[1]", r"numbers\.json, entry 0: has 1; needed are"),
        (
            "null.json",
            '[{"prompt": null}]',
            r"null\.json, entry 0: has the fields prompt; needed are, as text",
        ),
        ("half.jsonl", '{"prompt": "a"}\n{"prompt": \n', r"half\.jsonl, line 2: is no JSON"),
        ("latin.jsonl", b'{"prompt": "\xfc"}', r"latin\.jsonl: is no JSONL in UTF-8"),
        ("alpaca.json", '[{"instruction": "", "input": "x"}]', r"alpaca\.json, entry 0: the prompt is empty"),
    ],
)
def test_files_that_are_no_prompts(
    tmp_path: Path, name: str, contents: str | bytes | None, complaint: str
) -> None:
    path = tmp_path / name
    if contents is not None:
        path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    with pytest.raises(UsageError, match=complaint):
        PromptSet.read(path, new_tokens=4)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: FixedShape(0, 1, 1), r"FixedShape\(batch=0\): must be an integer of at least 1"),
        (lambda: FixedShape(1, 1.5, 1), r"FixedShape\(prompt_tokens=1.5\)"),  # type: ignore[arg-type]
        (lambda: FixedShape(1, 1, True), r"FixedShape\(new_tokens=True\)"),
        (lambda: FixedShape(1, 1, 1, vocab=4), r"FixedShape\(vocab=4\): must be an integer of at least 8"),
        (lambda: FixedShape(1, 1, 1, seed=None), r"FixedShape\(seed=None\): must be an integer"),  # type: ignore[arg-type]
        (lambda: PromptSet((), 1), "there is no prompt"),
        (lambda: PromptSet("a prompt", 1), r"PromptSet\(texts='a prompt'\): one text"),  # type: ignore[arg-type]
        (lambda: PromptSet(("a", ""), 1), "prompt 1 is ''"),
        (lambda: PromptSet(("a",), 1, max_prompt_tokens=0), r"max_prompt_tokens=0"),
        (
            lambda: PromptSet(("a",), 1, count=1),
            r"PromptSet\(count=1\): is of a bin of lengths: give tokens=",
        ),
        (lambda: PromptSet.read("a.csv", new_tokens=1, limit=True), r"PromptSet\(limit=True\)"),
        (lambda: Concurrency(0), r"Concurrency\(requests=0\)"),
        (lambda: Poisson(0.0), r"Poisson\(per_second=0.0\): must be a positive number"),
        (lambda: Poisson(float("nan")), r"Poisson\(per_second=nan\)"),
        (lambda: Poisson(1.0, seed=None), r"Poisson\(seed=None\): must be an integer"),  # type: ignore[arg-type]
    ],
)
def test_workloads_that_there_are_not(make: Any, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        make()


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"instruction": "Say hello.", "input": "", "output": "Hello."}] * 3
    asked: list[object] = []

    def load_dataset(*arguments: object, **options: object) -> list[dict[str, str]]:
        asked.append((arguments, options))
        if arguments[0] == "no/where":
            raise ConnectionError("the hub cannot be reached")
        return rows

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    work = PromptSet.from_hub("tatsu-lab/alpaca", new_tokens=4, limit=2)
    assert asked == [(("tatsu-lab/alpaca", None), {"split": "train", "streaming": True})]
    assert len(work.texts) == 2
    assert "Say hello." in work.texts[0]
    with pytest.raises(
        UsageError, match="no/where, split train: cannot be loaded: ConnectionError: the hub cannot"
    ):
        PromptSet.from_hub("no/where", new_tokens=4)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="pip install datasets"):
        PromptSet.from_hub("tatsu-lab/alpaca", new_tokens=4)


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert tokenizer_of(str(tmp_path)) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    encode = tokenizer_of(str(tmp_path))
    assert encode is not None
    with pytest.raises(
        EngineError, match=r"has a tokenizer.*pip install 'pytest-tokenpower\[transformers\]'"
    ):
        encode("text")


LONGBENCH = [
    {"context": "c" * length, "input": "q", "answers": ["a"], "length": length // 5, "dataset": "gov_report"}
    for length in (10, 3000, 40, 6000, 2500, 9000)
]


def test_bins_of_length_hold_the_first_prompts_of_so_many_tokens(tmp_path: Path) -> None:
    path = tmp_path / "longbench.jsonl"
    path.write_text("\n".join(map(json.dumps, LONGBENCH)))

    def lengths(tokens: tuple[int, int], limit: int | None = None, cut: int | None = None) -> list[int]:
        found = PromptSet.read(path, new_tokens=1, tokens=tokens, limit=limit, max_prompt_tokens=cut)
        return [len(prompt) for prompt in found.to_batch().prompts]

    # Context and question are three characters apart, and a token is a byte here.
    assert lengths((0, 2048)) == [13, 43]
    assert lengths((2048, 5120)) == [3003, 2503]
    assert lengths((2048, 5120), limit=1) == [3003]
    assert lengths((3003, 3004)) == [3003]
    assert lengths((5120, 10_240), cut=100) == [100, 100]
    with pytest.raises(UsageError, match=r"of 6 prompts 2 have so many tokens, and 3 are asked"):
        lengths((2048, 5120), limit=3)
    with pytest.raises(UsageError, match="give the least length and one above the longest"):
        lengths((5, 5))


def test_a_bin_counts_by_the_engines_tokenizer_and_is_in_the_fingerprint() -> None:
    texts = ("one two", "one two three", "one")
    binned = PromptSet(texts, 1, tokens=(2, 3))
    assert len(binned.to_batch(lambda text: list(range(len(text.split())))).prompts) == 1
    prints = {each.fingerprint for each in (binned, PromptSet(texts, 1), PromptSet(texts, 1, tokens=(2, 4)))}
    assert len(prints) == 3
