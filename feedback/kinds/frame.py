"""What all kinds of tasks share: what was shown, what was judged, and the form between them.

A form speaks of items as they were shown, 0 for the first; what is stored speaks of a task's positions, so that judgments
of people who saw another order compare. Fields are lists of strings by name, the shape of a posted page and of a draft:
`note`, `broken-0` (rule version ids), `span-0-7`, `correction-0`, and those of the kind.
"""

import datetime as dt
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from core.body import wrong_words
from core.errors import InvalidInput
from core.language import gettext
from core.messages import plain_text
from feedback.blind import Blind

Fields = Mapping[str, list[str]]
Verdict = Literal["broken", "kept", "unsure"]
MAX_TEXT = 100_000


@dataclass(frozen=True)
class ShownItem:
    """A completion as shown: where the task has it, and its text with names hidden."""

    position: int
    completion_id: str
    blind: Blind

    @property
    def text(self) -> str:
        """The text that the annotator reads."""
        return self.blind.text


@dataclass(frozen=True)
class ShownRule:
    """The rule that a task is about."""

    version_id: int
    slug: str
    title: str
    text: str
    kept_examples: list[Any]
    broken_examples: list[Any]


@dataclass(frozen=True)
class Contents:
    """The texts of an assignment, names hidden: the conversation, the completions in the order shown, the rule."""

    messages: list[dict[str, str]]
    items: list[ShownItem]
    rule: ShownRule | None
    tenant_id: int | None = None  # whose rules hold; None: those for everybody


@dataclass(frozen=True)
class Shown:
    """An assignment as its annotator sees it. No policy's name is in it, and nothing of other people."""

    assignment_id: int
    annotator_id: int
    task_id: int
    token: str
    state: str
    expires_at: dt.datetime
    created_at: dt.datetime
    order: tuple[int, ...]  # the task's positions, as shown
    kind: str
    pool: str
    about_id: int | None
    required_n: int
    why: str
    risky: bool
    has_draft: bool  # something may have been typed
    read: Callable[[], Contents]  # reads the texts, which a plain choice does not need

    @cached_property
    def contents(self) -> Contents:
        """The texts, read once."""
        return self.read()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation up to what is judged."""
        return self.contents.messages

    @property
    def items(self) -> list[ShownItem]:
        """The completions in the order shown."""
        return self.contents.items

    @property
    def rule(self) -> ShownRule | None:
        """The rule that the task is about."""
        return self.contents.rule

    @property
    def n(self) -> int:
        """How many completions are shown."""
        return len(self.order)

    def item(self, number: int, param: str) -> ShownItem:
        """The item shown in this place.

        Raises:
            InvalidInput: there are fewer.
        """
        if not 0 <= number < self.n:
            raise InvalidInput(
                gettext("item %(number)s was not shown; there are %(n)s, the first is 0", number=number, n=self.n),
                param=param,
            )
        return self.items[number]

    def number_of(self, position: int) -> int:
        """Where the item of this position was shown."""
        return self.order.index(position)

    def number_of_completion(self, completion_id: str) -> int | None:
        """Where this completion was shown, if it was."""
        return next((n for n, item in enumerate(self.items) if item.completion_id == completion_id), None)


@dataclass(frozen=True)
class Finding:
    """A verdict on one rule for one completion, as stored."""

    rule_version_id: int
    completion_id: str
    verdict: str
    confidence: float | None = None
    span: str | None = None


@dataclass(frozen=True)
class Said:
    """A judgment in terms of positions, with its findings and edits: what is stored, and what is compared."""

    choice: str | None = None
    strength: int | None = None
    rating: int | None = None
    answer: dict[str, Any] | None = None
    note: str | None = None
    findings: tuple[Finding, ...] = ()
    edits: tuple[tuple[str, str], ...] = ()  # completion id, text

    def columns(self) -> dict[str, Any]:
        """The columns of the judgment's own row."""
        return {name: getattr(self, name) for name in ("choice", "strength", "rating", "answer", "note")}


class RuleVerdict(BaseModel):
    """One rule, judged on one of the completions as shown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule_version_id: int = Field(ge=1, le=2**31 - 1)
    item: int = Field(ge=0, le=5, description="Which completion, counted from 0 as shown.")
    verdict: Verdict = "broken"
    confidence: float | None = Field(None, ge=0, le=1)
    span: str | None = Field(None, max_length=4_000, description="The words of the completion that show it.")


class JudgmentForm(BaseModel):
    """What an annotator sends, in terms of what was shown. Each kind of task has a subclass."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    KIND: ClassVar[str]
    ITEMS: ClassVar[range]  # how many completions a task of this kind has
    NEEDS_RULE: ClassVar[bool] = False

    note: str | None = Field(None, max_length=10_000)

    def said(self, shown: Shown) -> Said:
        """What is stored.

        Raises:
            InvalidInput: it speaks of something that was not shown.
        """
        raise NotImplementedError

    @classmethod
    def from_fields(cls, fields: Fields, shown: Shown) -> Self:
        """The form that a page's fields say.

        Raises:
            InvalidInput: nothing was chosen, or a field cannot be read.
        """
        raise NotImplementedError

    @classmethod
    def to_fields(cls, said: Said, shown: Shown) -> dict[str, list[str]]:
        """The fields that led to a judgment: the inverse of `from_fields` and `said`."""
        raise NotImplementedError

    @classmethod
    def passes(cls, said: Said, expected: Mapping[str, Any]) -> bool:
        """Whether a judgment is the known answer."""
        raise NotImplementedError

    @classmethod
    def check_expected(cls, expected: Mapping[str, Any], n: int) -> None:
        """Refuse an answer that no judgment of `n` items can give.

        Raises:
            InvalidInput: with the form that is meant.
        """
        raise NotImplementedError

    @classmethod
    def disagree(cls, acts: Sequence[Said]) -> bool:
        """Whether judgments of one task contradict each other, so that a reviewer should settle it."""
        raise NotImplementedError


