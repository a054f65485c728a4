"""Prompts: many at once are the same rows as one by one."""

import pytest
from sqlalchemy import select

from access.models import Tenant
from core.db import Database
from feedback.models import Prompt
from feedback.prompts import Conversation, add_prompt, add_prompts


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def tenant_id(database: Database) -> int:
    with database.session() as session:
        tenant = Tenant(key="acme", name="Acme")
        session.add(tenant)
        session.flush()
        return tenant.id


def test_many_are_found_or_made_in_their_order(database: Database, tenant_id: int) -> None:
    with database.session() as session:
        known = add_prompt(session, said("known"), "import").id
    asked = [Conversation(None, said(text)) for text in ("new", "known", "other", "new")]
    asked.append(Conversation(tenant_id, said("known")))
    with database.session() as session:
        new, second, other, again, theirs = add_prompts(session, asked, "served")
        rows = {row.id: row for row in session.scalars(select(Prompt))}
    assert (second, again) == (known, new)
    assert len({new, known, other, theirs}) == 4 == len(rows)
    assert rows[new].messages == said("new")
    assert rows[other].source == "served"
    assert rows[known].source == "import"
    assert (rows[theirs].tenant_id, rows[new].tenant_id) == (tenant_id, None)
    assert rows[new].messages_sha256 != rows[other].messages_sha256
