"""Whether the Open Responses compliance suite passes, each time that it is run.

    open_responses/install.sh FOLDER
    mainstay serve --engine sim --script open_responses/script.toml
    python open_responses.py --base-url URL --suite FOLDER [--runs N]

The suite runs unchanged and its own verdict counts: all 17 pass, none is skipped. It does
not look at what was said, so this does besides: an answer that needs an earlier turn, a
compacted item or a tool's schema must have used it. The model is played by the sim engine
with open_responses/script.toml; a sampling model calls no tool now and then, which the
suite would count against the server.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from checks import Checks, equal, expect

TESTS = 17
RUN_TIMEOUT_S = 120
# What the last response of a test says, where that shows that the server knew what came before.
SAYS = {
    "basic-response": "Hello, dear friend.", "assistant-phase": "four", "multi-turn": "Your name is Alice.",
    "system-prompt": "Ahoy, matey!", "streaming-response": "1, 2, 3, 4, 5.", "websocket-response": "1, 2, 3.",
    "image-input": "I see no image: this model reads text.", "websocket-sequential-responses": "second",
    "websocket-continuation": "cobalt", "websocket-reconnect-store-false-recovery": "recovered",
    "websocket-compact-new-chain": "compacted (slate)",
}


def run_suite(suite: Path, base_url: str, model: str) -> list[dict]:
    """The results of one run; all tests go out at once, as the suite does it."""
    command = [str(suite / "bun"), "run", "bin/compliance-test.ts", "--base-url", f"{base_url.rstrip('/')}/v1",
               "--api-key", "none", "--model", model, "--json"]
    ran = subprocess.run(command, cwd=suite, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    expect(ran.stdout.startswith("{"), f"status {ran.returncode}: {ran.stdout[-300:]} {ran.stderr[-300:]}")
    told = json.loads(ran.stdout)
    failed = [f"{r['id']}: {'; '.join(r.get('errors') or [])}" for r in told["results"] if r["status"] != "passed"]
    expect(not failed, " | ".join(failed))
    equal((told["summary"]["passed"], told["summary"]["total"], ran.returncode), (TESTS, TESTS, 0), "passed, of, status")
    return told["results"]


def last_response(result: dict) -> dict:
    """The last response object of a test, whatever shape it reports."""
    response = result["response"]
    if isinstance(response, list):
        return response[-1]
    return response.get("websocket") or response


def look_inside(results: list[dict]) -> None:
    by_id = {result["id"]: result for result in results}
    for name, wanted in SAYS.items():
        messages = [item for item in last_response(by_id[name])["output"] if item["type"] == "message"]
        equal("".join(part["text"] for item in messages for part in item["content"]), wanted, name)
    calls = [item for item in by_id["tool-calling"]["response"]["output"] if item["type"] == "function_call"]
    equal([(call["name"], json.loads(call["arguments"])) for call in calls],
          [("get_weather", {"location": "San Francisco"})], "tool-calling")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--suite", type=Path, required=True, help="where install.sh has put the suite")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--any-answer", action="store_true", help="for another model than the script's: the suite's verdict only")
    arguments = parser.parse_args()
    suite = arguments.suite.resolve()
    checks = Checks()

    def once() -> str:
        results = run_suite(suite, arguments.base_url, arguments.model)
        if not arguments.any_answer:
            look_inside(results)
        return f"{len(results)} tests"

    for number in range(1, arguments.runs + 1):
        checks.run(f"Open Responses suite, run {number}", once)
    checks.finish()


if __name__ == "__main__":
    sys.exit(main())
