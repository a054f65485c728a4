"""Tables of what is judged and of the judgments.

Judgments are append-only: a changed mind is a new row that names the one it supersedes.
"""

import datetime as dt
import random
import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import JSON, CheckConstraint, ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from access.models import Person
from core.db import Base, utcnow
from feedback.system_prompts.models import SystemPromptShare, SystemPromptVersion

LIVE = text("state = 'live'")
MADE = text("state <> 'cancelled'")
UNFINISHED = text("state IN ('live','expired')")
OPEN = text("state = 'live' AND taken < required_n")
ABOUT = text("about_id IS NOT NULL")
WAITING = text("state = 'waiting'")
OF_HOUSE = text("tenant_id IS NULL")
OF_TENANTS = text("tenant_id IS NOT NULL")
OF_USERS = text("user_key IS NOT NULL")
OF_SHARES = text("system_prompt_share_id IS NOT NULL")
KEPT = text("erased_at IS NULL AND source IN ('served','withheld','paired','sampled')")


def completion_id(kind: str = "chatcmpl") -> str:
    """A new public id of a completion, as the API returns it; `kind` as OpenAI has it."""
    return f"{kind}-{secrets.token_hex(12)}"


class Prompt(Base):
    """A conversation up to the turn that a policy is to write; equal conversations of one tenant, or of the house, are one
    row."""

    __tablename__ = "prompt"
    __table_args__ = (
        # Two: NULLs differ from each other in unique indexes of both databases.
        Index("uq_prompt_house", "messages_sha256", unique=True, sqlite_where=OF_HOUSE, postgresql_where=OF_HOUSE),
        Index(
            "uq_prompt_tenant", "tenant_id", "messages_sha256",
            unique=True, sqlite_where=OF_TENANTS, postgresql_where=OF_TENANTS,
        ),
    )  # fmt: skip

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[int | None] = mapped_column(ForeignKey("tenant.id"))  # None: the house's own
    messages_sha256: Mapped[str] = mapped_column(String(64))
    messages: Mapped[list[Any]]  # [{"role", "content"}, …]
    source: Mapped[str] = mapped_column(String(20))  # seed | served | import
    category: Mapped[str | None] = mapped_column(String(60))
    harmful: Mapped[bool | None]  # what the suite or a lead says of it; None where nobody said
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)


class Completion(Base):
    """A text for a prompt, and where it came from. Served ones name the policy version that wrote them."""

    __tablename__ = "completion"
    __table_args__ = (
        Index("ix_completion_tenant_id", "tenant_id", sqlite_where=OF_TENANTS, postgresql_where=OF_TENANTS),
        Index("ix_completion_user_key", "user_key", sqlite_where=OF_USERS, postgresql_where=OF_USERS),
        # What retention goes through: served texts that are still there.
        Index("ix_completion_kept", "created_at", sqlite_where=KEPT, postgresql_where=KEPT),
        # What versions of system prompts are compared by: replies whose version was drawn.
        Index(
            "ix_completion_system_prompt", "created_at", "system_prompt_version_id",
            sqlite_where=OF_SHARES, postgresql_where=OF_SHARES,
        ),
        CheckConstraint("consent IS NULL OR consent IN ('none','service','training')", name="consent"),
    )  # fmt: skip

    id: Mapped[str] = mapped_column(String(40), primary_key=True, default=completion_id)
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompt.id"), index=True)
    prompt: Mapped[Prompt] = relationship()
    tenant_id: Mapped[int | None] = mapped_column(ForeignKey("tenant.id"))  # its prompt's
    source: Mapped[str] = mapped_column(
        String(20)
    )  # served | withheld | paired | rollout | contrast | import | correction
    policy_version_id: Mapped[int | None] = mapped_column(ForeignKey("policy_version.id"), index=True)
    system_prompt_version_id: Mapped[int | None] = mapped_column(
        ForeignKey(SystemPromptVersion.id)
    )  # that it was given
    # The shares that it was drawn by, also where they drew none; None: nobody drew, or the caller chose.
    system_prompt_share_id: Mapped[int | None] = mapped_column(ForeignKey(SystemPromptShare.id))
    system_prompt_unit: Mapped[str | None] = mapped_column(String(16))  # who is drawn together: a keyed hash
    person_id: Mapped[int | None] = mapped_column(ForeignKey("person.id"))  # who asked for it in a chat, where known
    text: Mapped[str] = mapped_column(Text)
    finish_reason: Mapped[str | None] = mapped_column(String(20))
    sampling: Mapped[dict[str, Any] | None]
    prompt_tokens: Mapped[int | None]
    completion_tokens: Mapped[int | None]
    latency_s: Mapped[float | None]
    energy_j: Mapped[float | None]  # estimated, of the engine alone
    cached_from: Mapped[str | None] = mapped_column(String(40))  # the completion that this one repeats
    once: Mapped[str | None] = mapped_column(String(120), unique=True)  # idempotency: a re-run stage adds nothing
    consent: Mapped[str | None] = mapped_column(String(10))  # what it may be used for; None: nobody's who was asked
    user_key: Mapped[str | None] = mapped_column(String(64))  # whose prompt it answers: a keyed hash of the end user
    erased_at: Mapped[dt.datetime | None]  # when its text was taken away
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)


