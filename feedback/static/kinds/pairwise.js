// Seven steps between A and B.

export default function pairwise(task) {
  const { form, marks } = task;
  const better = () => (["5", "6", "7"].includes(form.elements.scale.value) ? 1 : 0);
  const keys = {
    0: () => task.choose("scale", "4"),
    x: () => task.choose("scale", "both_bad"),
    a: () => marks.enter(0),
    b: () => marks.enter(1),
    e: () => marks.correct(better()),
    E: () => marks.correct(1 - better()),
  };
  for (const step of "1234567") keys[step] = () => task.choose("scale", step);
  return { keys };
}
