"""One small conversation type, spoken through the official SDK of each endpoint.

`Chat`, `Responses` and `Messages` have the same methods, so that a check can ask all
three the same thing and compare. A conversation is a list of `Said`, `Called` and
`Returned`; each class turns it into its protocol and the reply back into `Reply`.
"""

import json
from dataclasses import dataclass, field

import anthropic
import openai

from checks import REQUEST_TIMEOUT_S, expect

MAX_TOKENS = 200


@dataclass(frozen=True)
class Said:
    role: str
    text: str


@dataclass(frozen=True)
class Called:
    id: str
    name: str
    arguments: dict


@dataclass(frozen=True)
class Returned:
    id: str
    text: str


@dataclass(frozen=True)
class Tool:
    name: str
    description: str
    parameters: dict


@dataclass
class Usage:
    """Counts in one meaning: `prompt` includes what came from the cache."""

    prompt: int
    output: int
    cached: int
    created: int = 0


@dataclass
class Reply:
    text: str
    calls: list[Called]
    usage: Usage
    stop: str
    id: str
    # What the SDK gave, to be handed back in a following turn.
    raw: object = None
    # Pieces of text in the order they came, for streams.
    pieces: list[str] = field(default_factory=list)


STOP_WORDS = {
    "stop": "end", "end_turn": "end", "completed": "end",
    "stop_sequence": "end",
    "tool_calls": "tool", "tool_use": "tool",
    "length": "length", "max_tokens": "length", "max_output_tokens": "length",
}


