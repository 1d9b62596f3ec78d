"""Whether the official openai and anthropic SDKs get from a server what they expect.

Chat completions, responses and messages are three doors to one model: at temperature 0
the same conversation must give the same text, tool call and token counts through each.
Besides turns, streams and tools this checks caching figures, hints, and every body and
stream event against the SDKs' own types.

    python sdk_check.py --base-url http://127.0.0.1:8000 --model demo [--only NAME] [--any-answer]

`--any-answer` leaves out what only the bundled demo model can be held to: that it calls
get_weather for Oslo and repeats what the tool said.
"""

import json
import secrets
import typing

from anthropic.types import Message, RawMessageStreamEvent
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from checks import Checks, Server, equal, expect, options
from endpoints import Called, Chat, Messages, Responses, Returned, Said, Tool



def schema(**properties: str) -> dict:
    """All arguments required and no others, which is what a strict tool means."""
    return {"type": "object", "properties": {name: {"type": kind} for name, kind in properties.items()},
            "required": list(properties), "additionalProperties": False}


WEATHER = Tool("get_weather", "Current weather for a city", schema(city="string"))
OTHER_TOOLS = [
    Tool("read_file", "Read a text file", schema(path="string")),
    Tool("run_tests", "Run the tests of a module", schema(target="string")),
    Tool("search", "Search the documentation", schema(query="string")),
    Tool("add", "Add two numbers", schema(a="number", b="number")),
]
TOOLS = [WEATHER, *OTHER_TOOLS]
HELLO = [Said("user", "Hello!")]
WHO = [Said("system", "You are a helpful agent."), Said("user", "Who are you?")]
OSLO = [Said("user", "What is the weather in Oslo?")]
SKY = json.dumps({"city": "Oslo", "temp_c": -4, "sky": "snowy"})
HINTS = {
    "nvext": {
        "agent_hints": {"priority": 5, "osl": 64, "speculative_prefill": True, "latency_sensitivity": 0.5},
        "cache_control": {"type": "ephemeral", "ttl": "1h"},
    }
}
EPHEMERAL = {"type": "ephemeral", "ttl": "1h"}


