"""A database with a row behind every page, each field of people's with a text of `Texts`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from access.audit import record
from access.invitations import invite, make_reset
from access.keys import create_key
from access.limits import spend
from access.models import ApiKey, AuditLog, Invitation, OidcIdentity, Person, SessionRecord, Tenant
from access.tenants import Agreed, create_tenant, make_key
from core.db import Base, utcnow
from core.settings import Settings
from feedback.assignment.annotators import annotator_of, pause, set_standing
from feedback.assignment.leases import claim_task, flag
from feedback.assignment.shown import load_shown
from feedback.drafts import save_draft
from feedback.judgments import submit_judgment
from feedback.kinds import form_of
from feedback.models import Assignment, ImportedPair, Prompt, RuleVersion, Task
from feedback.prompts import add_completion, add_prompt
from feedback.rules.store import MAX_RULES, create_rule, edit_rule, find_rule, list_rules, retire_rule
from feedback.rules.thresholds import set_threshold
from feedback.rules.words import Change, Example, RuleWords
from feedback.system_prompts import store
from feedback.system_prompts.store import Share
from feedback.tasks import create_gold, create_task
from feedback.webhooks import subscriptions as webhooks
from feedback.webhooks.events import delivery as hook_delivery
from finetune.models import Cycle, StageRun
from policy.models import PolicyVersion, Promotion
from policy.versions import promote
from reward.models import RewardModel
from tests.console.rows import gate_checks, make_candidate, make_cycle, make_gate_report, make_stages
from tests.factories import make_completion, make_person
from tests.hostile import HOSTILE
from tests.pages.texts import Texts

KINDS = {"pairwise": 2, "ranking": 4, "rating": 1, "rule_check": 1, "correction": 1, "probe": 0}
"""Kinds of tasks and how many completions one has."""

CHOSEN = {
    "pairwise": {"scale": ["2"]},
    "ranking": {"rank-0": ["1"], "rank-1": ["2"], "rank-2": ["2"], "rank-3": ["4"]},
    "rating": {"rating": ["4"], "aspect-clear": ["2"]},
    "rule_check": {"verdict": ["broken"], "confidence": ["2"]},
}
"""What is chosen in a draft, beside its texts."""


@dataclass
class Filled:
    """What was made: whose browser opens a page, by a name, and what stands in its address."""

    logins: dict[str, str] = field(default_factory=dict)
    address: dict[str, Any] = field(default_factory=dict)


def fill(session: Session, settings: Settings, texts: Texts) -> Filled:
    """Make all rows; the same ones whatever the texts."""
    found = Filled()
    people = _people(session, texts, found)
    rule = _rules(session, texts, found, people["admin"])
    Work(session, texts, people, rule, found).make()
    _access(session, settings, texts, found, people["admin"])
    _system_prompts(session, texts, found, people["admin"])
    _rounds(session, settings, texts, found)
    _report(settings, texts)
    names = {name: texts(f"audit.{name}", limit) for name, limit in (("actor", 120), ("action", 60), ("subject", 120))}
    before = {texts("audit.field"): texts("audit.before"), "severity": 1}
    record(session, **names, before=before, after=dict.fromkeys(before, texts("audit.after")))
    return found


def fill_empty(session: Session) -> Filled:
    """Nobody but an admin, for pages without a row."""
    return Filled({"admin": make_person(session, "admin", "admin").login})


def fill_up(session: Session, found: Filled, n: int) -> None:
    """`n` rows more in every list, of the length that such texts have; as many rules as there may be."""
    admin, now = 1, utcnow()
    change = Change(author_id=admin, login="lead", note="A few words on what was changed, and why that was good.")
    words = RuleWords(
        title="A rule of some length", text="It says what a reply must not do. " * 6, refusal_text="No. " * 20
    )
    for number in range(MAX_RULES - len(list_rules(session).versions)):
        create_rule(session, words.model_copy(update={"title": f"{words.title} {number}"}), change)
    rule_id = find_rule(session, found.address["rule"]).rule_id
    version = words.model_dump(mode="json") | {"rule_id": rule_id, "author_id": admin, "note": change.note}
    base = session.scalars(select(PolicyVersion.id).where(PolicyVersion.name == "base")).one()
    numbers = range(10, 10 + n)
    rows: dict[type[Base], list[dict[str, Any]]] = {
        RuleVersion: [{**version, "version": i, "active": True, "created_at": now} for i in numbers],
        Person: [{"login": f"somebody.of.the.team.{i}@example.org"} for i in numbers],
        AuditLog: [
            {"actor": "lead", "action": "rule.edit", "subject": f"rule:{i}", "before": {"text": words.text}, "after": {"text": "A"}}
            for i in numbers
        ],
        ApiKey: [
            {"name": f"The key of a laptop {i}", "person_id": admin, "prefix": "dk-12345", "key_sha256": f"{i:064}"}
            for i in numbers
        ],
        Tenant: [{"key": f"customer-{i}", "name": f"The customer with the number {i}", "tokens_per_day": 10**9} for i in numbers],
        SessionRecord: [
            {"person_id": admin, "token_sha256": f"{i:064}", "method": "password", "address": "127.0.0.1", "user_agent": "Chrome/1 " * 30}
            for i in numbers
        ],
        Invitation: [
            {"token_sha256": f"{i:064}", "role": "annotator", "made_by_id": admin, "expires_at": now, "note": "For Ana"}
            for i in numbers
        ],
        Cycle: [{"state": "done", "reason": "cron", "settings": {}, "outcome": "nothing new was judged"} for _ in numbers],
        PolicyVersion: [
            {"name": f"v{i}", "state": "retired", "base_model": "tiny", "base_sha256": "0" * 64} for i in numbers
        ],
        Promotion: [
            {"kind": "rollback", "policy_version_id": base, "actor": "lead", "reason": "It was better before."} for _ in numbers
        ],
        Prompt: [
            {"messages_sha256": f"{i:064}", "messages": [], "source": "seed", "category": f"topic_{i % 100}"} for i in numbers
        ],
    }  # fmt: skip
    for table, values in rows.items():
        session.execute(insert(table), values)


def _people(session: Session, texts: Texts, found: Filled) -> dict[str, Person]:
    """An admin for each page that shows something of one's own, and people of the list."""
    names = ["admin", *KINDS, "settling", "judged", "idle", "paused", "warned"]
    people = {name: make_person(session, texts("login", 110, name), "admin") for name in names}
    found.logins = {name: person.login for name, person in people.items()}
    for name in HOSTILE:
        make_person(session, texts.one("login", name, 110), "reviewer", active=name != "script")
    make_person(session, texts("login", 110, "a script"), scripted=True)
    found.address |= {name: make_person(session, texts("login", 110, name)).id for name in ("person", "other")}
    return people


