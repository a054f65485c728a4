"""tasks of every kind

Revision: 0003
Follows: 0002

What a task asks about are rows (`task_item`), so that it may be one completion or six; what an assignment showed is a
list of positions. Tasks with known answers, an annotator's standing, topics. Judgments of more kinds.
Down: tasks that are no pairs go, with all that was said about them.
"""

import json

import sqlalchemy as sa
from alembic import op

import core.db


revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

POOLS = "('adjudication','canary','flagged','informative','uniform','gold','repeat')"
KINDS = "('pairwise','ranking','rating','rule_check','correction','probe')"
ABOUT = sa.text("about_id IS NOT NULL")
OPEN = sa.text("state = 'live' AND taken < required_n")
OPEN_ORDER = ["pool", "taken", "priority", "rank", "id"]


def upgrade() -> None:
    op.create_table(
        "task_item",
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("completion_id", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_task_item_task_id_task")),
        sa.ForeignKeyConstraint(
            ["completion_id"], ["completion.id"], name=op.f("fk_task_item_completion_id_completion")
        ),
        sa.PrimaryKeyConstraint("task_id", "position", name=op.f("pk_task_item")),
    )
    op.execute("INSERT INTO task_item (task_id, position, completion_id) SELECT id, 0, completion_a_id FROM task")
    op.execute("INSERT INTO task_item (task_id, position, completion_id) SELECT id, 1, completion_b_id FROM task")
    op.create_index(op.f("ix_task_item_completion_id"), "task_item", ["completion_id"])

    op.drop_index("ix_task_open", "task")
    with op.batch_alter_table("task") as batch_op:
        batch_op.drop_constraint(op.f("ck_task_pool"), type_="check")
        batch_op.drop_constraint(op.f("fk_task_completion_a_id_completion"), type_="foreignkey")
        batch_op.drop_constraint(op.f("fk_task_completion_b_id_completion"), type_="foreignkey")
        batch_op.drop_column("completion_a_id")
        batch_op.drop_column("completion_b_id")
        batch_op.alter_column("prompt_id", existing_type=sa.Integer(), nullable=True)
        batch_op.add_column(sa.Column("rule_version_id", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("about_id", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("category", sa.String(length=60), nullable=True))
        batch_op.add_column(sa.Column("risky", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.create_foreign_key(
            op.f("fk_task_rule_version_id_rule_version"), "rule_version", ["rule_version_id"], ["id"]
        )
        batch_op.create_foreign_key(op.f("fk_task_about_id_task"), "task", ["about_id"], ["id"])
        batch_op.create_check_constraint(op.f("ck_task_pool"), f"pool IN {POOLS}")
        batch_op.create_check_constraint(op.f("ck_task_kind"), f"kind IN {KINDS}")
    of_prompt = "(SELECT {} FROM prompt WHERE prompt.id = task.prompt_id)"
    op.execute(
        f"UPDATE task SET category = {of_prompt.format('category')}, risky = coalesce({of_prompt.format('harmful')}, false)"  # noqa: S608
    )
    with op.batch_alter_table("task") as batch_op:
        batch_op.alter_column("risky", existing_type=sa.Boolean(), server_default=None)
    op.create_index("ix_task_open", "task", OPEN_ORDER, sqlite_where=OPEN, postgresql_where=OPEN)
    op.create_index("ix_task_about_id", "task", ["about_id"], sqlite_where=ABOUT, postgresql_where=ABOUT)
    op.drop_index("ix_task_state", "task")
    op.create_index("ix_task_state", "task", ["state", "pool"])

    with op.batch_alter_table("assignment") as batch_op:
        batch_op.add_column(sa.Column("shown_order", sa.JSON(), nullable=False, server_default="[0, 1]"))
    op.execute("UPDATE assignment SET shown_order = '[1, 0]' WHERE NOT left_is_a")
    with op.batch_alter_table("assignment") as batch_op:
        batch_op.alter_column("shown_order", existing_type=sa.JSON(), server_default=None)
        batch_op.drop_column("left_is_a")

    op.drop_index(op.f("ix_judgment_annotator_id"), "judgment")
    with op.batch_alter_table("judgment") as batch_op:
        batch_op.add_column(sa.Column("answer", sa.JSON(), nullable=True))
        batch_op.drop_constraint(op.f("ck_judgment_kind"), type_="check")
        batch_op.drop_constraint(op.f("ck_judgment_choice"), type_="check")
        batch_op.create_check_constraint(
            op.f("ck_judgment_kind"),
            "kind IN ('pairwise','ranking','rating','rule_check','correction','probe','thumbs')",
        )
        batch_op.create_check_constraint(
            op.f("ck_judgment_choice"), "choice IS NULL OR choice IN ('a','b','tie','both_bad','all_wrong','fine')"
        )
        batch_op.create_index("ix_judgment_annotator_id_created_at", ["annotator_id", "created_at"])
        batch_op.create_index("ix_judgment_annotator_id_id", ["annotator_id", "id"])
    with op.batch_alter_table("completion") as batch_op:
        batch_op.add_column(sa.Column("person_id", sa.Integer(), nullable=True))
        batch_op.create_foreign_key(op.f("fk_completion_person_id_person"), "person", ["person_id"], ["id"])

    op.create_table(
        "gold",
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("expected", sa.JSON(), nullable=False),
        sa.Column("explanation", sa.Text(), nullable=False),
        sa.Column("created_at", core.db.UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_gold_task_id_task")),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_gold")),
    )
    op.create_table(
        "gold_result",
        sa.Column("judgment_id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("annotator_id", sa.Integer(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["judgment_id"], ["judgment.id"], name=op.f("fk_gold_result_judgment_id_judgment")),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_gold_result_task_id_task")),
        sa.ForeignKeyConstraint(["annotator_id"], ["person.id"], name=op.f("fk_gold_result_annotator_id_person")),
        sa.PrimaryKeyConstraint("judgment_id", name=op.f("pk_gold_result")),
    )
    op.create_index(op.f("ix_gold_result_task_id"), "gold_result", ["task_id"])
    op.create_index("ix_gold_result_annotator_id_judgment_id", "gold_result", ["annotator_id", "judgment_id"])
    op.create_table(
        "annotator",
        sa.Column("person_id", sa.Integer(), nullable=False),
        sa.Column("standing", sa.String(length=10), nullable=False),
        sa.Column("standing_why", sa.Text(), nullable=True),
        sa.Column("standing_at", core.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("judged_from", sa.Integer(), nullable=False),
        sa.Column("opted_out", sa.JSON(), nullable=False),
        sa.Column("risky_on", sa.Date(), nullable=True),
        sa.Column("risky_n", sa.Integer(), nullable=False),
        sa.CheckConstraint("standing IN ('good','warned','paused')", name=op.f("ck_annotator_standing")),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name=op.f("fk_annotator_person_id_person")),
        sa.PrimaryKeyConstraint("person_id", name=op.f("pk_annotator")),
    )


def downgrade() -> None:
    for table in ("annotator", "gold_result", "gold"):
        op.drop_table(table)
    _drop_what_is_no_pair()

    with op.batch_alter_table("judgment") as batch_op:
        batch_op.drop_index("ix_judgment_annotator_id_id")
        batch_op.drop_index("ix_judgment_annotator_id_created_at")
        batch_op.drop_constraint(op.f("ck_judgment_choice"), type_="check")
        batch_op.drop_constraint(op.f("ck_judgment_kind"), type_="check")
        batch_op.drop_column("answer")
        batch_op.create_check_constraint(
            op.f("ck_judgment_choice"), "choice IS NULL OR choice IN ('a','b','tie','both_bad')"
        )
        batch_op.create_check_constraint(
            op.f("ck_judgment_kind"), "kind IN ('pairwise','thumbs','rating','correction')"
        )
    op.create_index(op.f("ix_judgment_annotator_id"), "judgment", ["annotator_id"])
    with op.batch_alter_table("completion") as batch_op:
        batch_op.drop_constraint(op.f("fk_completion_person_id_person"), type_="foreignkey")
        batch_op.drop_column("person_id")

    with op.batch_alter_table("assignment") as batch_op:
        batch_op.add_column(sa.Column("left_is_a", sa.Boolean(), nullable=False, server_default=sa.true()))
    _say_what_was_left()
    with op.batch_alter_table("assignment") as batch_op:
        batch_op.alter_column("left_is_a", existing_type=sa.Boolean(), server_default=None)
        batch_op.drop_column("shown_order")

    op.drop_index("ix_task_state", "task")
    op.create_index("ix_task_state", "task", ["state"])
    op.drop_index("ix_task_about_id", "task")
    op.drop_index("ix_task_open", "task")
    with op.batch_alter_table("task") as batch_op:
        batch_op.add_column(sa.Column("completion_a_id", sa.String(length=40), nullable=True))
        batch_op.add_column(sa.Column("completion_b_id", sa.String(length=40), nullable=True))
        for name in ("completion_a_id", "completion_b_id"):
            batch_op.create_foreign_key(op.f(f"fk_task_{name}_completion"), "completion", [name], ["id"])
        batch_op.drop_constraint(op.f("ck_task_kind"), type_="check")
        batch_op.drop_constraint(op.f("ck_task_pool"), type_="check")
        batch_op.drop_constraint(op.f("fk_task_about_id_task"), type_="foreignkey")
        batch_op.drop_constraint(op.f("fk_task_rule_version_id_rule_version"), type_="foreignkey")
        for name in ("rule_version_id", "about_id", "category", "risky"):
            batch_op.drop_column(name)
    item = "(SELECT completion_id FROM task_item WHERE task_id = task.id AND position = {})"
    op.execute(f"UPDATE task SET completion_a_id = {item.format(0)}, completion_b_id = {item.format(1)}")  # noqa: S608
    with op.batch_alter_table("task") as batch_op:
        for name in ("completion_a_id", "completion_b_id"):
            batch_op.alter_column(name, existing_type=sa.String(length=40), nullable=False)
        batch_op.alter_column("prompt_id", existing_type=sa.Integer(), nullable=False)
        batch_op.create_check_constraint(op.f("ck_task_pool"), "pool IN ('canary','flagged','informative','uniform')")
    op.create_index("ix_task_open", "task", OPEN_ORDER, sqlite_where=OPEN, postgresql_where=OPEN)
    op.drop_table("task_item")


def _drop_what_is_no_pair() -> None:
    """Tasks that the older schema cannot hold, and every row that hangs on them."""
    lost = "(SELECT id FROM task WHERE kind <> 'pairwise' OR pool NOT IN ('canary','flagged','informative','uniform'))"
    acts = f"(SELECT id FROM judgment WHERE task_id IN {lost})"  # noqa: S608
    for table, where in (
        ("rule_judgment", f"judgment_id IN {acts}"),
        ("correction", f"judgment_id IN {acts}"),
        ("snapshot_judgment", f"judgment_id IN {acts}"),
        ("draft", f"assignment_id IN (SELECT id FROM assignment WHERE task_id IN {lost})"),  # noqa: S608
    ):
        op.execute(f"DELETE FROM {table} WHERE {where}")  # noqa: S608
    op.execute(f"UPDATE judgment SET supersedes_id = NULL WHERE task_id IN {lost}")  # noqa: S608
    op.execute(f"DELETE FROM judgment WHERE task_id IN {lost}")  # noqa: S608
    op.execute(f"DELETE FROM assignment WHERE task_id IN {lost}")  # noqa: S608
    op.execute(f"DELETE FROM task_item WHERE task_id IN {lost}")  # noqa: S608
    op.execute("UPDATE task SET about_id = NULL")
    op.execute(f"DELETE FROM task WHERE id IN {lost}")  # noqa: S608


def _say_what_was_left() -> None:
    assignment = sa.table("assignment", sa.column("id"), sa.column("shown_order", sa.JSON), sa.column("left_is_a"))
    connection = op.get_bind()
    swapped = [
        row.id
        for row in connection.execute(sa.select(assignment.c.id, assignment.c.shown_order))
        if (json.loads(row.shown_order) if isinstance(row.shown_order, str) else row.shown_order)[:1] == [1]
    ]
    for start in range(0, len(swapped), 500):
        some = swapped[start : start + 500]
        connection.execute(sa.update(assignment).where(assignment.c.id.in_(some)).values(left_is_a=False))