KINDS = ("pairwise", "ranking", "rating", "rule_check", "correction", "probe")
"""What can be asked; `feedback.kinds` has a module for each."""

POOLS = ("adjudication", "canary", "flagged", "informative", "uniform", "gold", "repeat")
"""Where tasks wait: disagreements for a reviewer to settle, canary pairs, what users flagged, what should teach most, an
unbiased sample of everything, tasks with a known answer, and an annotator's own earlier work shown again."""

UNLEARNT = ("gold", "repeat")
"""Pools whose judgments measure annotators and are not trained on."""


def _one_of(column: str, names: Sequence[str]) -> str:
    return f"{column} IN ({','.join(repr(name) for name in names)})"


class Task(Base):
    """A unit of annotation work, wanted `required_n` times.

    Its places are counted here: `taken` assignments work on it or are done, `done` of them are done. Whoever changes a
    count does so by a conditional UPDATE in the transaction that changes the assignment, and the database refuses more
    than `required_n`.
    """

    __tablename__ = "task"
    __table_args__ = (
        CheckConstraint("state IN ('live','done','cancelled')", name="state"),
        CheckConstraint(_one_of("kind", KINDS), name="kind"),
        CheckConstraint(_one_of("pool", POOLS), name="pool"),
        CheckConstraint("0 <= done AND done <= taken AND taken <= required_n", name="places"),
        Index("uq_task_source", "source", unique=True, sqlite_where=MADE, postgresql_where=MADE),
        # Read backwards, the order in which a pool's tasks are handed out; what is full or over is not in it.
        Index("ix_task_open", "pool", "taken", "priority", "rank", "id", sqlite_where=OPEN, postgresql_where=OPEN),
        Index("ix_task_state", "state", "pool"),
        Index("ix_task_about_id", "about_id", sqlite_where=ABOUT, postgresql_where=ABOUT),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    source: Mapped[str] = mapped_column(String(120))  # what it was made from, e.g. "cycle:3:prompt:17"
    prompt_id: Mapped[int | None] = mapped_column(ForeignKey("prompt.id"), index=True)  # a probe begins without one
    prompt: Mapped[Prompt | None] = relationship()
    rule_version_id: Mapped[int | None] = mapped_column(ForeignKey("rule_version.id"))  # rule check and probe
    about_id: Mapped[int | None] = mapped_column(ForeignKey("task.id"))  # what is settled or shown again
    items: Mapped[list["TaskItem"]] = relationship(order_by="TaskItem.position")
    required_n: Mapped[int] = mapped_column(default=1)
    taken: Mapped[int] = mapped_column(default=0)
    done: Mapped[int] = mapped_column(default=0)
    pool: Mapped[str] = mapped_column(String(12), default="uniform")
    priority: Mapped[int] = mapped_column(default=0)
    rank: Mapped[float] = mapped_column(default=random.random)  # within pool and priority, higher first
    category: Mapped[str | None] = mapped_column(String(60))  # the prompt's, so that topics can be passed over
    risky: Mapped[bool] = mapped_column(default=False)  # may upset: blurred until revealed, and capped per day
    why: Mapped[str] = mapped_column(String(60), default="seed prompt")
    state: Mapped[str] = mapped_column(String(10), default="live")
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)

    @property
    def completions(self) -> list[Completion]:
        """What is judged, in the order of the positions that judgments are stored by."""
        return [item.completion for item in self.items]


