"""Made-up rows of a crowd of workers, fed into the page in place of a gateway's, to see whether it stays quick.

Only the numbers are made up: the page that draws them is the one that is served.
"""

WORKERS = 1_000
BLOCKS = 100_000


def worker(number: int, tick: int) -> dict:
    total = 4_096
    cached = (number * 37 + tick * 11) % total
    return {
        "id": number, "name": f"w{number}", "address": f"10.0.{number // 250}.{number % 250}:7500",
        "region": ["east", "west"][number % 2], "model": "crowd", "epoch": 1, "state": "live", "changed_index": number,
        "routable": number % 97 != 0, "heard": number % 89 != 0, "draining": False, "running": (number + tick) % 9,
        "waiting": (number * tick) % 5, "waiting_prefill_tokens": 0, "blocks_total": total,
        "blocks_used": min(total, cached + 40), "blocks_pinned": cached // 4, "blocks_cached": cached,
        "blocks_indexed": cached, "tiers": [{"tier": "device", "pinned": cached // 4, "sole": cached // 2,
                                             "shared": cached - cached // 4 - cached // 2}],
        "hit_tokens": number * 900 + tick * 16, "query_tokens": number * 1_000 + tick * 20, "evictions": tick * number,
        "prefill_us_per_token": 12.5, "decode_us_per_step": 9_000,
    }


def frame(tick: int, now_unix_ms: int) -> dict:
    rows = {str(n): worker(n, tick) for n in range(1, WORKERS + 1)}
    about = {"index_blocks": BLOCKS, "live": WORKERS, "classes_counted": True, "entries_max": 524_288}
    return {"topic": "workers", "now_unix_ms": now_unix_ms, "whole": tick == 0, "has_more": False, "about": about,
            "rows": rows, "gone": []}


def blocks(number: int) -> dict:
    """A hundred thousand blocks in runs of many lengths."""
    runs, left, at = [], BLOCKS, 0
    while left:
        length = min(left, 20 + (at * 7_919) % 900)
        head = length // 3
        runs.append([piece for piece in ([head, 1, 3, 1], [length - head, 1, 1 + at % 2, 0]) if piece[0]])
        left, at = left - length, at + 1
    return {"object": "console.blocks", "worker": number, "name": f"w{number}", "blocks": BLOCKS, "left_out": 0,
            "runs": runs, "others": []}
