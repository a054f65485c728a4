// Instants are sent in UTC; here they become local, in the language of the page, with the zone on hover. Without this script UTC is shown.

const { lang } = document.documentElement;
const SHOWN = new Intl.DateTimeFormat(lang, { dateStyle: "medium", timeStyle: "short" });
const WHOLE = new Intl.DateTimeFormat(lang, { dateStyle: "full", timeStyle: "long" });

export function localise(root) {
  for (const element of root.querySelectorAll("time[datetime]")) {
    const at = new Date(element.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
    element.title = `${WHOLE.format(at)} (${zone}) · ${element.textContent.trim()}`;
    element.textContent = SHOWN.format(at);
  }
}

localise(document);
