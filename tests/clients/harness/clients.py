"""How each real client is run: its program, its settings, what keeps it quiet.

Each has a `run` that lets it work on a prompt against a server and gives back what it
printed and its exit status. Settings live in a scratch home, so that nothing of the
user's own is read or changed.
"""

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from harness.cluster import MODEL

RUN_TIMEOUT_S = 240.0
# Codex gives a silent stream up after this; the default is five minutes.
CODEX_IDLE_MS = 5000


@dataclass
class Outcome:
    status: int
    output: str
    errors: str


@dataclass
class Client:
    """A client on a folder to work in and a scratch home."""

    name: str
    installed: Path
    folder: Path
    home: Path
    task: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    def execute(self, command: list[str | Path], environment: dict[str, str]) -> Outcome:
        kept = {key: os.environ[key] for key in ("PATH", "LANG", "TERM") if key in os.environ}
        self.home.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(command, cwd=self.folder, env={**kept, "HOME": str(self.home), **environment}, check=False,
                                  stdin=subprocess.DEVNULL, capture_output=True, timeout=RUN_TIMEOUT_S)
        except subprocess.TimeoutExpired as stuck:
            return Outcome(-1, (stuck.stdout or b"").decode(errors="replace"), "timed out")
        return Outcome(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def program(self, pattern: str) -> Path:
        found = sorted(path for path in self.installed.glob(pattern) if path.is_file())
        if not found:
            raise FileNotFoundError(f"no {pattern} in {self.installed}; run tests/clients/harness/install.sh")
        return found[0]


class Claude(Client):
    def run(self, url: str, prompt: str) -> Outcome:
        quiet = ["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "DISABLE_AUTOUPDATER", "DISABLE_TELEMETRY", "DISABLE_ERROR_REPORTING"]
        environment = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "sk-ant-none", **dict.fromkeys(quiet, "1"), **self.extra}
        program = self.program("claude-code-linux-x64-*/node_modules/@anthropic-ai/*/claude")
        return self.execute([program, "-p", prompt, "--model", MODEL, "--output-format", "json",
                             "--allowedTools", "Read,Bash"], environment)


class Codex(Client):
    def run(self, url: str, prompt: str) -> Outcome:
        settings = self.home / "codex"
        settings.mkdir(parents=True, exist_ok=True)
        (settings / "config.toml").write_text(f"""
model = "{MODEL}"
model_provider = "mainstay"
approval_policy = "never"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false
[analytics]
enabled = false
[model_providers.mainstay]
name = "mainstay"
base_url = "{url}/v1"
env_key = "MAINSTAY_API_KEY"
wire_api = "responses"
stream_idle_timeout_ms = {CODEX_IDLE_MS}
""")
        program = self.program("codex-*/node_modules/@openai/codex-linux-*/vendor/*/bin/codex")
        return self.execute([program, "exec", "--json", "--skip-git-repo-check", prompt],
                            {"CODEX_HOME": str(settings), "MAINSTAY_API_KEY": "none", **self.extra})


OPENCODE_PACKAGES = {"chat": "@ai-sdk/openai-compatible", "messages": "@ai-sdk/anthropic", "responses": "@ai-sdk/openai"}


@dataclass
class Opencode(Client):
    api: str = "chat"

    def run(self, url: str, prompt: str) -> Outcome:
        model = {"name": "Sim", "limit": {"context": 200_000, "output": 32_000}, "tool_call": True, "reasoning": True}
        provider = {"npm": OPENCODE_PACKAGES[self.api], "name": self.api, "models": {MODEL: model},
                    "options": {"baseURL": f"{url}/v1", "apiKey": "none"}}
        settings = self.home / ".config/opencode"
        settings.mkdir(parents=True, exist_ok=True)
        (settings / "opencode.json").write_text(json.dumps({
            "autoupdate": False, "share": "disabled", "model": f"mainstay/{MODEL}", "small_model": f"mainstay/{MODEL}",
            "permission": {"*": "allow"}, "provider": {"mainstay": provider}}))
        quiet = ["OPENCODE_DISABLE_AUTOUPDATE", "OPENCODE_DISABLE_MODELS_FETCH", "OPENCODE_DISABLE_LSP_DOWNLOAD",
                 "OPENCODE_DISABLE_DEFAULT_PLUGINS"]
        program = self.program("opencode-ai-*/node_modules/opencode-linux-x64-baseline/bin/opencode")
        return self.execute([program, "run", "--pure", "-m", f"mainstay/{MODEL}", prompt],
                            {**dict.fromkeys(quiet, "1"), **self.extra})
