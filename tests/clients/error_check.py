"""Whether a server meets bad requests with an error its clients understand, and stays up.

Every input is hostile: broken JSON, wrong types, deep nesting, prompts over the model's
context, bodies over the limit, clients that hang up. For each the answer must be a 4xx
in the endpoint's own error shape, and afterwards the server must be live, ready, and
able to serve a normal turn.

    python error_check.py --base-url http://127.0.0.1:8000 --model demo [--only NAME]
"""

import gzip
import json
import re
import socket
import urllib.parse

from checks import Answer, Checks, REQUEST_TIMEOUT_S, Server, equal, expect, options

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
ENDPOINTS = (CHAT, RESPONSES, MESSAGES)
# Anthropic's clients may send 32 MB, so that much must be read; well above it must be refused.
ALLOWED_BODY_BYTES = 31 << 20
REFUSED_BODY_BYTES = 66 << 20
NESTING = 20_000
TOO_LONG = re.compile(r"prompt is too long: (\d+) tokens > (\d+) maximum")
ANTHROPIC_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
                   404: "not_found_error", 413: "request_too_large", 415: "invalid_request_error",
                   429: "rate_limit_error", 529: "overloaded_error"}


def valid(path: str, model: str, text: str = "Hello!") -> dict:
    """The smallest good request of an endpoint."""
    if path == RESPONSES:
        return {"model": model, "input": text, "max_output_tokens": 16}
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 16}


def wrong_types(path: str) -> dict[str, dict]:
    """Members to overwrite a good request with, each of which must be refused."""
    conversation = "input" if path == RESPONSES else "messages"
    limit = "max_output_tokens" if path == RESPONSES else "max_tokens"
    nameless = {CHAT: {"type": "function", "function": {}}, RESPONSES: {"type": "function"},
                MESSAGES: {"input_schema": {"type": "object"}}}
    return {
        "conversation is a number": {conversation: 5},
        "conversation is an object": {conversation: {"role": "user"}},
        "a message is a string": {conversation: ["hello"]},
        "a message has no role": {conversation: [{"content": "hello"}]},
        "an unknown role": {conversation: [{"role": "wizard", "content": "hello"}]},
        "content is a number": {conversation: [{"role": "user", "content": 5}]},
        "limit is text": {limit: "many"},
        "limit is negative": {limit: -1},
        "temperature is text": {"temperature": "hot"},
        "tools is an object": {"tools": {"name": "x"}},
        "a tool has no name": {"tools": [nameless[path]]},
        "model is a number": {"model": 7},
        "stream is text": {"stream": "yes"},
    }


def image(path: str) -> dict:
    """An image as a content part of the endpoint."""
    url = "data:image/png;base64,AAAA"
    return {CHAT: {"type": "image_url", "image_url": {"url": url}}, RESPONSES: {"type": "input_image", "image_url": url},
            MESSAGES: {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}}[path]


def expect_error(path: str, answer: Answer, statuses: tuple[int, ...]) -> str:
    """Status, shape and type of an error; returns its message."""
    expect(answer.status in statuses, f"status {answer.status} is not one of {statuses}: {answer.body[:200]!r}")
    kind = answer.headers.get("content-type", "")
    expect(kind.startswith("application/json"), f"an error has content-type {kind!r}")
    body = answer.json()
    error = body.get("error")
    expect(isinstance(error, dict), f"no error object: {body}")
    expect(isinstance(error.get("message"), str) and error["message"], f"no message: {body}")
    if path.startswith(MESSAGES):
        equal(body.get("type"), "error", "type of the body")
        equal(error.get("type"), ANTHROPIC_TYPES[answer.status], "type of the error")
        expect(answer.headers.get("request-id"), "no request-id header")
    else:
        expect({"message", "type", "param", "code"} <= error.keys(), f"members are missing: {error}")
        expect(isinstance(error["type"], str) and error["type"], f"type is {error['type']!r}")
    return error["message"]


class Compressed(Server):
    """The same server, told that bodies are compressed."""

    def __init__(self, server: Server, encoding: str):
        super().__init__(server.base_url, server.api_key)
        self.encoding = encoding

    def headers(self, path: str) -> dict[str, str]:
        return super().headers(path) | {"content-encoding": self.encoding}


