// The pairwise page: keys, rule marks with quotes, corrections with a word diff. The form works without it.

import { Drafts } from "./drafts.js";
import { showDiff } from "./worddiff.js";

const form = document.getElementById("judgment");
const keysDialog = document.getElementById("keys");
const reveal = document.getElementById("reveal");
const drafts = new Drafts(form, document.getElementById("saved"));
const letters = { left: "A", right: "B" };
const selected = { left: "", right: "" };

function changed(element) {
  element.dispatchEvent(new Event("input", { bubbles: true }));
}

function choose(value) {
  const radio = form.querySelector(`input[name="scale"][value="${value}"]`);
  radio.checked = true;
  changed(radio);
}

// Rule marks ------------------------------------------------------------------------------------------------------

function marks(side) {
  return [...form.querySelectorAll(`input[name="broken-${side}"]`)];
}

function rememberSelection() {
  const selection = document.getSelection();
  for (const side of ["left", "right"]) {
    const inside = selection?.anchorNode && document.getElementById(`reply-${side}`).contains(selection.anchorNode);
    const text = inside ? selection.toString().trim() : "";
    if (text) selected[side] = text;
  }
}

function enterRules(side) {
  rememberSelection();
  (marks(side).find((mark) => mark.checked) ?? marks(side)[0])?.focus();
}

function moveInRules(mark, step) {
  const column = marks(mark.name.slice("broken-".length));
  column.at((column.indexOf(mark) + step) % column.length).focus();
}

function markChanged(mark) {
  const side = mark.name.slice("broken-".length);
  const quote = form.elements[`span-${side}-${mark.value}`];
  if (mark.checked) {
    rememberSelection();
    quote.value = selected[side];
  } else {
    quote.value = "";
  }
  selected[side] = "";
  showMarks();
}

function showMarks() {
  for (const side of ["left", "right"]) {
    const count = marks(side).filter((mark) => mark.checked).length;
    const badge = document.querySelector(`#reply-${side} .broken-count`);
    badge.hidden = count === 0;
    badge.textContent = `✗ breaks ${count} rule${count === 1 ? "" : "s"}`;
  }
  for (const rule of form.querySelectorAll(".rule")) {
    const quotes = ["left", "right"].flatMap((side) => {
      const quote = rule.querySelector(`input[name^="span-${side}-"]`).value;
      return quote ? [`${letters[side]}: “${quote}”`] : [];
    });
    rule.querySelector(".quotes").textContent = quotes.join(" ");
  }
}

// Corrections -----------------------------------------------------------------------------------------------------

function betterSide() {
  return ["5", "6", "7"].includes(form.elements.scale.value) ? "right" : "left";
}

function correct(side) {
  const editor = document.getElementById(`correct-${side}`);
  editor.open = true;
  const text = editor.querySelector("textarea");
  text.focus();
  text.setSelectionRange(text.value.length, text.value.length);
  editor.scrollIntoView({ block: "center" });
}

function refreshDiff(editor) {
  const before = editor.querySelector(".original").textContent;
  showDiff(editor.querySelector(".word-diff"), before, editor.querySelector("textarea").value);
}

function popUp(id, field) {
  const details = document.getElementById(id) ?? document.querySelector(id);
  if (!details) return;
  details.open = true;
  details.querySelector(field).focus();
}

// Keys ------------------------------------------------------------------------------------------------------------

function submit() {
  form.requestSubmit();
}

const KEYS = {
  0: () => choose("4"),
  x: () => choose("both_bad"),
  a: () => enterRules("left"),
  b: () => enterRules("right"),
  e: () => correct(betterSide()),
  E: () => correct(betterSide() === "left" ? "right" : "left"),
  n: () => popUp("details.note", "textarea"),
  s: () => popUp("skip", "input:checked"),
  f: () => popUp("flag", "input"),
  z: () => document.getElementById("undo")?.click(),
  "?": () => keysDialog.showModal(),
};
for (const step of "1234567") KEYS[step] = () => choose(step);

function isTyping(element) {
  return element.matches("textarea, select, [contenteditable], input:not([type=radio], [type=checkbox])");
}

function onKey(event) {
  if (keysDialog.open) return;
  const target = event.target instanceof Element ? event.target : document.body;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    submit();
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
  const mark = target.matches('input[name^="broken-"]');
  if (mark && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
    moveInRules(target, event.key === "ArrowDown" ? 1 : -1);
    return true;
  }
  const takesEnter = target.closest("button, a, summary") || (target.form && target.form !== form);
  if (event.key === "Enter" && !takesEnter) {
    submit();
    return true;
  }
  if (event.key === " " && reveal && !target.closest("button, a, summary, input")) {
    reveal.click();
    return true;
  }
  if (event.repeat || !Object.hasOwn(KEYS, event.key)) return false;
  KEYS[event.key]();
  return true;
}

// Wiring ----------------------------------------------------------------------------------------------------------

document.addEventListener("keydown", onKey);
document.addEventListener("selectionchange", rememberSelection);
form.addEventListener("input", (event) => {
  if (event.target.name?.startsWith("broken-")) markChanged(event.target);
  const editor = event.target.closest("details.correction");
  if (editor) refreshDiff(editor);
});
for (const other of document.querySelectorAll("#skip-form, #flag-form")) {
  other.addEventListener("submit", () => drafts.close());
}
form.addEventListener("submit", () => {
  drafts.close();
  document.getElementById("submit").setAttribute("aria-busy", "true");
});
window.addEventListener("pageshow", (event) => {
  if (event.persisted) window.location.reload(); // back from the next task: show what is stored, not a stale form
});
const keysButton = document.getElementById("keys-button");
keysButton.hidden = false;
keysButton.addEventListener("click", () => keysDialog.showModal());
document.querySelectorAll("details.correction[open]").forEach(refreshDiff);
showMarks();
drafts.start();
document.documentElement.dataset.ready = "yes"; // the keys work from here on
