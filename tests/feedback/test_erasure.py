"""Texts that are taken away: by a user's wish all of them, by time what nobody judged."""

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from access.models import AuditLog, Tenant
from access.tenants import Agreed, create_tenant
from core.db import Database, utcnow
from core.messages import user
from feedback import erasure
from feedback.assignment.leases import claim_task
from feedback.dataset import freeze
from feedback.erasure import Erased, erase_user, expire
from feedback.judgments import record_feedback
from feedback.models import Completion, Correction, Draft, Judgment, Prompt, RuleJudgment, Task
from feedback.preferences import gather
from feedback.prompts import add_prompt
from feedback.tasks import copy_task, create_task
from tests.factories import make_completion, make_person, make_prompt
from tests.factories import question as ask
from tests.feedback.quality.rows import make_rule
from tests.feedback.test_dataset import HALF, rate

LONG_AGO = utcnow() - dt.timedelta(days=100)
HER, HIM = "a" * 64, "b" * 64


def served(session: Session, text: str, prompt: Prompt | None = None, **more: Any) -> Completion:
    prompt = prompt or make_prompt(session, f"asked: {text}", source="served")
    details = {"user_key": HER, "created_at": LONG_AGO, "consent": "training", **more}
    return make_completion(session, prompt, text, "served", details=details)


def texts(database: Database) -> set[str]:
    """Every text of completions and prompts that is still there."""
    with database.read() as session:
        said = [message["content"] for messages in session.scalars(select(Prompt.messages)) for message in messages]
        return {text for text in [*session.scalars(select(Completion.text)), *said] if text}


# By a user's wish -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["database", "postgres_database"])
def test_all_that_was_written_for_a_user_goes_and_nothing_else(request: pytest.FixtureRequest, kind: str) -> None:
    database: Database = request.getfixturevalue(kind)
    with database.session() as session:
        rule = make_rule(session)
        own = served(session, "her secret")
        judged = served(session, "her judged secret")
        common = make_prompt(session, "asked by both", source="served")
        seed = make_prompt(session, "a seed prompt")
        for prompt, key in ((common, HER), (common, HIM), (seed, HER)):
            served(session, f"reply to {key[0]} on {prompt.id}", prompt, user_key=key)
        for _ in range(2):
            record_feedback(
                session, completion_id=judged.id, annotator_id=None, thumbs=-1, correction="her better secret",
                note="secret note",
            )  # fmt: skip
        judgment = session.scalars(select(Judgment)).first()
        assert judgment is not None
        session.add(
            RuleJudgment(
                judgment_id=judgment.id, rule_version_id=rule.id, completion_id=judged.id, verdict="broken",
                span="judged secret",
            )
        )  # fmt: skip
        (flagged,) = session.scalars(select(Task))
        assignment = claim_task(session, flagged.id, make_person(session).id, 60)
        assert assignment is not None
        session.add(Draft(assignment_id=assignment.id, form={"note": "secret draft"}))
        his = f"reply to b on {common.id}"
        numbers = (own.id, judged.id, len(session.scalars(select(Judgment)).all()))
    with database.session() as session:
        assert erase_user(session, HER, "lead", dry_run=True) == Erased(4)
    assert "her secret" in texts(database)
    with database.session() as session:
        assert erase_user(session, HER, "lead") == Erased(4, 2, 1)
    assert texts(database) == {"asked by both", "a seed prompt", his}
    with database.read() as session:
        assert "secret" not in repr([tuple(row) for table in (Correction, RuleJudgment, Judgment, Draft)
                                     for row in session.execute(select(*table.__table__.columns))])  # fmt: skip
        rows = {row.id: row for row in session.scalars(select(Completion))}
        assert rows[numbers[0]].erased_at is not None
        assert rows[numbers[0]].user_key is None
        assert len(session.scalars(select(Judgment)).all()) == numbers[2]
        assert [task.state for task in session.scalars(select(Task))] == ["cancelled"]
        entry = session.scalars(select(AuditLog).where(AuditLog.action == "user.erase")).one()
        assert (entry.actor, entry.after["completions"]) == ("lead", 4)
    with database.session() as session:
        assert erase_user(session, HER, "lead") == Erased()


