// Sessions: agents and their subagents as swim lanes, and one of them turn by turn.

import { now, table } from "./feed.js";
import { LiveTable, choice, h, legend, tag, tiles } from "./dom.js";
import { brief, clock, count, many, ms, share, short, span } from "./format.js";
import { Lanes } from "./lanes.js";

const LANES_SHOWN = 25;
const SPANS = [[120_000, "2 minutes"], [900_000, "15 minutes"], [3_600_000, "1 hour"]];
const KINDS = { active: "good", paused: "warn", waiting: "quiet", ended: "quiet" };
const SIGNS = [["k0", "turn (light: until its first token)"], ["k4", "waits for a tool"], ["k5", "▾ cold start"],
  ["k1", "▾ tokens computed again"], ["k3", "▾ compaction"], ["k7", "failed or given up"]];

/** Sessions in the order of their tree: each one's children below it, families by their latest sign of life. */
export function tree(rows) {
  const children = new Map();
  for (const [key, row] of rows) {
    const parent = row.parent && rows.has(row.parent) ? row.parent : null;
    if (!children.has(parent)) children.set(parent, []);
    children.get(parent).push([key, row]);
  }
  const latest = ([key, row], seen = new Set()) => {
    if (seen.has(key)) return 0;
    seen.add(key);
    const own = (children.get(key) ?? []).map((child) => latest(child, seen));
    return Math.max(row.seen_unix_ms, ...own);
  };
  const found = [];
  const placed = new Set();
  const walk = (list, depth) => {
    const sorted = list.map((entry) => [latest(entry), entry]).sort(([a], [b]) => b - a);
    for (const [, [key, row]] of sorted) {
      // A client may name parents in a circle.
      if (placed.has(key)) continue;
      placed.add(key);
      found.push({ ...row, key, depth });
      walk(children.get(key) ?? [], depth + 1);
    }
  };
  walk(children.get(null) ?? [], 0);
  walk([...rows].filter(([key]) => !placed.has(key)), 0);
  return found;
}

const again = (row) => row.lane.reduce((sum, turn) => sum + turn.again_tokens, 0);
const cold = (row) => row.lane.filter((turn) => turn.cold).length;
const last = (row) => row.lane.filter((turn) => turn.worker).at(-1)?.worker ?? "–";

const COLUMNS = (choose) => [
  { title: "Session", sort: (s) => s.key, sign: (s) => s.key, cell: (s) =>
    h("button", { type: "button", class: "rowbutton", title: s.key, onclick: () => choose(s.key) }, brief(s.key, 24)) },
  { title: "State", sort: (s) => s.state, sign: (s) => `${s.state} ${s.ended}`,
    cell: (s) => tag(s.ended ? `ended: ${s.ended}` : s.state, KINDS[s.state]) },
  { title: "Harness", sort: (s) => s.harness ?? "", cell: (s) => s.client ?? s.harness ?? "–" },
  { title: "Turns", num: true, sort: (s) => s.turns, cell: (s) => count(s.turns) },
  { title: "Context", num: true, sort: (s) => s.context_tokens, cell: (s) => short(s.context_tokens) },
  { title: "Found", num: true, sort: (s) => s.cached_tokens / Math.max(1, s.prompt_tokens),
    cell: (s) => share(s.cached_tokens, s.prompt_tokens) },
  { title: "Again", num: true, sort: again, cell: (s) => short(again(s)) },
  { title: "Compacted", num: true, sort: (s) => s.compactions, cell: (s) => count(s.compactions) },
  { title: "Waits for", sign: (s) => s.waits_for.join(), cell: (s) => s.waits_for.join(", ") || "–" },
  { title: "On", sort: last, cell: last },
  { title: "Seen", num: true, sort: (s) => s.seen_unix_ms, cell: (s) => clock(s.seen_unix_ms) },
];

const TURNS = [
  { title: "Began", sort: (t) => t.began_unix_ms, cell: (t) => clock(t.began_unix_ms) },
  { title: "Request", sign: (t) => t.request,
    cell: (t) => h("code", { title: t.request }, brief(t.request || "–", 16)) },
  { title: "Worker", cell: (t) => t.worker ?? "–" },
  { title: "First token", num: true,
    cell: (t) => (t.first_unix_ms ? ms(t.first_unix_ms - t.began_unix_ms) : "–") },
  { title: "Took", num: true, cell: (t) => (t.ended_unix_ms ? ms(t.ended_unix_ms - t.began_unix_ms) : "–") },
  { title: "Prompt", num: true, cell: (t) => count(t.prompt_tokens) },
  { title: "Found", num: true, cell: (t) => share(t.cached_tokens, t.prompt_tokens) },
  { title: "Again", num: true, cell: (t) => count(t.again_tokens) },
  { title: "Written", num: true, cell: (t) => count(t.completion_tokens) },
  { title: "Notes", sign: (t) => `${t.end} ${t.cold} ${t.aside}`, cell: (t) => notes(t) },
];

