"""What `/api/v1/people` and `/api/v1/invitations` take and answer with."""

import datetime as dt
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from access.invitations import MAX_NOTE
from core.messages import plain_text
from feedback.api.schemas import Answer, Query
from feedback.assignment.annotators import MAX_REASON

Role = Literal["annotator", "reviewer", "lead", "admin"]


class PersonAnswer(Answer):
    """Somebody who signs in or judges."""

    id: int
    login: str
    role: Role
    scripted: bool
    active: bool
    standing: Literal["good", "warned", "paused"] = Field(description="As an annotator.")
    created_at: dt.datetime


class PersonPage(Answer):
    """A page of people."""

    data: list[PersonAnswer]
    next_after: int | None


class PersonDetail(PersonAnswer):
    """A person, as far as others look after them."""

    standing_why: str | None
    sessions: int = Field(description="Browsers that they are signed in with; 50 are counted.")
    why_not: str | None = Field(description="Why the caller may not change their role and access; null where they may.")


class PersonBody(Query):
    """What a person is to be."""

    role: Role | None = None
    active: bool | None = Field(None, description="Whether they may come in, in person and by their keys.")

    @model_validator(mode="after")
    def _says_something(self) -> "PersonBody":
        if self.role is None and self.active is None:
            raise ValueError("say what is to change: role, active or both")
        return self


class EndedAnswer(Answer):
    """Sessions that were ended."""

    ended: int


class StandingBody(Query):
    """Why somebody is paused, or may go on."""

    reason: Annotated[str, AfterValidator(plain_text)] = Field(
        "", max_length=MAX_REASON, description="The annotator reads it."
    )


class InvitationBody(Query):
    """Whom a link is to let in."""

    role: Role
    note: Annotated[str, AfterValidator(plain_text)] = Field(
        "", max_length=MAX_NOTE, description="For whom it is; they do not see it."
    )


class InvitationAnswer(Answer):
    """A link that lets somebody in once: somebody new, or a person who needs a new password."""

    id: int
    state: Literal["open", "used", "revoked", "expired"]
    role: Role | None = Field(description="Of somebody new.")
    person_id: int | None = Field(description="Whose password it sets.")
    note: str
    made_by: str
    created_at: dt.datetime
    expires_at: dt.datetime
    used_at: dt.datetime | None
    used_by_id: int | None
    revoked_at: dt.datetime | None


class InvitationPage(Answer):
    """A page of links."""

    data: list[InvitationAnswer]
    next_after: int | None


class InvitationMade(InvitationAnswer):
    """A new link, which is shown this once."""

    token: str = Field(description="The last part of the link.")
    link: str = Field(description="What to hand to them, under the address that this call was sent to.")