class Chat:
    name = "chat"
    path = "/v1/chat/completions"

    def __init__(self, base_url: str, model: str, api_key: str):
        self.model = model
        self.client = openai.OpenAI(base_url=base_url + "/v1", api_key=api_key, max_retries=0, timeout=REQUEST_TIMEOUT_S)

    def body(self, conversation: list, tools: list[Tool], max_tokens: int = MAX_TOKENS, **more) -> dict:
        messages = []
        for part in conversation:
            if isinstance(part, Said):
                messages.append({"role": part.role, "content": part.text})
            elif isinstance(part, Called):
                function = {"name": part.name, "arguments": json.dumps(part.arguments)}
                messages.append({"role": "assistant", "content": None,
                                 "tool_calls": [{"id": part.id, "type": "function", "function": function}]})
            else:
                messages.append({"role": "tool", "tool_call_id": part.id, "content": part.text})
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": max_tokens, **more}
        if tools:
            body["tools"] = [{"type": "function", "function": {
                "name": t.name, "description": t.description, "parameters": t.parameters,
                # The SDK's stream helper takes only strict tools.
                "strict": True}}
                             for t in tools]
        return body

    def ask(self, conversation: list, tools: list[Tool] = (), **more) -> Reply:
        return self.reply(self.client.chat.completions.create(**self.body(conversation, tools, **more)))

    def reply(self, got) -> Reply:
        message, used = got.choices[0].message, got.usage
        calls = [Called(c.id, c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls or []]
        expect(used.total_tokens == used.prompt_tokens + used.completion_tokens, f"total_tokens does not add up: {used}")
        details = used.prompt_tokens_details
        usage = Usage(used.prompt_tokens, used.completion_tokens, (details and details.cached_tokens) or 0)
        return Reply(message.content or "", calls, usage, STOP_WORDS[got.choices[0].finish_reason], got.id, got)

    def stream(self, conversation: list, tools: list[Tool] = (), **more) -> Reply:
        pieces = []
        body = self.body(conversation, tools, **more)
        with self.client.chat.completions.stream(**body, stream_options={"include_usage": True}) as events:
            for event in events:
                if event.type == "content.delta":
                    pieces.append(event.delta)
            reply = self.reply(events.get_final_completion())
        reply.pieces = pieces
        return reply

    def follow(self, conversation: list, first: Reply, results: list[Returned], tools: list[Tool]) -> Reply:
        """The turn after tool calls, handing back the SDK's own message object."""
        body = self.body(conversation, tools)
        body["messages"].append(first.raw.choices[0].message.model_dump(exclude_none=True))
        body["messages"] += [{"role": "tool", "tool_call_id": r.id, "content": r.text} for r in results]
        return self.reply(self.client.chat.completions.create(**body))


class Responses:
    name = "responses"
    path = "/v1/responses"

    def __init__(self, base_url: str, model: str, api_key: str):
        self.model = model
        self.client = openai.OpenAI(base_url=base_url + "/v1", api_key=api_key, max_retries=0, timeout=REQUEST_TIMEOUT_S)

    def body(self, conversation: list, tools: list[Tool], max_tokens: int = MAX_TOKENS, **more) -> dict:
        items = []
        for part in conversation:
            if isinstance(part, Said):
                items.append({"role": part.role, "content": part.text})
            elif isinstance(part, Called):
                items.append({"type": "function_call", "call_id": part.id, "name": part.name,
                              "arguments": json.dumps(part.arguments)})
            else:
                items.append({"type": "function_call_output", "call_id": part.id, "output": part.text})
        body = {"model": self.model, "input": items, "temperature": 0, "max_output_tokens": max_tokens, **more}
        if tools:
            body["tools"] = [{"type": "function", "name": t.name, "description": t.description,
                              "parameters": t.parameters, "strict": True} for t in tools]
        return body

    def ask(self, conversation: list, tools: list[Tool] = (), **more) -> Reply:
        return self.reply(self.client.responses.create(**self.body(conversation, tools, **more)))

    def reply(self, got) -> Reply:
        calls = [Called(o.call_id, o.name, json.loads(o.arguments)) for o in got.output if o.type == "function_call"]
        used = got.usage
        expect(used.total_tokens == used.input_tokens + used.output_tokens, f"total_tokens does not add up: {used}")
        stop = "tool" if calls else "end" if got.status == "completed" else STOP_WORDS[got.incomplete_details.reason]
        usage = Usage(used.input_tokens, used.output_tokens, used.input_tokens_details.cached_tokens)
        return Reply(got.output_text, calls, usage, stop, got.id, got)

    def stream(self, conversation: list, tools: list[Tool] = (), **more) -> Reply:
        pieces = []
        with self.client.responses.stream(**self.body(conversation, tools, **more)) as events:
            for event in events:
                if event.type == "response.output_text.delta":
                    pieces.append(event.delta)
            reply = self.reply(events.get_final_response())
        reply.pieces = pieces
        return reply

    def follow(self, conversation: list, first: Reply, results: list[Returned], tools: list[Tool]) -> Reply:
        body = self.body(conversation, tools)
        body["input"] += [item.model_dump(exclude_none=True) for item in first.raw.output]
        body["input"] += [{"type": "function_call_output", "call_id": r.id, "output": r.text} for r in results]
        return self.reply(self.client.responses.create(**body))

    def follow_by_id(self, first: Reply, results: list[Returned], tools: list[Tool]) -> Reply:
        """The same turn, with the server remembering what was said before."""
        body = self.body([], tools, previous_response_id=first.id)
        body["input"] = [{"type": "function_call_output", "call_id": r.id, "output": r.text} for r in results]
        return self.reply(self.client.responses.create(**body))


class Messages:
    name = "messages"
    path = "/v1/messages"

    def __init__(self, base_url: str, model: str, api_key: str):
        self.model = model
        self.client = anthropic.Anthropic(base_url=base_url, api_key=api_key, max_retries=0, timeout=REQUEST_TIMEOUT_S)

    def prompt(self, conversation: list, tools: list[Tool]) -> dict:
        messages, system = [], None
        for part in conversation:
            if isinstance(part, Said) and part.role == "system":
                system = part.text
            elif isinstance(part, Said):
                messages.append({"role": part.role, "content": part.text})
            elif isinstance(part, Called):
                use = {"type": "tool_use", "id": part.id, "name": part.name, "input": part.arguments}
                messages.append({"role": "assistant", "content": [use]})
            else:
                result = {"type": "tool_result", "tool_use_id": part.id, "content": part.text}
                messages.append({"role": "user", "content": [result]})
        body = {"model": self.model, "messages": messages}
        if system is not None:
            body["system"] = system
        if tools:
            body["tools"] = [{"name": t.name, "description": t.description, "input_schema": t.parameters} for t in tools]
        return body

    def body(self, conversation: list, tools: list[Tool], max_tokens: int = MAX_TOKENS, **more) -> dict:
        return {**self.prompt(conversation, tools), "temperature": 0, "max_tokens": max_tokens, **more}

    def arguments(self, body: dict) -> dict:
        """The body as arguments of the SDK, which since 2.x has none for the temperature."""
        rest = {key: value for key, value in body.items() if key not in ("temperature", "extra_body")}
        return {**rest, "extra_body": {"temperature": body["temperature"], **body.get("extra_body", {})}}

    def send(self, body: dict) -> Reply:
        return self.reply(self.client.messages.create(**self.arguments(body)))

    def ask(self, conversation: list, tools: list[Tool] = (), **more) -> Reply:
        return self.send(self.body(conversation, tools, **more))

    def reply(self, got) -> Reply:
        text = "".join(block.text for block in got.content if block.type == "text")
        calls = [Called(b.id, b.name, b.input) for b in got.content if b.type == "tool_use"]
        used = got.usage
        cached, created = used.cache_read_input_tokens or 0, used.cache_creation_input_tokens or 0
        usage = Usage(used.input_tokens + cached + created, used.output_tokens, cached, created)
        return Reply(text, calls, usage, STOP_WORDS[got.stop_reason], got.id, got)

    def stream(self, conversation: list, tools: list[Tool] = (), **more) -> Reply:
        pieces = []
        with self.client.messages.stream(**self.arguments(self.body(conversation, tools, **more))) as events:
            for event in events:
                if event.type == "text":
                    pieces.append(event.text)
            reply = self.reply(events.get_final_message())
        reply.pieces = pieces
        return reply

    def follow(self, conversation: list, first: Reply, results: list[Returned], tools: list[Tool]) -> Reply:
        body = self.body(conversation, tools)
        body["messages"].append({"role": "assistant", "content": first.raw.content})
        content = [{"type": "tool_result", "tool_use_id": r.id, "content": r.text} for r in results]
        body["messages"].append({"role": "user", "content": content})
        return self.send(body)

    def count(self, conversation: list, tools: list[Tool] = ()) -> int:
        return self.client.messages.count_tokens(**self.prompt(conversation, tools)).input_tokens
