"""one person of a name

Revision: 0009
Follows: 0008

Capitals and width no longer make two logins: a key holds that. Where two people have logins that are the same but for
these, the first of them has the key and the others have none; they go on signing in as they spell it. The audit log says
how an act came: from a browser, by which API key, or from a process. On the way down that is lost.

`audit_log` gets a column without being made anew, so its triggers stay.
"""

import unicodedata

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

ALIKE = str.maketrans({"ı": "i", "ɑ": "a", "ɡ": "g", "ɩ": "i"})
PERSON = sa.table(
    "person", sa.column("id", sa.Integer), sa.column("login", sa.String), sa.column("login_key", sa.String)
)


def upgrade() -> None:
    op.add_column("person", sa.Column("login_key", sa.String(length=255), nullable=True))
    connection, taken = op.get_bind(), set()
    for number, login in connection.execute(sa.select(PERSON.c.id, PERSON.c.login).order_by(PERSON.c.id)).all():
        key = _key(login)
        if key in taken or len(key) > 255:
            continue
        taken.add(key)
        connection.execute(sa.update(PERSON).where(PERSON.c.id == number).values(login_key=key))
    op.create_index("uq_person_login_key", "person", ["login_key"], unique=True)
    op.add_column("audit_log", sa.Column("via", sa.String(length=40), nullable=True))


def downgrade() -> None:
    op.drop_column("audit_log", "via")
    op.drop_index("uq_person_login_key", table_name="person")
    op.drop_column("person", "login_key")


def _key(login: str) -> str:
    """As `access.names.key_of` was when this was written."""
    if login.startswith(("ext:", "ext-script:")):
        return login
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", login).casefold())
    return " ".join(plain.split()).translate(ALIKE)
