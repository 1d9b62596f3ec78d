"""`mainstay serve`, what is asked of it, and what is said of the answers."""

import json
import random
import subprocess
from pathlib import Path

from processes import Process, get, post

PORT = 18080
BLOCK, WORDS_A_TURN = 32, 48
WORDS = ("the cache holds what was said once and read again by every turn of an agent that waits for a tool and goes on "
         "with file test build error fix line code run path name value list open close true false").split()


class Gateway:
    """`mainstay serve`, in front of another server or with an engine of its own."""

    def __init__(self, model: Path, folder: Path, upstream: dict | None, port: int = PORT):
        flags = [part for name, value in (upstream or {}).items() for part in ("--" + name.replace("_", "-"), value)]
        command = ["mainstay", "serve", str(model), "--listen", f"127.0.0.1:{port}", "--data-dir",
                   str(folder / f"data-{port}"), *flags]
        if not upstream:
            # As others compute: activations as wide as theirs.
            config = folder / "engine.toml"
            config.write_text('[engine]\nprecision = "exact"\n')
            command += ["--config", str(config)]
        self.process = Process(f"mainstay-{port}", command, folder)
        self.url = f"http://127.0.0.1:{port}"
        self.process.until(lambda: get(f"{self.url}/readyz") is not None, "ready")
        self.model = json.loads(get(f"{self.url}/v1/models"))["data"][0]["id"]

    def ask(self, messages: list[dict], tokens: int = 2) -> dict:
        body = {"model": self.model, "messages": messages, "max_tokens": tokens, "temperature": 0}
        answer, headers = post(f"{self.url}/v1/chat/completions", body)
        usage = answer["usage"]
        explained = json.loads(get(f"{self.url}/api/v1/requests/{headers['x-request-id']}/explain") or b"{}")
        prompt = usage["prompt_tokens"]
        # The last token is always computed, and with it its block.
        most = (prompt - 1) // BLOCK
        return {"prompt": prompt, "cached": (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
                "predicted": min(explained.get("overlap_blocks", -1), most) * BLOCK,
                "said": answer["choices"][0]["message"]["content"] or ""}

    def blocks(self) -> int:
        status = json.loads(get(f"{self.url}/api/v1/status") or b"{}")
        return sum(worker["blocks"] for worker in status.get("workers", []) if worker["state"] == "live")


class Checks:
    def __init__(self):
        self.failed = 0

    def say(self, good: bool, what: str) -> None:
        self.failed += not good
        print(f"{'ok  ' if good else 'FAIL'} {what}", flush=True)


def text(source: random.Random, words: int) -> str:
    return " ".join(source.choice(WORDS) for _ in range(words))


def history(number: int, turns: int) -> list[dict]:
    """The same for the same number: longer ones begin with shorter ones."""
    source = random.Random(number)
    messages = [{"role": "system", "content": text(source, WORDS_A_TURN)}]
    for turn in range(turns):
        messages.append({"role": "user", "content": text(source, WORDS_A_TURN)})
        if turn + 1 < turns:
            messages.append({"role": "assistant", "content": text(source, WORDS_A_TURN)})
    return messages


def kit(config: dict) -> int:
    """`mainstay engine check remote`; its exit status."""
    command = ["mainstay", "engine", "check", "remote", "--config", json.dumps(config)]
    return subprocess.run(command, check=False).returncode
