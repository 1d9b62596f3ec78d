"""A load generator that sends prepared bytes and reads no more of the answers than their end.

One asyncio loop over keep-alive connections. A closed loop has a fixed number of requests
under way; an open loop sends at fixed times whether or not earlier ones were answered, and
counts latency from the time at which a request was due, so that a front end that falls
behind shows it. Answers are kept and checked after the clock has stopped.
"""

import asyncio
import gc
import json
import selectors
import time
from collections import deque
from dataclasses import dataclass, field

CONNECTIONS_MAX = 256
PATH = "/v1/chat/completions"


@dataclass
class Answer:
    latency_ms: float
    first_ms: float
    raw: bytes
    cached_tokens: int = 0


@dataclass
class Outcome:
    answers: list[Answer] = field(default_factory=list)
    failed: int = 0
    took_s: float = 0.0
    why: str = ""


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self):
        self.transport, self.waiting, self.buffer = None, None, bytearray()
        self.first_ns, self.length, self.chunked = 0, -1, False

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, problem):
        self.transport = None
        if self.waiting and not self.waiting.done():
            self.waiting.set_exception(ConnectionError(f"closed: {problem}"))

    def data_received(self, data):
        self.buffer += data
        if self.length < 0 and not self.chunked:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.buffer[:end]).lower()
            self.chunked = b"transfer-encoding: chunked" in head
            at = head.find(b"content-length:")
            if not self.chunked:
                self.length = end + 4 + int(head[at + 15 :].split(b"\r\n")[0]) if at >= 0 else end + 4
        whole = self.buffer.endswith(b"0\r\n\r\n") if self.chunked else len(self.buffer) >= self.length
        if not self.first_ns and (whole or b"data:" in self.buffer):
            self.first_ns = time.perf_counter_ns()
        if whole:
            self.waiting.set_result(bytes(self.buffer))

    async def ask(self, pieces: list[bytes], due_ns: int) -> Answer:
        self.buffer, self.first_ns, self.length, self.chunked = bytearray(), 0, -1, False
        self.waiting = asyncio.get_running_loop().create_future()
        self.transport.writelines(pieces)
        raw = await self.waiting
        end_ns = time.perf_counter_ns()
        return Answer((end_ns - due_ns) / 1e6, (self.first_ns - due_ns) / 1e6, raw)


class Load:
    """Requests to one address."""

    def __init__(self, host: str, port: int, timeout_s: float = 60.0):
        self.host, self.port, self.timeout_s = host, port, timeout_s
        self.idle: deque[Connection] = deque()

    def request(self, body: list[bytes]) -> list[bytes]:
        length = sum(map(len, body))
        head = (f"POST {PATH} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\ncontent-type: application/json\r\n"
                f"accept: */*\r\ncontent-length: {length}\r\n\r\n")
        return [head.encode(), *body]

    async def one(self, body: list[bytes], due_ns: int, outcome: Outcome) -> None:
        connection = self.idle.pop() if self.idle else None
        try:
            if connection is None or connection.transport is None:
                _, connection = await asyncio.get_running_loop().create_connection(Connection, self.host, self.port)
            answer = await asyncio.wait_for(connection.ask(self.request(body), due_ns), self.timeout_s)
        except (OSError, asyncio.TimeoutError) as problem:
            outcome.failed, outcome.why = outcome.failed + 1, f"{type(problem).__name__}: {problem}"
            return
        outcome.answers.append(answer)
        if len(self.idle) < CONNECTIONS_MAX:
            self.idle.append(connection)

    async def closed(self, bodies: list[list[bytes]], at_once: int) -> Outcome:
        outcome, rest = Outcome(), iter(bodies)

        async def walk():
            for body in rest:
                await self.one(body, time.perf_counter_ns(), outcome)

        began = time.perf_counter()
        await asyncio.gather(*(walk() for _ in range(at_once)))
        outcome.took_s = time.perf_counter() - began
        return outcome

    async def open(self, bodies: list[list[bytes]], rate: float) -> Outcome:
        outcome, tasks = Outcome(), []
        began = time.perf_counter_ns() + 10_000_000
        for number, body in enumerate(bodies):
            due_ns = began + int(number / rate * 1e9)
            while (left := due_ns - time.perf_counter_ns()) > 0:
                await asyncio.sleep(left / 1e9)
            tasks.append(asyncio.create_task(self.one(body, due_ns, outcome)))
        await asyncio.gather(*tasks)
        outcome.took_s = (time.perf_counter_ns() - began) / 1e9
        return outcome

    def close(self) -> None:
        for connection in self.idle:
            if connection.transport:
                connection.transport.close()


def loop_of_select() -> asyncio.AbstractEventLoop:
    """epoll waits in whole milliseconds, select in microseconds; and spinning would take the engine's core."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def drive(host: str, port: int, bodies: list[list[bytes]], at_once: int = 1, rate: float | None = None) -> Outcome:
    """Runs one phase to its end."""
    async def run() -> Outcome:
        load = Load(host, port)
        outcome = await (load.open(bodies, rate) if rate else load.closed(bodies, at_once))
        load.close()
        return outcome

    gc.collect()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=loop_of_select) as runner:
            return runner.run(run())
    finally:
        gc.enable()


def unchunked(body: bytes) -> bytes:
    whole, at = bytearray(), 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end].split(b";")[0], 16)
        if size == 0:
            return bytes(whole)
        whole += body[end + 2 : end + 2 + size]
        at = end + 4 + size


@dataclass(frozen=True)
class Said:
    """What an answer holds, or why it is none."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    events: int
    fault: str = ""


def read(raw: bytes) -> Said:
    head, _, body = raw.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1]
    if b"transfer-encoding: chunked" in head.lower():
        body = unchunked(body)
    if status != b"200":
        return Said(0, 0, 0, 0, f"status {status.decode()}: {body[:200]!r}")
    events = [line[5:].strip() for line in body.split(b"\n") if line.startswith(b"data:")] or [body]
    parsed = [json.loads(event) for event in events if event != b"[DONE]"]
    usage = next((event["usage"] for event in reversed(parsed) if event.get("usage")), None)
    if usage is None:
        return Said(0, 0, 0, len(parsed), f"no usage: {body[-200:]!r}")
    deltas = [choice.get("delta") or choice.get("message") or {} for event in parsed for choice in event.get("choices", [])]
    spoken = sum(1 for delta in deltas if delta.get("content") or delta.get("reasoning_content"))
    details = usage.get("prompt_tokens_details") or {}
    return Said(usage["prompt_tokens"], usage["completion_tokens"], details.get("cached_tokens") or 0, spoken)
