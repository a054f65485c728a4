// The frame of all task pages: keys, submit with the next task at hand, drafts, pop-ups. Kinds add what is their own.
// The page works without it, as plain forms.

import { call, refresh, send, token } from "./csrf.js";
import { Drafts, MAX_KEPT_ALIVE } from "./drafts.js";
import { Marks } from "./marks.js";
import correction from "./kinds/correction.js";
import pairwise from "./kinds/pairwise.js";
import probe from "./kinds/probe.js";
import ranking from "./kinds/ranking.js";
import rating from "./kinds/rating.js";
import rule_check from "./kinds/rule_check.js";

const KINDS = { correction, pairwise, probe, ranking, rating, rule_check };
const PAUSE_MS = 10 * 60 * 1000; // a gap after which work begins anew

let task = null; // what is on the page
let ahead = null; // a promise of the next page: {main, fetched} or null
let storing = Promise.resolve();

// One task on the page. `keys` are those of its kind; `words` are its texts in the reader's language.
class Task {
  constructor(form) {
    this.form = form;
    this.words = JSON.parse(form.dataset.words);
    this.status = document.getElementById("saved");
    this.drafts = new Drafts(form, this.status, this.words);
    this.marks = new Marks(this);
    this.reveal = document.getElementById("reveal");
    this.keysDialog = document.getElementById("keys");
    this.again = Boolean(form.elements.supersedes);
    const own = KINDS[form.dataset.kind](this);
    this.own = own;
    this.keys = {
      n: () => popUp("details.note", "textarea"),
      m: () => form.querySelector(".frame").classList.toggle("as-written"),
      s: () => popUp("#skip", "input:checked"),
      f: () => popUp("#flag", "input"),
      z: () => document.getElementById("undo")?.click(),
      "?": () => this.keysDialog.showModal(),
      ...own.keys,
    };
  }

  say(name, fills = {}) {
    return (this.words[name] ?? name).replace(/\{(\w+)\}/g, (_, key) => fills[key] ?? "");
  }

  changed(element) {
    element.dispatchEvent(new Event("input", { bubbles: true }));
  }

  choose(name, value) {
    const radio = this.form.querySelector(`input[name="${name}"][value="${value}"]`);
    radio.checked = true;
    this.changed(radio);
  }

  toggle(name) {
    const box = this.form.elements[name];
    box.checked = !box.checked;
    this.changed(box);
  }
}

function popUp(selector, field) {
  const details = document.querySelector(selector);
  if (!details) return;
  details.open = true;
  details.querySelector(field).focus();
}

// Submit and next -------------------------------------------------------------------------------------------------

async function fetchNext(url) {
  const answer = await fetch(url, { headers: { Accept: "text/html" } });
  if (!answer.ok) return null;
  const parsed = new DOMParser().parseFromString(await answer.text(), "text/html");
  const main = parsed.getElementById("content");
  return main?.querySelector("#judgment") ? { main, fetched: performance.now() } : null;
}

function lookAhead() {
  if (!task || task.again) return;
  const { next, token } = task.form.dataset;
  ahead = fetchNext(`${next}?beside=${encodeURIComponent(token)}`).catch(() => null);
}

function show(main) {
  document.getElementById("content").replaceWith(main);
  begin();
  window.scrollTo(0, 0);
  main.querySelector("h1")?.focus({ preventScroll: true });
}

// The server's clock said when the page was made; it is seen only now.
function seenNow({ main, fetched }) {
  const field = main.querySelector('input[name="shown_at"]');
  field.value = String(Number(field.value) + (performance.now() - fetched) / 1000);
  main.querySelector("#undo")?.removeAttribute("hidden");
  refresh(main);
  return main;
}

async function store(form) {
  const body = new URLSearchParams(new FormData(form));
  const answer = await call(form.action, () => {
    body.set("csrf_token", token());
    return {
      method: "POST",
      body,
      headers: { Accept: "application/json" },
      keepalive: String(body).length < MAX_KEPT_ALIVE, // it still goes out when the page is left
    };
  });
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(said.detail ?? String(answer.status)), { over: [404, 409].includes(answer.status) });
  return said;
}

