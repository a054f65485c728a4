"""What tenants have apart: prompts, feedback, rules; and what keeps saying whose it is: tasks, exports, imports."""

from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from access.models import Person, Tenant
from access.tenants import Agreed, create_tenant
from core.db import Database
from core.errors import InvalidInput, NotFound
from core.messages import conversation_hash, user
from feedback.assignment.leases import next_assignment
from feedback.exchange.exporting import export_file
from feedback.exchange.loading import load
from feedback.exchange.reading import Wanted, read_tasks
from feedback.judgments import record_feedback
from feedback.models import Completion, Judgment, Prompt, Task
from feedback.prompts import add_completion, add_prompt
from feedback.rules.store import active_rules, create_rule, ensure_rules, find_rule
from feedback.rules.words import Change, RuleWords
from feedback.task_page import build_page
from tests.factories import make_completion, make_pairwise_task, make_person, make_prompt

WORDS = RuleWords(title="No shoes", text="Do not speak of shoes.", refusal_text="Not of shoes.")


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest) -> Database:
    """A migrated database of either kind."""
    name = "database" if request.param == "sqlite" else "postgres_database"
    found: Database = request.getfixturevalue(name)
    return found


def make_tenants(session: Session) -> tuple[Tenant, Tenant]:
    return create_tenant(session, "lead", Agreed("Acme")), create_tenant(session, "lead", Agreed("Beta"))


def account_of(session: Session, tenant: Tenant) -> int:
    return session.scalars(select(Person.id).where(Person.tenant_id == tenant.id)).one()


def served(session: Session, tenant: Tenant | None, text: str = "In a hedge.") -> Completion:
    prompt = add_prompt(session, user("Where?"), "served", tenant_id=tenant and tenant.id)
    return add_completion(session, prompt, text, "served")


def test_equal_prompts_are_one_row_within_a_tenant_and_within_the_house(either: Database) -> None:
    with either.session() as session:
        whose = [None, *make_tenants(session)]
        ids = [[served(session, tenant).prompt_id for _ in range(2)] for tenant in whose]
        assert all(first == second for first, second in ids)
        assert len({first for first, _ in ids}) == 3
        assert all(row.tenant_id == row.prompt.tenant_id for row in session.scalars(select(Completion)))
        assert {row.tenant_id for row in session.scalars(select(Completion))} == {t and t.id for t in whose}


@pytest.mark.parametrize("of_tenant", [False, True])
def test_the_database_refuses_a_second_row(either: Database, of_tenant: bool) -> None:
    """Also where the tenant is NULL, which unique indexes do not compare."""
    with either.session() as session:
        tenant_id = make_tenants(session)[0].id if of_tenant else None
        add_prompt(session, user("Where?"), "served", tenant_id=tenant_id)
    twice = Prompt(messages_sha256=conversation_hash(user("Where?")), messages=[], source="seed", tenant_id=tenant_id)
    with pytest.raises(IntegrityError), either.session() as session:
        session.add(twice)


def test_feedback_crosses_between_no_tenants(session: Session) -> None:
    acme, beta = make_tenants(session)
    completions = {tenant and tenant.id: served(session, tenant).id for tenant in (None, acme, beta)}
    callers = {acme.id: account_of(session, acme), beta.id: account_of(session, beta)}
    for tenant_id, person_id in callers.items():
        for owner, completion_id in completions.items():
            said = {"completion_id": completion_id, "annotator_id": person_id, "tenant_id": tenant_id, "thumbs": -1}
            if owner == tenant_id:
                record_feedback(session, **said)
                continue
            with pytest.raises(NotFound) as refused:
                record_feedback(session, **said)
            with pytest.raises(NotFound) as unknown:
                record_feedback(session, **{**said, "completion_id": "chatcmpl-none"})
            assert refused.value.message == unknown.value.message.replace("chatcmpl-none", completion_id)
    assert session.scalar(select(func.count()).select_from(Judgment)) == 2
    flagged = session.scalars(select(Task).where(Task.pool == "flagged").order_by(Task.id)).all()
    assert [task.prompt.tenant_id for task in flagged if task.prompt] == [acme.id, beta.id]


@pytest.mark.parametrize(
    ("role", "may"), [("annotator", False), ("reviewer", True), ("lead", True), ("admin", True), (None, False)]
)
def test_who_of_the_house_speaks_of_tenants_completions(session: Session, role: str | None, may: bool) -> None:
    acme, _ = make_tenants(session)
    person_id = make_person(session, role=role).id if role else None
    own, theirs = served(session, None), served(session, acme)
    record_feedback(session, completion_id=own.id, annotator_id=person_id, thumbs=1)
    if may:
        assert record_feedback(session, completion_id=theirs.id, annotator_id=person_id, thumbs=1)
        return
    with pytest.raises(NotFound):
        record_feedback(session, completion_id=theirs.id, annotator_id=person_id, thumbs=1)