class TaskItem(Base):
    """A completion that a task asks about; its position is what judgments name it by."""

    __tablename__ = "task_item"

    task_id: Mapped[int] = mapped_column(ForeignKey("task.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    completion_id: Mapped[str] = mapped_column(ForeignKey("completion.id"), index=True)
    completion: Mapped[Completion] = relationship()


class SampledDay(Base):
    """How many tasks were made of served replies on a day (UTC) for a reason, and how many its budget left out."""

    __tablename__ = "sampled_day"
    __table_args__ = (CheckConstraint("asked >= 0 AND left_out >= 0", name="counts"),)

    day: Mapped[dt.date] = mapped_column(primary_key=True)
    reason: Mapped[str] = mapped_column(String(12), primary_key=True)
    asked: Mapped[int] = mapped_column(default=0)
    left_out: Mapped[int] = mapped_column(default=0)


class Gold(Base):
    """The known answer of a task in the pool of gold ones: annotators are measured by it."""

    __tablename__ = "gold"

    task_id: Mapped[int] = mapped_column(ForeignKey("task.id"), primary_key=True)
    expected: Mapped[dict[str, Any]]  # by kind, see `feedback.kinds`
    explanation: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)


class GoldResult(Base):
    """Whether a judgment of a gold task was the known answer."""

    __tablename__ = "gold_result"
    __table_args__ = (Index("ix_gold_result_annotator_id_judgment_id", "annotator_id", "judgment_id"),)

    judgment_id: Mapped[int] = mapped_column(ForeignKey("judgment.id"), primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("task.id"), index=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    passed: Mapped[bool]


class Annotator(Base):
    """How a person stands as an annotator, and what they do not want to see. No row means: well, and everything."""

    __tablename__ = "annotator"
    __table_args__ = (CheckConstraint("standing IN ('good','warned','paused')", name="standing"),)

    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True)
    standing: Mapped[str] = mapped_column(String(10), default="good")
    standing_why: Mapped[str | None] = mapped_column(Text)
    standing_at: Mapped[dt.datetime | None]
    judged_from: Mapped[int] = mapped_column(default=0)  # gold results before this judgment do not count any more
    opted_out: Mapped[list[Any]] = mapped_column(default=list)  # categories
    risky_on: Mapped[dt.date | None]  # the day that `risky_n` counts, in UTC
    risky_n: Mapped[int] = mapped_column(default=0)


class Assignment(Base):
    """A task shown to one annotator, in the order that was shown.

    States: live (holds a place until `expires_at`, and beyond it until somebody needs the place), expired (its place was
    given to others; what is typed is kept), done, surplus (judged when all places were taken), skipped.
    """

    __tablename__ = "assignment"
    __table_args__ = (
        UniqueConstraint("task_id", "annotator_id"),
        CheckConstraint("state IN ('live','expired','done','skipped','surplus')", name="state"),
        Index("ix_assignment_annotator_id", "annotator_id", "id"),
        Index("ix_assignment_unfinished", "annotator_id", sqlite_where=UNFINISHED, postgresql_where=UNFINISHED),
        Index("ix_assignment_lease", "expires_at", sqlite_where=LIVE, postgresql_where=LIVE),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("task.id"))
    task: Mapped[Task] = relationship()
    annotator_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    lease_token: Mapped[str] = mapped_column(String(40), unique=True)
    expires_at: Mapped[dt.datetime]
    shown_order: Mapped[list[Any]]  # positions of the task's items, as shown from left to right or top to bottom
    state: Mapped[str] = mapped_column(String(10), default="live")
    skip_reason: Mapped[str | None] = mapped_column(String(200))
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)


