"""The language of pages: which one it is, complete catalogues, and no text that is not in them."""

import ast
import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import pytest
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po
from flask import Flask
from flask.testing import FlaskClient
from jinja2 import Environment, nodes
from pydantic import BaseModel, Field, ValidationError

from commands.messages import extract
from console import words
from console.stage_facts import SMOOTHING
from core.body import FORMS, wrong_words
from core.language import CATALOGUES, LANGUAGES, retold
from core.settings import CareSettings, GateSettings, UpdateSettings
from feedback.assignment import shown
from feedback.assignment.annotators import STANDING_WHYS
from finetune.gate import Evidence, run_gate
from finetune.smoothing import label_smoothing


@pytest.mark.parametrize(
    ("asked", "cookie", "lang"),
    [
        ("", None, "en"),
        ("de-AT,de;q=0.9,en;q=0.5", None, "de"),
        ("fr,en;q=0.4", None, "en"),
        ("fr", None, "en"),
        ("de", "en", "en"),
        ("en", "de", "de"),
        ("de", "tlh", "de"),
    ],
)
def test_which_language_a_page_speaks(client: FlaskClient, asked: str, cookie: str | None, lang: str) -> None:
    if cookie:
        client.set_cookie("language", cookie)
    page = client.get("/sign-in", headers={"Accept-Language": asked} if asked else {}).text
    assert f'<html lang="{lang}">' in page
    others = set(LANGUAGES) - {lang}
    assert all(f'name="language" value="{other}"' in page for other in others)


def test_the_choice_is_remembered_and_leads_back_here_only(client: FlaskClient) -> None:
    answer = client.post("/language", data={"language": "de", "next": "/sign-in?next=/chat"})
    assert (answer.status_code, answer.location) == (303, "/sign-in?next=/chat")
    assert '<html lang="de">' in client.get("/sign-in").text
    assert client.post("/language", data={"language": "de", "next": "https://elsewhere"}).location == "/"
    client.post("/language", data={"language": "tlh"})
    assert '<html lang="de">' in client.get("/sign-in").text


def test_outside_of_a_request_texts_are_english(app: Flask) -> None:
    from core.language import gettext

    assert gettext("Sign in") == "Sign in"
    with app.app_context():
        assert gettext("Sign in") == "Sign in"


# Catalogues -----------------------------------------------------------------------------------------------------------

NO_EVIDENCE = Evidence(candidate=[], incumbent=[], base=[], likelihoods=None, heldout_raised=0, heldout_n=0)
OTHERS = [name for name in LANGUAGES if name != "en"]
PLACEHOLDER = re.compile(r"%\(\w+\)[.\d]*[a-z]|\{\w+\}|%%")


def catalogue(name: str) -> Catalog:
    with (CATALOGUES / name / "messages.po").open("rb") as file:
        return read_po(file, locale=name)


def forms(text: str | Sequence[str]) -> tuple[str, ...]:
    """A text, or the singular and the plural of one."""
    return (text,) if isinstance(text, str) else tuple(text)


@pytest.fixture(scope="module")
def extracted() -> Catalog:
    return extract()


@pytest.mark.parametrize("name", OTHERS)
def test_a_catalogue_holds_the_texts_there_are(name: str, extracted: Catalog) -> None:
    found, wanted = ({forms(m.id) for m in c if m.id} for c in (catalogue(name), extracted))
    assert len(wanted) > 1000
    assert found == wanted, "run `make messages`, then translate what is new"


@pytest.mark.parametrize("name", OTHERS)
def test_every_text_is_translated(name: str) -> None:
    for message in catalogue(name):
        if not message.id:
            continue
        ids, strings = forms(message.id), forms(message.string)
        assert len(ids) == len(strings)
        assert not message.fuzzy, ids
        for original, translated in zip(ids, strings, strict=True):
            assert translated.strip(), f"{original!r} is not translated"
            assert sorted(set(PLACEHOLDER.findall(translated))) == sorted(set(PLACEHOLDER.findall(original))), (
                translated
            )
            assert not re.search(r"[<>]|&\w+;", translated), f"{translated!r} has HTML in it"
            assert translated.endswith(".") == original.endswith("."), translated
            edges = (original[:1].isspace(), original[-1:].isspace())
            assert (translated[:1].isspace(), translated[-1:].isspace()) == edges, translated


@pytest.mark.parametrize("name", ["en", *OTHERS])
def test_texts_with_values_and_all_texts_of_templates_are_formats(name: str, extracted: Catalog) -> None:
    """Jinja writes every text as a %-format, code those with values: a lone % would be an error while a page is made."""
    places = {forms(m.id): [file for file, _ in m.locations] for m in extracted if m.id}
    for message in extracted if name == "en" else catalogue(name):
        texts = forms(message.id if name == "en" else message.string) if message.id else ()
        for text in texts:
            values = dict.fromkeys(re.findall(r"%\((\w+)\)", text), 1)
            if values or any(file.endswith(".html") for file in places[forms(message.id)]):
                assert text % values


