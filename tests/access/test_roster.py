"""Who may change whom."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from access.keys import authenticate, create_key
from access.models import ROLES, AuditLog, Person
from access.roster import PAGE, change_role, end_all_sessions, find_person, list_people, set_active
from access.sessions import find_session, open_session
from core.db import Database
from core.errors import Conflict, DunnockError, Forbidden, InvalidInput, NotFound, Unauthenticated
from core.settings import Settings
from tests.factories import make_person


@pytest.fixture
def staff(session: Session) -> dict[str, Person]:
    """One of each role."""
    return {role: make_person(session, role, role) for role in ROLES}


def test_a_lead_moves_people_between_annotator_and_reviewer_only(session: Session, staff: dict[str, Person]) -> None:
    lead = staff["lead"]
    assert change_role(session, lead, staff["annotator"].id, "reviewer").role == "reviewer"
    for target, role in [("annotator", "lead"), ("annotator", "admin"), ("admin", "annotator")]:
        with pytest.raises(Forbidden):
            change_role(session, lead, staff[target].id, role)
    with pytest.raises(InvalidInput):
        change_role(session, lead, staff["annotator"].id, "king")
    with pytest.raises(NotFound):
        change_role(session, lead, 999, "reviewer")
    for actor in ("annotator", "reviewer"):
        with pytest.raises(Forbidden):
            change_role(session, staff[actor], make_person(session).id, "reviewer")


def test_nobody_changes_themselves(session: Session, staff: dict[str, Person]) -> None:
    make_person(session, "second-admin", "admin")
    for person in staff.values():
        for act in (
            lambda p: change_role(session, p, p.id, "annotator"),
            lambda p: set_active(session, p, p.id, False),
            lambda p: end_all_sessions(session, p, p.id),
        ):
            with pytest.raises(Forbidden, match="nobody changes their own"):
                act(person)


def test_what_changes_is_in_the_log_and_what_does_not_is_not(session: Session, staff: dict[str, Person]) -> None:
    admin, target = staff["admin"], staff["annotator"]
    change_role(session, admin, target.id, "lead")
    change_role(session, admin, target.id, "lead")
    set_active(session, admin, target.id, False)
    set_active(session, admin, target.id, False)
    set_active(session, admin, target.id, True)
    rows = session.execute(select(AuditLog.action, AuditLog.before, AuditLog.after).order_by(AuditLog.id)).all()
    assert rows == [
        ("person.role", {"role": "annotator"}, {"role": "lead"}),
        ("person.deactivate", {"active": True}, {"active": False}),
        ("person.activate", {"active": False}, {"active": True}),
    ]


def test_shutting_somebody_out_ends_sessions_and_stops_keys(
    session: Session, staff: dict[str, Person], settings: Settings
) -> None:
    person = staff["annotator"]
    _, token = open_session(session, person, "password", address="", user_agent="")
    _, secret = create_key(session, person, "app")
    set_active(session, staff["lead"], person.id, False)
    assert find_session(session, token, settings) is None
    with pytest.raises(Unauthenticated):
        authenticate(session, secret, "chat")
    set_active(session, staff["lead"], person.id, True)
    assert find_session(session, token, settings) is None  # letting in again does not bring old browsers back
    assert authenticate(session, secret, "chat").person_id == person.id


def test_the_last_admin_stays(session: Session, staff: dict[str, Person]) -> None:
    second = make_person(session, "second", "admin")
    make_person(session, "gone", "admin", active=False)
    change_role(session, second, staff["admin"].id, "lead")
    with pytest.raises(Forbidden):  # who did it is a lead now
        change_role(session, staff["admin"], second.id, "lead")
    other = make_person(session, "other", "admin")
    set_active(session, other, second.id, False)
    script = make_person(session, "script", "admin", scripted=True)  # it cannot sign in, so it does not count
    for act in (
        lambda: change_role(session, script, other.id, "lead"),
        lambda: set_active(session, script, other.id, False),
    ):
        with pytest.raises(Conflict, match="last admin"):
            act()


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A migrated database of either kind."""
    return request.getfixturevalue("database" if request.param == "sqlite" else "postgres_database")


@pytest.mark.parametrize("attempt", range(4))
def test_two_admins_who_remove_each_other_at_once(db: Database, attempt: int) -> None:
    with db.session() as session:
        pair = [make_person(session, name, "admin") for name in ("one", "two")]
    start, outcomes = threading.Barrier(2), []

    def remove(actor: Person, target: Person) -> None:
        try:
            with db.session() as session:
                session.connection()  # both are in a transaction before either goes on, where the database lets them
                if not db.is_sqlite:
                    start.wait()
                set_active(session, actor, target.id, False)
            outcomes.append("done")
        except DunnockError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=remove, args=args) for args in [(pair[0], pair[1]), (pair[1], pair[0])]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["done", "forbidden"]  # who comes second is let in no more
    with db.read() as session:
        assert len(session.scalars(select(Person.id).where(Person.active.is_(True))).all()) == 1


@pytest.mark.parametrize("role", ["lead", "admin"])
@pytest.mark.parametrize("changed", [{"role": "annotator"}, {"active": False}])
def test_who_has_lost_their_role_meanwhile_changes_nobody(
    session: Session, staff: dict[str, Person], role: str, changed: dict[str, object]
) -> None:
    """The request was let in before."""
    actor, target = staff[role], staff["annotator"]
    asked = SimpleNamespace(id=actor.id, login=actor.login, role=actor.role)
    make_person(session, "second", "admin")
    for name, value in changed.items():
        setattr(actor, name, value)
    session.flush()
    for act in (
        lambda: change_role(session, asked, target.id, "reviewer"),
        lambda: set_active(session, asked, target.id, False),
        lambda: end_all_sessions(session, asked, target.id),
    ):
        with pytest.raises(Forbidden, match="changed just now"):
            act()
    assert session.scalars(select(AuditLog)).all() == []


def test_the_list_searches_filters_and_pages(session: Session) -> None:
    for n in range(PAGE + 5):
        make_person(session, f"bird-{n:03}")
    make_person(session, "Wren_50%", "reviewer", active=False)
    first, after = list_people(session)
    second, end = list_people(session, after=after or "")
    assert (len(first), after, end) == (PAGE, first[-1].person.login, None)
    logins = [row.person.login for row in [*first, *second]]
    assert logins == sorted(logins)
    assert len(set(logins)) == PAGE + 6

    def found(**filters: object) -> list[str]:
        return [row.person.login for row in list_people(session, **filters)[0]]

    assert found(search="wREN") == ["Wren_50%"]
    assert found(search="_50%") == ["Wren_50%"]
    assert found(search="%") == ["Wren_50%"]
    assert found(role="reviewer") == found(active=False) == ["Wren_50%"]
    assert found(search="wren", active=True) == []


def test_the_list_says_when_somebody_was_seen(session: Session) -> None:
    person = make_person(session, "ana")
    assert list_people(session)[0][0].last_seen_at is None
    rows = [open_session(session, person, "password", address="", user_agent="")[0] for _ in range(2)]
    assert list_people(session)[0][0].last_seen_at == rows[1].last_seen_at
    with pytest.raises(NotFound):
        find_person(session, 999)
