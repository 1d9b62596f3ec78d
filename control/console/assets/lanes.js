// Swim lanes: the turns of sessions over time, on one canvas beside the list of their names.
//
// Light is the wait for the first token, full is the answer; a line says that a tool is waited for. Marks stand above:
// cold starts, tokens computed again, compactions, ends. The same is told in a table of the chosen session's turns.

import { colours, oncePerFrame, sharp } from "./grid.js";
import { h } from "./dom.js";
import { clock } from "./format.js";

export const LANE_HEIGHT = 30;
const AXIS = 22;

/** Where the pauses of a session are: from a turn that ended in a call to what came next. The call is marked after
 * its turn has ended. */
export function pauses(row, now) {
  const found = [];
  const starts = row.marks.filter((mark) => mark.change === "paused").map((mark) => mark.at_unix_ms);
  for (const from of starts) {
    const next = row.lane.find((turn) => !turn.aside && (turn.ended_unix_ms ?? Infinity) > from);
    const end = row.marks.find((mark) => mark.change === "ended" && mark.at_unix_ms >= from)?.at_unix_ms;
    const open = row.state === "paused" ? now : from;
    found.push([from, Math.min(next?.began_unix_ms ?? Infinity, end ?? Infinity, next || end ? Infinity : open)]);
  }
  return found;
}

function bar(context, x, y, width, height, colour) {
  context.fillStyle = colour;
  context.fillRect(x, y, Math.max(2, width), height);
}

function drawLane(context, row, y, x, now, palette) {
  const [top, tall] = [y + 9, 14];
  context.strokeStyle = palette.c4;
  context.lineWidth = 2;
  for (const [from, to] of pauses(row, now)) {
    context.beginPath();
    context.moveTo(x(from), top + tall / 2);
    context.lineTo(x(to), top + tall / 2);
    context.stroke();
  }
  for (const turn of row.lane) {
    const from = x(turn.began_unix_ms);
    const first = x(turn.first_unix_ms ?? turn.ended_unix_ms ?? now);
    const end = x(turn.ended_unix_ms ?? now);
    const failed = turn.end === "failed" || turn.end === "given_up";
    const full = failed ? palette.c7 : turn.aside ? palette.dim : palette.c0;
    context.globalAlpha = 0.4;
    bar(context, from, top, first - from, tall, full);
    context.globalAlpha = 1;
    if (turn.first_unix_ms) bar(context, first, top, end - first, tall, full);
    if (turn.cold) mark(context, from, y, palette.c5);
    else if (turn.again_tokens > 0) mark(context, from, y, palette.c1);
  }
  for (const change of row.marks) {
    if (change.change === "compacted") mark(context, x(change.at_unix_ms), y, palette.c3);
    if (change.change !== "ended") continue;
    context.fillStyle = palette.fg;
    context.fillRect(x(change.at_unix_ms) - 1, top - 3, 2, tall + 6);
  }
}

/** A small triangle above a lane. */
function mark(context, x, y, colour) {
  context.fillStyle = colour;
  context.beginPath();
  context.moveTo(x - 4, y + 1);
  context.lineTo(x + 4, y + 1);
  context.lineTo(x, y + 8);
  context.fill();
}

export class Lanes {
  constructor() {
    Object.assign(this, { rows: [], from: 0, to: 1 });
    this.canvas = h("canvas", { role: "img", "aria-label": "Turns of sessions over time" });
    this.element = h("div", {}, this.canvas);
    this.draw = oncePerFrame(() => this.redraw());
    this.watch = new ResizeObserver(this.draw);
    this.watch.observe(this.element);
  }

  end() {
    this.watch.disconnect();
  }

  update(rows, from, to) {
    Object.assign(this, { rows, from, to });
    const turns = rows.reduce((sum, row) => sum + row.lane.length, 0);
    this.canvas.setAttribute("aria-label", `${turns} turns of ${rows.length} sessions from ${clock(from)} to `
      + `${clock(to)}; the table below tells each session, and choosing one its turns`);
    this.draw();
  }

  redraw() {
    if (!this.element.clientWidth) return;
    const height = Math.max(1, this.rows.length) * LANE_HEIGHT + AXIS;
    const { context, width } = sharp(this.canvas, height);
    const palette = colours();
    const x = (at) => ((at - this.from) / Math.max(1, this.to - this.from)) * width;
    context.strokeStyle = palette.line;
    context.fillStyle = palette.dim;
    context.font = "12px system-ui,sans-serif";
    const steps = width > 500 ? 6 : width > 280 ? 3 : 1;
    for (let n = 0; n <= steps; n += 1) {
      const at = this.from + ((this.to - this.from) * n) / steps;
      context.beginPath();
      context.moveTo(x(at), 0);
      context.lineTo(x(at), height - AXIS);
      context.stroke();
      context.textAlign = n === 0 ? "left" : n === steps ? "right" : "center";
      context.fillText(clock(at), x(at), height - 6);
    }
    this.rows.forEach((row, n) => drawLane(context, row, n * LANE_HEIGHT, x, this.to, palette));
  }
}