class Judgment(Base):
    """One annotator's act. Judgments of tasks name the task; thumbs and ratings out of a chat name a completion."""

    __tablename__ = "judgment"
    __table_args__ = (
        CheckConstraint(_one_of("kind", (*KINDS, "thumbs")), name="kind"),
        CheckConstraint("choice IS NULL OR choice IN ('a','b','tie','both_bad','all_wrong','fine')", name="choice"),
        CheckConstraint("strength IS NULL OR strength BETWEEN 0 AND 3", name="strength"),
        CheckConstraint("rating IS NULL OR rating BETWEEN 1 AND 5", name="rating"),
        CheckConstraint("thumbs IS NULL OR thumbs IN (-1, 1)", name="thumbs"),
        Index("ix_judgment_annotator_id_created_at", "annotator_id", "created_at"),
        Index("ix_judgment_annotator_id_id", "annotator_id", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(12))
    task_id: Mapped[int | None] = mapped_column(ForeignKey("task.id"), index=True)
    assignment_id: Mapped[int | None] = mapped_column(ForeignKey("assignment.id"), index=True)
    completion_id: Mapped[str | None] = mapped_column(ForeignKey("completion.id"), index=True)
    annotator_id: Mapped[int | None] = mapped_column(ForeignKey("person.id"))
    choice: Mapped[str | None] = mapped_column(
        String(10)
    )  # in terms of positions (a is 0, b is 1), not of left and right
    strength: Mapped[int | None]  # 0 tie … 3 much better
    rating: Mapped[int | None]
    thumbs: Mapped[int | None]
    answer: Mapped[dict[str, Any] | None] = mapped_column(
        JSON(none_as_null=True)
    )  # ranking: {"ranks": by position}; rating: {"aspects": {name: 1 … 5}}
    note: Mapped[str | None] = mapped_column(Text)
    latency_s: Mapped[float | None]
    simulated: Mapped[bool] = mapped_column(default=False)
    surplus: Mapped[bool] = mapped_column(default=False)  # came after all places were taken; kept, not counted
    supersedes_id: Mapped[int | None] = mapped_column(ForeignKey("judgment.id"), unique=True)
    once: Mapped[str | None] = mapped_column(String(120), unique=True)
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow, index=True)


class Correction(Base):
    """An edited completion: edited ≻ original."""

    __tablename__ = "correction"

    id: Mapped[int] = mapped_column(primary_key=True)
    judgment_id: Mapped[int] = mapped_column(ForeignKey("judgment.id"), index=True)
    completion_id: Mapped[str] = mapped_column(ForeignKey("completion.id"), index=True)
    text: Mapped[str] = mapped_column(Text)


class Rule(Base):
    """A rule by its lasting name; its words live in versions."""

    __tablename__ = "rule"

    id: Mapped[int] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(String(60), unique=True)
    tenant_id: Mapped[int | None] = mapped_column(ForeignKey("tenant.id"))  # whose completions it is for; None: all
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)


