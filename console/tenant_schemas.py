"""What `/api/v1/tenants` takes and answers with."""

import datetime as dt
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from access.tenants import MAX_DAYS, MAX_KEY, MAX_NAME, MAX_REQUESTS, MAX_TOKENS, MAX_VERSION, USAGE_DAYS
from core.messages import plain_text
from core.settings.serving import Consent
from feedback.api.schemas import Answer, Query

Days = Annotated[int, Field(ge=0, le=MAX_DAYS)]
Name = Annotated[str, AfterValidator(plain_text)]
Requests = Annotated[int, Field(ge=1, le=MAX_REQUESTS)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


class TenantChange(Query):
    """What is to change; what is left out stays, null takes a limit or the pin away."""

    name: Name = Field("", max_length=MAX_NAME)
    requests_per_minute: Requests | None = None
    tokens_per_day: Tokens | None = Field(None, description="Prompt and completion tokens of a day in UTC.")
    policy_version: str | None = Field(None, max_length=MAX_VERSION, description="Name of the version that answers.")
    consent: Consent | None = None
    retention_days: Days | None = None
    active: bool | None = Field(None, description="Whether its keys open anything.")

    @model_validator(mode="after")
    def _says_something(self) -> "TenantChange":
        if not self.model_fields_set:
            raise ValueError("say what is to change")
        return self


class TenantBody(Query):
    """A tenant to be made."""

    name: Name = Field(max_length=MAX_NAME)
    key: str = Field("", max_length=MAX_KEY, description="Its lasting name; made of the name where it is left out.")
    requests_per_minute: Requests | None = None
    tokens_per_day: Tokens | None = None
    policy_version: str | None = Field(None, max_length=MAX_VERSION)
    consent: Consent | None = Field(None, description="Of calls that do not say it; null: as the settings have it.")
    retention_days: Days | None = Field(
        None, description="How long texts that nobody judged are kept, 0 for ever; null: as the settings have it."
    )


class TenantAnswer(Answer):
    """A tenant, and under which terms its keys are let in; null is no limit, and no pin."""

    id: int
    key: str
    name: str
    active: bool
    requests_per_minute: int | None
    tokens_per_day: int | None
    policy_version: str | None
    consent: Consent | None
    retention_days: int | None
    created_at: dt.datetime


class TenantPage(Answer):
    """A page of tenants."""

    data: list[TenantAnswer]
    next_after: int | None


class UsageQuery(Query):
    """Which days."""

    days: int = Field(USAGE_DAYS, ge=1, le=366, description="The last so many, today included.")


class UsageDay(Answer):
    """What a tenant took on a day, in UTC."""

    day: dt.date
    requests: int
    prompt_tokens: int
    completion_tokens: int


class UsageAnswer(Answer):
    """What a tenant took, newest day first; days without a request are left out."""

    data: list[UsageDay]


class TenantKeyBody(Query):
    """A key to be made."""

    name: Name = Field(min_length=1, max_length=120)
    scopes: list[str] = Field(default_factory=lambda: ["chat", "feedback"], min_length=1, max_length=2)
    days: int | None = Field(None, ge=1, le=3650, description="How long it is good for; null: until it is revoked.")
    requests_per_minute: Requests | None = Field(None, description="Of this key alone, beside those of its tenant.")


class TenantKeyAnswer(Answer):
    """A key of a tenant."""

    id: int
    name: str
    prefix: str
    scopes: list[str]
    requests_per_minute: int | None
    created_at: dt.datetime
    expires_at: dt.datetime | None
    revoked_at: dt.datetime | None
    last_used_at: dt.datetime | None = Field(description="To the minute.")


class TenantKeyMade(TenantKeyAnswer):
    """A new key, which is shown this once."""

    secret: str = Field(description="What is sent as `Authorization: Bearer …`.")


class TenantKeyList(Answer):
    """A tenant's newest keys, 50 at most."""

    data: list[TenantKeyAnswer]
