// Cards in an order: dragged, moved by arrow keys, or given a place by number; the selects are what is stored.

export default function ranking(task) {
  const { form, marks } = task;
  const list = document.getElementById("cards");
  const select = (card) => card.querySelector("select");
  const cards = () => [...list.children];
  const byNumber = (number) => list.querySelector(`[data-number="${number}"]`);
  let dragged = null;

  function setPlaces() {
    cards().forEach((card, n) => (select(card).value = String(n + 1)));
    task.changed(select(list.firstElementChild));
  }

  function move(card, step) {
    const other = step < 0 ? card.previousElementSibling : card.nextElementSibling;
    if (other) other[step < 0 ? "before" : "after"](card);
    setPlaces();
    card.querySelector(".rank-head").focus();
  }

  function showOrder() {
    const places = new Map();
    for (const card of cards()) {
      const place = Number(select(card).value);
      if (place) places.set(place, [...(places.get(place) ?? []), marks.letter(card.dataset.number)]);
    }
    const order = [...places.keys()].sort((a, b) => a - b);
    document.getElementById("order").textContent = order.map((place) => places.get(place).sort().join(" = ")).join(" > ") || "–";
  }

  for (const card of cards()) {
    const head = card.querySelector(".rank-head");
    head.querySelector(".grip").hidden = false;
    head.draggable = true;
    head.addEventListener("dragstart", (event) => {
      dragged = card;
      event.dataTransfer.effectAllowed = "move";
      event.dataTransfer.setData("text/plain", card.dataset.number);
      card.classList.add("dragged");
    });
    head.addEventListener("dragend", () => {
      card.classList.remove("dragged");
      if (dragged) setPlaces();
      dragged = null;
    });
  }
  list.addEventListener("dragover", (event) => {
    const over = event.target.closest(".reply");
    if (!dragged || !over || over.parentElement !== list) return;
    event.preventDefault();
    if (over === dragged) return;
    const order = cards();
    over[order.indexOf(over) > order.indexOf(dragged) ? "after" : "before"](dragged);
  });
  list.addEventListener("drop", (event) => event.preventDefault());

  const focused = () => document.activeElement?.closest?.("#cards > .reply");
  const best = () => cards().reduce((a, b) => ((Number(select(b).value) || 9) < (Number(select(a).value) || 9) ? b : a));
  const keys = {
    x: () => task.toggle("all_wrong"),
    r: () => marks.enter(Number((focused() ?? list.firstElementChild).dataset.number)),
    e: () => marks.correct(Number((focused() ?? best()).dataset.number)),
  };
  cards().forEach((_, n) => {
    keys["abcdef"[n]] = () => byNumber(n).querySelector(".rank-head").focus();
    keys[String(n + 1)] = () => {
      const card = focused();
      if (!card) return;
      select(card).value = String(n + 1);
      task.changed(select(card));
    };
  });
  showOrder();
  return {
    keys,
    onKey(event, target) {
      const card = target.matches(".rank-head") && target.closest(".reply");
      if (!card || !["ArrowDown", "ArrowUp", "ArrowLeft", "ArrowRight"].includes(event.key)) return false;
      move(card, ["ArrowUp", "ArrowLeft"].includes(event.key) ? -1 : 1);
      return true;
    },
    onInput: showOrder,
  };
}
