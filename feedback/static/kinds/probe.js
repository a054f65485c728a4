// A live talk with the served policy, through the same chat API as everybody's; each reply is judged.

import { call, token } from "../csrf.js";

export default function probe(task) {
  const { form } = task;
  const log = document.getElementById("probe-turns");
  const talk = document.getElementById("talk");
  const state = document.getElementById("probe-state");
  const say = document.getElementById("say");
  let waiting = false;

  // The model's own turns go by name: the page has them only as they are shown, with names hidden.
  const conversation = () =>
    [...log.querySelectorAll(".probe-turn")].flatMap((turn) => [
      { role: "user", content: turn.querySelector(".asked").textContent },
      { role: "assistant", content: "", completion_id: turn.dataset.completion },
    ]);

  async function ask(words) {
    const body = JSON.stringify({ model: "dunnock", messages: [...conversation(), { role: "user", content: words }] });
    const answer = await call(log.dataset.chat, () => ({
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "application/json", "X-CSRFToken": token() },
      body,
    }));
    const said = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(said.error?.message ?? String(answer.status));
    const turn = await fetch(log.dataset.turn.replace(/ID$/, said.id));
    if (!turn.ok) throw new Error(String(turn.status));
    log.insertAdjacentHTML("beforeend", await turn.text()); // our own template, all texts escaped by the server
    log.lastElementChild.scrollIntoView({ block: "nearest" });
    task.changed(log.lastElementChild.querySelector("input[name=turn]"));
  }

  async function send() {
    const sent = talk.value;
    const words = sent.trim();
    if (!words || waiting) return;
    waiting = true;
    say.disabled = true;
    state.textContent = task.say("thinking");
    try {
      await ask(words);
      if (talk.value.startsWith(sent)) talk.value = talk.value.slice(sent.length); // what was typed meanwhile stays
      task.changed(talk); // what was sent is no draft any more
      state.textContent = "";
    } catch (error) {
      state.textContent = task.say("no_reply", { why: error.message });
    }
    waiting = false;
    say.disabled = false;
  }

  // The last reply without a verdict, else the last one.
  function judge(value) {
    const turns = [...log.querySelectorAll("[data-completion]")];
    const turn = turns.findLast((each) => !each.querySelector("input:checked")) ?? turns.at(-1);
    if (!turn) return;
    const id = turn.dataset.completion;
    const words = task.marks.take(id);
    if (words) form.elements[`span-${id}`].value = words;
    task.choose(`verdict-${id}`, value);
  }

  say.addEventListener("click", send);
  talk.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.ctrlKey || event.metaKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  return {
    keys: {
      t: () => {
        talk.focus();
        talk.setSelectionRange(talk.value.length, talk.value.length);
      },
      b: () => judge("broken"),
      k: () => judge("kept"),
      u: () => judge("unsure"),
    },
  };
}
