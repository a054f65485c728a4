"""`/api/v1/tenants`: making, changing and pausing tenants, their keys and their usage, for leads' programs.

Reading wants the scope `manage`; whatever gives or takes access wants `people`, as for people.
"""

import datetime as dt
from typing import Any

from flask import Blueprint, Response, jsonify
from sqlalchemy import select

from access import tenants
from access.callers import calling_manager, managers_body
from access.models import ApiKey, Tenant
from access.tenants import Agreed
from console.tenant_schemas import (
    TenantAnswer,
    TenantBody,
    TenantChange,
    TenantKeyAnswer,
    TenantKeyBody,
    TenantKeyList,
    TenantKeyMade,
    TenantPage,
    UsageAnswer,
    UsageDay,
    UsageQuery,
)
from console.tenants import check_pin
from core.body import parse_query
from core.db import utcnow
from core.openapi import operation
from core.web import runtime
from feedback.api.schemas import Page

blueprint = Blueprint("api_tenants", __name__, url_prefix="/api/v1/tenants")

READ, ACCESS = "manage", "people"
KEY_COLUMNS = ("id", "name", "prefix", "requests_per_minute", "created_at", "expires_at", "revoked_at", "last_used_at")


@blueprint.get("")
@operation("Tenants", TenantPage, query=Page, scope=READ)
def list_tenants() -> Response:
    """Tenants by id, a page at a time."""
    query = parse_query(Page)
    wanted = select(Tenant).where(Tenant.id > query.after).order_by(Tenant.id).limit(query.limit + 1)
    with runtime().db.read() as session:
        calling_manager(session, READ)
        found = session.scalars(wanted).all()
    rows = found[: query.limit]
    return jsonify(data=[_told(row) for row in rows], next_after=rows[-1].id if len(found) > len(rows) else None)


@blueprint.post("")
@operation("Tenants", {201: TenantAnswer}, body=TenantBody, scope=ACCESS, errors=(409,))
def create() -> tuple[Response, int]:
    """Make a tenant, which is active at once."""
    body = managers_body(TenantBody, ACCESS)
    with runtime().db.session() as session:
        actor = calling_manager(session, ACCESS)
        check_pin(session, body.policy_version)
        agreed = Agreed(**body.model_dump(exclude={"key"}))
        return jsonify(_told(tenants.create_tenant(session, actor.login, agreed, body.key))), 201


@blueprint.get("/<int:tenant_id>")
@operation("Tenants", TenantAnswer, scope=READ)
def show(tenant_id: int) -> Response:
    """One tenant."""
    with runtime().db.read() as session:
        calling_manager(session, READ)
        return jsonify(_told(tenants.find_tenant(session, tenant_id)))


@blueprint.patch("/<int:tenant_id>")
@operation("Tenants", TenantAnswer, body=TenantChange, scope=ACCESS)
def change(tenant_id: int) -> Response:
    """Change a tenant's name, limits or pin, pause it or let it go on; all that is said, or nothing of it."""
    body = managers_body(TenantChange, ACCESS)
    said = {name: getattr(body, name) for name in body.model_fields_set}
    active = said.pop("active", None)
    with runtime().db.session() as session:
        actor = calling_manager(session, ACCESS)
        tenant = tenants.find_tenant(session, tenant_id, lock=True)
        if said:
            check_pin(session, said.get("policy_version"))
            agreed = Agreed(**{**vars(Agreed.of(tenant)), **said})
            tenants.change_tenant(session, actor.login, tenant_id, agreed)
        if active is not None:
            tenants.set_active(session, actor.login, tenant_id, active)
        return jsonify(_told(tenant))


@blueprint.get("/<int:tenant_id>/usage")
@operation("Tenants", UsageAnswer, query=UsageQuery, scope=READ)
def usage(tenant_id: int) -> Response:
    """Requests and tokens of a tenant by days."""
    query = parse_query(UsageQuery)
    with runtime().db.read() as session:
        calling_manager(session, READ)
        tenants.find_tenant(session, tenant_id)
        rows = tenants.usage_of(session, tenant_id, query.days)
    told = [{name: getattr(row, name) for name in UsageDay.model_fields} | {"day": row.day.isoformat()} for row in rows]
    return jsonify(data=told)


@blueprint.get("/<int:tenant_id>/keys")
@operation("Tenants", TenantKeyList, scope=READ)
def list_keys(tenant_id: int) -> Response:
    """A tenant's keys, newest first, the ended ones too; never a secret."""
    with runtime().db.read() as session:
        calling_manager(session, READ)
        rows, _ = tenants.keys_of_tenant(session, tenant_id)
        return jsonify(data=[_key(row) for row in rows])


@blueprint.post("/<int:tenant_id>/keys")
@operation("Tenants", {201: TenantKeyMade}, body=TenantKeyBody, scope=ACCESS)
def make_key(tenant_id: int) -> tuple[Response, int]:
    """Make a key of a tenant. Its secret is told this once."""
    body = managers_body(TenantKeyBody, ACCESS)
    until = utcnow() + dt.timedelta(days=body.days) if body.days else None
    with runtime().db.session() as session:
        actor = calling_manager(session, ACCESS)
        key, secret = tenants.make_key(
            session, actor.login, tenant_id, body.name, " ".join(body.scopes), until, body.requests_per_minute
        )
        return jsonify(_key(key) | {"secret": secret}), 201


@blueprint.post("/<int:tenant_id>/keys/<int:key_id>/revoke")
@operation("Tenants", TenantKeyAnswer, scope=ACCESS)
def revoke_key(tenant_id: int, key_id: int) -> Response:
    """End a key now; of one that has ended nothing changes."""
    with runtime().db.session() as session:
        actor = calling_manager(session, ACCESS)
        return jsonify(_key(tenants.revoke(session, actor.login, tenant_id, key_id)))


def _told(tenant: Tenant) -> dict[str, Any]:
    told = {name: getattr(tenant, name) for name in TenantAnswer.model_fields}
    return told | {"created_at": tenant.created_at.isoformat()}


def _key(key: ApiKey) -> dict[str, Any]:
    told = {name: getattr(key, name) for name in KEY_COLUMNS}
    at = {name: value.isoformat() for name, value in told.items() if isinstance(value, dt.datetime)}
    return told | at | {"scopes": key.scopes.split()}
