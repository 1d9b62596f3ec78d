"""The fault table: what each client does about each fault, as measured of the real ones.

A row is a fault and, per client, how it ends: `ok` (it comes again by itself and finishes),
`fatal` (it ends with an error and does not come again), and where the server says when to
come again, that it waits so long. In every row that goes on, the turn after the fault must
hit the blocks that were there before it: a fault costs time, not the cache.
"""

import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from checks import Checks, equal, expect
from harness.clients import Client, Outcome
from harness.cluster import MODEL
from harness.proxy import Fault, Proxy, Record

BLOCK_TOKENS = 16
# What a client may come too early by its own clock.
EARLY_S = 0.05


@dataclass
class Row:
    kind: str
    # How each client ends; a client that is missing is not asked.
    ends: dict[str, str]
    wait_s: float = 0.0
    stall_s: float = 0.0


AGENTS = ["claude", "codex", "opencode-chat", "opencode-messages", "opencode-responses"]
SDKS = ["openai", "anthropic"]


def all_but(fatal: list[str], left_out: tuple[str, ...] = ()) -> dict[str, str]:
    return {name: "fatal" if name in fatal else "ok" for name in AGENTS + SDKS if name not in left_out}


ROWS = [
    Row("429+retry-after", all_but([]), wait_s=1.0),
    # Codex gives up at once where nobody says when to come again.
    Row("429", all_but(["codex"])),
    Row("529", all_but([])),
    Row("500", all_but([])),
    Row("503+retry-after", all_but([]), wait_s=1.0),
    Row("401", {"claude": "ok", "codex": "ok", "openai": "fatal", "anthropic": "fatal"}),
    # Claude Code and opencode make the conversation smaller and go on; the others tell the user.
    Row("too-long", {"claude": "shrinks", "codex": "fatal", "opencode-chat": "shrinks", "openai": "fatal", "anthropic": "fatal"}),
    Row("drop", all_but([])),
    Row("error-event", {"claude": "ok", "codex": "ok", "opencode-messages": "ok", "anthropic": "fatal"}),
    Row("cut", {name: "ok" for name in AGENTS} | dict.fromkeys(SDKS, "fatal")),
    Row("failed:rate", {"codex": "ok"}, wait_s=1.2),
    Row("failed:server", {"codex": "ok"}),
    Row("failed:overloaded", {"codex": "fatal"}),
    Row("failed:context", {"codex": "fatal"}),
    Row("stall", {"claude": "ok", "codex": "ok"}, stall_s=8.0),
]


