"""Whether a server tells sessions, hints and pins as they are.

Harnesses never say what they are about to do, but what they send shows it: these checks send
what they send and read what the server made of it, in `/v1/sessions`, in the header
`mainstay-hints`, in `nvext.used` and in usage.

    python sessions_check.py --base-url http://127.0.0.1:8000 --model demo [--only NAME]
"""

import json
import time
import urllib.parse
import uuid

from checks import Answer, Checks, Server, equal, expect, options

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
ENDPOINTS = (CHAT, RESPONSES, MESSAGES)
TOOL = {"name": "read", "description": "Reads a file.", "input_schema": {"type": "object", "properties": {}}}
# A pin on its way is told as deferred; asking again finds it made.
SETTLE_S = 0.2


class Client(Server):
    """A harness: the server under test, with headers of its own."""

    def __init__(self, base_url: str, api_key: str, **more: str):
        super().__init__(base_url, api_key)
        self.more = {name.replace("_", "-"): value for name, value in more.items()}

    def headers(self, path: str) -> dict[str, str]:
        return super().headers(path) | self.more


class SessionChecks:
    """All checks, over one server."""

    def __init__(self, checks: Checks, base_url: str, api_key: str, model: str):
        self.checks, self.base_url, self.api_key, self.model = checks, base_url, api_key, model
        self.run_id = uuid.uuid4().hex[:8]

    def all(self) -> None:
        for path in ENDPOINTS:
            self.checks.run(f"hints are told {path}", lambda path=path: self.hints(path))
            self.checks.run(f"malformed hints are told {path}", lambda path=path: self.malformed(path))
        self.checks.run("a subagent is a session of its own", self.subagent)
        self.checks.run("a final request ends its session", self.final)
        self.checks.run("a title is no turn", self.title)
        self.checks.run("unknown sessions are missing", self.missing)
        self.checks.run("usage counts what was pinned", self.created)
        self.checks.run("changes are counted", self.metrics)

    def client(self, **headers: str) -> Client:
        return Client(self.base_url, self.api_key, **headers)

    def body(self, path: str, text: str = "Hello!", **more) -> dict:
        if path == RESPONSES:
            return {"model": self.model, "input": text, "max_output_tokens": 8, **more}
        return {"model": self.model, "messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}

    def turn(self, client: Client, path: str, **more) -> Answer:
        answer = client.request("POST", path, self.body(path, **more))
        equal(answer.status, 200, f"status ({answer.body[:200]!r})")
        return answer

    def session(self, key: str) -> dict:
        answer = self.client().request("GET", "/v1/sessions/" + urllib.parse.quote(key, safe=""))
        equal(answer.status, 200, f"status ({answer.body[:200]!r})")
        return answer.json()

    def hints(self, path: str) -> str:
        equal(self.turn(self.client(), path).headers["mainstay-hints"], "used=()", "header without hints")
        hints = {"agent_hints": {"priority": 1, "iat": 5}, "session_id": f"h-{self.run_id}", "extra_fields": ["used"]}
        answer = self.turn(self.client(), path, nvext=hints)
        used = ["nvext.session_id", "agent_hints.priority", "nvext.extra_fields"]
        told = answer.headers["mainstay-hints"]
        equal(told, f"used=({' '.join(used)}), unused=(agent_hints.iat)", "header")
        equal(answer.json().get("nvext"), {"used": used}, "nvext of the body")
        streamed = [json.loads(data) for _, data in self.client().events(path, self.body(path, nvext=hints, stream=True))
                    if data != "[DONE]"]
        found = [event.get("nvext") or event.get("response", {}).get("nvext") for event in streamed]
        equal([nvext for nvext in found if nvext], [{"used": used}], "nvext of the stream")
        return told

    def malformed(self, path: str) -> str:
        nvext = {"agent_hints": 5, "cache_control": "yes", "annotations": {}, "session_control": [], "new": {}}
        answer = self.turn(self.client(x_prefix_osl="enormous"), path, nvext=nvext, kv_hints=[1])
        told = answer.headers["mainstay-hints"]
        equal(told, "hint-ignored;count=7, used=()", "header")
        return told

    def subagent(self) -> None:
        root, agent = f"s-{self.run_id}", f"a-{self.run_id}"
        main = self.client(x_claude_code_session_id=root, user_agent="claude-cli/9.9 (check)")
        child = self.client(x_claude_code_session_id=root, x_claude_code_agent_id=agent)
        self.turn(main, MESSAGES, tools=[TOOL])
        self.turn(child, MESSAGES, tools=[TOOL])
        parent, child = self.session(root), self.session(agent)
        equal((parent["client"], parent["harness"], parent["children"]), ("claude-cli/9.9", "claude-code", [agent]), "parent")
        equal((child["parent"], child["agent"], child["session"]), (root, agent, root), "child")
        expect(parent["turns"] == 1 and parent["prompt_tokens"] > 0, f"nothing counted: {parent}")
        expect(parent["state"] in ("waiting", "paused"), f"it was answered: {parent}")
        keys = [session["key"] for session in self.client().request("GET", "/v1/sessions").json()["data"]]
        expect(keys.index(agent) < keys.index(root), f"not in order: {keys[:5]}")

    def final(self) -> None:
        key = f"f/{self.run_id} x"
        self.turn(self.client(x_dynamo_session_id=key), CHAT)
        equal(self.session(key)["ended"], None, "end before it was said")
        self.turn(self.client(x_dynamo_session_id=key, x_dynamo_session_final="true"), CHAT)
        ended = self.session(key)
        equal((ended["state"], ended["ended"], ended["turns"]), ("ended", "final", 2), "end")
        living = self.client().request("GET", "/v1/sessions").json()["data"]
        expect(key not in [session["key"] for session in living], "an ended session is listed")
        told = self.client().request("GET", "/v1/sessions?all=true&limit=5").json()
        expect(len(told["data"]) <= 5 and key in [session["key"] for session in told["data"]], "it is not told of")

    def title(self) -> None:
        key = f"t-{self.run_id}"
        client = self.client(x_session_id=key, user_agent="opencode/1.0 x")
        self.turn(client, CHAT, text="Write a title")
        tool = {"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}
        self.turn(client, CHAT, tools=[tool])
        seen = self.session(key)
        equal((seen["turns"], seen["side_requests"], seen["harness"]), (1, 1, "opencode"), "requests")

    def missing(self) -> None:
        answer = self.client().request("GET", "/v1/sessions/nobody")
        equal(answer.status, 404, "status")
        expect(answer.json()["error"]["message"], "it says nothing")

    def created(self) -> str:
        text = f"{self.run_id}: " + "the weather in Oslo is fine and the sea is calm. " * 12
        part = {"type": "text", "text": text, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
        body = {"model": self.model, "max_tokens": 8, "messages": [{"role": "user", "content": [part]}]}
        first = self.client().request("POST", MESSAGES, body).json()
        usage = first["usage"]
        created = usage["cache_creation_input_tokens"]
        notes = first.get("nvext", {}).get("pins", [])
        expect(created > 0 or notes, f"neither pinned nor told: {first}")
        equal(usage["cache_creation"]["ephemeral_1h_input_tokens"], created, "tokens kept for an hour")
        time.sleep(SETTLE_S)
        pins = self.client().request("GET", "/v1/pins").json()["data"]
        if created:
            expect(created in [pin["prefix_tokens"] - usage["cache_read_input_tokens"] for pin in pins],
                   f"{created} is none of {[pin['prefix_tokens'] for pin in pins]}")
        again = self.client().request("POST", MESSAGES, body).json()["usage"]
        equal(again["cache_creation_input_tokens"], 0, f"created by the same prompt again ({again})")
        expect(again["cache_read_input_tokens"] >= created, f"it was pinned and is gone: {again}")
        prompt = lambda u: u["input_tokens"] + u["cache_read_input_tokens"] + u["cache_creation_input_tokens"]
        equal(prompt(usage), prompt(again), "prompt tokens")
        return f"{created} created, then {again['cache_read_input_tokens']} read"

    def metrics(self) -> None:
        text = self.client().request("GET", "/metrics").body.decode()
        for name in ('mainstay_gateway_session_changes_total{change="started",why=""}',
                     'mainstay_gateway_session_changes_total{change="ended",why="final"}'):
            expect(name in text, f"{name} is not counted")


def main() -> None:
    given = options(__doc__).parse_args()
    checks = Checks(given.only)
    SessionChecks(checks, given.base_url, given.api_key, given.model).all()
    checks.finish()


if __name__ == "__main__":
    main()
