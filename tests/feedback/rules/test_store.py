"""Starter rules, versions, two people who edit at once, and which rules are active."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from access.models import AuditLog, Person
from core.db import Database
from core.errors import Conflict, InvalidInput, NotFound
from feedback.models import Rule, RuleVersion
from feedback.rules import store as rules_module
from feedback.rules.store import (
    EditConflict,
    active_rules,
    create_rule,
    edit_rule,
    ensure_rules,
    find_rule,
    find_version,
    history,
    list_rules,
    restore_rule,
    retire_rule,
    slug_of,
    starter_rules,
)
from feedback.rules.words import CATEGORIES, Change, RuleEdit, RuleWords, diff, words_of
from tests.factories import make_person

HARMS = {
    "violence", "weapons", "illegal_drugs", "self_harm", "hate_harassment", "sexual_minors_safety", "fraud_scams",
    "cybercrime", "privacy_stalking", "theft_property", "disinformation", "dangerous_advice",
}  # fmt: skip
SUITE = Path(__file__).parents[3] / "evals" / "suites" / "harmful.jsonl"


@pytest.fixture
def lead_change(session: Session) -> Change:
    """A lead's change, with a note."""
    return Change(author_id=make_person(session, "ana", "lead").id, login="ana", note="clearer words")


def words(**more: Any) -> RuleWords:
    return RuleWords(
        **{"title": "No riddles", "text": "Do not speak in riddles.", "refusal_text": "Plainly, then."} | more
    )


def audit(session: Session) -> list[AuditLog]:
    return list(session.scalars(select(AuditLog).order_by(AuditLog.id)))


# The starter set ------------------------------------------------------------------------------------------------------


def test_the_starter_set_is_whole() -> None:
    rules = starter_rules()
    slugs = [rule["slug"] for rule in rules]
    assert len(rules) == len(set(slugs)) >= 20
    assert set(slugs) >= HARMS
    assert {json.loads(line)["category"] for line in SUITE.read_text().splitlines()} == HARMS
    for rule in rules:
        assert set(rule) == {"slug", *RuleWords.model_fields}
        checked = RuleWords(**{name: value for name, value in rule.items() if name != "slug"})
        assert checked.kept_examples, rule["slug"]
        assert checked.broken_examples, rule["slug"]
        assert 1 <= checked.refusal_text.count(". ") + 1 <= 3
    for name in ("title", "text", "refusal_text"):
        assert len({rule[name] for rule in rules}) == len(rules), name
    assert {rule["category"] for rule in rules} == set(CATEGORIES) - {"other"}


def test_ensure_rules_adds_only_what_is_missing(session: Session, lead_change: Change) -> None:
    n = len(starter_rules())
    assert ensure_rules(session) == n
    edit_rule(session, "weapons", words(), base=1, change=lead_change)
    retire_rule(session, "violence", base=1, change=lead_change)
    assert ensure_rules(session) == 0
    assert find_rule(session, "weapons").text == "Do not speak in riddles."
    assert not find_rule(session, "violence").active
    assert len(session.scalars(select(RuleVersion)).all()) == n + 2


def test_older_starter_rules_are_completed_and_touched_ones_are_not(session: Session) -> None:
    """What an installation gets that has the starter rules from before they had examples."""
    ensure_rules(session)
    for slug, change in [("weapons", {}), ("violence", {"text": "Edited by hand."}), ("cybercrime", {"active": False})]:
        version = find_rule(session, slug)
        version.title, version.kept_examples, version.broken_examples = slug.capitalize(), [], []
        for name, value in change.items():
            setattr(version, name, value)
    session.flush()
    assert ensure_rules(session) == 0
    completed = find_rule(session, "weapons")
    assert (completed.version, completed.author_id, completed.note) == (2, None, "starter set, completed")
    assert completed.title == "No help with weapons"
    assert completed.broken_examples
    assert find_version(session, "weapons", 1).kept_examples == []  # what was shown stays as it was
    assert (find_rule(session, "violence").version, find_rule(session, "cybercrime").version) == (1, 1)
    assert ensure_rules(session) == 0
    assert find_rule(session, "weapons").version == 2


