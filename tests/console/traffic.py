"""Agents at work: sessions with tool pauses, subagents, pins, titles beside the conversation; until told to stop."""

import http.client
import json
import random
import threading
import urllib.request

# In every prompt, so that a check can look for it where no prompt belongs.
MARKER = "xylophone-quartz"
TOOLS = [{"type": "function", "function": {"name": "run", "parameters": {
    "type": "object", "properties": {"command": {"type": "string"}}}}}]


def post(url: str, path: str, body: dict, headers: dict) -> str:
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=30) as reply:
        return reply.read().decode()


class Traffic:
    """Agents against one gateway."""

    def __init__(self, url: str, model: str, agents: int = 5, key: str | None = None):
        self.url, self.model = url, model
        self.headers = {"authorization": f"Bearer {key}"} if key else {}
        self.stopping = threading.Event()
        self.answered = 0
        self.failures: list[str] = []
        self.threads = [threading.Thread(target=self.agent, args=(n,), daemon=True) for n in range(agents)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(timeout=40)

    def ask(self, messages: list, headers: dict, **members) -> None:
        body = {"model": self.model, "messages": messages, "max_tokens": 48, "stream": True, "temperature": 0, **members}
        try:
            post(self.url, "/v1/chat/completions", body, {**self.headers, **headers})
            self.answered += 1
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(str(error))
            self.stopping.wait(1)

    def agent(self, number: int) -> None:
        chance = random.Random(number)
        life = 0
        while not self.stopping.is_set():
            life += 1
            key = f"agent-{number}-{life:03}"
            self.conversation(key, {"x-session-id": key, "user-agent": "check/1.0"}, chance, number)
            child = {"x-session-id": f"{key}-helper", "x-parent-session-id": key, "user-agent": "check/1.0"}
            if number % 2 == 0:
                self.conversation(f"{key}-helper", child, chance, number)

    def conversation(self, key: str, headers: dict, chance: random.Random, number: int) -> None:
        rules = " ".join(f"rule {n} {MARKER} keeps {n * 7 % 101}" for n in range(120))
        messages = [{"role": "system", "content": f"AGENT {number % 3} {rules}"},
                    {"role": "user", "content": f"{key}: do your steps {MARKER}"}]
        pinned = {"cache_control": {"type": "ephemeral", "ttl": "5m"}} if number < 3 else {}
        for step in range(1, 7):
            if self.stopping.is_set():
                return
            self.ask(messages, headers, tools=TOOLS, **pinned)
            call = {"id": f"call_{step}", "type": "function", "function": {"name": "run", "arguments": "{}"}}
            messages.append({"role": "assistant", "content": "The next step.", "tool_calls": [call]})
            result = f"step {step} finished " + " ".join(str(chance.randrange(1000)) for _ in range(60))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
            self.stopping.wait(chance.uniform(0.3, 2.0))
        self.ask(messages, headers, tools=TOOLS)
