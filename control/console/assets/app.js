// The console: which page is shown, in which theme, with which key.

import { begin, follow, key, listen, table } from "./feed.js";
import { h, say } from "./dom.js";
import { overview } from "./overview.js";
import { residency } from "./residency.js";
import { pins } from "./pins.js";
import { sessions } from "./sessions.js";
import { routing } from "./routing.js";
import { members } from "./members.js";
import { config } from "./config.js";

const PAGES = { overview, residency, pins, sessions, routing, members, config };
const THEMES = { auto: ["◐", "as the system has it"], light: ["☀", "light"], dark: ["☾", "dark"] };
const main = document.getElementById("main");
let shown = null;

/** Shows a page, and ends the one before. */
function show(first) {
  const name = location.hash.replace(/^#\//, "").split("?")[0];
  const page = PAGES[name] ?? overview;
  for (const link of document.querySelectorAll("#pages a")) {
    const here = link.getAttribute("href") === `#/${PAGES[name] ? name : "overview"}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    if (here) link.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  shown?.end();
  const { title, lead, topics, element, changed, tick, end } = page();
  document.title = `${title} · Mainstay console`;
  main.replaceChildren(h("h1", {}, title), h("p", { class: "lead" }, lead), element);
  const problems = h("div", { role: "alert" });
  main.insertBefore(problems, element);
  const unlisten = listen((topic) => {
    if (!topics.includes(topic)) return;
    const told = topics.map((one) => table(one).problem).filter(Boolean);
    problems.className = told.length ? "alert bad" : "";
    say(problems, told.join(" "));
    changed(topic);
  });
  const timer = tick && setInterval(tick, 1_000);
  shown = {
    end() {
      unlisten();
      clearInterval(timer);
      end?.();
    },
  };
  for (const topic of topics) changed(topic);
  follow(topics);
  // Who comes from a link wants to be read the new page.
  if (!first) main.focus();
}

function state(kind, text) {
  const live = document.getElementById("live");
  live.dataset.state = kind;
  say(live, text);
}

let asking = null;

/** Asks for a key; all who need one wait for the same answer. */
function askForKey(problem) {
  asking ??= new Promise((resolve) => {
    const [dialog, form] = ["key", "key-form"].map((id) => document.getElementById(id));
    const input = document.getElementById("key-input");
    const text = document.getElementById("key-text");
    if (key.get()) say(text, `That key was refused: ${problem}. Give another one.`);
    state("down", "a key is needed");
    const given = (event) => {
      event.preventDefault();
      key.set(input.value.trim());
      input.value = "";
      form.removeEventListener("submit", given);
      dialog.close();
      asking = null;
      resolve();
    };
    form.addEventListener("submit", given);
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.showModal();
  });
  return asking;
}

function theme(name) {
  const button = document.getElementById("theme");
  const [sign, words] = THEMES[name];
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  button.dataset.theme = name;
  button.textContent = sign;
  button.setAttribute("aria-label", `Theme: ${words}`);
  button.title = `Theme: ${words}`;
  // Canvases have their colours from the style and must be drawn again.
  window.dispatchEvent(new Event("resize"));
}

function kept(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

document.getElementById("theme").addEventListener("click", (event) => {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(event.currentTarget.dataset.theme) + 1) % names.length];
  try {
    localStorage.setItem("mainstay-theme", next);
  } catch {
    // A browser that keeps nothing forgets the theme; that is all.
  }
  theme(next);
});
theme(THEMES[kept("mainstay-theme")] ? kept("mainstay-theme") : "auto");
begin(state, askForKey);
window.addEventListener("hashchange", () => show(false));
show(true);
