// Lines over time, as SVG: axes that read well, gaps where nothing was measured, a cursor for pointer and arrow keys.

import { h, legend, say } from "./dom.js";
import { clock } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [200, 62, 12, 10, 24];

function s(tag, props) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props)) element.setAttribute(name, value);
  return element;
}

/** A step of 1, 2 or 5 times a power of ten, so that about three of them reach `most`. */
export function step(most) {
  const rough = Math.max(most, 1e-9) / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * ([1, 2, 5, 10].find((n) => n * power >= rough * 0.999) ?? 10);
}

/** What a time on the axis takes with some air, in pixels. */
const TICK_WIDTH = 84;

/** Which of `points` on an axis of this width tell their time: the first, the last, and those between with room. */
export function ticks(points, width) {
  const last = points - 1;
  if (last < 1) return [];
  const room = (places) => places.every((n, at) => at === 0 || ((n - places[at - 1]) / last) * width >= TICK_WIDTH);
  const placed = [4, 2, 1].map((parts) => Array.from({ length: parts + 1 }, (_, n) => Math.round((n / parts) * last)));
  return placed.find(room) ?? [last];
}

/** Over a shorter time than this, an axis tells seconds. */
const SECONDS_TOLD_MS = 300_000;
/** Steps without a value that a line goes over; more of them are a gap. */
const BRIDGED_MAX = 6;

/** The path of a line; values that are none are gone over, many of them are a gap, and a lone point is a dash. */
export function path(values, x, y) {
  let [text, last] = ["", null];
  values.forEach((value, at) => {
    if (value == null) return;
    const [px, py] = [x(at).toFixed(1), y(value).toFixed(1)];
    text += last != null && at - last <= BRIDGED_MAX ? `L${px} ${py}` : `M${px} ${py}h0.1`;
    last = at;
  });
  return text;
}

export class Plot {
  /** `series` are [[class, name], …], `text` writes a value, `most` fixes the upper end. */
  constructor({ title, series, text, most = null }) {
    Object.assign(this, { series, text, most, at: [], values: [], cursor: null, width: 560 });
    this.svg = s("svg", { class: "plot", height: HEIGHT, role: "img", tabindex: "0" });
    this.title = title;
    this.svg.setAttribute("aria-label", title);
    this.frame = s("g", {});
    this.paths = series.map(([name]) => s("path", { class: name }));
    this.mark = s("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    this.svg.append(this.frame, ...this.paths, this.mark);
    this.readout = h("span");
    const names = legend(series.map(([name, label]) => [name.replace("c", "k"), label]), "line");
    this.element = h("figure", {}, h("figcaption", {}, h("b", {}, title), this.readout), this.svg, names);
    this.svg.addEventListener("pointermove", (event) => this.point(this.under(event)));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    this.svg.addEventListener("blur", () => this.point(null));
    this.svg.addEventListener("keydown", (event) => this.press(event));
    // As wide as there is room, so that letters keep their size.
    new ResizeObserver(([{ contentRect }]) => {
      const width = Math.max(220, Math.round(contentRect.width));
      if (width === this.width) return;
      this.width = width;
      requestAnimationFrame(() => this.update(this.at, this.values));
    }).observe(this.svg);
  }

  x(at) {
    return LEFT + (at / Math.max(1, this.at.length - 1)) * (this.width - LEFT - RIGHT);
  }

  under(event) {
    const box = this.svg.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * this.width;
    const at = Math.round(((place - LEFT) / (this.width - LEFT - RIGHT)) * (this.at.length - 1));
    return at >= 0 && at < this.at.length ? at : null;
  }

  press(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !this.at.length) return;
    event.preventDefault();
    const from = this.cursor ?? this.at.length - 1;
    this.point(Math.max(0, Math.min(this.at.length - 1, from + by)));
  }

  point(at) {
    this.cursor = at;
    this.mark.setAttribute("visibility", at == null ? "hidden" : "visible");
    if (at != null) {
      this.mark.setAttribute("x1", this.x(at));
      this.mark.setAttribute("x2", this.x(at));
    }
    this.read();
  }

  /** What the cursor is at, or the latest. */
  read() {
    const at = this.cursor ?? this.at.length - 1;
    if (at < 0) return say(this.readout, "");
    const of = (values) => (values[at] == null ? "–" : this.text(values[at]));
    const figures = this.values.map(of).join(" · ");
    return say(this.readout, this.cursor == null ? figures : `${clock(this.at[at])} · ${figures}`);
  }

  /** Draws these lines; `at` are points in time, values a list for each line. */
  update(at, values) {
    Object.assign(this, { at, values });
    const highest = values.flat().reduce((most, value) => Math.max(most, value ?? 0), 0);
    // Where nothing was, the axis ends at one and not at a billionth.
    const by = highest > 0 || this.most ? step(this.most ?? highest) : 1;
    const top = this.most ?? Math.max(by, Math.ceil(highest / by) * by);
    const y = (value) => HEIGHT - BOTTOM - (Math.min(value, top) / top) * (HEIGHT - TOP - BOTTOM);
    const frame = [];
    for (let value = 0; value <= top * 1.001; value += by) {
      frame.push(s("line", { class: "rule", x1: LEFT, x2: this.width - RIGHT, y1: y(value), y2: y(value) }));
      const label = s("text", { class: "yt", x: LEFT - 8, y: y(value) + 4 });
      label.textContent = this.text(value);
      frame.push(label);
    }
    const last = at.length - 1;
    for (const n of ticks(at.length, this.width - LEFT - RIGHT)) {
      const label = s("text", { class: "xt", x: this.x(n), y: HEIGHT - 6 });
      label.style.textAnchor = n === 0 ? "start" : n === last ? "end" : "middle";
      label.textContent = clock(at[n], at.at(-1) - at[0] < SECONDS_TOLD_MS);
      frame.push(label);
    }
    this.frame.replaceChildren(...frame);
    this.paths.forEach((line, n) => line.setAttribute("d", path(values[n] ?? [], (i) => this.x(i), y)));
    this.svg.setAttribute("aria-label", this.summary());
    this.read();
  }

  /** The plot in words. */
  summary() {
    if (!this.at.length) return `${this.title}: nothing yet`;
    const last = this.series.map(([, label], n) => {
      const value = this.values[n]?.at(-1);
      return `${label} ${value == null ? "none" : this.text(value)}`;
    });
    return `${this.title}, latest: ${last.join(", ")}. Arrow keys move through time.`;
  }
}
