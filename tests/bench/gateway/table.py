"""The table of a run, from its JSON lines: medians over rounds, and latency over that of the engine asked directly."""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

# Which engine a front end's latency is held against, where that can be asked directly.
ENGINE = {"mainstay": "worker", "smg-http": "mock"}
HEAD = ("phase", "front end", "requests (failed)", "CPU a request (ms)", "p50 (ms)", "p99 (ms)", "p50, p99 over its engine",
        "p50, p99 over the HTTP mock", "requests a second", "RSS (MiB)", "prompt tokens (cached)")


def show(path: Path) -> str:
    found: dict[tuple[str, str], list[dict]] = defaultdict(list)
    grown: dict[str, list[str]] = defaultdict(list)
    for line in path.read_text().splitlines():
        one = json.loads(line)
        if one["phase"] == "memory":
            grown[one["front"]].append(f"{one['done']}: {one['rss_mib']:.0f}")
        else:
            found[one["phase"], one["front"]].append(one)

    def median(phase: str, front: str, key: str) -> float:
        return statistics.median(one[key] for one in found[phase, front])

    def over(phase: str, front: str, engine: str | None) -> str:
        if engine is None or (phase, engine) not in found:
            return "-"
        return ", ".join(f"{median(phase, front, key) - median(phase, engine, key):.2f}" for key in ("p50_ms", "p99_ms"))

    rows = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"] if found else []
    for phase, front in list(found):
        mid = {key: median(phase, front, key) for key in found[phase, front][0] if key.endswith(("_ms", "rps", "_mib", "_tokens"))}
        requests, failed = (sum(one[key] for one in found[phase, front]) for key in ("requests", "failed"))
        cells = [phase, front, f"{requests} ({failed})", f"{mid['cpu_ms']:.3f}", f"{mid['p50_ms']:.2f}", f"{mid['p99_ms']:.2f}",
                 over(phase, front, ENGINE.get(front)), over(phase, front, "mock"), f"{mid['rps']:.0f}", f"{mid['rss_mib']:.0f}",
                 f"{mid['prompt_tokens']:.0f} ({mid['cached_tokens']:.0f})"]
        rows.append("| " + " | ".join(cells) + " |")
    rows += [f"RSS in MiB of {front} after so many short requests: {', '.join(sizes)}" for front, sizes in grown.items()]
    return "\n".join(rows)


if __name__ == "__main__":
    print(show(Path(sys.argv[1])))
