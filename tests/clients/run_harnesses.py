"""Real harnesses finish real work against a cluster, alone on a machine without a network.

Parts (--part): `tasks`: Claude Code, Codex and opencode (with each of its three APIs) read
a file, run a command and answer, against 2 gateways and 3 workers. `session`: one Claude
Code session of 40 commands, whose cache hits are held against what an infinite cache
gives and whose usage must add up to the token. `faults`: each fault of the table is put
between client and server at the second turn; the client must end as real ones do, and
the turn after the fault must find the blocks of the turn before.

Models are played by the sim engine with the script harness/task.toml. The harnesses are
installed by harness/install.sh; nothing is fetched here. Needs Linux namespaces.
"""

import argparse
import json
import secrets
import sys
import tempfile
from pathlib import Path

from checks import Checks, Server, equal, expect
from harness import netns
from harness.clients import Claude, Client, Codex, Opencode, Outcome
from harness.cluster import MODEL, Cluster
from harness.faults import check_faults
from harness.proxy import Proxy, Record

BLOCK_TOKENS = 16
SESSION_STEPS = 40
# The hit rate may be this far from an infinite cache's; more than that one's would show that the two saw different turns.
HIT_RATE_SLACK = 0.01
NOTES = "alpha\nbeta\nnonce-{}\ngamma\n"


class Workplace:
    """The folder that harnesses work in, with a file that nobody can guess."""

    def __init__(self, scratch: Path):
        self.scratch, self.nonce = scratch, secrets.token_hex(4)
        self.folder = scratch / "project"
        self.folder.mkdir()
        (self.folder / "notes.txt").write_text(NOTES.format(self.nonce))
        self.lines, self.prompts = NOTES.count("\n"), 0

    def script(self) -> Path:
        text = (Path(__file__).parent / "harness/task.toml").read_text()
        path = self.scratch / "task.toml"
        path.write_text(text.replace("@FOLDER@", str(self.folder)).replace("@STEPS@", str(SESSION_STEPS)))
        return path

    def clients(self, installed: Path) -> list[Client]:
        def common(name: str) -> dict:
            return {"name": name, "installed": installed, "folder": self.folder, "home": self.scratch / f"home-{name}",
                    "task": name.split("-")[0]}
        opencodes = [Opencode(**common(f"opencode-{api}"), api=api) for api in ("chat", "messages", "responses")]
        return [Claude(**common("claude")), Codex(**common("codex")), *opencodes]

    def prompt(self, client: Client) -> str:
        """Another one each time, so that no run finds the blocks of the one before."""
        self.prompts += 1
        return f"TASK {client.task} number {self.prompts}: read notes.txt here, count its lines with a command, tell me the nonce and the count."

    def expect_done(self, outcome: Outcome) -> None:
        wanted = f"The nonce is {self.nonce} and the file has {self.lines} lines."
        expect(outcome.status == 0 and wanted in outcome.output,
               f"status {outcome.status}; printed {outcome.output[-300:]!r}; said {outcome.errors[-300:]!r}")


def turns(records: list[Record]) -> list[Record]:
    return [record for record in records if record.has_tools()]


def check_task(client: Client, place: Workplace, proxy: Proxy) -> str:
    proxy.begin()
    outcome = client.run(proxy.url, place.prompt(client))
    place.expect_done(outcome)
    made = turns(proxy.records)
    equal(len(made), 3, "turns with tools")
    refused = [record for record in proxy.records if record.api and record.status != 200]
    expect(not refused, f"{len(refused)} requests were refused, first {refused[:1]}")
    gateways = {record.gateway for record in proxy.records if record.api}
    equal(len(gateways), len(proxy.gateways), "gateways that served it")
    used = [record.usage() for record in made]
    expect(all(used), "a turn told no usage")
    for before, after in zip(used, used[1:]):
        expect(after.cached > before.prompt - 3 * BLOCK_TOKENS, f"a turn hit {after.cached} of the {before.prompt} tokens before it")
    return f"{len(made)} turns of {used[0].prompt} to {used[-1].prompt} tokens, {used[-1].cached} cached in the last"


def counted(server: Server, record: Record) -> int:
    """The prompt's tokens by the endpoint that only counts."""
    body = {key: value for key, value in record.json().items() if key not in ("stream", "max_tokens")}
    reply = server.request("POST", "/v1/messages/count_tokens", body)
    equal(reply.status, 200, "status of count_tokens")
    return reply.json()["input_tokens"]


