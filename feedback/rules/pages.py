"""Pages of the rules. Everybody who is signed in reads them; leads and admins write, retire and restore.

How often a rule was found broken is shown to reviewers, leads and admins: annotators judge without knowing what others
said. The pages work without a script; the ES modules beside them add and remove examples in place, show what an edit
changes while it is typed, and take quotes out of a selection.
"""

from typing import Any

from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask_babel import format_decimal, format_percent
from flask_login import current_user
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from werkzeug.wrappers import Response

from access.tenants import are_any, tenant_keys
from access.views import current_person, require_role
from core.errors import Conflict, InvalidInput
from core.language import gettext
from core.messages import plain_text
from core.web import runtime
from feedback.models import RuleVersion
from feedback.rules import store as rules
from feedback.rules.counts import NONE, VerdictCounts, counts_by_rule, counts_by_version
from feedback.rules.form import ExampleFields, RuleForm
from feedback.rules.quotes import mark_quotes
from feedback.rules.thresholds import guard_words, thresholds
from feedback.rules.words import (
    CATEGORIES,
    MAX_EXAMPLE,
    MAX_EXAMPLES,
    MAX_NOTE,
    MAX_REASON,
    MAX_TEXT,
    MAX_TITLE,
    Change,
    diff,
    merge,
    words_of,
)

EDITORS = ("lead",)  # an admin may do whatever a role may
SEE_FIGURES = ("reviewer", "lead")
STATES = ("active", "retired", "all")
SORTS = ("oldest", "title", "severity", "changed", "broken")
MAX_TRIED, MAX_QUOTES = 20_000, 20  # characters of each field; quotes that are looked for

blueprint = Blueprint("rules", __name__, url_prefix="/rules")


@blueprint.context_processor
def _for_templates() -> dict[str, object]:
    signed_in = current_user.is_authenticated  # error pages have nobody, at times
    return {
        "may_edit": signed_in and current_user.may(*EDITORS),
        "may_see_figures": signed_in and current_user.may(*SEE_FIGURES),
        "categories": CATEGORIES,
        "limits": {
            "title": MAX_TITLE, "text": MAX_TEXT, "example": MAX_EXAMPLE, "reason": MAX_REASON, "note": MAX_NOTE,
            "examples": MAX_EXAMPLES, "tried": MAX_TRIED,
        },
        "percent": lambda share: format_percent(share, "#,##0.0\u202f%"),
        "count": format_decimal,
    }  # fmt: skip


# Reading --------------------------------------------------------------------------------------------------------------


@blueprint.get("")
@require_role()
def list_rules() -> str:
    asked = {
        "category": _choice("category", ("", *CATEGORIES)),
        "state": _choice("state", STATES),
        "sort": _choice("sort", SORTS),
        "q": plain_text(request.args.get("q", ""))[:200],
    }
    counts: dict[int, VerdictCounts] = {}
    with runtime().db.read() as session:
        state = "" if asked["state"] == "all" else asked["state"]
        found = rules.list_rules(session, category=asked["category"], state=state, search=asked["q"])
        if current_person().may(*SEE_FIGURES):
            counts = counts_by_rule(session, [version.rule_id for version in found.versions])
        tenants = tenant_keys(session, (version.rule.tenant_id for version in found.versions))
    return render_template(
        "feedback/rules.html",
        found=found,
        tenants=tenants,
        versions=_sorted(found.versions, asked["sort"], counts),
        counts=counts,
        no_verdicts=NONE,
        asked=asked,
        any_rule=found.n_active + found.n_retired > 0,
    )


@blueprint.get("/<slug>")
@require_role()
def show_rule(slug: str) -> str:
    return _show(slug, None)


@blueprint.get("/<slug>/versions/<int:number>")
@require_role()
def show_version(slug: str, number: int) -> str:
    return _show(slug, number)


def _show(slug: str, number: int | None) -> str:
    """A rule's page: its newest version or the one of that number, its history, and a comparison where one is asked for."""
    first, second = _number("from"), _number("to")
    counts: dict[int, VerdictCounts] = {}
    total, held_words = NONE, ""
    with runtime().db.read() as session:
        newest = rules.find_rule(session, slug)
        version = newest if number is None else rules.find_version(session, slug, number)
        history, older = rules.history(session, slug, _number("before"))
        compared = None
        if first is not None and second is not None:
            compared = [rules.find_version(session, slug, n) for n in sorted((first, second))]
        if current_person().may(*SEE_FIGURES):
            held_words = guard_words(*thresholds(session).get(newest.rule_id, (None, "block")))
            total = counts_by_rule(session, [newest.rule_id]).get(newest.rule_id, NONE)
            counts = counts_by_version(session, [version.id for version in history])
        return render_template(
            "feedback/rule.html",
            tenant=tenant_keys(session, [newest.rule.tenant_id]).get(newest.rule.tenant_id or 0),
            version=version,
            newest=newest,
            words=words_of(version),
            history=history,
            older=older,
            compared=compared,
            changes=diff(*compared) if compared else [],
            total=total,
            counts=counts,
            no_verdicts=NONE,
            held_words=held_words,
        )


