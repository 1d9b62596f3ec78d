"""The console in a headless browser, against a cluster of real processes with agents at work.

Every page in both themes and at two widths: live data, no error in its log, no serious finding of axe, a picture. Then
what pages alone don't show: first paint, a killed worker, a gateway that comes back, a key that is asked for, the
keyboard, a crowd of workers. Exit status 0 if nothing is wrong, 1 if something is, 77 without a browser.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "clients")]

from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser, Page, Route, sync_playwright  # noqa: E402

from harness.cluster import MODEL, Cluster, free_port  # noqa: E402
from traffic import MARKER, Traffic  # noqa: E402

# What must be on each page once it has its data.
PAGES = {
    "overview": ("svg.plot path[d^=M]", "Found in caches"),
    "residency": ("tbody tr", "w3"),
    "pins": (".left", "active"),
    "sessions": ("tbody tr .rowbutton", "agent-"),
    "routing": ("tbody .stack i", "chosen"),
    "members": ("tbody tr", "leader"),
    "config": ("dl.pairs dd", "requests_max"),
}
TOPICS = ["overview", "workers", "pins", "sessions", "decisions", "members", "history", "config"]
WIDTHS = {1280: 860, 390: 844}
THEMES = ["light", "dark"]
WAIT_MS = 30_000
# Slow enough to be seen, small enough to evict.
ENGINE = "prefill_us_per_token = 150\ndecode_us_per_token = 20000\nblocks = 1500\n"
# axe's words for what makes a page unusable for somebody.
SERIOUS = {"serious", "critical"}


class Check:
    """One run: what was looked at, and what was wrong."""

    def __init__(self, browser: Browser, shots: Path, assets: Path | None = None):
        self.browser, self.shots, self.assets = browser, shots, assets
        self.wrong: list[str] = []
        self.passed = 0

    def expect(self, holds: bool, words: str) -> None:
        if holds:
            self.passed += 1
        else:
            self.wrong.append(words)
            print(f"FAILED {words}")

    def page(self, name: str, width: int = 1280, theme: str = "light") -> Page:
        context = self.browser.new_context(viewport={"width": width, "height": WIDTHS[width]}, color_scheme=theme)
        if self.assets:
            context.route(re.compile(r"://[^/]+/console/[^/]*$"), self.from_folder)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        complain = self.wrong.append
        page.on("pageerror", lambda error: complain(f"{name}: {error}"))
        page.on("console", lambda message: message.type in ("error", "warning") and complain(f"{name}: {message.text}"))
        return page

    def from_folder(self, route: Route) -> None:
        """The file as it is in the folder, with the headers that the program gives it."""
        name = route.request.url.rsplit("/", 1)[1] or "index.html"
        headers = {**route.fetch().headers}
        headers.pop("content-length", None)
        route.fulfill(headers=headers, body=(self.assets / name).read_text())

    def axe(self, page: Page, name: str) -> None:
        found = [v for v in Axe().run(page).response["violations"] if v["impact"] in SERIOUS]
        for violation in found:
            self.wrong.append(f"{name}: axe {violation['id']}: {violation['nodes'][0]['html'][:160]}")
        self.expect(not found, f"{name} has no serious finding of axe")


def live(page: Page) -> None:
    page.wait_for_selector("#live[data-state=live]")


def get(url: str) -> dict:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return json.load(reply)


def every_page(check: Check, url: str) -> None:
    for name, (selector, text) in PAGES.items():
        for width in WIDTHS:
            for theme in THEMES:
                page = check.page(name, width, theme)
                page.goto(f"{url}/console/#/{name}")
                live(page)
                page.wait_for_selector(selector)
                page.wait_for_function("text => document.body.textContent.includes(text)", arg=text)
                # A few seconds of changes, so that what breaks on the second look is seen.
                page.wait_for_timeout(2_500)
                wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                check.expect(wide <= 0, f"{name} at {width} does not scroll sideways ({wide} px)")
                check.expect(MARKER not in page.content(), f"{name} shows no prompt")
                check.axe(page, f"{name} {width} {theme}")
                page.screenshot(path=check.shots / f"{name}-{width}-{theme}.png", full_page=True)
                page.context.close()


def chosen_rows(check: Check, url: str) -> None:
    """What opens when a row is chosen."""
    for name, selector, text in (("residency", "tbody .rowbutton", "Block by block"),
                                 ("sessions", "tbody .rowbutton", "Its latest turns"),
                                 ("routing", "tbody .rowbutton", "Candidates")):
        for width in WIDTHS:
            page = check.page(name, width, "dark" if width == 390 else "light")
            page.goto(f"{url}/console/#/{name}")
            page.locator(selector).first.click()
            page.wait_for_function("text => [...document.querySelectorAll('section:not([hidden])')]"
                                   ".some(s => s.textContent.includes(text))", arg=text)
            page.wait_for_timeout(1_500)
            check.axe(page, f"{name} chosen {width}")
            page.screenshot(path=check.shots / f"{name}-chosen-{width}.png", full_page=True)
            page.context.close()


def first_paint(check: Check, url: str, most_ms: float) -> None:
    times = []
    for _ in range(11):
        page = check.page("paint")
        page.goto(f"{url}/console/")
        page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
        times.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
        page.context.close()
    middle = statistics.median(times)
    print(f"first paint of {len(times)} fresh loads: median {middle:.0f} ms, worst {max(times):.0f} ms")
    check.expect(middle <= most_ms, f"the median first paint is within {most_ms:.0f} ms")


def no_prompts(check: Check, url: str) -> None:
    for topic in TOPICS:
        with urllib.request.urlopen(f"{url}/api/v1/console/{topic}", timeout=10) as reply:
            check.expect(MARKER not in reply.read().decode(), f"{topic} tells no prompt")


def killed_worker(check: Check, url: str, cluster: Cluster) -> None:
    page = check.page("killed worker")
    page.goto(f"{url}/console/#/residency")
    page.wait_for_selector("tbody tr")
    cluster.processes["w2"].kill()
    began = time.monotonic()
    page.wait_for_selector("tbody tr:has-text('w2') .bad")
    page.wait_for_selector("tbody tr:has-text('w2'):has-text('lost: its lease ran out')")
    print(f"a killed worker is told as lost after {time.monotonic() - began:.1f} s")
    check.passed += 1
    page.screenshot(path=check.shots / "killed-worker.png", full_page=True)
    page.context.close()


def gateway_returns(check: Check, url: str, cluster: Cluster) -> None:
    page = check.page("reconnect")
    page.goto(f"{url}/console/#/members")
    live(page)
    arguments = cluster.processes["g1"].args
    cluster.processes["g1"].kill()
    cluster.processes["g1"].wait()
    page.wait_for_selector("#live[data-state=down]")
    cluster.spawn("g1", *arguments[1:])
    page.wait_for_selector("#live[data-state=live]")
    page.wait_for_selector("tbody tr:has-text('leader')")
    check.passed += 1
    # A refused connection is written into the log by the browser itself.
    check.wrong = [w for w in check.wrong if not (w.startswith("reconnect:") and "ERR_" in w)]
    page.context.close()


def keys(check: Check, url: str) -> None:
    page = check.page("key")
    page.goto(f"{url}/console/#/pins")
    page.wait_for_selector("dialog[open]")
    check.axe(page, "key dialog")
    page.screenshot(path=check.shots / "key-1280-light.png")
    page.fill("#key-input", "wrong")
    page.press("#key-input", "Enter")
    page.wait_for_selector("dialog[open] :text('was refused')")
    page.fill("#key-input", "right-key")
    page.press("#key-input", "Enter")
    live(page)
    page.wait_for_selector("h1:has-text('Pins')")
    kept = page.evaluate("[JSON.stringify(localStorage), document.cookie, location.href, sessionStorage['mainstay-key']]")
    check.expect("right-key" not in "".join(kept[:3]) and kept[3] == "right-key", "the key is in the tab's memory alone")
    # Each refusal is in the browser's own log.
    check.wrong = [w for w in check.wrong if not (w.startswith("key:") and "401" in w)]
    page.context.close()


# Functions of the modules that need no page, with what they must answer.
PURE = r"""async () => {
    const [format, plot, feed, residency, sessions, lanes] = await Promise.all(
        ['format', 'plot', 'feed', 'residency', 'sessions', 'lanes'].map(name => import(`./${name}.js`)));
    const turn = (began, first, ended) => ({ began_unix_ms: began, first_unix_ms: first, ended_unix_ms: ended });
    const row = (parent, seen) => ({ parent, seen_unix_ms: seen, lane: [], marks: [] });
    const family = new Map([['a', row(null, 5)], ['b', row('a', 9)], ['c', row(null, 7)], ['x', row('y', 1)],
        ['y', row('x', 1)]]);
    const paused = { state: 'paused', lane: [turn(0, 1, 10), turn(50, 60, 70)],
        marks: [{ at_unix_ms: 10, change: 'paused' }, { at_unix_ms: 70, change: 'paused' }] };
    return [
        [format.share(1, 0), '–'], [format.share(1, 3), '33.3 %'], [format.span(3_725_000), '1h02m'],
        [format.ms(1_234), '1.2 s'], [format.us(12.5), '12.5 µs'], [format.brief('abcdefghij', 7), 'abc…hij'],
        [plot.step(10), 5], [plot.step(0.7), 0.5], [plot.step(0) > 0, true],
        [plot.ticks(2, 500).join(), '0,1'], [plot.ticks(3, 500).join(), '0,1,2'], [plot.ticks(4, 250).join(), '0,3'],
        [plot.ticks(6, 500).join(), '0,1,3,4,5'], [plot.ticks(180, 500).join(), '0,45,90,134,179'],
        [plot.ticks(9, 60).join(), '8'], [plot.ticks(1, 500).join(), ''],
        [plot.path([1, null, 2], x => x, y => y), 'M0.0 1.0h0.1L2.0 2.0'], [plot.path([null], x => x, y => y), ''],
        [JSON.stringify(feed.events('event: rows\ndata: {}\n\n: alive\n\nevent: r')),
            JSON.stringify({ found: [{ name: 'rows', data: '{}' }], rest: 'event: r' })],
        [JSON.stringify(residency.memory({ blocks_total: 10, blocks_used: 4, blocks_pinned: 2, blocks_cached: 3 })),
            JSON.stringify({ pinned: 2, cached: 1, using: 1, total: 10, free: 6 })],
        [sessions.tree(family).map(row => row.key + row.depth).join(), 'a0,b1,c0,x0,y1'],
        [JSON.stringify(lanes.pauses(paused, 99)), '[[10,50],[70,99]]'],
    ].filter(([is, wanted]) => is !== wanted).map(pair => JSON.stringify(pair));
}"""


def pure(check: Check, url: str) -> None:
    page = check.page("pure")
    page.goto(f"{url}/console/")
    wrong = page.evaluate(PURE)
    check.expect(not wrong, f"functions without a page answer as they should: {wrong}")
    page.context.close()


def keyboard(check: Check, url: str) -> None:
    page = check.page("keyboard")
    page.goto(f"{url}/console/#/overview")
    live(page)
    page.keyboard.press("Tab")
    check.expect(page.evaluate("document.activeElement.className") == "skip", "Tab leads to the skip link first")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('Residency')")
    check.expect(page.evaluate("document.activeElement.id") == "main", "the new page has the focus")
    page.wait_for_selector("tbody tr")
    page.locator("main canvas").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    words = page.locator(".readout").first.text_content()
    check.expect(words.startswith("w2:"), f"arrow keys walk the workers ({words})")
    page.keyboard.press("Enter")
    page.wait_for_selector("section:not([hidden]) h2:has-text('Worker w2')")
    page.locator("#theme").focus()
    for theme in ("light", "dark"):
        page.keyboard.press("Enter")
        check.expect(page.evaluate("document.documentElement.dataset.theme") == theme, f"the theme is {theme}")
    page.context.close()


# Long tasks and the time between frames, of what a page does from here on.
WATCH = """() => { window.long = []; window.gaps = [];
    new PerformanceObserver(list => list.getEntries().forEach(e => window.long.push(e.duration)))
        .observe({type: 'longtask', buffered: false});
    let last = performance.now();
    const step = now => { window.gaps.push(now - last); last = now; requestAnimationFrame(step); };
    requestAnimationFrame(step); }"""
WORKERS, BLOCKS = 1_000, 100_000


def told(page: Page, what: str) -> tuple[int, float]:
    """Prints what a page was watched doing, and watches anew: tasks over 50 ms, and the longest of them."""
    long, gaps = page.evaluate("() => { const seen = [window.long, window.gaps]; window.long = []; window.gaps = []; return seen; }")
    gaps.sort()
    at = lambda part: gaps[min(len(gaps) - 1, int(len(gaps) * part))]  # noqa: E731
    print(f"crowd, {what}: {len(long)} tasks over 50 ms, the longest {max(long, default=0):.0f} ms; a frame every "
          f"{at(0.5):.0f} ms, 99 of 100 within {at(0.99):.0f} ms, the longest {gaps[-1]:.0f} ms, of {len(gaps)}; "
          f"load {os.getloadavg()[0]:.1f}")
    return len(long), max(long, default=0)


def crowded(check: Check, args: argparse.Namespace) -> None:
    """A thousand workers whose loads change every second, one of them with a hundred thousand blocks."""
    log = args.shots / "crowd.log"
    with log.open("wb") as out:
        crowd = subprocess.Popen([args.binary, "bench", "console", f"--workers={WORKERS}", f"--blocks={BLOCKS}"],
                                 stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        until = time.monotonic() + 120
        while not (ready := re.search(r"^ready (\S+)", log.read_text(), re.M)):
            if crowd.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"no crowd:\n{log.read_text()[-1000:]}")
            time.sleep(0.1)
        page = check.page("crowd")
        page.goto(f"{ready[1]}/console/#/residency")
        live(page)
        page.wait_for_function("many => document.querySelector('.tile b').textContent == many", arg=f"{WORKERS:,}")
        page.wait_for_timeout(2_000)
        page.evaluate(WATCH)
        page.wait_for_timeout(10_000)
        _, steady = told(page, f"{WORKERS:,} workers that change each second")
        check.expect(page.locator("tbody tr").count() <= 60, "the table has a page of rows, not a thousand")
        check.expect(steady <= args.task_ms, f"no task of a steady page is over {args.task_ms:.0f} ms")
        page.locator("tbody .rowbutton", has_text=re.compile("^w0$")).click()
        page.wait_for_function("text => document.body.textContent.includes(text)", arg=f"{BLOCKS:,} blocks of yours")
        page.wait_for_timeout(500)
        told(page, f"one of them chosen, its {BLOCKS:,} blocks drawn")
        page.wait_for_timeout(12_000)
        _, steady = told(page, "both shown, the blocks drawn again every five seconds")
        check.expect(steady <= args.task_ms, f"no task of a page with the blocks is over {args.task_ms:.0f} ms")
        page.screenshot(path=check.shots / "crowd-1280-light.png", full_page=True)
        page.goto(f"{ready[1]}/console/#/overview")
        page.wait_for_selector("svg.plot path[d^=M]", state="attached")
        page.evaluate(WATCH)
        page.wait_for_timeout(5_000)
        told(page, "overview")
        page.context.close()
    finally:
        crowd.terminate()
        crowd.wait()


def warm(url: str, traffic: Traffic) -> None:
    """Until there is something to see on every page."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        pins = get(f"{url}/api/v1/console/pins")["data"]
        if traffic.answered > 20 and any(pin["state"] == "active" for pin in pins):
            return
        time.sleep(0.5)
    raise RuntimeError(f"nothing to see after a minute: {traffic.answered} answers, {traffic.failures[:3]}")


