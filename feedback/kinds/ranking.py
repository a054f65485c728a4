"""Ranking: three to six completions from best to worst, equal ones together, or all of them wrong."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from core.errors import InvalidInput
from core.language import gettext
from feedback.kinds.frame import Fields, ItemsForm, Said, Shown, expect, first, item_fields, read_details, validated


class RankingForm(ItemsForm):
    """Ranks of what was shown. Known answers: `{"best": [0, 2]}`, the positions that may stand first, or
    `{"all_wrong": true}`."""

    KIND: ClassVar[str] = "ranking"
    ITEMS: ClassVar[range] = range(3, 7)

    kind: Literal["ranking"] = "ranking"
    ranks: list[int] | None = Field(
        None,
        min_length=3,
        max_length=6,
        description="Rank of each completion as shown, 1 the best; equal ranks are ties.",
    )
    all_wrong: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ranks is None and not self.all_wrong:
            raise ValueError(gettext("give ranks, or all_wrong"))
        if self.ranks is not None and not all(1 <= rank <= len(self.ranks) for rank in self.ranks):
            raise ValueError(gettext("ranks go from 1 to the number of completions"))
        return self

    def said(self, shown: Shown) -> Said:
        if self.ranks is not None and len(self.ranks) != shown.n:
            raise InvalidInput(
                gettext("%(ranks)s ranks for %(n)s completions", ranks=len(self.ranks), n=shown.n), param="ranks"
            )
        ranks = None
        if self.ranks is not None:
            close = {rank: n for n, rank in enumerate(sorted(set(self.ranks)), 1)}  # 1, 3, 3 becomes 1, 2, 2
            by_position = {position: close[rank] for position, rank in zip(shown.order, self.ranks, strict=True)}
            ranks = [by_position[position] for position in range(shown.n)]
        return Said(choice="all_wrong" if self.all_wrong else None, answer={"ranks": ranks}, **self.details(shown))

    @classmethod
    def from_fields(cls, fields: Fields, shown: Shown) -> Self:
        given = [first(fields, f"rank-{n}") for n in range(shown.n)]
        all_wrong = first(fields, "all_wrong") == "yes"
        if not all_wrong and not all(given):
            missing = ", ".join(chr(ord("A") + n) for n, rank in enumerate(given) if not rank)
            raise InvalidInput(
                gettext(
                    "give every reply a place; still without one: %(missing)s (or mark all wrong: x)", missing=missing
                ),
                param="ranks",
            )
        ranks = given if all(given) else None
        return validated(cls, {"ranks": ranks, "all_wrong": all_wrong, **read_details(fields, shown)})

    @classmethod
    def to_fields(cls, said: Said, shown: Shown) -> dict[str, list[str]]:
        found = item_fields(said, shown)
        ranks: list[int] = (said.answer or {}).get("ranks") or []
        for n, position in enumerate(shown.order if ranks else ()):
            found.set(f"rank-{n}", ranks[position])
        if said.choice == "all_wrong":
            found.set("all_wrong", "yes")
        return found.fields

    @classmethod
    def passes(cls, said: Said, expected: Mapping[str, Any]) -> bool:
        if expected.get("all_wrong"):
            return said.choice == "all_wrong"
        best = _best(said)
        return said.choice != "all_wrong" and bool(best) and best <= set(expected["best"])

    @classmethod
    def check_expected(cls, expected: Mapping[str, Any], n: int) -> None:
        best = expected.get("best")
        if "all_wrong" in expected:
            expect(expected["all_wrong"] is True and len(expected) == 1, 'give {"all_wrong": true} alone')
            return
        known = isinstance(best, list) and best and set(best) <= set(range(n))
        expect(bool(known) and len(expected) == 1, f'give {{"best": [positions from 0 to {n - 1}]}}')

    @classmethod
    def disagree(cls, acts: Sequence[Said]) -> bool:
        wrong = {said.choice == "all_wrong" for said in acts}
        bests = [best for said in acts if (best := _best(said))]
        return len(wrong) > 1 or (len(bests) > 1 and not set.intersection(*bests))


def _best(said: Said) -> set[int]:
    ranks = (said.answer or {}).get("ranks") or []
    return {position for position, rank in enumerate(ranks) if rank == 1}
