"""The statement that takes a place of the next task: one UPDATE, whichever pool the task waits in.

Written as SQL, because it runs for every task that anybody is given and is the longest one there is: the pools are tried
in the order of a draw, each first at the head of what is begun, then in what is untouched, and the first that has
something wins. Each try reads a few rows off the index `ix_task_open`, backwards.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from sqlalchemy import Connection, Row, TextClause, bindparam, text

WINDOW = 32
"""Tasks at the head of a pool that are looked at first. A person alone on tasks that want several judgments has had all
that are begun; without a bound each look would pass over every one of them."""

FACTS = ("id", "kind", "pool", "why", "risky", "about_id", "required_n")
"""What is read of a task of which a place was taken."""

LOCK = " FOR UPDATE SKIP LOCKED"
"""Nobody waits here for a task: who has just judged holds one, and two who waited for each other's would wait for ever."""

WANTED_TOPIC = "coalesce(category NOT IN :opted_out, NOT risky OR kind = 'probe')"
"""Where no topic is known, what may upset may be on one that is not wanted; what is said in a probe is up to the annotator."""

_OPEN = "state = 'live' AND taken < required_n"
_ORDER = "ORDER BY taken DESC, priority DESC, rank DESC, id DESC"
_MINE = "SELECT 1 FROM assignment AS a WHERE a.task_id = {} AND a.annotator_id = :who"
_TAKE = "UPDATE task SET taken = taken + 1 WHERE id = {} AND " + _OPEN + f" RETURNING {', '.join(FACTS)}"


class Topical(Protocol):
    """What is read of a task to tell whether somebody wants it."""

    @property
    def kind(self) -> str: ...
    @property
    def category(self) -> str | None: ...
    @property
    def risky(self) -> bool: ...


def is_wanted(task: Topical, opted_out: Sequence[str], *, calm: bool = False) -> bool:
    """Whether a task may be given to somebody; what `take_next` passes over is not."""
    if calm and task.risky:
        return False
    if not opted_out:
        return True
    return task.kind == "probe" or not task.risky if task.category is None else task.category not in opted_out


def take_next(
    connection: Connection,
    annotator_id: int,
    pools: Sequence[str],
    *,
    opted_out: Sequence[str] = (),
    calm: bool = False,
    everywhere: bool = False,
) -> Row[Any] | None:
    """Take a place of the first task that this person was not given before; tasks that others take just now are passed over.

    Args:
        pools: where to look, in this order.
        opted_out: topics to pass over; with any, also what may upset and has no topic that is known.
        calm: pass over what may upset.
        everywhere: look at all that is open; for when nothing else was found.

    Returns:
        The task's `FACTS`; None when there is none.
    """
    postgres = connection.dialect.name == "postgresql"
    pick = _pick(tuple(pools), bool(opted_out), calm, 0 if everywhere else WINDOW, LOCK if postgres else "")
    return connection.execute(_take(pick, bool(opted_out)), _given(annotator_id, opted_out)).one_or_none()


def is_any_open(
    connection: Connection,
    annotator_id: int,
    pools: Sequence[str],
    *,
    opted_out: Sequence[str] = (),
    calm: bool = False,
) -> bool:
    """Whether there is such a task by what is committed, whoever takes it just now; see `take_next`."""
    pick = _pick(tuple(pools), bool(opted_out), calm, 0, "")
    return connection.scalar(_bound(f"SELECT {pick}", bool(opted_out)), _given(annotator_id, opted_out)) is not None


def take_gold(
    connection: Connection, annotator_id: int, *, opted_out: Sequence[str] = (), calm: bool = False
) -> Row[Any] | None:
    """Take a place of a task with a known answer, whichever chance says; see `take_next`."""
    wanted = _wanted("gold", bool(opted_out), calm)
    lock = LOCK if connection.dialect.name == "postgresql" else ""
    pick = f"(SELECT id FROM task WHERE {_OPEN} AND pool = 'gold' AND {wanted} ORDER BY random() LIMIT 1{lock})"
    return connection.execute(_take(pick, bool(opted_out)), _given(annotator_id, opted_out)).one_or_none()


@lru_cache(maxsize=256)
def _pick(pools: tuple[str, ...], topics: bool, calm: bool, window: int, lock: str) -> str:
    """The id of a task; with a window, of one that is easily found; with none, of any that is open."""
    picks = []
    for pool in pools:
        of_pool = f"FROM task WHERE {_OPEN} AND pool = '{pool}'"
        wanted = _wanted(pool, topics, calm)
        if window:
            head = f"SELECT id {of_pool} AND taken > 0 {_ORDER} LIMIT {window}"
            picks.append(f"(SELECT id FROM task WHERE id IN ({head}) AND {_OPEN} AND {wanted} {_ORDER} LIMIT 1{lock})")
        untouched = " AND taken = 0" if window else ""
        picks.append(f"(SELECT id {of_pool}{untouched} AND {wanted} {_ORDER} LIMIT 1{lock})")
    return f"coalesce({', '.join(picks)})"


@lru_cache(maxsize=256)
def _take(pick: str, topics: bool) -> TextClause:
    return _bound(_TAKE.format(pick), topics)


def _wanted(pool: str, topics: bool, calm: bool) -> str:
    conditions = [f"NOT EXISTS ({_MINE.format('task.id')})"]
    if pool == "adjudication":  # who settles a disagreement had no part in it
        conditions.append(f"NOT EXISTS ({_MINE.format('task.about_id')})")
    if topics:
        conditions.append(WANTED_TOPIC)
    if calm:
        conditions.append("NOT risky")
    return " AND ".join(conditions)


def _given(annotator_id: int, opted_out: Sequence[str]) -> dict[str, Any]:
    return {"who": annotator_id} | ({"opted_out": list(opted_out)} if opted_out else {})


@lru_cache(maxsize=256)
def _bound(sql: str, topics: bool) -> TextClause:
    statement = text(sql)
    return statement.bindparams(bindparam("opted_out", expanding=True)) if topics else statement
