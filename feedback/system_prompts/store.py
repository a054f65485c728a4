"""System prompts: made, edited, and given shares of the traffic. Nothing is changed in place, and everything is in the audit log.

Whoever edits or sets shares says on which version, or row of shares, that stands, and is refused with `Conflict` where somebody
else was faster. What holds is the newest row of shares; former ones come back as a new row. Nothing here knows of Flask.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Select, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, contains_eager, joinedload

from access.audit import record
from access.limits import estimated_tokens
from core.errors import Conflict, InvalidInput, NotFound
from core.language import gettext
from core.messages import plain_text
from feedback.rules.words import Change
from feedback.system_prompts.models import SystemPrompt, SystemPromptShare, SystemPromptVersion

NONE = "none"
"""The name of no system prompt."""
RESERVED = (NONE, "new", "shares", "tables")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
MAX_TEXT = 16_000  # characters
MAX_SHARES = 20
MAX_PROMPTS = 200
HISTORY = 25


@dataclass(frozen=True)
class Share:
    """A version, or None for no system prompt, and how many percent of the conversations get it."""

    version_id: int | None
    percent: int


# Reading --------------------------------------------------------------------------------------------------------------


def newest_versions(session: Session) -> list[SystemPromptVersion]:
    """Each prompt's newest version, with its author; the oldest prompt first."""
    newest = (
        select(SystemPromptVersion.system_prompt_id, func.max(SystemPromptVersion.version).label("version"))
        .group_by(SystemPromptVersion.system_prompt_id)
        .subquery()
    )
    own = (SystemPromptVersion.system_prompt_id == newest.c.system_prompt_id) & (
        SystemPromptVersion.version == newest.c.version
    )
    return list(session.scalars(_versions().join(newest, own).order_by(SystemPromptVersion.system_prompt_id)))


def versions_of(session: Session, name: str) -> list[SystemPromptVersion]:
    """Every version of a prompt, the newest first.

    Raises:
        NotFound: there is no such prompt.
    """
    query = _versions().where(SystemPrompt.name == name).order_by(SystemPromptVersion.version.desc())
    if not (found := list(session.scalars(query))):
        raise NotFound(gettext("there is no system prompt %(name)r", name=name[:60]))
    return found


def versions_by_id(session: Session, ids: Iterable[int]) -> dict[int, SystemPromptVersion]:
    """Versions by their ids."""
    return {
        version.id: version for version in session.scalars(_versions().where(SystemPromptVersion.id.in_(list(ids))))
    }


def find_label(session: Session, label: str) -> SystemPromptVersion:
    """The version behind "tutor@3"; "tutor" is its newest.

    Raises:
        NotFound: there is none.
    """
    name, _, number = label.partition("@")
    query = _versions().where(SystemPrompt.name == name).order_by(SystemPromptVersion.version.desc()).limit(1)
    if number:
        query = query.where(SystemPromptVersion.version == (int(number) if re.fullmatch(r"\d{1,9}", number) else 0))
    if (found := session.scalar(query)) is None:
        raise NotFound(
            gettext("there is no system prompt %(name)r", name=label[:60]), code="system_prompt_not_found", param="system_prompt",
        )  # fmt: skip
    return found


def holding(session: Session, tenant_id: int | None = None) -> SystemPromptShare | None:
    """The shares that hold for a tenant's conversations: its own, else the house's; None where there are none."""
    own = newest_shares(session, tenant_id)
    if tenant_id is not None and (own is None or not own.shares):
        own = newest_shares(session, None)
    return own if own is not None and own.shares else None


def newest_shares(session: Session, tenant_id: int | None) -> SystemPromptShare | None:
    """The newest row of the house, or of a tenant, whatever it says."""
    return session.scalar(_shares(tenant_id).limit(1))


def history(session: Session, tenant_id: int | None, before: int | None = None) -> list[SystemPromptShare]:
    """Rows of shares, the newest first, one more than a page of them has."""
    query = _shares(tenant_id).options(joinedload(SystemPromptShare.author)).limit(HISTORY + 1)
    return list(session.scalars(query if before is None else query.where(SystemPromptShare.number < before)))


