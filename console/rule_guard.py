"""The page of a rule where leads say what the guard does about it, and from which P(broken) on.

It is the console's because it tells beside that what the guard's model was worth on held-out replies. What holds is kept by
`feedback.rules.thresholds`.
"""

from typing import Any

from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask_login import current_user
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response

from access.views import require_role
from console import figures, quality_reader, words
from console.figures import Column
from console.forms import change_by, whole_number
from console.rewards import guarded_rule
from core.errors import Conflict, InvalidInput
from core.language import gettext as _
from core.language import lazy_gettext as _l
from core.messages import plain_text
from core.web import runtime
from feedback.rules.store import find_rule
from feedback.rules.thresholds import ACTIONS, history, set_threshold
from feedback.rules.words import MAX_NOTE
from reward.models import guard_in_force

READERS = ("reviewer", "lead")  # an admin may do whatever a role may
CHANGERS = ("lead",)
ACTION_WORDS = {"block": _l("cut the reply"), "record": _l("record it only"), "off": _l("do not ask")}

blueprint = Blueprint("rule_guard", __name__, url_prefix="/rules")


@blueprint.get("/<slug>/guard")
@require_role(*READERS)
def show(slug: str) -> str:
    return _show(slug, {})


@blueprint.post("/<slug>/guard")
@require_role(*CHANGERS)
def change(slug: str) -> Response | tuple[str, int]:
    typed = {name: plain_text(request.form.get(name, "")) for name in ("threshold", "action", "note", "base")}
    try:
        with runtime().db.session() as session:
            set_threshold(
                session, slug, _threshold(typed["threshold"]), typed["action"], base=whole_number(typed["base"], "base"),
                change=change_by(typed["note"]),
            )  # fmt: skip
    except (InvalidInput, Conflict) as error:
        flash(error.message, "error")
        return _show(slug, typed), error.status
    flash(_("Saved. It holds from the next call on."))
    return redirect(url_for("rule_guard.show", slug=slug), 303)


def _show(slug: str, typed: dict[str, str]) -> str:
    settings = runtime().settings.guard
    with runtime().db.read() as session:
        version = find_rule(session, slug)
        rows = history(session, version.rule_id)
        return render_template(
            "console/rule_guard.html",
            version=version, slug=slug, rows=rows, held=rows[0] if rows else None, typed=typed, actions=ACTION_WORDS,
            found=_record(session, slug), settings=settings, words=words, note_max=MAX_NOTE, figures=figures, quality=quality_reader, share=Column("", "", "share"), figure=Column("", "", "figure"),
            may_change=current_user.is_authenticated and current_user.may(*CHANGERS), action_names=ACTIONS,
        )  # fmt: skip


def _record(session: Session, slug: str) -> dict[str, Any] | None:
    """What the newest guard's model that is used was worth on this rule; None where nobody measured it."""
    model = guard_in_force(session)
    found = guarded_rule(model.evaluation, slug) if model else None
    return None if found is None else {"id": model.id, **found}  # type: ignore[union-attr]  # there is one


def _threshold(value: str) -> float | None:
    """What was typed, with a point or a comma."""
    if not value.strip():
        return None
    try:
        return float(value.strip().replace(",", "."))
    except ValueError as error:
        raise InvalidInput(_("%(value)r is no number", value=value[:40]), param="threshold") from error
