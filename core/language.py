"""In which language pages speak: what the visitor chose, else what their browser asks for, else English.

Texts stand in templates as `_("…")` and in code as `gettext("…")`, where a table is made at import as `lazy_gettext("…")`.
The catalogues are `pages/locale/*/messages.po`, read as they are when an app is made; `make messages` brings them up to date
with the texts. What has no translation is English, and so is everything outside of a request: what is logged or stored.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import flask_babel
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.numbers import get_decimal_symbol
from babel.support import NullTranslations, Translations
from flask import Blueprint, Flask, current_app, has_request_context, redirect, request
from flask_babel import Babel, Domain
from werkzeug.wrappers import Response

from core.messages import strip_bidi
from core.web import local_path

LANGUAGES = {"en": "English", "de": "Deutsch"}
"""Languages with a complete catalogue, by the name that their speakers use."""

COOKIE = "language"
ASKED = "dunnock.language"
COOKIE_S = 365 * 24 * 3600
CATALOGUES = Path(__file__).parent.parent / "pages" / "locale"

blueprint = Blueprint("language", __name__)
_spoken: ContextVar[str] = ContextVar("spoken", default="en")


class _Catalogues(Domain):  # type: ignore[misc]  # Flask-Babel has no types
    """Translations out of `.po` files: nothing has to be compiled, and nothing compiled can be stale."""

    def get_translations(self) -> NullTranslations:
        """Those of this request; English outside of one."""
        return _translations(language())


def install(app: Flask, *, pages: bool = True) -> None:
    """Put translation into an app: `_()` in its templates, the choice of the language, and, for pages, the route that changes it."""
    babel = Babel()
    babel.init_app(app, locale_selector=language)
    babel.domain_instance = _Catalogues()
    app.add_template_filter(strip_bidi)
    app.context_processor(lambda: {"language": language(), "languages": LANGUAGES})
    if pages:
        app.register_blueprint(blueprint)
    for name in LANGUAGES:
        _translations(name)  # now, so that no visitor waits for it


def language() -> str:
    """The language of this request, one of `LANGUAGES`; outside of one that of `speaking`, else English."""
    if not has_request_context():
        return _spoken.get()
    found: str | None = request.environ.get(ASKED)
    if found is None:
        chosen = request.cookies.get(COOKIE, "")
        found = chosen if chosen in LANGUAGES else request.accept_languages.best_match(LANGUAGES, "en")
        request.environ[ASKED] = found  # a page asks once for each of its texts
    return found


@contextmanager
def speaking(name: str) -> Iterator[None]:
    """Texts of this task in a language, for what goes on after its request: on an event loop there is none."""
    before = _spoken.set(name)
    try:
        yield
    finally:
        _spoken.reset(before)


# Texts ----------------------------------------------------------------------------------------------------------------


def gettext(text: str, /, **values: Any) -> str:
    """A text in the language of this request. With values it is a %-format: "%(n)s of 100 %%".

    An app without catalogues, as the engine's, speaks English.
    """
    if not has_request_context():
        text = _translations(language()).gettext(text)
        return text % values if values else text
    if "babel" not in current_app.extensions:
        return text % values if values else text
    return str(flask_babel.gettext(text, **values))


def ngettext(one: str, many: str, n: int, /, **values: Any) -> str:
    """The text that fits a number, which it has as `%(num)d`."""
    return str(flask_babel.ngettext(one, many, n, **values))


def lazy_gettext(text: str, /) -> Any:
    """A text that becomes one of the reader's language whenever it is written out; `str()` it where JSON is made."""
    return flask_babel.lazy_gettext(text)


def N_(text: str) -> str:
    """Mark a text for the catalogues; whoever shows it translates it."""
    return text


def retold(text: str, forms: Iterable[str]) -> str:
    """A text that was stored in English, in the language of this request.

    Args:
        forms: what it may have been made of, e.g. "cancelled by %(who)s". A text that fits none of them stays as it is.
    """
    for form in forms if language() != "en" else ():
        if found := _pattern(form).fullmatch(text):
            return gettext(form, **found.groupdict())
    return text


def decimal_point() -> str:
    """What stands between a number's whole part and the rest."""
    return _symbol(language())


@cache
def _symbol(name: str) -> str:
    return str(get_decimal_symbol(name))


@cache
def _pattern(form: str) -> re.Pattern[str]:
    texts_and_names = re.split(r"%\((\w+)\)s", form)
    parts = (f"(?P<{part}>.+?)" if i % 2 else re.escape(part) for i, part in enumerate(texts_and_names))
    return re.compile("".join(parts), re.DOTALL)


# The choice -----------------------------------------------------------------------------------------------------------


@blueprint.post("/language")
def set_language() -> Response:
    """Remember a language in a cookie and go back to where the visitor was."""
    answer = redirect(local_path(request.form.get("next")), 303)
    chosen = request.form.get("language", "")
    if chosen in LANGUAGES:
        answer.set_cookie(COOKIE, chosen, max_age=COOKIE_S, samesite="Lax", httponly=True, secure=request.is_secure)
    return answer


@cache
def _translations(name: str) -> NullTranslations:
    path = CATALOGUES / name / "messages.po"
    if not path.exists():
        return NullTranslations()
    with path.open("rb") as file:
        catalogue = read_po(file, locale=name)
    compiled = BytesIO()
    write_mo(compiled, catalogue)
    compiled.seek(0)
    return Translations(fp=compiled)
