"""${message}

Revision: ${up_revision}
Follows: ${down_revision | comma,n}

Before you merge: does it run on a filled database, on SQLite and on PostgreSQL, and back again? Never
drop or rewrite a column of judgments or promotions: they are append-only.
"""

import sqlalchemy as sa
from alembic import op

import core.db
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