function notes(turn) {
  const list = [];
  if (turn.cold) list.push(tag("cold start", "c5"));
  if (turn.aside) list.push(tag("beside the conversation"));
  if (turn.end !== "served") list.push(tag(turn.end.replace("_", " "), turn.end === "running" ? "good" : "bad"));
  return list;
}

export function sessions() {
  const top = tiles([["active", "Active"], ["paused", "Waiting for tools"], ["waiting", "Waiting for a word"],
    ["ended", "Ended"], ["cold", "Cold starts"], ["again", "Computed again"]]);
  const lanes = new Lanes();
  const names = h("ol", {});
  const turns = new LiveTable({ caption: "Its latest turns", columns: TURNS, descending: true });
  const title = h("h2", { tabindex: "-1" });
  const life = h("p", { class: "note" });
  const detail = h("section", { hidden: true }, title, life, turns.element);
  let [shown, chosen] = [SPANS[0][0], null];
  const choose = (key) => {
    chosen = key;
    list.choose(key);
    tell();
    title.focus();
  };
  const list = new LiveTable({ caption: "Sessions of your tenant, as this gateway served them", order: 10,
    descending: true, columns: COLUMNS(choose), shown: 25,
    empty: "No session yet. Harnesses name theirs by themselves; a header x-session-id does, too." });
  const spans = choice("Time shown", SPANS, shown, (value) => {
    shown = value;
    draw();
  });

  function tell() {
    const row = table("sessions").rows.get(chosen);
    detail.hidden = !row;
    if (!row) return;
    title.textContent = `Session ${brief(chosen, 40)}`;
    const marks = row.marks.map((m) => `${clock(m.at_unix_ms)} ${m.change}${m.why ? ` (${m.why})` : ""}`);
    life.textContent = `Since ${clock(row.started_unix_ms)}, ${many(row.side_requests, "request")} beside the `
      + `conversation${row.parent ? `, started by ${brief(row.parent, 24)}` : ""}. ${marks.slice(-8).join(", ")}`;
    turns.update(row.lane.map((turn, at) => [`${turn.began_unix_ms} ${at}`, turn]));
  }

  function draw() {
    const at = now();
    const living = tree(table("sessions").rows).filter((row) => row.seen_unix_ms > at - shown);
    const visible = living.slice(0, LANES_SHOWN);
    const sign = visible.map((row) => row.key + row.depth).join("\n");
    if (names.dataset.sign !== sign) {
      names.dataset.sign = sign;
      names.replaceChildren(...visible.map((row) => h("li", {},
        Array.from({ length: Math.min(row.depth, 3) }, () => h("span", { class: "in" }, "└")),
        h("button", { type: "button", class: "rowbutton", title: row.key, onclick: () => choose(row.key) },
          brief(row.key, 24)))));
    }
    lanes.update(visible, at - shown, at);
    none.hidden = visible.length > 0;
    none.textContent = `No session in the last ${span(shown)}.`;
    const more = living.length - LANES_SHOWN;
    rest.textContent = more > 0 ? `${count(more)} more are in the table.` : "";
  }

  const none = h("p", { class: "note" });
  const rest = h("p", { class: "note" });
  const board = h("figure", {}, h("figcaption", {}, h("b", {}, "Lanes"), spans),
    h("div", { class: "lanes" }, names, lanes.element), none, rest, legend(SIGNS));
  return {
    title: "Sessions",
    lead: "Agents at work: turns, waits for tools, cold starts, and what had to be computed twice.",
    topics: ["sessions"],
    element: h("div", {}, top.element, h("h2", {}, "Lately"), board, h("h2", {}, "All sessions"), list.element, detail),
    tick: draw,
    end: () => lanes.end(),
    changed() {
      const { rows, about, known } = table("sessions");
      if (!known) return;
      const all = [...rows.values()];
      const sum = (of) => all.reduce((total, row) => total + of(row), 0);
      top.update({
        active: [count(about.active)], paused: [count(about.paused)], waiting: [count(about.waiting)],
        ended: [count(about.ended), "of those still told of"],
        cold: [count(sum(cold)), "first turns that found nothing"],
        again: [short(sum(again)), "tokens that an earlier turn had"],
      });
      list.update([...rows].map(([key, row]) => [key, { ...row, key }]));
      tell();
      draw();
    },
  };
}
