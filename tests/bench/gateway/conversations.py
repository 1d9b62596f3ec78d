"""Agent conversations of a given length, the same bytes for every front end.

Text comes from this repository's own sources and documents by a seeded generator, so it is
code and prose as agents see it and no two sessions share more than their head: the system
text and the tools. A session is one growing byte string; a turn's body is a prefix of it
and a tail, as in a harness that sends its whole history each time.
"""

import json
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
MODEL = "sim-model"
OUTPUT_TOKENS = 16
SYSTEM_TOKENS, TOOLS = 2_500, 14
# Of a turn: what the agent says, and what its tool answers.
SAID_LINES = (1, 4)
TAIL = b"]}"


@dataclass(frozen=True)
class Session:
    """All turns of one conversation: turn n ends at cuts[n]."""

    text: bytes
    cuts: list[int]
    tokens: list[int]

    def body(self, turn: int) -> list[bytes]:
        return [self.text[: self.cuts[turn]], TAIL]


class Corpus:
    """Lines of code and prose, in the order in which they stand in their files."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        listed = subprocess.run(["git", "ls-files", "*.rs", "*.md", "*.py"], cwd=ROOT, check=True, capture_output=True, text=True)
        paths = [ROOT / name for name in sorted(listed.stdout.split()) if "fixtures" not in name]
        self.code = [line for path in paths if path.suffix != ".md" for line in path.read_text().splitlines()]
        self.prose = [line for path in paths if path.suffix == ".md" for line in path.read_text().splitlines() if line]

    def tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def some(self, dice: random.Random, lines: list[str], tokens: int) -> str:
        """A stretch of about so many tokens; each line carries a number, so that no two stretches are alike."""
        at, taken, held = dice.randrange(len(lines)), [], 0
        while held < tokens:
            line = f"{dice.randrange(10_000)}: {lines[at % len(lines)]}"
            taken.append(line)
            held += self.tokens(line) + 1
            at += 1
        return "\n".join(taken)


def tool(corpus: Corpus, dice: random.Random, number: int) -> dict:
    properties = {name: {"type": "string", "description": dice.choice(corpus.prose)} for name in ("path", "pattern", "command")}
    parameters = {"type": "object", "properties": properties, "required": ["path"]}
    described = corpus.some(dice, corpus.prose, 60)
    return {"type": "function", "function": {"name": f"tool_{number}", "description": described, "parameters": parameters}}


def turn(corpus: Corpus, dice: random.Random, number: int, tokens: int) -> list[dict]:
    """What one turn adds: the agent speaks and calls, its tool answers."""
    said = " ".join(dice.choice(corpus.prose) for _ in range(dice.randint(*SAID_LINES)))
    arguments = json.dumps({"path": f"src/file_{dice.randrange(1000)}.rs", "pattern": dice.choice(corpus.code).strip()})
    call = {"id": f"call_{dice.getrandbits(64):016x}", "type": "function",
            "function": {"name": f"tool_{number % TOOLS}", "arguments": arguments}}
    left = max(tokens - corpus.tokens(said) - corpus.tokens(arguments) - 20, 16)
    answer = corpus.some(dice, corpus.code, left)
    return [{"role": "assistant", "content": said, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": answer}]


def dump(value) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class Conversations:
    """The generator of sessions that share one head."""

    def __init__(self, tokenizer, seed: int, first_tokens: int, last_tokens: int, turns: int):
        self.corpus, self.seed, self.turns = Corpus(tokenizer), seed, turns
        self.first_tokens, self.step = first_tokens, (last_tokens - first_tokens) // max(turns - 1, 1)
        dice = random.Random(seed)
        self.tools = [tool(self.corpus, dice, number) for number in range(TOOLS)]
        self.system = self.corpus.some(dice, self.corpus.prose, SYSTEM_TOKENS)
        self.head_tokens = self.counted([{"content": self.system}]) + sum(self.corpus.tokens(dump(t).decode()) for t in self.tools) // 2

    def counted(self, messages: list[dict]) -> int:
        calls = [c["function"]["arguments"] for m in messages for c in m.get("tool_calls", [])]
        return sum(self.corpus.tokens(text) + 2 for text in [m["content"] for m in messages] + calls)

    def session(self, number: int, stream: bool) -> Session:
        dice = random.Random(f"{self.seed} {number}")
        head = {"model": MODEL, "max_tokens": OUTPUT_TOKENS, "temperature": 0, "stream": stream}
        if stream:
            head["stream_options"] = {"include_usage": True}
        text = bytearray(dump(head | {"tools": self.tools})[:-1] + b',"messages":[')
        asked = {"role": "user", "content": self.corpus.some(dice, self.corpus.prose, 200)}
        text += dump({"role": "system", "content": self.system}) + b"," + dump(asked)
        held, calls = self.head_tokens + self.counted([asked]), 0
        cuts, tokens = [], []
        for step in range(self.turns):
            aim = self.first_tokens + step * self.step
            while held < aim:
                added = turn(self.corpus, dice, calls, min(aim - held, dice.choice((150, 300, 600, 1200))))
                text += b"".join(b"," + dump(message) for message in added)
                held, calls = held + self.counted(added), calls + 1
            cuts.append(len(text))
            tokens.append(held)
        return Session(bytes(text), cuts, tokens)

    def short(self, number: int) -> list[bytes]:
        """A request of some 150 tokens like no other."""
        dice = random.Random(f"short {self.seed} {number}")
        asked = " ".join(dice.choice(self.corpus.prose)[:80] for _ in range(3))
        messages = [{"role": "system", "content": "You are a helpful agent."}, {"role": "user", "content": f"{number}: {asked}"}]
        return [dump({"model": MODEL, "max_tokens": OUTPUT_TOKENS, "messages": messages})]

    def sessions(self, first: int, many: int, stream: bool) -> list[Session]:
        return [self.session(first + number, stream) for number in range(many)]
