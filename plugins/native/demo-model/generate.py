"""Synthetic agent dialogues: a seeded grammar, the demo model's only training data.

Two widths. The core grammar has six tools with fixed names; the wide one adds tools,
names, arguments, phrasings, shapes of results, follow-ups, memory, refusals and
requests outside its world. The assistant's text is a function of what stands before
it, never of chance, so that one exact answer is right and can be scored.

    python generate.py --wide --seed 3 --count 2     # prints dialogues as the model sees them
"""

import argparse
import json
import random
from dataclasses import dataclass

import words
from small_talk import small_talk
from tools import CORE_FAMILIES, FAMILIES, Tool, offer

SYSTEM = "You are a helpful agent."
OTHER_SYSTEMS = (
    "You are a coding assistant.", "You are a helpful assistant.", "Be brief.", "Answer in one sentence.",
    "You are an agent that works in a terminal.", "You help with small tasks. Use tools when they help.",
    "You are an expert engineer. Be precise and do not guess.", "sys",
)


@dataclass
class Message:
    """One message; `kind` sorts the assistant's for scoring, `learn` is off where no target stands."""

    role: str
    text: str
    kind: str = ""
    learn: bool = True


def user(text: str) -> Message:
    return Message("user", text)


def answer(text: str, kind: str = "answer") -> Message:
    return Message("assistant", text, kind)


def call(tool: Tool, values: list, thought: str) -> Message:
    request = json.dumps({"name": tool.name, "arguments": dict(zip(tool.args, values))}, ensure_ascii=False)
    return Message("assistant", f"<think>{thought}</think><tool_call>{request}</tool_call>", "call")


