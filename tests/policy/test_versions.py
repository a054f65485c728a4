"""Policy versions: promoted once and on a passing report only, brought back in turn, one active at most."""

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core.db import Database
from core.errors import Conflict, NotFound
from feedback.models import Snapshot
from finetune.models import Cycle
from policy.models import GateReport, PolicyVersion, Promotion
from policy.versions import (
    active_version,
    ensure_base_version,
    find_version,
    promote,
    register_candidate,
    rollback,
)
from tests.factories import make_policy_version

SHA = "0" * 64


@pytest.fixture(params=["database", "postgres_database"])
def db(request: pytest.FixtureRequest) -> Database:
    """A migrated database, once of each kind."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def base(session: Session) -> PolicyVersion:
    return ensure_base_version(session, "tiny", SHA)


def candidate(session: Session, *, passed: bool | None = True, incumbent: PolicyVersion | None = None) -> PolicyVersion:
    """The candidate of a new cycle, judged by the gate beside what is active now (or `incumbent`)."""
    cycle = Cycle(reason="manual", settings={})
    session.add(cycle)
    session.flush()
    snapshot = Snapshot(content_sha256=f"{cycle.id:064}", path="x", manifest={})
    session.add(snapshot)
    session.flush()
    version = register_candidate(
        session, base=find_version(session, "base"), cycle_id=cycle.id, snapshot_id=snapshot.id,
        adapter_path=f"adapters/v{cycle.id}", adapter_sha256="a" * 64, reference="base, adapters off",
    )  # fmt: skip
    if passed is not None:
        incumbent = incumbent or active_version(session)
        session.add(
            GateReport(policy_version_id=version.id, incumbent_id=incumbent.id, passed=passed, checks=[], evidence={})
        )
        session.flush()
    return version


def promoted(session: Session) -> PolicyVersion:
    version = candidate(session)
    promote(session, version, actor="cycle", reason="passed", once=f"cycle:{version.cycle_id}")
    return version


def history(session: Session) -> list[tuple[str, str]]:
    """(kind, version) of each promotion, oldest first."""
    rows = session.execute(
        select(Promotion.kind, PolicyVersion.name)
        .join(PolicyVersion, PolicyVersion.id == Promotion.policy_version_id)
        .order_by(Promotion.id)
    )
    return [(kind, name) for kind, name in rows]


def states(session: Session) -> dict[str, str]:
    return dict(session.execute(select(PolicyVersion.name, PolicyVersion.state)).all())


# --- the first


def test_nothing_is_active_before_the_base_is_known(session: Session) -> None:
    with pytest.raises(NotFound, match="make run") as caught:
        active_version(session)
    assert caught.value.code == "no_active_policy"
    with pytest.raises(NotFound, match="no policy version 'base'"):
        find_version(session, "base")


def test_the_base_is_active_first_and_once(session: Session, base: PolicyVersion) -> None:
    assert active_version(session).name == "base"
    assert ensure_base_version(session, "tiny", SHA).id == base.id
    assert history(session) == [("first", "base")]
    first = promoted(session)
    ensure_base_version(session, "tiny", SHA)  # the next start brings nothing back
    assert active_version(session).id == first.id


def test_other_weights_than_the_versions_were_trained_on_are_refused(session: Session, base: PolicyVersion) -> None:
    with pytest.raises(Conflict, match=r"tiny \(000000000000….*adapters do not carry over"):
        ensure_base_version(session, "other", "1" * 64)
    assert history(session) == [("first", base.name)]


def test_a_cycle_has_one_candidate(session: Session, base: PolicyVersion) -> None:
    version = candidate(session)
    again = register_candidate(
        session, base=base, cycle_id=version.cycle_id or 0, snapshot_id=version.snapshot_id or 0,
        adapter_path="elsewhere", adapter_sha256="f" * 64, reference="x",
    )  # fmt: skip
    assert (again.id, again.adapter_path) == (version.id, version.adapter_path)
    assert (version.name, version.state, version.base_sha256) == (f"v{version.cycle_id}", "candidate", SHA)


# --- promotion


@pytest.mark.parametrize("passed", [None, False])
def test_without_a_passing_report_nothing_is_promoted(
    session: Session, base: PolicyVersion, *, passed: bool | None
) -> None:
    version = candidate(session, passed=passed)
    with pytest.raises(Conflict, match="no gate report" if passed is None else "did not pass"):
        promote(session, version, actor="ana", reason="I like it", once="by hand")
    assert active_version(session).id == base.id
    assert history(session) == [("first", "base")]
    assert version.state == "candidate"


def test_a_promotion_replaces_the_incumbent_and_names_its_grounds(session: Session, base: PolicyVersion) -> None:
    version = candidate(session)
    row = promote(session, version, actor="cycle", reason="passed", once="cycle:1")
    report = session.scalars(select(GateReport)).one()
    assert (row.policy_version_id, row.former_id, row.gate_report_id) == (version.id, base.id, report.id)
    assert (row.kind, row.actor, row.reason) == ("promote", "cycle", "passed")
    assert states(session) == {"base": "retired", version.name: "active"}


def test_a_promotion_happens_once(session: Session, base: PolicyVersion) -> None:
    version = candidate(session)
    first = promote(session, version, actor="cycle", reason="passed", once="cycle:1")
    assert promote(session, version, actor="cycle", reason="again", once="cycle:1").id == first.id
    rollback(session, actor="ana")
    assert promote(session, version, actor="cycle", reason="resumed", once="cycle:1").id == first.id
    assert active_version(session).id == base.id  # a resumed cycle does not undo a person's rollback
    assert len(history(session)) == 3


def test_a_version_that_was_gated_against_another_incumbent_is_not_promoted(
    session: Session, base: PolicyVersion
) -> None:
    late = candidate(session)
    winner = promoted(session)
    with pytest.raises(Conflict, match=f"against another version than {winner.name}.*gate it again"):
        promote(session, late, actor="cycle", reason="passed", once="late")
    assert active_version(session).id == winner.id


# --- rollback


def test_a_rollback_brings_back_what_was_there_and_a_second_one_goes_further(
    session: Session, base: PolicyVersion
) -> None:
    one, two = promoted(session), promoted(session)
    row = rollback(session, actor="ana", reason="complaints")
    assert active_version(session).id == one.id
    assert (row.kind, row.former_id, row.actor, row.reason) == ("rollback", two.id, "ana", "complaints")
    rollback(session, actor="ana")
    assert active_version(session).id == base.id
    with pytest.raises(Conflict, match="no version before base; nothing was changed"):
        rollback(session, actor="ana")
    assert active_version(session).id == base.id
    kinds = [
        ("first", "base"),
        ("promote", one.name),
        ("promote", two.name),
        ("rollback", one.name),
        ("rollback", "base"),
    ]
    assert history(session) == kinds


def test_after_a_rollback_another_round_can_promote_and_be_rolled_back(session: Session, base: PolicyVersion) -> None:
    promoted(session)
    rollback(session, actor="ana")
    two = promoted(session)
    assert active_version(session).id == two.id
    rollback(session, actor="ana")
    assert active_version(session).id == base.id


def test_nothing_to_go_back_to(session: Session, base: PolicyVersion) -> None:
    with pytest.raises(Conflict, match="nothing was changed"):
        rollback(session, actor="ana")
    assert active_version(session).id == base.id


def test_a_named_version_is_brought_back_if_it_was_ever_active(session: Session, base: PolicyVersion) -> None:
    one, two = promoted(session), promoted(session)
    never = candidate(session)
    rollback(session, actor="ana", to="base")
    assert active_version(session).id == base.id
    rollback(session, actor="ana", to=two.name)
    assert active_version(session).id == two.id
    for name in (never.name, two.name):
        with pytest.raises(Conflict, match=f"{name} is active already or never was"):
            rollback(session, actor="ana", to=name)
    with pytest.raises(NotFound, match="'v99'"):
        rollback(session, actor="ana", to="v99")
    assert states(session) == {
        "base": "retired", one.name: "retired", two.name: "active", never.name: "candidate"
    }  # fmt: skip


# --- the database


def test_the_database_allows_one_active_version(db: Database) -> None:
    with db.session() as session:
        make_policy_version(session, "one", "active")
        make_policy_version(session, "two", "retired")
        make_policy_version(session, "three", "retired")  # many that are not active are fine
    with pytest.raises(IntegrityError), db.session() as session:
        make_policy_version(session, "four", "active")
    with pytest.raises(IntegrityError), db.session() as session:
        find_version(session, "two").state = "active"
    with db.read() as session:
        assert states(session) == {"one": "active", "two": "retired", "three": "retired"}


def test_promotion_and_rollback_on_both_databases(db: Database) -> None:
    with db.session() as session:
        ensure_base_version(session, "tiny", SHA)
        one = promoted(session)
    with db.session() as session:
        two = promoted(session)
    with pytest.raises(RuntimeError, match="power cut"), db.session() as session:
        rollback(session, actor="ana")
        raise RuntimeError("power cut")
    with db.read() as session:
        assert active_version(session).id == two.id
    with db.session() as session:
        rollback(session, actor="ana")
    with db.read() as session:
        assert active_version(session).id == one.id
        assert states(session) == {"base": "retired", one.name: "active", two.name: "retired"}


def test_a_promotion_is_named_once_in_the_database(db: Database) -> None:
    with db.session() as session:
        version = make_policy_version(session, "one")
        session.add(Promotion(kind="first", policy_version_id=version.id, once="x", actor="a"))
    with pytest.raises(IntegrityError), db.session() as session:
        session.add(Promotion(kind="promote", policy_version_id=version.id, once="x", actor="b"))
