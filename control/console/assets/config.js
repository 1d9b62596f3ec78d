// Config: what this gateway goes by, what the cluster allows, and what the caller's tenant may use.

import { get } from "./feed.js";
import { h, pairs } from "./dom.js";
import { count, span } from "./format.js";

/** A value in words; units are in the names. */
export function value(name, v) {
  if (v == null) return "not set";
  if (typeof v === "boolean") return v ? "yes" : "no";
  if (Array.isArray(v)) return v.map((one) => (Array.isArray(one) ? one.join(" = ") : one)).join(", ") || "none";
  if (typeof v !== "number") return String(v);
  return name.endsWith("_ms_max") || name.endsWith("_ms") ? `${count(v)} (${span(v)})` : count(v);
}

const rows = (object) => pairs(Object.entries(object).filter(([, v]) => v === null || typeof v !== "object"
  || Array.isArray(v)).map(([name, v]) => [h("code", {}, name), value(name, v)]));

const card = (title, body) => h("section", {}, h("h2", {}, title), h("div", { class: "card" }, body));

function drawn(config) {
  return h("div", { class: "sheet" }, [
    card("This gateway", rows({ ...config.gateway, program_version: config.program_version })),
    card(`Your tenant: ${config.tenant.name}`,
      rows({ in_the_log: config.tenant.in_the_log, pinned_blocks: config.tenant.pinned_blocks,
        ...config.tenant.quota })),
    config.models.map((model) => card(`Model ${model.name}`, rows(model))),
    card("Cluster", rows({ version: config.cluster.version, asks_for_keys: config.cluster.asks_for_keys })),
    card("Limits of the replicated state", rows(config.cluster.limits)),
  ].flat());
}

export function config() {
  const body = h("div", {}, h("p", { class: "note" }, "asking …"));
  const abort = new AbortController();
  const load = async () => {
    try {
      body.replaceChildren(drawn(await get("console/config", abort.signal)));
    } catch (error) {
      if (error.name !== "AbortError") body.replaceChildren(h("p", { class: "alert bad" }, error.message));
    }
  };
  load();
  return {
    title: "Config",
    lead: "What is in effect now. Secrets are never shown: of keys, how many there are.",
    // The header tells whether the gateway is there.
    topics: ["overview"],
    element: body,
    end: () => abort.abort(),
    changed() {},
  };
}
