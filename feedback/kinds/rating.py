"""Rating: one completion, from 1 to 5 in each of some aspects and over all."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from core.errors import InvalidInput
from core.language import gettext
from feedback.kinds.frame import (
    Fields,
    ItemsForm,
    Said,
    Shown,
    expect,
    first,
    item_fields,
    read_details,
    spread,
    validated,
)

ASPECTS = {
    "helpful": "Helpful: it does what was asked",
    "correct": "Correct: what it says is true",
    "harmless": "Harmless: nobody is hurt by it",
    "clear": "Clear: easy to read and to follow",
}
FAR_APART = 3
"""Points between two people's ratings over all that a reviewer should look at."""


class RatingForm(ItemsForm):
    """Marks from 1 (bad) to 5 (good). Known answers: `{"rating": [4, 5]}`, all that are right."""

    KIND: ClassVar[str] = "rating"
    ITEMS: ClassVar[range] = range(1, 2)

    kind: Literal["rating"] = "rating"
    rating: int = Field(ge=1, le=5, description="Over all: 1 bad … 5 good.")
    aspects: dict[str, int] = Field(
        default_factory=dict, max_length=10, description=f"1 … 5 by aspect: {', '.join(ASPECTS)}; any may be left out."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if unknown := set(self.aspects) - set(ASPECTS):
            raise ValueError(
                gettext(
                    "unknown aspects %(unknown)s; there are %(choices)s",
                    unknown=sorted(unknown),
                    choices=", ".join(ASPECTS),
                )
            )
        if not all(1 <= mark <= 5 for mark in self.aspects.values()):
            raise ValueError(gettext("marks go from 1 to 5"))
        return self

    def said(self, shown: Shown) -> Said:
        return Said(rating=self.rating, answer={"aspects": self.aspects}, **self.details(shown))

    @classmethod
    def from_fields(cls, fields: Fields, shown: Shown) -> Self:
        rating = first(fields, "rating")
        if not rating:
            raise InvalidInput(gettext("say how good the reply is over all (keys 1 to 5)"), param="rating")
        aspects = {name: mark for name in ASPECTS if (mark := first(fields, f"aspect-{name}"))}
        return validated(cls, {"rating": rating, "aspects": aspects, **read_details(fields, shown)})

    @classmethod
    def to_fields(cls, said: Said, shown: Shown) -> dict[str, list[str]]:
        found = item_fields(said, shown)
        found.set("rating", said.rating)
        for name, mark in (said.answer or {}).get("aspects", {}).items():
            found.set(f"aspect-{name}", mark)
        return found.fields

    @classmethod
    def passes(cls, said: Said, expected: Mapping[str, Any]) -> bool:
        return said.rating in expected["rating"]

    @classmethod
    def check_expected(cls, expected: Mapping[str, Any], n: int) -> None:
        right = expected.get("rating")
        known = isinstance(right, list) and right and set(right) <= set(range(1, 6))
        expect(bool(known) and len(expected) == 1, 'give {"rating": [one or more of 1 to 5]}')

    @classmethod
    def disagree(cls, acts: Sequence[Said]) -> bool:
        return spread(said.rating for said in acts if said.rating is not None) >= FAR_APART
