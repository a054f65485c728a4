// Two replies side by side: one turn of the conversation, of which one side is kept, and which of them is better.

const NAMES = ["A", "B"]; // from left to right; on a phone, from top to bottom

// A turn of two sides; `hidden` while nobody is to know which version wrote which.
export function addPair(sides, hidden, texts) {
  const element = document.getElementById("pair-template").content.firstElementChild.cloneNode(true);
  const pair = { role: "assistant", element, sides, hidden, texts, kept: 0 };
  Object.defineProperty(pair, "content", { get: () => pair.sides[pair.kept].content });
  sides.forEach((side, i) => {
    side.pair = pair;
    side.who = side.element.querySelector(".chat-who");
    side.who.textContent = NAMES[i];
    element.querySelector(".chat-sides").append(side.element);
  });
  return pair;
}

// The conversation goes on from this side.
export function keep(pair, i) {
  const { texts } = pair;
  pair.kept = i;
  pair.sides.forEach((side, n) => {
    side.element.classList.toggle("chat-kept", n === i);
    side.who.textContent = n === i ? `${NAMES[n]} · ${texts.goes_on}` : NAMES[n];
  });
}

// The buttons below a pair, which come into view where `follow` says so: `again` has both written anew, `send` stores a choice and gives what went wrong or nothing,
// `reveal` is called once it is stored.
export function offerChoice(pair, { follow, again, send, reveal }) {
  const { texts } = pair;
  const bar = pair.element.querySelector(".chat-choice");
  const whole = pair.sides.every((side) => side.id && !side.broken);
  const buttons = [...bar.querySelectorAll("[data-choice]")];
  for (const button of buttons) button.disabled = !whole;
  bar.hidden = false;
  if (follow) bar.scrollIntoView({ block: "nearest" });
  bar.addEventListener("click", async (event) => {
    const button = event.target.closest("button");
    if (button?.dataset.act === "again") again();
    if (!button?.dataset.choice) return;
    for (const other of buttons) other.disabled = true;
    const trouble = await send(button.dataset.choice);
    bar.querySelector(".chat-note").textContent = trouble ? texts.not_saved.replace("{why}", () => trouble) : texts.noted;
    for (const other of buttons) other.disabled = !trouble;
    if (trouble) return;
    button.setAttribute("aria-pressed", "true");
    pair.hidden = false;
    reveal();
    keep(pair, button.dataset.choice === "right" ? 1 : 0);
  });
}
