// Numbers, times and names as people read them. Pure: values in, texts out.

const GROUPS = new Intl.NumberFormat("en");
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

/** A whole number with its groups: 12,345. */
export const count = (n) => (n == null ? "–" : GROUPS.format(Math.round(n)));

/** A number in three digits: 12.3K. */
export const short = (n) => (n == null ? "–" : Math.abs(n) < 10_000 ? count(n) : COMPACT.format(n));

/** A rate with a digit after the point where it is small. */
export const rate = (n) => (n == null ? "–" : n < 10 ? (Math.round(n * 10) / 10).toString() : short(n));

/** A part of a whole in percent; a dash of nothing. */
export function share(part, whole) {
  if (!whole) return "–";
  const percent = (part / whole) * 100;
  return `${percent >= 99.95 || percent === 0 ? Math.round(percent) : percent.toFixed(1)} %`;
}

/** Milliseconds: 0.4 ms, 12 ms, 3.2 s. */
export function ms(value) {
  if (value == null) return "–";
  if (value < 10) return `${Math.round(value * 10) / 10} ms`;
  if (value < 1_000) return `${Math.round(value)} ms`;
  return value < 60_000 ? `${(value / 1_000).toFixed(1)} s` : span(value);
}

/** Microseconds, of which most are few: 12.5 µs, 9 ms. */
export const us = (value) => (value < 1_000 ? `${Math.round(value * 10) / 10} µs` : ms(value / 1_000));

/** A length of time in its two largest units: 4m12s. */
export function span(value) {
  if (value == null) return "–";
  const seconds = Math.max(0, Math.floor(value / 1_000));
  const [d, h, m, s] = [Math.floor(seconds / 86_400), Math.floor(seconds / 3_600) % 24,
    Math.floor(seconds / 60) % 60, seconds % 60];
  if (d) return `${d}d${h}h`;
  if (h) return `${h}h${String(m).padStart(2, "0")}m`;
  return m ? `${m}m${String(s).padStart(2, "0")}s` : `${s}s`;
}

/** A point in time on this machine's clock. */
export function clock(unixMs, withSeconds = true) {
  const options = { hour: "2-digit", minute: "2-digit", hour12: false };
  if (withSeconds) options.second = "2-digit";
  return new Date(unixMs).toLocaleTimeString("en-GB", options);
}

const NAMES = new Intl.Collator("en", { numeric: true });

/** The order of two names: w2 before w10. */
export const byName = (a, b) => NAMES.compare(a, b);

/** "3 pins", "1 pin". */
export const many = (n, one, more = `${one}s`) => `${count(n)} ${n === 1 ? one : more}`;

/** An id cut in its middle, so that beginning and end tell it apart. */
export function brief(id, most = 20) {
  if (id.length <= most) return id;
  const head = Math.ceil((most - 1) / 2);
  return `${id.slice(0, head)}…${id.slice(id.length - (most - 1 - head))}`;
}
