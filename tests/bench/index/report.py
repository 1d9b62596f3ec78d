#!/usr/bin/env python3
"""The index beside its rivals: reads what rivals.sh wrote and prints Markdown.

A figure is the least of all runs of one index on one configuration: noise on a shared machine only adds. The
rival of a measure is the better figure of every index that Dynamo ships, whichever that is on that
configuration and that measure. A ratio is ours / theirs, so below 1 is ahead.

usage: report.py FILE.jsonl... [--ours mainstay] [--brief]
"""

import argparse
import collections
import json
import math
import re
import sys

DYNAMO = ["crtc", "radix", "positional", "positional-binary", "bsi"]
ORDER = [*DYNAMO, "smg", "proto", "proto-groups", "mainstay", "mainstay-groups", "mainstay-128", "mainstay-runs", "null"]
# measure: (heading, unit); the bars are ours / Dynamo's best and ours / SMG.
MEASURES = {
    "events": ("events, 1 lane", "ns per block"),
    "events2": ("events, 2 lanes", "ns per block"),
    "future1": ("lookup of coming requests, 1 reader", "ns"),
    "future2": ("lookup of coming requests, 2 readers", "ns"),
    "hot1": ("lookup of served requests, 1 reader", "ns"),
    "hot2": ("lookup of served requests, 2 readers", "ns"),
    "p99future": ("p99 of lookups, coming requests", "ns"),
    "p99hot": ("p99 of lookups, served requests", "ns"),
    "bytes": ("memory", "bytes per (worker, block)"),
}
GROUPS = [
    ("CPU per applied block operation", ["events", "events2"], 1 / 5, 1 / 2),
    ("CPU per lookup", ["future1", "future2", "hot1", "hot2"], 1 / 8, 1 / 3),
    ("p99 of a lookup", ["p99future", "p99hot"], 1 / 6, 1 / 2),
    ("bytes per (worker, block)", ["bytes"], 1 / 4, 2 / 3),
]


def read(paths):
    """figures[(config, index)][measure] = least value; facts[config] = what the corpus was; wrong = verify rows."""
    figures = collections.defaultdict(dict)
    facts, wrong = {}, []
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                take(row, figures, facts, wrong)
    return figures, facts, wrong


def take(row, figures, facts, wrong):
    config, index, bench = row["cfg"], row["index"], row["bench"]
    least = lambda key, value: figures[config, index].__setitem__(
        key, min(value, figures[config, index].get(key, math.inf)))
    if bench == "corpus":
        facts.setdefault(config, {}).update(row)
    elif bench == "events":
        least("events" if row["lanes"] == 1 else f"events{row['lanes']}", row["ns_per_block_cpu"])
        facts.setdefault(config, {})["blocks_per_event"] = row["blocks"] / row["events"]
    elif bench == "lookup":
        least(f"{row['qset']}{row['readers']}", row["cpu_ns_per_lookup"])
        if "p99_ns" in row:
            least(f"p50{row['qset']}", row["p50_ns"])
            least(f"p99{row['qset']}", row["p99_ns"])
        facts.setdefault(config, {})[row["qset"]] = (
            row["mean_query_blocks"], row["mean_best_match"], row["mean_workers_scored"])
    elif bench == "memory":
        heap = row["heap_bytes"]
        # What an index maps itself escapes the counting allocator: its own account counts where it is larger.
        own = re.search(r"sum (\d+)", row.get("note") or "")
        least("bytes", max(heap, int(own.group(1)) if own else 0) / row["entries"])
        least("rss", row["rss_per_entry"])
        facts.setdefault(config, {})["entries"] = (row["entries"], row["unique_blocks"])
    elif bench == "memory_after_sweep":
        least("bytes", row["heap_per_entry"])
        least("rss", row["rss_per_entry"])
    if bench.startswith("verify") and index != "null" and row["mismatched_queries"]:
        wrong.append(row)


def ratio(figures, config, ours, theirs, measure):
    mine = figures.get((config, ours), {}).get(measure)
    rivals = [figures.get((config, name), {}).get(measure) for name in theirs]
    rivals = [value for value in rivals if value]
    return mine / min(rivals) if mine and rivals else None


def mean(values):
    values = [v for v in values if v]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def show(value, digits=3):
    if value is None:
        return "-"
    if digits == 0:
        return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
    return f"{value:.{digits}f}"


