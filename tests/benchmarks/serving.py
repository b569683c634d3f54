"""Our service beside `vllm serve` of the same version: the same model, adapter, settings and cores, over HTTP.

    python -m tests.benchmarks.serving [--model llama|seedling] [--rounds 6] [--compiled] [--ingress python|haproxy]

Ours is all of it: Ray Serve's ingress, keys, routing, the log of completions in PostgreSQL. vLLM's own is its server with
its own LoRA. Both run at the same time and are asked in turn, so that a machine that others use is as slow for both, and
ours once theirs is quiet; of throughput the best round counts, of the time to the first token all requests of all rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from serving import cpu_lora, machine
from serving.base_model import linear_layers
from serving.machine import Machine
from serving.settings import ServingSettings
from tests.benchmarks.engine_side import NO_PLUGIN
from tests.benchmarks.figures import milliseconds, percentile
from tests.benchmarks.quiet import until_quiet
from tests.conftest import free_port
from tests.line import DONE, Line

CHAT = "/v1/chat/completions"
ROUNDS = 6
WORK = {  # clients, answers of a round, words of a prompt, tokens of an answer; so many that p99 is not the slowest alone
    "decode 1": (1, 24, 16, 64),
    "decode 8": (8, 48, 16, 64),
    "decode 32": (32, 96, 16, 64),
    "prefill": (8, 32, 200, 1),
}
BASE_BAR, DECODE_BAR, PREFILL_BAR = 0.97, 1.8, 4.0  # times vLLM's; the last two with an adapter
FIRST_P50_SECONDS, FIRST_P99_SHARE = 0.003, 1.10  # later than vLLM's; times vLLM's
_STARTS_SECONDS = 180.0
_words = itertools.count()


@dataclass
class Server:
    name: str
    port: int
    key: str
    models: dict[str, str]  # case -> what a request calls it
    busy: int | None = None  # its process, where it computes on after it has answered
    tokens_a_second: list[float] = field(default_factory=list)  # of each round
    first_seconds: list[float] = field(default_factory=list)  # of each answer


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serving")
    parser.add_argument("--model", choices=["llama", "seedling"], default="llama")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--compiled", action="store_true", help="serving.compiled instead of the default")
    parser.add_argument("--ingress", choices=["python", "haproxy"], help="server.ingress instead of the default")
    options = parser.parse_args(arguments)
    server = {"ingress": options.ingress} if options.ingress else {}
    settings = ServingSettings(compiled=options.compiled)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = _model(options.model, folder)
        with _ours(folder, model, settings, server) as (ours, adapter), _vllm(folder, model, adapter, settings) as peer:
            print(f"{options.model}: ours with its log of completions beside vllm serve, tokens a second")
            print(f"{'':18}   ours   vllm   ratio{'':13}first token p50, p99 (ms): ours, vllm")
            for case, what in itertools.product(("base", "adapter"), WORK):
                asyncio.run(_measure((ours, peer), case, what, options.rounds))
                print(_row(case, what, ours, peer), flush=True)


# --- the two servers ----------------------------------------------------------------------------------


def _model(name: str, folder: Path) -> Path:
    if name == "seedling":
        from service.model import resolve

        return resolve(name)
    from tests.benchmarks.engine_side import llama
    from tests.tiny_models import VOCABULARY, build

    return llama(build("llama", folder / "model"), VOCABULARY)  # with the smaller one's tokenizer


@contextmanager
def _ours(
    folder: Path, model: Path, settings: ServingSettings, server: dict[str, Any]
) -> Iterator[tuple[Server, Path]]:
    """And the adapter that answers as `policy`."""
    from service import node
    from service.client import KEYS_FILE
    from service.postgres.embedded import EmbeddedDatabase
    from service.settings import load
    from service.store.store import Store
    from tests.adapters import published_adapters
    from tests.fake_cluster import register

    state, port = folder / "state", free_port()
    state.mkdir()
    sections: dict[str, Any] = {"server": {"port": port, **server}, "serving": {"compiled": settings.compiled}}
    (adapter,) = (published := published_adapters(model, folder, 1)).values()
    overrides = {"state": str(state), "model": {"name": str(model)}, **sections}
    with node.running(load(environment={}, overrides=overrides)) as url:

        async def publish() -> None:
            store = Store(EmbeddedDatabase(state / "database").url)
            await register(store, published)
            await store.close()

        asyncio.run(publish())
        keys = json.loads((state / KEYS_FILE).read_text())
        authority = {"authorization": f"Bearer {keys['operator']}"}
        httpx.post(f"{url}/ops/adapters/{adapter.name}/promote", headers=authority, timeout=60).raise_for_status()
        yield Server("ours", port, keys["app"], {"base": "base", "adapter": "policy"}), Path(adapter.directory)


@contextmanager
def _vllm(folder: Path, model: Path, adapter: Path, settings: ServingSettings) -> Iterator[Server]:
    port, here = free_port(), Machine.here()
    options = {
        "host": "127.0.0.1",
        "port": port,
        "served-model-name": "base",
        "dtype": "float32",
        "max-num-seqs": settings.max_requests,
        "max-loras": settings.adapter_places,
        "max-cpu-loras": settings.adapter_places,
        "max-lora-rank": settings.max_lora_rank,
        "kv-cache-memory-bytes": machine.kv_cache_bytes(settings, here),
        "generation-config": "vllm",
        "lora-modules": f"adapter={adapter}",
        "uvicorn-log-level": "warning",
    }
    command = [str(Path(sys.executable).parent / "vllm"), "serve", str(model), "--enable-lora", "--disable-log-stats"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command += ["--lora-target-modules", *linear_layers(model)]
    quiet = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    path = os.pathsep.join((str(_named_vllm(folder)), os.environ.get("PYTHONPATH", "")))
    environment = os.environ | quiet | machine.thread_variables(settings, here) | NO_PLUGIN | {"PYTHONPATH": path}
    with (folder / "vllm.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait(process, port, folder / "vllm.log")
            yield Server("vllm", port, "none", {"base": "base", "adapter": "adapter"}, process.pid)
        finally:
            process.terminate()
            process.wait()


def _named_vllm(folder: Path) -> Path:
    """For a path of Python's: the command line looks up the version of a package `vllm`, which for CPUs is `vllm-cpu`."""
    known = folder / "named" / "vllm-0.dist-info"
    known.mkdir(parents=True)
    (known / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {cpu_lora.vllm_version()}+cpu\n")
    return known.parent


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + _STARTS_SECONDS
    while process.poll() is None and time.monotonic() < until:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError("vllm serve does not answer:\n" + log.read_text(errors="replace")[-3000:])


# --- what is measured ---------------------------------------------------------------------------------


async def _measure(servers: Sequence[Server], case: str, what: str, rounds: int) -> None:
    """Leaves each server's figures of this work with it. The first round warms up."""
    for server in servers:
        server.tokens_a_second, server.first_seconds = [], []
    for number in range(rounds + 1):
        for server in servers if number % 2 else reversed(servers):
            tokens_a_second, first_seconds = await _round(server, case, what)
            if server.busy is not None:
                await asyncio.to_thread(until_quiet, server.busy)
            if number:
                server.tokens_a_second.append(tokens_a_second)
                server.first_seconds += first_seconds


async def _round(server: Server, case: str, what: str) -> tuple[float, list[float]]:
    """Tokens a second altogether, of prompts where that is what is measured; and each answer's first token."""
    clients, answers, words, answer_tokens = WORK[what]
    counted = "prompt_tokens" if what == "prefill" else "completion_tokens"
    waiting = iter(range(answers))
    tokens, firsts = 0, list[float]()

    async def client() -> None:
        nonlocal tokens
        async with Line("127.0.0.1", server.port, server.key) as line:
            for _ in waiting:
                reply = await line.post(CHAT, _body(server.models[case], words, answer_tokens))
                assert reply.status == 200, reply.parts
                assert reply.events[-1] == DONE
                tokens += json.loads(reply.events[-2])["usage"][counted]
                firsts.append(reply.first_seconds)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return tokens / (time.perf_counter() - began), firsts


def _body(model: str, words: int, answer_tokens: int) -> dict[str, Any]:
    """No two prompts begin alike, so that nothing of them is cached."""
    text = " ".join([str(next(_words)), *("Two plus three is five."[place % 23 :] for place in range(words // 4))])
    messages = [{"role": "user", "content": text}]
    options = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
    return {"model": model, "messages": messages, "max_tokens": answer_tokens, **options}


def _row(case: str, what: str, ours: Server, peer: Server) -> str:
    mine, theirs = max(ours.tokens_a_second), max(peer.tokens_a_second)
    bar = BASE_BAR if case == "base" else PREFILL_BAR if what == "prefill" else DECODE_BAR
    first = "".join(milliseconds(server.first_seconds, 0.5, 0.99) for server in (ours, peer))
    row = f"{case:8}{what:10} {mine:6.0f} {theirs:6.0f}  {mine / theirs:5.2f} x {_verdict(mine / theirs >= bar)} {bar}"
    return f"{row:50}{first}  {_verdict(_as_soon(ours.first_seconds, peer.first_seconds))}"


def _as_soon(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    p50 = percentile(ours, 0.5) - percentile(theirs, 0.5) <= FIRST_P50_SECONDS
    return p50 and percentile(ours, 0.99) <= FIRST_P99_SHARE * percentile(theirs, 0.99)


def _verdict(passed: bool) -> str:
    return "PASS" if passed else "short of"


if __name__ == "__main__":
    main(sys.argv[1:])
