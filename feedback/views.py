"""Annotation pages. They work as plain forms; the ES modules beside them add keys, drafts, prefetch and lease renewal.

GET /annotate shows the caller's next task, POST /annotate/<token> stores the judgment and leads to the next one. What
the modules send asks for JSON and gets it: drafts, renewing, skipping, flagging, and judgments too.
"""

import time
from typing import Any

from flask import Blueprint, flash, jsonify, redirect, render_template, request, url_for
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response

from access.views import current_person, require_role
from core.errors import Conflict, Forbidden, InvalidInput
from core.language import N_, gettext
from core.web import runtime
from feedback import task_page
from feedback.assignment import leases
from feedback.assignment.annotators import opt_out, topics
from feedback.assignment.shown import load_shown
from feedback.drafts import load_draft, save_draft
from feedback.judgments import last_judgment, submit_judgment, undo_last
from feedback.kinds import form_of
from feedback.models import Annotator, Assignment, Judgment
from feedback.progress import judged_today, progress_of
from feedback.task_page import build_page, fields_of, kept_fields

blueprint = Blueprint(
    "feedback", __name__, template_folder="pages", static_folder="static", static_url_path="/static/feedback"
)

SURPLUS = N_("Kept as an extra judgment: the time for this task had run out and its place went to others.")
HELP_TEXT = N_("Reading such texts all day is hard. Talk to your lead, take a break, or choose other topics.")
"""What `DUNNOCK_CARE__HELP_TEXT` is unless it is set."""

MAX_BESIDE = 5


@blueprint.get("/")
@require_role()
def home() -> Response:
    """To what the role does most."""
    return redirect("/cycles" if current_person().may("lead") else url_for("feedback.next_task"))


@blueprint.get("/annotate")
@require_role()
def next_task() -> str | tuple[str, int]:
    annotator_id, settings = current_person().id, runtime().settings
    beside = request.args.getlist("beside")[:MAX_BESIDE]
    if request.args.get("extra"):  # by the script of a page that had no other task at hand
        flash(gettext(SURPLUS))
    try:
        with runtime().db.session() as session:
            assignment = leases.next_assignment(
                session, annotator_id, settings.lease_s, shares=settings.assignment, beside=beside
            )
            if assignment is None:
                return render_template("feedback/empty.html", progress=progress_of(session, annotator_id))
            fields = load_draft(session, assignment.lease_token, annotator_id)
            return _render(session, assignment, fields)
    except Forbidden as error:
        if error.code != "annotator_paused":
            raise
        return render_template("feedback/paused.html", message=error.message), error.status


@blueprint.get("/annotate/last")
@require_role()
def last_task() -> Response | str:
    """The task that was judged last, to judge it again."""
    with runtime().db.read() as session:
        last = last_judgment(session, current_person().id)
        if last is None:
            flash(gettext("You have not judged anything yet, so there is nothing to undo."))
            return redirect(url_for("feedback.next_task"))
        assignment = session.get_one(Assignment, last.assignment_id)
        return _render(session, assignment, fields_of(session, last, assignment), last)


@blueprint.get("/annotate/care")
@require_role()
def care() -> str:
    """What one does not want to see, and who helps."""
    with runtime().db.read() as session:
        annotator = session.get(Annotator, current_person().id)
        opted_out = annotator.opted_out if annotator else []
        return render_template(
            "feedback/care.html",
            topics=topics(session),
            opted_out=opted_out,
            settings=runtime().settings,
            help_text=gettext(runtime().settings.care.help_text),
        )


@blueprint.post("/annotate/care")
@require_role()
def set_care() -> Response:
    with runtime().db.session() as session:
        opt_out(session, current_person().id, request.form.getlist("topic"))
    flash(gettext("Saved. Tasks on these topics go to other people."))
    return redirect(url_for("feedback.care"), 303)


@blueprint.post("/annotate/<token>")
@require_role()
def judge(token: str) -> Response | tuple[Response | str, int]:
    fields = request.form.to_dict(flat=False)
    annotator_id = current_person().id
    try:
        with runtime().db.session() as session:
            judgment = _store(session, token, annotator_id, fields)
            progress = _progress_words(judged_today(session, annotator_id)) if _wants_json() else ""
    except InvalidInput as error:
        if _wants_json():
            raise
        return _show_again(token, fields, error), error.status
    except Conflict as error:
        if _wants_json():
            raise
        flash(
            gettext("%(why)s. Nothing was changed.", why=f"{error.message[0].upper()}{error.message[1:]}"),
            "error",
        )
        return redirect(url_for("feedback.next_task"), 303)
    if _wants_json():
        message = gettext(SURPLUS) if judgment.surplus else ""
        return jsonify(judgment_id=judgment.id, surplus=judgment.surplus, message=message, progress=progress), 201
    if judgment.surplus:
        flash(gettext(SURPLUS))
    return redirect(url_for("feedback.next_task"), 303)


