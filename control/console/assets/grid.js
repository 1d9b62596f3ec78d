// Pictures of many small cells on a canvas: one for each worker, or one for each block of a worker.
//
// Ten thousand elements would make a page crawl, one canvas does not. What it shows is in a table beside it, too; the
// canvas can be walked with arrow keys and says in words where one is.

import { h, say } from "./dom.js";

/** Colours by the names of the style, read again when the theme changes. */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  return Object.fromEntries(["fg", "dim", "line", "card", "bg", ...Array.from({ length: 8 }, (_, n) => `c${n}`)]
    .map((name) => [name, of(name)]));
}

/** A canvas of that height as sharp as the screen is, and its context in CSS pixels. */
export function sharp(canvas, height) {
  const width = Math.max(1, Math.floor(canvas.clientWidth || canvas.parentElement?.clientWidth || 300));
  const scale = window.devicePixelRatio || 1;
  const [w, t] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w || canvas.height !== t) {
    [canvas.width, canvas.height] = [w, t];
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width };
}

/** Draws at most once a frame, however often it is asked to. */
export function oncePerFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };
}

/** Cells side by side; `update` takes them, `paint(context, cell, x, y, size, colours)` draws one. */
export class Grid {
  constructor({ label, size, gap = 2, paint, words, onChoose = null }) {
    Object.assign(this, { label, size, gap, paint, words, onChoose, cells: [], at: -1, columns: 1 });
    this.canvas = h("canvas", { tabindex: "0", role: "img", "aria-label": label });
    this.readout = h("p", { class: "readout", "aria-live": "polite" });
    this.element = h("div", {}, this.canvas, this.readout);
    this.draw = oncePerFrame(() => this.redraw());
    this.canvas.addEventListener("pointermove", (event) => this.point(this.under(event)));
    this.canvas.addEventListener("pointerleave", () => this.point(-1));
    this.canvas.addEventListener("blur", () => this.point(-1));
    this.canvas.addEventListener("keydown", (event) => this.press(event));
    this.canvas.addEventListener("click", (event) => this.choose(this.under(event)));
    this.watch = new ResizeObserver(this.draw);
    this.watch.observe(this.element);
    // A change of the theme is told this way, too.
    window.addEventListener("resize", this.draw);
  }

  end() {
    this.watch.disconnect();
    window.removeEventListener("resize", this.draw);
  }

  under(event) {
    const box = this.canvas.getBoundingClientRect();
    const pitch = this.size + this.gap;
    const [column, row] = [event.clientX - box.left, event.clientY - box.top].map((v) => Math.floor(v / pitch));
    const at = row * this.columns + column;
    return column >= 0 && column < this.columns && at < this.cells.length ? at : -1;
  }

  press(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns }[event.key];
    if (event.key === "Enter") this.choose(this.at);
    if (!by || !this.cells.length) return;
    event.preventDefault();
    const to = this.at < 0 ? 0 : this.at + by;
    if (to >= 0 && to < this.cells.length) this.point(to);
  }

  choose(at) {
    if (at >= 0 && this.onChoose) this.onChoose(this.cells[at]);
  }

  point(at) {
    if (at === this.at) return;
    this.at = at;
    say(this.readout, at < 0 ? "" : this.words(this.cells[at]));
    this.draw();
  }

  update(cells, label) {
    this.cells = cells;
    if (label) this.canvas.setAttribute("aria-label", label);
    if (this.at >= cells.length) this.point(-1);
    this.draw();
  }

  redraw() {
    const pitch = this.size + this.gap;
    const width = this.canvas.clientWidth || this.element.clientWidth;
    if (!width) return;
    this.columns = Math.max(1, Math.floor((width + this.gap) / pitch));
    const rows = Math.max(1, Math.ceil(this.cells.length / this.columns));
    const { context } = sharp(this.canvas, rows * pitch - this.gap);
    const palette = colours();
    this.cells.forEach((cell, at) => {
      const [x, y] = [(at % this.columns) * pitch, Math.floor(at / this.columns) * pitch];
      this.paint(context, cell, x, y, this.size, palette);
      if (at === this.at) {
        context.strokeStyle = palette.fg;
        context.lineWidth = 2;
        context.strokeRect(x + 1, y + 1, this.size - 2, this.size - 2);
      }
    });
  }
}

/** Blocks in rows: runs of [count, colour, …]; a gap of a column stands between two runs. */
export class Waffle {
  constructor(label) {
    Object.assign(this, { runs: [], label });
    this.canvas = h("canvas", { role: "img", "aria-label": label });
    this.element = h("div", {}, this.canvas);
    this.draw = oncePerFrame(() => this.redraw());
    this.watch = new ResizeObserver(this.draw);
    this.watch.observe(this.element);
    // A change of the theme is told this way, too.
    window.addEventListener("resize", this.draw);
  }

  end() {
    this.watch.disconnect();
    window.removeEventListener("resize", this.draw);
  }

  /** `runs` are lists of [blocks, name of a colour]; the same ones again are not drawn again. */
  update(runs, label) {
    const sign = JSON.stringify(runs);
    this.canvas.setAttribute("aria-label", label);
    if (sign === this.sign) return;
    [this.runs, this.sign] = [runs, sign];
    this.draw();
  }

  /** The largest cell with which all blocks stay within a few screens. */
  fit(width, blocks) {
    for (const cell of [10, 8, 6, 5, 4, 3]) {
      if (blocks <= Math.floor(width / cell) * Math.floor(900 / cell)) return cell;
    }
    return 3;
  }

  redraw() {
    const width = this.element.clientWidth;
    if (!width) return;
    const blocks = this.runs.reduce((sum, run) => sum + run.reduce((n, [count]) => n + count, 1), 0);
    const cell = this.fit(width, blocks);
    const columns = Math.max(1, Math.floor(width / cell));
    const { context } = sharp(this.canvas, Math.max(1, Math.ceil(blocks / columns)) * cell);
    const palette = colours();
    const edge = cell > 4 ? 1 : cell > 3 ? 0.5 : 0.4;
    const rows = Math.max(1, Math.ceil(blocks / columns));
    let at = 0;
    // Neighbours of a colour in one strip, and what parts the cells cut out of all at once: a hundred thousand
    // rectangles would hold the page up.
    for (const run of this.runs) {
      for (const [count, colour] of run) {
        context.fillStyle = palette[colour];
        for (const end = at + count; at < end;) {
          const [column, row] = [at % columns, Math.floor(at / columns)];
          const wide = Math.min(end - at, columns - column);
          context.fillRect(column * cell, row * cell, wide * cell, cell);
          at += wide;
        }
      }
      // Nothing stands at the start of a row, where it would look like an error.
      if (at % columns) at += 1;
    }
    for (let column = 1; column <= columns; column += 1) context.clearRect(column * cell - edge, 0, edge, rows * cell);
    for (let row = 1; row <= rows; row += 1) context.clearRect(0, row * cell - edge, columns * cell, edge);
  }
}
