"""The pieces of work that benchmarks/gpu_phases.py runs, in their order."""

from __future__ import annotations

from dataclasses import replace

from gpu_phases_engines import Work


def small(work: Work, fake: bool) -> Work:
    """Return the work itself, or one that the dry run gets through."""
    if not fake:
        return work
    chunk = work.chunk // 16
    return replace(
        work,
        batch=min(work.batch, 16),
        prompt=work.prompt // 16,
        new=max(work.new // 8, min(work.new, 1)),
        repeats=min(work.repeats, 3),
        budget=work.budget // 16 and max(work.budget // 16, 16),
        chunk=chunk,
        per_second=work.per_second * 6,
        pause_s=work.pause_s / 8,
    )


def chunked_works(tokens: int, fake: bool) -> tuple[Work, Work]:
    """Eight long prompts that go forward together, so that no step is mixed: with decode, and without."""
    whole = Work("whole", 8, 2048, 129, 3, budget=tokens, chunk=tokens // 8)
    return small(whole, fake), small(replace(whole, label="prefill alone", new=1, repeats=7), fake)


def burst_works(fake: bool) -> list[Work]:
    """Whole rounds of three lengths, the prefill in one step, each length after each other one equally often."""
    lengths = {length: Work(f"{length} new tokens", 8, 2048, length) for length in (97, 193, 385)}
    a, b, c = (small(work, fake) for work in lengths.values())
    return [a, a, b, a, c, b, b, c, c] * (1 if fake else 2)


def mixed_works(fake: bool) -> list[Work]:
    """Run requests by chance and all at once under a small token budget; prefill and decode of the like alone."""
    budget = 512
    poisson = Work("Poisson", 48, 512, 129, budget=budget, per_second=12.0)
    longer = replace(poisson, label="Poisson, 257 new tokens", new=257)
    prefill = Work("prefill alone", 48, 512, 1, 5, budget=budget)
    chunked = Work("all at once", 32, 512, 129, budget=budget)
    decode = [Work(f"decode {batch}", batch, 512, 129, repeats) for batch, repeats in ((8, 3), (32, 2))]
    first = [
        replace(work, label=f"{work.label}, prefill alone", new=1, repeats=192 // work.batch)
        for work in decode
    ]
    order = [poisson, prefill, *decode, chunked, longer, poisson, *first, poisson, chunked]
    order += [longer, prefill, chunked, poisson, chunked]
    return [small(work, fake) for work in order]


def spaced_works(fake: bool) -> list[Work]:
    """Run the prefill in one step, alone: back to back at the power limit, and with two lengths of idling."""
    alone = Work("back to back", 8, 2048, 1, 9)
    short = replace(alone, label="0.8 s idle", pause_s=0.8, repeats=4)
    long = replace(alone, label="1.6 s idle", pause_s=1.6, repeats=3)
    return [small(work, fake) for work in (short, long, alone)]


LONG = 24064
"""Prompt tokens: two steps of 16384, or three of 8192, so that a mixed step has thousands of them for each decode."""

SPACED = ((16384, 3), (8192, 2))
"""Budgets, and how often prompts alone under them are measured at each spacing."""


def long_works(fake: bool) -> dict[str, list[Work]]:
    """Long prompts under vLLM's own token budgets on such a board (16384 offline, 8192 in its server), in parts.

    Prefills with two lengths of idling between, and back to back; decode of one, two and four sequences in rounds of
    two lengths, both long enough for the board to be below its power limit again; arrivals by chance; prompts that come
    together, and their truths.
    """
    one = Work("alone, back to back", 1, LONG, 1, 5)
    alone = [
        replace(
            one, label=f"alone, budget {budget}, {pause} s idle", budget=budget, pause_s=pause, repeats=4 - at
        )
        for budget, times in SPACED
        for _ in range(times)
        for at, pause in enumerate((0.5, 1.0))
    ]
    decode = long_decode((3, 2, 2))
    at_once = Work("all at once, budget 16384", 8, 8192, 257, budget=16384)
    shorter = replace(at_once, label="8 x 97", new=97)
    spaced = [
        replace(at_once, label=f"8 alone, {pause} s idle", new=1, pause_s=pause, repeats=2)
        for pause in (1.0, 2.5)
    ]
    together = [
        at_once,
        shorter,
        shorter,
        *spaced,
        at_once,
        at_once,
        *reversed(spaced),
        shorter,
        shorter,
        at_once,
    ]
    run = poisson_runs()
    arriving = [run[budget] for budget in (16384, 8192, 8192, 16384)] * 2
    parts = {"alone": [*alone, one], "decode": decode, "Poisson": arriving, "all at once": together}
    return {name: [small(work, fake) for work in works] for name, works in parts.items()}


def long_decode(times: tuple[int, int, int]) -> list[Work]:
    """Run rounds of two lengths of one, two and four sequences, each so often."""
    works = []
    for batch, count in zip((1, 2, 4), times, strict=True):
        short, long = (Work(f"{batch} x {new}", batch, LONG, new, budget=16384) for new in (129, 385))
        works += [short, long, long, short, short, long][: 2 * count]
    return works


def poisson_runs() -> dict[int, Work]:
    """Long prompts that arrive by chance, by the token budget: with this seed most come while others decode."""
    return {
        budget: Work(f"Poisson, budget {budget}", 8, LONG, 257, budget=budget, per_second=0.4, seed=3)
        for budget in (16384, 8192)
    }


def arrival_works(fake: bool) -> dict[str, list[Work]]:
    """Long prompts that arrive by chance, with their decode and without: the same prompts at the same times.

    How hard a board is held at its power limit hangs on which prompts follow one another, so that prompts alone are a
    truth only if they come as in the run. Decode as in long_works; idling by two lengths of it.
    """
    run = poisson_runs()
    alone = {
        budget: replace(work, label=f"{work.label}, prompts alone", new=1) for budget, work in run.items()
    }
    idle = Work("alone, 0.5 s idle", 1, LONG, 1, 4, budget=16384, pause_s=0.5)
    longer = replace(idle, label="alone, 1 s idle", repeats=3, pause_s=1.0)
    order = [both[budget] for budget in (16384, 8192, 8192, 16384) for both in (run, alone)]
    parts = {
        "decode": long_decode((2, 2, 2)),
        "arrivals": [*order, idle, longer, longer, idle, *reversed(order)],
    }
    return {name: [small(work, fake) for work in works] for name, works in parts.items()}
