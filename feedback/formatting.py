"""Markdown of completions as safe HTML. Raw HTML stays text, and nothing that is shown leads or loads anything from elsewhere."""

import re
from collections.abc import Sequence
from functools import lru_cache

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup

# Where plain text would be hard to read: fenced code, emphasis, headings, lists, tables.
_LOOKS_FORMATTED = re.compile(
    r"```|~~~|\*\*\S|`[^`\n]+`|^#{1,6} \S|^ {0,3}(?:[-*+]|\d{1,3}[.)]) \S|^\|[^\n]+\|[ \t]*$", re.MULTILINE
)
MAX_FORMATTED = 50_000


def formatted(text: str) -> Markup | None:
    """The text as HTML, if it looks like Markdown; None where it is better shown as it is written."""
    if len(text) > MAX_FORMATTED or not _LOOKS_FORMATTED.search(text):
        return None
    return Markup(_markdown().render(text))  # noqa: S704  # html=False: all of the text is escaped


@lru_cache(maxsize=1)
def _markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False, "breaks": True, "linkify": False}).enable("table")
    for name in ("th_open", "td_open"):
        markdown.add_render_rule(name, _cell)
    return markdown.disable(["image", "link", "autolink", "reference", "html_inline", "html_block"])


def _cell(renderer: RendererHTML, tokens: Sequence[Token], n: int, options: OptionsDict, env: EnvType) -> str:
    """A cell that is aligned by a class: the pages' policy lets no text bring a style."""
    style = str(tokens[n].attrs.pop("style", ""))
    if style:
        tokens[n].attrSet("class", style.replace("text-align:", "to-"))
    return renderer.renderToken(tokens, n, options, env)
