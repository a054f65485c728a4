"""Pages of system prompts: versions, the shares of conversations that get them, and what they do.

Reviewers, leads and admins read; leads and admins write. Texts and shares are kept by `feedback.system_prompts.store`, figures are made
by `console.prompt_effects`.
"""

import datetime as dt
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask_login import current_user
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response

from access.tenants import are_any, tenant_id_of
from access.views import require_role
from console import figures, quality_reader, words
from console.figures import Column, Table
from console.forms import change_by, whole_number
from console.prompt_effects import Effect, Scope, effects
from core.db import utcnow
from core.errors import Conflict, InvalidInput, NotFound
from core.language import gettext as _
from core.language import lazy_gettext as _l
from core.messages import plain_text
from core.web import runtime
from feedback.quality.clustered import difference
from feedback.quality.kept import kept
from feedback.rules.worddiff import word_diff
from feedback.rules.words import MAX_NOTE
from feedback.system_prompts import store
from feedback.system_prompts.models import SystemPromptVersion
from feedback.system_prompts.store import NONE, Share

READERS = ("reviewer", "lead")  # an admin may do whatever a role may
CHANGERS = ("lead",)
CURRENT = "current"
PERIODS: dict[str, Any] = {
    CURRENT: _l("since these shares hold"), "7": _l("7 days"), "28": _l("28 days"), "90": _l("90 days"), "365": _l("365 days"),
}  # fmt: skip
TABLES = ("effects", "cost", "differences")

blueprint = Blueprint("system_prompts", __name__, url_prefix="/system-prompts")


@dataclass(frozen=True)
class Asked:
    """What the reader asked for; the same words stand in the addresses of pages and of files."""

    tenant: str = ""
    period: str = CURRENT
    simulated: bool = False

    def query(self, **other: Any) -> dict[str, Any]:
        """The arguments of an address, without what is as usual."""
        found = {"tenant": self.tenant, "period": self.period, "simulated": int(self.simulated)} | other
        return {name: value for name, value in found.items() if value not in ("", CURRENT, 0, None)}


@blueprint.context_processor
def _for_templates() -> dict[str, object]:
    may_change = current_user.is_authenticated and current_user.may(*CHANGERS)
    limits = {"text": store.MAX_TEXT, "note": MAX_NOTE}
    return {"words": words, "figures": figures, "quality": quality_reader, "may_change": may_change, "limits": limits}


# Reading --------------------------------------------------------------------------------------------------------------


@blueprint.get("")
@require_role(*READERS)
def index() -> str:
    return _index({})


@blueprint.get("/<name>")
@require_role(*READERS)
def show(name: str) -> str:
    return _show(name, {})


@blueprint.get("/tables/<name>.<any(csv, json):form>")
@require_role(*READERS)
def table(name: str, form: str) -> Response:
    if name not in TABLES:
        raise NotFound(_("there is no table %(name)r; there are %(choices)s", name=name, choices=", ".join(TABLES)))
    with runtime().db.read() as session:
        found = _tables(session, _asked())[name]
    return figures.file_of(found, form, f"dunnock-system-prompts-{name}")


def _index(typed: dict[str, str]) -> str:
    asked = _asked()
    with runtime().db.read() as session:
        tenant_id = tenant_id_of(session, asked.tenant or None)
        own = store.newest_shares(session, tenant_id)
        held = store.holding(session, tenant_id)
        rows = store.history(session, tenant_id, request.args.get("before", type=int))
        newest = store.newest_versions(session)
        ids = {s.version_id for row in (*rows, own, held) for s in store.shares_of(row) if s.version_id is not None}
        versions = store.versions_by_id(session, ids) | {v.id: v for v in newest}
        percents = {share.version_id or 0: share.percent for share in store.shares_of(held)}
        offered = sorted({*percents, *(version.id for version in newest)} - {0})
        return render_template(
            "console/system_prompts.html",
            asked=asked, periods=PERIODS, tenants=are_any(session), newest=newest, typed=typed, no_prompt=NONE,
            held=held, own=own, percents=percents, labels={i: v.label for i, v in versions.items()}, offered=offered,
            history=[(row, store.told(store.shares_of(row), versions)) for row in rows[: store.HISTORY]],
            older=rows[store.HISTORY - 1].number if len(rows) > store.HISTORY else None, tables=_tables(session, asked),
        )  # fmt: skip


