"""What somebody's words may be used for. In: what a call says and what holds where it says nothing. Out: one word, kept with the completion.

    none       answered and counted; no text is kept
    service    kept, shown to whoever runs the service, never given to annotators, never trained on
    training   kept, and policies may learn from it

A call that says several things means the strictest. Completions that nobody was asked about (rollouts, imports) have no word.
"""

import hashlib
import hmac
from typing import get_args

from sqlalchemy import ColumnElement, and_, func

from core.errors import InvalidInput
from core.language import gettext
from core.settings.serving import Consent
from feedback.models import Completion

CONSENTS: tuple[Consent, ...] = get_args(Consent)
NONE, SERVICE, TRAINING = CONSENTS
HEADER = "X-Dunnock-Consent"
LEARNT: ColumnElement[bool] = and_(
    func.coalesce(Completion.consent, TRAINING) == TRAINING, Completion.erased_at.is_(None)
)
"""Completions that may be learnt from, in a query."""


def consent_of(*said: str | None, default: str) -> str:
    """The strictest of what is said; the default where nothing is.

    Raises:
        InvalidInput: one is no such word.
    """
    words = [word.strip().casefold() for word in said if word is not None]
    if unknown := [word for word in words if word not in CONSENTS]:
        raise InvalidInput(
            gettext(
                "the consent %(word)r is not known; it is one of %(choices)s",
                word=unknown[0][:40],
                choices=", ".join(CONSENTS),
            ),
            param="consent",
        )
    return next((each for each in CONSENTS if each in words), default)


def may_be_learnt(completion: Completion) -> bool:
    """Whether annotators may be asked about a completion, and policies learn from it."""
    return completion.consent in (None, TRAINING) and completion.erased_at is None


def user_key(secret: str, tenant_id: int | None, user: str | None) -> str | None:
    """An end user as the database knows them: who has the name and the secret finds their words, nobody else.

    Args:
        user: as the tenant names them in `user`; None or empty for nobody. The same name is another person to another tenant.
    """
    if not user:
        return None
    return hmac.new(secret.encode(), f"{tenant_id or 'house'}\x1f{user}".encode(), hashlib.sha256).hexdigest()
