// The rule editor: adds and removes examples in place, shows what an edit changes, and asks before typed text is left.
// Without it each of these buttons sends the form, and the same page comes back.

import { showDiff } from "./worddiff.js";

const form = document.getElementById("rule-form");
let touched = form.dataset.leave === "yes";

for (const list of form.querySelectorAll(".example-list")) {
  const template = list.querySelector("template");
  const add = list.querySelector(".add");
  const examples = () => [...list.querySelectorAll(":scope > .example-fields")];

  function renumber() {
    examples().forEach((example, n) => {
      example.querySelector(".example-number").textContent = n + 1;
      example.querySelector(".drop").value = `drop-${list.id}-${n}`;
    });
  }

  add.addEventListener("click", (event) => {
    event.preventDefault();
    template.before(template.content.cloneNode(true));
    renumber();
    examples().at(-1).querySelector("textarea").focus();
  });
  list.addEventListener("click", (event) => {
    const drop = event.target.closest(".drop");
    if (!drop) return;
    event.preventDefault();
    drop.closest(".example-fields").remove();
    touched = true;
    renumber();
    add.focus();
  });
}

// What is new against the words that the page came with; a new rule has nothing to compare with.
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

form.addEventListener("input", () => { touched = true; });
form.addEventListener("submit", () => { touched = false; });
addEventListener("beforeunload", (event) => { if (touched) event.preventDefault(); });

document.documentElement.dataset.ready = "yes";
