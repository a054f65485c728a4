"""Erasing what was written for one user of a tenant, over `/v1/erasures`. In: who asks, and the user's name. Out: counts."""

from typing import Any

from access.callers import MANAGERS, Asking
from access.models import Person
from core.errors import Forbidden
from core.language import gettext
from core.web import runtime
from feedback.consent import user_key
from feedback.erasure import erase_user


def erase_for(who: Asking, user: str) -> dict[str, Any]:
    """Erase the texts of a user of the caller's; of a user who is not known nothing is erased.

    Raises:
        Forbidden: it is no tenant's key, and who asks is neither lead nor admin.
    """
    with runtime().db.session() as session:
        person = None if who.person_id is None else session.get(Person, who.person_id)
        if person is None or (who.tenant_id is None and person.role not in MANAGERS):
            raise Forbidden(gettext("the texts of the house's users are erased by leads and admins"))
        key = user_key(runtime().settings.user_secret(), who.tenant_id, user)
        erased = erase_user(session, key or "", person.login)
    return {
        "object": "erasure", "completions": erased.completions, "prompts": erased.prompts,
        "tasks_cancelled": erased.tasks, "frozen_snapshots": len(erased.snapshots),
    }  # fmt: skip
