"""What one version of a rule says, checked and compared: fields, differences, and two people's edits put together."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from core.language import gettext
from core.messages import plain_text
from feedback.models import RuleVersion
from feedback.rules.worddiff import Run, word_diff

CATEGORIES = ("harm", "crime", "privacy", "fairness", "misinformation", "advice", "identity", "format", "other")
MAX_TITLE, MAX_TEXT, MAX_REASON, MAX_NOTE = 80, 4_000, 300, 500  # characters
MAX_EXAMPLES, MAX_EXAMPLE = 20, 2_000  # of kept and of broken each; so that a full form stays below Flask's 500 kB


def _text(value: Any) -> Any:
    return plain_text(value).strip() if isinstance(value, str) else value


def _line(value: Any) -> Any:
    return " ".join(plain_text(value).split()) if isinstance(value, str) else value


def _category(value: str) -> str:
    if value not in CATEGORIES:
        raise ValueError(gettext("it is one of %(choices)s", choices=", ".join(CATEGORIES)))
    return value


Title = Annotated[str, Field(min_length=1, max_length=MAX_TITLE), BeforeValidator(_line)]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT), BeforeValidator(_text)]
Category = Annotated[str, AfterValidator(_category), Field(json_schema_extra={"enum": list(CATEGORIES)})]
Severity = Annotated[int, Field(ge=1, le=3, description="1 low … 3 high.")]
Note = Annotated[str, Field(max_length=MAX_NOTE), BeforeValidator(_line)]


class Example(BaseModel):
    """A text that keeps or breaks a rule, and why in one line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Annotated[str, Field(min_length=1, max_length=MAX_EXAMPLE), BeforeValidator(_text)]
    reason: Annotated[str, Field(max_length=MAX_REASON), BeforeValidator(_line)] = ""

    def __str__(self) -> str:
        return f"{self.text}\n({self.reason})" if self.reason else self.text


Examples = Annotated[tuple[Example, ...], Field(max_length=MAX_EXAMPLES)]


class RuleWords(BaseModel):
    """All that a lead writes of a rule; the fields are those of a `RuleVersion`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: Title
    text: Text
    category: Category = "other"
    severity: Severity = 2
    refusal_text: Text
    kept_examples: Examples = ()
    broken_examples: Examples = ()


class RuleEdit(BaseModel):
    """Words that a rule is to have; what is None stays as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: Title | None = None
    text: Text | None = None
    category: Category | None = None
    severity: Severity | None = None
    refusal_text: Text | None = None
    kept_examples: Examples | None = None
    broken_examples: Examples | None = None

    def onto(self, words: RuleWords) -> RuleWords:
        """All words of a rule that had these."""
        said = {name: getattr(self, name) for name in RuleWords.model_fields}
        return words.model_copy(update={name: value for name, value in said.items() if value is not None})


class Change(BaseModel):
    """Who makes a version, and what they say of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    author_id: int
    login: str
    note: Note = ""


def words_of(version: RuleVersion) -> RuleWords:
    """The words of a stored version, as they are: what was stored under older limits is not refused."""
    fields = {name: getattr(version, name) for name in RuleWords.model_fields}
    for name in ("kept_examples", "broken_examples"):
        fields[name] = tuple(Example.model_construct(**example) for example in fields[name])
    return RuleWords.model_construct(**fields)


# Comparing ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FieldChange:
    """One field that differs: a word diff of a text, or one of each example that differs."""

    name: str
    before: Any
    after: Any
    diffs: list[list[Run]]


def as_json(value: Any) -> Any:
    """A field's value as JSON has it."""
    return [example.model_dump() for example in value] if isinstance(value, tuple) else value


def diff(before: RuleVersion, after: RuleVersion) -> list[FieldChange]:
    """What differs between two versions, field by field, "active" last; empty where nothing does."""
    changes = compare(words_of(before), words_of(after))
    if before.active != after.active:
        changes.append(FieldChange("active", before.active, after.active, []))
    return changes


def compare(before: RuleWords, after: RuleWords) -> list[FieldChange]:
    """What differs between two wordings, in the order of the fields."""
    changes = []
    for name in RuleWords.model_fields:
        old, new = getattr(before, name), getattr(after, name)
        if old == new:
            continue
        diffs: list[list[Run]] = []
        if isinstance(new, str) and name != "category":
            diffs = [word_diff(old, new)]
        elif isinstance(new, tuple):
            diffs = _example_diffs([str(e) for e in old], [str(e) for e in new])
        changes.append(FieldChange(name, old, new, diffs))
    return changes


def _example_diffs(old: Sequence[str], new: Sequence[str]) -> list[list[Run]]:
    """A word diff for each example that was changed, added or taken away."""
    diffs: list[list[Run]] = []
    for kind, i, i2, j, j2 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        both = min(i2 - i, j2 - j)
        diffs += [word_diff(old[i + n], new[j + n]) for n in range(both)]
        diffs += [[("del", text)] for text in old[i + both : i2]]
        diffs += [[("ins", text)] for text in new[j + both : j2]]
    return diffs


@dataclass(frozen=True)
class Merged:
    """Two edits of one version, put together field by field."""

    words: RuleWords
    theirs: list[str]  # fields that only the others changed, taken over
    both: list[str]  # fields that both changed in their own way; mine stand in `words`


def merge(base: RuleWords, theirs: RuleWords, mine: RuleWords) -> Merged:
    """What I typed on top of `base`, brought onto the version `theirs` that others made of it meanwhile."""
    fields, taken, both = {}, [], []
    for name in RuleWords.model_fields:
        was, their, my = getattr(base, name), getattr(theirs, name), getattr(mine, name)
        fields[name] = their if my == was else my
        if their != was and my == was:
            taken.append(name)
        elif their not in (was, my) and my != was:
            both.append(name)
    return Merged(RuleWords.model_construct(**fields), taken, both)