def shares_of(row: SystemPromptShare | None) -> list[Share]:
    """What a row says; nothing where there is none."""
    return [Share(**each) for each in row.shares] if row else []


def incumbent_of(shares: Sequence[Share]) -> Share | None:
    """The largest share, which the others are compared with; of equal ones the first."""
    return max(shares, key=lambda share: share.percent, default=None)


def _versions() -> Select[SystemPromptVersion]:
    return (
        select(SystemPromptVersion)
        .join(SystemPromptVersion.system_prompt)
        .options(contains_eager(SystemPromptVersion.system_prompt), joinedload(SystemPromptVersion.author))
    )


def _shares(tenant_id: int | None) -> Select[SystemPromptShare]:
    table = SystemPromptShare
    whose = table.tenant_id.is_(None) if tenant_id is None else table.tenant_id == tenant_id
    return select(table).where(whose).order_by(table.number.desc())


# Changing -------------------------------------------------------------------------------------------------------------


def create_prompt(session: Session, name: str, text: str, change: Change, *, most_tokens: int) -> SystemPromptVersion:
    """A new system prompt in its version 1. Nobody gets it before it has a share.

    Args:
        most_tokens: that a prompt with its conversation may have; a text that would take more than half of them is refused.

    Raises:
        InvalidInput: the name is none, or the text is empty or too long.
        Conflict: the name is taken, or there are `MAX_PROMPTS` already.
    """
    name = name.strip()
    if not NAME.fullmatch(name) or name in RESERVED:
        raise InvalidInput(
            gettext("A name has up to 40 of a–z, 0–9, - and _, and is none of %(taken)s.", taken=", ".join(RESERVED)), param="name",
        )  # fmt: skip
    said = _checked(text, most_tokens)
    if (session.scalar(select(func.count(SystemPrompt.id))) or 0) >= MAX_PROMPTS:
        raise Conflict(gettext("there are %(most)s system prompts already, which is the most", most=MAX_PROMPTS))
    prompt = SystemPrompt(name=name)
    try:
        with session.begin_nested():
            session.add(prompt)
    except IntegrityError as error:
        raise Conflict(
            gettext("there is a system prompt %(name)r already; edit that one, or choose another name", name=name), param="name",
        ) from error  # fmt: skip
    return _add(session, prompt, 1, said, change)


def add_version(
    session: Session, name: str, text: str, *, base: int, change: Change, most_tokens: int
) -> SystemPromptVersion:
    """A new version with this text. Nobody gets it before it has a share.

    Args:
        base: number of the version that the text was made from.
        most_tokens: as of `create_prompt`.

    Raises:
        NotFound: there is no such prompt.
        InvalidInput: the text is empty, too long or that of the newest version, or there is no note.
        Conflict: `base` is not the newest version any more.
    """
    newest = versions_of(session, name)[0]
    said = _checked(text, most_tokens)
    _check_note(change)
    if said == newest.text:
        raise InvalidInput(gettext("no word was changed, so there is nothing to save"), param="text")
    if newest.version != base:
        raise _too_late(newest.author.login)
    try:
        with session.begin_nested():
            return _add(session, newest.system_prompt, base + 1, said, change, newest)
    except IntegrityError as error:
        raise _too_late(gettext("somebody")) from error


def set_shares(
    session: Session, shares: Sequence[Share], *, base: int, change: Change, tenant_id: int | None = None
) -> SystemPromptShare:
    """Other shares, from now on.

    Args:
        base: number of the row that they take the place of; 0 where there was none.

    Raises:
        InvalidInput: they are not 100 % together, name one version twice or one that is not there, or there is no note.
        Conflict: `base` is not what holds any more.
    """
    versions = versions_by_id(session, (share.version_id for share in shares if share.version_id is not None))
    _check_shares(shares, versions)
    _check_note(change)
    before = newest_shares(session, tenant_id)
    if (before.number if before else 0) != base:
        raise _too_late(before.author.login if before else "")
    row = SystemPromptShare(
        tenant_id=tenant_id, number=base + 1, shares=[vars(share) for share in shares], author_id=change.author_id,
        note=change.note,
    )  # fmt: skip
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError as error:
        raise _too_late(gettext("somebody")) from error
    former = versions_by_id(session, (s.version_id for s in shares_of(before) if s.version_id is not None))
    record(
        session, change.login, "system_prompt.shares", f"system_prompt_share:{row.id}",
        {"number": base, "shares": told(shares_of(before), former)},
        {"number": row.number, "shares": told(shares, versions), "note": change.note, "tenant_id": tenant_id},
    )  # fmt: skip
    return row


