"""Rules: what a completion must not do, in words people judge by and the guard refuses with.

A rule is a lasting name (its slug); what it says lives in versions, numbered from 1. A version is never changed. Whoever
edits, retires or restores a rule adds one, says on which version it stands, and is refused with `EditConflict` when
somebody else was faster. The very same act of the same person, sent again, is the version that it made. Judgments name the
version that was shown. Nothing here knows of Flask.
"""

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Integer, Select, bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, contains_eager, defer, joinedload

from access.audit import record
from access.tenants import tenant_id_of
from core.errors import Conflict, InvalidInput, NotFound
from core.language import gettext
from feedback.models import Rule, RuleVersion
from feedback.rules.words import Change, RuleEdit, RuleWords, as_json, diff, words_of

STARTER_RULES = Path(__file__).with_name("starter.json")
MAX_RULES = 300
"""How many rules an installation holds, retired ones included: lists of rules are not paged."""

HISTORY = 25
RESERVED = {"new"}  # /rules/new is the page for one


class EditConflict(Conflict):
    """Somebody made another version meanwhile.

    Attributes:
        base: number of the version that the edit was made from.
        newest: number of the one that is current now.
    """

    code = "edit_conflict"

    def __init__(self, base: RuleVersion, newest: RuleVersion) -> None:
        who = newest.author.login if newest.author else "the starter set"
        super().__init__(
            f"version {newest.version} of this rule was made by {who} after you had opened version {base.version}; "
            "nothing was changed. Look at what is new, then try again"
        )
        self.base, self.newest = base.version, newest.version
        self.members = {"base": self.base, "newest": self.newest}


# The starter set ------------------------------------------------------------------------------------------------------


def starter_rules() -> list[dict[str, Any]]:
    """The rules a new installation begins with: slug, and the fields of `RuleWords`."""
    rules: list[dict[str, Any]] = json.loads(STARTER_RULES.read_text(encoding="utf-8"))
    return rules


def ensure_rules(session: Session) -> int:
    """Add the starter rules that are missing; safe to run from several processes at once.

    A starter rule that nobody has touched and that says less than the set does now (it has no examples yet, say) gets the
    rest as a new version. What a person edited or retired is left as it is, and so are the words of every rule.

    Returns:
        How many rules were added.
    """
    entries = {entry["slug"]: RuleWords(**{k: v for k, v in entry.items() if k != "slug"}) for entry in starter_rules()}
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    added = [
        slug
        for slug in entries  # the second of two processes waits here until the first has committed
        if session.scalar(insert(Rule).values(slug=slug).on_conflict_do_nothing().returning(Rule.id)) is not None
    ]
    rules = {rule.slug: rule for rule in session.scalars(select(Rule).order_by(Rule.id).with_for_update())}
    newest = {version.rule_id: version for version in session.scalars(_newest())}
    for slug, words in entries.items():
        rule = rules[slug]
        version = newest.get(rule.id)
        if version is None:
            _add(session, rule, 1, words, note="starter set")
        elif version.author_id is None and version.active and _completes(words, words_of(version)):
            _add(session, rule, version.version + 1, words, note="starter set, completed")
    session.flush()
    return len(added)


def _completes(words: RuleWords, stored: RuleWords) -> bool:
    same = all(getattr(words, name) == getattr(stored, name) for name in ("text", "refusal_text", "severity"))
    return same and words != stored


# Reading --------------------------------------------------------------------------------------------------------------


def active_rules(session: Session, tenant_id: int | None = None) -> list[RuleVersion]:
    """The newest version of each rule, where that version is active, with its rule loaded; oldest rule first.

    One statement, built once: it runs for every page that is judged on.

    Args:
        tenant_id: whose own rules are among them, beside those that hold for everybody.
    """
    return list(session.scalars(_active(), {"tenant_id": tenant_id}))


@dataclass(frozen=True)
class RuleList:
    """Newest versions of the rules that fit, oldest rule first; and how many fit but for their state."""

    versions: list[RuleVersion]
    n_active: int
    n_retired: int


def list_rules(
    session: Session, *, category: str = "", state: str = "", search: str = "", whole: bool = False
) -> RuleList:
    """The rules that fit; at most `MAX_RULES`, so there are no pages.

    Args:
        category: one of `CATEGORIES`, or "" for all.
        state: "active", "retired", or "" for both.
        search: words that all occur in the title, the text or the slug, in any case.
        whole: with their examples and authors.
    """
    left_out = (defer(RuleVersion.kept_examples), defer(RuleVersion.broken_examples))
    query = _newest().options(*((joinedload(RuleVersion.author),) if whole else left_out))
    if category:
        query = query.where(RuleVersion.category == category)
    wanted = search.casefold().split()
    found = [
        version
        for version in session.scalars(query)
        if all(word in f"{version.title}\n{version.text}\n{version.rule.slug}".casefold() for word in wanted)
    ]
    n_active = sum(version.active for version in found)
    fitting = [version for version in found if not state or version.active == (state == "active")]
    return RuleList(fitting, n_active, len(found) - n_active)


