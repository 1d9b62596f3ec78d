"""A proxy between clients and gateways that alternates gateways, keeps what passes and injects faults.

Requests go to the gateways in turn, so a session is served by all of them, as behind any
load balancer. Bodies and answers are kept for the checks. A fault hits the n-th request
that has tools (side calls for titles have none); where the fault needs a stream, the
real one is forwarded up to its first pieces, so that the gateway sees what a broken
network would do to it.
"""

import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

UPSTREAM_TIMEOUT_S = 120.0
# Events of a stream that come through before a fault in its middle.
EVENTS_BEFORE_FAULT = 2
GENERATING = {"/v1/messages": "messages", "/v1/responses": "responses", "/v1/chat/completions": "chat"}
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "accept-encoding"}


@dataclass
class Fault:
    """What happens to requests number `at`, `at` + 1, … `at` + `times` - 1 of those with tools."""

    kind: str
    at: int = 2
    times: int = 1
    stall_s: float = 0.0


@dataclass
class Record:
    """One request and what came back."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    began_s: float
    status: int = 0
    answer: bytes = b""
    fault: str = ""
    gateway: int = 0
    ended_s: float = 0.0

    @property
    def api(self) -> str:
        return GENERATING.get(self.path.split("?")[0], "")

    def json(self) -> dict:
        return json.loads(self.body)

    def has_tools(self) -> bool:
        return bool(self.api) and bool(self.json().get("tools"))

    def events(self) -> list[dict]:
        """The data of a stream's events; empty for a body."""
        lines = self.answer.decode("utf-8", "replace").splitlines()
        data = (line[5:].strip() for line in lines if line.startswith("data:"))
        return [json.loads(text) for text in data if text.startswith("{")]

    def usage(self) -> "Used | None":
        return used(self.api, self.answer, self.events())


@dataclass
class Used:
    """Token counts in one meaning: `prompt` includes what came from the cache."""

    prompt: int
    output: int
    cached: int
    created: int = 0


def used(api: str, answer: bytes, events: list[dict]) -> Used | None:
    """What an answer says was used; None where it has not come to that."""
    if not events:
        try:
            body = json.loads(answer)
        except ValueError:
            return None
    elif api == "messages":
        body = {"usage": {}}
        for event in events:
            body["usage"] |= event.get("message", {}).get("usage") or {}
            body["usage"] |= event.get("usage") or {}
        if not any(event.get("type") == "message_stop" for event in events):
            return None
    else:
        body = events[-1].get("response", events[-1]) if api == "responses" else events[-1]
    got = body.get("usage")
    if not got:
        return None
    if api == "messages":
        cached, created = got.get("cache_read_input_tokens") or 0, got.get("cache_creation_input_tokens") or 0
        return Used(got["input_tokens"] + cached + created, got["output_tokens"], cached, created)
    if api == "responses":
        details = got.get("input_tokens_details") or {}
        return Used(got["input_tokens"], got["output_tokens"], details.get("cached_tokens", 0))
    details = got.get("prompt_tokens_details") or {}
    return Used(got["prompt_tokens"], got["completion_tokens"], details.get("cached_tokens", 0))


STATUS_FAULTS = {
    "429+retry-after": (429, "rate_limit_error", {"retry-after": "1"}), "429": (429, "rate_limit_error", {}),
    "529": (529, "overloaded_error", {}), "500": (500, "api_error", {}),
    "503+retry-after": (503, "api_error", {"retry-after": "1"}), "401": (401, "authentication_error", {}),
    "too-long": (400, "invalid_request_error", {}),
}
FAILED_CODES = {
    "failed:rate": ("rate_limit_exceeded", "Rate limit reached. Please try again in 1.2s."),
    "failed:server": ("server_error", "An error occurred."),
    "failed:overloaded": ("server_is_overloaded", "The server is overloaded."),
    "failed:context": ("context_length_exceeded", "Your input exceeds the context window."),
}


def error_body(api: str, status: int, kind: str) -> dict:
    too_long = status == 400
    message = "prompt is too long: 250000 tokens > 200000 maximum" if too_long else f"injected {status}"
    if api == "messages":
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_injected"}
    code = "context_length_exceeded" if too_long else None
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_event(api: str, kind: str) -> bytes:
    """An error as an event of a stream."""
    if api == "messages":
        body = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        return f"event: error\ndata: {json.dumps(body)}\n\n".encode()
    if kind in FAILED_CODES:
        code, message = FAILED_CODES[kind]
        response = {"id": "resp_injected", "object": "response", "status": "failed",
                    "error": {"code": code, "message": message}, "output": []}
        body = {"type": "response.failed", "sequence_number": 99, "response": response}
        return f"event: response.failed\ndata: {json.dumps(body)}\n\n".encode()
    if api == "responses":
        body = {"type": "error", "sequence_number": 99, "code": "server_error", "message": "injected", "param": None}
        return f"event: error\ndata: {json.dumps(body)}\n\n".encode()
    return b'data: {"error": {"message": "injected", "type": "server_error", "param": null, "code": null}}\n\n'


