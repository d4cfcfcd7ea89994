"""Any server of OpenAI's protocol, over HTTP: what it says of itself, and completions of token ids, streamed."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from pytest_tokenpower.core import progress
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.core.windows import Latency
from pytest_tokenpower.engines._adapter import as_fact, check_batch, checkpoint_config, with_cached
from pytest_tokenpower.engines._estimated_steps import EstimatedSteps, Trace
from pytest_tokenpower.engines.identify import identity_from_config
from pytest_tokenpower.engines.openai.client import Answer, Client, Endpoint, Limits, Refused, Stream
from pytest_tokenpower.engines.openai.other_requests import OtherRequests
from pytest_tokenpower.engines.protocol import EngineIdentity, Generation, Timeouts
from pytest_tokenpower.errors import EngineError, UsageError
from pytest_tokenpower.meters.adapters.nvml.devices import gpus_of
from pytest_tokenpower.meters.processes import (
    addresses_of,
    adopt,
    command_of,
    is_in_tree,
    is_this_machine,
    listener_on,
    release,
    root_of_run,
)
from pytest_tokenpower.models.checkpoint import model_name, weights_name, weights_note
from pytest_tokenpower.workloads.arrivals import AllAtOnce, Arrivals
from pytest_tokenpower.workloads.base import Batch

VLLM, SGLANG = "vllm", "sglang"

_SGLANG_AXES: Mapping[str, str] = {
    "dtype": "dtype",
    "quantization": "quantization",
    "kv_cache_dtype": "kv_cache_dtype",
    "tensor_parallel": "tp_size",
    "pipeline_parallel": "pp_size",
}


@dataclass(frozen=True)
class Server:
    """A server that serves the model: ``kind`` is who wrote it ("vllm", "sglang"), empty where it does not say.

    ``device`` is what vLLM runs on ("cuda", "cpu"); limits are None where nobody tells them.
    """

    kind: str
    identity: EngineIdentity
    max_positions: int | None
    vocab_size: int | None
    device: str | None = None
    gpus: int = 1


def models_of(client: Client, endpoint: Endpoint) -> tuple[Mapping[str, Any], ...]:
    """List the models that the server offers; raises EngineError where it is none of OpenAI's protocol."""
    path = "/v1/models"
    answer = client.get(path)
    if answer.status == 404:
        raise Refused(
            404,
            f"{endpoint.root}{path}: answered 404: this is no server of OpenAI's protocol, or base_url is not its",
        )
    if answer.status != 200:
        client.refuse(path, answer)
    models = answer.document.get("data") if isinstance(answer.document, dict) else None
    if not isinstance(models, list) or not all(isinstance(each, dict) and "id" in each for each in models):
        raise EngineError(
            f"{endpoint.root}{path}: answered no list of models: this is no server of OpenAI's protocol"
        )
    return tuple(models)


def describe_server(client: Client, endpoint: Endpoint, model: str, *, local: bool) -> Server:
    """Ask the server; raises EngineError where it cannot be reached or does not offer the model.

    ``local``: its paths are this machine's. Axes that it does not tell are left out.
    """
    models = models_of(client, endpoint)
    entry = next((each for each in models if each["id"] == model), None)
    if entry is None:
        raise EngineError(unknown_model(endpoint, model, models))
    kind = str(entry.get("owned_by") or "").lower()
    root = str(entry.get("root") or model)
    positions = entry.get("max_model_len")
    facts: dict[str, Fact] = {"endpoint": endpoint.host}
    if isinstance(positions, int):
        facts["max_model_len"] = positions
    server = Server(
        kind if kind in (VLLM, SGLANG) else "",
        EngineIdentity("openai", "unknown", _name(root, local=local), facts=facts),
        positions if isinstance(positions, int) else None,
        _vocab_size(root) if local else None,
    )
    known = _vllm(client, server) if kind == VLLM else _sglang(client, server) if kind == SGLANG else server
    return _with_weights(known, root) if local and Path(root).is_dir() else known


def _server_at(endpoint: Endpoint) -> str:
    """Name the server behind an endpoint alike under all its names, as localhost and 127.0.0.1 are."""
    try:
        addresses = sorted(address for _, address in addresses_of(endpoint.host))
        hosts = ["this machine"] if is_this_machine(endpoint.host) else addresses
    except OSError:
        hosts = [endpoint.host]
    return f"{' '.join(hosts)} {endpoint.port}{urlsplit(endpoint.root).path}"


