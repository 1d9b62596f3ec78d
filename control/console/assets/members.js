// Members: who of the control plane leads, and how far the others are behind.

import { table } from "./feed.js";
import { LiveTable, h, tag, tiles } from "./dom.js";
import { count } from "./format.js";

function standing(member) {
  if (!member.reachable) return ["not reached", "bad"];
  return member.leads ? ["leader", "good"] : [member.role, "quiet"];
}

const COLUMNS = [
  { title: "Member", sort: (m) => m.id, cell: (m) => `m${m.id}` },
  { title: "Role", sort: (m) => standing(m)[0], sign: (m) => standing(m).join(), cell: (m) => tag(...standing(m)) },
  { title: "Address", sort: (m) => m.address, cell: (m) => m.address },
  { title: "Last in log", num: true, sort: (m) => m.last_log_index, cell: (m) => count(m.last_log_index) },
  { title: "Applied", num: true, sort: (m) => m.applied_index, cell: (m) => count(m.applied_index) },
  { title: "Lag", num: true, sort: (m) => m.lag, cell: (m) => count(m.lag) },
  { title: "Region", sort: (m) => m.region ?? "", cell: (m) => m.region ?? "–" },
  { title: "Version", num: true, sort: (m) => m.version ?? 0, cell: (m) => m.version ?? "–" },
];

export function members() {
  const top = tiles([["leader", "Leader"], ["term", "Term"], ["log", "Log index"], ["reached", "Reached"],
    ["drift", "Drift"], ["version", "Cluster version"]]);
  const list = new LiveTable({ caption: "Members of the control plane", columns: COLUMNS,
    empty: "no member has answered yet" });
  const note = h("p", { class: "note" });
  return {
    title: "Members",
    lead: "The control plane: one log, agreed on by a majority of its voters.",
    topics: ["members"],
    element: h("div", {}, top.element, h("h2", {}, "Members"), list.element, note),
    changed() {
      const { rows, about, known } = table("members");
      if (!known) return;
      const all = [...rows.values()];
      const reached = all.filter((m) => m.reachable).length;
      top.update({
        leader: [about.leader ? `m${about.leader}` : "none", about.leader ? "takes all writes" : "an election is on"],
        term: [count(about.term), "number of this leadership"],
        log: [count(about.applied_index), `applied by m${about.asked}`],
        reached: [`${reached} of ${all.length}`, reached === all.length ? "all answer" : "see the table"],
        drift: [count(about.drift), about.drift ? "times a stream differed" : "no stream ever differed"],
        version: [count(about.cluster_version), "what the log may say"],
      });
      list.update([...rows]);
      note.textContent = `As m${about.asked} tells it, which this gateway follows. Lag counts log entries.`;
    },
  };
}
