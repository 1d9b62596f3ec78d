"""CPU a request, latency and memory of Mainstay's gateway, Dynamo's frontend and smg, over one kind of mock.

    tests/bench/gateway/rivals.sh [--only NAMES] [--phases NAMES] [--out FILE]     # installs the rivals, then this

Sessions of an agent walk from --first-tokens to --last-tokens, interleaved, so that a session's next turn
comes after every other session's. Phases, each with sessions of its own: `whole` and `stream` (a closed loop with one
request at a time: CPU a request, cold for the first turns and warm for the others), `open` (warm turns at --rate
a second: p99) and `memory` (--memory-requests short requests: resident memory after each tenth).
Each phase begins with a fresh front end. One JSON line for each figure goes to --out; the table is made of them.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from conversations import OUTPUT_TOKENS, Conversations, Session
from front_ends import ALL, CACHE_TOKENS, FrontEnd, OTHER_CORE, Worker
from load import Outcome, Said, drive, read
from load_grpc import drive_grpc, messages, prompts
from table import show

PHASES = ("whole", "stream", "open", "memory")
AT_ONCE = 4
TOKENISING = ("smg-grpc", "dynamo")
# Front ends may print a call's arguments anew, which moves a token here and there.
UNLIKE_TOKENS_MAX = 10
SMALL_CACHE_TOKENS = 1 << 18


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


class Bench:
    def __init__(self, args: argparse.Namespace, places: dict[str, Path]):
        from tokenizers import Tokenizer
        self.args, self.places = args, places
        self.tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
        self.sessions: dict[tuple, list[Session]] = {}

    def conversations(self, turns: int, stream: bool, first: int, last: int, many: int, seed: int) -> list[Session]:
        key = (turns, stream, first, last, many, seed)
        if key not in self.sessions:
            maker = Conversations(self.tokenizer, self.args.seed, first, last, turns)
            self.sessions[key] = maker.sessions(seed, many, stream)
        return self.sessions[key]

    def told(self, front: FrontEnd, phase: str, outcome: Outcome, cpu_ms: float, **more) -> None:
        """Checks every answer, then says the phase's figures."""
        said = [read(answer.raw) if answer.raw else Said(0, OUTPUT_TOKENS, answer.cached_tokens, 0) for answer in outcome.answers]
        faults = [one.fault for one in said if one.fault]
        wrong = [one for one in said if not one.fault and one.completion_tokens != OUTPUT_TOKENS]
        good = [one for one in said if not one.fault]
        many = max(len(outcome.answers), 1)
        latency = [answer.latency_ms for answer in outcome.answers]
        first = [answer.first_ms for answer in outcome.answers]
        if self.args.each:
            with self.args.each.open("a") as out:
                out.write(json.dumps([front.name, phase, [round(value, 2) for value in latency]]) + "\n")
        line = {"front": front.name, "phase": phase, "round": self.args.round, "requests": len(outcome.answers),
                "failed": outcome.failed + len(faults) + len(wrong), "why": (faults + [outcome.why])[0],
                "cpu_ms": cpu_ms / many, "cpu_share": cpu_ms / 1e3 / outcome.took_s, "rps": many / outcome.took_s,
                "p50_ms": percentile(latency, 0.5), "p99_ms": percentile(latency, 0.99), "first_p50_ms": percentile(first, 0.5),
                "first_p99_ms": percentile(first, 0.99), "rss_mib": front.rss_mib(),
                "prompt_tokens": statistics.mean(one.prompt_tokens for one in good) if good else 0,
                "cached_tokens": statistics.mean(one.cached_tokens for one in good) if good else 0,
                "events": statistics.mean(one.events for one in good) if good else 0, **more}
        with self.args.out.open("a") as out:
            out.write(json.dumps({key: round(v, 4) if isinstance(v, float) else v for key, v in line.items()}) + "\n")
        print(f"{front.name:12} {phase:12} {line['requests']:7} requests, {line['failed']} failed, CPU {line['cpu_ms']:8.3f} ms, "
              f"p50 {line['p50_ms']:8.2f}, p99 {line['p99_ms']:8.2f} ms, {line['rps']:7.1f}/s, RSS {line['rss_mib']:6.0f} MiB, "
              f"prompt {line['prompt_tokens']:.0f} (cached {line['cached_tokens']:.0f}) {line['why'][:200]}", flush=True)

    def step(self, front: FrontEnd, phase: str, sessions: list[Session], turns: range, rate: float | None = None) -> None:
        """These turns of all sessions, session by session in each turn."""
        if isinstance(front, Worker):
            wire = messages()
            prepared = prompts(wire, self.tokenizer, sessions, turns)
            self.told(front, phase, drive_grpc(front.worker_ports, wire, prepared, len(sessions), rate), 0.0)
            return
        bodies = [session.body(turn) for turn in turns for session in sessions]
        before = front.cpu_ms()
        outcome = drive("127.0.0.1", front.port, bodies, 1, rate)
        self.told(front, phase, outcome, front.cpu_ms() - before)

    def turns(self, front: FrontEnd, phase: str) -> None:
        """Cold first turns, then the others."""
        args = self.args
        sessions = self.conversations(args.turns, phase == "stream", args.first_tokens, args.last_tokens, args.sessions,
                                      {"whole": 0, "stream": 1000}[phase])
        self.step(front, f"{phase}-cold", sessions, range(1))
        self.step(front, f"{phase}-warm", sessions, range(1, args.turns))

    def open(self, front: FrontEnd) -> None:
        args = self.args
        sessions = self.conversations(args.open_turns, False, args.first_tokens, args.last_tokens, args.sessions, 2000)
        self.step(front, "open-cold", sessions, range(1))
        self.step(front, f"open-{args.rate:g}", sessions, range(1, args.open_turns), args.rate)

    def memory(self, front: FrontEnd) -> None:
        """Many short requests, all different; their bodies are made tenth by tenth, and the front end rests meanwhile."""
        tenth = max(self.args.memory_requests // 10, 1)
        maker = Conversations(self.tokenizer, self.args.seed, 0, 0, 0)
        for part in range(10):
            bodies = [maker.short(number) for number in range(part * tenth, (part + 1) * tenth)]
            before = front.cpu_ms()
            outcome = drive("127.0.0.1", front.port, bodies, AT_ONCE)
            self.told(front, "memory", outcome, front.cpu_ms() - before, done=(part + 1) * tenth)

    def run(self) -> None:
        for self.args.round in range(1, self.args.rounds + 1):
            for phase in self.args.phases:
                for name in self.args.only:
                    if (phase, name) == ("memory", "worker"):
                        continue
                    # Short requests are many and all new: there it is evictions that keep an index small.
                    tokens = SMALL_CACHE_TOKENS if phase == "memory" else CACHE_TOKENS
                    with ALL[name](self.places, self.args.model, self.args.token_ms, tokens) as front:
                        action = {"open": self.open, "memory": self.memory}.get(phase)
                        action(front) if action else self.turns(front, phase)
                        if self.args.hold_s:
                            print(f"{name}: front end {front.front.pid}", flush=True)
                            time.sleep(self.args.hold_s)


def faults(path: Path) -> list[str]:
    """Requests that failed, and front ends that read other prompts than ours from the same bytes."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = [f"{one['front']}, {one['phase']}: {one['failed']} failed: {one['why']}" for one in lines if one["failed"]]
    ours = {one["phase"]: one["prompt_tokens"] for one in lines if one["front"] == "mainstay" and not one["failed"]}
    for one in lines:
        if one["front"].startswith(TOKENISING) and abs(one["prompt_tokens"] - ours.get(one["phase"], one["prompt_tokens"])) > UNLIKE_TOKENS_MAX:
            found.append(f"{one['front']}, {one['phase']}: {one['prompt_tokens']:.0f} tokens a prompt, ours has {ours[one['phase']]:.0f}")
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = lambda text: text.split(",")
    parser.add_argument("--only", type=names, default=list(ALL), help=f"of {','.join(ALL)}")
    parser.add_argument("--phases", type=names, default=["whole", "stream", "open"], help=f"of {','.join(PHASES)}")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sessions", type=int, default=40)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--open-turns", type=int, default=26)
    parser.add_argument("--first-tokens", type=int, default=28_000)
    parser.add_argument("--last-tokens", type=int, default=32_000)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--memory-requests", type=int, default=100_000)
    parser.add_argument("--token-ms", type=float, default=0.0, help="time between two tokens of the mocks; Dynamo's has none")
    parser.add_argument("--each", type=Path, help="a file for the latency of each request")
    parser.add_argument("--nice", type=int, default=0, help="of everything measured; below 0 keeps others' work out, as root")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hold-s", type=float, default=0.0, help="how long to keep each front end after its phase")
    parser.add_argument("--model", type=Path, required=True, help="folder with the tokenizer and the template")
    parser.add_argument("--mainstay", type=Path, required=True)
    parser.add_argument("--dynamo", type=Path, required=True, help="its virtual environment")
    parser.add_argument("--smg", type=Path, required=True, help="its virtual environment")
    parser.add_argument("--out", type=Path, help="lines are added to it, and the table is of all of them [default: a new file]")
    args = parser.parse_args()
    if unknown := (set(args.only) - set(ALL)) | (set(args.phases) - set(PHASES)):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return args


def main() -> int:
    args = arguments()
    os.sched_setaffinity(0, {OTHER_CORE})
    # Ended from outside, it still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.setpriority(os.PRIO_PROCESS, 0, args.nice)
    places = {name: getattr(args, name).absolute() for name in ("mainstay", "dynamo", "smg")}
    args.model = args.model.absolute()
    args.out = args.out or Path(tempfile.mkdtemp(prefix="gateway-cost-")) / "lines.jsonl"
    Bench(args, places).run()
    print(f"{args.out}\n{show(args.out)}")
    wrong = faults(args.out)
    print("\n".join(wrong), end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
