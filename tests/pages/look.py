"""What is asked of a page in the browser: its elements, whose text may reorder what, its weight, its width, its focus."""

from playwright.sync_api import Page

MAX_BYTES = 300_000
QUOTING = ".formatted, .diff, .word-diff, .changes dd"
"""Parts in which all text is people's, with elements that depend on the text."""
IN_QUOTING = {
    "a": False, "ins": True, "del": True, "span": True, "mark": True, "p": True, "strong": True, "em": True, "code": True,
    "pre": True, "ul": True, "ol": True, "li": True, "table": True, "thead": True, "tbody": True, "tr": True, "th": True,
    "td": True, "blockquote": True, "hr": True, "br": True, **{f"h{n}": True for n in range(1, 7)},
}  # fmt: skip

_STRUCTURE = """(quoting) => {
  const lines = [];
  const walk = (element, depth) => {
    const names = [...element.attributes].map((attribute) => attribute.name).sort().join(" ");
    lines.push(`${"  ".repeat(depth)}${element.localName} ${names}`);
    if (element.matches(quoting)) return;
    for (const child of (element instanceof HTMLTemplateElement ? element.content : element).children) walk(child, depth + 1);
  };
  walk(document.documentElement, 0);
  return lines;
}"""

_QUOTED = """(quoting) => [...document.querySelectorAll(quoting)].flatMap((part) =>
  [...part.querySelectorAll("*")].map((e) => `${e.localName} ${[...e.attributes].map((a) => a.name).sort().join(" ")}`))"""

_LINKS = """() => [...document.querySelectorAll("[href], [src], [action], [formaction], [data], [srcset], [poster], [ping]")]
  .flatMap((e) => ["href", "src", "action", "formaction", "data", "srcset", "poster", "ping"]
    .filter((name) => e.hasAttribute(name)).map((name) => e.getAttribute(name)))
  .filter((address) => !/^(?:\\/(?!\\/)|#|\\?|data:,$|http:\\/\\/127\\.0\\.0\\.1:)/.test(address))"""

_REORDERING = """(quoting) => {
  const SIGNS = /[\\u202a-\\u202e\\u2066-\\u2069\\u200e\\u200f\\u061c\\u0590-\\u08ff]/u;
  const block = (e) => !/^(inline|contents|ruby.*)$/.test(getComputedStyle(e).display);
  const whole = (text) => /^\\s*«[^«»]*»\\s*$/.test(text);
  const found = [];
  if (SIGNS.test(document.title)) found.push(`<title> ${document.title}`);
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = texts.nextNode(); text; text = texts.nextNode()) {
    let around = text.parentElement;
    if (!SIGNS.test(text.data) || around.closest("script, style, template, textarea, option, title")) continue;
    if (!around.checkVisibility()) continue;
    if (around.closest(quoting)) continue;
    while (!block(around)) around = around.parentElement;
    if (around.matches(".user-text, bdi") && !around.textContent.includes("«")) continue; // made of such a text: a slug
    const inside = [around];
    for (let e = around; e !== document.body; e = e.parentElement) inside.push(e);
    if (inside.some((e) => whole(e.textContent))) continue;
    found.push(`<${around.localName} class="${around.className}"> ${around.textContent.trim().slice(0, 80)}`);
  }
  return [...new Set(found)];
}"""

_WEIGHT = """() => performance.getEntriesByType("resource").concat(performance.getEntriesByType("navigation"))
  .map((entry) => [entry.name, entry.decodedBodySize])"""

_LINKED = (
    """() => [...document.querySelectorAll("link[rel=stylesheet], script[src], img")].map((e) => e.href ?? e.src)"""
)

_WIDER = """() => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width) return [];
  return [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > width + 1)
    .slice(0, 4).map((e) => `${e.localName}.${e.className} to ${Math.round(e.getBoundingClientRect().right)} of ${width}`);
}"""

