"""Kinds of tasks, one module each: what a judgment of it says, and how a page's fields become one and back."""

from typing import Annotated

from pydantic import Field

from core.errors import InvalidInput
from core.language import gettext
from feedback.kinds.correction import CorrectionForm
from feedback.kinds.frame import JudgmentForm
from feedback.kinds.pairwise import PairwiseForm
from feedback.kinds.probe import ProbeForm
from feedback.kinds.ranking import RankingForm
from feedback.kinds.rating import RatingForm
from feedback.kinds.rule_check import RuleCheckForm

AnyForm = Annotated[
    PairwiseForm | RankingForm | RatingForm | RuleCheckForm | CorrectionForm | ProbeForm, Field(discriminator="kind")
]
"""A judgment of any kind, told apart by its `kind`."""

FORMS: dict[str, type[JudgmentForm]] = {
    form.KIND: form for form in (PairwiseForm, RankingForm, RatingForm, RuleCheckForm, CorrectionForm, ProbeForm)
}


def form_of(kind: str) -> type[JudgmentForm]:
    """The form of a kind of task.

    Raises:
        InvalidInput: there is no such kind.
    """
    if kind not in FORMS:
        raise InvalidInput(
            gettext("kind is %(kind)r; it is one of %(choices)s", kind=kind, choices=", ".join(FORMS)), param="kind"
        )
    return FORMS[kind]
