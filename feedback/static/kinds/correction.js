// One text to edit, or to leave as it is.

export default function correction(task) {
  return {
    keys: { e: () => task.marks.correct(0), g: () => task.toggle("fine"), a: () => task.marks.enter(0) },
  };
}