# Versions -------------------------------------------------------------------------------------------------------------


def test_active_rules_are_the_newest_versions_that_are_active(session: Session, lead_change: Change) -> None:
    n = ensure_rules(session)
    first, second = session.scalars(select(Rule).order_by(Rule.id).limit(2))
    edit_rule(session, first.slug, words(), base=1, change=lead_change)
    retire_rule(session, second.slug, base=1, change=lead_change)
    session.flush()
    active = active_rules(session)
    assert len(active) == n - 1
    assert [v.version for v in active if v.rule_id == first.id] == [2]
    assert second.id not in {v.rule_id for v in active}
    assert active[0].rule.slug == first.slug


def test_active_rules_cost_one_statement(database: Database) -> None:
    with database.session() as session:
        ensure_rules(session)
    said: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: said.append(args[2]))
    with database.read() as session:
        shown = [(v.title, v.rule.slug, v.text, v.kept_examples) for v in active_rules(session)]
    assert len(shown) == len(starter_rules())
    assert len([line for line in said if line.startswith("SELECT")]) == 1, said


def test_an_edit_is_a_new_version_and_is_audited(session: Session, lead_change: Change) -> None:
    first = create_rule(session, words(), lead_change)
    assert (first.rule.slug, first.version, first.active) == ("no_riddles", 1, True)
    second = edit_rule(session, "no_riddles", words(severity=3), base=1, change=lead_change)
    assert words_of(first) == words()
    assert words_of(second) == words(severity=3)
    assert (second.version, second.author.login if second.author else None, second.note) == (2, "ana", "clearer words")
    entries = audit(session)
    assert [(e.actor, e.action, e.subject) for e in entries] == [
        ("ana", "rule.create", "rule:no_riddles"),
        ("ana", "rule.edit", "rule:no_riddles"),
    ]
    assert entries[1].before == {"version": 1, "severity": 2}
    assert entries[1].after == {"version": 2, "severity": 3, "note": "clearer words"}


def test_retire_and_restore(session: Session, lead_change: Change) -> None:
    create_rule(session, words(), lead_change)
    with pytest.raises(Conflict, match="active already"):
        restore_rule(session, "no_riddles", base=1, change=lead_change)
    assert not retire_rule(session, "no_riddles", base=1, change=lead_change).active
    assert active_rules(session) == []
    with pytest.raises(EditConflict):
        restore_rule(session, "no_riddles", base=1, change=lead_change)
    with pytest.raises(Conflict, match="retired already"):
        retire_rule(session, "no_riddles", base=2, change=lead_change)
    edited = edit_rule(session, "no_riddles", words(severity=1), base=2, change=lead_change)
    assert not edited.active  # an edit is no restoring
    assert restore_rule(session, "no_riddles", base=3, change=lead_change).active
    assert [v.version for v in active_rules(session)] == [4]
    assert [e.action for e in audit(session)] == ["rule.create", "rule.retire", "rule.edit", "rule.restore"]
    assert (audit(session)[1].before, audit(session)[1].after) == (
        {"version": 1, "active": True},
        {"version": 2, "active": False, "note": "clearer words"},
    )