# Writing --------------------------------------------------------------------------------------------------------------


@blueprint.get("/new")
@require_role(*EDITORS)
def new_rule() -> str:
    return _editor(None, RuleForm())


@blueprint.post("/new")
@require_role(*EDITORS)
def create() -> Response | str | tuple[str, int]:
    form = RuleForm.read(request.form.to_dict(flat=False))
    if form.change_examples(request.form.get("do", "")):
        return _editor(None, form)
    try:
        words, change = form.words(), _change(form.note)
        with runtime().db.session() as session:
            version = rules.create_rule(session, words, change, form.tenant or None)
    except ValidationError as error:
        return _editor(None, form, _errors(error)), 400
    except (Conflict, InvalidInput) as error:
        return _editor(None, form, {error.param or "form": error.message}), error.status
    flash(gettext("Saved. Annotators see the rule from their next task on."))
    return redirect(url_for("rules.show_rule", slug=version.rule.slug), 303)


@blueprint.get("/<slug>/edit")
@require_role(*EDITORS)
def edit_form(slug: str) -> str:
    with runtime().db.read() as session:
        newest = rules.find_rule(session, slug)
    return _editor(newest, RuleForm.of(words_of(newest), newest.version))


@blueprint.post("/<slug>/edit")
@require_role(*EDITORS)
def edit(slug: str) -> Response | str | tuple[str, int]:
    act = request.form.get("do", "")
    with runtime().db.read() as session:
        newest = rules.find_rule(session, slug)
    if act in ("use-kept", "use-broken"):
        return _editor(newest, _with_tried(newest, act.removeprefix("use-")))
    form = RuleForm.read(request.form.to_dict(flat=False))
    if form.change_examples(act):
        return _editor(newest, form)
    try:
        words, change = form.words(), _change(form.note)
        with runtime().db.session() as session:
            version = rules.edit_rule(session, slug, words, base=form.base, change=change)
    except ValidationError as error:
        return _editor(newest, form, _errors(error)), 400
    except rules.EditConflict as conflict:
        return _after_conflict(slug, form, conflict), conflict.status
    except InvalidInput as error:
        message = gettext("Nothing is changed yet.") if error.code == "nothing_changed" else error.message
        return _editor(newest, form, {error.param or "form": message}), error.status
    flash(gettext("Saved as version %(number)d.", number=version.version))
    compared = {"from": version.version - 1, "to": version.version}
    return redirect(url_for("rules.show_rule", slug=slug, **compared, _anchor="changes"), 303)  # type: ignore[arg-type]


@blueprint.get("/<slug>/<any(retire, restore):act>")
@require_role(*EDITORS)
def ask_switch(slug: str, act: str) -> str:
    with runtime().db.read() as session:
        newest = rules.find_rule(session, slug)
    if newest.active is (act == "restore"):
        raise Conflict(
            gettext("This rule is active already.") if newest.active else gettext("This rule is retired already.")
        )
    return render_template("feedback/rule_switch.html", version=newest, act=act)


@blueprint.post("/<slug>/<any(retire, restore):act>")
@require_role(*EDITORS)
def switch(slug: str, act: str) -> Response:
    base = request.form.get("base", "")
    if not (base.isdecimal() and len(base) < 10):
        raise InvalidInput(
            gettext("base is %(base)r; it is the number of the version that was shown", base=base), param="base"
        )
    do = rules.retire_rule if act == "retire" else rules.restore_rule
    try:
        change = _change(request.form.get("note", ""))
    except ValidationError as error:
        raise InvalidInput(_errors(error)["note"], param="note") from error
    with runtime().db.session() as session:
        do(session, slug, base=int(base), change=change)
    flash(
        gettext("Retired: from their next task on annotators are not asked about it.")
        if act == "retire"
        else gettext("Restored: annotators see the rule from their next task on.")
    )
    return redirect(url_for("rules.show_rule", slug=slug), 303)


# Trying it ------------------------------------------------------------------------------------------------------------


