"""Whether every request that real clients were recorded to send gets a valid answer.

    mainstay serve --engine sim --script harness/replay.toml --any-model
    python replay.py --base-url URL --recordings FOLDER [--only TEXT]

FOLDER holds recordings, one JSON file a request (method, path, query, headers, body), in
folders of one session each. Bodies go out as they are, except what only their recorder
could know: ids that its own server gave (`previous_response_id` and calls that nothing in the body makes), which are
those of this server's answers here. An answer is valid when its status is right, each
body and event fits the official SDK's types, events come in their protocol's order, and
the same body without `stream` gets the same text, calls and token counts. That last asks
for an engine that answers a prompt alike each time, as the sim engine does. `--model NAME`
names another model in each body, for a server that takes only its own name.

Recordings are not part of the project: without FOLDER this says so and ends with status 77.
"""

import argparse
import copy
import json
import sys
import time
import typing
import urllib.error
import urllib.request
from pathlib import Path

from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import CompactedResponse, Response, ResponseStreamEvent
from pydantic import TypeAdapter

from checks import REQUEST_TIMEOUT_S, Checks, equal, expect
from harness.proxy import GENERATING, used

CANNOT = 77
# Headers that belong to the recorder's connection and credentials.
OWN_HEADERS = {"host", "content-length", "connection", "accept-encoding", "authorization", "x-api-key", "transfer-encoding"}
BODIES = {"messages": TypeAdapter(Message), "responses": TypeAdapter(Response), "chat": TypeAdapter(ChatCompletion)}
EVENTS = {"messages": TypeAdapter(RawMessageStreamEvent), "responses": TypeAdapter(ResponseStreamEvent),
          "chat": TypeAdapter(ChatCompletionChunk)}
COUNTED, COMPACTED = TypeAdapter(MessageTokensCount), TypeAdapter(CompactedResponse)
# What a WebSocket's handshake without its key may be told: that this is no such request, or to come by POST.
UPGRADE_STATUSES = {101, 400, 426}