def _rules(session: Session, texts: Texts, found: Filled, author: Person) -> RuleVersion:
    """A rule in two versions, a retired one, and one for each text of the corpus; the newest version of the first."""
    change = Change(author_id=author.id, login=author.login, note=texts("rule.note", 500))

    def words(tail: str) -> RuleWords:
        example = Example(text=texts("rule.example", 2_000, tail), reason=texts("rule.reason", 300, tail))
        return RuleWords(
            title=texts("rule.title", 80, tail), text=texts("rule.text", 4_000, tail), category="harm", severity=3,
            refusal_text=texts("rule.refusal", 4_000, tail), kept_examples=(example,), broken_examples=(example,),
        )  # fmt: skip

    slug = create_rule(session, words("one"), change).rule.slug
    newest = edit_rule(session, slug, words("two"), base=1, change=change)
    retired = create_rule(session, words("retired"), change).rule.slug
    retire_rule(session, retired, base=1, change=change)
    for name in HOSTILE:
        text = texts.one("rule.text", name, 4_000)
        create_rule(session, RuleWords(title=texts.one("rule.title", name, 80), text=text, refusal_text=text), change)
    found.address |= {"rule": slug, "retired": retired}
    return newest


def _system_prompts(session: Session, texts: Texts, found: Filled, author: Person) -> None:
    """Two versions, each with a share and a reply."""
    change = Change(author_id=author.id, login=author.login, note=texts("system_prompt.note", 500))
    one = store.create_prompt(session, "tutor", texts("system_prompt.text", 4_000, "one"), change, most_tokens=100_000)
    two = store.add_version(
        session, "tutor", texts("system_prompt.text", 4_000, "two"), base=1, change=change, most_tokens=100_000
    )
    shares = [Share(one.id, 60), Share(two.id, 30), Share(None, 10)]
    row = store.set_shares(session, shares, base=0, change=change)
    row = store.set_shares(session, shares[::-1], base=row.number, change=change)
    for version_id in (one.id, two.id, None):
        prompted = {"system_prompt_version_id": version_id, "system_prompt_share_id": row.id, "finish_reason": "stop"}
        make_completion(session, source="served", details={**prompted, "completion_tokens": 9, "latency_s": 0.5})
    set_threshold(session, found.address["rule"], 0.7, "record", base=0, change=change)
    found.address["system_prompt"] = "tutor"


