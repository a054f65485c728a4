"""What the page of a task shows, for the templates of all kinds.

In: an assignment and the fields typed so far (see `feedback.kinds.frame`). Out: a `TaskPage`.
"""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from sqlalchemy import select
from sqlalchemy.orm import Session

from access.models import Person
from core.errors import NotFound
from core.language import N_, gettext, retold
from feedback.assignment.leases import may_see
from feedback.assignment.shown import asked_in, load_shown
from feedback.blind import Blind
from feedback.formatting import formatted
from feedback.judgments import read_said, standing_judgments
from feedback.kinds import form_of
from feedback.kinds.frame import Fields, JudgmentForm, Said, Shown, every, first
from feedback.kinds.probe import MAX_TURNS
from feedback.models import Assignment, Completion, Judgment, Prompt, RuleVersion
from feedback.rules.store import active_rules

WHYS = (
    N_("seed prompt"), N_("a task like any other"), N_("own work shown again"), N_("a user did not like this reply"),
    N_("rewards differ by %(margin)s only"), N_("%(n)s people disagree"), N_("try the served policy"),
    N_("drawn evenly from everything there is to judge"), N_("two versions of the model answered"),
)  # fmt: skip
NOT_KEPT = {"csrf_token", "once", "shown_at", "supersedes"}


@dataclass(frozen=True)
class Reply:
    """One completion as shown, with what is typed about it."""

    number: int
    letter: str
    text: str
    formatted: Markup | None  # as Markdown, where it looks like that
    correction: str
    broken: dict[str, str]  # rule version id → quoted words


@dataclass(frozen=True)
class Turn:
    """One turn of the conversation before what is judged."""

    role: str
    text: str
    formatted: Markup | None  # as Markdown, where it looks like that


@dataclass(frozen=True)
class ProbeTurn:
    """One reply of the policy in a probe, with what was said before it and what is typed about it."""

    completion_id: str
    asked: str
    text: str
    formatted: Markup | None
    verdict: str
    span: str


@dataclass(frozen=True)
class Other:
    """What somebody else judged, in terms of what is shown here; for who settles a disagreement."""

    said: Said
    fields: Fields
    marks: list[tuple[str, str, str]]  # letter of the completion, title of the rule, verdict

    def first(self, name: str) -> str:
        """The first value of a field."""
        return first(self.fields, name)

    def every(self, name: str) -> list[str]:
        """All values of a field."""
        return every(self.fields, name)


@dataclass(frozen=True)
class TaskPage:
    """Everything that a task's template shows. No policy's name is in it."""

    shown: Shown
    form: type[JudgmentForm]
    fields: Fields
    conversation: list[Turn]
    replies: list[Reply]
    rules: list[RuleVersion]
    turns: list[ProbeTurn]
    others: list[Other]
    once: str
    shown_at: float
    supersedes_id: int | None

    @property
    def why(self) -> str:
        """Why this task was chosen, in the reader's language as far as it is told in words of ours."""
        return retold(self.shown.why, WHYS)

    def first(self, name: str) -> str:
        """The first value of a field."""
        return first(self.fields, name)

    def every(self, name: str) -> list[str]:
        """All values of a field."""
        return every(self.fields, name)


def build_page(session: Session, assignment: Assignment, fields: Fields, last: Judgment | None = None) -> TaskPage:
    """The page of an assignment, filled in with `fields`; with `last`, the page that judges it again."""
    shown = load_shown(session, assignment)
    replies = [
        Reply(
            number=n,
            letter=chr(ord("A") + n),
            text=item.text,
            formatted=formatted(item.text),
            correction=first(fields, f"correction-{n}") or item.text,
            broken={number: first(fields, f"span-{n}-{number}") for number in every(fields, f"broken-{n}")},
        )
        for n, item in enumerate(shown.items)
    ]
    return TaskPage(
        shown=shown,
        form=form_of(shown.kind),
        fields=fields,
        conversation=[Turn(turn["role"], turn["content"], formatted(turn["content"])) for turn in shown.messages],
        replies=replies,
        rules=active_rules(session, shown.contents.tenant_id),
        turns=_turns(session, shown, fields) if shown.kind == "probe" else [],
        others=others_of(session, shown),
        once=secrets.token_hex(12),
        shown_at=time.time(),
        supersedes_id=None if last is None else last.id,
    )


def others_of(session: Session, shown: Shown) -> list[Other]:
    """The judgments that a reviewer is asked to settle; nobody else sees any."""
    if shown.pool != "adjudication" or shown.about_id is None:
        return []
    if not may_see(session.get_one(Person, shown.annotator_id).role, shown.pool):
        return []
    acts = standing_judgments(session, shown.about_id)
    form = form_of(shown.kind)
    titles = {row.id: row.title for row in session.execute(select(RuleVersion.id, RuleVersion.title))}
    return [
        Other(said, form.to_fields(said, shown), _marks(said, shown, titles)) for said in read_said(session, acts)
    ]  # no names: it is the judgment that is settled


def _marks(said: Said, shown: Shown, titles: dict[int, str]) -> list[tuple[str, str, str]]:
    found = []
    for finding in said.findings:
        number = shown.number_of_completion(finding.completion_id)
        if number is not None:
            found.append((chr(ord("A") + number), titles[finding.rule_version_id], finding.verdict))
    return found


def fields_of(session: Session, judgment: Judgment, assignment: Assignment) -> dict[str, list[str]]:
    """The fields that led to a judgment, in the order that was shown."""
    shown = load_shown(session, assignment)
    return form_of(shown.kind).to_fields(read_said(session, [judgment])[0], shown)


def kept_fields(fields: Mapping[str, Any]) -> dict[str, list[str]]:
    """What of a posted form or of a draft is worth keeping: lists of strings, without tokens."""
    return {name: every(fields, name) for name in fields if name not in NOT_KEPT}


def probe_turn(session: Session, shown: Shown, completion_id: str) -> ProbeTurn:
    """One reply that the model gave during a probe.

    Raises:
        NotFound: no such reply since the task was handed out.
    """
    found = _turns(session, shown, {"turn": [completion_id]})
    if not found:
        raise NotFound(gettext("no reply of this probe is %(completion_id)r", completion_id=completion_id))
    return found[0]


def _turns(session: Session, shown: Shown, fields: Fields) -> list[ProbeTurn]:
    """The conversation of a probe so far, from the completions that the draft names."""
    ids = every(fields, "turn")[:MAX_TURNS]
    rows = session.execute(
        select(Completion.id, Completion.text, Prompt.messages)
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .where(Completion.id.in_(ids), *asked_in(shown))
    )
    found = {row.id: row for row in rows}
    return [
        ProbeTurn(
            completion_id=number,
            asked=found[number].messages[-1]["content"],
            text=(blind := Blind.of(found[number].text)).text,
            formatted=formatted(blind.text),
            verdict=first(fields, f"verdict-{number}"),
            span=blind.hide(first(fields, f"span-{number}")),
        )
        for number in ids
        if number in found
    ]
