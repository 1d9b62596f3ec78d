// Overview: is it well, how much of what is asked is found in caches, how long do first tokens take.

import { get, table } from "./feed.js";
import { choice, h, tiles } from "./dom.js";
import { count, many, ms, rate, share, short } from "./format.js";
import { Plot } from "./plot.js";

/** How often plots are drawn anew: as often as there is a new step. */
const PACE_MS = { "15m": 5_000, "24h": 60_000 };
const TILES = [
  ["hits", "Found in caches"], ["held", "Held where placed"], ["ttft", "Time to first token"],
  ["requests", "Requests"], ["tokens", "Tokens written"], ["workers", "Workers"], ["pins", "Live pins"],
  ["control", "Control plane"],
];

function plots() {
  return {
    hits: new Plot({ title: "Prompt tokens found in caches", series: [["c2", "of each answer's prompt"]],
      text: (v) => `${Math.round(v)} %`, most: 100 }),
    ttft: new Plot({ title: "Time to first token of streams", series: [["c0", "median"], ["c1", "95 of 100"]],
      text: ms }),
    requests: new Plot({ title: "Requests", series: [["c0", "a second"], ["c7", "refused or failed"]],
      text: rate }),
    load: new Plot({ title: "On the workers", series: [["c2", "running"], ["c1", "waiting"]], text: short }),
    tokens: new Plot({ title: "Tokens written", series: [["c4", "a second"]], text: short }),
    evictions: new Plot({ title: "Blocks evicted", series: [["c3", "a second, all workers"]], text: rate }),
  };
}

function draw(all, columns) {
  const seconds = columns.step_ms / 1_000;
  const per = (name) => columns[name].map((n) => n / seconds);
  const at = columns.at_unix_ms;
  const hit = (cached, n) => (columns.prompt_tokens[n] ? (cached / columns.prompt_tokens[n]) * 100 : null);
  all.hits.update(at, [columns.cached_tokens.map(hit)]);
  all.ttft.update(at, [columns.ttft_p50_ms, columns.ttft_p95_ms]);
  all.requests.update(at, [per("requests"), per("refused")]);
  all.load.update(at, [columns.running, columns.waiting]);
  all.tokens.update(at, [per("completion_tokens")]);
  all.evictions.update(at, [per("evictions")]);
}

function figures(now) {
  const [minutes, placed, control] = [now.last_5_minutes.gateway, now.placements, now.control ?? {}];
  const here = share(placed.held_where_placed, placed.prompt_blocks);
  const anywhere = share(placed.held_somewhere, placed.prompt_blocks);
  return {
    hits: [share(minutes.cached_tokens, minutes.prompt_tokens),
      `of ${short(minutes.prompt_tokens)} prompt tokens, 5 min`],
    held: [here, placed.count ? `${anywhere} held somewhere, last ${placed.count}` : "no request placed yet"],
    ttft: [ms(minutes.ttft_p50_ms), `p95 ${ms(minutes.ttft_p95_ms)}, p99 ${ms(minutes.ttft_p99_ms)}, 5 min`],
    requests: [short(minutes.requests),
      `5 min, ${count(minutes.refused)} refused, ${count(now.requests_in_flight)} in flight`],
    tokens: [short(minutes.completion_tokens), "5 min"],
    workers: [`${now.workers.routable} of ${now.workers.live}`, "can take a request"],
    pins: [count(now.pins.own), `yours; ${count(now.pins.live)} in the cluster`],
    control: control.problem ? ["no answer", "see below"]
      : [control.leader ? `m${control.leader} leads` : "no leader",
        `${control.reachable ?? 0} of ${many(control.members ?? 0, "member")}, term ${count(control.term)}`],
  };
}

export function overview() {
  const [top, all] = [tiles(TILES), plots()];
  const reasons = h("div", { role: "status" });
  const about = h("p", { class: "note" });
  let [span, abort, told, drawn] = ["15m", new AbortController(), "", 0];
  const load = async () => {
    abort.abort();
    abort = new AbortController();
    drawn = Date.now();
    try {
      draw(all, await get(`console/history?span=${span}`, abort.signal));
    } catch {
      // The stream says what is wrong; the plots wait for it.
    }
  };
  const spans = choice("Time shown", [["15m", "15 minutes"], ["24h", "24 hours"]], span, (value) => {
    span = value;
    load();
  });
  const grid = h("div", { class: "grid2" }, Object.values(all).map((plot) => plot.element));
  const element = h("div", {}, reasons, top.element, h("h2", {}, "Lately"), spans, grid, about);
  load();
  return {
    title: "Overview",
    lead: "How the cluster is, as this gateway sees it.",
    topics: ["overview"],
    element,
    end() {
      abort.abort();
    },
    changed() {
      const { rows, about: fixed } = table("overview");
      const now = rows.get("now");
      if (!now) return;
      top.update(figures(now));
      const problems = [...now.reasons, now.control?.problem && `No member answers: ${now.control.problem}`]
        .filter(Boolean);
      if (problems.join() !== told) {
        told = problems.join();
        const list = h("ul", {}, problems.map((reason) => h("li", {}, reason)));
        reasons.replaceChildren(...(problems.length ? [h("div", { class: "alert bad" }, list)] : []));
      }
      about.textContent = `Figures of requests are this gateway's (tenant ${fixed.tenant}, region ${fixed.region}, `
        + `policy ${fixed.policy}, version ${fixed.program_version}, models ${now.models.join(", ") || "none yet"}); `
        + "those of workers count what all gateways asked of them. “Held somewhere” is the most that any one "
        + "worker held, not what an infinite cache would.";
      if (Date.now() - drawn >= PACE_MS[span]) load();
    },
  };
}