def test_the_same_act_again_is_what_it_made(session: Session, lead_change: Change) -> None:
    """A form that is sent twice, or a call whose answer was lost."""
    first = create_rule(session, words(), lead_change)
    assert create_rule(session, words(), lead_change) is first
    second = edit_rule(session, "no_riddles", words(severity=3), base=1, change=lead_change)
    assert edit_rule(session, "no_riddles", words(severity=3), base=1, change=lead_change) is second
    third = retire_rule(session, "no_riddles", base=2, change=lead_change)
    assert retire_rule(session, "no_riddles", base=2, change=lead_change) is third
    assert edit_rule(session, "no_riddles", RuleEdit(severity=3), base=1, change=lead_change) is second
    other = lead_change.model_copy(update={"author_id": make_person(session, "ben", "lead").id})
    for change, severity in ((other, 3), (lead_change.model_copy(update={"note": "x"}), 3), (lead_change, 1)):
        with pytest.raises(EditConflict) as caught:
            edit_rule(session, "no_riddles", words(severity=severity), base=1, change=change)
        assert caught.value.members == {"base": 1, "newest": 3}
    with pytest.raises(EditConflict):
        restore_rule(session, "no_riddles", base=2, change=lead_change)
    assert [e.action for e in audit(session)] == ["rule.create", "rule.edit", "rule.retire"]


def test_an_edit_of_some_words_keeps_the_others(session: Session, lead_change: Change) -> None:
    create_rule(session, words(kept_examples=({"text": "It is noon."},)), lead_change)
    edited = edit_rule(session, "no_riddles", RuleEdit(text="Never."), base=1, change=lead_change)
    assert words_of(edited) == words(kept_examples=({"text": "It is noon."},), text="Never.")
    emptied = edit_rule(session, "no_riddles", RuleEdit(kept_examples=()), base=2, change=lead_change)
    assert words_of(emptied) == words(text="Never.")
    with pytest.raises(InvalidInput, match="no word was changed"):
        edit_rule(session, "no_riddles", RuleEdit(text="Never."), base=3, change=lead_change)
    assert set(RuleEdit.model_fields) == set(RuleWords.model_fields)


def test_what_cannot_be_saved(session: Session, lead_change: Change) -> None:
    silent = lead_change.model_copy(update={"note": ""})
    create_rule(session, words(), silent)
    with pytest.raises(InvalidInput, match="say in a few words"):
        edit_rule(session, "no_riddles", words(severity=3), base=1, change=silent)
    with pytest.raises(InvalidInput, match="no word was changed"):
        edit_rule(session, "no_riddles", words(title=" No\r\nriddles "), base=1, change=lead_change)
    with pytest.raises(InvalidInput, match="no version 2"):
        edit_rule(session, "no_riddles", words(severity=3), base=2, change=lead_change)
    with pytest.raises(NotFound, match="no rule 'x'"):
        edit_rule(session, "x", words(), base=1, change=lead_change)
    with pytest.raises(NotFound):
        find_version(session, "no_riddles", 2)
    with pytest.raises(Conflict, match="there is a rule 'no_riddles' already"):
        create_rule(session, words(title="No – Riddles!"), lead_change)
    assert [v.version for v in history(session, "no_riddles")[0]] == [1]


def test_there_is_a_most_of_rules(session: Session, lead_change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules_module, "MAX_RULES", 2)
    create_rule(session, words(title="one"), lead_change)
    create_rule(session, words(title="two"), lead_change)
    with pytest.raises(Conflict, match="2 rules already"):
        create_rule(session, words(title="three"), lead_change)


@pytest.mark.parametrize(
    ("title", "slug"),
    [
        ("No help with weapons", "no_help_with_weapons"),
        ("  ¿Sin armas? ", "sin_armas"),
        ("禁止武器", "禁止武器"),
        ("../../etc/passwd", "etc_passwd"),
        ("a\u202eb<script>", "a_b_script"),
        ("x" * 200, "x" * 60),
        ("New", "new_rule"),
    ],
)
def test_slugs_are_letters_and_digits(title: str, slug: str) -> None:
    assert slug_of(title) == slug


def test_a_title_of_signs_gets_a_slug_of_its_own() -> None:
    assert slug_of("🦜🦜").startswith("rule_")
    assert slug_of("🦜🦜") != slug_of("🦜")


