"""Pages of tenants, for leads and admins: who they are, what they may take and take, their keys.

They are the console's because a pin names a policy version, which `access` knows nothing of. Programs have the same under
`/api/v1/tenants` (`console.tenant_api`).
"""

import datetime as dt

from flask import Blueprint, flash, redirect, render_template, request, url_for
from sqlalchemy import select
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response

from access import tenants
from access.account_pages import KEY_DAYS
from access.keys import TENANT_SCOPES
from access.models import Tenant
from access.paging import before_id
from access.tenants import Agreed
from access.views import current_person, require_role
from console import words
from core.db import utcnow
from core.errors import Conflict, InvalidInput
from core.language import gettext
from core.messages import plain_text
from core.web import runtime
from policy.models import PolicyVersion
from serving.routing import SERVED_STATES, served_versions

blueprint = Blueprint("tenants", __name__, url_prefix="/tenants")


@blueprint.context_processor
def _for_templates() -> dict[str, object]:
    return {"words": words}


@blueprint.get("")
@require_role("lead")
def index() -> str:
    return _index({})


@blueprint.post("")
@require_role("lead")
def add() -> Response | tuple[str, int]:
    typed = {name: plain_text(request.form.get(name, "")) for name in ("name", "key")}
    try:
        with runtime().db.session() as db:
            tenant = tenants.create_tenant(db, current_person().login, Agreed(typed["name"]), typed["key"])
    except (InvalidInput, Conflict) as error:
        flash(error.message, "error")
        return _index(typed), error.status
    flash(gettext("The tenant is made. Set its limits, and make a key for its programs."))
    return _back(tenant.id)


@blueprint.get("/<int:tenant_id>")
@require_role("lead")
def show(tenant_id: int) -> str:
    return _show(tenant_id)


@blueprint.post("/<int:tenant_id>")
@require_role("lead")
def change(tenant_id: int) -> Response | tuple[str, int]:
    try:
        agreed = Agreed(
            plain_text(request.form.get("name", "")),
            _number("requests_per_minute"),
            _number("tokens_per_day"),
            request.form.get("policy_version") or None,
            request.form.get("consent") or None,
            _number("retention_days"),
        )
        with runtime().db.session() as db:
            check_pin(db, agreed.policy_version)
            tenants.change_tenant(db, current_person().login, tenant_id, agreed)
    except InvalidInput as error:
        flash(error.message, "error")
        return _show(tenant_id), error.status
    flash(gettext("Saved. It holds from the next request on."))
    return _back(tenant_id)


@blueprint.post("/<int:tenant_id>/<any(pause, resume):act>")
@require_role("lead")
def switch(tenant_id: int, act: str) -> Response:
    with runtime().db.session() as db:
        tenants.set_active(db, current_person().login, tenant_id, act == "resume")
    flash(gettext("Its keys work again.") if act == "resume" else gettext("Its keys open nothing now. All is kept."))
    return _back(tenant_id)


@blueprint.post("/<int:tenant_id>/keys")
@require_role("lead")
def make_key(tenant_id: int) -> Response | str:
    days, scopes = request.form.get("days", type=int), " ".join(request.form.getlist("scopes"))
    try:
        if days not in KEY_DAYS:
            raise InvalidInput(gettext("Choose how long the key is good for."), param="days")
        until = utcnow() + dt.timedelta(days=days) if days else None
        name, per_minute = request.form.get("name", "").strip(), _number("requests_per_minute")
        with runtime().db.session() as db:
            key, secret = tenants.make_key(db, current_person().login, tenant_id, name, scopes, until, per_minute)
    except InvalidInput as error:
        flash(error.message, "error")
        return _back(tenant_id)
    return render_template("console/tenant_key.html", key=key, secret=secret, tenant_id=tenant_id)


@blueprint.post("/<int:tenant_id>/keys/<int:key_id>/revoke")
@require_role("lead")
def revoke_key(tenant_id: int, key_id: int) -> Response:
    with runtime().db.session() as db:
        tenants.revoke(db, current_person().login, tenant_id, key_id)
    flash(gettext("The key no longer works."))
    return _back(tenant_id)


def check_pin(db: Session, name: str | None) -> None:
    """Raise InvalidInput where no version of this name is or was active."""
    if name is None:
        return
    served = select(PolicyVersion.id).where(PolicyVersion.name == name, PolicyVersion.state.in_(SERVED_STATES))
    if db.scalar(served) is None:
        raise InvalidInput(
            gettext("no policy version %(name)r is or was active; choose one of those that are served", name=name),
            param="policy_version",
        )


def _index(typed: dict[str, str]) -> str:
    with runtime().db.read() as db:
        rows, older = tenants.list_tenants(db, before_id())
        used = tenants.usage_today(db, [row.id for row in rows])
    return render_template("console/tenants.html", rows=rows, older=older, used=used, typed=typed)


def _show(tenant_id: int) -> str:
    with runtime().db.read() as db:
        tenant: Tenant = tenants.find_tenant(db, tenant_id)
        keys, older = tenants.keys_of_tenant(db, tenant_id, before_id())
        versions = [version.name for version in served_versions(db)]
        usage = tenants.usage_of(db, tenant_id)
    return render_template(
        "console/tenant.html", tenant=tenant, keys=keys, older=older, usage=usage, scopes=TENANT_SCOPES, key_days=KEY_DAYS,
        versions=versions if tenant.policy_version in (None, *versions) else [*versions, tenant.policy_version],
    )  # fmt: skip


def _number(name: str) -> int | None:
    """A field's whole number; None where it is empty.

    Raises:
        InvalidInput: it is none.
    """
    typed = request.form.get(name, "").strip()
    if not typed:
        return None
    if not (typed.isascii() and typed.isdecimal() and len(typed) < 18):
        raise InvalidInput(
            gettext("%(name)s is %(value)r; write a whole number, or leave it empty", name=name, value=typed),
            param=name,
        )
    return int(typed)


def _back(tenant_id: int) -> Response:
    return redirect(url_for("tenants.show", tenant_id=tenant_id), 303)
