"""In which language pages speak: what the visitor chose, else what their browser asks for, else English.

Texts stand in templates as `_("…")` and in code as `gettext("…")`; the catalogues lie in `pages/locale`, and
`make messages` brings them up to date. A text without a translation is shown in English.
"""

from pathlib import Path

from flask import Flask, request
from flask_babel import Babel

from core.messages import strip_bidi

LANGUAGES = {"en": "English", "de": "Deutsch"}
"""Languages with a complete catalogue, by the name that their speakers use."""

COOKIE = "language"
CATALOGUES = Path(__file__).parent.parent / "pages" / "locale"


def install(app: Flask) -> None:
    """Put translation into an app: `_()` in its templates, and the choice of the language."""
    app.config.setdefault("BABEL_TRANSLATION_DIRECTORIES", str(CATALOGUES))
    Babel(app, locale_selector=language)
    app.add_template_filter(strip_bidi)
    app.context_processor(lambda: {"language": language(), "languages": LANGUAGES})


def language() -> str:
    """The language of this request, one of `LANGUAGES`."""
    chosen = request.cookies.get(COOKIE, "")
    return chosen if chosen in LANGUAGES else request.accept_languages.best_match(LANGUAGES, "en")