@dataclass
class Proxy:
    """Listens on a free port of the loopback until it is closed."""

    gateways: list[tuple[str, int]]
    records: list[Record] = field(default_factory=list)
    fault: Fault | None = None

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.turn, self.tooled = 0, 0
        proxy = self

        class Handler(Relay):
            owner = proxy

        self.server = Listener(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def begin(self, fault: Fault | None = None) -> None:
        """Forgets what was kept and arms a fault."""
        with self.lock:
            self.records, self.fault, self.tooled = [], fault, 0

    def close(self) -> None:
        self.server.shutdown()

    def take(self, record: Record) -> tuple[tuple[str, int], Fault | None]:
        """Where a request goes and what befalls it."""
        with self.lock:
            self.records.append(record)
            self.turn += 1
            record.gateway = self.turn % len(self.gateways)
            gateway, fault = self.gateways[record.gateway], None
            if record.has_tools():
                self.tooled += 1
                armed = self.fault
                if armed and armed.at <= self.tooled < armed.at + armed.times:
                    fault, record.fault = armed, armed.kind
            return gateway, fault


class Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that reset a connection are part of the game; anything else is a fault of this program."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Proxy

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.relay()

    def do_GET(self) -> None:
        self.relay()

    def do_HEAD(self) -> None:
        self.relay()

    def body(self) -> bytes:
        if "chunked" not in (self.headers.get("transfer-encoding") or ""):
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def relay(self) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        record = Record(self.command, self.path, headers, self.body(), time.monotonic())
        gateway, fault = self.owner.take(record)
        try:
            self.answer(record, gateway, fault)
        except OSError:
            # A client that hangs up is part of the game.
            self.close_connection = True
        finally:
            record.ended_s = time.monotonic()

    def answer(self, record: Record, gateway: tuple[str, int], fault: Fault | None) -> None:
        if fault and fault.kind == "drop":
            self.cut()
            return
        if fault and fault.kind in STATUS_FAULTS:
            status, kind, more = STATUS_FAULTS[fault.kind]
            record.status = status
            body = json.dumps(error_body(record.api, status, kind)).encode()
            self.reply(status, {"content-type": "application/json", **more}, body)
            return
        upstream = http.client.HTTPConnection(*gateway, timeout=UPSTREAM_TIMEOUT_S)
        passed = {key: value for key, value in record.headers.items() if key not in HOP_BY_HOP}
        upstream.request(record.method, record.path, record.body or None, passed)
        reply = upstream.getresponse()
        record.status = reply.status
        kept = {key: value for key, value in reply.getheaders() if key.lower() not in HOP_BY_HOP}
        try:
            if "event-stream" in (reply.getheader("content-type") or ""):
                self.stream(record, reply, kept, fault)
            else:
                record.answer = reply.read()
                self.reply(reply.status, kept, record.answer)
        finally:
            upstream.close()

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def stream(self, record: Record, reply: http.client.HTTPResponse, headers: dict[str, str], fault: Fault | None) -> None:
        self.send_response(reply.status)
        for key, value in headers.items():
            self.send_header(key, value)
        # In chunks, so that an end and a cut are told apart.
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number, event in enumerate(events_of(reply)):
            if fault and number == EVENTS_BEFORE_FAULT:
                self.break_stream(record, fault)
                return
            record.answer += event
            self.chunk(event)
        self.wfile.write(b"0\r\n\r\n")

    def break_stream(self, record: Record, fault: Fault) -> None:
        if fault.kind == "stall":
            time.sleep(fault.stall_s)
        if fault.kind in ("cut", "stall"):
            self.cut()
            return
        event = error_event(record.api, fault.kind)
        record.answer += event
        self.chunk(event)
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def events_of(reply: http.client.HTTPResponse) -> Iterator[bytes]:
    """A stream, event by event, each with the blank line that ends it."""
    event = b""
    while line := reply.readline():
        event += line
        if not line.strip():
            yield event
            event = b""
    if event:
        yield event
