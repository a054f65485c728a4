"""Tables of system prompts. Rows are only added: an edit is a version more, other shares are a row more."""

import datetime as dt
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from access.models import Person
from core.db import Base, utcnow

OF_HOUSE = text("tenant_id IS NULL")
OF_TENANTS = text("tenant_id IS NOT NULL")


class SystemPrompt(Base):
    """A system prompt by its lasting name; its text lives in versions."""

    __tablename__ = "system_prompt"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40), unique=True)
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)


class SystemPromptVersion(Base):
    """What a system prompt says, from one edit to the next."""

    __tablename__ = "system_prompt_version"
    __table_args__ = (UniqueConstraint("system_prompt_id", "version"), CheckConstraint("version > 0", name="version"))

    id: Mapped[int] = mapped_column(primary_key=True)
    system_prompt_id: Mapped[int] = mapped_column(ForeignKey("system_prompt.id"))
    system_prompt: Mapped[SystemPrompt] = relationship()
    version: Mapped[int]
    text: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(String(64))  # of the text
    author_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    author: Mapped[Person] = relationship()
    note: Mapped[str] = mapped_column(Text, default="")  # what was changed, and why
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)

    @property
    def label(self) -> str:
        """How callers and pages name it, e.g. "tutor@3"."""
        return f"{self.system_prompt.name}@{self.version}"


class SystemPromptShare(Base):
    """Which versions conversations get from a moment on: of the house, or of a tenant, whose own take the place of the house's.

    Attributes:
        number: counted from 1 within the house or the tenant; the newest holds.
        shares: [{"version_id", "percent"}, …] of 100 together, a version_id of None being no system prompt; empty: nothing is
            put before anything, and of a tenant the house's hold again.
    """

    __tablename__ = "system_prompt_share"
    __table_args__ = (
        # Two: NULLs differ from each other in unique indexes of both databases. They also let of two edits at once only one through.
        Index("uq_system_prompt_share_house", "number", unique=True, sqlite_where=OF_HOUSE, postgresql_where=OF_HOUSE),
        Index(
            "uq_system_prompt_share_tenant", "tenant_id", "number",
            unique=True, sqlite_where=OF_TENANTS, postgresql_where=OF_TENANTS,
        ),
    )  # fmt: skip

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[int | None] = mapped_column(ForeignKey("tenant.id"))
    number: Mapped[int]
    shares: Mapped[list[Any]]
    author_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    author: Mapped[Person] = relationship()
    note: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)