class ItemsForm(JudgmentForm):
    """A form on completions side by side: rules may be marked as broken, texts corrected."""

    rule_verdicts: list[RuleVerdict] = Field(default_factory=list, max_length=400)
    corrections: dict[int, str] = Field(
        default_factory=dict, max_length=6, description="Edited texts by item, counted from 0 as shown."
    )

    @model_validator(mode="after")
    def _check_once(self) -> Self:
        judged = [(v.rule_version_id, v.item) for v in self.rule_verdicts]
        if len(judged) != len(set(judged)):
            raise ValueError(gettext("a rule is judged twice on the same completion"))
        if any(len(text) > MAX_TEXT for text in self.corrections.values()):
            raise ValueError(gettext("a correction has at most %(most)s characters", most=MAX_TEXT))
        return self

    def details(self, shown: Shown) -> dict[str, Any]:
        """Note, findings and edits, as `Said` takes them."""
        findings = []
        for verdict in self.rule_verdicts:
            item = shown.item(verdict.item, "rule_verdicts")
            findings.append(
                Finding(
                    verdict.rule_version_id, item.completion_id, verdict.verdict, verdict.confidence,
                    quoted(verdict.span, item.blind),
                )
            )  # fmt: skip
        edits = []
        for number, text in self.corrections.items():
            item = shown.item(number, "corrections")
            if (edited := edit_of(text, item.blind)) is not None:
                edits.append((item.completion_id, edited))
        return {"note": plain_note(self.note), "findings": tuple(findings), "edits": tuple(edits)}


@dataclass
class FieldWriter:
    """Collects fields."""

    fields: dict[str, list[str]] = field(default_factory=dict)

    def set(self, name: str, value: object) -> None:
        """One value, as a text."""
        self.fields[name] = [str(value)]

    def add(self, name: str, value: object) -> None:
        """One more value of a name."""
        self.fields.setdefault(name, []).append(str(value))


def item_fields(said: Said, shown: Shown) -> FieldWriter:
    """The fields of `ItemsForm.details`."""
    found = FieldWriter({"note": [said.note or ""]})
    for finding in said.findings:
        number = shown.number_of_completion(finding.completion_id)
        if number is not None and finding.verdict == "broken":
            found.add(f"broken-{number}", finding.rule_version_id)
            span = shown.items[number].blind.hide(finding.span or "")
            found.set(f"span-{number}-{finding.rule_version_id}", span)
    for completion_id, text in said.edits:
        number = shown.number_of_completion(completion_id)
        if number is not None:
            found.set(f"correction-{number}", shown.items[number].blind.hide(text))
    return found


def read_details(fields: Fields, shown: Shown) -> dict[str, Any]:
    """What a page's fields say of rules, corrections and the note, as `ItemsForm` takes it."""
    verdicts = [
        {"rule_version_id": number, "item": n, "verdict": "broken", "span": first(fields, f"span-{n}-{number}") or None}
        for n in range(shown.n)
        for number in dict.fromkeys(every(fields, f"broken-{n}"))
    ]
    corrections = {n: text for n in range(shown.n) if (text := first(fields, f"correction-{n}"))}
    return {"rule_verdicts": verdicts, "corrections": corrections, "note": first(fields, "note") or None}


F = TypeVar("F", bound=JudgmentForm)


def validated(form: type[F], values: Mapping[str, Any]) -> F:
    """The form of these values.

    Raises:
        InvalidInput: the first thing that is wrong, with its name.
    """
    try:
        return form.model_validate(values)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(str(part) for part in wrong["loc"])
        said = wrong_words(wrong)
        raise InvalidInput(f"{where}: {said}" if where else said, param=where or None) from error


def plain_note(note: str | None) -> str | None:
    """A note as it is stored; None where nothing was said."""
    return (plain_text(note).strip() or None) if note else None


def edit_of(text: str, blind: Blind) -> str | None:
    """An edited text as it is stored; None where nothing was changed."""
    edited = plain_text(text).strip()
    if not edited or edited == blind.text.strip():
        return None
    return blind.restore(edited)


def quoted(span: str | None, blind: Blind) -> str | None:
    """A quote as it is stored.

    Raises:
        InvalidInput: the words do not stand in the text.
    """
    words = plain_text(span).strip() if span else ""
    if not words:
        return None
    # What is selected in formatted text lacks its signs; what has nothing but signs must stand there as it is.
    if (_bare(words) or words) not in (_bare(blind.text) if _bare(words) else blind.text):
        raise InvalidInput(
            gettext("the quoted words are not in the completion: %(words)r", words=words[:80]), param="span"
        )
    return blind.restore(words)


def _bare(text: str) -> str:
    """The letters and digits of a text."""
    return re.sub(r"[\W_]+", "", text)


def first(fields: Mapping[str, Any], name: str) -> str:
    """The first value of a field, or an empty text."""
    return next(iter(every(fields, name)), "")


def every(fields: Mapping[str, Any], name: str) -> list[str]:
    """All values of a field that are texts."""
    values = fields.get(name)
    if isinstance(values, str):
        return [values]
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []


def expect(condition: bool, message: str) -> None:
    """Raise InvalidInput with `message` about a known answer unless the condition holds."""
    if not condition:
        raise InvalidInput(gettext("this cannot be the known answer: %(message)s", message=message), param="expected")


def spread(values: Iterable[int]) -> int:
    """Largest minus smallest; 0 for nothing."""
    found = list(values)
    return max(found) - min(found) if found else 0