def find_rule(session: Session, slug: str) -> RuleVersion:
    """The newest version of a rule, with its rule and its author loaded.

    Raises:
        NotFound: there is no such rule.
    """
    version = session.scalar(_versions(slug).limit(1))
    if version is None:
        raise _no_rule(slug)
    return version


def find_version(session: Session, slug: str, number: int) -> RuleVersion:
    """One version of a rule.

    Raises:
        NotFound: there is no such rule, or no such version of it.
    """
    version = session.scalar(_versions(slug).where(RuleVersion.version == number))
    if version is None:
        raise NotFound(gettext("there is no version %(number)s of a rule %(slug)r", number=number, slug=slug))
    return version


def history(
    session: Session, slug: str, before: int | None = None, limit: int = HISTORY
) -> tuple[list[RuleVersion], int | None]:
    """Versions of a rule, newest first, with their authors; and the number that the next page goes on from, if any."""
    query = _versions(slug).limit(limit + 1)
    if before is not None:
        query = query.where(RuleVersion.version < before)
    found = list(session.scalars(query))
    return found[:limit], found[limit - 1].version if len(found) > limit else None


def all_versions(session: Session, slug: str) -> list[RuleVersion]:
    """Every version of a rule, newest first, with their authors.

    Raises:
        NotFound: there is no such rule.
    """
    found = list(session.scalars(_versions(slug)))
    if not found:
        raise _no_rule(slug)
    return found


def _no_rule(slug: str) -> NotFound:
    return NotFound(gettext("there is no rule %(slug)r", slug=slug))


@cache
def _active() -> Select[RuleVersion]:
    own = Rule.tenant_id == bindparam("tenant_id", type_=Integer())  # of nobody where that is NULL
    return _newest().where(RuleVersion.active, Rule.tenant_id.is_(None) | own)


def _newest() -> Select[RuleVersion]:
    newest = (
        select(RuleVersion.rule_id, func.max(RuleVersion.version).label("version"))
        .group_by(RuleVersion.rule_id)
        .subquery()
    )
    return (
        select(RuleVersion)
        .join(newest, (RuleVersion.rule_id == newest.c.rule_id) & (RuleVersion.version == newest.c.version))
        .join(RuleVersion.rule)
        .options(contains_eager(RuleVersion.rule))
        .order_by(RuleVersion.rule_id)
    )


def _versions(slug: str) -> Select[RuleVersion]:
    return (
        select(RuleVersion)
        .join(RuleVersion.rule)
        .options(contains_eager(RuleVersion.rule), joinedload(RuleVersion.author))
        .where(Rule.slug == slug)
        .order_by(RuleVersion.version.desc())
    )


# Changing -------------------------------------------------------------------------------------------------------------


def create_rule(session: Session, words: RuleWords, change: Change, tenant: str | None = None) -> RuleVersion:
    """A new rule, active, in its version 1; its slug is made of the title and stays for good.

    Args:
        tenant: the key of the tenant whose completions alone it is for; its slug begins with it.

    Raises:
        InvalidInput: there is no such tenant.
        Conflict: a rule of other words or by somebody else has that slug, or there are `MAX_RULES` already.
    """
    if session.scalar(select(func.count()).select_from(Rule)) >= MAX_RULES:  # type: ignore[operator]  # a count is a number
        raise Conflict(
            gettext(
                "there are %(most)s rules already, which is the most; rewrite and restore a retired one", most=MAX_RULES
            )
        )
    slug, tenant_id = slug_of(f"{tenant} {words.title}" if tenant else words.title), tenant_id_of(session, tenant)
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    rule_id = session.scalar(
        insert(Rule).values(slug=slug, tenant_id=tenant_id).on_conflict_do_nothing().returning(Rule.id)
    )
    if rule_id is None:
        first = find_version(session, slug, 1)
        if first.rule.tenant_id == tenant_id and _is_same_act(first, words, True, change):
            return first
        raise Conflict(
            gettext("there is a rule %(slug)r already; edit that one, or choose another title", slug=slug),
            param="title",
        )
    version = _add(session, session.get_one(Rule, rule_id), 1, words, change)
    session.flush()
    after = {"version": 1, "active": True, **({"tenant": tenant} if tenant else {}), **words.model_dump(mode="json")}
    record(session, change.login, "rule.create", f"rule:{slug}", after=after)
    return version


