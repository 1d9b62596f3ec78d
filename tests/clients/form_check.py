"""Whether answers have the form that was asked for, through all three endpoints.

Schemas of formats, calls that must come, strict tools, grammars that make no sense: what
comes back must parse and fit every time, greedy and sampled, whole and streamed. With
`--rates` it prints tokens a second with and without a form instead of checking.

    python form_check.py --base-url http://127.0.0.1:8000 --model demo [--only NAME] [--rates]
"""

import argparse
import json
import time

from checks import Checks, Server, equal, expect

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
TITLE = {"type": "object", "properties": {"title": {"type": "string", "maxLength": 24}, "kind": {"enum": ["bug", "wish"]},
                                          "votes": {"type": "integer", "minimum": 0, "maximum": 9}},
         "required": ["title", "kind", "votes"], "additionalProperties": False}
ARGUMENTS = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 16}, "unit": {"enum": ["C", "F"]}},
             "required": ["city", "unit"], "additionalProperties": False}
ASK = "What is the weather in Oslo?"


def function(path: str, name: str = "get_weather", strict: bool = False) -> dict:
    """A tool in an endpoint's own form."""
    if path == MESSAGES:
        return {"name": name, "description": "d", "input_schema": ARGUMENTS, **({"strict": True} if strict else {})}
    plain = {"name": name, "description": "d", "parameters": ARGUMENTS, **({"strict": True} if strict else {})}
    return {"type": "function", **plain} if path == RESPONSES else {"type": "function", "function": plain}


def body(path: str, model: str, text: str, /, **more: object) -> dict:
    limit = "max_output_tokens" if path == RESPONSES else "max_tokens"
    ask = {"input": text} if path == RESPONSES else {"messages": [{"role": "user", "content": text}]}
    return {"model": model, limit: 400, **ask, **more}


def formatted(path: str, schema: dict) -> dict:
    """What asks for a schema."""
    if path == CHAT:
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "t", "strict": True, "schema": schema}}}
    form = {"type": "json_schema", "name": "t", "strict": True, "schema": schema}
    return {"text": {"format": form}} if path == RESPONSES else {"output_config": {"format": form}}


def choice(path: str, name: str | None) -> dict:
    """What asks for a call, of this tool or of any."""
    if path == MESSAGES:
        return {"tool_choice": {"type": "tool", "name": name} if name else {"type": "any"}}
    if name is None:
        return {"tool_choice": "required"}
    named = {"type": "function", "name": name}
    return {"tool_choice": named if path == RESPONSES else {"type": "function", "function": {"name": name}}}


def parts(path: str, answer: dict) -> tuple[str, list[tuple[str, dict]]]:
    """The text and the calls of an answer."""
    if path == CHAT:
        message = answer["choices"][0]["message"]
        calls = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in message.get("tool_calls") or []]
        return message.get("content") or "", calls
    if path == MESSAGES:
        blocks = answer["content"]
        return ("".join(b["text"] for b in blocks if b["type"] == "text"),
                [(b["name"], b["input"]) for b in blocks if b["type"] == "tool_use"])
    items = answer["output"]
    text = "".join(c["text"] for i in items if i["type"] == "message" for c in i["content"])
    return text, [(i["name"], json.loads(i["arguments"])) for i in items if i["type"] == "function_call"]


def is_cut(path: str, answer: dict) -> bool:
    """Whether an answer ended at its limit, and says so."""
    if path == CHAT:
        return answer["choices"][0]["finish_reason"] == "length"
    if path == MESSAGES:
        return answer["stop_reason"] == "max_tokens"
    return (answer["incomplete_details"] or {}).get("reason") == "max_output_tokens"


def fits_title(text: str) -> str:
    value = json.loads(text)
    equal(sorted(value), ["kind", "title", "votes"], "members")
    expect(len(value["title"]) <= 24 and value["kind"] in ("bug", "wish") and 0 <= value["votes"] <= 9, text)
    return text


def fits_weather(call: tuple[str, dict], name: str) -> None:
    equal(call[0], name, "the tool")
    equal(sorted(call[1]), ["city", "unit"], "arguments")
    expect(call[1]["unit"] in ("C", "F") and len(call[1]["city"]) <= 16, f"{call}")


