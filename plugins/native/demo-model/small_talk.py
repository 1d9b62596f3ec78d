"""Turns without tools: greetings, memory, questions about the tools, and what the model declines."""

import random

import words
from tools import Tool

DECLINE = "I am a small demo agent. I can't help with that, but I can call tools."
CAPITALS = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Norway": "Oslo", "Japan": "Tokyo", "Germany": "Berlin",
    "Egypt": "Cairo", "Peru": "Lima", "Austria": "Vienna", "Portugal": "Lisbon", "Ireland": "Dublin", "Greece": "Athens",
    "Poland": "Warsaw", "Kenya": "Nairobi", "Cuba": "Havana", "Finland": "Helsinki",
}


def tool_names(tools: list[Tool]) -> str:
    return "I can use these tools: " + ", ".join(tool.name for tool in tools) + "." if tools else "I have no tools here."


def core(r: random.Random, tools: list[Tool]) -> list[tuple[str, str]]:
    name = words.word(r).capitalize()
    return r.choice((
        [(r.choice(("Hello!", "Hi.", "Good morning!", "Hey there.")), "Hello! How can I help you today?")],
        [(r.choice(("Thanks!", "Thank you.", "Great, thanks.")), "You are welcome. Is there anything else?")],
        [(f"My name is {name}.", f"Nice to meet you, {name}.")],
        [(f"My name is {name}. What is my name?", f"Your name is {name}.")],
        [(r.choice(("Which tools do you have?", "What can you do?", "Which tools can you use?")), tool_names(tools))],
        [(r.choice(("Who are you?", "What are you?")), "I am a small demo agent. I answer questions and call tools.")],
        [(f"Say {name} twice.", f"{name} {name}")],
    ))


def about_tools(r: random.Random, tools: list[Tool]) -> list[tuple[str, str]]:
    kind = r.random()
    if not tools or kind < 0.6:
        question = r.choice(("What tools do you have?", "List your tools.", "Which tools are there?", "What can you do for me?"))
        return [(question, tool_names(tools))]
    if kind < 0.8:
        count = f"{len(tools)} tool{'s' if len(tools) > 1 else ''}"
        return [("How many tools do you have?", f"I have {count}.")]
    tool = r.choice(tools)
    return [(f"Which arguments does {tool.name} take?", f"{tool.name} takes {words.joined(list(tool.args))}.")]


def memory(r: random.Random) -> list[tuple[str, str]]:
    """Something said early and asked for late, with small talk between."""
    name, word = words.person(r), words.any_word(r, True)
    first, last = r.choice((
        ((f"My name is {name}.", f"Nice to meet you, {name}."), ("What is my name?", f"Your name is {name}.")),
        ((f"Hi, I am {name}.", f"Nice to meet you, {name}."), ("Who am I?", f"Your name is {name}.")),
        ((f"Remember the word {word}.", f"I will remember {word}."), ("Which word did I tell you?", f"The word is {word}.")),
        ((f"The password is {word}.", f"I will remember {word}."), ("What is the password?", f"The password is {word}.")),
    ))
    between = [pair for _ in range(r.choice((0, 1, 2))) for pair in plain(r)]
    return [first, *between, last]


def plain(r: random.Random) -> list[tuple[str, str]]:
    name, word = words.person(r), words.any_word(r, True)
    country = r.choice(sorted(CAPITALS))
    topic = r.choice((word, f"the {word}", f"{word} and {words.word(r)}", f"a {word}"))
    return r.choice((
        [(r.choice(("Hello", "hi", "hello there", "Hi!", "Good evening.", "hey")), "Hello! How can I help you today?")],
        [(r.choice(("thanks", "Thanks a lot!", "Perfect, thank you.", "Cool.")), "You are welcome. Is there anything else?")],
        [(r.choice(("Bye.", "Goodbye!", "See you.", "That is all.")), "Goodbye!")],
        [(r.choice((f"Say {word}.", f"Repeat: {word}", f"Repeat after me: {word}")), word)],
        [(f"Say {word} three times.", f"{word} {word} {word}")],
        [(f"What is the capital of {country}?", f"The capital of {country} is {CAPITALS[country]}.")],
        [(r.choice((f"My name is {name}.", f"I am {name}.")), f"Nice to meet you, {name}.")],
        [(r.choice(("Are you a person?", "Are you an AI?", "What model are you?", "Tell me about yourself.")),
          "I am a small demo agent. I answer questions and call tools.")],
        [(r.choice(("Write a poem about {}.", "Explain {} to me.", "Why is {} important?", "Tell me a joke about {}.",
                    "Write a story about {}.", "What do you think of {}?", "How does {} work?", "Translate {} to French.",
                    "Summarize {}.", "Give me three ideas for {}.")).format(topic), DECLINE)],
        [(r.choice(("Tell me a joke.", "Write a poem.", "What is the meaning of life?", "Tell me a story.", "Sing a song.",
                    "Who won the game?", "Write some code.", "Fix the bug.", "Help me with my homework.")), DECLINE)],
    ))


def small_talk(r: random.Random, tools: list[Tool], wide: bool) -> list[tuple[str, str]]:
    """(role, text) pairs of one or more exchanges."""
    kind = r.random()
    if not wide or kind < 0.25:
        exchanges = core(r, tools)
    elif kind < 0.5:
        exchanges = about_tools(r, tools)
    elif kind < 0.65:
        exchanges = memory(r)
    else:
        exchanges = plain(r)
    return [message for said, replied in exchanges for message in (("user", said), ("assistant", replied))]