def test_the_same_idempotency_key_of_two_tenants_is_two_acts(session: Session) -> None:
    ids = set()
    for tenant in make_tenants(session):
        said = {"completion_id": served(session, tenant).id, "annotator_id": account_of(session, tenant)}
        ids |= {j.id for j in record_feedback(session, **said, thumbs=1, once="k", tenant_id=tenant.id)}
    assert len(ids) == 2


def test_rules_of_a_tenant_hold_for_its_completions_alone(either: Database) -> None:
    with either.session() as session:
        ensure_rules(session)
        acme, beta = make_tenants(session)
        author = make_person(session, role="lead")
        change = Change(author_id=author.id, login=author.login, note="")
        house = {rule.rule.slug for rule in active_rules(session)}
        made = create_rule(session, WORDS, change, "acme")
        assert (made.rule.slug, made.rule.tenant_id) == ("acme_no_shoes", acme.id)
        assert create_rule(session, WORDS, change, "acme").id == made.id
        assert create_rule(session, WORDS, change, "beta").rule.slug == "beta_no_shoes"
        assert create_rule(session, WORDS, change).rule.slug == "no_shoes"
        house |= {"no_shoes"}
        for tenant_id, more in ((None, set()), (acme.id, {"acme_no_shoes"}), (beta.id, {"beta_no_shoes"})):
            assert {rule.rule.slug for rule in active_rules(session, tenant_id)} == house | more
        with pytest.raises(InvalidInput):
            create_rule(session, WORDS, change, "nobody")
        assert find_rule(session, "acme_no_shoes").active


def test_annotators_of_the_house_meet_tasks_of_all_with_the_rules_of_each(session: Session) -> None:
    acme, _ = make_tenants(session)
    author = make_person(session, role="lead")
    change = Change(author_id=author.id, login=author.login, note="")
    create_rule(session, WORDS, change, "acme")
    prompts = [make_prompt(session, "Mine?"), add_prompt(session, user("Theirs?"), "served", tenant_id=acme.id)]
    tasks = [make_pairwise_task(session, prompt) for prompt in prompts]
    seen = {}
    for task in tasks:
        for other in tasks:
            other.state = "live" if other is task else "cancelled"
        session.flush()
        assignment = next_assignment(session, make_person(session).id, 60)
        assert assignment is not None
        seen[task.id] = [rule.rule.slug for rule in build_page(session, assignment, {}).rules]
    assert seen == {tasks[0].id: [], tasks[1].id: ["acme_no_shoes"]}


def test_an_export_says_whose_it_is_and_an_import_keeps_it(database: Database, tmp_path: Path) -> None:
    with database.session() as session:
        acme, _ = make_tenants(session)
        own, theirs = (
            make_prompt(session, "The same?"),
            add_prompt(session, user("The same?"), "served", tenant_id=acme.id),
        )
        for prompt in (own, theirs):
            make_pairwise_task(session, prompt, a="One.", b="Two.")
    path = tmp_path / "tasks.jsonl"
    assert export_file(database, path, form="tasks") == 2
    assert [('"tenant": "acme"' in line) for line in path.read_text().splitlines()] == [False, True]
    again = load(database, read_tasks(path, Wanted(), None), "tasks.jsonl@1")
    assert (again.tasks, again.tasks_there, again.errors) == (0, 2, [])
    with database.session() as session:
        for task in session.scalars(select(Task)):
            task.source = f"elsewhere:{task.id}"
    report = load(database, read_tasks(path, Wanted(), None), "tasks.jsonl@1")
    assert (report.tasks, report.errors) == (2, [])
    with database.read() as session:
        imported = select(Task).where(Task.source.startswith("import:")).order_by(Task.id)
        assert [task.prompt_id for task in session.scalars(imported)] == [own.id, theirs.id]


def test_an_import_of_an_unknown_tenant_is_left_out_with_its_reason(database: Database, tmp_path: Path) -> None:
    with database.session() as session:
        make_completion(session)
    path = tmp_path / "tasks.jsonl"
    path.write_text(
        '{"kind": "rating", "messages": [{"role": "user", "content": "?"}], "completions": ["!"], "tenant": "x"}\n'
    )
    report = load(database, read_tasks(path, Wanted(), None), "tasks.jsonl@1")
    assert report.tasks == 0
    assert "there is no tenant 'x' here" in report.errors[0][1]
