"""Mainstay's worker asked directly over gRPC, with prompts of the same tokens: the latency that the gateway adds to.

The client is Python's gRPC, whose own time is in the figure, so it is an upper bound of the worker's. Prompts
are the sessions' tokens in their order, not rendered: a worker sees only ids, and each turn is a prefix of the next.
"""

import asyncio
import functools
import importlib
import subprocess
import sys
import tempfile
import time

import grpc

from conversations import OUTPUT_TOKENS, ROOT, Session
from load import Answer, Outcome, loop_of_select

METHOD = "/mainstay.v1.Worker/Generate"
NAMESPACE = bytes(16)
FINISH_LENGTH = 2


@functools.cache
def messages():
    """The module of worker.proto's messages, made once and kept in memory only."""
    with tempfile.TemporaryDirectory() as folder:
        made = [f"-I{ROOT / 'proto/mainstay/v1'}", f"--python_out={folder}", "worker.proto"]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *made], check=True)
        sys.path.insert(0, folder)
        try:
            return importlib.import_module("worker_pb2")
        finally:
            sys.path.remove(folder)


def packed(tokens: list[int]) -> bytes:
    """Token ids as the wire has them: base-128 numbers, lowest digits first, as in `proto/src/tokens.rs`."""
    out = bytearray()
    for token in tokens:
        while token > 0x7F:
            out.append(token & 0x7F | 0x80)
            token >>= 7
        out.append(token)
    return bytes(out)


def prompts(wire, tokenizer, sessions: list[Session], turns: range) -> list[bytes]:
    """Requests of all sessions, turn by turn, as bytes."""
    ids = [tokenizer.encode(session.text.decode(), add_special_tokens=False).ids for session in sessions]
    sampling = wire.Sampling(tokens_max=OUTPUT_TOKENS, repetition_penalty=1.0, top_p=1.0)

    def one(number: int, turn: int) -> bytes:
        tokens = packed(ids[number][: sessions[number].tokens[turn]])
        return wire.GenerateRequest(request_id="bench", namespace=NAMESPACE, tokens=tokens, sampling=sampling).SerializeToString()

    return [one(number, turn) for turn in turns for number in range(len(sessions))]


def drive_grpc(ports: list[int], wire, bodies: list[bytes], sessions: int, rate: float | None) -> Outcome:
    """A session stays with one worker, as a router would have it."""
    async def run() -> Outcome:
        outcome = Outcome()
        channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}") for port in ports]
        calls = [channel.unary_stream(METHOD) for channel in channels]

        async def one(number: int, due_ns: int) -> None:
            said, finish, first_ns, cached = 0, 0, 0, 0
            try:
                async for raw in calls[number % sessions % len(calls)](bodies[number]):
                    first_ns = first_ns or time.perf_counter_ns()
                    event = wire.GenerateEvent.FromString(raw)
                    said, finish, cached = said + len(event.tokens), event.finish or finish, event.cached_tokens or cached
            except grpc.aio.AioRpcError as problem:
                outcome.failed, outcome.why = outcome.failed + 1, f"{problem.code()}: {problem.details()}"
                return
            end_ns = time.perf_counter_ns()
            if (said, finish) != (OUTPUT_TOKENS, FINISH_LENGTH):
                outcome.failed, outcome.why = outcome.failed + 1, f"{said} tokens, finish {finish}"
            outcome.answers.append(Answer((end_ns - due_ns) / 1e6, (first_ns - due_ns) / 1e6, b"", cached))

        began, tasks = time.perf_counter_ns(), []
        for number in range(len(bodies)):
            if rate is None:
                await one(number, time.perf_counter_ns())
                continue
            due_ns = began + int(number / rate * 1e9)
            while (left := due_ns - time.perf_counter_ns()) > 0:
                await asyncio.sleep(left / 1e9)
            tasks.append(asyncio.create_task(one(number, due_ns)))
        await asyncio.gather(*tasks)
        outcome.took_s = (time.perf_counter_ns() - began) / 1e9
        for channel in channels:
            await channel.close()
        return outcome

    with asyncio.Runner(loop_factory=loop_of_select) as runner:
        return runner.run(run())
