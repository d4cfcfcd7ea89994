"""From axes to cells: the product, what is added and left out, names, limits, order, forecasts."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.suites.build import declared, engine_of, work_of
from pytest_tokenpower.suites.estimate import Machine, estimate, this_machine
from pytest_tokenpower.suites.grid import Suite
from pytest_tokenpower.suites.order import visits
from pytest_tokenpower.workloads import Concurrency, FixedShape, Poisson, PromptSet

GIB = 1 << 30


def suite(text: str, path: str = "s.energy.toml") -> Suite:
    return Suite.parse(text, Path(path))


def names(text: str) -> list[str]:
    return [cell.name for cell in suite(text).cells]


BASE = '[axes]\nmodel = "tiny"\nengine = ["vllm", "transformers"]\nbatch = [1, 8]\n'


@pytest.mark.parametrize("model", [".", "..", "./", "../.."])
def test_a_folder_without_a_name_is_called_model(model: str, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    path = tmp_path / "a" / "b" / "s.energy.toml"
    [cell] = Suite.parse(f'[axes]\nmodel = "{model}"\nengine = "vllm"\n', path).cells
    assert cell.name == "model-vllm"


def test_the_grid_is_the_product_of_the_axes_in_their_order() -> None:
    assert names(BASE) == ["tiny-vllm-b1", "tiny-vllm-b8", "tiny-transformers-b1", "tiny-transformers-b8"]


def test_what_is_included_takes_the_other_axes_from_the_grid_and_nothing_is_there_twice() -> None:
    added = names(BASE + '[[include]]\nengine = "vllm"\nbatch = [8, 32]\n')
    assert added[4:] == ["tiny-vllm-b32"]


def test_what_is_excluded_matches_all_that_is_named() -> None:
    left = names(BASE + '[[exclude]]\nengine = "transformers"\nbatch = [1]\n')
    assert left == ["tiny-vllm-b1", "tiny-vllm-b8", "tiny-transformers-b8"]


def test_nothing_left_is_a_mistake() -> None:
    with pytest.raises(UsageError, match=r"s\.energy\.toml:1: axes: no cell is left"):
        suite(BASE + '[[exclude]]\nmodel = "tiny"\n')


def test_a_variant_stands_for_its_settings_in_what_is_excluded_limited_and_built() -> None:
    text = BASE + (
        '[variants]\nbf16 = {}\nfp8 = { quantization = "fp8", options = { x = 1 } }\n'
        '[[exclude]]\nengine = "transformers"\nquantization = "fp8"\n'
        '[limits]\nmin_rounds = 3\n[[budget]]\nwhere = { quantization = "fp8" }\njoules_per_token = 0.2\n'
    )
    found = suite(text)
    assert len(found.cells) == 6
    cell = next(each for each in found.cells if each.name == "tiny-vllm-fp8-b8")
    assert cell.limits == {"min_rounds": 3, "joules_per_token": 0.2}
    assert found.cells[0].limits == {"min_rounds": 3}
    assert declared(cell) == {"quantization": "fp8"}


def test_two_cells_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "model").mkdir(parents=True)
    text = '[axes]\nmodel = ["./a/model", "./b/model"]\nengine = "vllm"\n'
    with pytest.raises(UsageError, match="two cells are called model-vllm"):
        suite(text, str(tmp_path / "s.energy.toml"))


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True)


@given(SIZES, SIZES, st.integers(1, 3), st.integers(0, 99))
def test_every_cell_is_visited_once_a_run_and_each_engine_loaded_once_a_run(
    batches: list[int], lengths: list[int], runs: int, seed: int
) -> None:
    text = (
        f'[suite]\nruns = {runs}\nseed = {seed}\n[axes]\nmodel = ["tiny", "small"]\nengine = ["vllm", "sglang"]\n'
        f"batch = {batches}\nprompt_tokens = {lengths}\n"
    )
    found = suite(text)
    assert [
        (cell.values["batch"], cell.values["prompt_tokens"]) for cell in found.cells[: len(found.cells) // 4]
    ] == [(batch, length) for length, batch in product(lengths, batches)]
    plan = visits(found)
    assert len(plan) == 4 * runs
    for run in range(1, runs + 1):
        once = [visit for visit in plan if visit.run == run]
        assert sorted(cell.name for visit in once for cell in visit.cells) == sorted(
            cell.name for cell in found.cells
        )
        # There and back: what drifts evenly cancels out between engines.
        assert [visit.group for visit in once] == [visit.group for visit in plan[:4]][:: 1 if run % 2 else -1]
    places = [visit.first + at for visit in plan for at in range(len(visit.cells))]
    assert places == list(range(len(found.cells) * runs))
    named = [visit.name(cell) for visit in plan for cell in visit.cells]
    assert len(set(named)) == len(named)
    assert visits(suite(text)) == plan


def test_another_seed_gives_another_order() -> None:
    text = '[suite]\nseed = {}\n[axes]\nmodel = "tiny"\nengine = "vllm"\nbatch = [1, 2, 3, 4, 5, 6, 7, 8]\n'
    orders = {
        tuple(cell.name for visit in visits(suite(text.format(seed))) for cell in visit.cells)
        for seed in range(5)
    }
    assert len(orders) == 5


def test_a_fingerprint_is_the_works_and_the_engines_not_the_names_or_the_limits() -> None:
    plain = suite(BASE)
    prints = [plain.fingerprint(cell) for cell in plain.cells]
    assert len(set(prints)) == 4
    same = suite('[suite]\ntitle = "x"\n[limits]\nmin_rounds = 9\n' + BASE)
    assert [same.fingerprint(cell) for cell in same.cells] == prints
    other = suite(BASE + "[engines.vllm.options]\nseed = 1\n")
    assert [a == b for a, b in zip(prints, map(other.fingerprint, other.cells), strict=True)] == [
        False,
        False,
        True,
        True,
    ]


def test_other_prompts_or_questions_in_a_file_of_the_same_name_are_another_piece_of_work(
    tmp_path: Path,
) -> None:
    text = (
        '[axes]\nmodel = "tiny"\nengine = "vllm"\nprompts = ["random", "mine"]\n'
        '[prompts.mine]\nfile = "p.jsonl"\n[quality]\nfile = "q.jsonl"\n'
    )

    def prints() -> list[str]:
        found = suite(text, str(tmp_path / "s.energy.toml"))
        return [found.fingerprint(cell) for cell in found.cells]

    absent = prints()
    for name in ("p.jsonl", "q.jsonl"):
        (tmp_path / name).write_text('"first"\n')
    first = prints()
    assert first == prints() != absent
    (tmp_path / "p.jsonl").write_text('"second"\n')
    second = prints()
    assert second[0] == first[0]
    assert second[1] != first[1]
    (tmp_path / "q.jsonl").write_text('"second"\n')
    assert not {*prints()} & {*second}


def machine(*boards: int, importable: bool = True) -> Machine:
    return Machine([board * GIB for board in boards], 8 * GIB, lambda package: importable)


BIG = '[axes]\nmodel = "llama-3.1-70b"\nengine = "vllm"\nbatch = 8\n'


@pytest.mark.parametrize(
    ("text", "where", "reason"),
    [
        (BIG, machine(80, importable=False), "the engine vllm is not installed (no package vllm)"),
        (BIG, machine(80), "does not fit: 131.6 GiB of 80.0 GiB on each board"),
        (BIG + "tensor_parallel = 2\n", machine(80), "needs 2 boards, there is 1"),
        (BIG + "tensor_parallel = 2\n", machine(80, 80), ""),
        (BIG + 'quantization = "fp8"\n', machine(80), ""),
        (BIG.replace("70b", "8b"), machine(80), ""),
        (BIG.replace("70b", "8b"), machine(), "does not fit: 15.0 GiB of 8.0 GiB on each board"),
        (
            BIG.replace("70b", "8b").replace("vllm", "transformers") + 'quantization = "fp8"\n',
            machine(80),
            "the engine transformers takes no quantization",
        ),
        (BIG, Machine((), 0, lambda package: False, anything=True), ""),
    ],
)
def test_what_cannot_run_here_is_foretold(text: str, where: Machine, reason: str) -> None:
    found = suite(text)
    assert estimate(found, found.cells[0], where).skipped == reason


def test_forecasts_grow_with_the_work_and_shrink_with_the_weights() -> None:
    found = suite(
        '[axes]\nmodel = "llama-3.1-8b"\nengine = "vllm"\nbatch = [8, 256]\nprompt_tokens = [512, 8192]\n'
        '[variants]\nbf16 = {}\nfp8 = { quantization = "fp8" }\n'
    )
    seconds = {cell.name: estimate(found, cell, machine(80)).seconds for cell in found.cells}
    sizes = {cell.name: estimate(found, cell, machine(80)).board_bytes for cell in found.cells}
    assert seconds["llama-3.1-8b-vllm-bf16-in8192-b256"] > 10 * seconds["llama-3.1-8b-vllm-bf16-in512-b256"]  # type: ignore[operator]
    assert seconds["llama-3.1-8b-vllm-fp8-in8192-b256"] < seconds["llama-3.1-8b-vllm-bf16-in8192-b256"]  # type: ignore[operator]
    assert sizes["llama-3.1-8b-vllm-fp8-in512-b8"] < sizes["llama-3.1-8b-vllm-bf16-in512-b8"]  # type: ignore[operator]


def test_an_engine_is_built_from_settings_options_and_variant(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    found = suite(
        '[axes]\nmodel = "./m"\nengine = "mine"\ndtype = "bf16"\ntensor_parallel = 2\nbatch = [1, 2]\n'
        "prompt_tokens = [64, 900]\nnew_tokens = 100\n"
        '[engines.mine]\nadapter = "vllm"\noptions = { seed = 3, x = 1 }\nenv = { A = "b" }\nisolated = false\n'
        '[variants.fast]\nkv_cache_dtype = "fp8"\noptions = { x = 2 }\n',
        str(tmp_path / "s.energy.toml"),
    )
    spec = engine_of(found, found.cells)
    assert (spec.engine, spec.model, spec.isolated, dict(spec.env)) == (
        "vllm",
        str(tmp_path / "m"),
        False,
        {"A": "b"},
    )
    assert spec.options == {
        "dtype": "bfloat16",
        "kv_cache_dtype": "fp8",
        "tensor_parallel_size": 2,
        "max_model_len": 1000,
        "seed": 3,
        "x": 2,
    }


def test_random_weights_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("TOKENPOWER_WEIGHTS", str(tmp_path / "weights"))
    found = suite('[axes]\nmodel = "tiny"\nengine = "transformers"\n')
    spec = engine_of(found, found.cells)
    assert spec.model == str(tmp_path / "weights" / "tiny-bfloat16-0")
    assert (tmp_path / "weights" / "tiny-bfloat16-0" / "config.json").exists()


def test_the_work_is_that_of_the_axes(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('"first prompt"\n"second"\n"third"\n')
    found = suite(
        '[axes]\nmodel = "tiny"\nengine = "vllm"\nbatch = 2\nprompt_tokens = 7\nnew_tokens = 5\n'
        'prompts = ["random", "mine"]\narrivals = ["all-at-once", { concurrency = 4 }, { poisson = 2.5, seed = 1 }]\n'
        '[prompts.mine]\nfile = "p.jsonl"\n',
        str(tmp_path / "s.energy.toml"),
    )
    works = {cell.name.removeprefix("tiny-vllm-"): work_of(found, cell) for cell in found.cells}
    assert works["random-in7-out5-b2-all-at-once"] == FixedShape(2, 7, 5, vocab=512)
    assert works["random-in7-out5-b2-c4"].arrivals == Concurrency(4)
    assert works["mine-in7-out5-b2-rate2.5"] == PromptSet(("first prompt", "second"), 5, 7, Poisson(2.5, 1))


def test_too_few_prompts_are_an_error_and_not_a_smaller_batch(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('"first prompt"\n')
    found = suite(
        '[axes]\nmodel = "tiny"\nengine = "vllm"\nbatch = 2\nprompts = "mine"\n[prompts.mine]\nfile = "p.jsonl"\n',
        str(tmp_path / "s.energy.toml"),
    )
    with pytest.raises(UsageError, match=r"prompts\.mine: there are 1 prompts, and batch = 2 asks for more"):
        work_of(found, found.cells[0])


def test_a_bin_of_length_says_how_long_its_prompts_are_at_most() -> None:
    text = (
        '[axes]\nmodel = "llama-3.1-8b"\nengine = "vllm"\nprompts = ["long", "any"]\nnew_tokens = 8\n'
        '[prompts]\nlong = { file = "p.jsonl", tokens = [5120, 10240] }\nany = { file = "p.jsonl" }\n'
    )
    suite = Suite.parse(text, Path("s.energy.toml"))
    assert [suite.longest_prompt(cell) for cell in suite.cells] == [10239, None]
    with pytest.raises(UsageError, match="tokens wants the least length and one above the longest"):
        Suite.parse(text.replace("10240", "5120"), Path("s.energy.toml"))


def test_arrivals_that_differ_in_their_seed_are_two_cells() -> None:
    text = '[axes]\nmodel = "llama-3.1-8b"\nengine = "vllm"\n'
    text += "arrivals = [{ poisson = 4, seed = 1 }, { poisson = 4, seed = 2 }]\n"
    assert names(text) == ["llama-3.1-8b-vllm-rate4s1", "llama-3.1-8b-vllm-rate4s2"]


@pytest.mark.parametrize(
    ("axes", "reason"),
    [
        (
            'engine = "transformers"\narrivals = { poisson = 4 }',
            "the engine transformers takes whole batches, no arrivals",
        ),
        ('engine = "vllm"\nprompt_tokens = 200_000', "the model takes 131072 tokens, and these are 200128"),
        ('engine = "transformers"\ntensor_parallel = 2', "the engine transformers takes no tensor_parallel"),
    ],
)
def test_what_runs_nowhere_is_foretold_of_a_forecast_too(axes: str, reason: str) -> None:
    found = suite(f'[axes]\nmodel = "llama-3.1-8b"\n{axes}\n')
    assert estimate(found, found.cells[0], this_machine(simulated=True)).skipped == reason


def test_another_checkpoint_in_the_same_folder_is_another_model(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"a")
    text = '[axes]\nmodel = "./mine"\nengine = "vllm"\n'

    def fingerprint() -> str:
        found = suite(text, str(tmp_path / "s.energy.toml"))
        return found.fingerprint(found.cells[0])

    before = fingerprint()
    assert fingerprint() == before
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert fingerprint() != before
