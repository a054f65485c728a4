"""Settings of people's work and access: assignment, care, gold, quality, sign-in."""

from typing import Literal

from pydantic import Field

from core.settings.groups import SettingsGroup


class AssignmentSettings(SettingsGroup):
    """Which task an annotator gets next. Shares are in proportion to each other; canary pairs come before them all."""

    informative: float = Field(
        0.6, ge=0, description="Share of tasks that should teach most: large disagreement or small margin of rewards."
    )
    uniform: float = Field(
        0.2, ge=0, description="Share of tasks drawn from everything alike: unbiased evaluation data."
    )
    flagged: float = Field(0.1, ge=0, description="Share of tasks that users flagged.")
    gold: float = Field(0.05, ge=0, description="Share of tasks with a known answer, as far as there are any.")
    repeat: float = Field(0.05, ge=0, description="Share of own earlier work shown again with its sides swapped.")
    repeat_after: int = Field(20, ge=0, description="So many of one's newest tasks are too fresh to be repeated.")
    risky_per_day: int = Field(
        200, ge=0, description="Tasks with upsetting text that one person gets in a day (UTC); 0: no limit."
    )
    adjudicate: bool = Field(
        True, description="Judgments of a task that contradict each other make a task for a reviewer to settle."
    )

    def weights(self) -> dict[str, float]:
        """The share of each pool, by its name."""
        return self.model_dump(include={"informative", "uniform", "flagged", "gold", "repeat"})


class CareSettings(SettingsGroup):
    """What annotators who read upsetting text are offered."""

    break_after_min: float = Field(50, ge=0, description="Minutes of work after which a break is proposed; 0: never.")
    help_url: str = Field(
        "", description="Where annotators find somebody to talk to; a link on every task that may upset."
    )
    help_text: str = Field(
        "Reading such texts all day is hard. Talk to your lead, take a break, or choose other topics.",
        description="Words beside that link.",
    )


class GoldSettings(SettingsGroup):
    """What follows from failing tasks with known answers. Of each annotator the newest results count."""

    window: int = Field(20, ge=1, description="Newest results that count.")
    least: int = Field(5, ge=1, description="Results before anything follows.")
    warn_below: float = Field(
        0.75, ge=0, le=1, description="Share of right answers below which the annotator is warned."
    )
    pause_below: float = Field(
        0.6,
        ge=0,
        le=1,
        description="Share of those since the warning below which they get no more tasks until a lead says so.",
    )
    after_warning: int = Field(5, ge=1, description="Results after a warning before a pause, or the warning's end.")
    skips_free: int = Field(
        4, ge=0, description="Tasks with known answers, of those in the window, that one may skip; more count as wrong."
    )


class OidcSettings(SettingsGroup):
    """Sign-in by an OpenID Connect provider; off while `issuer` is empty."""

    issuer: str = Field(
        "",
        description="The provider's issuer URL, or its discovery document's (`…/.well-known/openid-configuration`).",
    )
    client_id: str = Field("", description="The client that Dunnock is registered as.")
    client_secret: str = Field("", description="Its secret; empty for a public client, which has PKCE alone.")
    scopes: str = Field("openid profile email", description="What is asked for, `openid` among it.")
    label: str = Field("Sign in with your organisation", description="The words on the button.")
    people: Literal["known", "everybody"] = Field(
        "known",
        description="`known` lets in those who were invited or linked their account; `everybody` makes a person of whoever the provider vouches for.",
    )
    email_domains: list[str] = Field(
        [], description="JSON list; only people with a verified address of one of these domains are let in. Empty: all."
    )
    trust_email: bool = Field(
        False, description="Count addresses as verified where the provider does not say whether they are."
    )
    role_claim: str = Field(
        "",
        description="The claim that `roles` looks at, with dots for nested ones, e.g. `groups` or `realm_access.roles`.",
    )
    roles: dict[str, Literal["annotator", "reviewer", "lead", "admin"]] = Field(
        {},
        description="JSON object from the claim's values to roles; the highest counts, anew at each sign-in. Empty: roles are given here.",
    )
    default_role: Literal["annotator", "reviewer", "lead", "admin", "refuse"] = Field(
        "annotator", description="The role where no value is mapped, and of people who are made; `refuse` lets none in."
    )
    timeout_s: float = Field(10.0, gt=0, description="Longest wait for an answer of the provider.")

    @property
    def discovery_url(self) -> str:
        """Where the provider's discovery document lies."""
        return f"{self.issuer_url}/.well-known/openid-configuration"

    @property
    def issuer_url(self) -> str:
        """The issuer without the path of the discovery document."""
        return self.issuer.removesuffix("/.well-known/openid-configuration").rstrip("/")


class QualitySettings(SettingsGroup):
    """What the pages about quality look at."""

    fast_chars_per_s: float = Field(
        60, gt=0, description="A judgment that comes sooner than its texts at so many characters a second is too fast."
    )
    fast_floor_s: float = Field(2, ge=0, description="And so is one that comes within so many seconds, however short.")
    newest_tasks: int = Field(
        2000, ge=10, description="Of tasks that several people judged, so many of the newest are compared."
    )
    newest_judgments: int = Field(
        500,
        ge=1,
        description="Of each annotator's judgments, so many of the newest tell their times, sides and repeats.",
    )
