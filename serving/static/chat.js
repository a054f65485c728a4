// The chat page: a conversation in memory, streamed replies, and what people say of each of them.
//
// Leads may have two versions reply side by side; such a pair is one turn, and the conversation goes on from the side that
// was preferred, from the left one where nobody said.

import { addPair, keep, offerChoice } from "./compare.js";

const page = {
  turns: document.getElementById("turns"),
  greeting: document.getElementById("greeting"),
  trouble: document.getElementById("trouble"),
  said: document.getElementById("said"),
  form: document.getElementById("ask"),
  words: document.getElementById("words"),
  send: document.getElementById("send"),
  stop: document.getElementById("stop"),
  model: document.getElementById("model"), // of leads: which version answers
  beside: document.getElementById("beside"), // and which one beside it
  blind: document.getElementById("blind"),
};
const showsVersion = page.turns.dataset.showsVersion === "yes";
const texts = JSON.parse(page.turns.dataset.words);

let conversation = []; // {role, content, element}; of a pair, its sides and which of them is kept
let running = null; // AbortController of the reply that is being written

function post(url, body, signal) {
  const token = document.querySelector('meta[name="csrf-token"]').content;
  return fetch(url, {
    method: "POST",
    signal,
    headers: { "Content-Type": "application/json", Accept: "application/json", "X-CSRFToken": token },
    body: JSON.stringify(body),
  });
}

async function messageOf(response) {
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) return texts.signed_out;
  return body.error?.message ?? texts.status.replace("{status}", response.status);
}

function show(trouble) {
  page.trouble.textContent = trouble;
  page.trouble.hidden = !trouble;
}

// Turns -----------------------------------------------------------------------------------------------------------

function makeTurn(role, content) {
  const element = document.getElementById("turn-template").content.firstElementChild.cloneNode(true);
  element.classList.add(`chat-turn-${role}`);
  element.querySelector(".chat-who").textContent = texts[role];
  const turn = { role, content, element, text: element.querySelector(".user-text") };
  turn.text.textContent = content;
  return turn;
}

function append(turn) {
  page.greeting.hidden = true;
  page.turns.append(turn.element);
  turn.element.scrollIntoView({ block: "nearest" });
  conversation.push(turn);
  return turn;
}

function addTurn(role, content) {
  return append(makeTurn(role, content));
}

function dropTurn(turn) {
  turn.element.remove();
  conversation = conversation.filter((other) => other !== turn);
}

function plainConversation() {
  return conversation.map(({ role, content }) => ({ role, content }));
}

// A streamed reply ------------------------------------------------------------------------------------------------

// Yields the JSON of each `data:` line until [DONE]; a chunk may end in the middle of a line.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const payload = line.slice(5).trim();
      if (payload === "[DONE]") return;
      yield JSON.parse(payload);
    }
  }
}

async function read(response, turn) {
  for await (const chunk of events(response)) {
    if (chunk.error) throw new Error(chunk.error.message);
    turn.id = chunk.id;
    turn.version = chunk.dunnock?.policy_version;
    turn.guard = chunk.choices[0]?.guard ?? turn.guard;
    turn.content += chunk.choices[0]?.delta?.content ?? "";
    turn.text.textContent = turn.content;
    if (atBottom()) (turn.pair ?? turn).element.scrollIntoView({ block: "end" });
  }
}

function atBottom() {
  return window.innerHeight + window.scrollY > document.body.scrollHeight - 160;
}

function setRunning(controller) {
  running = controller;
  page.stop.hidden = !controller;
  page.send.disabled = Boolean(controller);
  for (const button of page.turns.querySelectorAll('[data-act="again"]')) button.disabled = Boolean(controller);
}

// Who is to reply: one model, or two in the order in which they stand.
function models() {
  const asked = [page.model?.value ?? "dunnock", page.beside?.value].filter(Boolean);
  return asked.length === 2 && page.blind.checked && Math.random() < 0.5 ? asked.reverse() : asked;
}

async function reply() {
  const messages = plainConversation();
  const controller = new AbortController();
  for (const button of page.turns.querySelectorAll('[data-act="again"]')) button.remove();
  const asked = models();
  const sides = asked.map(() => makeTurn("assistant", ""));
  const turn = append(sides.length === 1 ? sides[0] : addPair(sides, page.blind.checked, texts));
  setRunning(controller);
  show("");
  await Promise.all(sides.map((side, i) => write(side, asked[i], messages, controller.signal)));
  if (controller === running) setRunning(null);
  if (!conversation.includes(turn)) return;
  const came = sides.filter((side) => side.id);
  for (const side of came) addTools(side);
  if (!came.length) restore(turn);
  else if (turn.sides) {
    if (came.length === 1) keep(turn, sides.indexOf(came[0]));
    offerChoice(turn, {
      follow: atBottom(),
      again: () => again(turn),
      send: (choice) => compare(turn, choice),
      reveal: () => came.forEach(label),
    });
  }
}

