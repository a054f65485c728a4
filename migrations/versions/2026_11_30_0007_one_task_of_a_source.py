"""one task of a source

Revision: 0007
Follows: 0006

A source makes one task, done ones included: the index holds that, and finds it at any number of tasks. An annotator's
unfinished work and their newest work are read off indexes of their own.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

LIVE = sa.text("state = 'live'")
MADE = sa.text("state <> 'cancelled'")
UNFINISHED = sa.text("state IN ('live','expired')")


def upgrade() -> None:
    op.drop_index("uq_task_live_source", table_name="task")
    op.create_index("uq_task_source", "task", ["source"], unique=True, sqlite_where=MADE, postgresql_where=MADE)
    op.drop_index("ix_assignment_annotator_state", table_name="assignment")
    op.create_index(
        "ix_assignment_unfinished", "assignment", ["annotator_id"], sqlite_where=UNFINISHED, postgresql_where=UNFINISHED
    )
    op.create_index("ix_assignment_annotator_id", "assignment", ["annotator_id", "id"])


def downgrade() -> None:
    op.drop_index("ix_assignment_annotator_id", table_name="assignment")
    op.drop_index("ix_assignment_unfinished", table_name="assignment")
    op.create_index("ix_assignment_annotator_state", "assignment", ["annotator_id", "state"])
    op.drop_index("uq_task_source", table_name="task")
    op.create_index("uq_task_live_source", "task", ["source"], unique=True, sqlite_where=LIVE, postgresql_where=LIVE)
