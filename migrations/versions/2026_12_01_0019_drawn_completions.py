"""Completions that were drawn beside the one that was given belong to their user, and are erased, as those that were served

Revision ID: 0019
Revises: 0018
"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"

BEFORE = sa.text("erased_at IS NULL AND source IN ('served','withheld','paired')")
KEPT = sa.text("erased_at IS NULL AND source IN ('served','withheld','paired','sampled')")


def upgrade() -> None:
    _index(KEPT)


def downgrade() -> None:
    _index(BEFORE)


def _index(which: sa.TextClause) -> None:
    op.drop_index("ix_completion_kept", "completion")
    op.create_index("ix_completion_kept", "completion", ["created_at"], sqlite_where=which, postgresql_where=which)