def bring_back(
    session: Session, number: int, *, base: int, change: Change, tenant_id: int | None = None
) -> SystemPromptShare:
    """The shares of an earlier row, as a new one.

    Args:
        base: as of `set_shares`.

    Raises:
        NotFound: there was no such row.
        InvalidInput, Conflict: as `set_shares`.
    """
    former = session.scalar(_shares(tenant_id).where(SystemPromptShare.number == number))
    if former is None:
        raise NotFound(gettext("there were no shares of number %(number)s", number=number))
    return set_shares(session, shares_of(former), base=base, change=change, tenant_id=tenant_id)


def told(shares: Iterable[Share], versions: dict[int, SystemPromptVersion]) -> dict[str, int]:
    """Shares in percent by the labels of their versions."""
    return {NONE if s.version_id is None else versions[s.version_id].label: s.percent for s in shares}


def _check_shares(shares: Sequence[Share], versions: dict[int, SystemPromptVersion]) -> None:
    total, ids = sum(share.percent for share in shares), [share.version_id for share in shares]
    if shares and total != 100:
        raise InvalidInput(gettext("the shares are %(total)s %% together; make them 100", total=total), param="shares")
    if any(not 0 < share.percent <= 100 for share in shares):
        raise InvalidInput(gettext("a share is a whole number from 1 to 100"), param="shares")
    if len(set(ids)) < len(ids):
        raise InvalidInput(gettext("a version is named twice; give it one share"), param="shares")
    if missing := [id_ for id_ in ids if id_ is not None and id_ not in versions]:
        raise InvalidInput(gettext("there is no system prompt %(name)r", name=missing[0]), param="shares")
    if len(shares) > MAX_SHARES:
        raise InvalidInput(gettext("at most %(most)s versions have a share at a time", most=MAX_SHARES), param="shares")


def _checked(text: str, most_tokens: int) -> str:
    """The text as it is stored: as it was typed, but for lone surrogates and the space around it."""
    said = plain_text(text).strip()
    if not said:
        raise InvalidInput(gettext("write what the model is to be told"), param="text")
    if len(said) > MAX_TEXT:
        raise InvalidInput(
            gettext("the text has %(n)s characters; at most %(most)s fit", n=len(said), most=MAX_TEXT), param="text"
        )
    if (tokens := estimated_tokens(said)) > most_tokens // 2:
        raise InvalidInput(
            gettext(
                "the text has about %(n)s tokens, and %(most)s are taken of text and conversation together; leave the conversation half of them",
                n=tokens, most=most_tokens,
            ), param="text",
        )  # fmt: skip
    return said


def _check_note(change: Change) -> None:
    if not change.note:
        raise InvalidInput(gettext("say in a few words what is changed, and why"), param="note")


def _too_late(who: str) -> Conflict:
    return Conflict(
        gettext("%(who)s changed this after you had opened it; nothing was saved. Look at what is new, then try again", who=who),
        code="edit_conflict",
    )  # fmt: skip


def _add(
    session: Session,
    prompt: SystemPrompt,
    number: int,
    text: str,
    change: Change,
    former: SystemPromptVersion | None = None,
) -> SystemPromptVersion:
    version = SystemPromptVersion(
        system_prompt_id=prompt.id, system_prompt=prompt, version=number, text=text,
        sha256=hashlib.sha256(text.encode()).hexdigest(), author_id=change.author_id, note=change.note,
    )  # fmt: skip
    session.add(version)
    session.flush()
    record(
        session, change.login, "system_prompt.edit" if former else "system_prompt.create", f"system_prompt:{prompt.name}",
        {"version": former.version, "text": former.text} if former else None,
        {"version": number, "text": text, "note": change.note},
    )  # fmt: skip
    return version
