// The rule editor: adds and removes examples in place, shows what an edit changes, keeps what is typed in this browser, and
// asks before it is left. Without it each of these buttons sends the form, and the same page comes back.

import { forget, keep, kept } from "./rule_drafts.js";
import { showDiff } from "./worddiff.js";

const form = document.getElementById("rule-form");
const resent = form.dataset.leave === "yes"; // the page came back with what was typed, and it is not saved
let touched = resent;

// Examples --------------------------------------------------------------------------------------------------------------

const lists = new Map([...form.querySelectorAll(".example-list")].map((list) => [list.id, list]));
const examplesIn = (list) => [...list.querySelectorAll(":scope > .example-fields")];

function addExample(list) {
  const template = list.querySelector("template");
  template.before(template.content.cloneNode(true));
  renumber(list);
  return examplesIn(list).at(-1);
}

function renumber(list) {
  examplesIn(list).forEach((example, n) => {
    example.querySelector(".example-number").textContent = n + 1;
    example.querySelector(".drop").value = `drop-${list.id}-${n}`;
  });
}

for (const list of lists.values()) {
  const add = list.querySelector(".add");
  add.addEventListener("click", (event) => {
    event.preventDefault();
    addExample(list).querySelector("textarea").focus();
  });
  list.addEventListener("click", (event) => {
    const drop = event.target.closest(".drop");
    if (!drop) return;
    event.preventDefault();
    drop.closest(".example-fields").remove();
    renumber(list);
    changed();
    add.focus();
  });
}

// What is new against the words that the page came with; a new rule has nothing to compare with ---------------------------

if (form.elements.base.value !== "0") {
  for (const name of ["text", "refusal_text"]) {
    const field = form.elements[name];
    const before = field.value;
    const shown = document.createElement("div");
    shown.className = "live-diff diff user-text";
    shown.dir = "auto";
    shown.hidden = true;
    field.closest("label").after(shown);
    field.addEventListener("input", () => showDiff(shown, before, field.value));
  }
}

// Drafts ------------------------------------------------------------------------------------------------------------------

const entries = () => [...new FormData(form)].filter(([name]) => name !== "csrf_token");
const asLoaded = JSON.stringify(entries());
let timer = 0;

function changed() {
  touched = true;
  clearTimeout(timer);
  timer = setTimeout(() => keep(entries()), 500);
}

function bringBack(draft) {
  for (const [side, list] of lists) {
    for (const example of examplesIn(list)) example.remove();
    const of = (field) => draft.filter(([name]) => name === `${side}_${field}`).map(([, value]) => value);
    const reasons = of("reason");
    of("text").forEach((text, n) => {
      const example = addExample(list);
      example.querySelector("textarea").value = text;
      example.querySelector("input").value = reasons[n] ?? "";
    });
  }
  for (const [name, value] of draft) {
    // "base" too: what others have saved since then is told when the draft is sent
    if (!/^(kept|broken)_/.test(name) && form.elements[name]) form.elements[name].value = value;
  }
  for (const name of ["text", "refusal_text"]) form.elements[name].dispatchEvent(new Event("input", { bubbles: true }));
}

const draft = kept();
if (resent) {
  keep(entries());
} else if (draft && JSON.stringify(draft.entries) !== asLoaded) {
  const notice = document.getElementById("draft");
  const time = notice.querySelector("time");
  time.dateTime = new Date(draft.at).toISOString();
  time.textContent = new Date(draft.at).toLocaleString(document.documentElement.lang);
  notice.hidden = false;
  notice.querySelector(".bring-back").addEventListener("click", () => {
    bringBack(draft.entries);
    notice.hidden = true;
  });
  notice.querySelector(".throw-away").addEventListener("click", () => {
    forget();
    notice.hidden = true;
  });
}

form.addEventListener("input", changed);
form.addEventListener("submit", () => {
  clearTimeout(timer);
  if (touched) keep(entries());
  touched = false;
});
addEventListener("beforeunload", (event) => {
  if (touched) event.preventDefault();
});

document.documentElement.dataset.ready = "yes";
