// Rows of marks; digits fill the row that is marked and go on to the next.

export default function rating(task) {
  const rows = [...task.form.querySelectorAll(".likert")];
  let current = 0;

  function mark(n) {
    current = Math.min(Math.max(n, 0), rows.length - 1);
    rows.forEach((row, i) => row.classList.toggle("current", i === current));
  }

  const keys = { a: () => task.marks.enter(0), e: () => task.marks.correct(0) };
  for (const digit of "12345") {
    keys[digit] = () => {
      task.choose(rows[current].querySelector("input").name, digit);
      mark(current + 1);
    };
  }
  mark(0);
  return {
    keys,
    onKey(event, target) {
      if (!["ArrowDown", "ArrowUp"].includes(event.key) || target.matches("input")) return false;
      mark(current + (event.key === "ArrowDown" ? 1 : -1));
      return true;
    },
    onInput(target) {
      const row = rows.indexOf(target.closest(".likert"));
      if (row >= 0) mark(row);
    },
  };
}