def unknown_model(endpoint: Endpoint, model: str, models: tuple[Mapping[str, Any], ...]) -> str:
    """Write the message for a model that the server does not offer."""
    offered = ", ".join(sorted(str(each["id"]) for each in models)) or "none"
    return f"{endpoint.root}: does not offer the model {model!r}; it offers {offered}"


def _vllm(client: Client, server: Server) -> Server:
    version = _text(_document(client.get("/version")).get("version"))
    identity = server.identity
    # Only with VLLM_SERVER_DEV_MODE=1; it also lists the machine's programs, which takes its time.
    config = _document(client.get("/server_info?config_format=json", within_s=300.0)).get("vllm_config")
    if not isinstance(config, dict):
        facts = {**identity.facts, **_cache_facts(client.get("/metrics"))}
        return _told(server, VLLM, version, {}, facts)
    tree = json.loads(json.dumps(config), object_hook=lambda each: SimpleNamespace(**each))
    told = identity_from_config(tree, version)
    # As JSON these are numbers of enumerations, not their names.
    facts = {
        name: fact for name, fact in told.facts.items() if name not in ("compilation_mode", "cudagraph_mode")
    }
    device = _text((config.get("device_config") or {}).get("device"), "") or None
    if device is not None:
        facts["device"] = device
    parallel = config.get("parallel_config") or {}
    gpus = 1
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        gpus *= int(parallel.get(name) or 1)
    axes = dict(told.axes)
    if axes.get("weights") != "dummy" and _is_path(str(config["model_config"].get("model"))):
        del axes["weights"]  # told from the folder, where that is here
    known = _told(server, VLLM, version, axes, {**identity.facts, **facts})
    return replace(known, device=device, gpus=gpus)


def _cache_facts(answer: Answer) -> dict[str, Fact]:
    """Read what vLLM's metrics tell of its cache, for servers that keep their configuration to themselves."""
    facts: dict[str, Fact] = {}
    info = re.search(rb"^vllm:cache_config_info\{(.*)\}", answer.body, re.MULTILINE)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', info[1].decode("utf-8", "replace"))) if info else {}
    if labels.get("enable_prefix_caching") in ("True", "False"):
        facts["prefix_caching"] = labels["enable_prefix_caching"] == "True"
    if labels.get("block_size", "").isdigit():
        facts["block_size"] = int(labels["block_size"])
    return facts


def _sglang(client: Client, server: Server) -> Server:
    # The second is what it was called before.
    told = _document(client.get("/server_info")) or _document(client.get("/get_server_info"))
    axes = {axis: as_fact(told[name]) for axis, name in _SGLANG_AXES.items() if name in told}
    if axes.get("kv_cache_dtype") == "auto":
        del axes["kv_cache_dtype"]
    facts = dict(server.identity.facts)
    if isinstance(told.get("disable_radix_cache"), bool):
        facts["prefix_caching"] = not told["disable_radix_cache"]
    return _told(server, SGLANG, _text(told.get("version")), axes, facts)


def _told(
    server: Server, kind: str, version: str, axes: Mapping[str, Fact], facts: Mapping[str, Fact]
) -> Server:
    # Not "vllm": behind HTTP, with its detokenizing and scheduling, it is another thing than the offline engine.
    identity = replace(server.identity, engine=f"{kind}-server", version=version, axes=axes, facts=facts)
    return replace(server, identity=identity)


def _with_weights(server: Server, root: str) -> Server:
    """Add to the server what its model's folder says of the weights."""
    axes, facts = dict(server.identity.axes), dict(server.identity.facts)
    if axes.get("weights") != "dummy":
        axes["weights"] = weights_name(root)
        if (note := weights_note(root)) is not None:
            facts["weights_note"] = note
    return replace(server, identity=replace(server.identity, axes=axes, facts=facts))


def _name(root: str, *, local: bool) -> str:
    """Name the model; never by a whole path, which differs from machine to machine."""
    if local and Path(root).is_dir():
        return model_name(root)
    return PurePosixPath(root).name if _is_path(root) else root


def _is_path(root: str) -> bool:
    return root.startswith(("/", "~", "."))


def _vocab_size(root: str) -> int | None:
    if not Path(root).is_dir():
        return None
    with suppress(EngineError):
        size = checkpoint_config(root).get("vocab_size")
        return size if isinstance(size, int) else None
    return None


def _document(answer: Answer) -> Mapping[str, Any]:
    return answer.document if answer.status == 200 and isinstance(answer.document, dict) else {}


