"""Links that let somebody in once: for whom they may be made, and when they stop working."""

import datetime as dt
import threading
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from access.invitations import accept, find_open, invite, make_reset, revoke, state_of
from access.keys import authenticate, create_key
from access.linked import identities_of
from access.models import ROLES, AuditLog, Invitation, OidcIdentity, Person
from access.people import check_password
from access.roster import change_role, set_active
from core.db import Database, utcnow
from core.errors import Conflict, DunnockError, Forbidden, InvalidInput, NotFound, Unauthenticated
from tests.factories import PASSWORD, make_person

NEW = "nine quiet grey herons"
DAY_S = 86400


@pytest.fixture
def staff(session: Session) -> dict[str, Person]:
    """One of each role."""
    return {role: make_person(session, role, role) for role in ROLES}


def test_who_may_invite_whom(session: Session, staff: dict[str, Person]) -> None:
    given = {"annotator": set(), "reviewer": set(), "lead": {"annotator", "reviewer"}, "admin": set(ROLES)}
    for maker, person in staff.items():
        for role in ROLES:
            if role in given[maker]:
                assert invite(session, person, role, "", DAY_S)[0].role == role
            else:
                with pytest.raises(Forbidden):
                    invite(session, person, role, "", DAY_S)
    with pytest.raises(InvalidInput):
        invite(session, staff["admin"], "king", "", DAY_S)


def test_a_link_works_once_and_its_token_is_not_stored(session: Session, staff: dict[str, Person]) -> None:
    row, token = invite(session, staff["lead"], "reviewer", " for Ana ", DAY_S)
    assert token not in {str(value) for value in vars(row).values()}
    assert row.note == "for Ana"
    person = accept(session, find_open(session, token), "ana", NEW)
    assert (person.role, check_password(session, "ana", NEW).id) == ("reviewer", person.id)
    assert (state_of(row), row.used_by_id) == ("used", person.id)
    with pytest.raises(NotFound):
        find_open(session, token)
    with pytest.raises(NotFound):
        accept(session, row, "ben", NEW)
    acts = session.execute(select(AuditLog.actor, AuditLog.action).order_by(AuditLog.id)).all()
    assert acts[:3] == [("lead", "invitation.make"), ("ana", "person.add"), ("ana", "invitation.accept")]


def make_expired(session: Session, row: Invitation, staff: dict[str, Person]) -> None:
    session.execute(update(Invitation).values(expires_at=utcnow() - dt.timedelta(seconds=1)))
    session.expire_all()


def make_revoked(session: Session, row: Invitation, staff: dict[str, Person]) -> None:
    revoke(session, staff["admin"], row.id)


def deactivate_maker(session: Session, row: Invitation, staff: dict[str, Person]) -> None:
    set_active(session, staff["admin"], staff["lead"].id, False)


def demote_maker(session: Session, row: Invitation, staff: dict[str, Person]) -> None:
    change_role(session, staff["admin"], staff["lead"].id, "annotator")


@pytest.mark.parametrize("happens", [make_expired, make_revoked, deactivate_maker, demote_maker])
def test_a_link_that_is_void(
    session: Session,
    staff: dict[str, Person],
    happens: Callable[[Session, Invitation, dict[str, Person]], None],
) -> None:
    row, token = invite(session, staff["lead"], "annotator", "", DAY_S)
    assert find_open(session, token).id == row.id
    happens(session, row, staff)
    with pytest.raises(NotFound, match="ask for a new one") as caught:
        find_open(session, token)
    assert caught.value.code == "link_void"


def test_unknown_tokens_get_the_same_words(session: Session, staff: dict[str, Person]) -> None:
    row, _ = invite(session, staff["lead"], "annotator", "", DAY_S)
    for token in ("", "x", row.token_sha256):
        with pytest.raises(NotFound, match="ask for a new one"):
            find_open(session, token)


def test_a_bad_login_or_password_does_not_use_the_link_up(session: Session, staff: dict[str, Person]) -> None:
    row, token = invite(session, staff["lead"], "annotator", "", DAY_S)
    for login, password, error in [("ana", "short", InvalidInput), ("lead", NEW, Conflict), ("", NEW, InvalidInput)]:
        with pytest.raises(error):
            accept(session, row, login, password)
    assert find_open(session, token).used_at is None


