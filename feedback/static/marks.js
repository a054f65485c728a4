// What may be said of each completion, whatever the kind: rules it breaks, with the words that show it, and a corrected
// text with its word diff.

import { showDiff } from "./worddiff.js";

export class Marks {
  constructor(task) {
    this.task = task;
    this.form = task.form;
    this.numbers = [...this.form.querySelectorAll(".reply-text:not(.formatted), .correction.single")].map((_, n) => n);
    this.selected = {}; // the last words selected in each reply
    this.form.querySelectorAll("details.correction[open], .correction.single").forEach((editor) => this.refreshDiff(editor));
    this.show();
  }

  letter(number) {
    return "ABCDEF"[number];
  }

  of(number) {
    return [...this.form.querySelectorAll(`input[name="broken-${number}"]`)];
  }

  rememberSelection() {
    const selection = document.getSelection();
    const reply = selection?.anchorNode?.parentElement?.closest("[data-reply], .original, [data-completion]");
    const text = reply ? selection.toString().trim() : "";
    if (text) this.selected[reply.dataset.reply ?? reply.dataset.completion ?? 0] = text;
  }

  take(key) {
    this.rememberSelection();
    const text = this.selected[key] ?? "";
    delete this.selected[key];
    return text;
  }

  enter(number) {
    this.rememberSelection();
    const marks = this.of(number);
    (marks.find((mark) => mark.checked) ?? marks[0])?.focus();
  }

  // Arrow keys within a column of marks.
  moves(event, target) {
    if (!target.matches('input[name^="broken-"]') || !["ArrowDown", "ArrowUp"].includes(event.key)) return false;
    const column = this.of(target.name.slice("broken-".length));
    column.at((column.indexOf(target) + (event.key === "ArrowDown" ? 1 : -1)) % column.length).focus();
    return true;
  }

  onInput(target) {
    if (target.name?.startsWith("broken-")) {
      const number = target.name.slice("broken-".length);
      this.span(number, target).value = target.checked ? this.take(number) : "";
      this.show();
    }
    if (/^(span|verdict-)/.test(target.name ?? "")) highlight(this.form);
    const editor = target.closest(".correction");
    if (editor) this.refreshDiff(editor);
  }

  // The field of a mark's quote; most marks have none, so that a page of many rules stays light.
  span(number, mark) {
    const name = `span-${number}-${mark.value}`;
    if (this.form.elements[name]) return this.form.elements[name];
    mark.after(Object.assign(document.createElement("input"), { type: "hidden", name }));
    return this.form.elements[name];
  }

  show() {
    for (const number of this.numbers) {
      const badge = this.form.querySelector(`#reply-${number} .broken-count`);
      if (!badge) continue;
      const count = this.of(number).filter((mark) => mark.checked).length;
      badge.hidden = count === 0;
      badge.textContent = this.task.say(count === 1 ? "breaks_one" : "breaks", { n: count });
    }
    for (const rule of this.form.querySelectorAll(".rule")) {
      const quotes = this.numbers.flatMap((number) => {
        const quote = rule.querySelector(`input[name^="span-${number}-"]`)?.value;
        return quote ? [` ${this.letter(number)}: “`, boxed(quote), "”"] : [];
      });
      rule.querySelector(".quotes").replaceChildren(...quotes);
    }
    highlight(this.form);
  }

  correct(number) {
    const editor = this.form.querySelector(`#correct-${number}`);
    if (!editor) return;
    editor.open = true;
    const text = editor.querySelector("textarea");
    text.focus();
    text.setSelectionRange(text.value.length, text.value.length);
    editor.scrollIntoView({ block: "center" });
  }

  refreshDiff(editor) {
    const before = editor.querySelector(".original").textContent;
    showDiff(editor.querySelector(".word-diff"), before, editor.querySelector("textarea").value);
  }
}

// In a box of its own, so that signs of writing direction turn nothing around it.
function boxed(words) {
  const quote = document.createElement("span");
  quote.className = "user-text";
  quote.dir = "auto";
  quote.textContent = words;
  return quote;
}

// Quotes in their texts ----------------------------------------------------------------------------------------------

// The texts that a quote's field speaks of: as written and as formatted, of which one is seen.
function textsOf(form, name) {
  const key = name === "span" ? "0" : name.replace(/^span-/, "").replace(/^(\d+)-\d+$/, "$1");
  const found = form.querySelectorAll(`[data-reply="${key}"], [data-completion="${key}"] .turn-text`);
  return found.length ? [...found] : [...form.querySelectorAll(".single .original")];
}

// Where words stand in an element, across the elements within; as the server compares them where they do not stand there
// letter by letter: by letters and digits alone, since formatted text lacks its signs.
function rangeOf(element, words) {
  const places = []; // [text node, offset] of each character
  let text = "";
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    for (let at = 0; at < node.length; at += 1) places.push([node, at]);
    text += node.data;
  }
  let [start, length] = [text.indexOf(words), words.length];
  if (start < 0) {
    const bare = [...text.matchAll(/[\p{L}\p{N}]/gu)];
    const wanted = (words.match(/[\p{L}\p{N}]/gu) ?? []).join("");
    const at = wanted ? bare.map(([sign]) => sign).join("").indexOf(wanted) : -1;
    if (at < 0) return null;
    const ends = []; // where each of the bare characters ends, in the joined text of them
    bare.reduce((sum, [sign]) => ends[ends.push(sum + sign.length) - 1], 0);
    const [first, last] = [ends.findIndex((end) => end > at), ends.findIndex((end) => end >= at + wanted.length)];
    start = bare[first].index;
    length = bare[last].index + bare[last][0].length - start;
  }
  const range = new Range();
  const [endNode, endAt] = places[start + length - 1];
  range.setStart(...places[start]);
  range.setEnd(endNode, endAt + 1);
  return range;
}

// Marks all quotes in their texts where the browser can; they stand in words beside the rules in any case.
function highlight(form) {
  if (!globalThis.CSS?.highlights) return;
  const ranges = [...form.querySelectorAll('input[name^="span"]')]
    .filter((field) => field.value)
    .flatMap((field) => textsOf(form, field.name).map((element) => rangeOf(element, field.value)))
    .filter(Boolean);
  CSS.highlights.set("quote", new Highlight(...ranges));
}
