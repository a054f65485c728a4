"""places on the task

Revision: 0002
Follows: 0001

A task counts its places itself; `task_slot`, which held a row per place, goes. Tasks get a pool, and a rank within it.
Down: places become rows again, out of the assignments that hold them.
"""

import hashlib

import sqlalchemy as sa
from alembic import op

import core.db


revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

LIVE = sa.text("state = 'live'")
OPEN = sa.text("state = 'live' AND taken < required_n")
BATCH = 1000

task = sa.table(
    "task", sa.column("id"), sa.column("source"), sa.column("rank"), sa.column("required_n"), sa.column("taken")
)
assignment = sa.table(
    "assignment", sa.column("id"), sa.column("task_id"), sa.column("lease_token"), sa.column("state"),
    sa.column("expires_at", core.db.UtcDateTime(timezone=True)),
)  # fmt: skip
slot = sa.table(
    "task_slot", sa.column("task_id"), sa.column("number"), sa.column("state"), sa.column("lease_token"),
    sa.column("expires_at", core.db.UtcDateTime(timezone=True)),
)  # fmt: skip


def upgrade() -> None:
    with op.batch_alter_table("task") as batch_op:
        batch_op.add_column(sa.Column("taken", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("done", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("pool", sa.String(length=12), nullable=False, server_default="uniform"))
        batch_op.add_column(sa.Column("rank", sa.Double(), nullable=False, server_default="0"))
        batch_op.drop_index("ix_task_next")
    with op.batch_alter_table("assignment") as batch_op:
        batch_op.drop_constraint(op.f("ck_assignment_state"), type_="check")
    # Work whose place others have taken is expired; every place is held by one assignment that is live or done.
    op.execute(
        "UPDATE assignment SET state = 'expired' WHERE state = 'live' AND NOT EXISTS (SELECT 1 FROM task_slot"
        " WHERE task_slot.task_id = assignment.task_id AND task_slot.lease_token = assignment.lease_token"
        " AND task_slot.state = 'leased')"
    )
    held = "(SELECT count(*) FROM assignment WHERE assignment.task_id = task.id AND assignment.state IN ({}))"
    op.execute("UPDATE task SET done = " + held.format("'done'") + ", taken = " + held.format("'done', 'live'"))  # noqa: S608
    _shuffle()
    with op.batch_alter_table("assignment") as batch_op:
        batch_op.create_check_constraint(
            op.f("ck_assignment_state"), "state IN ('live','expired','done','skipped','surplus')"
        )
        batch_op.create_index("ix_assignment_lease", ["expires_at"], sqlite_where=LIVE, postgresql_where=LIVE)
    with op.batch_alter_table("task") as batch_op:
        for name in ("taken", "done", "pool", "rank"):
            batch_op.alter_column(name, server_default=None)
        batch_op.create_check_constraint(op.f("ck_task_pool"), "pool IN ('canary','flagged','informative','uniform')")
        batch_op.create_check_constraint(op.f("ck_task_places"), "0 <= done AND done <= taken AND taken <= required_n")
        batch_op.create_index("ix_task_state", ["state"])
    op.create_index(
        "ix_task_open", "task",
        ["pool", "taken", "priority", "rank", "id"],
        sqlite_where=OPEN, postgresql_where=OPEN,
    )  # fmt: skip
    op.drop_table("task_slot")


def _shuffle() -> None:
    """Rank every task by its source, as `feedback.tasks.shuffled` did when this was written."""
    connection = op.get_bind()
    last = 0
    while rows := connection.execute(
        sa.select(task.c.id, task.c.source).where(task.c.id > last).order_by(task.c.id).limit(BATCH)
    ).all():
        ranks = [
            {"of": row.id, "to": int.from_bytes(hashlib.sha256(row.source.encode()).digest()[:6], "big") / 2**48}
            for row in rows
        ]
        connection.execute(
            sa.update(task).where(task.c.id == sa.bindparam("of")).values(rank=sa.bindparam("to")), ranks
        )
        last = rows[-1].id


def downgrade() -> None:
    op.create_table(
        "task_slot",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("lease_token", sa.String(length=40), nullable=True),
        sa.Column("expires_at", core.db.UtcDateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('open','leased','done')", name=op.f("ck_task_slot_state")),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_task_slot_task_id_task")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task_slot")),
        sa.UniqueConstraint("task_id", "number", name=op.f("uq_task_slot_task_id_number")),
    )
    op.create_index("ix_task_slot_free", "task_slot", ["state", "expires_at"])
    _rebuild_slots()
    op.drop_index("ix_task_open", "task")
    with op.batch_alter_table("task") as batch_op:
        batch_op.drop_index("ix_task_state")
        batch_op.drop_constraint(op.f("ck_task_places"), type_="check")
        batch_op.drop_constraint(op.f("ck_task_pool"), type_="check")
        for name in ("taken", "done", "pool", "rank"):
            batch_op.drop_column(name)
        batch_op.create_index("ix_task_next", ["state", "priority", "id"])
    with op.batch_alter_table("assignment") as batch_op:
        batch_op.drop_index("ix_assignment_lease")
        batch_op.drop_constraint(op.f("ck_assignment_state"), type_="check")
    op.execute("UPDATE assignment SET state = 'live' WHERE state = 'expired'")
    with op.batch_alter_table("assignment") as batch_op:
        batch_op.create_check_constraint(op.f("ck_assignment_state"), "state IN ('live','done','skipped','surplus')")


def _rebuild_slots() -> None:
    connection = op.get_bind()
    last = 0
    while rows := connection.execute(
        sa.select(task.c.id, task.c.required_n).where(task.c.id > last).order_by(task.c.id).limit(BATCH)
    ).all():
        last = rows[-1].id
        held: dict[int, list[sa.Row]] = {row.id: [] for row in rows}
        query = sa.select(assignment).where(
            assignment.c.task_id.in_(list(held)), assignment.c.state.in_(("live", "done"))
        )
        for found in connection.execute(query.order_by(assignment.c.id)):
            held[found.task_id].append(found)
        slots = []
        for row in rows:
            for number in range(1, row.required_n + 1):
                by = held[row.id][number - 1] if number <= len(held[row.id]) else None
                state = "open" if by is None else "leased" if by.state == "live" else "done"
                slots.append(
                    {
                        "task_id": row.id, "number": number, "state": state,
                        "lease_token": by.lease_token if by else None,
                        "expires_at": by.expires_at if state == "leased" else None,
                    }
                )  # fmt: skip
        connection.execute(sa.insert(slot), slots)
