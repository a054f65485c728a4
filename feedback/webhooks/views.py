"""The pages of webhooks, for leads: which there are and how they do; adding, testing, switching, removing."""

from flask import Blueprint, flash, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from access.models import Person
from access.views import current_person, require_role
from core.db import MAX_ID
from core.errors import InvalidInput
from core.language import gettext as _
from core.web import runtime
from feedback.webhooks import subscriptions
from feedback.webhooks.events import EVENTS

blueprint = Blueprint("webhooks", __name__, url_prefix="/webhooks", template_folder="../pages")

LEADS = ("lead",)  # an admin may do whatever a role may


@blueprint.get("")
@require_role(*LEADS)
def index() -> str:
    return _index("", list(EVENTS))


@blueprint.post("")
@require_role(*LEADS)
def add() -> tuple[str, int]:
    url, events = request.form.get("url", ""), request.form.getlist("events")
    allow_private = runtime().settings.webhook_allow_private
    try:
        with runtime().db.session() as session:
            person = session.get_one(Person, current_person().id)
            webhook = subscriptions.add(session, person, url, events, allow_private=allow_private)
    except InvalidInput as error:
        flash(error.message, "error")
        return _index(url, events), 400
    return render_template("feedback/webhook_added.html", webhook=webhook), 201  # the secret is shown this once


@blueprint.get("/<int:webhook_id>")
@require_role(*LEADS)
def show(webhook_id: int) -> str:
    before = request.args.get("before", type=int)
    before = None if before is None else min(max(before, 0), MAX_ID)
    with runtime().db.read() as session:
        webhook = subscriptions.find(session, webhook_id)
        rows, older = subscriptions.deliveries(session, webhook_id, before)
        counts = subscriptions.counts(session, [webhook_id])[webhook_id]
    return render_template("feedback/webhook.html", webhook=webhook, rows=rows, older=older, counts=counts)


@blueprint.post("/<int:webhook_id>/test")
@require_role(*LEADS)
def test(webhook_id: int) -> Response:
    with runtime().db.session() as session:
        subscriptions.test(session, subscriptions.find(session, webhook_id), current_person().login)
    flash(_("A test is on its way; the worker sends it within seconds. Reload to see how it went."))
    return _to(webhook_id)


@blueprint.post("/<int:webhook_id>/deliveries/<int:delivery_id>/again")
@require_role(*LEADS)
def again(webhook_id: int, delivery_id: int) -> Response:
    with runtime().db.session() as session:
        webhook = subscriptions.find(session, webhook_id)
        subscriptions.send_again(session, webhook, delivery_id, current_person().login)
    flash(_("It will be sent again within seconds."))
    return _to(webhook_id)


@blueprint.post("/<int:webhook_id>/switch")
@require_role(*LEADS)
def switch(webhook_id: int) -> Response:
    active = request.form.get("active") == "yes"
    with runtime().db.session() as session:
        subscriptions.switch(session, subscriptions.find(session, webhook_id), active, current_person().login)
    return _to(webhook_id)


@blueprint.post("/<int:webhook_id>/remove")
@require_role(*LEADS)
def remove(webhook_id: int) -> Response:
    with runtime().db.session() as session:
        webhook = subscriptions.find(session, webhook_id)
        subscriptions.remove(session, webhook, current_person().login)
    flash(_("The webhook %(url)s was removed.", url=webhook.url))
    return redirect(url_for("webhooks.index"), 303)


def _index(url: str, events: list[str]) -> str:
    with runtime().db.read() as session:
        hooks = subscriptions.list_webhooks(session)
        counts = subscriptions.counts(session, [hook.id for hook in hooks])
    meanings = {name: _(meaning) for name, meaning in EVENTS.items()}
    return render_template(
        "feedback/webhooks.html", hooks=hooks, counts=counts, url=url, chosen=events, events=meanings
    )


def _to(webhook_id: int) -> Response:
    return redirect(url_for("webhooks.show", webhook_id=webhook_id), 303)
