#!/usr/bin/env python3
"""One picture of the index beside its rivals, as SVG written by hand.

Rows are corpora, columns are measures; in each panel the left half is random placement, the right half placement
by cached prefix, each with 8, 64 and 256 workers. Axes are logarithmic and start where the data does, so a
distance is a factor. Every line differs in colour and in the shape of its marks.

usage: plot.py RIVALS.jsonl... -o PICTURE.svg [--growth BENCH_INDEX.json] [--ours mainstay]
"""

import argparse
import html
import json
import math
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True
import report  # noqa: E402  (the figures are read the same way as for the tables)

# Okabe and Ito's palette: told apart with every common kind of colour blindness.
LINES = [
    ("Dynamo's best", report.DYNAMO, "#D55E00", "circle"),
    ("SMG", ["smg"], "#0072B2", "square"),
    ("prototype", ["proto"], "#8A8A8A", "diamond"),
    ("Mainstay", None, "#00735C", "triangle"),
]
CORPORA = [("weka", "Claude Code sessions"), ("conv", "chat (Mooncake)"), ("dyn", "Dynamo's shape")]
COLUMNS = [
    ("events", "events: CPU per block, ns"),
    ("future1", "lookup, coming requests: CPU, ns"),
    ("hot1", "lookup, served requests: CPU, ns"),
    ("p99future", "p99 of a lookup, coming, ns"),
    ("p99hot", "p99 of a lookup, served, ns"),
    ("bytes", "bytes per (worker, block)"),
]
WORKERS, ROUTES = [8, 64, 256], [("random", "random"), ("kv", "by prefix")]
WIDE, HIGH, GAP_X, GAP_Y, LEFT, TOP = 196, 168, 44, 56, 58, 104
INK, SOFT, GRID, PAPER = "#1f2328", "#59636e", "#e3e6ea", "#ffffff"


def text(x, y, words, size=11, anchor="start", colour=INK, weight="normal", turn=None):
    spin = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
            f'font-weight="{weight}"{spin}>{html.escape(words)}</text>')


def mark(shape, x, y, colour, size=4.0):
    s = size
    points = {
        "square": [(-s, -s), (s, -s), (s, s), (-s, s)],
        "diamond": [(0, -s * 1.35), (s * 1.35, 0), (0, s * 1.35), (-s * 1.35, 0)],
        "triangle": [(0, -s * 1.35), (s * 1.25, s), (-s * 1.25, s)],
    }.get(shape)
    rim = f'fill="{colour}" stroke="{PAPER}" stroke-width="1"'
    if points is None:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s}" {rim}/>'
    return f'<polygon points="{" ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in points)}" {rim}/>'


def ticks(low, high):
    """1, 2 and 5 of every decade; only the ones where that would crowd the axis."""
    steps = [1] if high / low > 400 else [1, 2, 5]
    found = [m * 10.0 ** e for e in range(-3, 10) for m in steps]
    return [t for t in found if low * 0.999 <= t <= high * 1.001]


def short(value):
    for limit, name in [(1e9, "G"), (1e6, "M"), (1e3, "k")]:
        if value >= limit:
            return f"{value / limit:.3g}{name}"
    return f"{value:g}"


def bounds(values):
    low, high = min(values), max(values)
    return low / 1.35, high * 1.35


