// Small pieces of page: elements, tags, tiles, bars, and tables that keep their rows while they change.
//
// Whatever comes from the gateway goes in as text, never as markup; widths are set as properties, since the policy
// refuses attributes of style.

import { byName, count } from "./format.js";

const ROWS_SHOWN = 50;

/** An element. `props` are attributes, or properties and listeners where the element has such. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value == null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

/** Writes a text, and only if it is another. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A word with a colour of its kind: good, warn, bad or quiet. */
export const tag = (text, kind = "quiet") => h("span", { class: `tag ${kind}` }, text);

/** Tiles by name, each with a figure and what it is; `update` takes figures by name. */
export function tiles(names) {
  const parts = new Map();
  const list = names.map(([name, label]) => {
    const [figure, note] = [h("b", {}, "–"), h("span")];
    parts.set(name, { figure, note });
    return h("div", { class: "tile" }, h("span", {}, label), figure, note);
  });
  const update = (figures) => {
    for (const [name, [figure, note]] of Object.entries(figures)) {
      say(parts.get(name).figure, figure);
      say(parts.get(name).note, note ?? "");
    }
  };
  return { element: h("div", { class: `tiles n${names.length}` }, list), update };
}

/** A bar of parts of a whole: [[class, value], …]. */
export function stack(parts, whole, extra = "") {
  const bar = h("div", { class: `stack ${extra}`, "aria-hidden": "true" });
  for (const [name, value] of parts) {
    if (!value) continue;
    const piece = h("i", { class: name });
    piece.style.width = `${Math.min(100, (value / Math.max(1, whole)) * 100)}%`;
    bar.append(piece);
  }
  return bar;
}

/** Names of colours. */
export function legend(entries, form = "") {
  return h("ul", { class: "legend" }, entries.map(([name, text]) =>
    h("li", {}, h("i", { class: `${name} ${form}`, "aria-hidden": "true" }), text)));
}

/** Buttons of which one is pressed. */
export function choice(label, options, chosen, onChange) {
  const buttons = options.map(([value, text]) => h("button", { type: "button", "aria-pressed": String(value === chosen),
    onclick: () => {
      buttons.forEach((b, at) => b.setAttribute("aria-pressed", String(options[at][0] === value)));
      onChange(value);
    } }, text));
  return h("div", { class: "bar", role: "group", "aria-label": label }, buttons);
}

/** Names and values. */
export function pairs(entries) {
  return h("dl", { class: "pairs" }, entries.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

/** Something wide that scrolls by itself, also with the keyboard. */
export const scroll = (label, ...children) =>
  h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, children);

/** One cell brought up to date: a text is compared, a node is made again when its `sign` differs. */
function fill(cell, column, row) {
  if (!column.sign) return say(cell, String(column.cell(row)));
  const sign = String(column.sign(row));
  if (cell.dataset.sign === sign) return undefined;
  cell.dataset.sign = sign;
  return cell.replaceChildren(...[column.cell(row)].flat());
}

/**
 * A table of rows under keys. Columns are {title, cell, sort?, sign?, num?, wide?}; the first one heads its row.
 * `update` takes [[key, row], …]; `chosen` marks a row.
 */
export class LiveTable {
  constructor({ caption, columns, order = 0, descending = false, empty = "nothing yet", shown = ROWS_SHOWN }) {
    Object.assign(this, { columns, order, descending, shown, empty, page: 0, rows: [], chosen: null });
    this.lines = new Map();
    this.heads = columns.map((column, at) => this.head(column, at));
    this.body = h("tbody");
    this.none = h("p", { class: "note" }, "asking …");
    this.back = h("button", { type: "button", onclick: () => this.turn(-1) }, "Previous");
    this.next = h("button", { type: "button", onclick: () => this.turn(1) }, "Next");
    this.where = h("span");
    this.pager = h("div", { class: "pager" }, this.back, this.where, this.next);
    // In a span, which stays in sight while the table is scrolled sideways.
    const titled = h("caption", {}, h("span", {}, caption));
    const table = h("table", {}, titled, h("thead", {}, h("tr", {}, this.heads)), this.body);
    this.element = h("div", {}, scroll(caption, table, this.none), this.pager);
    this.draw();
  }

  head(column, at) {
    const kind = column.num ? "num" : null;
    if (!column.sort) return h("th", { scope: "col", class: kind }, column.title);
    const sorted = at === this.order ? (this.descending ? "descending" : "ascending") : null;
    const press = () => {
      this.descending = this.order === at ? !this.descending : Boolean(column.num);
      this.order = at;
      this.heads.forEach((head) => head.removeAttribute("aria-sort"));
      this.heads[at].setAttribute("aria-sort", this.descending ? "descending" : "ascending");
      this.draw();
    };
    const button = h("button", { type: "button", onclick: press }, column.title);
    return h("th", { scope: "col", class: kind, "aria-sort": sorted }, button);
  }

  turn(by) {
    this.page += by;
    this.draw();
  }

  update(rows) {
    this.rows = rows;
    say(this.none, this.empty);
    this.draw();
  }

  choose(key) {
    this.chosen = key;
    for (const [name, line] of this.lines) line.classList.toggle("chosen", name === key);
  }

  /** The rows of this page, in order. */
  visible() {
    const by = this.columns[this.order].sort;
    const sorted = [...this.rows];
    if (by) {
      const sign = this.descending ? -1 : 1;
      sorted.sort(([, a], [, b]) => {
        const [x, y] = [by(a), by(b)];
        return sign * (typeof x === "string" ? byName(x, y) : x - y);
      });
    }
    const pages = Math.max(1, Math.ceil(sorted.length / this.shown));
    this.page = Math.max(0, Math.min(this.page, pages - 1));
    return sorted.slice(this.page * this.shown, (this.page + 1) * this.shown);
  }

  draw() {
    const visible = this.visible();
    const keep = new Set(visible.map(([key]) => key));
    for (const [key, line] of this.lines) {
      if (keep.has(key)) continue;
      line.remove();
      this.lines.delete(key);
    }
    let at = this.body.firstChild;
    for (const [key, row] of visible) {
      const line = this.line(key);
      this.columns.forEach((column, n) => fill(line.children[n], column, row));
      // Rows that stay in place keep the focus that is in them.
      if (line === at) at = at.nextSibling;
      else this.body.insertBefore(line, at);
    }
    const [all, first] = [this.rows.length, this.page * this.shown];
    this.none.hidden = all > 0;
    this.pager.hidden = all <= this.shown;
    this.back.disabled = this.page === 0;
    this.next.disabled = first + this.shown >= all;
    say(this.where, `${count(first + 1)}–${count(Math.min(all, first + this.shown))} of ${count(all)}`);
  }

  line(key) {
    const known = this.lines.get(key);
    if (known) return known;
    const cell = (column, at) => h(at === 0 ? "th" : "td", {
      scope: at === 0 ? "row" : null, class: column.num ? "num" : column.wide ? "wide" : null });
    const line = h("tr", { class: key === this.chosen ? "chosen" : null }, this.columns.map(cell));
    this.lines.set(key, line);
    return line;
  }
}
