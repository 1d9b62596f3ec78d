"""The tools a dialogue may offer, and how they are listed to the model.

A family is something a user may want done; clients name the tool for it, and its
arguments, as they please. The first name, arguments and description of each family
are the core grammar's; the others appear only in the wide grammar. Invented tools
(`invented_tool`) make the model read the list instead of remembering it.
"""

import random
from dataclasses import dataclass

from words import phrase, word

CORE_FAMILIES = ("weather", "read", "tests", "search", "folder", "add")


@dataclass(frozen=True)
class Tool:
    name: str
    args: tuple[str, ...]
    description: str
    # Only for invented tools: the verb and noun a user would say.
    verb: str = ""
    noun: str = ""

    def line(self) -> str:
        head = f"{self.name}({', '.join(self.args)})"
        return f"{head}: {self.description}" if self.description else head


@dataclass(frozen=True)
class Family:
    names: tuple[str, ...]
    args: tuple[tuple[str, ...], ...]
    descriptions: tuple[str, ...]

    def tool(self, r: random.Random, wide: bool) -> Tool:
        if not wide or r.random() < 0.35:
            return Tool(self.names[0], self.args[0], self.descriptions[0])
        description = "" if r.random() < 0.08 else r.choice(self.descriptions)
        if description and r.random() < 0.05:
            # Real clients describe their tools at length.
            description += ". " + ". ".join(phrase(r, True, 6).capitalize() for _ in range(r.randint(1, 4)))
        return Tool(r.choice(self.names), r.choice(self.args), description)


FAMILIES = {
    "weather": Family(
        ("get_weather", "weather", "current_weather", "fetch_weather", "get_forecast", "getWeather"),
        (("city",), ("location",), ("place",), ("town",)),
        ("Current weather for a city", "Get the weather for a location", "Get current weather in a given location",
         "Weather now", "Returns temperature and sky"),
    ),
    "read": Family(
        ("read_file", "open_file", "view", "cat", "Read", "read"),
        (("path",), ("file_path",), ("file",), ("filename",)),
        ("Read a text file", "Read a file", "Show the contents of a file", "Reads a file from disk"),
    ),
    "tests": Family(
        ("run_tests", "test", "pytest", "cargo_test", "check_tests"),
        (("target",), ("module",), ("name",)),
        ("Run the tests of a module", "Run tests", "Runs the test suite of a target"),
    ),
    "search": Family(
        ("search", "search_docs", "grep", "Grep", "find", "lookup"),
        (("query",), ("pattern",), ("q",), ("text",)),
        ("Search the documentation", "Search for text", "Find where something is described"),
    ),
    "folder": Family(
        ("list_files", "ls", "list_dir", "glob", "LS"),
        (("dir",), ("path",), ("directory",), ("folder",)),
        ("List the files in a directory", "List a directory", "Show which files a folder has"),
    ),
    "add": Family(
        ("add", "sum", "plus", "calculator"),
        (("a", "b"), ("x", "y"), ("left", "right")),
        ("Add two numbers", "Sum of two numbers", "Adds numbers"),
    ),
    "write": Family(
        ("write_file", "Write", "save_file", "create_file"),
        (("path", "content"), ("file_path", "content"), ("file", "text")),
        ("Write a text file", "Write text to a file", "Save a file"),
    ),
    "shell": Family(
        ("run_command", "bash", "Bash", "shell", "exec"),
        (("command",), ("cmd",)),
        ("Run a shell command", "Execute a command", "Runs a command and returns its output"),
    ),
    "send": Family(
        ("send_message", "message", "notify", "send_mail"),
        (("to", "text"), ("recipient", "message"), ("name", "body")),
        ("Send a message to a person", "Send a short message"),
    ),
    "time": Family(
        ("get_time", "time", "current_time", "clock"),
        (("city",), ("location",), ("place",)),
        ("Local time of a city", "What time it is somewhere"),
    ),
}

VERBS = ("get", "find", "open", "close", "delete", "create", "update", "check", "start", "stop", "count", "show",
         "book", "order", "cancel", "scan", "repair", "paint", "move", "lock")


def invented_tool(r: random.Random) -> Tool:
    """A tool of the client's own: any verb on any noun, in any of the usual spellings."""
    verb, noun = r.choice(VERBS), word(r)
    name = r.choice((f"{verb}_{noun}", f"{verb}_{noun}", f"{noun}_{verb}", f"{verb}{noun.capitalize()}"))
    arg = r.choice(("id", "name", noun, f"{noun}_id", "key", "number"))
    description = r.choice((f"{verb.capitalize()} a {noun}", f"{verb.capitalize()} the {noun}", f"Tool to {verb} a {noun}"))
    return Tool(name, (arg,), description, verb, noun)


def offer(r: random.Random, wide: bool) -> dict[str, Tool]:
    """What one dialogue's client offers, by family; invented tools are `own0`, `own1`, …"""
    if not wide:
        kept = list(CORE_FAMILIES)
        r.shuffle(kept)
        if r.random() < 0.4:
            kept = kept[: r.choice((0, 3, 4, 5, 6, 6))]
        return {family: FAMILIES[family].tool(r, False) for family in kept}
    families = r.sample(sorted(FAMILIES), r.choice((0, 1, 2, 3, 4, 5, 6, 7)))
    offered = {family: FAMILIES[family].tool(r, True) for family in families}
    for number in range(r.choice((0, 0, 1, 1, 2, 3))):
        offered[f"own{number}"] = invented_tool(r)
    order = list(offered)
    r.shuffle(order)
    # Two tools of one name would make the list ambiguous, as no client does.
    first_of_name = {offered[family].name: family for family in reversed(order)}
    return {family: offered[family] for family in order if first_of_name[offered[family].name] == family}
