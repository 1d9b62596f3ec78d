// Pins: what was promised to whom, who keeps it, and how long it holds still.

import { now, table } from "./feed.js";
import { LiveTable, h, say, stack, tag, tiles } from "./dom.js";
import { brief, clock, count, many, short, span } from "./format.js";

const KINDS = { active: "good", pending: "quiet", partial: "warn", degraded: "bad", denied: "bad" };

/** Milliseconds that a pin holds still; 0 for one that has ended. */
export function left(pin, at, ahead) {
  const live = !["expired", "released", "denied"].includes(pin.state);
  return live ? Math.max(0, pin.expires_unix_ms - at - ahead) : 0;
}

const ahead = () => table("pins").about.cluster_ahead_ms ?? 0;
const ended = (pin) => ["expired", "released", "denied"].includes(pin.state);

/** The countdown of a row, which moves by itself between two changes. */
function countdown(pin) {
  if (ended(pin)) {
    const why = (pin.reason || "ended").replace(/\bp-[0-9a-f]{9,}/g, (id) => brief(id, 14));
    return h("span", { class: "dim", title: pin.reason }, why);
  }
  const text = h("span", { "data-ends": pin.expires_unix_ms, "data-ttl": pin.ttl_ms });
  const cell = h("div", { class: "left" }, stack([["k2", 1]], 1), text);
  move(text);
  return cell;
}

function move(text) {
  const [ends, ttl] = [Number(text.dataset.ends), Number(text.dataset.ttl)];
  const rest = Math.max(0, ends - now() - ahead());
  say(text, rest ? span(rest) : "ends now");
  const piece = text.parentElement?.querySelector("i");
  if (!piece) return;
  piece.style.width = `${Math.min(100, (rest / Math.max(1, ttl)) * 100)}%`;
  piece.className = rest < ttl / 10 ? "k7" : rest < ttl / 3 ? "k1" : "k2";
}

const holders = (pin) => pin.holders.map((h) => `${h.worker} ${count(h.blocks_held)}`).join(", ")
  || (ended(pin) ? "–" : "nobody");

const COLUMNS = [
  { title: "Pin", sort: (p) => p.key, sign: (p) => p.key, cell: (p) => h("code", { title: p.key }, brief(p.key, 14)) },
  { title: "State", sort: (p) => p.state, sign: (p) => p.state, cell: (p) => tag(p.state, KINDS[p.state]) },
  { title: "Time left", sort: (p) => (ended(p) ? Infinity : p.expires_unix_ms),
    sign: (p) => `${p.state} ${p.expires_unix_ms}`, cell: countdown },
  { title: "Owner", sort: (p) => p.owner, cell: (p) => brief(p.owner || "–", 26) },
  { title: "Tokens", num: true, sort: (p) => p.prefix_tokens, cell: (p) => count(p.prefix_tokens) },
  { title: "Blocks", num: true, sort: (p) => p.blocks, cell: (p) => count(p.blocks) },
  { title: "Copies", num: true, sort: (p) => p.copies,
    cell: (p) => (ended(p) ? "–" : `${p.copies} of ${p.copies_min}`) },
  { title: "Held by", sign: holders, cell: (p) => holders(p) },
  { title: "Recompute", sort: (p) => Number(p.recompute),
    cell: (p) => (p.orders ? many(p.orders, "order") : p.recompute ? "yes" : "no") },
  { title: "Scope", sort: (p) => p.scope, cell: (p) => p.scope },
  { title: "Made", sort: (p) => p.created_unix_ms, cell: (p) => clock(p.created_unix_ms) },
];

export function pins() {
  const top = tiles([["live", "Live pins"], ["blocks", "Pinned blocks"], ["short", "Short of copies"],
    ["next", "Ends next"]]);
  const list = new LiveTable({ caption: "Pins of your tenant", columns: COLUMNS, order: 2,
    empty: "No pin yet. Add cache_control to a request, POST /v1/pins, or run `mainstay pin add`." });
  const note = h("p", { class: "note" });
  const tick = () => {
    for (const text of list.element.querySelectorAll("[data-ends]")) move(text);
    const live = [...table("pins").rows.values()].filter((pin) => !ended(pin));
    const next = Math.min(...live.map((pin) => pin.expires_unix_ms));
    top.update({ next: [live.length ? span(Math.max(0, next - now() - ahead())) : "–", "until the first one ends"] });
  };
  return {
    title: "Pins",
    lead: "Promises to keep a prefix: never evicted from its last copy before its time is over.",
    topics: ["pins"],
    element: h("div", {}, top.element, h("h2", {}, "Pins"), list.element, note),
    tick,
    changed() {
      const { rows, about, more, known } = table("pins");
      if (!known) return;
      const all = [...rows].map(([key, pin]) => [key, { ...pin, key }]);
      const live = all.filter(([, pin]) => !ended(pin));
      const lacking = live.filter(([, pin]) => pin.copies < pin.copies_min);
      top.update({
        live: [count(about.live), `${count(all.length - live.length)} ended lately`],
        blocks: [short(about.pinned_blocks), "different ones, of your budget"],
        short: [count(lacking.length), lacking.length ? "see degraded, partial, pending" : "all have their copies"],
      });
      list.update(all);
      note.textContent = more ? `The ${count(live.length)} that end soonest are shown.` : "";
      tick();
    },
  };
}
