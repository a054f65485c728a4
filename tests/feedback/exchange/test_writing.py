"""Tasks with all their judgments go out and come back: into another database, and into the one they are from."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from access.models import Person
from core.db import Database
from core.settings import AssignmentSettings
from feedback.assignment.leases import claim_task, next_assignment
from feedback.exchange.exporting import export_file
from feedback.exchange.rows import TaskRow
from feedback.exchange.writing import as_json, stored_rows
from feedback.judgments import submit_judgment, undo_last
from feedback.kinds import AnyForm
from feedback.kinds.correction import CorrectionForm
from feedback.kinds.frame import RuleVerdict
from feedback.kinds.pairwise import PairwiseForm
from feedback.kinds.probe import ProbeForm, Turn
from feedback.kinds.ranking import RankingForm
from feedback.kinds.rating import RatingForm
from feedback.kinds.rule_check import RuleCheckForm
from feedback.models import ImportedJudgment, Judgment, Task
from feedback.rules.store import active_rules, ensure_rules
from feedback.tasks import create_gold, create_task
from tests import factories
from tests.feedback.exchange.test_loading import counts, take


@pytest.fixture
def elsewhere(database: Database, tmp_path: Path) -> Iterator[Database]:
    """Another database, empty but for the starter rules."""
    shutil.copy(database.engine.url.database or "", tmp_path / "elsewhere.db")
    other = Database(f"sqlite:///{tmp_path}/elsewhere.db")
    with other.session() as session:
        ensure_rules(session)
    yield other
    other.dispose()


@pytest.fixture
def filled(elsewhere: Database, database: Database) -> Database:
    """Tasks of every kind, judged by people and by a script, through the code that writes them."""
    with database.session() as session:
        ensure_rules(session)
        ana, ben = factories.make_person(session, "ana"), factories.make_person(session, "ben")
        bot = factories.make_person(session, "bot", scripted=True)
        rule = active_rules(session)[0]
        broken = RuleVerdict(rule_version_id=rule.id, item=1, span="moss", confidence=0.4)

        def judge(task: Task, person: Person, form: AnyForm) -> None:
            assignment = claim_task(session, task.id, person.id, 60)
            submit_judgment(session, token=assignment.lease_token, annotator_id=person.id, form=form, latency_s=2.5)

        prompt = factories.make_prompt(session, "Wo brütet sie? 🐦", category="birds", harmful=True)
        pair = factories.make_task(
            session, "pairwise", prompt, required_n=3, priority=5, pool="informative", why="close"
        )
        judge(pair, ana, PairwiseForm(choice="left", strength=3, rule_verdicts=[broken], note="<b>low</b>"))
        judge(pair, ben, PairwiseForm(choice="both_bad", corrections={0: "In a hedge, low down."}))
        undo_last(session, ben.id, PairwiseForm(choice="right", strength=1))
        judge(pair, bot, PairwiseForm(choice="tie"))
        judge(factories.make_task(session, "ranking", texts=(None,) * 4), ana, RankingForm(ranks=[2, 1, 2, 3]))
        judge(factories.make_task(session, "ranking", texts=(None,) * 3), ana, RankingForm(all_wrong=True))
        judge(factories.make_task(session, "rating", texts=(None,)), ana, RatingForm(rating=4, aspects={"clear": 2}))
        check = factories.make_task(session, "rule_check", texts=("As ChatGPT I say: moss.",), rule_version_id=rule.id)
        judge(check, ana, RuleCheckForm(verdict="broken", confidence=0.73, span="moss"))
        for form in (CorrectionForm(fine=True), CorrectionForm(corrections={0: "Better."})):
            judge(factories.make_task(session, "correction", texts=(None,)), ben, form)
        probe = create_task(session, "probe", None, [], source="probe:1", rule_version_id=rule.id)
        assignment = claim_task(session, probe.id, ben.id, 60)
        reply = factories.make_completion(session, text="No.", source="served", details={"person_id": ben.id})
        submit_judgment(
            session, token=assignment.lease_token, annotator_id=ben.id, latency_s=None,
            form=ProbeForm(turns=[Turn(completion_id=reply.id, verdict="kept")]),
        )  # fmt: skip
        texts = [factories.make_completion(session, prompt).id for _ in range(2)]
        gold = create_gold(session, "pairwise", prompt.id, texts, {"choice": ["a"]}, source="gold:1", explanation="low")
        judge(gold, ana, PairwiseForm(choice="left"))
        repeats = AssignmentSettings(
            gold=0, uniform=0, informative=0, flagged=0, repeat=1, repeat_after=0, risky_per_day=0
        )
        again = next_assignment(session, ana.id, 60, shares=repeats)
        assert again.task.pool == "repeat"
        settled = factories.make_task(session, "rating", texts=(None,), required_n=2)
        judge(settled, ana, RatingForm(rating=1))
        assignment = claim_task(session, settled.id, ben.id, 60)
        submit_judgment(
            session, token=assignment.lease_token, annotator_id=ben.id, form=RatingForm(rating=5), latency_s=1,
            adjudicate=True,
        )  # fmt: skip
        assert session.scalars(select(Task.pool).where(Task.about_id == settled.id)).one() == "adjudication"
    return database


def told(db: Database, **more: Any) -> list[dict[str, Any]]:
    """All rows as JSON, without what must differ in another database: names of tasks, and of people there."""
    rows = [as_json(row) for row in stored_rows(db, include_simulated=True, **more)]
    for row in rows:
        row["source"] = (row.pop("about", None) and "about another") or "a name"
        row["why"] = "why"
        for judgment in row["judgments"]:
            judgment["annotator"] = judgment["annotator"].removeprefix("ext-script:").removeprefix("ext:")
            names = {name: f"reply-{n}" for n, name in enumerate(judgment["replies"])}
            judgment["replies"] = {names[name]: reply for name, reply in judgment["replies"].items()}
            for turn in judgment["judgment"].get("turns", []):
                turn["completion_id"] = names[turn["completion_id"]]
    return rows


def test_what_goes_out_comes_back_as_it_was(filled: Database, elsewhere: Database, tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    n = export_file(filled, path, form="tasks", include_simulated=True)
    report = take(elsewhere, path)
    assert (report.errors, report.tasks) == ([], n)
    assert n >= 12
    assert told(elsewhere) == told(filled)
    kinds = {(row["kind"], row["pool"]) for row in told(elsewhere)}
    assert {"pairwise", "ranking", "rating", "rule_check", "correction", "probe"} == {kind for kind, _ in kinds}
    assert {"gold", "repeat", "adjudication", "informative", "uniform"} == {pool for _, pool in kinds}
    assert {judgment["simulated"] for row in told(elsewhere) for judgment in row["judgments"]} == {False, True}
    again = take(elsewhere, path)
    assert (again.tasks, again.judgments, again.tasks_there) == (0, 0, n)


def test_counts_of_places_come_back_too(filled: Database, elsewhere: Database, tmp_path: Path) -> None:
    export_file(filled, tmp_path / "tasks.jsonl", form="tasks", include_simulated=True)
    take(elsewhere, tmp_path / "tasks.jsonl")

    def places(db: Database) -> list[Any]:
        with db.read() as session:
            return [(t.done, t.state) for t in session.scalars(select(Task).order_by(Task.id))]

    assert places(elsewhere) == places(filled)


def test_what_goes_out_and_comes_home_adds_nothing(filled: Database, tmp_path: Path) -> None:
    before = counts(filled)
    n = export_file(filled, tmp_path / "tasks.jsonl", form="tasks", include_simulated=True)
    report = take(filled, tmp_path / "tasks.jsonl")
    assert (report.tasks_there, report.tasks, report.judgments, report.errors) == (n, 0, 0, [])
    assert counts(filled) == before


def test_every_row_is_one_that_an_import_takes(filled: Database) -> None:
    for row in stored_rows(filled, include_simulated=True):
        assert TaskRow.model_validate(as_json(row)).kind == row.kind


def test_simulated_judgments_go_out_only_when_asked_for(filled: Database, tmp_path: Path) -> None:
    export_file(filled, tmp_path / "tasks.jsonl", form="tasks")
    rows = [json.loads(line) for line in (tmp_path / "tasks.jsonl").read_text().splitlines()]
    assert {judgment["annotator"] for row in rows for judgment in row["judgments"]} == {"ana", "ben"}


def test_cancelled_tasks_stay(filled: Database) -> None:
    n = len(list(stored_rows(filled)))
    with filled.session() as session:
        session.scalars(select(Task).where(Task.kind == "probe")).one().state = "cancelled"
    kinds = [row.kind for row in stored_rows(filled)]
    assert len(kinds) == n - 1
    assert "probe" not in kinds


def test_many_tasks_are_read_in_parts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedback.exchange.writing.TASKS_AT_A_TIME", 3)
    with database.session() as session:
        ids = [factories.make_pairwise_task(session).source for _ in range(7)]
    assert [row.source for row in stored_rows(database)] == ids


def test_imported_judgments_are_marked_and_local_ones_are_not(filled: Database) -> None:
    with filled.read() as session:
        assert session.scalars(select(Judgment)).first() is not None
        assert session.scalars(select(ImportedJudgment)).all() == []
