"""Which system prompt a conversation gets: drawn by the shares that hold, the same at every turn, or the one that its caller names.

    offer = prompting.offer(session, tenant_id, pin)              in a view's thread; shares are read anew once a second
    request, prompted = prompting.put(offer, request, user)       the request as the engine gets it, and what is kept of it

Drawn together are the conversations of one `user`, or where a call names none those that begin with the same words, of one tenant
or the house: by a hash of these and of the row of shares, so that new shares draw anew. What stands for them in the database
(`unit`) is a keyed hash. A request that brings a system turn of its own is left alone, unless the settings say otherwise.
"""

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from core.errors import InvalidInput, NotFound
from core.language import gettext
from core.messages import Message
from core.settings import Settings
from feedback.consent import user_key
from feedback.system_prompts import store
from feedback.system_prompts.models import SystemPromptVersion
from policy.protocol import ChatRequest

HEADER = "X-Dunnock-System-Prompt"
TENANTS_REMEMBERED = 1000


@dataclass(frozen=True)
class Version:
    """A version of a system prompt; of none the id is None and the text empty."""

    id: int | None
    label: str
    text: str = field(repr=False)

    @classmethod
    def of(cls, version: SystemPromptVersion) -> "Version":
        """A stored one."""
        return cls(version.id, version.label, version.text)


NO_PROMPT = Version(None, store.NONE, "")


@dataclass(frozen=True)
class Offer:
    """What a request may get.

    Attributes:
        share_id: the row of shares that hold; None where there are none.
        shares: the versions with their percent, the incumbent being the largest.
        pinned: the version that the caller names; nothing is drawn then.
    """

    share_id: int | None = None
    shares: tuple[tuple[Version, int], ...] = ()
    pinned: Version | None = None

    def drawn(self, unit: str) -> Version:
        """The version of all who have this unit."""
        digest = hashlib.sha256(f"{self.share_id} {unit}".encode()).digest()
        place, upto = int.from_bytes(digest[:8], "big") / 2**64 * 100, 0
        for version, percent in self.shares:
            upto += percent
            if place < upto:
                return version
        return self.shares[-1][0]

    def beside(self, own_id: int | None, unit: str) -> Version | None:
        """The version to set beside a reply of another: the incumbent, and beside that each of the others in its turn."""
        if own_id not in (ids := [version.id for version, _ in self.shares]) or len(ids) < 2:
            return None
        incumbent = max(self.shares, key=lambda each: each[1])[0]
        if own_id != incumbent.id:
            return incumbent
        others = [version for version, _ in self.shares if version.id != own_id]
        return others[int.from_bytes(hashlib.sha256(f"beside {unit}".encode()).digest()[:8], "big") % len(others)]


@dataclass(frozen=True)
class Prompted:
    """Which system prompt a reply has, and how it came to it.

    Attributes:
        name: of its version, "none" where that was drawn or asked for, empty where there was nothing to choose.
        share_id: the shares that drew it; None where nothing was drawn.
        unit: who is drawn together.
        sent: the conversation as the caller sent it; empty where nothing was drawn.
    """

    name: str = ""
    version_id: int | None = None
    share_id: int | None = None
    unit: str | None = None
    sent: Sequence[Message] = field(default=(), repr=False)

    def row(self) -> dict[str, Any]:
        """What completions keep of it."""
        return {
            "system_prompt_version_id": self.version_id, "system_prompt_share_id": self.share_id,
            "system_prompt_unit": self.unit,
        }  # fmt: skip


NOT_PROMPTED = Prompted()


class Prompting:
    """Puts system prompts before conversations. One per app."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.system_prompts
        self._secret = settings.user_secret()
        self._offers: dict[int | None, tuple[float, Offer]] = {}

    def offer(self, session: Session, tenant_id: int | None, pin: str | None = None) -> Offer:
        """What holds for a tenant or the house, at most so old as the settings say.

        Args:
            pin: the version that the caller names, as "tutor@3", "tutor" for its newest, or "none". Tenants may name those that have a share.

        Raises:
            NotFound: there is no such version, or it is not the tenant's to name.
        """
        read_at, found = self._offers.get(tenant_id, (-math.inf, Offer()))
        if time.monotonic() - read_at >= self._settings.refresh_s:
            found = _read(session, tenant_id)
            if len(self._offers) >= TENANTS_REMEMBERED:
                self._offers.clear()
            self._offers[tenant_id] = (time.monotonic(), found)
        return Offer(pinned=_pinned(session, tenant_id, found, pin)) if pin else found

    def put(self, offer: Offer, request: ChatRequest, tenant_id: int | None, user: str | None) -> tuple[ChatRequest, Prompted]:  # fmt: skip
        """The request with its system prompt, and which that is.

        Args:
            user: whom it is for, as the caller names them.

        Raises:
            InvalidInput: the caller names a version, and the request has a system turn that the settings leave alone, or is a raw text.
        """
        if request.raw:
            if offer.pinned is not None and offer.pinned.id is not None:
                raise InvalidInput(
                    gettext("a text is continued as it stands; name no system prompt"), param="system_prompt"
                )
            return request, NOT_PROMPTED
        if offer.pinned is None and not offer.shares:
            return request, NOT_PROMPTED
        if self._settings.beside_own == "none" and any(m.role == "system" for m in request.messages):
            if offer.pinned is not None and offer.pinned.id is not None:
                raise InvalidInput(
                    gettext("this request has a system message of its own; leave that out, or name no system prompt"),
                    param="system_prompt",
                )
            return request, NOT_PROMPTED
        if offer.pinned is not None:
            return with_version(request, offer.pinned), Prompted(offer.pinned.label, offer.pinned.id)
        who = user or next((m.content for m in request.messages if m.role == "user"), "")
        unit = (user_key(self._secret, tenant_id, f"{'of' if user else 'asks'} {who}") or "")[:16]
        version = offer.drawn(unit)
        return with_version(request, version), Prompted(
            version.label, version.id, offer.share_id, unit, request.messages
        )


def with_version(request: ChatRequest, version: Version) -> ChatRequest:
    """The request with a version before it: as a turn of its own, or at the head of the system turn that it begins with."""
    if not version.text:
        return request
    first, rest = Message(role="system", content=version.text), request.messages
    if rest and rest[0].role == "system":  # templates take one system turn
        first, rest = first.model_copy(update={"content": f"{version.text}\n\n{rest[0].content}"}), rest[1:]
    return request.model_copy(update={"messages": (first, *rest)})


def _read(session: Session, tenant_id: int | None) -> Offer:
    row = store.holding(session, tenant_id)
    if row is None:
        return Offer()
    shares = store.shares_of(row)
    versions = store.versions_by_id(session, (s.version_id for s in shares if s.version_id is not None))
    return Offer(
        row.id,
        tuple(
            (NO_PROMPT if s.version_id is None else Version.of(versions[s.version_id]), s.percent) for s in shares
        ),
    )  # fmt: skip


def _pinned(session: Session, tenant_id: int | None, offer: Offer, pin: str) -> Version:
    known = {version.label: version for version, _ in offer.shares} | {store.NONE: NO_PROMPT}
    if pin in known:
        return known[pin]
    version = Version.of(store.find_label(session, pin))
    if tenant_id is not None and version.label not in known:  # what has no share is none of a tenant's business
        raise NotFound(
            gettext("there is no system prompt %(name)r", name=pin[:60]), code="system_prompt_not_found", param="system_prompt",
        )  # fmt: skip
    return version