class SdkChecks:
    def __init__(self, checks: Checks, server: Server, model: str, any_answer: bool):
        self.checks, self.server, self.model, self.any_answer = checks, server, model, any_answer
        base, key = server.base_url, server.api_key
        self.chat, self.responses, self.messages = (kind(base, model, key) for kind in (Chat, Responses, Messages))
        self.endpoints = (self.chat, self.responses, self.messages)

    def each(self, name: str, check) -> None:
        for endpoint in self.endpoints:
            self.checks.run(f"{endpoint.name} {name}", lambda endpoint=endpoint: check(endpoint))

    def all(self) -> None:
        self.checks.run("models through both SDKs", self.models)
        self.each("plain turn", self.plain)
        self.each("stream gives the same text", self.streamed)
        self.each("tool call", self.tool_call)
        self.each("streamed tool call", self.streamed_tool_call)
        self.each("tool result turn", self.result_turn)
        self.checks.run("responses by previous_response_id", self.result_by_id)
        self.checks.run("same conversation, same answers everywhere", self.same_everywhere)
        self.checks.run("count_tokens equals the prompt of the call", self.count)
        self.each("output limit is reported", self.limited)
        self.each("stop sequence ends the text", self.stopped)
        self.each("second identical call is cached", self.cached)
        self.checks.run("messages cache breakpoints are counted", self.breakpoints)
        self.each("nvext hints and pin are accepted", self.hinted)
        self.each("body fits the SDK's types", self.strict_body)
        self.each("stream events fit the SDK's types", self.strict_events)

    def models(self) -> str:
        for client in (self.chat.client, self.messages.client):
            names = [model.id for model in client.models.list()]
            expect(self.model in names, f"{self.model} is not in {names}")
        return ", ".join(names)

    def plain(self, endpoint) -> str:
        reply = endpoint.ask(WHO)
        equal(reply.stop, "end", "stop reason")
        equal(reply.calls, [], "tool calls")
        expect(reply.text, "the text is empty")
        expect(reply.usage.prompt > 0 and reply.usage.output > 0, f"usage is {reply.usage}")
        expect(0 <= reply.usage.cached <= reply.usage.prompt, f"usage is {reply.usage}")
        return reply.text

    def streamed(self, endpoint) -> str:
        for conversation in (WHO, HELLO):
            whole, stream = endpoint.ask(conversation), endpoint.stream(conversation)
            equal("".join(stream.pieces), whole.text, "streamed text")
            equal(stream.text, whole.text, "text the SDK put together")
            equal(stream.stop, whole.stop, "stop reason")
            equal((stream.usage.prompt, stream.usage.output), (whole.usage.prompt, whole.usage.output), "usage")
        expect(len(stream.pieces) > 1, "the whole text came as one piece")
        return f"{len(stream.pieces)} pieces"

    def expect_oslo(self, reply) -> str:
        if self.any_answer:
            return f"{len(reply.calls)} calls"
        equal(reply.stop, "tool", "stop reason")
        equal([(c.name, c.arguments) for c in reply.calls], [("get_weather", {"city": "Oslo"})], "tool calls")
        expect(reply.calls[0].id, "the call has no id")
        expect("<tool_call>" not in reply.text and "<think>" not in reply.text, f"markup in the text: {reply.text}")
        return f"{reply.calls[0].name} {json.dumps(reply.calls[0].arguments)}"

    def tool_call(self, endpoint) -> str:
        return self.expect_oslo(endpoint.ask(OSLO, TOOLS))

    def streamed_tool_call(self, endpoint) -> str:
        stream = endpoint.stream(OSLO, TOOLS)
        whole = endpoint.ask(OSLO, TOOLS)
        equal([(c.name, c.arguments) for c in stream.calls], [(c.name, c.arguments) for c in whole.calls], "calls")
        equal("".join(stream.pieces), whole.text, "text beside the call")
        return self.expect_oslo(stream)

    def expect_weather(self, reply) -> str:
        if not self.any_answer:
            equal(reply.stop, "end", "stop reason")
            expect("Oslo" in reply.text and "-4" in reply.text and "snowy" in reply.text, f"answer is {reply.text!r}")
        return reply.text

    def result_turn(self, endpoint) -> str:
        first = endpoint.ask(OSLO, TOOLS)
        expect(first.calls or self.any_answer, "no tool call to answer")
        results = [Returned(call.id, SKY) for call in first.calls]
        return self.expect_weather(endpoint.follow(OSLO, first, results, TOOLS))

    def result_by_id(self) -> str:
        first = self.responses.ask(OSLO, TOOLS, store=True)
        expect(first.calls, "no tool call to answer")
        results = [Returned(call.id, SKY) for call in first.calls]
        return self.expect_weather(self.responses.follow_by_id(first, results, TOOLS))

    def same_everywhere(self) -> str:
        call = Called("call_1", "get_weather", {"city": "Oslo"})
        conversations = {
            "greeting": (HELLO, []),
            "system prompt": (WHO, []),
            "tools": (OSLO, TOOLS),
            "tool result": ([*OSLO, call, Returned("call_1", SKY)], TOOLS),
            "second request": ([*OSLO, call, Returned("call_1", SKY), Said("assistant", "It is cold."),
                                Said("user", "What is 3 plus 4?")], TOOLS),
        }
        for name, (conversation, tools) in conversations.items():
            replies = [endpoint.ask(conversation, tools) for endpoint in self.endpoints]
            said = {(r.text, json.dumps([(c.name, c.arguments) for c in r.calls]), r.stop) for r in replies}
            expect(len(said) == 1, f"{name}: answers differ: {sorted(said)}")
            counts = {(r.usage.prompt, r.usage.output) for r in replies}
            expect(len(counts) == 1, f"{name}: token counts differ: {[r.usage for r in replies]}")
        return f"{len(conversations)} conversations"

    def count(self) -> str:
        for conversation, tools in ((HELLO, []), (WHO, []), (OSLO, TOOLS)):
            counted = self.messages.count(conversation, tools)
            equal(counted, self.messages.ask(conversation, tools).usage.prompt, "counted tokens")
        return f"{counted} tokens"

    def limited(self, endpoint) -> str:
        # The Responses API of the reference service refuses limits below 16; some servers copy that.
        whole = endpoint.ask(WHO)
        limit = whole.usage.output - 1
        expect(limit > 0, "the answer is too short to be cut")
        cut = endpoint.ask(WHO, max_tokens=limit)
        equal(cut.stop, "length", "stop reason")
        equal(cut.usage.output, limit, "output tokens")
        expect(whole.text.startswith(cut.text), f"{cut.text!r} does not begin {whole.text!r}")
        return f"at {limit} tokens"

    def stopped(self, endpoint) -> str:
        if endpoint is self.responses:
            return "this API has no stop sequences"
        whole = endpoint.ask(WHO).text
        words = whole.split()
        word = words[len(words) // 2]
        cut = endpoint.ask(WHO, **{"stop": [word]} if endpoint is self.chat else {"stop_sequences": [word]})
        equal(cut.text, whole[: whole.index(word)], "text before the stop sequence")
        if endpoint is self.messages:
            equal((cut.raw.stop_reason, cut.raw.stop_sequence), ("stop_sequence", word), "stop reason")
        return f"at {word!r}"

    def cached(self, endpoint) -> str:
        # A nonce first, so that nothing earlier in this run or another has it cached.
        conversation = [Said("system", f"Case {secrets.token_hex(8)}. You are a helpful agent."), *OSLO]
        first, second = endpoint.ask(conversation, TOOLS), endpoint.ask(conversation, TOOLS)
        equal(second.usage.prompt, first.usage.prompt, "prompt tokens of the same request")
        expect(second.usage.cached > 0, f"nothing cached: first {first.usage}, second {second.usage}")
        expect(second.usage.cached < second.usage.prompt, f"at least one token must be computed: {second.usage}")
        expect(first.usage.cached < second.usage.cached, f"cached before it was ever sent: {first.usage}")
        equal(second.text, first.text, "text from the cache")
        equal([c.arguments for c in second.calls], [c.arguments for c in first.calls], "arguments from the cache")
        return f"{second.usage.cached} of {second.usage.prompt} tokens"

    def breakpoints(self) -> str:
        body = self.messages.body(OSLO, TOOLS)
        text = f"Case {secrets.token_hex(8)}. You are a helpful agent."
        body["system"] = [{"type": "text", "text": text, "cache_control": EPHEMERAL}]
        body["tools"][-1]["cache_control"] = EPHEMERAL
        first = self.messages.send(body).usage
        second = self.messages.send(body).usage
        expect(first.created > 0, f"the first call created nothing in the cache: {first}")
        expect(second.cached > 0, f"the second call read nothing from the cache: {second}")
        expect(second.created < first.created, f"created again what was there: {first}, {second}")
        equal(first.prompt, second.prompt, "prompt tokens of the same request")
        return f"created {first.created}, then read {second.cached}"

    def hinted(self, endpoint) -> str:
        plain = endpoint.ask(OSLO, TOOLS)
        hinted = endpoint.ask(OSLO, TOOLS, extra_body=HINTS)
        equal([c.arguments for c in hinted.calls], [c.arguments for c in plain.calls], "arguments with hints")
        equal(hinted.text, plain.text, "text with hints")
        return None

    def strict_body(self, endpoint) -> str:
        kind = {"chat": ChatCompletion, "responses": Response, "messages": Message}[endpoint.name]
        for conversation, tools in ((WHO, []), (OSLO, TOOLS)):
            answer = self.server.request("POST", endpoint.path, endpoint.body(conversation, tools))
            equal(answer.status, 200, "status")
            expect(answer.headers["content-type"].startswith("application/json"), f"headers are {answer.headers}")
            TypeAdapter(kind).validate_python(answer.json(), strict=False)
            equal(answer.json()["model"], self.model, "model named in the body")
        return None

    def strict_events(self, endpoint) -> str:
        check = {"chat": chat_events, "responses": responses_events, "messages": messages_events}[endpoint.name]
        more = {"stream_options": {"include_usage": True}} if endpoint is self.chat else {}
        counts = []
        for conversation, tools in ((WHO, []), (OSLO, TOOLS)):
            body = endpoint.body(conversation, tools, stream=True, **more)
            counts.append(check(list(self.server.events(endpoint.path, body))))
        return f"{sum(counts)} events"


def fits_event(union: object, event: dict) -> None:
    """Checks an event against the member of the SDK's union that its type names."""
    members = typing.get_args(typing.get_args(union)[0])
    named = [m for m in members if event["type"] in typing.get_args(m.model_fields["type"].annotation)]
    expect(named, f"the SDK knows no event {event['type']!r}")
    TypeAdapter(named[0]).validate_python(event)


def chat_events(events: list) -> int:
    """Chunks of one id, a role first, one finish reason, usage alone in the last, then [DONE]."""
    equal(events[-1][1], "[DONE]", "last event")
    chunks = [json.loads(data) for _, data in events[:-1]]
    for chunk in chunks:
        TypeAdapter(ChatCompletionChunk).validate_python(chunk)
    equal(len({chunk["id"] for chunk in chunks}), 1, "number of ids in one stream")
    equal(chunks[0]["choices"][0]["delta"].get("role"), "assistant", "role in the first chunk")
    reasons = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"] and c["choices"][0].get("finish_reason")]
    equal(len(reasons), 1, "number of finish reasons")
    equal(chunks[-1]["choices"], [], "choices of the usage chunk")
    expect(chunks[-1]["usage"]["total_tokens"] > 0, "no usage in the last chunk")
    return len(chunks)


def responses_events(events: list) -> int:
    """Named as typed, numbered without a gap, created first, completed last."""
    parsed = [(name, json.loads(data)) for name, data in events if data != "[DONE]"]
    for position, (name, event) in enumerate(parsed):
        fits_event(ResponseStreamEvent, event)
        equal(name, event["type"], "event name")
        equal(event["sequence_number"], position, "sequence number")
    equal(parsed[0][0], "response.created", "first event")
    equal(parsed[-1][0], "response.completed", "last event")
    added = sum(name == "response.output_item.added" for name, _ in parsed)
    done = sum(name == "response.output_item.done" for name, _ in parsed)
    equal((added, done), (len(parsed[-1][1]["response"]["output"]),) * 2, "items added and done")
    return len(parsed)


def messages_events(events: list) -> int:
    """Named as typed; start, blocks one after another, delta with the stop reason, stop."""
    parsed = [(name, json.loads(data)) for name, data in events]
    parsed = [(name, event) for name, event in parsed if name != "ping"]
    open_block, blocks = None, 0
    for name, event in parsed:
        fits_event(RawMessageStreamEvent, event)
        equal(name, event["type"], "event name")
        if name == "content_block_start":
            expect(open_block is None, "a block started inside another")
            equal(event["index"], blocks, "block index")
            open_block, blocks = event["index"], blocks + 1
        elif name == "content_block_delta":
            equal(event["index"], open_block, "index of a delta")
        elif name == "content_block_stop":
            equal(event["index"], open_block, "index of a stop")
            open_block = None
    equal([name for name, _ in parsed][:1] + [name for name, _ in parsed][-2:],
          ["message_start", "message_delta", "message_stop"], "first and last events")
    expect(parsed[-2][1]["delta"]["stop_reason"], "no stop reason")
    expect(parsed[-2][1]["usage"]["output_tokens"] > 0, "no output tokens")
    return len(parsed)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--any-answer", action="store_true", help="do not hold the model to the demo model's answers")
    given = parser.parse_args()
    checks = Checks(given.only)
    SdkChecks(checks, Server(given.base_url, given.api_key), given.model, given.any_answer).all()
    checks.finish()


if __name__ == "__main__":
    main()
