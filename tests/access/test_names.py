"""What somebody may be called, on both databases; and what a migration makes of people who were called alike before."""

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from access.models import Person
from access.names import PROCESSES, checked_login
from access.people import check_password, create_person, find_login, get_or_create_scripted, hash_password
from core.db import Database
from core.errors import Conflict, InvalidInput, Unauthenticated
from tests.conftest import migrate
from tests.factories import PASSWORD, make_person


@pytest.mark.parametrize(
    "login",
    [*sorted(PROCESSES), "Worker", "ｗｏｒｋｅｒ", "gold\u00a0check", "gold   check", "ext:argilla/1", "EXT:ana", "ext-script:x", "script-ada",
     "scripted-annotator", "demo"],
)  # fmt: skip
def test_names_of_processes_scripts_and_imports_are_kept(session: Session, login: str) -> None:
    with pytest.raises(InvalidInput, match="kept for programs"):
        create_person(session, login, PASSWORD, "annotator")


@pytest.mark.parametrize(
    "login",
    ["\u0430dmin", "adm\u0456n", "admin\ufe0f", "ad\u034fmin", "ext\u2236ana", "αna", "ana\u200d", "ａна", "a\u3164"],
)
def test_what_could_be_taken_for_another_login_is_refused(session: Session, login: str) -> None:
    with pytest.raises(InvalidInput, match="login"):
        create_person(session, login, PASSWORD, "annotator")


@pytest.mark.parametrize(
    "login", ["ana", "Zoë O'Neill", "a.b+c@birds.example", "Анна-2", "小鳥さん", "ليلى", "Ελένη", "अनिल"]
)
def test_names_of_one_script_are_welcome(session: Session, login: str) -> None:
    assert create_person(session, login, PASSWORD, "annotator").login == login


def test_a_login_is_stored_composed() -> None:
    assert checked_login("Zoe\u0308") == "Zoë"


def test_scripts_may_have_names_of_scripts_but_not_of_processes(session: Session) -> None:
    assert get_or_create_scripted(session, "script-ada").scripted
    with pytest.raises(InvalidInput, match="kept"):
        get_or_create_scripted(session, "worker")


@pytest.mark.parametrize("other", ["Admin", "ADMIN", "ａｄｍｉｎ", "adm\u0131n"])
def test_capitals_and_width_make_no_second_login(session: Session, other: str) -> None:
    create_person(session, "admin", PASSWORD, "admin")
    with pytest.raises(Conflict, match="taken"):
        create_person(session, other, PASSWORD, "annotator")
    assert check_password(session, other, PASSWORD).login == "admin"


@pytest.mark.parametrize("db", ["database", "postgres_database"])
def test_the_database_holds_it_where_two_come_at_once(request: pytest.FixtureRequest, db: str) -> None:
    database: Database = request.getfixturevalue(db)
    with database.session() as session:
        make_person(session, "admin")
    with pytest.raises(Exception, match=r"(?i)login_key"), database.session() as session:
        make_person(session, "Admin")
    with database.session() as session:  # files tell capitals apart
        make_person(session, "ext:ana")
        make_person(session, "ext:Ana")


@pytest.mark.parametrize("url", ["sqlite", "postgresql"])
def test_people_who_are_called_alike_already_stay_and_sign_in(request: pytest.FixtureRequest, url: str) -> None:
    where = request.getfixturevalue("tmp_path") / "old.db"
    database = Database(f"sqlite:///{where}" if url == "sqlite" else request.getfixturevalue("postgres_url"))
    migrate(database, "0008")
    logins = ["Admin", "admin", "worker", "ext:Ana", "ext:ana", "ß" * 120]
    with database.session() as session:
        for number, login in enumerate(logins, start=1):
            session.execute(
                text(
                    "INSERT INTO person (id, login, password_hash, role, scripted, active, created_at)"
                    " VALUES (:id, :login, :hash, 'annotator', false, true, '2026-11-25 00:00:00')"
                ),
                {"id": number, "login": login, "hash": hash_password(f"{login[:9]} has this one")},
            )
    migrate(database)
    with database.read() as session:
        keys = dict(session.execute(select(Person.login, Person.login_key)).all())  # type: ignore[arg-type]
        assert keys == {
            "Admin": "admin", "admin": None, "worker": "worker", "ext:Ana": "ext:Ana", "ext:ana": "ext:ana",
            "ß" * 120: "ss" * 120,
        }  # fmt: skip
        for login in ("Admin", "admin"):
            assert check_password(session, login, f"{login} has this one").login == login
        with pytest.raises(Unauthenticated):
            check_password(session, "admin", "Admin has this one")
        found = find_login(session, "ADMIN")
        assert found is not None
        assert found.login == "Admin"
    database.dispose()