class Replay:
    def __init__(self, base_url: str, model: str | None, api_key: str):
        self.base_url, self.model, self.api_key = base_url.rstrip("/"), model, api_key
        self.answered, self.events, self.pairs, self.prompt_tokens = 0, 0, 0, 0
        # Of this session: the last stored response here.
        self.last: dict | None = None

    def session(self, folder: Path) -> str:
        """All requests of one folder, in order; every fault of all of them is told."""
        self.last, faults, began = None, [], self.answered
        for path in sorted(folder.glob("*.json")):
            try:
                self.request(json.loads(path.read_text()))
                self.answered += 1
            except Exception as problem:  # The next request says more about the server than the end here.
                faults.append(f"{path.stem}: {type(problem).__name__}: {problem}")
        expect(not faults, f"{len(faults)} faults: " + "; ".join(fault[:300] for fault in faults))
        return f"{self.answered - began} requests"

    def request(self, recorded: dict) -> None:
        method, path, body = recorded["method"], recorded["path"], recorded.get("body")
        if method == "GET" and path == "/v1/responses":
            status, _, _ = self.send(recorded, None)
            expect(status in UPGRADE_STATUSES, f"a WebSocket's handshake got {status}")
            return
        if body is None:
            status, _, _ = self.send(recorded, None)
            equal(status, 200, f"status of {method} {path}")
            return
        body = self.ours(body)
        api = GENERATING.get(path)
        if api is None:
            self.other(recorded, path, body)
            return
        answer = self.valid(recorded, api, body)
        if body.get("stream"):
            # Both must say the same, whatever way a client falls back.
            whole = self.valid(recorded, api, {k: v for k, v in body.items() if k not in ("stream", "stream_options")})
            equal(said(api, whole), said(api, answer), "the body and the stream of one request")
            self.pairs += 1
        if api == "responses":
            self.last = answer

    def other(self, recorded: dict, path: str, body: dict) -> None:
        status, _, raw = self.send(recorded, body)
        if path.endswith("/compact"):
            # One recording leaves the model out to see it refused.
            equal(status, 200 if "model" in body else 400, f"status of {path}")
            if status == 200:
                COMPACTED.validate_json(raw)
            return
        equal(status, 200, f"status of {path}: {raw[:200]!r}")
        expect(COUNTED.validate_json(raw).input_tokens > 0, "nothing was counted")

    def ours(self, body: dict) -> dict:
        """The body with the ids and the model's name of this server."""
        body = copy.deepcopy(body)
        if self.model is not None and "model" in body:
            body["model"] = self.model
        if body.get("previous_response_id") and self.last:
            body["previous_response_id"] = self.last["id"]
            made = {item.get("call_id") for item in body["input"] if item.get("type") == "function_call"}
            calls = iter([item["call_id"] for item in self.last["output"] if item["type"] == "function_call"])
            for item in body["input"]:
                if item.get("type") == "function_call_output" and item["call_id"] not in made:
                    item["call_id"] = next(calls, item["call_id"])
        return body

    def send(self, recorded: dict, body: dict | None) -> tuple[int, str, bytes]:
        query = f"?{recorded['query']}" if recorded.get("query") else ""
        request = urllib.request.Request(self.base_url + recorded["path"] + query, method=recorded["method"],
                                         data=None if body is None else json.dumps(body).encode())
        for name, value in recorded["headers"]:
            if name.lower() not in OWN_HEADERS:
                request.add_header(name, value)
        request.add_header("authorization", f"Bearer {self.api_key}")
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as reply:
                return reply.status, reply.headers.get("content-type", ""), reply.read()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.headers.get("content-type", ""), refused.read()

    def valid(self, recorded: dict, api: str, body: dict) -> dict:
        """The whole answer, of which a stream's last event tells; what is wrong with it is raised."""
        status, kind, raw = self.send(recorded, body)
        equal(status, 200, f"status of {recorded['path']}: {raw[:300]!r}")
        if not body.get("stream"):
            BODIES[api].validate_json(raw)
            answer, events = json.loads(raw), []
        else:
            expect(kind.startswith("text/event-stream"), f"content-type {kind!r}")
            events = parse(api, raw)
            for event in events:
                EVENTS[api].validate_python(event)
            self.events += len(events)
            answer = ASSEMBLE[api](events)
        usage = used(api, raw, events)
        if usage is not None:
            self.prompt_tokens += usage.prompt
            expect(usage.prompt > 0 and 0 <= usage.cached <= usage.prompt, f"usage {usage}")
        else:
            asked = api != "chat" or not body.get("stream") or (body.get("stream_options") or {}).get("include_usage")
            expect(not asked, "no usage was told")
        return answer


def parse(api: str, raw: bytes) -> list[dict]:
    """The events of a whole stream; names must be those of the types."""
    events = []
    blocks = [block for block in raw.decode("utf-8").split("\n\n") if block.strip()]
    if api == "chat":
        equal(blocks.pop(), "data: [DONE]", "the end of a stream")
    for block in blocks:
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        if not lines:
            continue
        data = json.loads("\n".join(line[5:].strip() for line in lines if line.startswith("data:")))
        if api != "chat":
            equal([line[6:].strip() for line in lines if line.startswith("event:")], [data["type"]], "name of an event")
        events.append(data)
    expect(events, "an empty stream")
    return events


def assemble_messages(events: list[dict]) -> dict:
    """A message from its events, in the only order that clients take."""
    events = [event for event in events if event["type"] != "ping"]
    equal((events[0]["type"], events[-1]["type"]), ("message_start", "message_stop"), "first and last event")
    equal(events[-2]["type"], "message_delta", "the event before the last")
    message, open_block = copy.deepcopy(events[0]["message"]), None
    for event in events[1:-1]:
        kind = event["type"]
        if kind == "content_block_start":
            equal((open_block, event["index"]), (None, len(message["content"])), "a block begins")
            open_block = event["index"]
            message["content"].append({**event["content_block"], "json": ""})
        elif kind == "content_block_delta":
            equal(event["index"], open_block, "a delta's block")
            delta, block = event["delta"], message["content"][open_block]
            for name in ("text", "thinking", "signature"):
                if name in delta:
                    block[name] = block.get(name, "") + delta[name]
            block["json"] += delta.get("partial_json", "")
        elif kind == "content_block_stop":
            equal(event["index"], open_block, "a block ends")
            open_block = None
        else:
            equal((kind, open_block), ("message_delta", None), "an event between blocks")
            message |= event["delta"]
            message["usage"] = {**message["usage"], **event["usage"]}
    for block in message["content"]:
        text = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(text or "{}")
    return message