class ErrorChecks:
    def __init__(self, checks: Checks, server: Server, model: str):
        self.checks, self.server, self.model = checks, server, model

    def each(self, name: str, check) -> None:
        for path in ENDPOINTS:
            self.checks.run(f"{path} {name}", lambda path=path: check(path))
        self.healthy_after(name)

    def healthy_after(self, name: str) -> None:
        self.checks.run(f"healthy after: {name}", self.healthy)

    def healthy(self) -> None:
        for path in ("/livez", "/readyz"):
            equal(self.server.request("GET", path).status, 200, path)
        for path in ENDPOINTS:
            answer = self.server.request("POST", path, valid(path, self.model))
            equal(answer.status, 200, f"status of a good request to {path}")

    def all(self) -> None:
        self.checks.run("healthy at the start", self.healthy)
        self.each("malformed JSON", self.malformed)
        for case in wrong_types(CHAT):
            for path in ENDPOINTS:
                self.checks.run(f"{path} {case}", lambda path=path, case=case: self.wrong_type(path, case))
        self.healthy_after("wrong types")
        self.each("errors of a stream request are plain errors", self.stream_error)
        self.each("deep nesting", self.nested)
        self.each("missing conversation", self.missing)
        self.each("unknown model", self.unknown_model)
        self.each("prompt over the context", self.too_long)
        self.each("an image for a model that reads text", self.image_left_out)
        self.each("one word of a megabyte", self.one_long_word)
        self.checks.run("count_tokens malformed JSON", self.count_malformed)
        self.checks.run("unknown path", self.unknown_path)
        self.each("wrong method", self.wrong_method)
        self.each("body of 31 MiB is read", self.large_body)
        self.each("body of 66 MiB is refused", self.huge_body)
        self.each("compressed bodies", self.compressed)
        self.each("client hangs up inside its body", self.hang_up)
        self.each("client hangs up inside a stream", self.leave_stream)

    def malformed(self, path: str) -> str:
        good = json.dumps(valid(path, self.model)).encode()
        bodies = (b"", b"{", good[:-1], good + b"}", b"null", b"[]", b'"hello"', b"\xff\xfe\x00", good.replace(b"Hello!", b"\xc3\x28"),
                  good.replace(b'"Hello!"', b"NaN"), good.replace(b"Hello!", b"\\ud800"))
        for body in bodies[:-1]:
            expect_error(path, self.server.request("POST", path, body), (400,))
        # A lone surrogate may be refused or replaced, but not crash anything.
        answer = self.server.request("POST", path, bodies[-1])
        expect(answer.status in (200, 400), f"lone surrogate: status {answer.status}")
        return f"{len(bodies)} bodies"

    def wrong_type(self, path: str, case: str) -> str:
        body = {**valid(path, self.model), **wrong_types(path)[case]}
        return expect_error(path, self.server.request("POST", path, body), (400,))[:120]

    def stream_error(self, path: str) -> str:
        body = {**valid(path, self.model), "temperature": "hot", "stream": True}
        return expect_error(path, self.server.request("POST", path, body), (400,))[:120]

    def nested(self, path: str) -> str:
        good = json.dumps({**valid(path, self.model), "metadata": "@"}).encode()
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
            middle = b"1" if opening != b"[" else b""
            body = good.replace(b'"@"', opening * NESTING + middle + closing * NESTING)
            message = expect_error(path, self.server.request("POST", path, body), (400,))
        return message[:120]

    def missing(self, path: str) -> str:
        return expect_error(path, self.server.request("POST", path, {"model": self.model, "max_tokens": 5}), (400,))[:120]

    def unknown_model(self, path: str) -> str:
        answer = self.server.request("POST", path, valid(path, "no-such-model"))
        message = expect_error(path, answer, (404,))
        expect("no-such-model" in message, f"the message does not name the model: {message}")
        return message[:120]

    def image_left_out(self, path: str) -> None:
        """One screenshot in a history must not end a session: a text takes its place, and the client is told."""
        conversation = "input" if path == RESPONSES else "messages"
        body = {**valid(path, self.model), conversation: [{"role": "user", "content": [image(path)]}]}
        answer = self.server.request("POST", path, body)
        equal(answer.status, 200, "status")
        expect("media-left-out" in answer.headers.get("mainstay-hints", ""), f"not told: {answer.headers}")

    def too_long(self, path: str) -> str:
        body = valid(path, self.model, "weather in Oslo and " * 60_000)
        answer = self.server.request("POST", path, body)
        message = expect_error(path, answer, (400,))
        found = TOO_LONG.search(message)
        expect(found, f"harnesses cannot read this: {message[:200]}")
        expect(int(found[1]) > int(found[2]) > 0, f"the numbers make no sense: {message}")
        if path != MESSAGES:
            equal(answer.json()["error"]["code"], "context_length_exceeded", "code")
        return message[:120]

    def one_long_word(self, path: str) -> str:
        """A megabyte without a space: the worst case of tokenizers that merge piece by piece."""
        answer = self.server.request("POST", path, valid(path, self.model, "x" * (1 << 20)))
        return expect_error(path, answer, (400,))[:120]

    def count_malformed(self) -> str:
        path = MESSAGES + "/count_tokens"
        return expect_error(path, self.server.request("POST", path, b"{"), (400,))[:120]

    def unknown_path(self) -> None:
        equal(self.server.request("GET", "/v1/no-such-path").status, 404, "status")

    def wrong_method(self, path: str) -> None:
        status = self.server.request("GET", path).status
        # 426: a GET here is how some clients ask for a WebSocket.
        expect(status == 405 or (path == RESPONSES and status == 426), f"status is {status}")

    def large_body(self, path: str) -> str:
        words = "weather in Oslo and "
        body = json.dumps(valid(path, self.model, words * (ALLOWED_BODY_BYTES // len(words)))).encode()
        answer = self.server.request("POST", path, body)
        # It cannot fit the context, but it must be read and told so, not cut off.
        message = expect_error(path, answer, (400,))
        expect(TOO_LONG.search(message), f"refused for another reason: {message[:200]}")
        return message[:120]

    def huge_body(self, path: str) -> str:
        body = json.dumps(valid(path, self.model, "x" * REFUSED_BODY_BYTES)).encode()
        return expect_error(path, self.send_slowly(path, body), (413,))[:120]

    def compressed(self, path: str) -> None:
        body = json.dumps(valid(path, self.model)).encode()
        zipped = Compressed(self.server, "gzip")
        equal(zipped.request("POST", path, gzip.compress(body)).status, 200, "status of a gzip body")
        expect_error(path, zipped.request("POST", path, body), (400,))
        expect_error(path, Compressed(self.server, "br").request("POST", path, body), (415,))
        bomb = gzip.compress(b" " * REFUSED_BODY_BYTES)
        expect(len(bomb) < 1 << 20, "the bomb is no bomb")
        expect_error(path, zipped.request("POST", path, bomb), (413,))

    def connect(self) -> socket.socket:
        address = urllib.parse.urlsplit(self.server.base_url)
        return socket.create_connection((address.hostname, address.port or 80), timeout=REQUEST_TIMEOUT_S)

    def head(self, path: str, length: int) -> bytes:
        lines = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {length}", "connection: close"]
        lines += [f"{name}: {value}" for name, value in self.server.headers(path).items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def send_slowly(self, path: str, body: bytes) -> Answer:
        """Sends in pieces and reads the answer even if the server stops reading half-way."""
        with self.connect() as connection:
            try:
                connection.sendall(self.head(path, len(body)))
                for start in range(0, len(body), 1 << 16):
                    connection.sendall(body[start : start + (1 << 16)])
            except OSError:
                pass  # The server has answered and closed its end; the answer is what counts.
            raw = b""
            try:
                while piece := connection.recv(1 << 16):
                    raw += piece
            except ConnectionResetError:
                expect(raw, "the connection was reset before an answer could be read")
        head, _, content = raw.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Answer(int(status.split()[1]), headers, content)

    def hang_up(self, path: str) -> None:
        with self.connect() as connection:
            connection.sendall(self.head(path, 1000) + b'{"model": "')

    def leave_stream(self, path: str) -> None:
        body = json.dumps({**valid(path, self.model), "stream": True}).encode()
        with self.connect() as connection:
            connection.sendall(self.head(path, len(body)) + body)
            expect(connection.recv(64).startswith(b"HTTP/1.1 200"), "the stream did not start")


def main() -> None:
    given = options(__doc__).parse_args()
    checks = Checks(given.only)
    ErrorChecks(checks, Server(given.base_url, given.api_key), given.model).all()
    checks.finish()


if __name__ == "__main__":
    main()
