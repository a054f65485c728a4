"""Alembic's entry: the URL comes from settings (or from `-x url=…`), the tables from the folders that own them."""

from alembic import context
from sqlalchemy import text

import reward.models  # noqa: F401
import serving.models  # noqa: F401
from core.db import Base, Database
from core.settings import get_settings


def run() -> None:
    """Run the migrations on a live connection; SQLite alters tables in batches."""
    database = context.config.attributes.get("database") or Database(
        context.get_x_argument(as_dictionary=True).get("url") or get_settings().db_url
    )
    with database.engine.execution_options(sqlite_begin="IMMEDIATE").connect() as connection:
        if database.is_sqlite:  # before BEGIN: a table that is made anew is dropped while others point to it
            connection.connection.cursor().execute("PRAGMA foreign_keys=OFF")
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=database.is_sqlite,
            compare_type=True,
            user_module_prefix="core.db.",
        )
        with context.begin_transaction():
            if not database.is_sqlite:  # SQLite began IMMEDIATE; here two that migrate at once queue up
                connection.execute(text("SELECT pg_advisory_xact_lock(7235171)"))
            context.run_migrations()
            if database.is_sqlite and (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").all()):
                raise RuntimeError(f"the migration leaves rows that point to nothing: {broken[:5]}")


run()
