// What is typed in the rule editor and not saved yet, kept in this browser by the address of the editor: a lost session or
// a crash costs nothing. Loaded on a rule's page it forgets the draft of the editor that led there: it was saved, or left.

const PREFIX = "dunnock-rule-draft:";

export function keep(entries) {
  try {
    localStorage.setItem(PREFIX + location.pathname, JSON.stringify({ at: Date.now(), entries }));
  } catch {
    // storage is full or switched off: nothing is kept
  }
}

export function kept() {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + location.pathname));
  } catch {
    return null;
  }
}

export function forget(path = location.pathname) {
  try {
    localStorage.removeItem(PREFIX + path);
  } catch {
    // storage is switched off
  }
}

const from = document.referrer ? new URL(document.referrer) : null;
if (from?.origin === location.origin && from.pathname !== location.pathname && /\/(new|edit)$/.test(from.pathname)) {
  forget(from.pathname);
}
