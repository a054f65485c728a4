"""In which language pages speak: what the visitor chose, else what their browser asks for, else English.

Texts stand in templates as `_("…")` and in code as `gettext("…")`. The catalogues are `pages/locale/*/messages.po`, read as
they are when the app starts; `make messages` brings them up to date with the texts. What has no translation is English.
"""

from functools import cache
from io import BytesIO
from pathlib import Path

from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.support import NullTranslations, Translations
from flask import Blueprint, Flask, has_request_context, redirect, request
from flask_babel import Babel, Domain, gettext, ngettext
from werkzeug.wrappers import Response

from core.messages import strip_bidi
from core.web import local_path

__all__ = ["CATALOGUES", "LANGUAGES", "gettext", "install", "language", "ngettext"]

LANGUAGES = {"en": "English", "de": "Deutsch"}
"""Languages with a complete catalogue, by the name that their speakers use."""

COOKIE = "language"
COOKIE_S = 365 * 24 * 3600
CATALOGUES = Path(__file__).parent.parent / "pages" / "locale"

blueprint = Blueprint("language", __name__)


class _Catalogues(Domain):  # type: ignore[misc]  # Flask-Babel has no types
    """Translations out of `.po` files: nothing has to be compiled, and nothing compiled can be stale."""

    def get_translations(self) -> NullTranslations:
        """Those of this request; English outside of one."""
        return _translations(language() if has_request_context() else "en")


def install(app: Flask) -> None:
    """Put translation into an app: `_()` in its templates, the choice of the language, and the route that changes it."""
    babel = Babel()
    babel.init_app(app, locale_selector=language)
    babel.domain_instance = _Catalogues()
    app.add_template_filter(strip_bidi)
    app.context_processor(lambda: {"language": language(), "languages": LANGUAGES})
    app.register_blueprint(blueprint)


def language() -> str:
    """The language of this request, one of `LANGUAGES`."""
    chosen = request.cookies.get(COOKIE, "")
    return chosen if chosen in LANGUAGES else request.accept_languages.best_match(LANGUAGES, "en")


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