def test_what_was_erased_is_in_no_later_snapshot_and_earlier_ones_are_named(session: Session, tmp_path: Path) -> None:
    judgments = [rate(session, ask(n), a=f"yes {n}", b=f"no {n}") for n in range(20)]
    first = freeze(session, tmp_path, HALF)
    task = session.get_one(Task, judgments[0].task_id)
    task.completions[0].user_key = HER
    session.flush()
    assert erase_user(session, HER, "lead").snapshots == [first.id]
    assert judgments[0].id not in gather(session, include_simulated=False, max_imported_pairs=0).judgment_ids
    assert judgments[0].id not in freeze(session, tmp_path, HALF).manifest["judgment_ids"]


def test_what_was_erased_is_not_shown_again(session: Session) -> None:
    own, other = served(session, "hers"), served(session, "his", user_key=HIM)
    tasks = [create_task(session, "rating", each.prompt_id, [each.id], source=each.id) for each in (own, other)]
    for task in tasks:
        task.state = "done"
    session.flush()
    erase_user(session, HER, "lead")
    copies = [copy_task(session, task.id, source=f"again:{task.id}", pool="repeat", why="again") for task in tasks]
    assert [copy is None for copy in copies] == [True, False]


def test_the_same_words_can_be_asked_again_afterwards(session: Session) -> None:
    own = served(session, "a reply", add_prompt(session, user("the words"), "served"))
    erase_user(session, HER, "lead")
    again = add_prompt(session, user("the words"), "served")
    assert again.id != own.prompt_id
    assert again.messages == user("the words")


# By time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["database", "postgres_database"])
def test_what_is_past_its_time_and_not_judged_goes(request: pytest.FixtureRequest, kind: str) -> None:
    database: Database = request.getfixturevalue(kind)
    with database.session() as session:
        for text, more in {"old": {}, "new": {"created_at": utcnow()}, "erased before": {}}.items():
            served(session, text, **more)
        liked, rated, at_work, waiting = (served(session, name) for name in ("liked", "rated", "at work", "waiting"))
        record_feedback(session, completion_id=liked.id, annotator_id=None, thumbs=1)
        tasks = {
            each.id: create_task(session, "rating", each.prompt_id, [each.id], source=each.id)
            for each in (rated, at_work, waiting)
        }
        session.add(Judgment(kind="rating", task_id=tasks[rated.id].id, rating=3))
        claim_task(session, tasks[at_work.id].id, make_person(session).id, 60)
        make_completion(session, text="a rollout", source="rollout", details={"created_at": LONG_AGO})
    assert expire(database, 0, "worker").completions == 0  # for ever
    before = texts(database)
    assert expire(database, 30, "worker", dry_run=True) == Erased(3)
    assert texts(database) == before
    assert expire(database, 30, "worker") == Erased(3, 3, 1)
    gone = {"old", "erased before", "waiting"}
    assert before - texts(database) == gone | {f"asked: {text}" for text in gone}
    with database.read() as session:
        assert [task.state for task in session.scalars(select(Task).order_by(Task.id))] == ["live", "live", "cancelled"]
        row = session.scalars(select(Completion).where(Completion.text == "", Completion.source == "served")).first()
        assert row is not None
        assert row.erased_at is not None
    assert expire(database, 30, "worker") == Erased()


def test_many_go_some_at_a_time(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure, "TOGETHER", 3)
    with database.session() as session:
        kept = served(session, "judged")
        record_feedback(session, completion_id=kept.id, annotator_id=None, thumbs=1)
        for n in range(7):
            served(session, f"old {n}")
    assert expire(database, 30, "worker") == Erased(7, 7)
    assert texts(database) == {"judged", "asked: judged"}


def test_a_tenant_has_a_time_of_its_own(database: Database) -> None:
    with database.session() as session:
        tenants: list[Tenant] = [
            create_tenant(session, "lead", Agreed(name, retention_days=days))
            for name, days in {"Short": 10, "Ever": 0, "House": None}.items()
        ]
        for tenant in (None, *tenants):
            name = tenant.name if tenant else "nobody"
            prompt = add_prompt(session, user(f"asked: {name}"), "served", tenant_id=tenant and tenant.id)
            served(session, name, prompt)
    expire(database, 0, "worker")
    assert "Short" not in texts(database)
    assert {"Ever", "House", "nobody"} < texts(database)
    expire(database, 30, "worker")
    assert texts(database) == {"Ever", "asked: Ever"}
