"""Migrations on real databases, SQLite and PostgreSQL: one head, from empty, no drift, down and up, rows that survive."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import delete, insert, inspect, select, text
from sqlalchemy.exc import IntegrityError

from access.audit import record
from access.keys import create_key
from access.tenants import Agreed, create_tenant, make_key
from core.db import Base, Database, utcnow
from core.messages import user
from core.settings import AssignmentSettings, Settings
from feedback.assignment.leases import next_assignment
from feedback.judgments import record_feedback, submit_judgment
from feedback.kinds.frame import RuleVerdict
from feedback.kinds.pairwise import PairwiseForm
from feedback.kinds.ranking import RankingForm
from feedback.models import ImportedPair, RuleVersion
from feedback.prompts import add_prompt
from feedback.rules.store import active_rules, ensure_rules, find_rule, starter_rules
from feedback.tasks import create_gold
from reward.models import RewardModel
from tests import factories
from tests.conftest import migrate
from tests.console.rows import make_promoted

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.timeout(300)

EMPTY = {
    "draft", "lease", "snapshot_judgment",
    "gold", "gold_result", "annotator",  # gone below 0003
    "imported_judgment", "webhook", "webhook_delivery",  # gone below 0006
    "stage_step",  # gone below 0010
    "guard_report",  # gone below 0013
    "tenant", "tenant_usage", "pace",  # gone below 0014
    "sampled_day",  # gone below 0015
    "cached_reply",  # gone below 0017
    "system_prompt", "system_prompt_version", "system_prompt_share", "rule_threshold",  # gone below 0018
    "session_record", "oidc_identity", "invitation", "sign_in_attempt",  # gone below 0005
}  # fmt: skip


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database of either kind."""
    lite = request.param == "sqlite"
    database = Database(f"sqlite:///{tmp_path / 'm.db'}" if lite else request.getfixturevalue("postgres_url"))
    yield database
    database.dispose()


def config_of(database: Database) -> Config:
    config = Config(ROOT / "alembic.ini")
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.attributes["database"] = database
    return config


def revisions() -> list[str]:
    """All revisions, oldest first."""
    script = ScriptDirectory(str(ROOT / "migrations"))
    return [found.revision for found in reversed(list(script.walk_revisions()))]


def tables_of(database: Database) -> set[str]:
    return set(inspect(database.engine).get_table_names())


def differences(database: Database) -> list[Any]:
    """What the tables' definitions say and the database does not, or the other way round."""
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return list(compare_metadata(context, Base.metadata))


LOST = {
    "rule_version": {"title", "category", "kept_examples", "broken_examples", "author_id", "note"},
    "audit_log": {"via"},
}
"""Columns that an older schema has no place for: their values do not come back from a way down."""


