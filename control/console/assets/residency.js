// Residency: what lies where. All workers as cells, one of them in full: by tier, by class, block by block.

import { get, table } from "./feed.js";
import { LiveTable, h, legend, pairs, stack, tag, tiles } from "./dom.js";
import { byName, count, many, share, short, us } from "./format.js";
import { Grid, Waffle } from "./grid.js";

const MEMORY = [["k3", "pinned"], ["k0", "cached"], ["k1", "in use, not yet full"], ["kfree", "free"]];
/** Blocks are asked for again this often while a worker is shown. */
const BLOCKS_PACE_MS = 5_000;
const CLASSES = [["k3", "pinned"], ["k0", "on this worker only"], ["k5", "on others, too"]];

/** Sizes of cells by how many there are. */
const SIZES = [[32, 56], [200, 34], [Infinity, 22]];

/** How a worker's memory is divided. Blocks in use may be cached as well, so they are counted once. */
export function memory(worker) {
  const cached = Math.max(worker.blocks_cached, worker.blocks_pinned);
  const using = Math.max(0, worker.blocks_used - cached);
  const total = Math.max(worker.blocks_total, cached + using);
  return { pinned: worker.blocks_pinned, cached: cached - worker.blocks_pinned, using, total,
    free: total - cached - using };
}

const parts = (m) => [["k3", m.pinned], ["k0", m.cached], ["k1", m.using]];

function state(worker) {
  if (worker.state === "lease_expired") return ["lost: its lease ran out", "bad"];
  if (worker.state !== "live") return ["left", "quiet"];
  if (!worker.heard) return ["not reached", "bad"];
  if (worker.draining) return ["draining", "warn"];
  return worker.routable ? ["ready", "good"] : ["passed over", "warn"];
}

const COLUMNS = (choose) => [
  { title: "Worker", sort: (w) => w.name, sign: (w) => w.name,
    cell: (w) => h("button", { type: "button", class: "rowbutton", onclick: () => choose(w.key) }, w.name) },
  { title: "State", sort: (w) => state(w)[0], sign: (w) => state(w)[0], cell: (w) => tag(...state(w)) },
  { title: "Memory", sign: (w) => JSON.stringify(memory(w)),
    cell: (w) => stack(parts(memory(w)), memory(w).total) },
  { title: "Blocks", num: true, sort: (w) => w.blocks_cached,
    cell: (w) => `${short(w.blocks_cached)} of ${short(w.blocks_total)}` },
  { title: "Pinned", num: true, sort: (w) => w.blocks_pinned, cell: (w) => short(w.blocks_pinned) },
  { title: "In the index", num: true, sort: (w) => w.blocks_indexed, cell: (w) => short(w.blocks_indexed) },
  { title: "Found", num: true, sort: (w) => w.hit_tokens / Math.max(1, w.query_tokens),
    cell: (w) => share(w.hit_tokens, w.query_tokens) },
  { title: "Running", num: true, sort: (w) => w.running, cell: (w) => count(w.running) },
  { title: "Waiting", num: true, sort: (w) => w.waiting, cell: (w) => count(w.waiting) },
  { title: "Evicted", num: true, sort: (w) => w.evictions, cell: (w) => short(w.evictions) },
  { title: "Region", sort: (w) => w.region, cell: (w) => w.region },
];

function words(w) {
  const m = memory(w);
  return `${w.name}: ${state(w)[0]}, ${count(m.pinned)} pinned, ${count(m.cached)} cached, ${count(m.using)} in `
    + `use beside them, ${count(m.free)} free of ${many(m.total, "block")}; ${w.running} running, ${w.waiting} waiting`;
}

/** One worker as a vessel that is filled from below. */
function paintWorker(context, worker, x, y, size, palette) {
  const m = memory(worker);
  const lost = worker.state !== "live" || !worker.heard;
  context.fillStyle = palette.line;
  context.fillRect(x, y, size, size);
  let level = y + size;
  for (const [value, colour] of [[m.pinned, "c3"], [m.cached, "c0"], [m.using, "c1"]]) {
    // A little of it is seen, however little it is.
    const tall = value ? Math.max(1.5, (value / Math.max(1, m.total)) * size) : 0;
    context.fillStyle = palette[colour];
    context.globalAlpha = lost ? 0.3 : 1;
    context.fillRect(x, level - tall, size, tall);
    level -= tall;
  }
  context.globalAlpha = 1;
  if (lost) {
    context.strokeStyle = palette.c7;
    context.lineWidth = 2;
    context.strokeRect(x + 1, y + 1, size - 2, size - 2);
  }
}

/** The chosen worker: figures, tiers by class, a cell for each block. */
class Detail {
  constructor() {
    this.waffle = new Waffle("Blocks of the worker");
    this.title = h("h2", { tabindex: "-1" });
    this.facts = h("div", { class: "card" });
    this.tiers = new LiveTable({ caption: "Blocks by tier and class, from the index", empty: "it holds no blocks",
      columns: [
        { title: "Tier", cell: (t) => t.tier },
        { title: "Classes", sign: (t) => JSON.stringify(t),
          cell: (t) => stack([["k3", t.pinned], ["k0", t.sole], ["k5", t.shared]], t.pinned + t.sole + t.shared) },
        { title: "Pinned", num: true, cell: (t) => count(t.pinned) },
        { title: "Only here", num: true, cell: (t) => count(t.sole) },
        { title: "On others, too", num: true, cell: (t) => count(t.shared) },
      ] });
    this.note = h("p", { class: "note" });
    const blocks = h("figure", {}, h("figcaption", {}, h("b", {}, "Block by block")), this.note,
      this.waffle.element, legend([...CLASSES, ["k6", "of other tenants, or under a salt"]]));
    this.element = h("section", { hidden: true }, this.title, this.facts, h("h2", {}, "Tiers and classes"),
      this.tiers.element, h("h2", {}, "Blocks"), blocks);
    this.abort = new AbortController();
  }

