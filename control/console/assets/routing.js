// Routing: the latest decisions, and for each what every candidate would have cost.

import { table } from "./feed.js";
import { LiveTable, h, legend, stack, tag, tiles } from "./dom.js";
import { brief, clock, count, many, ms, share } from "./format.js";

const TERMS = [["prefill_ms", "k0", "prefill"], ["queue_ms", "k1", "queue"], ["decode_ms", "k2", "decode"],
  ["load_ms", "k4", "load"], ["memory_ms", "k3", "memory"], ["region_ms", "k5", "region"]];

const COLUMNS = (choose) => [
  { title: "At", sort: (d) => d.at_unix_ms, cell: (d) => clock(d.at_unix_ms) },
  { title: "Request", sort: (d) => d.request, sign: (d) => d.key, cell: (d) => h("button", { type: "button",
    class: "rowbutton", title: d.request, onclick: () => choose(d.key) }, brief(d.request, 18)) },
  { title: "Worker", sort: (d) => d.worker, cell: (d) => d.worker || "gone" },
  { title: "Held there", num: true, sort: held,
    cell: (d) => `${count(held(d))} of ${count(d.prompt_blocks)}` },
  { title: "Most held", num: true, sort: most, cell: (d) => count(most(d)) },
  { title: "Cost", num: true, sort: (d) => d.cost_ms, cell: (d) => ms(d.cost_ms) },
  { title: "Considered", num: true, sort: (d) => d.considered, cell: (d) => count(d.considered) },
  { title: "Why", wide: true, sort: (d) => d.reason, cell: (d) => d.reason },
];

/** Blocks that a worker holds, those included that would come in from its lower tiers. */
function held(one) {
  return one.stored_blocks ?? one.overlap_blocks;
}

/** The most blocks that a candidate held. */
export function most(decision) {
  return decision.candidates.reduce((n, c) => Math.max(n, held(c)), held(decision));
}

const CANDIDATES = (highest) => [
  { title: "Worker", sort: (c) => c.worker, cell: (c) => c.worker || "gone" },
  { title: "Held", num: true, sort: held,
    cell: (c) => `${count(held(c))}${c.predicted ? " (soon)" : ""}` },
  { title: "Cost", num: true, sort: (c) => c.cost_ms, cell: (c) => ms(c.cost_ms) },
  { title: "Made of", sign: (c) => JSON.stringify(c),
    cell: (c) => stack(TERMS.map(([name, colour]) => [colour, Math.max(0, c[name])]), highest()) },
  ...TERMS.map(([name, , label]) => ({ title: label, num: true, sort: (c) => c[name], cell: (c) => ms(c[name]) })),
  { title: "Note", sign: (c) => c.note,
    cell: (c) => (c.note ? tag(c.note, c.note === "chosen" ? "good" : "quiet") : []) },
];

export function routing() {
  const top = tiles([["placed", "Decisions"], ["here", "Held where placed"], ["somewhere", "Held somewhere"],
    ["policy", "Policy"]]);
  let [chosen, highest] = [null, 1];
  const candidates = new LiveTable({ caption: "Candidates, the chosen one and the cheapest others", order: 2,
    columns: CANDIDATES(() => highest) });
  const title = h("h2", { tabindex: "-1" });
  const why = h("p", {});
  const command = h("p", { class: "note" });
  const detail = h("section", { hidden: true }, title, why, candidates.element,
    legend(TERMS.map(([, colour, label]) => [colour, label])), command);
  const choose = (key) => {
    chosen = key;
    list.choose(key);
    tell();
    title.focus();
  };
  const list = new LiveTable({ caption: "Decisions about your tenant's requests, the latest first", descending: true,
    columns: COLUMNS(choose), shown: 25, empty: "No request was placed yet." });

  function tell() {
    const decision = table("decisions").rows.get(chosen);
    detail.hidden = !decision;
    if (!decision) return;
    title.textContent = `Why ${decision.request} went to ${decision.worker || "a worker that is gone"}`;
    why.textContent = `${decision.reason[0].toUpperCase()}${decision.reason.slice(1)}. It was expected to cost `
      + `${ms(decision.cost_ms)}; ${many(decision.considered, "worker")} could have taken it.`;
    command.textContent = `mainstay request explain ${decision.request}`;
    const whole = (c) => TERMS.reduce((sum, [name]) => sum + Math.max(0, c[name]), 0);
    highest = Math.max(1e-6, ...decision.candidates.map(whole));
    candidates.update(decision.candidates.map((c, at) => [`${at} ${c.worker}`, c]));
  }

  return {
    title: "Routing",
    lead: "Why each request went where it went. Costs are expected milliseconds, as the router saw them.",
    topics: ["decisions"],
    element: h("div", {}, top.element, h("h2", {}, "Decisions"), list.element, detail),
    changed() {
      const { rows, about, known } = table("decisions");
      if (!known) return;
      const all = [...rows.values()];
      const sum = (of) => all.reduce((total, decision) => total + of(decision), 0);
      const blocks = sum((d) => d.prompt_blocks);
      top.update({
        placed: [count(all.length), "that are kept"],
        here: [share(sum(held), blocks), "of the prompts' blocks"],
        somewhere: [share(sum(most), blocks), "what routing gave away for load is the difference"],
        policy: [about.policy, "how requests are placed"],
      });
      list.update([...rows].map(([key, row]) => [key, { ...row, key }]));
      if (chosen === null || !rows.has(chosen)) chosen = all.length ? list.visible()[0][0] : null;
      list.choose(chosen);
      tell();
    },
  };
}