def _show(name: str, typed: dict[str, str]) -> str:
    with runtime().db.read() as session:
        versions = store.versions_of(session, name)
        by_number = {version.version: version for version in versions}
        numbers = [request.args.get(key, type=int) for key in ("from", "to")]
        compared = [by_number[n] for n in sorted(n for n in numbers if n in by_number)]
        held = {share.version_id: share.percent for share in store.shares_of(store.holding(session))}
        return render_template(
            "console/system_prompt.html",
            name=name, versions=versions, newest=versions[0], typed=typed, held=held,
            compared=compared if len(compared) == 2 else None,
            runs=word_diff(compared[0].text, compared[1].text) if len(compared) == 2 else [],
        )  # fmt: skip


def _asked() -> Asked:
    """What the address asks for.

    Raises:
        InvalidInput: a value that no link of ours has.
    """
    period, simulated = request.args.get("period", CURRENT), request.args.get("simulated", "0")
    if period not in PERIODS:
        raise InvalidInput(
            _("period=%(period)r; it is one of %(choices)s", period=period[:40], choices=", ".join(PERIODS)), param="period"
        )  # fmt: skip
    if simulated not in ("0", "1"):
        raise InvalidInput(_("simulated=%(simulated)r; it is 0 or 1", simulated=simulated[:40]), param="simulated")
    return Asked(request.args.get("tenant", "")[:60], period, simulated == "1")


# Changing -------------------------------------------------------------------------------------------------------------


@blueprint.post("")
@require_role(*CHANGERS)
def create() -> Response | tuple[str, int]:
    typed = _typed("name", "text", "note")
    try:
        with runtime().db.session() as session:
            made = store.create_prompt(
                session, typed["name"], typed["text"], change_by(typed["note"]), most_tokens=_most_tokens()
            )
            name = made.system_prompt.name
    except (InvalidInput, Conflict) as error:
        flash(error.message, "error")
        return _index(typed), error.status
    flash(_("Saved. Nobody gets it before you give it a share."))
    return redirect(url_for("system_prompts.show", name=name), 303)


@blueprint.post("/<name>")
@require_role(*CHANGERS)
def edit(name: str) -> Response | tuple[str, int]:
    typed = _typed("text", "note", "base")
    try:
        with runtime().db.session() as session:
            made = store.add_version(
                session, name, typed["text"], base=whole_number(typed["base"], "base"), change=change_by(typed["note"]),
                most_tokens=_most_tokens(),
            )  # fmt: skip
            number = made.version
    except (InvalidInput, Conflict) as error:
        flash(error.message, "error")
        return _show(name, typed), error.status
    flash(_("Saved as version %(number)d. Nobody gets it before you give it a share.", number=number))
    return redirect(url_for("system_prompts.show", name=name, **{"from": number - 1, "to": number}), 303)  # type: ignore[arg-type]


@blueprint.post("/shares")
@require_role(*CHANGERS)
def set_shares() -> Response | tuple[str, int]:
    typed = {name: plain_text(value) for name, value in request.form.items()}
    try:
        with runtime().db.session() as session:
            base, change = whole_number(typed.get("base", ""), "base"), change_by(typed.get("note", ""))
            shares = _shares(session, typed)
            store.set_shares(
                session, shares, base=base, change=change, tenant_id=tenant_id_of(session, _asked().tenant or None)
            )
    except (InvalidInput, Conflict, NotFound) as error:
        flash(error.message, "error")
        return _index(typed), error.status
    return _shares_set()


@blueprint.post("/shares/<int:number>/bring-back")
@require_role(*CHANGERS)
def bring_back(number: int) -> Response:
    asked = _asked()
    with runtime().db.session() as session:
        store.bring_back(
            session, number, base=whole_number(request.form.get("base", ""), "base"),
            change=change_by(_("as they were in number %(number)s", number=number)),
            tenant_id=tenant_id_of(session, asked.tenant or None),
        )  # fmt: skip
    return _shares_set()


def _shares_set() -> Response:
    flash(_("Saved. It holds from the next call on."))
    return redirect(url_for("system_prompts.index", **_asked().query()), 303)


def _shares(session: Session, typed: dict[str, str]) -> list[Share]:
    """What stands in the form: `percent_ID` of each version, 0 for none, and one more by its label."""
    found = []
    for field, value in typed.items():
        if field.startswith("percent_") and value.strip() not in ("", "0"):
            id_ = whole_number(field.removeprefix("percent_"), "shares")
            found.append(Share(id_ or None, whole_number(value, "shares")))
    if label := typed.get("other", "").strip():
        found.append(Share(store.find_label(session, label).id, whole_number(typed.get("other_percent", ""), "shares")))
    return found


