"""The table of a run, from its JSON lines: medians over rounds, and latency over the mock's own."""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path


def show(path: Path) -> str:
    found: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for line in path.read_text().splitlines():
        one = json.loads(line)
        if one["phase"] != "memory":
            found[one["phase"], one["front"]].append(one)
    rows = ["| phase | front end | requests (failed) | CPU a request (ms) | p50 (ms) | p99 (ms) | added p50 | added p99 | requests a second | RSS (MiB) | prompt (cached) |",
            "|---|---|---|---|---|---|---|---|---|---|---|"]

    def median(phase: str, front: str, key: str) -> float:
        return statistics.median(one[key] for one in found[phase, front]) if (phase, front) in found else float("nan")

    for phase, front in found:
        mid = lambda key: median(phase, front, key)
        added = [mid(key) - median(phase, "mock", key) for key in ("p50_ms", "p99_ms")]
        requests, failed = (sum(one[key] for one in found[phase, front]) for key in ("requests", "failed"))
        rows.append(f"| {phase} | {front} | {requests} ({failed}) | {mid('cpu_ms'):.3f} | {mid('p50_ms'):.2f} | {mid('p99_ms'):.2f} | "
                    f"{added[0]:.2f} | {added[1]:.2f} | {mid('rps'):.0f} | {mid('rss_mib'):.0f} | "
                    f"{mid('prompt_tokens'):.0f} ({mid('cached_tokens'):.0f}) |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(show(Path(sys.argv[1])))