def edit_rule(session: Session, slug: str, words: RuleWords | RuleEdit, *, base: int, change: Change) -> RuleVersion:
    """A new version with these words; the rule stays active or retired, as it was.

    Args:
        words: all of them, or those that are to differ from `base`.
        base: number of the version that the words were made from.

    Raises:
        NotFound: there is no such rule.
        EditConflict: `base` is not the newest version any more.
        InvalidInput: the note is empty, the words are those of `base`, or there never was a version `base`.
    """
    stands, newest = _locked(session, slug, base)
    whole = words.onto(words_of(stands)) if isinstance(words, RuleEdit) else words
    if made := _made_before(session, stands, newest, whole, stands.active, change):
        return made
    if whole == words_of(newest):
        raise InvalidInput(gettext("no word was changed, so there is nothing to save"), code="nothing_changed")
    return _follow(session, newest, whole, newest.active, change, "rule.edit")


def retire_rule(session: Session, slug: str, *, base: int, change: Change) -> RuleVersion:
    """A new version with the same words that is not active: nobody is asked to judge by it any more.

    Raises:
        NotFound, EditConflict, InvalidInput: as `edit_rule`.
        Conflict: the rule is retired.
    """
    return _switch(session, slug, base, change, active=False)


def restore_rule(session: Session, slug: str, *, base: int, change: Change) -> RuleVersion:
    """A new version with the same words that is active again.

    Raises:
        NotFound, EditConflict, InvalidInput: as `edit_rule`.
        Conflict: the rule is active.
    """
    return _switch(session, slug, base, change, active=True)


def slug_of(title: str) -> str:
    """The lasting name of a rule: letters and digits of its first title, words joined by `_`."""
    plain = unicodedata.normalize("NFKC", title).casefold()
    slug = re.sub(r"\W+", "_", plain).strip("_")[:60].strip("_")
    if slug in RESERVED:
        return f"{slug}_rule"
    return slug or f"rule_{hashlib.sha256(title.encode()).hexdigest()[:8]}"


def _switch(session: Session, slug: str, base: int, change: Change, *, active: bool) -> RuleVersion:
    stands, newest = _locked(session, slug, base)
    if made := _made_before(session, stands, newest, words_of(stands), active, change):
        return made
    if newest.active is active:
        raise Conflict(
            gettext("this rule is active already; nothing was changed")
            if active
            else gettext("this rule is retired already; nothing was changed")
        )
    return _follow(session, newest, words_of(newest), active, change, "rule.restore" if active else "rule.retire")


def _locked(session: Session, slug: str, base: int) -> tuple[RuleVersion, RuleVersion]:
    """The version `base` and the newest, the rule's row locked so that two edits come in turn."""
    session.scalar(select(Rule.id).where(Rule.slug == slug).with_for_update())
    newest = find_rule(session, slug)
    if newest.version < base:
        raise InvalidInput(
            gettext(
                "there is no version %(base)s of this rule; its newest is %(version)s",
                base=base,
                version=newest.version,
            ),
            param="base",
        )
    return newest if newest.version == base else find_version(session, slug, base), newest


def _made_before(
    session: Session, stands: RuleVersion, newest: RuleVersion, words: RuleWords, active: bool, change: Change
) -> RuleVersion | None:
    """The version that this very act made when it was sent first; None where its base is the newest still.

    Raises:
        EditConflict: the version after its base was made by another act.
    """
    if stands.version == newest.version:
        return None
    made = find_version(session, stands.rule.slug, stands.version + 1)
    if _is_same_act(made, words, active, change):
        return made
    raise EditConflict(stands, newest)


def _is_same_act(made: RuleVersion, words: RuleWords, active: bool, change: Change) -> bool:
    acts = (made.author_id, made.note, made.active, words_of(made)), (change.author_id, change.note, active, words)
    return acts[0] == acts[1]


def _follow(
    session: Session, newest: RuleVersion, words: RuleWords, active: bool, change: Change, action: str
) -> RuleVersion:
    if not change.note:
        raise InvalidInput(gettext("say in a few words what is changed, and why"), param="note")
    version = _add(session, newest.rule, newest.version + 1, words, change, active)
    session.flush()
    changes = diff(newest, version)
    record(
        session, change.login, action, f"rule:{newest.rule.slug}",
        {"version": newest.version} | {c.name: as_json(c.before) for c in changes},
        {"version": version.version, "note": change.note} | {c.name: as_json(c.after) for c in changes},
    )  # fmt: skip
    return version


def _add(
    session: Session,
    rule: Rule,
    number: int,
    words: RuleWords,
    change: Change | None = None,
    active: bool = True,
    note: str = "",
) -> RuleVersion:
    version = RuleVersion(
        rule_id=rule.id, rule=rule, version=number, active=active, **words.model_dump(mode="json"),
        author_id=change.author_id if change else None, note=change.note if change else note,
    )  # fmt: skip
    session.add(version)
    return version