@dataclass
class Sdk:
    """A program on an official SDK: two turns with a tool, and what it does when a turn fails."""

    name: str

    def run(self, url: str, _prompt: str) -> Outcome:
        try:
            output = self.openai(url) if self.name == "openai" else self.anthropic(url)
        except Exception as raised:  # What an SDK raises is what its user gets.
            return Outcome(1, "", f"{type(raised).__name__}: {raised}")
        return Outcome(0, output, "")

    def openai(self, url: str) -> str:
        import openai

        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        function = {"name": "read_file", "parameters": {"type": "object", "properties": {"path": {"type": "string"}}}}
        messages = [{"role": "user", "content": opening()}]
        for _ in range(2):
            stream = client.chat.completions.create(
                model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True},
                tools=[{"type": "function", "function": function}])
            text, call = "", {"id": "", "arguments": ""}
            for chunk in stream:
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    for part in choice.delta.tool_calls or []:
                        call["id"] = part.id or call["id"]
                        call["arguments"] += part.function.arguments or ""
            if not call["id"]:
                break
            called = {"name": "read_file", "arguments": call["arguments"]}
            messages += [{"role": "assistant", "content": text,
                          "tool_calls": [{"id": call["id"], "type": "function", "function": called}]},
                         {"role": "tool", "tool_call_id": call["id"], "content": "alpha"}]
        return text

    def anthropic(self, url: str) -> str:
        import anthropic

        client = anthropic.Anthropic(base_url=url, api_key="none")
        tool = {"name": "read_file", "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}}}
        messages = [{"role": "user", "content": opening()}]
        for _ in range(2):
            with client.messages.stream(model=MODEL, max_tokens=500, messages=messages, tools=[tool]) as stream:
                message = stream.get_final_message()
            messages.append({"role": "assistant", "content": message.content})
            calls = [block for block in message.content if block.type == "tool_use"]
            if not calls:
                break
            results = [{"type": "tool_result", "tool_use_id": call.id, "content": "alpha"} for call in calls]
            messages.append({"role": "user", "content": results})
        return "".join(block.text for block in message.content if block.type == "text")


def opening() -> str:
    """A prompt of its own for every run, so that none finds the blocks of another."""
    return f"TASK sdk {secrets.token_hex(8)}: read notes.txt. {FILLER}"


# Long enough for its blocks to be worth keeping.
FILLER = "The file is in this folder and holds a few words. " * 60


def check_faults(checks: Checks, clients: list[Client], place, proxy: Proxy, kept: Path | None) -> None:
    runners = {client.name: client for client in clients} | {name: Sdk(name) for name in SDKS}
    for row in ROWS:
        for name, end in row.ends.items():
            runner = runners[name]
            checks.run(f"fault {row.kind}, {name}: {end}", lambda: check_fault(row, end, runner, place, proxy))


def check_fault(row: Row, end: str, runner: Client | Sdk, place, proxy: Proxy) -> str:
    proxy.begin(Fault(row.kind, stall_s=row.stall_s))
    began_s = time.monotonic()
    outcome = runner.run(proxy.url, "" if isinstance(runner, Sdk) else place.prompt(runner))
    took_s = time.monotonic() - began_s
    tooled = [record for record in proxy.records if record.has_tools()]
    struck = next((number for number, record in enumerate(tooled) if record.fault), None)
    expect(struck is not None, f"the fault never struck: {len(tooled)} turns, {outcome.errors[-200:]!r}")
    after = tooled[struck + 1 :]
    if end == "fatal":
        expect(not after, f"it came again {len(after)} times")
        said = outcome.output + outcome.errors
        expect(outcome.status != 0 or "rror" in said, "it ended as if nothing had happened")
        return f"ended after {took_s:.1f} s"
    expect(after, f"it did not come again: {outcome.output[-200:]!r} {outcome.errors[-200:]!r}")
    # It may be gone before a stalled stream has ended.
    gap_s = after[0].began_s - (tooled[struck].ended_s or tooled[struck].began_s)
    expect(gap_s >= row.wait_s - EARLY_S, f"it came again after {gap_s:.2f} s")
    if end == "shrinks":
        later = [record for record in proxy.records if record.began_s > tooled[struck].began_s]
        expect(any(record.status == 200 for record in later), "nothing succeeded afterwards")
        return f"again after {gap_s:.2f} s, smaller"
    if isinstance(runner, Sdk):
        equal((outcome.status, outcome.output), (0, "The tool has answered. Done."), f"the end ({outcome.errors[-200:]})")
    else:
        place.expect_done(outcome)
    return f"again after {gap_s:.2f} s, {kept_blocks(row, tooled, struck)}"


def kept_blocks(row: Row, tooled: list[Record], struck: int) -> str:
    """The first answered turn after the fault hits what was there."""
    answered = next(record for record in tooled[struck + 1 :] if record.usage())
    used, before = answered.usage(), tooled[struck - 1].usage()
    least = before.prompt - 3 * BLOCK_TOKENS
    if row.kind in ("cut", "stall", "error-event") or row.kind.startswith("failed:"):
        # The prompt was computed before the stream broke, so all of it is there.
        same = answered.json().get("messages") == tooled[struck].json().get("messages")
        least = used.prompt - 3 * BLOCK_TOKENS if same else least
    expect(used.cached >= least, f"the turn after it hit {used.cached} of {used.prompt} tokens, at least {least} were there")
    return f"{used.cached} of {used.prompt} tokens were still there"