def result(value) -> Message:
    return Message("tool", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def refusal(request: str, family: str) -> list[Message]:
    name = FAMILIES[family].names[0] if family in FAMILIES else None
    missing = f"the {name} tool is not available" if name else "no tool for that is available"
    return [user(request), answer(f"I can't do that here: {missing}.", "refusal")]


class Turns:
    """Writes one request and everything up to its answer. `kit` is what the client offers, by family."""

    def __init__(self, r: random.Random, kit: dict[str, Tool], wide: bool):
        self.r, self.kit, self.wide = r, kit, wide

    def say(self, core: tuple, more: tuple, *slots) -> str:
        pool = core if not self.wide or self.r.random() < 0.4 else core + more
        return self.r.choice(pool).format(*slots)

    def failure(self, tool: Tool, values: list, thought: str) -> list[Message] | None:
        """Sometimes, in the wide grammar, a tool that fails with a reason."""
        if not self.wide or self.r.random() >= 0.08:
            return None
        reason = self.r.choice(("timeout", "permission denied", "rate limited", "invalid argument", "internal error"))
        return [call(tool, values, thought), result({"error": reason}), answer(f"The tool failed: {reason}.")]

    def weather_call(self, city: str) -> list[Message]:
        r, tool = self.r, self.kit["weather"]
        degrees, sky = r.randint(-9, 38), r.choice(words.SKIES)
        thought = f"The user wants the weather in {city}. I should call {tool.name}."
        if failed := self.failure(tool, [city], thought):
            return failed
        shapes = [{"city": city, "temp_c": degrees, "sky": sky}]
        if self.wide:
            shapes += [{"temp_c": degrees, "sky": sky}, {"temperature": degrees, "condition": sky},
                       f"{degrees} degrees, {sky}", f"{sky}, {degrees} C"]
        return [call(tool, [city], thought), result(r.choice(shapes)),
                answer(f"It is {degrees} degrees and {sky} in {city}.")]

    def weather(self) -> list[Message]:
        city = words.city(self.r, self.wide)
        request = self.say(
            ("What is the weather in {}?", "How is the weather in {} today?", "Weather in {} please.",
             "Tell me the weather for {}.", "Is it cold in {}?"),
            ("What's the weather in {}?", "what is the weather like in {}", "How warm is it in {}?",
             "Is it raining in {}?", "Do I need a coat in {}?", "Could you check the weather in {}?", "{} weather",
             "I am going to {}. How is the weather there?", "Weather for {}?", "What's the weather like in {} today?"),
            city)
        if "weather" not in self.kit:
            return refusal(request, "weather")
        turn = [user(request), *self.weather_call(city)]
        while self.wide and self.r.random() < 0.25:
            city = words.city(self.r, True)
            follow = self.say(("And in {}?", "What about {}?"), ("And {}?", "How about {}?", "Same for {}."), city)
            turn += [user(follow), *self.weather_call(city)]
        return turn

    def two_cities(self) -> list[Message]:
        first, second = words.city(self.r, True), words.city(self.r, True)
        request = self.say(("What is the weather in {} and {}?", "Compare the weather in {} and {}."),
                           ("Weather in {} and in {} please.", "Is {} colder than {}?"), first, second)
        if "weather" not in self.kit:
            return refusal(request, "weather")
        turn, parts = [user(request)], []
        for city in (first, second):
            asked, told, said = self.weather_call(city)
            if said.text.startswith("The tool failed"):
                return [*turn, asked, told, said]
            turn += [asked, told]
            parts.append(said.text.removesuffix("."))
        return [*turn, answer(f"{parts[0]}. {parts[1]}.")]

    def read_result(self, path: str) -> list[Message]:
        r = self.r
        if r.random() < 0.25:
            return [result({"error": "not found", "path": path}), answer(f"The file {path} was not found.")]
        if self.wide and r.random() < 0.4:
            text = words.phrase(r, True, 5)
            return [result(text), answer(f"{path} says: {text}")]
        lines, name = r.randint(1, 99), words.any_word(r, self.wide)
        return [result({"path": path, "lines": lines, "head": f"fn {name}()"}),
                answer(f"{path} has {lines} lines and starts with fn {name}().")]

    def read(self) -> list[Message]:
        path = words.path(self.r, self.wide)
        request = self.say(
            ("Open {}.", "Read the file {}.", "Show me {}.", "What is in {}?", "Please read {}."),
            ("What does {} say?", "Can you read {} for me?", "cat {}", "Read {} and tell me what it says.",
             "I need to see {}.", "Look at {}.", "Have a look into {} please."), path)
        if "read" not in self.kit:
            return refusal(request, "read")
        tool = self.kit["read"]
        thought = f"I need the contents of {path}. I should call {tool.name}."
        if failed := self.failure(tool, [path], thought):
            return [user(request), *failed]
        return [user(request), call(tool, [path], thought), *self.read_result(path)]

    def tests(self) -> list[Message]:
        r, target = self.r, words.module(self.r, self.wide)
        request = self.say(
            ("Run the tests for {}.", "Do the {} tests pass?", "Test {} please.", "Check that {} still works."),
            ("Run the {} tests.", "Are the tests of {} green?", "Please run all tests of {}.", "test {}"), target)
        if "tests" not in self.kit:
            return refusal(request, "tests")
        tool = self.kit["tests"]
        asked = call(tool, [target], f"I will run the tests of {target} with {tool.name}.")
        passed, failed = r.randint(1, 99), 0 if r.random() < 0.6 else r.randint(1, 9)
        if not failed:
            return [user(request), asked, result({"passed": passed, "failed": 0}),
                    answer(f"All {passed} tests of {target} pass.")]
        first = f"test_{words.any_word(r, self.wide)}"
        return [user(request), asked, result({"passed": passed, "failed": failed, "first": first}),
                answer(f"{failed} tests of {target} fail. The first failure is {first}; {passed} tests pass.")]

    def search(self) -> list[Message]:
        r, query = self.r, words.phrase(self.r, self.wide)
        request = self.say(
            ("Search the docs for {}.", "Find {} in the documentation.", "Where is {} documented?", "Look up {}."),
            ("Search for {}.", "Where do we use {}?", "grep {}", "Which file mentions {}?"), query)
        if "search" not in self.kit:
            return refusal(request, "search")
        asked = call(self.kit["search"], [query], f"I should search the documentation for {query}.")
        if r.random() < 0.25:
            nothing = r.choice(({"hits": []}, "no matches")) if self.wide else {"hits": []}
            return [user(request), asked, result(nothing), answer(f"I found nothing about {query}.")]
        path, line = words.path(r, self.wide), r.randint(1, 99)
        found = {"hits": [{"path": path, "line": line}]}
        if self.wide and r.random() < 0.4:
            found = f"{path}:{line}"
        return [user(request), asked, result(found), answer(f"{query} is described in {path} at line {line}.")]

    def listing(self) -> tuple[list[str], Message]:
        files = [words.file_name(self.r, self.wide) for _ in range(self.r.choice((1, 2, 3)))]
        plain = self.wide and self.r.random() < 0.4
        return files, result("\n".join(files) if plain else {"files": files})

    def folder(self) -> list[Message]:
        place = words.folder(self.r, self.wide)
        request = self.say(("List the files in {}.", "Which files are in {}?", "What does {} contain?"),
                           ("ls {}", "Show the files of {}.", "What files does the folder {} have?"), place)
        if "folder" not in self.kit:
            return refusal(request, "folder")
        files, told = self.listing()
        count = f"{len(files)} file{'s' if len(files) > 1 else ''}"
        return [user(request), call(self.kit["folder"], [place], f"I should list the directory {place}."), told,
                answer(f"{place} contains {count}: {words.joined(files)}.")]

    def add(self) -> list[Message]:
        a, b = self.r.randint(1, 60), self.r.randint(1, 39)
        request = self.say(("What is {} plus {}?", "Add {} and {}.", "{} + {} = ?", "Compute {} + {}."),
                           ("How much is {} + {}?", "{}+{}", "Sum {} and {} please.", "What's {} + {}?"), a, b)
        if "add" not in self.kit:
            return refusal(request, "add")
        shapes = [{"sum": a + b}] + ([{"result": a + b}, str(a + b)] if self.wide else [])
        return [user(request), call(self.kit["add"], [a, b], f"I should add {a} and {b} with the tool."),
                result(self.r.choice(shapes)), answer(f"{a} plus {b} is {a + b}.")]

    def two(self) -> list[Message]:
        """Two tools in a row: list, then read what was listed first."""
        r, place = self.r, self.r.choice(("src", "tests", words.any_word(self.r, self.wide)))
        request = self.say(("Find the first file in {} and read it.", "Read the first file in {}."),
                           ("Open the first file of {}.", "What is in the first file of {}?"), place)
        for family in ("folder", "read"):
            if family not in self.kit:
                return refusal(request, family)
        files, told = self.listing()
        path, lines, name = f"{place}/{files[0]}", r.randint(1, 99), words.any_word(r, self.wide)
        return [user(request), call(self.kit["folder"], [place], f"First I should list the directory {place}."), told,
                call(self.kit["read"], [path], f"The first file is {files[0]}. Now I should read {path}."),
                result({"path": path, "lines": lines, "head": f"fn {name}()"}),
                answer(f"The first file is {path}. It has {lines} lines and starts with fn {name}().")]

    def write(self) -> list[Message]:
        path, text = words.path(self.r, True), words.phrase(self.r, True, 3)
        request = self.say(("Write {1} to {0}.", "Save {1} in {0}."),
                           ("Create {0} with the text {1}.", "Put {1} into {0}.", "Make a file {0} that says {1}."),
                           path, text)
        if "write" not in self.kit:
            return refusal(request, "write")
        tool = self.kit["write"]
        thought = f"I should write {text} to {path} with {tool.name}."
        if failed := self.failure(tool, [path, text], thought):
            return [user(request), *failed]
        told = self.r.choice(({"ok": True}, {"written": path}, "ok", "done", f"File {path} written."))
        return [user(request), call(tool, [path, text], thought), result(told), answer(f"I wrote {text} to {path}.")]

    def shell(self) -> list[Message]:
        r = self.r
        command = r.choice((f"ls {words.folder(r, True)}", f"cargo test -p {words.any_word(r, True)}", "git status",
                            f"cat {words.path(r, True)}", f"echo {words.phrase(r, True)}", "make build", "pwd"))
        request = self.say(("Run {}", "Run the command {}"), ("Execute {}", "Please run `{}`", "In the shell: {}"), command)
        if "shell" not in self.kit:
            return refusal(request, "shell")
        asked = call(self.kit["shell"], [command], f"I should run {command} with {self.kit['shell'].name}.")
        output = words.phrase(r, True, 3)
        if r.random() < 0.3:
            code = r.randint(1, 9)
            return [user(request), asked, result({"exit_code": code, "stderr": output}),
                    answer(f"The command failed with exit code {code}: {output}")]
        told = r.choice((output, {"stdout": output}, {"exit_code": 0, "stdout": output}))
        return [user(request), asked, result(told), answer(f"The command printed: {output}")]

    def send(self) -> list[Message]:
        who, text = words.person(self.r), f"the {words.any_word(self.r, True)} is {self.r.choice(('green', 'ready', 'broken', 'late'))}"
        request = self.say(("Tell {} that {}.", "Write {} that {}."),
                           ("Let {} know that {}.", "Send {} a message that {}."), who, text)
        if "send" not in self.kit:
            return refusal(request, "send")
        asked = call(self.kit["send"], [who, text], f"I should send a message to {who} with {self.kit['send'].name}.")
        told = self.r.choice(({"ok": True}, {"sent": True}, "sent"))
        return [user(request), asked, result(told), answer(f"I told {who} that {text}.")]

    def time(self) -> list[Message]:
        r, city = self.r, words.city(self.r, True)
        request = self.say(("What time is it in {}?", "Time in {} please."),
                           ("How late is it in {}?", "What's the time in {}?", "Tell me the local time of {}."), city)
        if "time" not in self.kit:
            return refusal(request, "time")
        asked = call(self.kit["time"], [city], f"The user wants the time in {city}. I should call {self.kit['time'].name}.")
        clock = f"{r.randint(0, 23):02}:{r.choice((0, 5, 10, 15, 20, 30, 40, 45, 50)):02}"
        return [user(request), asked, result(r.choice(({"time": clock}, clock, {"city": city, "time": clock}))),
                answer(f"It is {clock} in {city}.")]

    def own(self) -> list[Message]:
        """A tool only this client has: its name and argument must be read from the list."""
        r = self.r
        offered = [tool for family, tool in self.kit.items() if family.startswith("own")]
        value = r.choice((r.randint(1, 99), words.any_word(r, True), f"{words.word(r)}-{r.randint(1, 99)}"))
        if not offered:
            return refusal(f"{r.choice(('Paint', 'Book', 'Repair'))} the {words.word(r)} {value}.", "own")
        tool = r.choice(offered)
        request = self.say(("{} the {} {}.", "Please {} the {} {}."), ("{} {} {}", "Can you {} the {} {}?"),
                           tool.verb, tool.noun, value)
        request = request[0].upper() + request[1:]
        asked = call(tool, [value], f"I should call {tool.name} with {tool.args[0]} {value}.")
        if failed := self.failure(tool, [value], f"I should call {tool.name} with {tool.args[0]} {value}."):
            return [user(request), *failed]
        shape = r.random()
        if shape < 0.3:
            return [user(request), asked, result(r.choice(({"ok": True}, "ok", "done"))),
                    answer(f"Done: {tool.verb} {tool.noun} {value}.")]
        fields = r.sample(("status", "owner", "size", "state", "result", "count", "color", "place"), r.choice((1, 1, 2)))
        told = {field: r.choice((r.randint(1, 99), words.any_word(r, True))) for field in fields}
        return [user(request), asked, result(told), answer(words.joined([f"the {k} is {v}" for k, v in told.items()]).capitalize() + ".")]

    def chat(self) -> list[Message]:
        return [Message(role, text, "chat") for role, text in small_talk(self.r, list(self.kit.values()), self.wide)]


CORE_TURNS = ("weather", "read", "tests", "search", "folder", "add", "chat", "chat", "two")
WIDE_TURNS = (*CORE_TURNS, "weather", "two_cities", "write", "shell", "send", "time", "own", "own", "own", "chat", "chat")


def system_prompt(r: random.Random, kit: dict[str, Tool], wide: bool) -> str:
    text, gap = SYSTEM, " "
    if wide and r.random() < 0.5:
        text, gap = r.choice(OTHER_SYSTEMS), r.choice((" ", "\n", "\n\n"))
        if r.random() < 0.2:
            # Clients send pages of instructions; these must not disturb.
            text += " " + " ".join(words.phrase(r, True, 6).capitalize() + "." for _ in range(r.randint(1, 12)))
        if r.random() < 0.1:
            text, gap = ("", "") if kit else (text, gap)
    return f"{text}{gap}Tools:\n" + "\n".join(tool.line() for tool in kit.values()) if kit else text


def write_turn(r: random.Random, kit: dict[str, Tool], wide: bool) -> list[Message]:
    kinds = WIDE_TURNS if wide else CORE_TURNS
    kind = r.choice(kinds)
    if wide and kind not in kit and kind in FAMILIES and r.random() < 0.8:
        # Most requests are for something on offer; enough are not for refusing to be learnt.
        kind = r.choice(list(kit) or ["chat"])
    return getattr(Turns(r, kit, wide), "own" if kind.startswith("own") else kind)()


def dialogue(r: random.Random, wide: bool) -> list[Message]:
    """A system prompt and one to four turns."""
    kit = offer(r, wide)
    messages = [] if wide and not kit and r.random() < 0.5 else [Message("system", system_prompt(r, kit, wide))]
    for _ in range(r.choice((1, 1, 2, 3, 4) if wide else (1, 1, 2, 3))):
        messages += write_turn(r, kit, wide)
    if wide and r.random() < 0.4:
        forget_thoughts(messages)
    return messages


def forget_thoughts(messages: list[Message]) -> None:
    """Most APIs do not send earlier thoughts back: all but the last request lose theirs."""
    last_user = max(index for index, message in enumerate(messages) if message.role == "user")
    for message in messages[:last_user]:
        if message.text.startswith("<think>"):
            message.text, message.learn = message.text.split("</think>", 1)[1], False


def short(r: random.Random) -> list[Message]:
    """One core turn without a system prompt: the first thing to learn."""
    while True:
        kit = {family: FAMILIES[family].tool(r, False) for family in CORE_FAMILIES}
        turn = write_turn(r, kit, False)
        if not turn[0].text.startswith(("Which tools", "What can")):
            return turn


def render(messages: list[Message]) -> str:
    return "".join(f"<|{message.role}|>{message.text}<|end|>" for message in messages)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--wide", action="store_true")
    given = parser.parse_args()
    source = random.Random(given.seed)
    for _ in range(given.count):
        print(render(dialogue(source, given.wide)), end="\n\n")
