// Drafts and the lease: what is typed is saved within two seconds of a change, and the task is held while one works.

import { call, token } from "./csrf.js";

const DELAY_MS = 1000; // from the first change that is not saved, however long the typing goes on
const RETRY_MS = 1000; // the first wait after a failure; each next one is twice as long
const MAX_RETRY_MS = 30_000;
const PATIENCE_MS = 15_000; // a request that gets no answer is a failed one
export const MAX_KEPT_ALIVE = 60_000; // characters; browsers allow 64 KB

function request(url, method, body) {
  const sent = JSON.stringify(body);
  return call(url, () => ({
    method,
    keepalive: sent.length < MAX_KEPT_ALIVE, // a draft still goes out when the page is left
    signal: AbortSignal.timeout(PATIENCE_MS),
    headers: { "Content-Type": "application/json", Accept: "application/json", "X-CSRFToken": token() },
    body: sent,
  }));
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
    this.due = 0; // when the timer ends
    this.dirty = false; // something is typed that no request has taken along
    this.waitMs = RETRY_MS;
    this.sending = Promise.resolve();
    this.closed = true;
    this.active = false;
  }

  // Again after a submit that failed, too.
  start() {
    this.stop?.();
    this.closed = !this.form.dataset.draft;
    if (this.closed) return;
    const until = new AbortController();
    const { signal } = until;
    const leaseMs = Number(this.form.dataset.leaseS) * 1000;
    const renewing = setInterval(() => this.renew(), Math.max(1000, leaseMs / 3));
    this.stop = () => {
      until.abort();
      clearInterval(renewing);
    };
    window.addEventListener("pagehide", () => this.leave(), { signal });
    window.addEventListener("online", () => this.flush(), { signal });
    document.addEventListener("visibilitychange", () => document.hidden && this.flush(), { signal });
    for (const kind of ["keydown", "pointerdown", "scroll"]) {
      document.addEventListener(kind, () => (this.active = true), { capture: true, passive: true, signal });
    }
  }

  changed() {
    if (this.closed) return;
    this.status.textContent = this.words.unsaved;
    this.dirty = true;
    this.flushIn(DELAY_MS);
  }

  // A later change puts nothing off.
  flushIn(delayMs) {
    const due = performance.now() + delayMs;
    if (this.timer !== null && this.due <= due) return;
    clearTimeout(this.timer);
    this.due = due;
    this.timer = setTimeout(() => this.flush(), delayMs);
  }

  // Drafts go out one after the other, so that an older one never overwrites a newer one.
  flush() {
    clearTimeout(this.timer);
    this.timer = null;
    this.sending = this.sending.then(() => this.send());
  }

  // The page goes: what waits for an answer would wait for ever.
  leave() {
    clearTimeout(this.timer);
    this.timer = null;
    this.send();
  }

  // What a failed submit would have stored is not lost with the page.
  saveNow() {
    this.changed();
    this.flush();
  }

  async send() {
    if (this.closed || !this.dirty) return;
    this.dirty = false;
    let answer, body;
    try {
      answer = await request(this.form.dataset.draft, "PUT", fieldsOf(this.form));
      body = await answer.json().catch(() => ({}));
    } catch {
      this.failed(this.words.offline, true);
      return;
    }
    if (!answer.ok) {
      this.failed(body.detail ?? answer.status, answer.status >= 500 || answer.status === 429);
      return;
    }
    this.waitMs = RETRY_MS;
    const time = new Date(body.saved_at).toLocaleTimeString(document.documentElement.lang);
    if (!this.dirty) this.status.textContent = this.words.saved.replace("{time}", time);
  }

  // What the server understood and refused, it would refuse again.
  failed(why, again) {
    if (this.closed) return;
    this.status.textContent = this.words.not_saved.replace("{why}", () => why);
    if (!again) return;
    this.dirty = true;
    this.flushIn(this.waitMs);
    this.waitMs = Math.min(2 * this.waitMs, MAX_RETRY_MS);
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
    this.timer = null;
    this.stop?.();
  }
}