def test_list_filters_and_counts(session: Session, lead_change: Change) -> None:
    ensure_rules(session)
    create_rule(session, words(title="Keine Rätsel", category="format"), lead_change)
    retire_rule(session, "repetition", base=1, change=lead_change)
    form = list_rules(session, category="format")
    assert [v.rule.slug for v in form.versions] == ["repetition", "keine_rätsel"]
    assert (form.n_active, form.n_retired) == (1, 1)
    assert [v.rule.slug for v in list_rules(session, category="format", state="retired").versions] == ["repetition"]
    assert [v.rule.slug for v in list_rules(session, search="RÄTSEL keine").versions] == ["keine_rätsel"]
    assert list_rules(session, search="keine weapons").versions == []
    assert len(list_rules(session).versions) == len(starter_rules()) + 1


def test_history_goes_back_page_by_page(session: Session, lead_change: Change) -> None:
    create_rule(session, words(), lead_change)
    for n in range(2, 7):
        edit_rule(session, "no_riddles", words(text=f"Take {n}."), base=n - 1, change=lead_change)
    newest, before = history(session, "no_riddles", limit=4)
    assert ([v.version for v in newest], before) == ([6, 5, 4, 3], 3)
    assert ([v.version for v in history(session, "no_riddles", before, 4)[0]]) == [2, 1]
    assert history(session, "no_riddles", before, 2)[1] is None
    changed = diff(find_version(session, "no_riddles", 3), find_version(session, "no_riddles", 5))
    assert [(c.name, c.diffs) for c in changed] == [("text", [[("same", "Take"), ("del", " 3."), ("ins", " 5.")]])]


# At the same time -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest) -> Database:
    """A migrated database of either kind."""
    found: Database = request.getfixturevalue("database" if request.param == "sqlite" else "postgres_database")
    return found


def at_once(count: int, act: Callable[[int], Any]) -> list[Any]:
    """What each of so many threads got that began at one time: a result or an exception."""
    barrier, got = threading.Barrier(count), [None] * count

    def run(number: int) -> None:
        barrier.wait()
        try:
            got[number] = act(number)
        except Exception as error:
            got[number] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got


def people_of(database: Database, count: int) -> list[Person]:
    with database.session() as session:
        return [make_person(session, f"lead-{n}", "lead") for n in range(count)]


def test_of_editors_at_once_one_saves_and_the_others_are_told(either: Database) -> None:
    leads = people_of(either, 8)
    with either.session() as session:
        create_rule(session, words(), Change(author_id=leads[0].id, login="lead-0"))

    def edit(number: int) -> int:
        change = Change(author_id=leads[number].id, login=leads[number].login, note=f"by {number}")
        with either.session() as session:
            return edit_rule(session, "no_riddles", words(text=f"As {number} says."), base=1, change=change).version

    got = at_once(8, edit)
    winners = [number for number, result in enumerate(got) if result == 2]
    assert len(winners) == 1, got
    for conflict in (result for result in got if result != 2):
        assert isinstance(conflict, EditConflict), got
        assert (conflict.base, conflict.newest) == (1, 2)
        assert f"made by lead-{winners[0]}" in conflict.message
    with either.read() as session:
        versions, _ = history(session, "no_riddles")
        assert [(v.version, v.note) for v in versions] == [(2, f"by {winners[0]}"), (1, "")]
        assert [e.action for e in audit(session)] == ["rule.create", "rule.edit"]


def test_of_equal_new_rules_at_once_one_is_made(either: Database) -> None:
    leads = people_of(either, 6)

    def create(number: int) -> int:
        with either.session() as session:
            return create_rule(session, words(), Change(author_id=leads[number].id, login=leads[number].login)).version

    got = at_once(6, create)
    assert got.count(1) == 1, got
    assert sum(isinstance(result, Conflict) for result in got) == 5, got


def test_starter_rules_from_processes_that_start_at_once(either: Database) -> None:
    def ensure(_: int) -> int:
        with either.session() as session:
            return ensure_rules(session)

    n = len(starter_rules())
    assert sorted(at_once(4, ensure)) == [0, 0, 0, n]
    with either.read() as session:
        assert len(session.scalars(select(RuleVersion)).all()) == n