class RuleVersion(Base):
    """What a rule says, from one edit to the next. Rows are only added: who edits, retires or restores adds one."""

    __tablename__ = "rule_version"
    __table_args__ = (
        UniqueConstraint("rule_id", "version"),
        CheckConstraint("severity BETWEEN 1 AND 3", name="severity"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    rule_id: Mapped[int] = mapped_column(ForeignKey("rule.id"))
    rule: Mapped[Rule] = relationship()
    version: Mapped[int]
    title: Mapped[str] = mapped_column(String(80))  # its short name, as annotators see it
    text: Mapped[str] = mapped_column(Text)
    category: Mapped[str] = mapped_column(String(20), default="other")  # one of feedback.rules.words.CATEGORIES
    kept_examples: Mapped[list[Any]] = mapped_column(default=list)  # [{"text", "reason"}, …]
    broken_examples: Mapped[list[Any]] = mapped_column(default=list)
    refusal_text: Mapped[str] = mapped_column(Text)
    severity: Mapped[int] = mapped_column(default=2)  # 1 low … 3 high
    active: Mapped[bool] = mapped_column(default=True)
    author_id: Mapped[int | None] = mapped_column(ForeignKey("person.id"))  # None: the starter set
    author: Mapped[Person | None] = relationship()
    note: Mapped[str] = mapped_column(Text, default="")  # what was changed, and why
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)


class RuleThreshold(Base):
    """What the guard does about a rule, from one edit to the next; the newest row holds. Without one: as the settings say."""

    __tablename__ = "rule_threshold"
    __table_args__ = (
        UniqueConstraint("rule_id", "number"),
        CheckConstraint("threshold IS NULL OR (threshold > 0 AND threshold <= 1)", name="threshold"),
        CheckConstraint("action IN ('block','record','off')", name="action"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    rule_id: Mapped[int] = mapped_column(ForeignKey("rule.id"))
    number: Mapped[int]
    threshold: Mapped[float | None]  # P(broken) from which it counts as broken; None: the setting's, or the model's own
    action: Mapped[str] = mapped_column(String(10), default="block")
    author_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    author: Mapped[Person] = relationship()
    note: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)


class RuleJudgment(Base):
    """A verdict on one rule for one completion, with the words that show it."""

    __tablename__ = "rule_judgment"
    __table_args__ = (
        UniqueConstraint("judgment_id", "rule_version_id", "completion_id"),
        CheckConstraint("verdict IN ('broken','kept','unsure')", name="verdict"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    judgment_id: Mapped[int] = mapped_column(ForeignKey("judgment.id"), index=True)
    rule_version_id: Mapped[int] = mapped_column(ForeignKey("rule_version.id"), index=True)
    completion_id: Mapped[str] = mapped_column(ForeignKey("completion.id"), index=True)
    verdict: Mapped[str] = mapped_column(String(10))
    confidence: Mapped[float | None]
    span: Mapped[str | None] = mapped_column(Text)


class Draft(Base):
    """What an annotator has typed but not submitted, by assignment."""

    __tablename__ = "draft"

    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignment.id"), primary_key=True)
    form: Mapped[dict[str, Any]]
    saved_at: Mapped[dt.datetime] = mapped_column(default=utcnow)


class ImportedPair(Base):
    """A preference somebody else's people made: prompt, chosen, rejected, from an imported file."""

    __tablename__ = "imported_pair"

    id: Mapped[int] = mapped_column(primary_key=True)
    pair_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompt.id"), index=True)
    prompt: Mapped[Prompt] = relationship()
    chosen_id: Mapped[str] = mapped_column(ForeignKey("completion.id"))
    rejected_id: Mapped[str] = mapped_column(ForeignKey("completion.id"))
    chosen: Mapped[Completion] = relationship(foreign_keys=[chosen_id])
    rejected: Mapped[Completion] = relationship(foreign_keys=[rejected_id])
    source: Mapped[str] = mapped_column(String(200))  # file name and its sha256
    simulated: Mapped[bool] = mapped_column(default=False)
    margin: Mapped[float | None]
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)


class Snapshot(Base):
    """A frozen, hashed dataset: a folder of JSONL files and the manifest of what they came from."""

    __tablename__ = "snapshot"

    id: Mapped[int] = mapped_column(primary_key=True)
    content_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    path: Mapped[str] = mapped_column(Text)  # relative to the artifact folder
    manifest: Mapped[dict[str, Any]]
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)


class SnapshotJudgment(Base):
    """Which judgments a snapshot holds: provenance and erasure follow these rows."""

    __tablename__ = "snapshot_judgment"

    snapshot_id: Mapped[int] = mapped_column(ForeignKey("snapshot.id"), primary_key=True)
    judgment_id: Mapped[int] = mapped_column(ForeignKey("judgment.id"), primary_key=True, index=True)


class ImportedJudgment(Base):
    """Marks a judgment that was made elsewhere, and names the file that it came in."""

    __tablename__ = "imported_judgment"

    judgment_id: Mapped[int] = mapped_column(ForeignKey("judgment.id"), primary_key=True)
    source: Mapped[str] = mapped_column(String(200))  # file name and its sha256
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)


class Webhook(Base):
    """Another program that is told of events, at an address."""

    __tablename__ = "webhook"

    id: Mapped[int] = mapped_column(primary_key=True)
    url: Mapped[str] = mapped_column(String(500))
    secret: Mapped[str] = mapped_column(String(120))  # "whsec_" and base64; signing needs it as it is
    events: Mapped[list[Any]]  # names out of feedback.webhooks.EVENTS
    active: Mapped[bool] = mapped_column(default=True)
    why_off: Mapped[str | None] = mapped_column(String(200))
    created_by_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)
    removed_at: Mapped[dt.datetime | None]


class WebhookDelivery(Base):
    """An event for one webhook: written with what it tells of, sent by the worker until it is taken or given up."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        CheckConstraint("state IN ('waiting','sent','given_up')", name="state"),
        Index("ix_webhook_delivery_due", "next_at", sqlite_where=WAITING, postgresql_where=WAITING),
        Index("ix_webhook_delivery_webhook_id_id", "webhook_id", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    webhook_id: Mapped[int] = mapped_column(ForeignKey("webhook.id"))
    webhook: Mapped[Webhook] = relationship()
    message_id: Mapped[str] = mapped_column(String(40))  # the same in every attempt, so that receivers know doubles
    event: Mapped[str] = mapped_column(String(40))
    body: Mapped[str] = mapped_column(Text)  # JSON as it is signed and sent
    state: Mapped[str] = mapped_column(String(10), default="waiting")
    attempts: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[dt.datetime] = mapped_column(default=utcnow)
    status: Mapped[int | None]  # HTTP status of the last answer
    error: Mapped[str | None] = mapped_column(String(300))
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)
    ended_at: Mapped[dt.datetime | None]