  end() {
    this.abort.abort();
    this.waffle.end();
  }

  show(worker) {
    const other = this.worker?.key !== worker.key;
    this.worker = worker;
    this.element.hidden = false;
    this.title.textContent = `Worker ${worker.name}`;
    const of = (value, unit) => (value ? `${us(value)} ${unit}` : "not measured yet");
    this.facts.replaceChildren(pairs([
      ["State", state(worker)[0]], ["Address", worker.address], ["Model", worker.model],
      ["Epoch", count(worker.epoch)], ["Changed at log index", count(worker.changed_index)],
      ["Prefill", of(worker.prefill_us_per_token, "a token")], ["Decode", of(worker.decode_us_per_step, "a step")],
      ["Waiting to be computed", many(worker.waiting_prefill_tokens, "token")],
    ]));
    const counted = worker.tiers ?? [];
    this.tiers.update(counted.map((tier) => [tier.tier, tier]));
    if (other || Date.now() - this.asked > BLOCKS_PACE_MS) this.fetch();
    if (other) {
      this.title.focus();
      this.title.scrollIntoView({ block: "start" });
    }
  }

  async fetch() {
    this.asked = Date.now();
    this.abort.abort();
    this.abort = new AbortController();
    try {
      const map = await get(`console/workers/${this.worker.id}/blocks`, this.abort.signal);
      this.draw(map);
    } catch (error) {
      if (error.name !== "AbortError") this.note.textContent = `Not shown: ${error.message}`;
    }
  }

  draw(map) {
    const colour = ([blocks, , copies, pinned]) => [blocks, pinned ? "c3" : copies > 1 ? "c5" : "c0"];
    const others = map.others.reduce((sum, [blocks]) => sum + blocks, 0);
    const runs = map.runs.map((run) => run.map(colour));
    if (others) runs.push([[others, "c6"]]);
    const text = `${many(map.blocks, "block")} of yours in ${many(map.runs.length, "run")}, longest first; a gap `
      + `is between two runs. ${many(others, "block")} of others.`
      + (map.left_out ? ` ${count(map.left_out)} more are left out.` : "");
    this.note.textContent = text;
    this.waffle.update(runs, `Blocks of worker ${map.name}: ${text}`);
  }
}

export function residency() {
  const top = tiles([["workers", "Workers"], ["cached", "Cached blocks"], ["pinned", "Pinned"], ["free", "Free"],
    ["found", "Found in caches"], ["index", "Different blocks"]]);
  const whole = h("div");
  const detail = new Detail();
  const choose = (key) => {
    const worker = table("workers").rows.get(key);
    if (!worker) return;
    list.choose(key);
    detail.show({ ...worker, key });
  };
  const grid = new Grid({ label: "Workers", size: 22, paint: paintWorker, words, onChoose: (w) => choose(w.key) });
  const list = new LiveTable({ caption: "Workers", columns: COLUMNS(choose), empty: "no worker has joined yet" });
  const note = h("p", { class: "note" });
  const map = h("figure", {}, h("figcaption", {}, h("b", {}, "All workers"),
    h("span", {}, "a cell each, filled from below; choose one to see its blocks")), grid.element, legend(MEMORY));
  return {
    title: "Residency",
    lead: "Which workers hold what, in which tier, and how much of it would be missed.",
    topics: ["workers"],
    element: h("div", {}, top.element, h("h2", {}, "Memory of the fleet"), whole, h("h2", {}, "Workers"), map,
      h("h2", {}, "As a table"), list.element, note, detail.element),
    end() {
      grid.end();
      detail.end();
    },
    changed() {
      const { rows, about, known } = table("workers");
      if (!known) return;
      const all = [...rows].map(([key, worker]) => ({ ...worker, key }));
      all.sort((a, b) => byName(a.name, b.name));
      const live = all.filter((w) => w.state === "live");
      const sum = live.map(memory).reduce((s, m) => ({ pinned: s.pinned + m.pinned, cached: s.cached + m.cached,
        using: s.using + m.using, total: s.total + m.total, free: s.free + m.free }),
      { pinned: 0, cached: 0, using: 0, total: 0, free: 0 });
      const of = (name) => live.reduce((s, w) => s + w[name], 0);
      top.update({
        workers: [count(live.length), `${count(live.filter((w) => w.routable).length)} can take a request`],
        cached: [short(sum.pinned + sum.cached), `of ${short(sum.total)}`],
        pinned: [short(sum.pinned), share(sum.pinned, sum.total)],
        free: [short(sum.free), share(sum.free, sum.total)],
        found: [share(of("hit_tokens"), of("query_tokens")), "of prompt tokens, since each began"],
        index: [short(about.index_blocks), "in the index, copies counted once"],
      });
      whole.replaceChildren(stack(parts(sum), sum.total, "tall"), legend(MEMORY));
      grid.size = SIZES.find(([most]) => all.length <= most)[1];
      grid.update(all, `${many(all.length, "worker")}, ${count(live.length)} of them live; arrow keys walk them, Enter `
        + "chooses one; the table below tells the same");
      list.update(all.map((w) => [w.key, w]));
      note.textContent = about.classes_counted ? ""
        : `The index has more than ${count(about.entries_max)} entries: classes are not counted while it is walked `
          + "under a lock.";
      const chosen = detail.worker && rows.get(detail.worker.key);
      if (chosen) detail.show({ ...chosen, key: detail.worker.key });
    },
  };
}
