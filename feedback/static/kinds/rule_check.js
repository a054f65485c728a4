// A verdict, how sure it is, and the words that show it, marked in the text.

export default function ruleCheck(task) {
  const { form, marks } = task;
  const span = form.elements.span;

  function quote() {
    const words = marks.take("0");
    if (words) {
      span.value = words;
      task.changed(span);
    }
    return Boolean(words);
  }

  const verdict = (value) => () => {
    quote();
    task.choose("verdict", value);
  };
  const keys = {
    b: verdict("broken"),
    k: verdict("kept"),
    u: verdict("unsure"),
    q: () => {
      if (!quote()) span.focus();
    },
  };
  for (const step of "123") keys[step] = () => task.choose("confidence", step);
  return { keys };
}
