"""Tasks that come in as our own JSONL: what goes in, what is refused, repetition, a kill in the middle, a dry run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import func, select

from access.models import Person
from core.db import Database
from core.errors import ImportRowError
from core.settings import Settings
from feedback.exchange.loading import LoadReport, load
from feedback.exchange.reading import Wanted, name_of, read_tasks
from feedback.exchange.rows import read_row
from feedback.models import (
    Assignment,
    Completion,
    Correction,
    Gold,
    GoldResult,
    ImportedJudgment,
    Judgment,
    RuleJudgment,
    Task,
)
from feedback.rules.store import ensure_rules

ROOT = Path(__file__).parents[3]
TALK = [{"role": "user", "content": "Where does a dunnock nest?"}]
PAIR: dict[str, Any] = {"kind": "pairwise", "messages": TALK, "completions": ["In a hedge.", "On a cliff."]}
RANKING: dict[str, Any] = {
    "kind": "ranking",
    "messages": TALK,
    "completions": ["Low.", "High.", "ChatGPT says: in moss."],
}
CHECK: dict[str, Any] = {
    "kind": "rule_check",
    "messages": TALK,
    "completions": ["I, ChatGPT, own one."],
    "rule": "violence",
}
ONE: dict[str, Any] = {"messages": TALK, "completions": ["In a hedge, perhaps."]}


def said(annotator: str, **judgment: Any) -> dict[str, Any]:
    """A judgment of somebody, as rows tell it."""
    return {"annotator": annotator, "judgment": judgment}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def take(database: Database, path: Path, wanted: Wanted | None = None, **more: Any) -> LoadReport:
    return load(database, read_tasks(path, wanted or Wanted()), name_of(path), **more)


def take_rows(database: Database, tmp_path: Path, *rows: Any, **more: Any) -> LoadReport:
    return take(database, write(tmp_path / "tasks.jsonl", list(rows)), **more)


def count(database: Database, kind: Any) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(kind)) or 0


def counts(database: Database) -> dict[str, int]:
    """Rows of every table that an import writes to."""
    tables = (
        Task,
        Completion,
        Judgment,
        ImportedJudgment,
        Assignment,
        Person,
        RuleJudgment,
        Correction,
        Gold,
        GoldResult,
    )
    return {table.__tablename__: count(database, table) for table in tables}


@pytest.fixture(autouse=True)
def _rules(database: Database) -> None:
    with database.session() as session:
        ensure_rules(session)


def test_a_row_of_every_kind_goes_in_with_what_was_said(database: Database, tmp_path: Path) -> None:
    probe = {
        "kind": "probe",
        "rule": "violence@1",
        "judgments": [said("ana", turns=[{"completion_id": "r1", "verdict": "kept"}])],
    }
    probe["judgments"][0]["replies"] = {"r1": {"messages": TALK, "text": "I would rather not."}}
    verdict = {"rule": "violence", "item": 1, "verdict": "broken", "span": "ChatGPT says"}
    report = take_rows(
        database, tmp_path,
        PAIR | {"required_n": 2, "priority": 7, "judgments": [said("ana", choice="left", strength=3)]},
        RANKING | {"judgments": [said("ben", ranks=[2, 1, 2], rule_verdicts=[verdict | {"item": 2}])]},
        ONE | {"kind": "rating", "judgments": [said("ana", rating=4, aspects={"clear": 5})]},
        CHECK | {"judgments": [said("ana", verdict="broken", confidence=0.7, span="ChatGPT")]},
        ONE | {"kind": "correction", "judgments": [said("ana", corrections={"0": "In a hedge, says ChatGPT."})]},
        probe,
    )  # fmt: skip
    assert report.errors == []
    assert (report.tasks, report.judgments) == (6, 6)
    with database.read() as session:
        tasks = {task.kind: task for task in session.scalars(select(Task))}
        judgments = {judgment.kind: judgment for judgment in session.scalars(select(Judgment))}
        assert (tasks["pairwise"].priority, tasks["pairwise"].state) == (7, "live")  # one of two places is left
        assert {tasks[kind].state for kind in tasks if kind != "pairwise"} == {"done"}
        assert (judgments["pairwise"].choice, judgments["pairwise"].strength) == ("a", 3)
        assert judgments["ranking"].answer == {"ranks": [2, 1, 2]}
        assert (judgments["rating"].rating, judgments["rating"].answer) == (4, {"aspects": {"clear": 5}})
        # Names stay in what was quoted and edited elsewhere: there they were not hidden.
        spans = {
            row.judgment_id: (row.verdict, row.confidence, row.span) for row in session.scalars(select(RuleJudgment))
        }
        assert spans[judgments["rule_check"].id] == ("broken", 0.7, "ChatGPT")
        assert spans[judgments["ranking"].id] == ("broken", None, "ChatGPT says")
        assert spans[judgments["probe"].id] == ("kept", None, None)
        assert session.scalars(select(Correction.text)).all() == ["In a hedge, says ChatGPT."]
        person = session.scalars(select(Person).where(Person.login == "ext:ana")).one()
        assert (person.active, person.password_hash, person.scripted, person.role) == (False, None, False, "annotator")
        assert set(session.scalars(select(ImportedJudgment.source))) == {name_of(tmp_path / "tasks.jsonl")}
        assert session.scalars(select(ImportedJudgment.judgment_id)).all() == sorted(j.id for j in judgments.values())


def test_importing_twice_adds_nothing(database: Database, tmp_path: Path) -> None:
    rows = [
        PAIR | {"judgments": [said("ana", choice="left"), said("ben", choice="right")]},
        RANKING | {"gold": {"best": [0]}, "judgments": [said("ana", ranks=[1, 2, 3])]},
        PAIR | {"source": "another of the same"},
    ]
    assert take_rows(database, tmp_path, *rows).tasks == 3
    before = counts(database)
    again = take_rows(database, tmp_path, *rows)
    assert (again.tasks, again.tasks_there, again.judgments, again.judgments_there) == (0, 3, 0, 3)
    assert counts(database) == before
    assert again.good


def test_more_judgments_of_a_task_that_is_there_are_added(database: Database, tmp_path: Path) -> None:
    take_rows(database, tmp_path, PAIR | {"judgments": [said("ana", choice="left")]})
    report = take_rows(
        database, tmp_path, PAIR | {"judgments": [said("ana", choice="left"), said("ben", choice="right")]}
    )
    assert (report.tasks, report.judgments, report.judgments_there) == (0, 1, 1)
    with database.read() as session:
        task = session.scalars(select(Task)).one()
        assert (task.taken, task.done, task.required_n, task.state) == (1, 1, 1, "done")
        assert session.scalars(select(Judgment.surplus).order_by(Judgment.id)).all() == [False, True]


def test_a_second_word_of_one_person_stands_for_the_first(database: Database, tmp_path: Path) -> None:
    take_rows(database, tmp_path, PAIR | {"judgments": [said("ana", choice="left"), said("ana", choice="right")]})
    with database.read() as session:
        first, second = session.scalars(select(Judgment).order_by(Judgment.id)).all()
        assert (first.choice, second.choice, second.supersedes_id) == ("a", "b", first.id)
        assert session.scalars(select(Task.done)).one() == 1


def test_known_answers_are_checked_and_measure_who_judged(database: Database, tmp_path: Path) -> None:
    gold = PAIR | {"gold": {"choice": ["a"]}, "explanation": "It is low."}
    report = take_rows(
        database, tmp_path, PAIR | {"gold": {"best": [1]}},
        gold | {"judgments": [said("ana", choice="left"), said("ben", choice="tie")]},
    )  # fmt: skip
    assert [line for line, _ in report.errors] == [1]
    assert "cannot be the known answer" in report.errors[0][1]
    with database.read() as session:
        assert session.scalars(select(Task.pool)).one() == "gold"
        assert session.scalars(select(Gold.explanation)).one() == "It is low."
        assert session.scalars(select(GoldResult.passed).order_by(GoldResult.judgment_id)).all() == [True, False]


def test_simulated_judgments_are_a_scripts(database: Database, tmp_path: Path) -> None:
    take_rows(database, tmp_path, PAIR | {"judgments": [said("gpt", choice="left") | {"simulated": True}]})
    with database.read() as session:
        assert session.scalars(select(Judgment.simulated)).one() is True
        person = session.scalars(select(Person)).one()
        assert (person.login, person.scripted) == ("ext-script:gpt", True)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("not json", "is not JSON"),
        ("[1]", "is a list"),
        ("[" * 100_000, "is not JSON"),
        (PAIR | {"gold": {"choice": [["a"]]}}, "cannot be the known answer"),
        (PAIR | {"completions": ["one"]}, "1 completions; a pairwise task has 2"),
        (PAIR | {"completions": ["same", "same "]}, "same text"),
        (PAIR | {"completions": ["a", " "]}, "a completion is empty"),
        (PAIR | {"completions": ["a", "b" * 100_001]}, "at most 100000"),
        (PAIR | {"messages": []}, "end with a user turn"),
        (PAIR | {"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        (PAIR | {"kind": "guess"}, "kind"),
        (PAIR | {"rule": "violence"}, "is about no rule"),
        (PAIR | {"pool": "gold"}, "known answer"),
        (PAIR | {"pool": "repeat"}, "about"),
        (PAIR | {"pool": "adjudication", "about": "nothing"}, "is not there"),
        (PAIR | {"required_n": 0}, "required_n"),
        (PAIR | {"colour": "red"}, "colour"),
        (CHECK | {"rule": "no-such-rule"}, "there is no rule"),
        (CHECK | {"rule": "violence@99"}, "there is no rule"),
        (CHECK | {"rule": None}, "needs a rule"),
        (PAIR | {"judgments": [said("ana", choice="above")]}, "choice"),
        (PAIR | {"judgments": [said("ana", kind="rating", rating=3)]}, "kind"),
        (CHECK | {"judgments": [said("ana", verdict="broken", span="not in it")]}, "not in the completion"),
        (RANKING | {"judgments": [said("ana", ranks=[1, 2, 3, 4])]}, "4 ranks for 3"),
        (PAIR | {"judgments": [said("", choice="left")]}, "annotator"),
        (PAIR | {"judgments": [said("ana", choice="left") | {"shown_order": [1, 1]}]}, "shown_order"),
        ({"kind": "probe", "rule": "violence", "judgments": [said("a", turns=[{"completion_id": "x", "verdict": "kept"}])]},
         "replies"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_is_told_with_its_line_and_leaves_nothing(
    database: Database, tmp_path: Path, row: Any, reason: str
) -> None:
    report = take_rows(database, tmp_path, ONE | {"kind": "rating"}, row)
    assert [line for line, _ in report.errors] == [2]
    assert reason in report.errors[0][1]
    assert (report.tasks, count(database, Task), count(database, Completion), count(database, Person)) == (1, 1, 1, 0)


def test_a_dry_run_says_the_same_and_keeps_nothing(database: Database, tmp_path: Path) -> None:
    rows = [PAIR | {"judgments": [said("ana", choice="left")]}, PAIR, "no json", RANKING]
    before = counts(database)
    dry = take_rows(database, tmp_path, *rows, dry_run=True)
    assert counts(database) == before
    real = take_rows(database, tmp_path, *rows)
    assert (dry.tasks, dry.judgments, dry.errors) == (real.tasks, real.judgments, real.errors) == (2, 1, real.errors)


def test_text_that_databases_refuse_is_mended() -> None:
    row = read_row(
        PAIR | {"completions": ["a\0b", "half \ud83d"], "messages": [{"role": "user", "content": "x\r\ny"}]}, 1
    )
    assert row.completions == ["ab", "half ?"]
    assert row.messages[0].content == "x\ny"


def test_a_row_is_named_by_its_line() -> None:
    with pytest.raises(ImportRowError) as caught:
        read_row({}, 17)
    assert caught.value.line == 17


def test_an_import_that_is_killed_is_repeated(database: Database, settings: Settings, tmp_path: Path) -> None:
    """SIGKILL somewhere in the middle; the second run brings the rest, and nothing twice."""
    rows = [
        PAIR | {"completions": [f"In hedge {n}.", f"On cliff {n}."], "judgments": [said("ana", choice="left")]}
        for n in range(1500)
    ]
    path = write(tmp_path / "tasks.jsonl", rows)
    environment = {
        **os.environ, "DUNNOCK_DATABASE_URL": settings.db_url, "DUNNOCK_VAR_DIR": str(settings.var_dir),
        "DUNNOCK_SECRET_KEY": settings.secret_key,
    }  # fmt: skip
    line = [sys.executable, "-m", "flask", "--app", "app", "import-tasks", str(path)]
    run = subprocess.Popen(line, cwd=ROOT, env=environment)
    deadline = time.monotonic() + 120
    while count(database, Task) == 0:
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    first = count(database, Task)
    assert 0 < first < 1500
    assert first == count(database, Judgment)
    report = take(database, path)
    assert (report.tasks, report.tasks_there, report.errors) == (1500 - first, first, [])
    assert (count(database, Task), count(database, Judgment)) == (1500, 1500)


def test_on_postgresql_it_is_the_same(postgres_database: Database, tmp_path: Path) -> None:
    with postgres_database.session() as session:
        ensure_rules(session)
    rows = [PAIR | {"judgments": [said("ana", choice="left")]}, CHECK | {"rule": "nope"}, RANKING, CHECK]
    report = take_rows(postgres_database, tmp_path, *rows)
    assert (report.tasks, report.judgments, [line for line, _ in report.errors]) == (3, 1, [2])
    assert take_rows(postgres_database, tmp_path, *rows).tasks == 0


# The command ----------------------------------------------------------------------------------------------------------


def run(app: Flask, *arguments: str) -> Any:
    with app.app_context():
        return app.test_cli_runner().invoke(args=["import-tasks", *arguments])


def test_the_command_tells_what_it_did(app: Flask, database: Database, tmp_path: Path) -> None:
    path = write(tmp_path / "tasks.jsonl", [PAIR | {"judgments": [said("ana", choice="left")]}, "x"])
    done = run(app, str(path), "--dry-run")
    assert done.exit_code == 0
    assert done.output.startswith("dry run: 1 tasks imported")
    assert count(database, Task) == 0
    done = run(app, str(path))
    assert "1 tasks imported, 0 there already; 1 judgments imported, 0 there already; 1 left out" in done.output
    assert "line 2: is not JSON" in done.output
    assert run(app, str(path)).exit_code == 0  # all of it is there: that is good


@pytest.mark.parametrize("rows", [["x"], [], [{"kind": "pairwise"}]])
def test_the_command_fails_where_no_row_was_good(app: Flask, tmp_path: Path, rows: list[Any]) -> None:
    assert run(app, str(write(tmp_path / "tasks.jsonl", rows))).exit_code == 1


def test_the_command_fails_on_a_file_that_is_not_there(app: Flask) -> None:
    done = run(app, "no.jsonl")
    assert done.exit_code == 1
    assert "no.jsonl is not there" in done.output


def test_options_say_what_rows_do_not(app: Flask, database: Database, tmp_path: Path) -> None:
    row = {"ask": "Where?", "one": "In a hedge.", "two": "On a cliff."}
    path = write(tmp_path / "tasks.jsonl", [row])
    done = run(
        app, str(path), "--field", "prompt=ask", "--field", "a=two", "--field", "b=one", "--pool", "informative",
        "--priority", "3", "--required-n", "2",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    with database.read() as session:
        task = session.scalars(select(Task)).one()
        assert (task.pool, task.priority, task.required_n) == ("informative", 3, 2)
        assert [completion.text for completion in task.completions] == ["On a cliff.", "In a hedge."]
