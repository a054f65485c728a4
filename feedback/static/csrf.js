// Calls with this page's CSRF token. Who was signed out and signed in again in another tab has a new one: it is fetched, and
// the call is sent once more, so that a page with work on it need not be loaded anew.

const META = 'meta[name="csrf-token"]';
const meta = () => document.querySelector(META);

export const token = () => meta().content;

// `options` is asked for again where the token is another one by then.
export async function call(url, options) {
  const answer = await fetch(url, options());
  const stale = [400, 403].includes(answer.status) && (await answer.clone().text()).includes("CSRF");
  return stale && (await renewed()) ? fetch(url, options()) : answer;
}

// Puts the token into the forms of a part of the page, which may have been fetched earlier.
export function refresh(part) {
  for (const field of part.querySelectorAll('input[name="csrf_token"]')) field.value = token();
}

let sent = false;

// Sends a form of the page, once, with the token of now. It goes as a plain form: the page that follows says what became of it.
export async function send(form, submitter) {
  if (sent) return;
  sent = true;
  await renewed().catch(() => false); // without a connection the browser says so
  if (submitter?.name) form.append(Object.assign(document.createElement("input"), { type: "hidden", name: submitter.name, value: submitter.value }));
  HTMLFormElement.prototype.submit.call(form);
}

async function renewed() {
  const answer = await fetch(document.getElementById("who").href, { headers: { Accept: "text/html" } });
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector(META);
  if (!answer.ok || !fresh || fresh.content === token()) return false;
  meta().content = fresh.content;
  refresh(document);
  return true;
}