def one(check: Check, args: argparse.Namespace, name: str, step: Callable[[], None]) -> None:
    if args.only and name not in args.only.split(","):
        return
    began = time.monotonic()
    try:
        step()
    except Exception as error:  # noqa: BLE001, one broken step must not hide the others
        check.wrong.append(f"{name}: {error}")
        print(f"FAILED {name}: {error}")
    print(f"{name}: {time.monotonic() - began:.1f} s")


def run(args: argparse.Namespace, browser: Browser) -> Check:
    check = Check(browser, args.shots, args.assets)
    cluster = Cluster(args.binary, HERE / "script.toml", gateways=1, workers=3, members=3, settings=ENGINE)
    traffic = None
    try:
        host, port = cluster.gateways[0]
        url = f"http://{host}:{port}"
        with_keys = cluster.folder / "keys.toml"
        with_keys.write_text('[[keys]]\nkey = "right-key"\ntenant = "acme"\n')
        control = next(a for a in cluster.processes["g1"].args[1:] if a.startswith("--control="))
        locked = f"127.0.0.1:{free_port()}"
        cluster.spawn("g2", "gateway", control, f"--listen={locked}", f"--config={with_keys}")
        traffic = Traffic(url, MODEL)
        warm(url, traffic)
        steps = {"pure": lambda: pure(check, url), "paint": lambda: first_paint(check, url, args.first_paint_ms),
                 "pages": lambda: every_page(check, url), "chosen": lambda: chosen_rows(check, url),
                 "prompts": lambda: no_prompts(check, url), "keyboard": lambda: keyboard(check, url),
                 "keys": lambda: keys(check, f"http://{locked}"), "killed": lambda: killed_worker(check, url, cluster),
                 "returns": lambda: gateway_returns(check, url, cluster)}
        for name, step in steps.items():
            one(check, args, name, step)
        check.expect(traffic.answered > 0, "agents were answered")
    finally:
        if traffic:
            traffic.stopping.set()
        cluster.close()
    # By itself: agents at work would be part of what is measured.
    one(check, args, "crowd", lambda: crowded(check, args))
    return check


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", type=Path, required=True, help="the program to check")
    parser.add_argument("--shots", type=Path, required=True, help="a folder for pictures")
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("google-chrome"))
    parser.add_argument("--assets", type=Path, help="files to show in place of the program's, to see a change before a build")
    parser.add_argument("--first-paint-ms", type=float, default=300.0)
    parser.add_argument("--task-ms", type=float, default=50.0, help="the longest task of a page with a crowd")
    parser.add_argument("--only", help="some of pure,paint,pages,chosen,prompts,keyboard,crowd,keys,killed,returns")
    args = parser.parse_args()
    if not args.browser:
        print("skipped: no chromium; install one or name it with --browser")
        return 77
    args.shots.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--force-color-profile=srgb"]
        browser = playwright.chromium.launch(executable_path=args.browser, args=options)
        check = run(args, browser)
        browser.close()
    for words in dict.fromkeys(check.wrong):
        print(f"WRONG {words}")
    print(f"{check.passed} passed, {len(set(check.wrong))} failed; pictures in {args.shots}")
    return 1 if check.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