def rows_of(database: Database, but: dict[str, set[str]] | None = None) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, in a stable order; without the columns named in `but`."""
    with database.read() as session:
        return {
            table.name: sorted(
                (
                    tuple(row)
                    for row in session.execute(
                        select(*(c for c in table.columns if c.name not in (but or {}).get(table.name, ())))
                    )
                ),
                key=repr,
            )
            for table in Base.metadata.sorted_tables
        }


def fill(database: Database, settings: Settings) -> None:
    """Rows in nearly every table, through the code that writes them."""
    with database.session() as session:
        ensure_rules(session)
        person = factories.make_person(session, "annotator")
        create_key(session, person, "laptop")
        record(session, "annotator", "test.fill", "database", before={"rows": 0}, after={"rows": 1})
        task = factories.make_pairwise_task(session, factories.make_prompt(session, "Wo brütet sie? 🐦", harmful=False))
        assignment = next_assignment(session, person.id, 60)
        broken = RuleVerdict(rule_version_id=active_rules(session)[0].id, item=0, span="moss")
        form = PairwiseForm(
            choice="right", strength=2, rule_verdicts=[broken], corrections={0: "In a hedge, low down."}
        )
        submit_judgment(session, token=assignment.lease_token, annotator_id=person.id, form=form, latency_s=1.5)
        record_feedback(
            session, completion_id=task.completions[0].id, annotator_id=None, thumbs=1, rating=4, note="fine"
        )
        session.add(
            ImportedPair(
                pair_sha256="1" * 64, prompt_id=task.prompt_id, chosen_id=task.completions[0].id,
                rejected_id=task.completions[1].id, source="pairs.jsonl@1", margin=0.5,
            )
        )  # fmt: skip
        make_promoted(session, settings)
        session.execute(delete(RewardModel).where(RewardModel.kind == "rules"))  # gone below 0008


def test_one_head() -> None:
    script = ScriptDirectory(str(ROOT / "migrations"))
    assert len(script.get_heads()) == 1
    assert len(script.get_bases()) == 1


def test_file_names_read_as_a_story() -> None:
    names = sorted(path.name for path in (ROOT / "migrations" / "versions").glob("*.py"))
    script = ScriptDirectory(str(ROOT / "migrations"))
    assert [Path(script.get_revision(revision).path).name for revision in revisions()] == names


def test_from_empty(empty: Database) -> None:
    assert tables_of(empty) == set()
    migrate(empty)
    assert tables_of(empty) == {*Base.metadata.tables, "alembic_version"}
    migrate(empty)  # a second time changes nothing
    assert tables_of(empty) == {*Base.metadata.tables, "alembic_version"}


def test_no_drift(empty: Database) -> None:
    migrate(empty)
    assert differences(empty) == []
    command.check(config_of(empty))


def test_drift_would_be_seen(empty: Database) -> None:
    migrate(empty)
    with empty.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE lease")
        connection.exec_driver_sql("ALTER TABLE judgment ADD COLUMN mood VARCHAR(10)")
    assert {found[0] for found in differences(empty) if isinstance(found, tuple)} == {"add_table", "remove_column"}


def test_down_to_nothing_and_up_again(empty: Database, settings: Settings) -> None:
    """What comes up again takes back the rows that were there, and gives them out as they were."""
    migrate(empty)
    fill(empty, settings)
    before = rows_of(empty)
    command.downgrade(config_of(empty), "base")
    assert tables_of(empty) == {"alembic_version"}
    migrate(empty)
    assert differences(empty) == []
    assert not any(rows_of(empty).values())
    with empty.session() as session:
        for table in Base.metadata.sorted_tables:
            names = [column.name for column in table.columns]
            for row in before[table.name]:
                session.execute(insert(table).values(dict(zip(names, row, strict=True))))
    assert rows_of(empty) == before


def test_rows_survive_every_step_down_and_up(empty: Database, settings: Settings) -> None:
    """From the newest revision down to the first, step by step, and up again: what was stored is there as it was."""
    migrate(empty)
    fill(empty, settings)
    before = rows_of(empty, LOST)
    assert {name for name, rows in before.items() if not rows} <= EMPTY
    for revision in reversed(revisions()[:-1]):
        command.downgrade(config_of(empty), revision)
    for revision in revisions():
        migrate(empty, revision)
    assert rows_of(empty, LOST) == before
    assert differences(empty) == []


def test_what_an_older_schema_cannot_hold_goes_and_the_rest_stays(empty: Database, settings: Settings) -> None:
    migrate(empty)
    fill(empty, settings)
    before = rows_of(empty)
    with empty.session() as session:
        person = factories.make_person(session, "ben", role="reviewer")
        prompt = factories.make_prompt(session)
        ids = [factories.make_completion(session, prompt).id for _ in range(3)]
        create_gold(session, "ranking", prompt.id, ids, {"best": [0]}, source="gold:1")
        assignment = next_assignment(
            session, person.id, 60, shares=AssignmentSettings(gold=1, uniform=0, informative=0, flagged=0, repeat=0)
        )
        form = RankingForm(ranks=[1, 2, 3], corrections={0: "More moss."})
        submit_judgment(session, token=assignment.lease_token, annotator_id=person.id, form=form, latency_s=1)
    assert [len(rows_of(empty)[name]) for name in ("gold", "gold_result")] == [1, 1]
    command.downgrade(config_of(empty), "0002")
    migrate(empty)
    after = rows_of(empty)
    assert all(after[name] == before[name] for name in ("task", "task_item", "judgment", "assignment", "correction"))
    assert differences(empty) == []


def test_reward_models_of_rules_go_and_those_of_preferences_stay(empty: Database, settings: Settings) -> None:
    migrate(empty)
    with empty.session() as session:
        make_promoted(session, settings)
    before = [row for row in rows_of(empty)["reward_model"] if "preference" in row]
    assert len(rows_of(empty)["reward_model"]) == 2
    command.downgrade(config_of(empty), "0006")
    migrate(empty)
    assert rows_of(empty)["reward_model"] == before
    with empty.session() as session:
        model = session.scalars(select(RewardModel)).one()
        values = {name: getattr(model, name) for name in ("cycle_id", "snapshot_id", "path", "sha256", "evaluation")}
        session.add(RewardModel(kind="rules", clears_bar=True, **values))
        session.flush()
        session.add(RewardModel(kind="rules", clears_bar=True, **values))
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()


def test_prompts_of_tenants_become_one_and_their_keys_end(empty: Database) -> None:
    """Down below 0014: equal prompts are joined, what names them follows, a tenant's key opens nothing; and up again."""
    migrate(empty)
    with empty.session() as session:
        person = factories.make_person(session)
        create_key(session, person, "laptop")
        ids = []
        for name in ("Acme", "Beta"):
            tenant = create_tenant(session, "lead", Agreed(name))
            make_key(session, "lead", tenant.id, name)
            prompt = add_prompt(session, user("Hello?"), "served", tenant_id=tenant.id)
            ids.append((prompt.id, factories.make_completion(session, prompt).id))
        kept = factories.make_prompt(session, "Something else?").id
    command.downgrade(config_of(empty), "0013")
    with empty.engine.connect() as connection:
        prompts = connection.execute(text("SELECT id FROM prompt ORDER BY id")).scalars().all()
        assert prompts == [ids[0][0], kept]
        of = "SELECT prompt_id FROM completion WHERE id = :id"
        assert {connection.execute(text(of), {"id": id_}).scalar_one() for _, id_ in ids} == {ids[0][0]}
        revoked = connection.execute(text("SELECT name FROM api_key WHERE revoked_at IS NOT NULL")).scalars().all()
        assert sorted(revoked) == ["Acme", "Beta"]
    migrate(empty)
    assert differences(empty) == []