def assemble_responses(events: list[dict]) -> dict:
    """The response of the last event, once all others have been seen to lead there."""
    equal([event["sequence_number"] for event in events], list(range(len(events))), "sequence numbers")
    equal([event["type"] for event in events[:2]], ["response.created", "response.in_progress"], "first events")
    expect(events[-1]["type"] in ("response.completed", "response.incomplete"), f"the last event is {events[-1]['type']}")
    done, open_items, text = [], set(), {}
    for event in events[2:-1]:
        kind, index = event["type"], event.get("output_index")
        if kind == "response.output_item.added":
            open_items.add(index)
        elif kind == "response.output_item.done":
            open_items.remove(index)
            done.append(event["item"])
        else:
            expect(index in open_items, f"{kind} outside its item")
        if kind == "response.output_text.delta":
            text[index] = text.get(index, "") + event["delta"]
    expect(not open_items, f"items {open_items} never ended")
    answer = events[-1]["response"]
    equal(done, answer["output"], "items of the stream and of the response")
    for index, joined in text.items():
        equal(joined, answer["output"][index]["content"][0]["text"], "deltas joined")
    return answer


def assemble_chat(events: list[dict]) -> dict:
    """A completion from its chunks."""
    equal(len({event["id"] for event in events}), 1, "ids of one stream")
    choices: dict[int, dict] = {}
    usage = None
    for event in events:
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            got = choices.setdefault(choice["index"], {"message": {"content": "", "tool_calls": []}, "finish_reason": None})
            expect(got["finish_reason"] is None, "a delta after the end of its choice")
            got["finish_reason"] = choice.get("finish_reason")
            delta = choice["delta"]
            got["message"]["content"] += delta.get("content") or ""
            for part in delta.get("tool_calls") or []:
                if part["index"] == len(got["message"]["tool_calls"]):
                    got["message"]["tool_calls"].append({"function": {"name": part["function"]["name"], "arguments": ""}})
                call = got["message"]["tool_calls"][part["index"]]
                call["function"]["arguments"] += part["function"].get("arguments") or ""
    expect(all(choice["finish_reason"] for choice in choices.values()), "a choice never ended")
    return {"choices": [choices[index] for index in sorted(choices)], "usage": usage}


ASSEMBLE: dict[str, typing.Callable[[list[dict]], dict]] = {
    "messages": assemble_messages, "responses": assemble_responses, "chat": assemble_chat,
}


def said(api: str, answer: dict) -> list:
    """Text, thinking and calls of an answer, and why it ended."""
    if api == "messages":
        parts = [(b["type"], b.get("text") or b.get("thinking") or (b.get("name"), b.get("input"))) for b in answer["content"]]
        return [*parts, answer["stop_reason"], answer["usage"]["output_tokens"]]
    if api == "responses":
        parts = []
        for item in answer["output"]:
            texts = [part["text"] for part in (item.get("content") or []) + (item.get("summary") or [])]
            parts.append((item["type"], item.get("name"), item.get("arguments") or item.get("input"), texts))
        return [*parts, answer["status"], answer["usage"]["output_tokens"]]
    choices = []
    for choice in answer["choices"]:
        message = choice["message"]
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or []]
        choices.append((message.get("content") or "", calls, choice["finish_reason"]))
    return choices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--recordings", type=Path)
    parser.add_argument("--model", help="the model to name in every request [default: as recorded]")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--only", default="", help="replay the sessions whose name contains this")
    arguments = parser.parse_args()
    if arguments.recordings is None or not arguments.recordings.is_dir():
        print("skipped: no recordings; give their folder with --recordings")
        sys.exit(CANNOT)
    checks, replay = Checks(arguments.only), Replay(arguments.base_url, arguments.model, arguments.api_key)
    folders = sorted({path.parent for path in arguments.recordings.rglob("*.json") if path.parent != arguments.recordings})
    began_s = time.monotonic()
    for folder in folders:
        checks.run(str(folder.relative_to(arguments.recordings)), lambda: replay.session(folder))
    print(f"{replay.answered} requests, {replay.events} events, {replay.pairs} streams equal to their bodies, "
          f"{replay.prompt_tokens} prompt tokens in {time.monotonic() - began_s:.1f} s")
    checks.finish()


if __name__ == "__main__":
    main()
