"""What the stand-ins run: the scheduler of the stub, with a time for each step and weights that are a hash."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.stub import FakeScheduler, Request

STEP_S = 0.002


def config_of(model: str) -> dict[str, Any]:
    """Return the config.json of a model's folder, which must be there."""
    config: dict[str, Any] = json.loads((Path(model) / "config.json").read_text())
    return config


def write_model(models: Path, **more: Any) -> Path:
    """Return a model's folder without weights; its name is "tiny"."""
    folder = models / "standin" / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    config = {"vocab_size": 512, "max_position_embeddings": 2048, "torch_dtype": "bfloat16"} | more
    (folder / "config.json").write_text(json.dumps(config))
    return folder


GPUS = ("GPU-a", "GPU-b", "GPU-c", "GPU-d")


@contextmanager
def standing_in() -> Iterator[None]:
    """Have the stand-ins imported instead of the packages, on a machine with four GPUs."""
    folder = Path(__file__).parent
    paths, roots = [folder], {"sglang", "tensorrt_llm", "mii"}
    if importlib.util.find_spec("torch") is None:
        paths.append(folder / "without_torch")
        roots.add("torch")
    before = _take_away(roots)
    with pytest.MonkeyPatch.context() as patch:
        for path in paths:
            patch.syspath_prepend(str(path))
        patch.setattr("pytest_tokenpower.engines._adapter.visible_gpus", lambda visible: GPUS)
        yield
    _take_away(roots)
    sys.modules.update(before)


def _take_away(roots: set[str]) -> dict[str, Any]:
    names = [name for name in sys.modules if name.partition(".")[0] in roots]
    return {name: sys.modules.pop(name) for name in names}


@dataclass
class Core:
    """Requests by number, and steps on demand; step number ``fail_at`` fails."""

    budget: int = 8192
    fail_at: int | None = None
    scheduler: FakeScheduler = field(init=False)
    requests: dict[str, Request] = field(default_factory=dict)
    greedy: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler = FakeScheduler(self.budget)
        self._numbers = map(str, itertools.count())

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.requests)

    def submit(self, prompt: Sequence[int], new_tokens: int, *, greedy: bool) -> str:
        number = next(self._numbers)
        self.greedy[number] = greedy
        self.requests[number] = Request(number, list(prompt), new_tokens)
        self.scheduler.requests.append(self.requests[number])
        return number

    def forget(self) -> None:
        self.scheduler.requests.clear()

    def step(self) -> dict[str, list[int]]:
        """One forward pass: the new tokens of each request that got any."""
        if self.fail_at is not None and len(self.scheduler.truth) == self.fail_at:
            raise RuntimeError("CUDA out of memory")
        outputs = self.scheduler.update_from_output(self.scheduler.schedule(), None)
        new = {each.request_id: list(each.new_token_ids) for each in outputs[0].outputs}
        for number, tokens in new.items():
            if tokens and not self.greedy[number]:
                self.requests[number].outputs[-1] = tokens[0] = random.randrange(512)
        return {number: tokens for number, tokens in new.items() if tokens}