async function write(turn, model, messages, signal) {
  turn.element.classList.add("busy");
  try {
    const response = await post("/v1/chat/completions", { model, messages, stream: true }, signal);
    if (!response.ok) throw new Error(await messageOf(response));
    await read(response, turn);
    page.said.textContent = turn.content;
  } catch (error) {
    if (error.name !== "AbortError") show(texts.no_reply.replace("{why}", () => error.message));
    turn.broken = true;
  }
  turn.element.classList.remove("busy");
}

// Stores which side of a pair is better; gives what went wrong, or nothing.
async function compare(pair, choice) {
  const [left, right] = pair.sides.map((side) => side.id);
  try {
    const response = await post("/chat/comparisons", { left, right, choice, blind: pair.hidden });
    return response.ok ? "" : await messageOf(response);
  } catch (error) {
    return error.message;
  }
}

// Nothing came: take the empty reply and the question away, and put the words back where they were typed.
function restore(turn) {
  dropTurn(turn);
  const question = conversation.at(-1);
  if (question?.role !== "user") return;
  dropTurn(question);
  page.words.value ||= question.content;
}

// What people say of a reply --------------------------------------------------------------------------------------

function addTools(turn) {
  const tools = document.getElementById("tools-template").content.firstElementChild.cloneNode(true);
  turn.tools = tools;
  label(turn);
  tools.addEventListener("click", (event) => {
    const act = event.target.closest("button")?.dataset.act;
    if (act === "up" || act === "down") rate(turn, act);
    if (act === "correct") toggleCorrection(turn);
    if (act === "again") again(turn);
  });
  if (turn.pair) tools.querySelector('[data-act="again"]').remove();
  turn.element.append(tools);
}

// Which version wrote a reply, and what the guard said: for leads, and not while they compare without knowing.
function label(turn) {
  const badge = turn.tools.querySelector("[data-version]");
  badge.hidden = !showsVersion || Boolean(turn.pair?.hidden);
  badge.textContent = badge.hidden ? "" : turn.version ?? "";
  const guard = turn.tools.querySelector("[data-guard]");
  guard.hidden = !showsVersion || !turn.guard;
  guard.textContent = wordOf(turn.guard);
}

// The guard's word on a reply, for those who see versions: what it found, or that it found nothing.
function wordOf(guard) {
  if (!guard) return "";
  const found = [guard.check, guard.kind].filter(Boolean).join(": ");
  return guard.cut ? texts.cut.replace("{what}", () => found) : texts[`guard_${guard.outcome}`];
}

async function sendFeedback(turn, body) {
  const note = turn.tools.querySelector(".chat-note");
  try {
    const idempotency_key = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
    const response = await post("/v1/feedback", { completion_id: turn.id, idempotency_key, ...body });
    if (!response.ok) throw new Error(await messageOf(response));
    note.textContent = texts.noted;
    return true;
  } catch (error) {
    note.textContent = texts.not_saved.replace("{why}", () => error.message);
    return false;
  }
}

async function rate(turn, thumbs) {
  if (!(await sendFeedback(turn, { thumbs }))) return;
  for (const act of ["up", "down"]) {
    turn.tools.querySelector(`[data-act="${act}"]`).setAttribute("aria-pressed", String(act === thumbs));
  }
}

function toggleCorrection(turn) {
  const button = turn.tools.querySelector('[data-act="correct"]');
  if (turn.correction) {
    turn.correction.remove();
    turn.correction = null;
  } else {
    turn.correction = correctionForm(turn);
    turn.element.append(turn.correction);
    turn.correction.querySelector("textarea").focus();
  }
  button.setAttribute("aria-expanded", String(Boolean(turn.correction)));
  if (!turn.correction) button.focus();
}

function correctionForm(turn) {
  const form = document.getElementById("correction-template").content.firstElementChild.cloneNode(true);
  const text = form.querySelector("textarea");
  text.value = turn.content;
  form.querySelector('[data-act="close"]').addEventListener("click", () => toggleCorrection(turn));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (await sendFeedback(turn, { correction: text.value })) toggleCorrection(turn);
  });
  return form;
}

function again(turn) {
  if (running) return;
  dropTurn(turn);
  reply();
}

// Controls --------------------------------------------------------------------------------------------------------

page.form.addEventListener("submit", (event) => {
  event.preventDefault();
  const content = page.words.value.trim();
  if (!content || running) return;
  page.words.value = "";
  addTurn("user", content);
  reply();
});

page.words.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  page.form.requestSubmit();
});

page.stop.addEventListener("click", () => running?.abort());

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !running) return;
  running.abort();
  page.words.focus();
});

page.beside?.addEventListener("change", () => {
  document.getElementById("blind-choice").hidden = !page.beside.value;
});

document.getElementById("fresh").addEventListener("click", () => {
  running?.abort();
  setRunning(null);
  for (const turn of [...conversation]) dropTurn(turn);
  show("");
  page.greeting.hidden = false;
  page.words.focus();
});
