// Drafts and the lease: what is typed is saved within two seconds of a change, and the task is held while one works.

const DELAY_MS = 1000;

function request(url, method, body) {
  const token = document.querySelector('meta[name="csrf-token"]').content;
  return fetch(url, {
    method,
    keepalive: true, // a draft still goes out when the page is left
    headers: { "Content-Type": "application/json", Accept: "application/json", "X-CSRFToken": token },
    body: JSON.stringify(body),
  });
}

function fieldsOf(form) {
  const fields = {};
  for (const [name, value] of new FormData(form)) (fields[name] ??= []).push(value);
  return fields;
}

export class Drafts {
  constructor(form, status, words) {
    this.form = form;
    this.status = status;
    this.words = words;
    this.timer = null;
    this.sending = Promise.resolve();
    this.closed = true;
    this.active = false;
  }

  // Again after a submit that failed, too.
  start() {
    this.closed = !this.form.dataset.draft;
    if (this.closed) return;
    const until = new AbortController();
    this.stop = () => until.abort();
    window.addEventListener("pagehide", () => this.flush(), { signal: until.signal });
    for (const kind of ["keydown", "pointerdown", "scroll"]) {
      const options = { capture: true, passive: true, signal: until.signal };
      document.addEventListener(kind, () => (this.active = true), options);
    }
    const leaseMs = Number(this.form.dataset.leaseS) * 1000;
    this.renewing = setInterval(() => this.renew(), Math.max(1000, leaseMs / 3));
  }

  changed() {
    if (this.closed) return;
    this.status.textContent = this.words.unsaved;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.flush(), DELAY_MS);
  }

  // Drafts go out one after the other, so that an older one never overwrites a newer one.
  flush() {
    if (this.closed || this.timer === null) return;
    clearTimeout(this.timer);
    this.timer = null;
    const fields = fieldsOf(this.form);
    this.sending = this.sending.then(() => this.send(fields));
  }

  async send(fields) {
    if (this.closed) return;
    try {
      const answer = await request(this.form.dataset.draft, "PUT", fields);
      const body = await answer.json();
      this.status.textContent = answer.ok
        ? this.words.saved.replace("{time}", new Date(body.saved_at).toLocaleTimeString(document.documentElement.lang))
        : this.words.not_saved.replace("{why}", body.detail ?? answer.status);
    } catch {
      this.status.textContent = this.words.not_saved.replace("{why}", this.words.offline);
    }
  }

  async renew(now = false) {
    if (this.closed || !(this.active || now)) return;
    this.active = false;
    try {
      const answer = await request(this.form.dataset.renew, "POST", {});
      if (!answer.ok) this.status.textContent = (await answer.json()).detail ?? this.words.not_held;
    } catch {
      // the next try, or the submit, will tell
    }
  }

  // Called on submit: what follows belongs to the judgment, not to a draft.
  close() {
    this.closed = true;
    clearTimeout(this.timer);
    clearInterval(this.renewing);
    this.stop?.();
  }
}