def test_the_texts_of_a_setting_and_of_what_is_stored_are_in_the_catalogues(extracted: Catalog) -> None:
    """These are made where `core.language` is not known; a list elsewhere marks them."""
    assert CareSettings().help_text in extracted
    assert shown.ANY in extracted
    assert set(words.CHECKS) == {check.name for check in run_gate(NO_EVIDENCE, GateSettings())[1]}


def test_what_is_stored_in_english_is_told_in_the_language_of_the_reader(app: Flask) -> None:
    with app.test_request_context(headers={"Accept-Language": "de"}):
        told = retold("17 of your last 20 tasks with a known answer were answered as known", STANDING_WHYS)
        assert told == "17 der letzten 20 Aufgaben mit bekannter Antwort wurden wie bekannt beantwortet"
        assert retold("talked to them, 100 %(n)s", STANDING_WHYS) == "talked to them, 100 %(n)s"
        meanings = [check.meaning for check in run_gate(NO_EVIDENCE, GateSettings())[1]]
        assert [meaning for meaning in meanings if words.check_meaning(meaning) == meaning] == []
        pairs = {"n_train": 90, "n_heldout": 10}
        manifests = [
            {},
            pairs | {"flip_rate": {"undefined": "of a reason"}},
            pairs | {"flip_rate": {"value": 0.1, "source": "gold"}},
        ]
        manifests += [manifests[2] | {"n_imported": 80}, pairs | {"flip_rate": {"value": 0.49, "source": "gold"}}]
        whys = [label_smoothing(UpdateSettings(label_smoothing="auto"), manifest)[1]["why"] for manifest in manifests]
        assert len(set(whys)) == len(whys)
        assert [why for why in whys if retold(why, SMOOTHING) == why] == []
        assert (words.number(0.5), words.percent(0.125)) == ("0,500", "12,5\u202f%")
    with app.test_request_context():
        assert retold("a lead paused them", STANDING_WHYS) == "a lead paused them"
        assert words.percent(0.125) == "12.5\u202f%"


# Texts that nobody wrapped --------------------------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent
READ_ALOUD = {"title", "aria-label", "placeholder", "alt", "label"}
UNTRANSLATED = {
    "Dunnock", "Dunnock · Dunnock", "CSV", "JSON", "Enter", "Esc", "Shift", "make demo", "make run", "n", ", n", "– , n", "rule:3",
    "https://", "Authorization: Bearer …", "Authorization: Bearer dk-…",
}  # fmt: skip
KEYS = {"Esc", "Enter", "Shift+E"}
DATA = {
    "I cannot tell", "It upsets me", "I cannot read this language", "It looks broken",  # reasons, stored as they are
    "%Y-%m-%d %H:%M UTC", "%Y-%m-%d %H:%M:%S", "GET", "ID", "Dunnock",
}  # fmt: skip


def templates() -> list[Path]:
    return sorted([*ROOT.glob("*/pages/**/*.html"), *ROOT.glob("pages/*.html")])


