"""rules as leads edit them

Revision: 0004
Follows: 0003

A version of a rule gets a title, a category, examples of kept and of broken, who made it, and a note on the change. Versions
that are there keep their words: their title is the rule's name as pages showed it, and they have no examples.
Down: titles, categories, examples, authors and notes are lost, for the older schema has no place for them; the words, the
severity and the state of each version stay.
"""

import sqlalchemy as sa
from alembic import op


revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

CATEGORIES = {
    "harm": ("violence", "weapons", "self_harm", "sexual_minors_safety", "dangerous_advice"),
    "crime": ("illegal_drugs", "fraud_scams", "cybercrime", "theft_property"),
    "privacy": ("privacy_stalking",),
    "fairness": ("hate_harassment", "stereotypes"),
    "misinformation": ("disinformation", "made_up_facts"),
    "advice": ("medical_advice", "legal_advice", "financial_advice"),
    "identity": ("claims_to_be_human", "claims_of_action", "feelings_relationships"),
}  # of the starter rules, when this was written

rule = sa.table("rule", sa.column("id"), sa.column("slug"))
rule_version = sa.table(
    "rule_version", sa.column("rule_id"), sa.column("title"), sa.column("category"), sa.column("severity")
)
NEW = ("title", "category", "kept_examples", "broken_examples", "author_id", "note")


def upgrade() -> None:
    with op.batch_alter_table("rule_version") as batch_op:
        batch_op.add_column(sa.Column("title", sa.String(length=80), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("category", sa.String(length=20), nullable=False, server_default="other"))
        batch_op.add_column(sa.Column("kept_examples", sa.JSON(), nullable=False, server_default="[]"))
        batch_op.add_column(sa.Column("broken_examples", sa.JSON(), nullable=False, server_default="[]"))
        batch_op.add_column(sa.Column("author_id", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("note", sa.Text(), nullable=False, server_default=""))
        batch_op.create_foreign_key(op.f("fk_rule_version_author_id_person"), "person", ["author_id"], ["id"])
    _name_and_sort()
    # Nothing held severities to 1 … 3 so far; what lies outside becomes the nearest.
    op.execute(sa.update(rule_version).where(rule_version.c.severity < 1).values(severity=1))
    op.execute(sa.update(rule_version).where(rule_version.c.severity > 3).values(severity=3))
    with op.batch_alter_table("rule_version") as batch_op:
        for name in NEW:
            if name != "author_id":
                batch_op.alter_column(name, server_default=None)
        batch_op.create_check_constraint(op.f("ck_rule_version_severity"), "severity BETWEEN 1 AND 3")


def _name_and_sort() -> None:
    """Give every version the title that pages made of its rule's slug, and the starter rules their category."""
    connection = op.get_bind()
    category_of = {slug: category for category, slugs in CATEGORIES.items() for slug in slugs}
    for found in connection.execute(sa.select(rule.c.id, rule.c.slug)).all():
        words = {
            "title": found.slug.replace("_", " ").capitalize(),
            "category": category_of.get(found.slug, "other"),
        }
        connection.execute(sa.update(rule_version).where(rule_version.c.rule_id == found.id).values(words))


def downgrade() -> None:
    with op.batch_alter_table("rule_version") as batch_op:
        batch_op.drop_constraint(op.f("ck_rule_version_severity"), type_="check")
        batch_op.drop_constraint(op.f("fk_rule_version_author_id_person"), type_="foreignkey")
        for name in NEW:
            batch_op.drop_column(name)
