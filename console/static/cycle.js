// Live progress of one cycle: figures are put in place every two seconds. When a stage has told more steps, its curves are
// fetched, and when one begins or ends, all of it: results and curves are made by the server, in one place only.

import { localise } from "../../static/times.js";

const EVERY_MS = 2000;
const MOST_MS = 30000;
let failures = 0;
let timer = null;

function live() {
  return document.getElementById("live");
}

function say(element, text) {
  if (!element) return;
  if (element.textContent !== text) element.textContent = text;
  if (element.tagName === "P") element.hidden = !text;
}

function fill(state) {
  const root = live();
  say(root.querySelector('[data-live="elapsed"]'), state.elapsed);
  for (const name of ["left", "energy", "waiting_for"]) say(root.querySelector(`[data-live="${name}"]`), state[name]);
  for (const stage of state.stages) {
    const row = root.querySelector(`[data-stage="${CSS.escape(stage.name)}"]`);
    const bar = row?.querySelector('[data-live="progress"]');
    if (bar) bar.value = stage.progress;
    say(row?.querySelector('[data-live="note"]'), stage.note);
    say(row?.querySelector('[data-live="figures"]'), stage.figures);
  }
}

// What was open stays open; the keyboard's focus stays where it was.
function put(old, fresh, replace) {
  for (const details of old.querySelectorAll("details[open][id]")) {
    const same = fresh.querySelector(`#${CSS.escape(details.id)}`);
    if (same) same.open = true;
  }
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  const summary = focused?.tagName === "SUMMARY";
  const id = summary ? focused.parentElement.id : focused?.id;
  replace();
  const same = id ? document.getElementById(id) : null;
  (summary ? same?.querySelector("summary") : same)?.focus();
}

async function steps(state) {
  for (const stage of state.stages) {
    const place = live().querySelector(`[data-stage="${CSS.escape(stage.name)}"] [data-steps]`);
    if (!place || Number(place.dataset.told) === stage.told) continue;
    const response = await fetch(place.dataset.steps, { headers: { Accept: "text/html" } });
    if (!response.ok || response.redirected) throw new Error(`status ${response.status}`);
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html").body;
    put(place, fresh, () => place.replaceChildren(...fresh.childNodes));
    place.dataset.told = stage.told;
  }
}

async function swap() {
  const response = await fetch(location.pathname, { headers: { Accept: "text/html" } });
  if (!response.ok) throw new Error(`status ${response.status}`);
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html").getElementById("live");
  if (!fresh) throw new Error("signed out");
  localise(fresh);
  put(live(), fresh, () => live().replaceWith(fresh));
}

async function look() {
  timer = null;
  try {
    const response = await fetch(live().dataset.poll, { headers: { Accept: "application/json" } });
    if (!response.ok) throw new Error(`status ${response.status}`);
    const state = await response.json();
    if (state.fingerprint === live().dataset.fingerprint) {
      fill(state);
      await steps(state);
    } else await swap();
    failures = 0;
  } catch {
    failures += 1;
    if (failures === 2) say(live().querySelector('[data-live="waiting_for"]'), live().dataset.silent);
  }
  wait();
}

function wait() {
  if (!live().dataset.poll || document.hidden || timer !== null) return;
  timer = setTimeout(look, Math.min(EVERY_MS * 2 ** failures, MOST_MS));
}

document.addEventListener("visibilitychange", wait);
wait();
