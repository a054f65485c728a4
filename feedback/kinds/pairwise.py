"""Pairwise: which of two completions is better, in seven steps, or both are bad."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from core.errors import InvalidInput
from core.language import gettext
from feedback.kinds.frame import Fields, ItemsForm, Said, Shown, expect, first, item_fields, read_details, validated

SCALE: dict[str, tuple[str, int]] = {
    "1": ("left", 3),
    "2": ("left", 2),
    "3": ("left", 1),
    "4": ("tie", 0),
    "5": ("right", 1),
    "6": ("right", 2),
    "7": ("right", 3),
    "both_bad": ("both_bad", 0),
}
LETTERS = "ab"


class PairwiseForm(ItemsForm):
    """A pairwise judgment. Known answers: `{"choice": ["a", "tie"]}`, all that are right, a being the first position."""

    KIND: ClassVar[str] = "pairwise"
    ITEMS: ClassVar[range] = range(2, 3)

    kind: Literal["pairwise"] = "pairwise"
    choice: Literal["left", "right", "tie", "both_bad"]
    strength: int | None = Field(None, ge=0, le=3, description="1 slightly … 3 much better; 0 for a tie or both bad.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        preferred = self.choice in ("left", "right")
        if self.strength is None:
            object.__setattr__(self, "strength", 1 if preferred else 0)
        if preferred and self.strength == 0:
            raise ValueError(gettext("a preferred side needs a strength of 1, 2 or 3; send choice 'tie' for the same"))
        if not preferred and self.strength:
            raise ValueError(gettext("choice %(choice)r has strength 0", choice=self.choice))
        return self

    def said(self, shown: Shown) -> Said:
        choice: str = self.choice
        if choice in ("left", "right"):
            choice = LETTERS[shown.order[0 if choice == "left" else 1]]
        return Said(choice=choice, strength=self.strength, **self.details(shown))

    @classmethod
    def from_fields(cls, fields: Fields, shown: Shown) -> Self:
        scale = first(fields, "scale")
        if scale not in SCALE:
            raise InvalidInput(
                gettext("choose which reply is better (keys 1 to 7), or that both are bad (x)"), param="scale"
            )
        choice, strength = SCALE[scale]
        return validated(cls, {"choice": choice, "strength": strength, **read_details(fields, shown)})

    @classmethod
    def to_fields(cls, said: Said, shown: Shown) -> dict[str, list[str]]:
        found = item_fields(said, shown)
        choice = str(said.choice)
        if choice in LETTERS:
            choice = ("left", "right")[shown.number_of(LETTERS.index(choice))]
        found.set("scale", next(key for key, step in SCALE.items() if step == (choice, said.strength)))
        return found.fields

    @classmethod
    def passes(cls, said: Said, expected: Mapping[str, Any]) -> bool:
        return said.choice in expected["choice"]

    @classmethod
    def check_expected(cls, expected: Mapping[str, Any], n: int) -> None:
        right = expected.get("choice")
        known = isinstance(right, list) and right and set(right) <= {"a", "b", "tie", "both_bad"}
        expect(bool(known) and len(expected) == 1, 'give {"choice": [one or more of "a", "b", "tie", "both_bad"]}')

    @classmethod
    def disagree(cls, acts: Sequence[Said]) -> bool:
        return {"a", "b"} <= {said.choice for said in acts}
