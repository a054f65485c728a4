"""A process of annotators who claim and judge until nothing is left, to be killed at any moment; run by test_claimers.py.

    python -m tests.feedback.assignment.claimer URL LOG PERSON_ID …

Each person is a thread. What was acknowledged is written to LOG, one line a judgment, after its commit. A lost connection is
met as a client would: the same act again, under the same name.
"""

import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

import reward.models  # noqa: F401  # tables that no other import brings
from core.db import Database
from feedback.assignment.leases import find_assignment, next_assignment, skip
from feedback.judgments import submit_judgment
from feedback.kinds.pairwise import PairwiseForm

T = TypeVar("T")
LEASE_S = 1.0
FORM = PairwiseForm(choice="left", strength=1)


def work(db: Database, person_id: int, log: int) -> None:
    """One annotator: judges what they get, dawdles beyond the lease at times, gives a little back."""
    chance = random.Random(f"{person_id}:{os.getpid()}")
    idle = 0
    while idle < 5:
        token = patient(partial(claim, db, person_id))
        if token is None:
            idle += 1
            time.sleep(LEASE_S / 2)
            continue
        idle = 0
        if chance.random() < 0.05:
            time.sleep(LEASE_S * 1.3)
        if chance.random() < 0.03:
            patient(partial(give_back, db, person_id, token))
            continue
        judgment_id = patient(partial(judge, db, person_id, token))
        os.write(log, f"{judgment_id} {person_id} {token}\n".encode())


def claim(db: Database, person_id: int) -> str | None:
    with db.session() as session:
        found = next_assignment(session, person_id, LEASE_S)
        return None if found is None else found.lease_token


def judge(db: Database, person_id: int, token: str) -> int:
    with db.session() as session:
        return submit_judgment(
            session, token=token, annotator_id=person_id, form=FORM, latency_s=0.1, once=f"claimer:{token}"
        ).id


def give_back(db: Database, person_id: int, token: str) -> None:
    with db.session() as session:
        if find_assignment(session, token, person_id).state in ("live", "expired"):
            skip(session, token, person_id, "")


def patient(act: Callable[[], T]) -> T:
    """Do something until the database answers."""
    while True:
        try:
            return act()
        except DBAPIError:
            time.sleep(0.05)


def broken(what: threading.ExceptHookArgs) -> None:
    """A person who meets what no client could mend ends the process, so that the test fails for what it is."""
    traceback.print_exception(what.exc_type, what.exc_value, what.exc_traceback)
    os._exit(1)


def main() -> None:
    url, path, *people = sys.argv[1:]
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    db = Database(url)
    threading.excepthook = broken
    threads = [threading.Thread(target=work, args=(db, int(number), log), daemon=True) for number in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
