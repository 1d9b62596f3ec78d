"""Running named checks against a server and saying what came of each.

One line per check, a last line `N passed, M failed`, exit status 1 if any failed or
none ran. A check is a function that raises to fail; the next one runs regardless, so
one broken endpoint does not hide the state of the others.
"""

import argparse
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass

REQUEST_TIMEOUT_S = 120.0
MESSAGE_CHARS_MAX = 400


class Checks:
    """Collects outcomes; print order is run order."""

    def __init__(self, only: str = ""):
        self.passed, self.failed, self.only = 0, 0, only

    def run(self, name: str, check: Callable[[], str | None]) -> None:
        """Runs one check; what it returns is shown beside its name."""
        if self.only not in name:
            return
        try:
            note = check()
        except Exception as problem:  # Any failure of a check is a result, not the end of the run.
            self.failed += 1
            text = " ".join(f"{type(problem).__name__}: {problem}".split())
            print(f"FAIL  {name}: {text[:MESSAGE_CHARS_MAX]}", flush=True)
        else:
            self.passed += 1
            print(f"ok    {name}" + (f" ({note})" if note else ""), flush=True)

    def finish(self) -> None:
        print(f"{self.passed} passed, {self.failed} failed")
        sys.exit(1 if self.failed or not self.passed else 0)


def options(description: str) -> argparse.ArgumentParser:
    """What every script of checks takes."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--api-key", default="test-key")
    parser.add_argument("--only", default="", help="run only checks whose name contains this")
    return parser


def expect(condition: object, message: str) -> None:
    """`assert` that also works under -O and always says something."""
    if not condition:
        raise AssertionError(message)


def equal(left: object, right: object, what: str) -> None:
    expect(left == right, f"{what}: {left!r} is not {right!r}")


@dataclass
class Answer:
    """A plain HTTP answer; errors are answers too."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict:
        return json.loads(self.body)


class Server:
    """The server under test, spoken to without an SDK."""

    def __init__(self, base_url: str, api_key: str):
        self.base_url, self.api_key = base_url.rstrip("/"), api_key

    def headers(self, path: str) -> dict[str, str]:
        common = {"content-type": "application/json", "authorization": f"Bearer {self.api_key}"}
        if path.startswith("/v1/messages"):
            common |= {"x-api-key": self.api_key, "anthropic-version": "2023-06-01"}
        return common

    def open(self, method: str, path: str, body: bytes | None):
        request = urllib.request.Request(self.base_url + path, data=body, method=method, headers=self.headers(path))
        return urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S)

    def request(self, method: str, path: str, body: bytes | dict | None = None) -> Answer:
        raw = json.dumps(body).encode() if isinstance(body, dict) else body
        try:
            with self.open(method, path, raw) as reply:
                return Answer(reply.status, {k.lower(): v for k, v in reply.headers.items()}, reply.read())
        except urllib.error.HTTPError as refused:
            with refused:
                return Answer(refused.code, {k.lower(): v for k, v in refused.headers.items()}, refused.read())

    def events(self, path: str, body: dict) -> Iterator[tuple[str | None, str]]:
        """(event name, data) of each server-sent event."""
        with self.open("POST", path, json.dumps(body).encode()) as reply:
            kind = reply.headers.get("content-type", "")
            expect(kind.startswith("text/event-stream"), f"content-type of a stream is {kind!r}")
            name, data = None, []
            for raw in reply:
                line = raw.decode("utf-8").rstrip("\r\n")
                if line.startswith("event:"):
                    name = line[6:].strip()
                elif line.startswith("data:"):
                    data.append(line[5:].removeprefix(" "))
                elif not line and data:
                    yield name, "\n".join(data)
                    name, data = None, []
            expect(not data, "the stream ended inside an event")
