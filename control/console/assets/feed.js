// The feed: what the gateway tells, by GET and by one stream of changes that is opened again whenever it ends.
//
// The stream is read with fetch and not with EventSource, which can't send the key. Tables of rows are kept here; who
// shows them is told that something changed, and looks.

const API = "../api/v1/";
/** The gateway sends something every five seconds; this much silence means that it is gone. */
const SILENCE_MAX_MS = 15_000;
const PAUSE_MIN_MS = 500;
const PAUSE_MAX_MS = 8_000;
/** A page that nobody looks at for this long lets its stream go. */
const HIDDEN_MAX_MS = 30_000;
const KEY_NAME = "mainstay-key";

/** A refusal in the gateway's words. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const tables = new Map();
const listeners = new Set();
let onState = () => {};
let askForKey = async () => {};
let running = null;
let ahead = 0;

/** The key of this tab; "" is none. */
export const key = {
  get: () => sessionStorage.getItem(KEY_NAME) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY_NAME, value) : sessionStorage.removeItem(KEY_NAME)),
};

/** Says who is told of the stream's state, and who asks the user for a key. */
export function begin(state, ask) {
  onState = state;
  askForKey = ask;
}

/** The gateway's clock, in milliseconds since 1970. */
export const now = () => Date.now() + ahead;

/** What is known of a topic: its rows by key, what is said of all of them, and the problem if there is one. */
export function table(topic) {
  if (!tables.has(topic)) tables.set(topic, { rows: new Map(), about: {}, more: false, known: false });
  return tables.get(topic);
}

/** Tells `listener` the topic's name on each change; returns what ends that. */
export function listen(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

async function request(path, signal) {
  const headers = key.get() ? { authorization: `Bearer ${key.get()}` } : {};
  const response = await fetch(API + path, { headers, signal, cache: "no-store" });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Refused(response.status, body.error?.message ?? `the gateway answered ${response.status}`);
}

/** A GET under /api/v1/; asks for the key where one is needed, as often as it is wrong. */
export async function get(path, signal) {
  for (;;) {
    try {
      return await (await request(path, signal)).json();
    } catch (error) {
      if (error.status !== 401 || signal?.aborted) throw error;
      await askForKey(error.message);
    }
  }
}

/** Takes what a frame says into the tables. */
export function take(news) {
  ahead = news.now_unix_ms - Date.now();
  const known = table(news.topic);
  known.problem = news.problem;
  if (!news.problem) {
    if (news.whole) known.rows = new Map();
    for (const gone of news.gone) known.rows.delete(gone);
    for (const [name, row] of Object.entries(news.rows)) known.rows.set(name, row);
    Object.assign(known, { about: news.about ?? {}, more: news.has_more, known: true });
  }
  for (const listener of [...listeners]) listener(news.topic);
}

/** Cuts a text into whole events and what is left of it. */
export function events(text) {
  const parts = text.split("\n\n");
  const rest = parts.pop();
  const read = (part) => {
    const field = (name) => part.split("\n").find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
    return { name: field("event"), data: field("data") };
  };
  return { found: parts.map(read).filter((event) => event.data), rest };
}

async function read(response, alive) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return "the stream ended";
    alive();
    const { found, rest } = events(text + value);
    text = rest;
    for (const event of found) {
      const data = JSON.parse(event.data);
      if (event.name === "end") return data.reason;
      take(data);
    }
  }
}

const sleep = (duration, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, duration);
  signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
});

/** One attempt, until it ends; returns why. */
async function attempt(topics, signal) {
  const silence = new AbortController();
  let timer;
  const alive = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(), SILENCE_MAX_MS);
    onState("live", "live");
  };
  try {
    const both = AbortSignal.any([signal, silence.signal]);
    const response = await request(`console/events?topics=${topics.join(",")}`, both);
    alive();
    return await read(response, alive);
  } finally {
    clearTimeout(timer);
  }
}

async function run(topics, signal) {
  let pause = PAUSE_MIN_MS;
  while (!signal.aborted) {
    const began = Date.now();
    let why;
    try {
      why = await attempt(topics, signal);
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 401) {
        await askForKey(error.message);
        continue;
      }
      why = error.status ? error.message : "the gateway does not answer";
    }
    if (signal.aborted) return;
    if (Date.now() - began > 5_000) pause = PAUSE_MIN_MS;
    onState("down", `${why}; trying again`);
    await sleep(pause, signal);
    pause = Math.min(pause * 2, PAUSE_MAX_MS);
  }
}

/** Follows these topics, in place of those before. */
export function follow(topics) {
  running?.abort.abort();
  const abort = new AbortController();
  running = { topics, abort };
  onState("connecting", "connecting");
  run(topics, abort.signal);
}

let hidden;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hidden);
  if (!running) return;
  if (document.hidden) {
    hidden = setTimeout(() => {
      running.abort.abort();
      running.let_go = true;
      onState("connecting", "paused");
    }, HIDDEN_MAX_MS);
  } else if (running.let_go) {
    follow(running.topics);
  }
});