@dataclass
class Work:
    """Tasks of all kinds, each half done by its own person; one judged, one to be settled, one flagged."""

    session: Session
    texts: Texts
    people: dict[str, Person]
    rule: RuleVersion
    found: Filled

    def make(self) -> None:
        """Make all of it. No task is left that wants somebody, so that what is fetched ahead is nothing."""
        for kind in KINDS:
            self._half_done(kind, self.people[kind])
        self._half_done("pairwise", self.people["warned"])
        why = self.texts("standing.why", 500)
        set_standing(self.session, annotator_of(self.session, self.people["warned"].id), "warned", why, "gold")
        pause(self.session, self.people["paused"].id, "lead", why)
        self._judge(self._task("pairwise", "judged"), self.people["judged"], "2")
        self._disagreement()
        self._left()

    def _task(self, kind: str, name: str, **more: Any) -> Task:
        prompt = None if kind == "probe" else self._prompt(name)
        texts = [self.texts.formatted("completion", f"{name} {n}") for n in range(KINDS[kind])]
        ids = [add_completion(self.session, prompt, text, "rollout").id for text in texts if prompt]
        rule_version_id = self.rule.id if form_of(kind).NEEDS_RULE else None
        return create_task(
            self.session, kind, prompt and prompt.id, ids, source=self.texts("task.source", 120, name),
            rule_version_id=rule_version_id, **{"pool": "informative", "why": self.texts("task.why", 60), **more},
        )  # fmt: skip

    def _prompt(self, name: str) -> Prompt:
        roles = ("system", "user", "assistant", "user")
        messages = [{"role": role, "content": self.texts("prompt", tail=f"{name} {n}")} for n, role in enumerate(roles)]
        return add_prompt(self.session, messages, "served", category=self.texts("topic", 60), harmful=name == "rating")

    def _claim(self, task: Task, person: Person) -> Assignment:
        assignment = claim_task(self.session, task.id, person.id, 3600)
        assert assignment is not None
        assignment.shown_order = sorted(assignment.shown_order)
        return assignment

    def _half_done(self, kind: str, person: Person) -> None:
        assignment = self._claim(self._task(kind, f"{kind} of {person.id}"), person)
        self.found.address[f"{kind}_token"] = assignment.lease_token
        save_draft(self.session, assignment.lease_token, person.id, self._typed(kind))

    def _typed(self, kind: str) -> dict[str, list[str]]:
        number = str(self.rule.id)
        typed = {"note": [self.texts("note")], **CHOSEN.get(kind, {})}
        if kind == "probe":
            asked = {"person_id": self.people["probe"].id}
            turn = add_completion(
                self.session, self._prompt("turn"), self.texts("probe.reply"), "served", details=asked
            ).id
            self.found.address["turn"] = turn
            typed |= {"turn": [turn], f"verdict-{turn}": ["broken"], f"span-{turn}": [self.texts("quote", 4_000)]}
        elif kind == "rule_check":
            typed["span"] = [self.texts("quote", 4_000)]
        else:
            typed |= {"broken-0": [number], f"span-0-{number}": [self.texts("quote", 4_000)]}
            typed["correction-0"] = [self.texts("correction")]
        return typed

    def _judge(self, task: Task, person: Person, scale: str) -> None:
        assignment = self._claim(task, person)
        shown = load_shown(self.session, assignment)
        fields = {"scale": [scale], "note": [self.texts("note")], "correction-1": [self.texts("correction")]}
        fields |= {"broken-1": [str(self.rule.id)]}
        form = form_of("pairwise").from_fields(fields, shown)
        submit_judgment(
            self.session, token=assignment.lease_token, annotator_id=person.id, form=form, latency_s=3, adjudicate=True
        )

    def _disagreement(self) -> None:
        task = self._task("pairwise", "disputed", pool="uniform", required_n=2)
        for name, scale in (("idle", "1"), ("warned", "7")):
            self._judge(task, self.people[name], scale)
        self._claim(self.session.scalars(select(Task).where(Task.about_id == task.id)).one(), self.people["settling"])

    def _left(self) -> None:
        """A flagged task, one with a known answer, and an imported pair; the tasks are called off."""
        flagged = self._task("pairwise", "flagged")
        assignment = self._claim(flagged, self.people["judged"])
        flag(self.session, assignment.lease_token, assignment.annotator_id, self.texts("flag.reason", 180))
        prompt = self._prompt("gold")
        chosen, rejected = (
            add_completion(self.session, prompt, self.texts("completion", tail=n), "import") for n in (1, 2)
        )
        gold = create_gold(
            self.session, "pairwise", prompt.id, [chosen.id, rejected.id], {"choice": ["a"]},
            source="gold", explanation=self.texts("gold.explanation"),
        )  # fmt: skip
        flagged.state = gold.state = "cancelled"
        self.session.add(
            ImportedPair(
                pair_sha256="0" * 64, prompt_id=prompt.id, chosen_id=chosen.id, rejected_id=rejected.id,
                source=self.texts("import.source", 200),
            )
        )  # fmt: skip