@blueprint.get("/<slug>/try")
@require_role(*EDITORS)
def try_form(slug: str) -> str:
    return _try(slug, "", "", "")


@blueprint.post("/<slug>/try")
@require_role(*EDITORS)
def try_text(slug: str) -> str:
    """The text beside the rule, with the quoted words marked. Nothing is stored and nothing is judged."""
    return _try(slug, *(_tried(name) for name in ("turn", "reply", "quotes")))


def _try(slug: str, turn: str, reply: str, quotes: str) -> str:
    with runtime().db.read() as session:
        newest = rules.find_rule(session, slug)
    runs, missing = mark_quotes(reply, [quote[:MAX_EXAMPLE] for quote in quotes.splitlines()[:MAX_QUOTES]])
    return render_template(
        "feedback/rule_try.html",
        version=newest, words=words_of(newest), turn=turn, reply=reply, quotes=quotes, runs=runs, missing=missing,
    )  # fmt: skip


def _tried(name: str) -> str:
    return plain_text(request.form.get(name, ""))[:MAX_TRIED]


def _with_tried(newest: RuleVersion, side: str) -> RuleForm:
    """The editor's form with the text that was tried as one more example."""
    form = RuleForm.of(words_of(newest), newest.version)
    turn, reply = _tried("turn").strip(), _tried("reply").strip()
    text = f"User: {turn}\nReply: {reply}" if turn else reply
    getattr(form, side).append(ExampleFields(text))
    return form


# Parts ----------------------------------------------------------------------------------------------------------------


def _editor(
    newest: RuleVersion | None, form: RuleForm, errors: dict[str, str] | None = None, **conflict: object
) -> str:
    """The form with what was typed, and what is wrong with it by field; `newest` is None for a new rule."""
    with runtime().db.read() as session:
        for_tenants = newest is None and are_any(session)
    return render_template(
        "feedback/rule_edit.html", version=newest, form=form, errors=errors or {}, for_tenants=for_tenants, **conflict
    )


def _after_conflict(slug: str, form: RuleForm, conflict: rules.EditConflict) -> str:
    """The editor again, on the version that is current now: what was typed stays, what only others changed is taken over."""
    with runtime().db.read() as session:
        base, newest = (rules.find_version(session, slug, number) for number in (conflict.base, conflict.newest))
    merged = merge(words_of(base), words_of(newest), form.words())
    rebased = RuleForm.of(merged.words, newest.version, form.note)
    return _editor(newest, rebased, base=base, between=diff(base, newest), merged=merged)


def _change(note: str) -> Change:
    person = current_person()
    return Change(author_id=person.id, login=person.login, note=note)


def _errors(error: ValidationError) -> dict[str, str]:
    """What is wrong, by the place that `RuleWords` names, e.g. "kept_examples.0.text"."""
    return {".".join(str(part) for part in found["loc"]): _said(found) for found in error.errors()}


def _said(error: ErrorDetails) -> str:
    limits: dict[str, Any] = error.get("ctx", {})
    words = {
        "string_too_short": gettext("Write something here."),
        "string_too_long": gettext("At most %(most)s characters fit.", most=limits.get("max_length")),
        "too_long": gettext("At most %(most)s examples fit.", most=limits.get("max_length")),
    }
    return str(words.get(error["type"], gettext("Choose one of the list.")))


def _sorted(found: list[RuleVersion], sort: str, counts: dict[int, VerdictCounts]) -> list[RuleVersion]:
    """Oldest rule first within equals; by rate, rules without one come last."""
    keys: dict[str, Any] = {
        "title": lambda v: v.title.casefold(),
        "severity": lambda v: -v.severity,
        "changed": lambda v: -v.created_at.timestamp(),
        "broken": lambda v: -(counts.get(v.rule_id, NONE).broken_rate["rate"] or 0),
    }
    return sorted(found, key=keys[sort]) if sort in keys else found


def _choice(name: str, choices: tuple[str, ...]) -> str:
    """A parameter of the address; the first choice where it is not there."""
    value = request.args.get(name, choices[0])
    if value not in choices:
        raise InvalidInput(
            gettext(
                "there is no %(name)s %(value)r; it is one of %(choices)s",
                name=name,
                value=value,
                choices=", ".join(c for c in choices if c),
            ),
            param=name,
        )
    return value


def _number(name: str) -> int | None:
    """A version's number in the address."""
    value = request.args.get(name, "")
    if value and not (value.isdecimal() and len(value) < 10):
        raise InvalidInput(gettext("%(name)s=%(value)r is no number of a version", name=name, value=value), param=name)
    return int(value) if value else None
