"""Correction: one completion, edited into what it should have been, or found to be fine."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from core.errors import InvalidInput
from core.language import gettext
from feedback.kinds.frame import Fields, ItemsForm, Said, Shown, expect, first, item_fields, read_details, validated


class CorrectionForm(ItemsForm):
    """An edited text. Known answers: `{"fine": true}` or `{"fine": false}`, whether nothing has to be changed."""

    KIND: ClassVar[str] = "correction"
    ITEMS: ClassVar[range] = range(1, 2)

    kind: Literal["correction"] = "correction"
    fine: bool = Field(False, description="Nothing has to be changed.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fine == bool(self.corrections.get(0, "").strip()):
            raise ValueError(gettext("send either the edited text, as corrections[0], or fine"))
        return self

    def said(self, shown: Shown) -> Said:
        details = self.details(shown)
        if not self.fine and not details["edits"]:
            raise InvalidInput(
                gettext("the correction equals the completion; edit it, or say that it is fine"), param="corrections"
            )
        return Said(choice="fine" if self.fine else None, **details)

    @classmethod
    def from_fields(cls, fields: Fields, shown: Shown) -> Self:
        values = read_details(fields, shown)
        if first(fields, "fine") == "yes":
            values["corrections"] = {}
        elif (text := values["corrections"].get(0, "").strip()) in ("", shown.items[0].text.strip()):
            raise InvalidInput(
                gettext("nothing is changed; edit the reply (e), or say that it is fine (g)")
                if text
                else gettext("the text is empty; edit the reply (e), or say that it is fine (g)"),
                param="correction-0",
            )
        return validated(cls, {"fine": first(fields, "fine") == "yes", **values})

    @classmethod
    def to_fields(cls, said: Said, shown: Shown) -> dict[str, list[str]]:
        found = item_fields(said, shown)
        if said.choice == "fine":
            found.set("fine", "yes")
        return found.fields

    @classmethod
    def passes(cls, said: Said, expected: Mapping[str, Any]) -> bool:
        return bool((said.choice == "fine") == expected["fine"])

    @classmethod
    def check_expected(cls, expected: Mapping[str, Any], n: int) -> None:
        expect(isinstance(expected.get("fine"), bool) and len(expected) == 1, 'give {"fine": true} or {"fine": false}')

    @classmethod
    def disagree(cls, acts: Sequence[Said]) -> bool:
        return len({said.choice == "fine" for said in acts}) > 1