def check_session(client: Client, proxy: Proxy, oracle: Cluster) -> str:
    """`oracle` has one worker that never evicts: what it hits is what an infinite cache gives."""
    proxy.begin()
    outcome = client.run(proxy.url, "TASK session: run the steps, one command each, until all are finished.")
    expect(outcome.status == 0 and "All steps are finished." in outcome.output,
           f"status {outcome.status}; printed {outcome.output[-300:]!r}; said {outcome.errors[-300:]!r}")
    made = turns(proxy.records)
    expect(len(made) > SESSION_STEPS, f"only {len(made)} calls")
    host, port = oracle.gateways[0]
    infinite = Server(f"http://{host}:{port}", "none")
    sums = {"prompt": 0, "cached": 0, "created": 0, "bound": 0, "output": 0}
    for number, record in enumerate(made, 1):
        used = record.usage()
        expect(used is not None, f"call {number} told no usage")
        equal(used.prompt, counted(infinite, record), f"tokens of call {number}, told and counted")
        best = ask(infinite, record)
        equal(best.prompt, used.prompt, f"tokens of call {number} there and here")
        equal(best.output, used.output, f"tokens said in call {number} there and here")
        for key, value in [("prompt", used.prompt), ("cached", used.cached), ("created", used.created),
                           ("bound", best.cached), ("output", used.output)]:
            sums[key] += value
    rate, bound = sums["cached"] / sums["prompt"], sums["bound"] / sums["prompt"]
    expect(abs(rate - bound) < HIT_RATE_SLACK, f"hit rate {rate:.4f}, an infinite cache has {bound:.4f}")
    written = sums["prompt"] - sums["cached"]
    return (f"{len(made)} calls, {sums['prompt']} prompt tokens; hit rate {rate:.4f} of at most {bound:.4f}; "
            f"read/write {sums['cached'] / written:.1f}; cache_creation {sums['created']}; usage exact on each")


def check_session_apart(checks: Checks, client: Client, place: Workplace, arguments: argparse.Namespace) -> None:
    """On a cluster of its own: on the other one the tasks have left blocks that the oracle never saw."""
    binary, script = arguments.binary.resolve(), place.script()
    clusters: list[Cluster] = []
    try:
        clusters.append(Cluster(binary, script, engine=arguments.engine))
        clusters.append(Cluster(binary, script, gateways=1, workers=1, engine=arguments.engine))
        proxy = Proxy(clusters[0].gateways)
        try:
            checks.run(f"a session of {SESSION_STEPS} steps", lambda: check_session(client, proxy, clusters[1]))
            keep(arguments.keep, "session", proxy)
        finally:
            proxy.close()
    finally:
        for cluster in clusters:
            cluster.close()


def ask(server: Server, record: Record):
    reply = server.request("POST", "/v1/messages", {**record.json(), "stream": False})
    equal(reply.status, 200, "status of the same call elsewhere")
    return Record("POST", "/v1/messages", {}, b"", 0.0, 200, reply.body).usage()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, required=True, help="the mainstay program")
    parser.add_argument("--installed", type=Path, required=True, help="where install.sh has put the harnesses")
    parser.add_argument("--engine", default="sim", help="the sim engine's library, where the program has none of its own")
    parser.add_argument("--part", action="append", choices=["tasks", "session", "faults"], help="default: all")
    parser.add_argument("--only", default="", help="run the checks whose name contains this")
    parser.add_argument("--keep", type=Path, help="write what passed through the proxy to this folder")
    arguments = parser.parse_args()
    netns.enter()
    parts = arguments.part or ["tasks", "session", "faults"]
    checks = Checks(arguments.only)
    with tempfile.TemporaryDirectory(prefix="mainstay-harness-") as scratch:
        place = Workplace(Path(scratch))
        clients = place.clients(arguments.installed.resolve())
        cluster = Cluster(arguments.binary.resolve(), place.script(), engine=arguments.engine)
        proxy = Proxy(cluster.gateways)
        try:
            if "tasks" in parts:
                for client in clients:
                    checks.run(f"{client.name} finishes a task", lambda: check_task(client, place, proxy))
                    keep(arguments.keep, client.name, proxy)
            if "session" in parts:
                check_session_apart(checks, clients[0], place, arguments)
            if "faults" in parts:
                check_faults(checks, clients, place, proxy, arguments.keep)
        finally:
            proxy.close()
            cluster.close()
    checks.finish()


def keep(folder: Path | None, name: str, proxy: Proxy) -> None:
    """For whoever looks into a failure."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for number, record in enumerate(proxy.records, 1):
        path = folder / f"{name}-{number:03}.json"
        path.write_text(json.dumps({"path": record.path, "status": record.status, "fault": record.fault,
                                    "body": record.body.decode(errors="replace"),
                                    "answer": record.answer.decode(errors="replace")}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