class Forms:
    def __init__(self, server: Server, model: str):
        self.server, self.model = server, model

    def answer(self, path: str, **more: object) -> dict:
        got = self.server.request("POST", path, body(path, self.model, more.pop("ask", ASK), **more))
        equal(got.status, 200, got.body.decode()[:300])
        return got.json()

    def schema(self, path: str) -> str:
        seen, cut = set(), 0
        for temperature in (0, 1.0, 1.0, 1.0, 1.0):
            answer = self.answer(path, ask="Give it a title.", temperature=temperature, **formatted(path, TITLE))
            text, calls = parts(path, answer)
            equal(calls, [], "calls")
            # A thought may come before the form, and a sampling model thinks until the limit now and then.
            if temperature and is_cut(path, answer):
                cut += 1
            else:
                seen.add(fits_title(text))
        expect(cut < 2, f"{cut} answers were thoughts up to the limit")
        return next(iter(seen))

    def stream(self) -> None:
        asked = body(CHAT, self.model, "Title?", stream=True, temperature=0, **formatted(CHAT, TITLE))
        text = ""
        for _, data in self.server.events(CHAT, asked):
            if data != "[DONE]":
                for one in json.loads(data)["choices"]:
                    text += one["delta"].get("content") or ""
        fits_title(text)

    def any_object(self) -> str:
        asked = self.answer(CHAT, ask="Say something as JSON.", response_format={"type": "json_object"}, temperature=0)
        if is_cut(CHAT, asked):
            return "cut at the limit"
        expect(isinstance(json.loads(parts(CHAT, asked)[0]), dict), "an object")
        return parts(CHAT, asked)[0][:40]

    def required(self, path: str) -> None:
        tools = [function(path), function(path, "get_forecast")]
        for text in (ASK, "Hello!"):
            for name in (None, "get_forecast"):
                answer = self.answer(path, ask=text, tools=tools, temperature=0, **choice(path, name))
                calls = parts(path, answer)[1]
                expect(calls, f"a call for {text!r}: {answer}")
                for call in calls:
                    fits_weather(call, name or call[0])

    def strict(self, path: str) -> str:
        answer = self.answer(path, tools=[function(path, strict=True)], temperature=0)
        text, calls = parts(path, answer)
        for call in calls:
            fits_weather(call, "get_weather")
        free, _ = parts(path, self.answer(path, ask="Hello!", tools=[function(path, strict=True)], temperature=0))
        expect(free, "text is free")
        return f"{len(calls)} calls, {text!r}, {free!r}"

    def refused(self) -> None:
        deep: dict = {}
        for _ in range(60):
            deep = {"items": deep}
        bad = [{"type": "wish"}, {"type": "string", "pattern": "("}, {"$ref": "#/nowhere"}, deep,
               {"type": "integer", "minimum": 3, "maximum": 1}]
        for path in (CHAT, RESPONSES, MESSAGES):
            for schema in bad:
                for stream in (False, True):
                    asked = body(path, self.model, "x", stream=stream, **formatted(path, schema))
                    got = self.server.request("POST", path, asked)
                    equal(got.status, 400, f"{path} {json.dumps(schema)[:60]}: {got.body.decode()[:200]}")
            asked = body(path, self.model, "x", tools=[function(path)], **choice(path, "sing"))
            equal(self.server.request("POST", path, asked).status, 400, "a tool that was not offered")


def rates(forms: Forms) -> None:
    """Tokens a second of one stream: medians of 9 answers of the same length, in turn."""
    long = {"type": "object", "properties": {"text": {"type": "string", "minLength": 900, "maxLength": 4000}},
            "required": ["text"], "additionalProperties": False}
    figures: dict[str, list[float]] = {"free": [], "schema": []}
    for _ in range(9):
        for kind in figures:
            more = formatted(CHAT, long) if kind == "schema" else {"ignore_eos": True}
            started = time.perf_counter()
            answer = forms.answer(CHAT, ask="Tell me everything.", temperature=1.0, seed=7, **{"max_tokens": 256}, **more)
            taken = time.perf_counter() - started
            figures[kind].append(answer["usage"]["completion_tokens"] / taken)
    for kind, all_of_it in figures.items():
        print(f"{kind}: {sorted(all_of_it)[len(all_of_it) // 2]:.0f} tok/s, {min(all_of_it):.0f} to {max(all_of_it):.0f}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--base-url", default="http://127.0.0.1:8000")
    options.add_argument("--api-key", default="none")
    options.add_argument("--model", default="demo")
    options.add_argument("--only", default="")
    options.add_argument("--rates", action="store_true")
    given = options.parse_args()
    forms = Forms(Server(given.base_url, given.api_key), given.model)
    if given.rates:
        rates(forms)
        return
    checks = Checks(given.only)
    for path in (CHAT, RESPONSES, MESSAGES):
        checks.run(f"{path} a schema", lambda path=path: forms.schema(path))
        checks.run(f"{path} a required call", lambda path=path: forms.required(path))
        checks.run(f"{path} a strict tool", lambda path=path: forms.strict(path))
    checks.run("a streamed schema", forms.stream)
    checks.run("any object", forms.any_object)
    checks.run("what makes no sense", forms.refused)
    checks.finish()


if __name__ == "__main__":
    main()