async function submit() {
  const left = task;
  if (!left.form.reportValidity()) return;
  left.drafts.close();
  const button = document.getElementById("submit");
  button.setAttribute("aria-busy", "true");
  const before = document.getElementById("content");
  storing = store(left.form);
  storing.catch(() => null);
  countWork(left.form.dataset.breakAfterMin);
  const next = await ahead;
  ahead = null;
  if (next) {
    show(seenNow(next));
    if (performance.now() - next.fetched > (task.form.dataset.leaseS * 1000) / 3) task.drafts.renew(true);
    task.status.textContent = task.say("storing");
  }
  try {
    const said = await storing;
    if (!next) {
      const told = said.surplus ? "?extra=1" : ""; // the next page says what this one has no time to
      window.location.assign(left.form.dataset.next + told);
      return;
    }
    task.status.textContent = said.message || task.say("stored");
    document.getElementById("progress").textContent = said.progress;
    lookAhead();
  } catch (error) {
    button.removeAttribute("aria-busy");
    if (next) show(before);
    else task.drafts.start();
    task.drafts.saveNow();
    const notice = document.createElement("p");
    notice.className = "notice notice-bad";
    notice.setAttribute("role", "alert");
    notice.textContent = task.say("not_stored", { why: error.message });
    if (error.over) notice.append(" ", Object.assign(document.createElement("a"), { href: left.form.dataset.next, textContent: task.say("go_on") }));
    task.form.querySelectorAll(".notice[role=alert]").forEach((old) => old.remove());
    task.form.querySelector(".judging-head").after(notice);
    lookAhead();
  }
}

// A break is proposed after a good while of work, never forced.
function countWork(breakAfterMin) {
  const now = Date.now();
  const last = Number(sessionStorage.getItem("worked-last") ?? 0);
  if (now - last > PAUSE_MS) sessionStorage.setItem("worked-since", String(now));
  sessionStorage.setItem("worked-last", String(now));
  const minutes = (now - Number(sessionStorage.getItem("worked-since"))) / 60000;
  sessionStorage.setItem("break-due", Number(breakAfterMin) > 0 && minutes >= Number(breakAfterMin) ? "yes" : "");
}

function showBreak() {
  const hint = document.getElementById("break-hint");
  hint.hidden = sessionStorage.getItem("break-due") !== "yes";
  document.getElementById("break-taken").onclick = () => {
    sessionStorage.setItem("worked-since", String(Date.now()));
    sessionStorage.setItem("break-due", "");
    hint.hidden = true;
  };
}

// Keys ------------------------------------------------------------------------------------------------------------

function isTyping(element) {
  return element.matches("textarea, select, [contenteditable], input:not([type=radio], [type=checkbox])");
}

function onKey(event) {
  if (!task || task.keysDialog.open) return;
  const target = event.target instanceof Element ? event.target : document.body;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    task.form.requestSubmit();
    return;
  }
  if (event.key === "Escape") {
    leave(target);
    return;
  }
  if (isTyping(target) || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (ownKey(event, target)) event.preventDefault();
}

function leave(target) {
  const popup = target.closest("details.give-back, details.note");
  if (popup) popup.open = false;
  target.blur?.();
}

// True when the key was ours; elements keep the keys that they need themselves.
function ownKey(event, target) {
  if (task.marks.moves(event, target) || task.own.onKey?.(event, target)) return true;
  const takesEnter = target.closest("button, a, summary") || (target.form && target.form !== task.form);
  if (event.key === "Enter" && !takesEnter) {
    task.form.requestSubmit();
    return true;
  }
  if (event.key === " " && task.reveal && !target.closest("button, a, summary, input")) {
    task.reveal.click();
    return true;
  }
  if (event.repeat || !Object.hasOwn(task.keys, event.key)) return false;
  task.keys[event.key]();
  return true;
}

// Wiring: on the document, once, so that it outlives the task ------------------------------------------------------

const tasks = new WeakMap(); // by form: one that comes back is not set up twice

function begin() {
  const form = document.getElementById("judgment");
  task = tasks.get(form) ?? new Task(form);
  tasks.set(form, task);
  task.drafts.start();
  showBreak();
  document.documentElement.dataset.ready = "yes"; // the keys work from here on
}

document.addEventListener("keydown", onKey);
document.addEventListener("selectionchange", () => task?.marks.rememberSelection());
document.addEventListener("input", (event) => {
  if (!task || event.target.form !== task.form) return;
  task.marks.onInput(event.target);
  task.own.onInput?.(event.target);
  task.drafts.changed();
});
document.addEventListener("submit", (event) => {
  if (event.target === task?.form) {
    event.preventDefault();
    submit();
  } else if (event.target.elements.csrf_token) {
    event.preventDefault();
    task?.drafts.leave();
    task?.drafts.close();
    send(event.target, event.submitter);
  }
});
document.addEventListener("click", async (event) => {
  const link = event.target.closest("#undo");
  if (!link || event.ctrlKey || event.metaKey) return;
  event.preventDefault(); // what was just submitted is what is undone
  await storing.catch(() => null);
  window.location.assign(link.href);
});
window.addEventListener("pageshow", (event) => {
  if (event.persisted) window.location.reload(); // back from the next task: show what is stored, not a stale form
});
const keysButton = document.getElementById("keys-button");
keysButton.hidden = false;
keysButton.addEventListener("click", () => task.keysDialog.showModal());
begin();
lookAhead();