class Panel:
    """One pair of axes; y is logarithmic, x is given in pixels from the left edge."""

    def __init__(self, left, top, low, high):
        self.left, self.top, self.low, self.high = left, top, low, high

    def y(self, value):
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return self.top + HIGH - part * HIGH

    def frame(self):
        out = []
        for tick in ticks(self.low, self.high):
            y = self.y(tick)
            out.append(f'<line x1="{self.left}" x2="{self.left + WIDE}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
            out.append(text(self.left - 6, y + 3.5, short(tick), 10, "end", SOFT))
        out.append(f'<line x1="{self.left}" x2="{self.left + WIDE}" y1="{self.top + HIGH}" y2="{self.top + HIGH}" stroke="{SOFT}"/>')
        return out

    def line(self, points, colour, shape, dash=""):
        places = [(self.left + x, self.y(v)) for x, v in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        out = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>'] if len(places) > 1 else []
        return out + [mark(shape, x, y, colour) for x, y in places]


def best(figures, config, names, measure):
    values = [figures.get((config, name), {}).get(measure) for name in names]
    values = [v for v in values if v]
    return min(values) if values else None


def place(route, workers):
    half = WIDE / 2
    return route * half + half * (0.5 + WORKERS.index(workers)) / len(WORKERS)


def rivals_panel(figures, corpus, measure, left, top, lines):
    series = []
    for name, names, colour, shape in lines:
        for at, (route, _) in enumerate(ROUTES):
            points = [(place(at, w), best(figures, f"{corpus}-{w}-{route}", names, measure)) for w in WORKERS]
            points = [(x, v) for x, v in points if v]
            if points:
                series.append((points, colour, shape, name))
    if not series:
        return []
    panel = Panel(left, top, *bounds([v for points, *_ in series for _, v in points]))
    out = panel.frame()
    middle = left + WIDE / 2
    out.append(f'<line x1="{middle}" x2="{middle}" y1="{top}" y2="{top + HIGH}" stroke="{GRID}" stroke-width="2"/>')
    for at, (_, words) in enumerate(ROUTES):
        out.append(text(left + WIDE * (0.25 + 0.5 * at), top + HIGH + 27, words, 10, "middle", SOFT))
        out += [text(left + place(at, w), top + HIGH + 14, str(w), 10, "middle", SOFT) for w in WORKERS]
    for points, colour, shape, _ in series:
        out += panel.line(points, colour, shape)
    return out


def growth_panel(points, words, left, top):
    warm = [(p["x"], p["warm_ns"]) for p in points if p.get("warm_ns")]
    cold = [(p["x"], p["cold_ns"]) for p in points if p.get("cold_ns")]
    values = [v for _, v in warm + cold]
    if not values:
        return []
    panel = Panel(left, top, *bounds(values))
    spread = [x for x, _ in warm + cold]
    low, high = min(spread), max(max(spread), min(spread) * 2)
    x = lambda value: 10 + (WIDE - 20) * math.log(value / low) / math.log(high / low)
    out = panel.frame() + [text(left, top - 9, words, 11, weight="600")]
    shown = sorted(set(spread))
    if len(shown) > 6:
        shown = [shown[round(i * (len(shown) - 1) / 4)] for i in range(5)]
    out += [text(left + x(v), top + HIGH + 14, short(v), 10, "middle", SOFT) for v in shown]
    colour, shape = LINES[-1][2:]
    for name, data, dash in [("cold", cold, ' stroke-dasharray="5 3"'), ("warm", warm, "")]:
        if data:
            out += panel.line([(x(a), v) for a, v in data], colour, shape, dash)
            out.append(text(left + x(data[-1][0]) - 4, panel.y(data[-1][1]) - 8, name, 10, "end", INK))
    return out


def legend(lines, y):
    out, x = [], LEFT
    for name, _, colour, shape in lines:
        out.append(f'<line x1="{x}" x2="{x + 26}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" stroke-width="1.8"/>')
        out += [mark(shape, x + 13, y - 4, colour, 4.5), text(x + 33, y, name, 12)]
        x += 62 + 7.2 * len(name)
    return out


def draw(figures, growth, ours):
    known = {index for _, index in figures}
    lines = [(n, names or [ours], c, s) for n, names, c, s in LINES if set(names or [ours]) & known]
    rows = [(key, words) for key, words in CORPORA if any(c.startswith(key + "-") for c, _ in figures)]
    width = LEFT + len(COLUMNS) * (WIDE + GAP_X)
    height = TOP + (len(rows) + bool(growth)) * (HIGH + GAP_Y) + 10 + 24 * bool(growth)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" role="img" aria-label="The block index beside its rivals">',
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        text(LEFT, 26, "The block index beside its rivals", 17, weight="600"),
        text(LEFT + 340, 26, "lower is better; logarithmic axes; below each panel the number of workers and how requests were placed", 12, colour=SOFT),
        *legend(lines, 54),
    ]
    for at, (_, words) in enumerate(COLUMNS):
        out.append(text(LEFT + at * (WIDE + GAP_X), TOP - 12, words, 11.5, weight="600"))
    for row, (corpus, words) in enumerate(rows):
        top = TOP + row * (HIGH + GAP_Y)
        out.append(text(16, top + HIGH / 2, words, 12, "middle", INK, "600", -90))
        for column, (measure, _) in enumerate(COLUMNS):
            out += rivals_panel(figures, corpus, measure, LEFT + column * (WIDE + GAP_X), top, lines)
    if growth:
        top = TOP + len(rows) * (HIGH + GAP_Y) + 24
        out.append(text(16, top + HIGH / 2, "growth of a lookup", 12, "middle", INK, "600", -90))
        names = {"depth": "ns by matched blocks", "workers_groups": "ns by workers (groups)", "entries": "ns by entries, all unique", "entries_replicated": "ns by entries, 16 copies"}
        for column, (key, words) in enumerate(names.items()):
            out += growth_panel(growth.get(key) or [], words, LEFT + column * (WIDE + GAP_X), top)
    return "\n".join([*out, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--growth", help="what `mainstay bench index -o json` printed")
    parser.add_argument("--ours", default="mainstay", help="the index drawn as Mainstay (default: mainstay)")
    options = parser.parse_args()
    figures, _, _ = report.read(options.files)
    if not figures:
        sys.exit("plot.py: no measurements in these files")
    growth = None
    if options.growth:
        with open(options.growth, encoding="utf-8") as file:
            growth = json.load(file).get("growth")
    with open(options.out, "w", encoding="utf-8") as file:
        file.write(draw(figures, growth, options.ours))


if __name__ == "__main__":
    main()
