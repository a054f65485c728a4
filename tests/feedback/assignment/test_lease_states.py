"""The life of assignments as a state machine: whatever people do in whatever order, counts and judgments agree."""

import datetime as dt
import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import func, select, update

import finetune.models  # noqa: F401
import reward.models  # noqa: F401  # tables that no other import brings
from core.db import Base, Database, utcnow
from core.errors import Conflict
from feedback.assignment.leases import claim_task, next_assignment, release_expired, renew, skip
from feedback.judgments import submit_judgment
from feedback.kinds.pairwise import PairwiseForm
from feedback.models import Assignment, Judgment, Task
from tests.factories import make_pairwise_task, make_person

LEASE_S = 60
PEOPLE = 3
HOLDING = ("live", "done")
choices = st.sampled_from(["left", "right", "tie", "both_bad"])


class Leases(RuleBasedStateMachine):
    """Three people, a handful of tasks, and a clock that runs out."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="dk-leases-"))
        self.database = Database(f"sqlite:///{self.folder / 'd.db'}")
        Base.metadata.create_all(self.database.engine)
        self.scope = self.database.session()
        self.session = self.scope.__enter__()
        self.people = [make_person(self.session).id for _ in range(PEOPLE)]
        self.acts = 0
        self.said: dict[str, str] = {}  # what was first submitted, by lease token

    def teardown(self) -> None:
        self.session.rollback()
        self.session.close()
        self.database.dispose()
        shutil.rmtree(self.folder)

    @initialize(wanted=st.lists(st.integers(1, 3), min_size=1, max_size=4))
    def tasks(self, wanted: list[int]) -> None:
        for n in wanted:
            make_pairwise_task(self.session, required_n=n, priority=n)

    @rule(who=st.integers(0, PEOPLE - 1))
    def ask(self, who: int) -> None:
        found = next_assignment(self.session, self.people[who], LEASE_S)
        if found is not None:
            assert (found.state, found.annotator_id) == ("live", self.people[who])
            return
        # "Nothing left" is true: no open task that this person was not given.
        given = select(Assignment.task_id).where(Assignment.annotator_id == self.people[who])
        left = select(Task.id).where(Task.state == "live", Task.taken < Task.required_n, Task.id.not_in(given))
        assert self.session.scalars(left).all() == []

    @rule(who=st.integers(0, PEOPLE - 1), number=st.integers(0, 3))
    def ask_for_one(self, who: int, number: int) -> None:
        ids = self.session.scalars(select(Task.id).order_by(Task.id)).all()
        claim_task(self.session, ids[number % len(ids)], self.people[who], LEASE_S)

    @rule(number=st.integers(0, 20), choice=choices, again=st.booleans())
    def submit(self, number: int, choice: str, again: bool) -> None:
        if (mine := self.pick(number)) is None:
            return
        before = mine.state
        form = PairwiseForm.model_validate({"choice": choice})
        who = {"token": mine.lease_token, "annotator_id": mine.annotator_id, "form": form, "latency_s": 1.0}
        once = f"{mine.lease_token}:once"
        try:
            judgment = submit_judgment(self.session, **who, once=once)
        except Conflict:  # skipped, or the same act told otherwise
            assert before == "skipped" or self.said.get(mine.lease_token, choice) != choice
            return
        assert before != "skipped"
        assert self.said.setdefault(mine.lease_token, choice) == choice
        self.acts += before in ("live", "expired")
        assert judgment.surplus == (mine.state == "surplus")
        if again:
            assert submit_judgment(self.session, **who, once=once).id == judgment.id

    @rule(number=st.integers(0, 20))
    def give_back(self, number: int) -> None:
        if (mine := self.pick(number)) is not None and mine.state in ("live", "expired"):
            skip(self.session, mine.lease_token, mine.annotator_id, "cannot tell")
            assert mine.state == "skipped"

    @rule(number=st.integers(0, 20))
    def hold(self, number: int) -> None:
        if (mine := self.pick(number)) is None or mine.state not in ("live", "expired"):
            return
        task = self.session.get_one(Task, mine.task_id)
        room = mine.state == "live" or (task.state == "live" and task.taken < task.required_n)
        try:
            renew(self.session, mine.lease_token, mine.annotator_id, LEASE_S)
            assert room
            assert mine.expires_at > utcnow()
        except Conflict:
            assert not room

    @rule(number=st.integers(0, 20), sweep=st.booleans())
    def time_passes(self, number: int, sweep: bool) -> None:
        if (mine := self.pick(number)) is not None and mine.state == "live":
            mine.expires_at = utcnow() - dt.timedelta(seconds=1)
            self.session.flush()
        if sweep:
            release_expired(self.session, utcnow())

    @rule(number=st.integers(0, 3))
    def cancel(self, number: int) -> None:
        ids = self.session.scalars(select(Task.id).order_by(Task.id)).all()
        of_one = (Task.id == ids[number % len(ids)], Task.state == "live")
        self.session.execute(update(Task).where(*of_one).values(state="cancelled"))

    def pick(self, number: int) -> Assignment | None:
        found = self.session.scalars(select(Assignment).order_by(Assignment.id)).all()
        return found[number % len(found)] if found else None

    @invariant()
    def counts_agree(self) -> None:
        self.session.expire_all()
        for task in self.session.scalars(select(Task)):
            states = list(self.session.scalars(select(Assignment.state).where(Assignment.task_id == task.id)))
            judged = self.session.scalar(
                select(func.count()).select_from(Judgment).where(Judgment.task_id == task.id, ~Judgment.surplus)
            )
            assert task.taken == sum(state in HOLDING for state in states) <= task.required_n
            assert task.done == states.count("done") == judged
            assert task.state == "cancelled" or (task.state == "done") == (task.done == task.required_n)

    @invariant()
    def no_judgment_is_lost_or_doubled(self) -> None:
        kept = list(self.session.scalars(select(Judgment.assignment_id)))
        assert len(kept) == len(set(kept)) == self.acts


TestLeases = Leases.TestCase
TestLeases.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
