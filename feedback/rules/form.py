"""The editor's form: what stands in its fields, as typed, and the words of a rule that come of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from feedback.rules.words import MAX_EXAMPLES, RuleWords

Fields = Mapping[str, Sequence[str]]
SIDES = ("kept", "broken")


@dataclass
class ExampleFields:
    """One example as typed."""

    text: str = ""
    reason: str = ""


@dataclass
class RuleForm:
    """The editor's fields. `base` is the number of the version that they were made from, 0 for a new rule."""

    base: int = 0
    title: str = ""
    text: str = ""
    category: str = "other"
    severity: str = "2"
    refusal_text: str = ""
    note: str = ""
    kept: list[ExampleFields] = field(default_factory=list)
    broken: list[ExampleFields] = field(default_factory=list)
    tenant: str = ""  # of a new rule: the key of the tenant that it is for; empty: all

    @classmethod
    def of(cls, words: RuleWords, base: int, note: str = "") -> Self:
        """The fields of a version that is to be edited."""
        kept, broken = (
            [ExampleFields(e.text, e.reason) for e in examples]
            for examples in (words.kept_examples, words.broken_examples)
        )
        plain = (words.title, words.text, words.category, str(words.severity), words.refusal_text)
        return cls(base, *plain, note, kept, broken)

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """The fields as they were sent; what is missing is empty, and examples beyond one too many are not read."""

        def one(name: str) -> str:
            return next(iter(fields.get(name, ())), "")

        def examples(side: str) -> list[ExampleFields]:
            texts, reasons = fields.get(f"{side}_text", ()), fields.get(f"{side}_reason", ())
            pairs = list(zip(texts, [*reasons, *[""] * len(texts)], strict=False))
            return [ExampleFields(text, reason) for text, reason in pairs[: MAX_EXAMPLES + 1]]

        base = one("base")
        return cls(
            base=int(base) if base.isdecimal() and len(base) < 10 else 0,
            title=one("title"),
            text=one("text"),
            category=one("category"),
            severity=one("severity"),
            refusal_text=one("refusal_text"),
            note=one("note"),
            kept=examples("kept"),
            broken=examples("broken"),
            tenant=one("tenant"),
        )

    def change_examples(self, act: str) -> bool:
        """Do what a button of the form says without saving: "add-kept", "drop-broken-2". False where it says no such thing."""
        verb, _, rest = act.partition("-")
        side, _, number = rest.partition("-")
        if verb not in ("add", "drop") or side not in SIDES:
            return False
        examples: list[ExampleFields] = getattr(self, side)
        if verb == "add" and len(examples) < MAX_EXAMPLES:
            examples.append(ExampleFields())
        elif verb == "drop" and number.isdecimal() and int(number) < len(examples):
            del examples[int(number)]
        return True

    def words(self) -> RuleWords:
        """The words that were typed; examples that were left empty are dropped from the form too.

        Raises:
            pydantic.ValidationError: they are not those of a rule; its places are named as in `RuleWords`.
        """
        for side in SIDES:
            setattr(self, side, [e for e in getattr(self, side) if e.text.strip() or e.reason.strip()])
        return RuleWords(
            title=self.title,
            text=self.text,
            category=self.category,
            severity=int(self.severity) if self.severity in ("1", "2", "3") else 0,
            refusal_text=self.refusal_text,
            kept_examples=tuple({"text": e.text, "reason": e.reason} for e in self.kept),
            broken_examples=tuple({"text": e.text, "reason": e.reason} for e in self.broken),
        )