_FOCUS = """() => {
  const element = document.activeElement;
  if (!element || element === document.body) return null;
  const name = `${element.localName}#${element.id}.${element.className} ${element.textContent.trim().slice(0, 30)}`;
  const shown = element.matches(".reveal") ? element.nextElementSibling : element;
  const style = getComputedStyle(shown);
  const box = shown.getBoundingClientRect();
  const ringed = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  const inside = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
  return [name, ringed, inside];
}"""

_SEEN = """() => [...new Set([...document.querySelectorAll("body, textarea, input, option")]
  .flatMap((e) => [...(`${e.textContent} ${e.value ?? ""}`).matchAll(/«([\\w.]+):/g)].map((m) => m[1])))]"""


def structure(page: Page) -> list[str]:
    """Elements with the names of their attributes, an element a line; what quotes people is left out."""
    return [str(line) for line in page.evaluate(_STRUCTURE, QUOTING)]


def unexpected_in_quotes(page: Page) -> list[str]:
    """Elements in the parts that quote people which no formatting and no diff makes."""
    allowed = {name for name, may in IN_QUOTING.items() if may}
    found = {str(line) for line in page.evaluate(_QUOTED, QUOTING)}
    plain = {"start", "class", ""}
    return [line for line in found if line.split()[0] not in allowed or set(line.split()[1:]) - plain]


def leading_elsewhere(page: Page) -> list[str]:
    """Addresses in the page that are not of this site."""
    return [str(address) for address in page.evaluate(_LINKS)]


def reordering(page: Page) -> list[str]:
    """Places where signs of writing direction in a text of people's reach other text.

    They end with a block. An inline element does not stop them, whatever its `unicode-bidi`: a stray U+2069 closes the
    isolate that the browser opens for it (seen in Chromium 156).
    """
    return [str(place) for place in page.evaluate(_REORDERING, QUOTING)]


def weight(page: Page, known: dict[str, int]) -> int:
    """Bytes of the page and of all that it loaded, not compressed, whether it came out of a cache or not.

    Args:
        known: sizes of what the browser had in its memory, by address; they are fetched once.
    """
    sizes = {str(name): int(size) for name, size in page.evaluate(_WEIGHT) if not str(name).startswith("data:")}
    for address, size in sizes.items():
        if size == 0:
            if address not in known:
                known[address] = len(page.request.get(address).body())
            sizes[address] = known[address]
    linked = page.evaluate(_LINKED)
    assert set(linked) <= set(sizes), f"not counted: {set(linked) - set(sizes)}"
    return sum(sizes.values())


def wider(page: Page) -> list[str]:
    """What makes the page scroll sideways."""
    return [str(place) for place in page.evaluate(_WIDER)]


def unseen_focus(page: Page, n: int = 8) -> list[str]:
    """Of the first controls that Tab leads to, those whose focus cannot be seen."""
    wrong = []
    for _ in range(n):
        page.keyboard.press("Tab")
        found = page.evaluate(_FOCUS)
        if found is None:
            continue
        name, ringed, inside = found
        if not (ringed and inside):
            wrong.append(f"{name}: {'no ring' if not ringed else 'out of sight'}")
    return wrong


def fields_seen(page: Page) -> set[str]:
    """Fields of `Texts` whose text the page shows, in text or in a control."""
    return {str(name) for name in page.evaluate(_SEEN)}


_DEAD = """() => [...document.querySelectorAll("button, input[type=submit], form")].filter((e) => {
  if (!e.checkVisibility()) return false;
  if (e.localName === "form") return !e.hasAttribute("action") && !e.closest("dialog");
  return (e.type === "button" && !e.popoverTargetElement) || (e.type !== "button" && !e.form);
}).map((e) => `${e.localName}#${e.id} ${e.textContent.trim().slice(0, 30)}`)"""


def dead_controls(page: Page) -> list[str]:
    """Controls that one sees and that only a script would make do something."""
    return [str(control) for control in page.evaluate(_DEAD)]