def _typed(*names: str) -> dict[str, str]:
    return {name: plain_text(request.form.get(name, "")) for name in names}


def _most_tokens() -> int:
    return runtime().settings.max_prompt_tokens


# Figures --------------------------------------------------------------------------------------------------------------


def _tables(session: Session, asked: Asked) -> dict[str, Table]:
    """What each version does, and how that differs from the version with the largest share."""
    tenant_id = tenant_id_of(session, asked.tenant or None)
    held = store.holding(session, tenant_id)
    shares = store.shares_of(held)
    largest = store.incumbent_of(shares)
    incumbent = (largest.version_id or 0) if largest else 0
    scope = _scope(asked, tenant_id, held.id if held else None)
    found = kept(
        session, ("system prompts", scope, incumbent), lambda: effects(session, scope, incumbent) if held else []
    )
    rows = [effect for effect in found.value if effect.replies or effect.arm == incumbent]
    versions = store.versions_by_id(session, (effect.arm for effect in rows if effect.arm))
    percents = {share.version_id or 0: share.percent / 100 for share in shares}
    more: dict[str, Any] = {
        "as_of": found.at, "filters": asked.query(), "endpoint": "system_prompts.table",
        "empty": _("No shares hold. What versions do stands here once two of them have a share."),
    }  # fmt: skip
    cells = [_row(effect, versions, percents) for effect in rows]
    named = Column("version", _("Version"))
    return {
        "effects": Table("effects", _("What each version does"), _columns(), cells, note=_note(), **more),
        "cost": Table("cost", _("What each version takes"), [named, *_cost_columns()], cells, **more),
        "differences": Table(
            "differences", _("Difference to the largest share"), _difference_columns(),
            [_difference(effect, rows[0], versions) for effect in rows[1:]] if rows else [],
            note=_("A version less the one with the largest share; where the interval leaves out 0, they differ."), **more,
        ),
    }  # fmt: skip


def _scope(asked: Asked, tenant_id: int | None, share_id: int | None) -> Scope:
    if asked.period == CURRENT:
        return Scope(tenant_id, None, share_id, asked.simulated)
    first = utcnow().date() - dt.timedelta(days=int(asked.period) - 1)
    return Scope(tenant_id, dt.datetime.combine(first, dt.time(), dt.UTC), None, asked.simulated)


def _label(arm: int, versions: dict[int, SystemPromptVersion]) -> str:
    return versions[arm].label if arm else NONE


def _row(effect: Effect, versions: dict[int, SystemPromptVersion], percents: dict[int, float]) -> dict[str, Any]:
    return {
        **effect.figures, "version": _label(effect.arm, versions), "share": percents.get(effect.arm), "units": effect.units,
        "replies": effect.replies, "ties": effect.ties, "both_bad": effect.both_bad,
    }  # fmt: skip


def _difference(effect: Effect, incumbent: Effect, versions: dict[int, SystemPromptVersion]) -> dict[str, Any]:
    less = {name: difference(effect.figures[name], incumbent.figures[name]) for name in effect.figures}
    return {**less, "version": _label(effect.arm, versions), "beside": _label(incumbent.arm, versions)}


def _columns() -> list[Column]:
    return [
        Column("version", _("Version")), Column("share", _("Share"), "share"), Column("units", _("Users or beginnings"), "number"),
        Column("replies", _("Replies"), "number"), Column("preferred", _("Preferred to the largest share"), "share"),
        Column("ties", _("The same"), "number", shown=False), Column("both_bad", _("Both bad"), "number", shown=False),
        *_quality_columns(),
    ]  # fmt: skip


def _difference_columns() -> list[Column]:
    less = Column("beside", _("Less"), shown=False)
    return [Column("version", _("Version")), less, *_quality_columns(), *_cost_columns()]


def _quality_columns() -> list[Column]:
    return [
        Column("thumbs", _("Thumbs up, of thumbs"), "share"), Column("guard", _("Breaks a rule, by the guard"), "share"),
        Column("judged", _("Breaks a rule, by people asked"), "share"),
    ]  # fmt: skip


def _cost_columns() -> list[Column]:
    return [
        Column("tokens", _("Tokens, mean"), "figure"),
        Column("p50_s", _("Seconds, half are faster"), "figure"), Column("p95_s", _("Seconds, 95 % are faster"), "figure"),
    ]  # fmt: skip


def _note() -> str:
    return _(
        "Replies whose version was drawn, with 95 % intervals that take those of one user, or of conversations that begin alike, for one. What people were asked about is no even sample: much of it the guard had flagged. Over a time in which shares changed, versions also differ by when they were used."
    )
