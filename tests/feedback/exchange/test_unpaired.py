"""Completions with labels: which acts make one, and which say nothing."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from sqlalchemy.orm import Session
from trl.data_utils import is_conversational, maybe_unpair_preference_dataset

from access.models import Person
from core.db import Database
from feedback.assignment.leases import claim_task
from feedback.exchange.exporting import export_file
from feedback.exchange.unpaired import unpaired_rows
from feedback.judgments import record_feedback, submit_judgment
from feedback.kinds.rating import RatingForm
from feedback.kinds.rule_check import RuleCheckForm
from feedback.models import Completion, Task
from feedback.rules.store import active_rules, ensure_rules
from feedback.tasks import create_task
from tests import factories


@pytest.fixture
def ana(session: Session) -> Person:
    ensure_rules(session)
    return factories.make_person(session, "ana")


@pytest.fixture
def completion(session: Session, ana: Person) -> Completion:
    return factories.make_completion(session, text="In a hedge.", source="served")


def labels(session: Session, **more: Any) -> list[bool]:
    return [row["label"] for row in unpaired_rows(session, include_simulated=more.get("include_simulated", False))]


def judge(session: Session, task: Task, person: Person, form: Any) -> None:
    token = claim_task(session, task.id, person.id, 60).lease_token
    submit_judgment(session, token=token, annotator_id=person.id, form=form, latency_s=1)


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ({"thumbs": 1}, [True]), ({"thumbs": -1}, [False]), ({"rating": 5}, [True]), ({"rating": 4}, [True]),
        ({"rating": 3}, []), ({"rating": 2}, [False]), ({"thumbs": 1, "rating": 1}, []), ({"correction": "x"}, []),
    ],
)  # fmt: skip
def test_thumbs_and_ratings(
    session: Session, ana: Person, completion: Completion, said: dict[str, Any], label: list[bool]
) -> None:
    record_feedback(session, completion_id=completion.id, annotator_id=ana.id, **said)
    assert labels(session) == label


@pytest.mark.parametrize(("verdict", "label"), [("broken", [False]), ("kept", [True]), ("unsure", [])])
def test_verdicts_on_rules(session: Session, ana: Person, verdict: str, label: list[bool]) -> None:
    rule = active_rules(session)[0].id
    task = factories.make_task(session, "rule_check", texts=(None,), rule_version_id=rule)
    judge(session, task, ana, RuleCheckForm(verdict=verdict))
    assert labels(session) == label


def test_a_broken_rule_weighs_more_than_thumbs(session: Session, ana: Person, completion: Completion) -> None:
    for name in ("ben", "cem", None):
        person = factories.make_person(session, name) if name else None
        record_feedback(session, completion_id=completion.id, annotator_id=person.id if person else None, thumbs=1)
    assert labels(session) == [True]
    rule = active_rules(session)[0].id
    task = create_task(
        session, "rule_check", completion.prompt_id, [completion.id], source="x", rule_version_id=rule, required_n=3
    )
    judge(session, task, ana, RuleCheckForm(verdict="broken"))
    assert labels(session) == [False]
    for name in ("dan", "eva"):
        judge(session, task, factories.make_person(session, name), RuleCheckForm(verdict="kept"))
    assert labels(session) == [True]


def test_a_rating_of_a_task_counts_for_its_completion(session: Session, ana: Person) -> None:
    judge(session, factories.make_task(session, "rating", texts=("Mine.",)), ana, RatingForm(rating=1))
    (row,) = unpaired_rows(session, include_simulated=False)
    assert row["completion"] == [{"role": "assistant", "content": "Mine."}]
    assert (row["label"], row["votes"], row["simulated"]) == (False, 1, False)


def test_a_changed_mind_and_a_scripts_word(session: Session, ana: Person, completion: Completion) -> None:
    record_feedback(session, completion_id=completion.id, annotator_id=ana.id, thumbs=1)
    record_feedback(session, completion_id=completion.id, annotator_id=ana.id, thumbs=-1)
    other = factories.make_completion(session)
    bot = factories.make_person(session, scripted=True)
    record_feedback(session, completion_id=other.id, annotator_id=bot.id, thumbs=1)
    assert labels(session) == [False]
    assert sorted(labels(session, include_simulated=True)) == [False, True]


def test_trl_reads_both_forms(database: Database, tmp_path: Path) -> None:
    """The preference form is TRL's conversational one; unpaired by TRL itself it has the columns of our unpaired form."""
    with database.session() as session:
        person = factories.make_person(session)
        completion = factories.make_completion(session)
        record_feedback(session, completion_id=completion.id, annotator_id=person.id, thumbs=1, correction="Better.")
    export_file(database, tmp_path / "pairs.parquet")
    export_file(database, tmp_path / "unpaired.parquet", form="unpaired")
    pairs = Dataset.from_parquet(str(tmp_path / "pairs.parquet"), cache_dir=str(tmp_path))
    unpaired = Dataset.from_parquet(str(tmp_path / "unpaired.parquet"), cache_dir=str(tmp_path))
    assert is_conversational(pairs[0])
    assert is_conversational(unpaired[0])
    theirs = maybe_unpair_preference_dataset(pairs.select_columns(["prompt", "chosen", "rejected"]))
    ours = unpaired.select_columns(["prompt", "completion", "label"])
    assert theirs.features == ours.features
    assert len(theirs) == 2