@blueprint.get("/annotate/<token>/turns/<completion_id>")
@require_role()
def probe_turn(token: str, completion_id: str) -> str:
    """A reply in a probe, as a part of its page: with names hidden, and what one may say of it."""
    with runtime().db.read() as session:
        shown = load_shown(session, leases.find_assignment(session, token, current_person().id))
        return render_template("feedback/turn.html", turn=task_page.probe_turn(session, shown, completion_id))


@blueprint.put("/annotate/<token>/draft")
@require_role()
def put_draft(token: str) -> Response:
    with runtime().db.session() as session:
        draft = save_draft(session, token, current_person().id, kept_fields(_json()))
        return jsonify(saved_at=draft.saved_at.isoformat())


@blueprint.post("/annotate/<token>/renew")
@require_role()
def renew(token: str) -> Response:
    with runtime().db.session() as session:
        assignment = leases.renew(session, token, current_person().id, runtime().settings.lease_s)
        return jsonify(expires_at=assignment.expires_at.isoformat())


@blueprint.post("/annotate/<token>/skip")
@require_role()
def skip(token: str) -> Response:
    with runtime().db.session() as session:
        leases.skip(session, token, current_person().id, _reason(), gold=runtime().settings.gold)
    return _to_next()


@blueprint.post("/annotate/<token>/flag")
@require_role()
def flag(token: str) -> Response:
    with runtime().db.session() as session:
        leases.flag(session, token, current_person().id, _reason())
    flash(gettext("Flagged. The leads see it; you will not get this task again."))
    return _to_next()


def _store(session: Session, token: str, annotator_id: int, fields: dict[str, list[str]]) -> Judgment:
    settings = runtime().settings
    assignment = leases.find_assignment(session, token, annotator_id)
    shown = load_shown(session, assignment)
    form = form_of(shown.kind).from_fields(fields, shown)
    once = request.form.get("once") or None
    once = f"page:{token}:{once}"[:100] if once else None
    supersedes = _supersedes()
    if not supersedes:
        return submit_judgment(
            session, token=token, annotator_id=annotator_id, form=form, latency_s=_latency_s(), once=once,
            gold=settings.gold, adjudicate=settings.assignment.adjudicate,
        )  # fmt: skip
    if not (supersedes.isdecimal() and len(supersedes) < 12):
        raise InvalidInput(
            gettext("supersedes is %(supersedes)r; it is the number of a judgment", supersedes=supersedes),
            param="supersedes",
        )
    return undo_last(
        session,
        annotator_id,
        form,
        supersedes_id=int(supersedes),
        latency_s=_latency_s(),
        once=once,
        adjudicate=settings.assignment.adjudicate,
    )


def _show_again(token: str, fields: dict[str, list[str]], error: InvalidInput) -> str:
    """The same page with what was typed and what is missing; the draft is kept too."""
    annotator_id = current_person().id
    flash(gettext("Not stored yet: %(why)s. What you typed is kept.", why=error.message), "error")
    with runtime().db.session() as session:
        assignment = leases.find_assignment(session, token, annotator_id)
        kept = kept_fields(fields)
        if assignment.state in ("live", "expired"):
            save_draft(session, token, annotator_id, kept)
            return _render(session, assignment, kept)
        return _render(session, assignment, kept, last_judgment(session, annotator_id) if _supersedes() else None)


def _render(session: Session, assignment: Assignment, fields: dict[str, Any], last: Judgment | None = None) -> str:
    page = build_page(session, assignment, fields, last)
    return render_template(
        f"feedback/{page.shown.kind}.html",
        page=page,
        today=(today := judged_today(session, assignment.annotator_id)),
        progress_words=_progress_words(today),
        annotator=session.get(Annotator, assignment.annotator_id),
        settings=runtime().settings,
        help_text=gettext(runtime().settings.care.help_text),
    )


def _progress_words(today: int) -> str:
    return gettext("%(today)s judged by you today", today=today)


def _to_next() -> Response:
    target = url_for("feedback.next_task")
    return jsonify(next=target) if request.is_json else redirect(target, 303)


def _wants_json() -> bool:
    return request.accept_mimetypes.best_match(["text/html", "application/json"]) == "application/json"


def _reason() -> str:
    reason = _json().get("reason") if request.is_json else request.form.get("reason")
    return reason if isinstance(reason, str) else ""


def _json() -> dict[str, Any]:
    body = request.get_json()
    if not isinstance(body, dict):
        raise InvalidInput(gettext("send a JSON object"))
    return body


def _supersedes() -> str:
    return request.form.get("supersedes", "")


def _latency_s() -> float | None:
    """Seconds since the page was made; None when the field is missing or was tampered with."""
    shown_at = request.form.get("shown_at", type=float)
    if shown_at is None or not 0 <= time.time() - shown_at <= 7 * 24 * 3600:
        return None
    return round(time.time() - shown_at, 3)