def test_rules_from_before_they_had_titles(empty: Database) -> None:
    """What 0004 makes of rules that are there: words kept, named as pages showed them, then completed by the starter set."""
    migrate(empty, "0002")
    weapons = next(entry for entry in starter_rules() if entry["slug"] == "weapons")
    with empty.engine.begin() as connection:
        for number, (slug, words, refusal, severity, active) in enumerate(
            (
                ("illegal_drugs", "Reworded by hand.", "No.", 3, True),
                ("house_rule", "No shoes.", "No.", 6, False),
                ("weapons", weapons["text"], weapons["refusal_text"], 3, True),
            ),
            1,
        ):
            row = {"id": number, "slug": slug, "at": utcnow().replace(tzinfo=None)}
            connection.execute(text("INSERT INTO rule (id, slug, created_at) VALUES (:id, :slug, :at)"), row)
            connection.execute(
                text(
                    "INSERT INTO rule_version (rule_id, version, text, refusal_text, severity, active, created_at)"
                    " VALUES (:id, 1, :words, :refusal, :severity, :active, :at)"
                ),
                row | {"words": words, "refusal": refusal, "severity": severity, "active": active},
            )
        if not empty.is_sqlite:  # the ids above were given by hand
            connection.execute(text("SELECT setval(pg_get_serial_sequence('rule', 'id'), 3)"))
    migrate(empty)
    with empty.session() as session:
        found = list(session.scalars(select(RuleVersion).order_by(RuleVersion.id)))
        shown = [(v.rule.slug, v.title, v.category, v.text, v.severity, v.active, v.author_id, v.note) for v in found]
        assert shown == [
            ("illegal_drugs", "Illegal drugs", "crime", "Reworded by hand.", 3, True, None, ""),
            ("house_rule", "House rule", "other", "No shoes.", 3, False, None, ""),
            ("weapons", "Weapons", "harm", weapons["text"], 3, True, None, ""),
        ]
        assert [(v.kept_examples, v.broken_examples) for v in found] == [([], [])] * 3
    with empty.session() as session:
        assert ensure_rules(session) == len(starter_rules()) - 2
        assert find_rule(session, "illegal_drugs").version == 1
        assert find_rule(session, "house_rule").version == 1
        completed = find_rule(session, "weapons")
        assert (completed.version, completed.title, completed.text) == (2, weapons["title"], weapons["text"])
        assert completed.broken_examples


def test_two_at_once(empty: Database) -> None:
    """Two processes that migrate one empty database: the second waits, and both end well."""
    line = [sys.executable, "-m", "alembic", "-x", f"url={empty.url}", "upgrade", "head"]
    runs = [
        subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)
    ]
    for run in runs:
        said, _ = run.communicate(timeout=200)
        assert run.returncode == 0, said
    assert differences(empty) == []


def test_the_url_of_the_settings_is_used(settings: Settings, migrated: Callable[[Settings], None]) -> None:
    migrated(settings)
    assert (settings.var_dir / "dunnock.db").exists()


@pytest.fixture
def migrated(monkeypatch: pytest.MonkeyPatch) -> Callable[[Settings], None]:
    """Alembic called without a database, as from a terminal; it asks the settings."""

    def migrated(settings: Settings) -> None:
        monkeypatch.setattr("core.settings.get_settings", lambda: settings)
        config = Config(ROOT / "alembic.ini")
        config.set_main_option("script_location", str(ROOT / "migrations"))
        command.upgrade(config, "head")

    return migrated


def test_below_0015_nothing_is_left_to_learn_from_that_was_for_the_service_alone(empty: Database) -> None:
    migrate(empty)
    with empty.session() as session:
        for consent in ("service", "training", None):
            factories.make_completion(session, text=f"for {consent}", source="served", details={"consent": consent})
    below = ScriptDirectory(str(ROOT / "migrations")).get_revision("0015").down_revision
    command.downgrade(config_of(empty), str(below))
    with empty.engine.connect() as connection:
        texts = set(connection.exec_driver_sql("SELECT text FROM completion").scalars())
    assert texts == {"", "for training", "for None"}
