"""`make messages`: the texts of pages and code, brought into the catalogues of `pages/locale`.

A text that is new comes in untranslated, one that is gone goes; `tests/test_language.py` fails until all are translated.
"""

import datetime as dt
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.frontend import parse_mapping_cfg
from babel.messages.pofile import read_po, write_po

from core.language import CATALOGUES, LANGUAGES

ROOT = Path(__file__).parent.parent
KEYWORDS = {"_": None, "gettext": None, "lazy_gettext": None, "_l": None, "N_": None, "ngettext": (1, 2)}
WIDTH = 120
BEGINNING = dt.datetime(2026, 11, 25, tzinfo=dt.UTC)


def extract() -> Catalog:
    """All texts, each with the files it stands in."""
    with (ROOT / "babel.cfg").open() as file:
        methods, options = parse_mapping_cfg(file)  # type: ignore[no-untyped-call]
    template = Catalog(charset="utf-8")
    found = extract_from_dir(str(ROOT), methods, options, keywords=KEYWORDS, directory_filter=_is_ours)
    for name, _, message, _, context in sorted(found, key=lambda entry: (entry[0], entry[1])):
        template.add(message, locations=[(Path(name).as_posix(), 0)], context=context)
    return template


def update(name: str, template: Catalog) -> Catalog:
    """A language's catalogue with the texts of `template`, keeping the translations of those it had."""
    path = CATALOGUES / name / "messages.po"
    if path.exists():
        with path.open("rb") as file:
            catalogue = read_po(file, locale=name)
    else:
        catalogue = Catalog(locale=name, charset="utf-8", fuzzy=False)
    catalogue.update(template, no_fuzzy_matching=True)
    catalogue.obsolete.clear()
    catalogue.header_comment = f"# Texts of Dunnock's pages: {LANGUAGES[name]}."
    catalogue.creation_date = catalogue.revision_date = BEGINNING  # the repository knows better when
    return catalogue


def _is_ours(folder: str) -> bool:
    return not Path(folder).name.startswith((".", "var", "node_modules"))


def main() -> None:
    """Bring every catalogue up to date and say what is missing."""
    template = extract()
    for name in LANGUAGES:
        if name == "en":
            continue
        catalogue = update(name, template)
        path = CATALOGUES / name / "messages.po"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            write_po(file, catalogue, width=WIDTH, sort_by_file=True, include_lineno=False, omit_header=False)
        missing = sum(1 for message in catalogue if message.id and not message.string)
        print(f"{name}: {len(catalogue)} texts, {missing} without a translation")


if __name__ == "__main__":
    main()