class Visible(HTMLParser):
    """Collects what people read or hear of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.inside: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)  # what people typed is in their own language, and names of settings are English
        typed = "user-text" in (found.get("class") or "").split() or found.get("lang") == "en"
        self.inside.append((tag, typed))
        self.texts += [value for name, value in attrs if name in READ_ALOUD and value]

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not any(typed or tag in ("script", "style") for tag, typed in self.inside):
            self.texts.append(data)


def unwrapped(source: str) -> list[str]:
    """Texts of a template that stand outside of `{{ }}`."""
    bare = re.sub(r"\{%-?\s*block body_class\s*%\}.*?\{%-?\s*endblock\s*%\}", "", source)
    visible = Visible()
    visible.feed(re.sub(r"\{#.*?#\}|\{\{.*?\}\}|\{%.*?%\}", "", bare, flags=re.DOTALL))
    lines = [line.strip() for text in visible.texts for line in text.splitlines()]
    lines = [re.sub(r'[a-z-]+="[^"]*"', "", line).strip() for line in lines]  # attributes that a macro writes
    # A letter alone is a key, as in <kbd>e</kbd>.
    return [line for line in lines if re.search("[A-Za-z]{2}", line) and line not in UNTRANSLATED]


def constants(source: str) -> Iterator[str]:
    """Texts inside of `{{ }}` and `{% %}` that look like words and go through no `_()`."""

    def walk(node: nodes.Node) -> Iterator[str]:
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name in ("_", "ngettext"):
            return
        if isinstance(node, nodes.Const) and isinstance(node.value, str):
            text = node.value.strip()
            if re.search("[A-Za-z]{2}", text) and (" " in text or text[0].isupper()):
                yield text
        for child in node.iter_child_nodes():
            yield from walk(child)

    yield from walk(Environment(extensions=["jinja2.ext.i18n"], autoescape=True).parse(source))


def test_the_scans_find_what_they_look_for() -> None:
    assert unwrapped('<p title="Bare one">{{ _("Wrapped") }} bare two</p><kbd>e</kbd>') == ["Bare one", "bare two"]
    assert list(constants('{{ "Bare" if x else _("Wrapped") }}{{ f("bare too") }}{{ g("word") }}')) == [
        "Bare",
        "bare too",
    ]
    assert bare_in_script('a.textContent = "Not saved yet"; b = `No reply: ${why}`; c("saved");') == [
        "Not saved yet",
        "No reply: ${why}",
    ]


@pytest.mark.parametrize("path", templates(), ids=lambda path: path.name)
def test_all_texts_of_a_template_are_wrapped(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert unwrapped(source) == []
    assert set(constants(source)) <= KEYS | DATA


def bare_in_script(source: str) -> list[str]:
    """Literals of a script that look like a sentence; those belong into `data-words` of the page."""
    code = re.sub(r"^\s*//.*$|\s//\s.*$", "", source, flags=re.MULTILINE)
    return [text for _, text in re.findall(r"""(["'`])([A-Z][a-z]+[ :][^"'`\n]*)\1""", code)]


def test_scripts_have_no_texts_of_their_own() -> None:
    scripts = sorted(ROOT.glob("*/static/**/*.js"))
    assert len(scripts) > 10
    assert {path.name: found for path in scripts if (found := bare_in_script(path.read_text(encoding="utf-8")))} == {}


def test_style_sheets_have_no_texts_of_their_own() -> None:
    sheets = sorted(ROOT.glob("*/static/**/*.css"))
    assert len(sheets) > 5
    assert [
        path.name for path in sheets if re.search(r'content:\s*"[^"]*[A-Za-z]', path.read_text(encoding="utf-8"))
    ] == []


def test_what_is_flashed_is_translated() -> None:
    bare = []
    for path in [*ROOT.glob("access/**/*.py"), *ROOT.glob("console/*.py"), *ROOT.glob("feedback/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "flash":
                text = ast.unparse(node.args[0])
                if not re.match(r"_\(|gettext\(|error\.message$", text):
                    bare.append(f"{path.name}: {text}")
    assert bare == []


FOR_PROGRAMS = (
    "feedback/api/", "console/tenant_schemas.py", "feedback/exchange/", "feedback/dataset.py", "feedback/preferences.py", "feedback/tasks.py",
    "feedback/webhooks/guarded.py", "serving/guard/", "serving/schemas.py", "core/settings/", "core/db.py", "core/artifacts.py",
)  # fmt: skip
"""Whose errors are read by programs, in a terminal or in a log alone."""
PAGE_ERRORS = {
    "InvalidInput", "NotFound", "Forbidden", "Unauthenticated", "TooManyRequests", "ProviderError", "Conflict", "EngineError",
    "ValueError", "DunnockError",
}  # fmt: skip


def bare_errors(source: str) -> list[str]:
    """Words of errors that are raised or made without a look into the catalogue."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") in PAGE_ERRORS
        and node.args
        and isinstance(node.args[0], ast.JoinedStr | ast.Constant | ast.BinOp)
    ]


def test_words_of_errors_that_pages_show_are_translated() -> None:
    assert bare_errors('raise NotFound(f"no {x}")') and bare_errors('raise ValueError("no")')  # noqa: PT018
    assert not bare_errors('raise NotFound(gettext("no"))')
    folders = ("access", "core", "feedback", "console", "serving")
    paths = [path for folder in folders for path in ROOT.glob(f"{folder}/**/*.py")]
    paths += [ROOT / "policy/versions.py", ROOT / "finetune/cycle.py", ROOT / "reward/models.py"]
    bare = {
        name: found
        for path in paths
        if not (name := path.relative_to(ROOT).as_posix()).startswith(FOR_PROGRAMS)
        and (found := bare_errors(path.read_text(encoding="utf-8")))
    }
    assert bare == {}


def test_what_pydantic_finds_wrong_is_told_in_the_language_of_the_reader(app: Flask) -> None:
    class Model(BaseModel):
        mark: int = Field(ge=1, le=5)
        choice: Literal["left", "right"]
        note: str = Field("", max_length=3)
        many: list[int] = Field(default_factory=list, max_length=1)

    wrong: list[dict[str, Any]] = [
        {"mark": 9, "choice": "left"}, {"mark": "x", "choice": "left"}, {"mark": 1, "choice": "up"}, {"mark": 1},
        {"mark": 1, "choice": "left", "note": "long"}, {"mark": 1, "choice": "left", "many": [1, 2]},
    ]  # fmt: skip
    for values in wrong:
        with pytest.raises(ValidationError) as caught:
            Model.model_validate(values)
        (error,) = caught.value.errors()
        with app.test_request_context():
            english = wrong_words(error)
        assert english == error["msg"].replace(" after validation", "")
        with app.test_request_context(headers={"Accept-Language": "de"}):
            german = wrong_words(error)
        assert german != english
        assert not re.search(r"Input|should|%\(", german), german
    assert all(form in {m.id for m in catalogue("de")} for form in FORMS.values())
