// "Quote what is selected": the words marked in the reply become a line of the quotes, and the form is sent.

const button = document.getElementById("quote-selection");
const tried = document.getElementById("tried");

if (button && tried) {
  button.hidden = false;
  button.addEventListener("click", (event) => {
    const selection = getSelection();
    const inside = selection.rangeCount && tried.contains(selection.getRangeAt(0).commonAncestorContainer);
    const words = inside ? selection.toString().trim().replace(/\s+/g, " ") : "";
    if (!words) {
      event.preventDefault();
      tried.focus();
      return;
    }
    const quotes = document.querySelector("#try-form [name=quotes]");
    quotes.value = [quotes.value.trim(), words].filter(Boolean).join("\n");
  });
}
document.documentElement.dataset.ready = "yes";