def table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def summary(figures, configs, ours):
    against = [("Dynamo's best", DYNAMO), ("SMG", ["smg"]), ("prototype", ["proto"])]
    rows = []
    for heading, measures, bar_dynamo, bar_smg in GROUPS:
        for part in [[m] for m in measures] + ([measures] if len(measures) > 1 else []):
            whole = len(part) == len(measures)
            cells = [f"**{heading}**" if whole else MEASURES[part[0]][0]]
            for (_, theirs), bar in zip(against, [bar_dynamo, bar_smg, None]):
                ratios = {(c, m): ratio(figures, c, ours, theirs, m) for c in configs for m in part}
                ratios = {key: value for key, value in ratios.items() if value}
                middle = mean(ratios.values())
                worst = max(ratios, key=ratios.get) if ratios else None
                cells.append(show(middle) if middle else "-")
                if bar:
                    verdict = "" if not middle or not whole else (" met" if middle <= bar else " **missed**")
                    cells.append(f"{bar:.3f}{verdict}")
                    cells.append(f"{ratios[worst]:.2f} {worst[0]}" if worst else "-")
            rows.append(cells)
    table(["measure", "ours / Dynamo's best", "bar", "worst", "ours / SMG", "bar", "worst", "ours / prototype"], rows)


def behind(figures, configs, ours):
    found = []
    for measure, (heading, _) in MEASURES.items():
        for name, theirs in [("Dynamo's best", DYNAMO), ("SMG", ["smg"])]:
            for config in configs:
                value = ratio(figures, config, ours, theirs, measure)
                if value and value >= 1:
                    found.append(f"- {config}, {heading}: {value:.2f} x {name}")
    print("\n".join(found) if found else "None: ahead of Dynamo's best and of SMG on every configuration and measure.")
    print()


def ratios(figures, configs, ours):
    for heading, theirs in [("Dynamo's best", DYNAMO), ("SMG", ["smg"]), ("the prototype", ["proto"])]:
        print(f"### {ours} / {heading}\n")
        rows = []
        for config in configs:
            cells = [show(ratio(figures, config, ours, theirs, m)) for m in MEASURES]
            rows.append([config] + [f"**{c}**" if c != "-" and float(c) >= 1 else c for c in cells])
        rows.append(["geometric mean"] + [show(mean([ratio(figures, c, ours, theirs, m) for c in configs])) for m in MEASURES])
        table(["configuration", *MEASURES], rows)


def absolute(figures, facts, configs):
    for config in configs:
        fact = facts.get(config, {})
        future, hot = fact.get("future"), fact.get("hot")
        words = [f"{fact.get('requests')} requests, {fact.get('events')} events of {fact.get('blocks_per_event', 0):.0f} blocks"]
        if "entries" in fact:
            words.append(f"{fact['entries'][0]} entries ({fact['entries'][1]} blocks)")
        for name, shape in [("coming", future), ("served", hot)]:
            if shape:
                words.append(f"{name}: {shape[0]:.0f} blocks asked, {shape[1]:.0f} matched, {shape[2]:.0f} workers")
        print(f"### {config}\n\n{'; '.join(words)}.\n")
        rows = []
        for index in sorted({i for c, i in figures if c == config}, key=lambda i: ORDER.index(i) if i in ORDER else 99):
            f = figures[config, index]
            if not f:
                continue
            rows.append([index] + [show(f.get(k), 0) for k in [
                "events", "events2", "future1", "future2", "hot1", "hot2", "p50future", "p99future", "p50hot", "p99hot", "bytes", "rss"]])
        table(["index", "events", "2 lanes", "future", "2 readers", "hot", "2 readers",
               "p50 future", "p99 future", "p50 hot", "p99 hot", "bytes", "RSS"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--ours", default="mainstay", help="the index that is judged (default: mainstay)")
    parser.add_argument("--brief", action="store_true", help="the summary and what is behind, no tables per configuration")
    options = parser.parse_args()
    figures, facts, wrong = read(options.files)
    configs = list(dict.fromkeys(config for config, _ in figures))
    judged = [i for i in ORDER if i == options.ours or i.startswith(options.ours + "-")]
    judged = [i for i in judged if any((c, i) in figures for c in configs)]
    if not configs:
        sys.exit("report.py: no measurements in these files")
    print(f"# The block index beside its rivals\n\n{len(configs)} configurations. CPU time, least of all runs; "
          "ratios are ours / theirs, geometric means over the configurations; in bold: not ahead.\n")
    if not judged:
        print(f"No figures of {options.ours}: the rivals alone.\n")
    for index in judged:
        print(f"## {index}\n")
        summary(figures, configs, index)
        if index == options.ours:
            print("### Not ahead\n")
            behind(figures, configs, index)
            if not options.brief:
                ratios(figures, configs, index)
    print("## Wrong answers\n")
    for row in wrong:
        print(f"- {row['cfg']} {row['index']} {row.get('qset', 'after the replay')}: {row['mismatched_queries']} of "
              f"{row['queries']} ({row.get('example', '')})")
    print("" if wrong else "None: every sampled answer of every index equals the model's.\n")
    if not options.brief:
        print("## Figures\n\nns of CPU per block (events) or per lookup; p50 and p99 in ns; bytes per (worker, block).\n")
        absolute(figures, facts, configs)


if __name__ == "__main__":
    main()