def test_a_reset_link_changes_nothing_until_it_is_used(session: Session, staff: dict[str, Person]) -> None:
    _, first = make_reset(session, staff["lead"], staff["annotator"].id, DAY_S)
    _, second = make_reset(session, staff["lead"], staff["annotator"].id, DAY_S)
    assert check_password(session, "annotator", PASSWORD)
    with pytest.raises(NotFound):
        find_open(session, first)
    accept(session, find_open(session, second), "somebody else's login is ignored", NEW)
    assert check_password(session, "annotator", NEW)
    with pytest.raises(Unauthenticated):
        check_password(session, "annotator", PASSWORD)
    with pytest.raises(NotFound):
        find_open(session, second)


def test_a_reset_ends_the_keys_that_somebody_else_may_have_made(session: Session, staff: dict[str, Person]) -> None:
    key, secret = create_key(session, staff["annotator"], "stolen")
    _, others = create_key(session, staff["reviewer"], "laptop")
    _, token = make_reset(session, staff["lead"], staff["annotator"].id, DAY_S)
    assert authenticate(session, secret, "chat").key_id == key.id
    accept(session, find_open(session, token), "", NEW)
    with pytest.raises(Unauthenticated):
        authenticate(session, secret, "chat")
    assert authenticate(session, others, "chat").person_id == staff["reviewer"].id
    entries = session.scalars(select(AuditLog).where(AuditLog.action.in_(("key.revoke", "person.password")))).all()
    assert [(entry.actor, entry.subject) for entry in entries] == [
        ("annotator", f"api_key:{key.id}"), ("annotator", f"person:{staff['annotator'].id}"),
    ]  # fmt: skip


def test_a_reset_unlinks_identities_that_somebody_else_may_have_linked(
    session: Session, staff: dict[str, Person]
) -> None:
    for name in ("annotator", "reviewer"):
        session.add(OidcIdentity(person_id=staff[name].id, issuer="https://id.example", subject=name, email=None))
    session.flush()
    _, token = make_reset(session, staff["lead"], staff["annotator"].id, DAY_S)
    assert len(identities_of(session, staff["annotator"].id)) == 1
    accept(session, find_open(session, token), "", NEW)
    assert identities_of(session, staff["annotator"].id) == []
    assert len(identities_of(session, staff["reviewer"].id)) == 1
    (entry,) = session.scalars(select(AuditLog).where(AuditLog.action == "identity.unlink")).all()
    assert (entry.actor, entry.subject) == ("annotator", f"person:{staff['annotator'].id}")
    assert entry.before["subject"] == "annotator"


def test_no_reset_above_ones_own_and_none_for_those_who_are_shut_out(
    session: Session, staff: dict[str, Person]
) -> None:
    other_lead = make_person(session, "other-lead", "lead")
    for target in (staff["admin"], other_lead, staff["lead"]):
        with pytest.raises(Forbidden):
            make_reset(session, staff["lead"], target.id, DAY_S)
    gone, script = make_person(session, active=False), make_person(session, scripted=True)
    for target in (gone, script):
        with pytest.raises(Conflict):
            make_reset(session, staff["lead"], target.id, DAY_S)
    _, token = make_reset(session, staff["lead"], staff["reviewer"].id, DAY_S)
    change_role(session, staff["admin"], staff["reviewer"].id, "lead")
    with pytest.raises(NotFound):  # the lead could not make it any more
        find_open(session, token)


def test_a_reset_link_of_somebody_who_is_shut_out_meanwhile(session: Session, staff: dict[str, Person]) -> None:
    _, token = make_reset(session, staff["lead"], staff["annotator"].id, DAY_S)
    set_active(session, staff["lead"], staff["annotator"].id, False)
    with pytest.raises(NotFound):
        find_open(session, token)


def test_a_lead_revokes_no_admins_invitation_for_a_lead(session: Session, staff: dict[str, Person]) -> None:
    row, token = invite(session, staff["admin"], "lead", "", DAY_S)
    with pytest.raises(Forbidden):
        revoke(session, staff["lead"], row.id)
    assert find_open(session, token)
    with pytest.raises(NotFound):
        revoke(session, staff["lead"], 999)


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A migrated database of either kind."""
    return request.getfixturevalue("database" if request.param == "sqlite" else "postgres_database")


def test_of_two_who_use_a_link_at_once_one_gets_in(db: Database) -> None:
    with db.session() as session:
        _, token = invite(session, make_person(session, "lead", "lead"), "annotator", "", DAY_S)
    start, outcomes = threading.Barrier(6), []

    def use(n: int) -> None:
        start.wait()
        try:
            with db.session() as session:
                accept(session, find_open(session, token), f"twin-{n}", NEW)
            outcomes.append("in")
        except DunnockError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=use, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["in", *["link_void"] * 5]
    with db.read() as session:
        assert len(session.scalars(select(Person).where(Person.login.startswith("twin"))).all()) == 1