def _text(value: object, otherwise: str = "unknown") -> str:
    return value if isinstance(value, str) and value else otherwise


def latency_of(trace: Trace) -> Latency:
    """Work out what a request waited from when it was sent."""
    (first_ns, first), *_ = trace.chunks
    last_ns = trace.chunks[-1][0]
    # The first chunk may hold several tokens, which came at once.
    further = sum(tokens for _, tokens in trace.chunks) - first
    return Latency(
        (first_ns - trace.sent_ns) / 1e9, (last_ns - first_ns) / 1e9 / further if further else None
    )


KEY_VARIABLE = "TOKENPOWER_OPENAI_KEY"

_FORWARDERS = frozenset({"ssh", "autossh", "sshd", "kubectl", "socat"})
"""Programs that listen here for a server that is usually elsewhere."""


class OpenAIEngine:
    """A model of a running server: ``OpenAIEngine("model", base_url="http://localhost:8000/v1")``.

    Requests go to /v1/completions with the prompts' token ids, one request a prompt, greedy and through
    end-of-sequence. Of vLLM and SGLang the token ids of responses come back, and each request has a cache salt of its
    own, so that no round finds another's prompts in the prefix cache (``request_fields={"cache_salt": None}`` takes it
    out); other servers must have none, unless the test means it (``power_budget(prefix_cache=True)``).
    ``request_fields`` are added to each request, and replace those of ours (a None takes one out).

    ``api_key`` comes from TOKENPOWER_OPENAI_KEY where it is not given; it is sent to the server and shown nowhere.
    ``timeouts.batch_s`` limits a batch, ``connect_s`` connecting, ``silence_s`` how long nothing comes from any request
    that runs. A request that fails is not sent again: the batch fails.

    A server on this machine is found by its port, and its processes count as ours while the engine is open;
    ``server_pid`` says which it is where it cannot be found (in a container), and that it is here. A round in which a
    ``shared`` vLLM generates tokens for others is invalid; other servers do not tell. Steps are estimates
    (``_estimated_steps`` has the rules). Raises EngineError where the server cannot be reached or does not offer
    the model, UsageError for options that cannot be.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        base_url: str = "http://localhost:8000/v1",
        api_key: str | None = None,
        request_fields: Mapping[str, Any] | None = None,
        server_pid: int | None = None,
        connect_s: float = 10.0,
        silence_s: float = 120.0,
        timeouts: Timeouts | None = None,
        env: Mapping[str, str] | None = None,
        shared: bool = True,
    ) -> None:
        if env:
            raise UsageError(
                f"the openai engine starts no process that env={sorted(env)} could be for: set it where the server "
                "is started, or use the vllm-server engine"
            )
        self._model = os.fspath(model)
        self._endpoint = Endpoint.of(base_url)
        self._fields = dict(request_fields or {})
        self._adopted: int | None = None
        local = server_pid is not None or self._is_local()
        self._process = (server_pid or listener_on(self._endpoint.port)) if local else None
        self.remote_host: str | None = None if local else self._endpoint.host
        if server_pid is None and self._process is not None and command_of(self._process) in _FORWARDERS:
            self.remote_host = f"{self._endpoint.host} (forwarded by {command_of(self._process)})"
            self._process, local = None, False
        limits = Limits(connect_s, silence_s, (timeouts or Timeouts()).batch_s)
        self._client = Client(self._endpoint, api_key or os.environ.get(KEY_VARIABLE) or None, limits)
        self._open = True
        try:
            self._server = describe_server(self._client, self._endpoint, self._model, local=local)
            if self._tokenizes():
                # Present only where the server can.
                self.encode = self._encode
            self._own_process(local=local)
            self._others = (
                OtherRequests(self._client, _server_at(self._endpoint))
                if shared and self._server.kind == VLLM
                else None
            )
            if shared:
                told = self._others is not None and self._others.told
                facts = {
                    **self.identity.facts,
                    "other_requests": "watched" if told else "not watched",
                }
                self._server = replace(self._server, identity=replace(self.identity, facts=facts))
        except BaseException:
            self.close()
            raise

    @property
    def server(self) -> Server:
        """The server, as it described itself when this was made."""
        return self._server

    @property
    def identity(self) -> EngineIdentity:
        """Identity that the server tells: "vllm-server" or "sglang-server" where it says so, else "openai"."""
        return self._server.identity

    @property
    def device_ids(self) -> Sequence[str] | None:
        """UUIDs of the GPUs that the server's processes compute on; None where it is elsewhere or none is seen."""
        return self._device_ids

    def generate(self, batch: Batch) -> Generation:
        """Run all prompts at once; raises EngineError where one is not answered whole."""
        return self._run("generate", batch, AllAtOnce())

    def serve(self, batch: Batch, arrivals: Arrivals) -> Generation:
        """Run the prompts as they arrive; raises as :meth:`generate`."""
        return self._run("serve", batch, arrivals)

    def close(self) -> None:
        """Close the connections; the server goes on. Safe to call twice."""
        self._open = False
        self._client.close()
        if self._adopted is not None:
            release(self._adopted)
            self._adopted = None

    def _run(self, method: str, batch: Batch, arrivals: Arrivals) -> Generation:
        if not self._open:
            raise EngineError(f"{self._endpoint.root}, {self._model}: {method}() after close()")
        check_batch(
            batch,
            engine=self._endpoint.root,
            vocab_size=self._server.vocab_size,
            max_positions=self._server.max_positions,
        )
        url = f"{self._endpoint.root}/v1/completions"
        streams = [
            Stream(f"{url}, response {index}", len(prompt), batch.new_tokens)
            for index, prompt in enumerate(batch.prompts)
        ]
        bodies = (self._body(prompt, batch.new_tokens) for prompt in batch.prompts)
        try:
            self._client.complete(tuple(zip(bodies, streams, strict=True)), arrivals)
            responses = [stream.finish() for stream in streams]
        except Exception as error:
            if self._others is not None:
                self._others.failed()
            if isinstance(error, Refused):
                raise self._explained(error) from None
            raise
        ids = [response.token_ids for response in responses]
        if self._others is not None:
            self._others.generated(batch.tokens.generated)
        return Generation(
            () if None in ids else tuple(each for each in ids if each is not None),
            with_cached(batch, (response.cached for response in responses)),
            EstimatedSteps([response.trace for response in responses]),
            steps_exact=False,
            latencies=tuple(latency_of(response.trace) for response in responses),
            unsound=self._others.reason if self._others is not None else None,
        )

    def _body(self, prompt: Sequence[int], new_tokens: int) -> dict[str, Any]:
        known = self._server.kind in (VLLM, SGLANG)
        usage = {"include_usage": True}
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": new_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {**usage, "continuous_usage_stats": True} if known else usage,
            "ignore_eos": True,
        }
        if known:
            body |= {"return_token_ids": True, "cache_salt": secrets.token_hex(8)}
        body |= self._fields
        return {name: value for name, value in body.items() if value is not None}

    def _explained(self, refused: Refused) -> EngineError:
        """Make the error for a refusal; a model that went away is told by what there is now."""
        if refused.status == 404:
            with suppress(EngineError):
                models = models_of(self._client, self._endpoint)
                if all(each["id"] != self._model for each in models):
                    return EngineError(f"{refused}. {unknown_model(self._endpoint, self._model, models)}")
        return EngineError(str(refused))

    def _tokenizes(self) -> bool:
        answer = self._ask_tokens("a")
        return answer.status == 200 and isinstance(answer.document, dict) and "tokens" in answer.document

    def _ask_tokens(self, text: str) -> Answer:
        return self._client.post("/tokenize", {"model": self._model, "prompt": text})

    def _encode(self, text: str) -> list[int]:
        answer = self._ask_tokens(text)
        if answer.status != 200:
            self._client.refuse("/tokenize", answer)
        return [int(token) for token in answer.document["tokens"]]

    def _is_local(self) -> bool:
        host = self._endpoint.host
        try:
            return is_this_machine(host)
        except OSError as error:
            raise EngineError(
                f"{self._endpoint.root}: the host {host} is not known ({error.strerror or error}): look at base_url"
            ) from None

    def _own_process(self, *, local: bool) -> None:
        """Have a local server's processes count as ours, and find the GPUs that they are on."""
        self._device_ids: tuple[str, ...] | None = () if local and self._server.device == "cpu" else None
        if not local:
            return
        if self._process is None:
            progress.report_progress(
                f"{self._endpoint.root}: which process listens there cannot be seen (it is another user's, or in a "
                "container): to the meters it is a stranger; server_pid=... says which it is"
            )
            return
        if not is_in_tree(self._process, root_of_run()):
            adopt(self._process)
            self._adopted = self._process
        if self._device_ids is None:
            self._device_ids = gpus_of(self._process)