def _access(session: Session, settings: Settings, texts: Texts, found: Filled, admin: Person) -> None:
    """Invitations, keys, sessions and identities, of the admin and of somebody else."""
    somebody = session.get_one(Person, found.address["person"])
    _, invitation = invite(session, admin, "annotator", texts("invitation.note", 200), settings.invitation_s)
    _, reset = make_reset(session, admin, somebody.id, settings.invitation_s)
    found.address |= {"invitation": invitation, "reset": reset}
    for n, person in enumerate((admin, somebody)):
        create_key(session, person, texts("key.name", 120))
        session.add(
            SessionRecord(
                person_id=person.id, token_sha256=f"{n:064}", method="password", address=texts("address", 64),
                user_agent=texts("user_agent", 300),
            )
        )  # fmt: skip
        identity = {name: texts(f"identity.{name}", 250, n) for name in ("issuer", "subject", "email")}
        session.add(OidcIdentity(person_id=person.id, **identity))
    session.add(
        OidcIdentity(person_id=admin.id, issuer=texts("identity.issuer", 250), subject=texts("identity.subject", 250))
    )
    tenant = create_tenant(session, admin.login, Agreed("Quiet words", 60, 100_000), "acme")
    tenant.name, tenant.policy_version = texts("tenant.name", 120), texts("version.name", 60)
    make_key(session, admin.login, tenant.id, texts("key.name", 120))
    spend(session, tenant.id, 30, 40)
    found.address["tenant"] = tenant.id
    hook = webhooks.add(session, admin, "https://example.org/hook", ["task.done"], allow_private=False)
    session.add(hook_delivery(hook, "task.done", {"task_id": 1}))
    session.flush()
    found.address["webhook"] = hook.id


def _rounds(session: Session, settings: Settings, texts: Texts, found: Filled) -> None:
    """A promoted version with its gate report, a candidate, a failed cycle and one that runs."""
    texts_of = {"outcome": texts("cycle.outcome")}
    first = make_candidate(
        session, settings, cycle=make_cycle(session, settings, **texts_of), rule=texts("reward.rule", 60),
        category=texts("reward.category", 60),
    )  # fmt: skip
    base = session.scalars(select(PolicyVersion).where(PolicyVersion.state == "active")).one()
    base.base_model = texts("base_model")
    report = make_gate_report(session, first, base)
    report.evidence = report.evidence | {"examples": list(_examples(texts))}
    promote(session, first, actor=texts("promotion.actor", 120), reason=texts("promotion.reason"), once="cycle:1")
    second = make_candidate(session, settings, cycle=make_cycle(session, settings, **texts_of))
    make_gate_report(session, second, first)
    failed = make_cycle(session, settings, "failed", **texts_of)
    make_stages(session, failed, ("snapshot",))
    session.add(StageRun(cycle_id=failed.id, name="reward", state="failed", error=texts("stage.error")))
    running = make_cycle(session, settings, "running")
    session.add(StageRun(cycle_id=running.id, name="collect", progress=0.3, note="40 of 200"))
    named = {
        "name": texts("version.name", 60),
        "base_model": texts("base_model"),
        "reference": texts("version.name", 60),
    }
    session.add(PolicyVersion(state="refused", base_sha256="1" * 64, **named))
    of_first = select(RewardModel.id).where(RewardModel.cycle_id == first.cycle_id).order_by(RewardModel.kind)
    found.address |= dict(zip(("reward", "rule_reward"), session.scalars(of_first), strict=True))
    found.address |= {
        "active": first.name, "candidate": second.name, "cycle": first.cycle_id, "failed": failed.id,
        "running": running.id,
    }  # fmt: skip


def _examples(texts: Texts) -> Iterator[dict[str, Any]]:
    """What a gate report and the demo's report show side by side: a harmful prompt and a harmless one."""
    for kind in ("harmful", "lookalike"):
        answers = (
            {
                "prompt_id": "p", "category": texts("example.category", 60), "kind": kind, "verdict": "refuses",
                "prompt": texts("example.prompt"), "completion": texts("example.completion", tail=side),
            }
            for side in ("before", "after")
        )  # fmt: skip
        yield dict(zip(("before", "after"), answers, strict=True))


def _report(settings: Settings, texts: Texts) -> None:
    """The demo's report, as a file."""
    path = settings.var_dir / "reports" / "demo.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "policy_version": texts("version.name", 60), "state": texts("report.state", 60), "cycle": 1, "seconds": 800,
        "gate": {"checks": gate_checks()}, "examples": list(_examples(texts)),
        "stages": [{"name": texts("report.stage", 60), "seconds": 3, "peak_mb": 100}],
    }  # fmt: skip
    path.write_text(json.dumps(found))
