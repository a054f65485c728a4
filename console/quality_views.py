"""The pages of quality: the overview, annotators, known answers, what was flagged, and every table as CSV and JSON.

Reviewers, leads and admins read; leads and admins pause annotators and let them go on. Plots are drawn in the page by
uPlot, whose files are served out of the installed `youplot` wheel; without a script the tables hold the same figures.
"""

from importlib.util import find_spec
from pathlib import Path

from flask import Blueprint, Response, flash, redirect, render_template, request, send_from_directory, url_for
from flask_login import current_user
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from access.roster import find_person
from access.views import current_person, require_role
from console import figures, quality, quality_lists, quality_reader, words
from console.quality import TABLES
from console.quality_reader import DAYS, Filters, Reader
from core.errors import InvalidInput, NotFound
from core.language import gettext as _
from core.web import runtime
from feedback.assignment.annotators import pause, resume
from feedback.quality.annotators import SORTS, standing_of

READERS = ("reviewer", "lead")  # an admin may do whatever a role may
CHANGERS = ("lead",)
LIBRARY = {"uplot.iife.min.js": "text/javascript", "uplot.min.css": "text/css"}
LIBRARY_AGE_S = 86_400

blueprint = Blueprint("quality", __name__, template_folder="pages")


@blueprint.context_processor
def _for_templates() -> dict[str, object]:
    may_change = current_user.is_authenticated and current_user.may(*CHANGERS)
    return {"words": words, "figures": figures, "quality": quality_reader, "may_change": may_change}


@blueprint.get("/quality")
@require_role(*READERS)
def overview() -> str:
    with runtime().db.read() as session:
        reader = _reader(session)
        days = quality.throughput(reader)
        return render_template(
            "console/quality.html",
            filters=reader.filters,
            agreement=quality.agreement_on_pairs(reader),
            flip_rate=quality.flip_rate(reader),
            judgments=sum(row["total"] for row in days.rows),
            people=quality.count_people(reader),
            health=quality.health(reader).value,
            flags=quality_lists.count_flags(reader),
            left_out=quality_reader.count_left_out(reader),
            rules=quality.rules(session),
            tables={"throughput": days}
            | {
                name: TABLES[name](reader)
                for name in (
                    "needs", "progress", "queue", "sampled", "agreement", "agreement-weeks", "flip-rate", "violations-by-version",
                    "violations", "compared",
                )
            },
        )  # fmt: skip


@blueprint.get("/quality/annotators")
@require_role(*READERS)
def annotators() -> str:
    return _page("console/annotators.html", "annotators")


@blueprint.get("/quality/gold")
@require_role(*READERS)
def gold() -> str:
    return _page("console/quality_list.html", "gold")


@blueprint.get("/quality/flags")
@require_role(*READERS)
def flags() -> str:
    return _page("console/quality_list.html", "flags")


@blueprint.get("/quality/consensus")
@require_role(*READERS)
def settled() -> str:
    return _page("console/quality_list.html", "consensus")


@blueprint.get("/quality/tables/<name>.<any(csv, json):form>")
@require_role(*READERS)
def table(name: str, form: str) -> Response:
    if name not in TABLES:
        raise NotFound(
            _("there is no table %(name)r; there are %(choices)s", name=name, choices=", ".join(sorted(TABLES)))
        )
    with runtime().db.read() as session:
        found = TABLES[name](quality.for_export(_reader(session)))
        return figures.file_of(found, form, f"dunnock-{name}")


@blueprint.get("/quality/annotators/<int:person_id>/<any(pause, resume):action>")
@require_role(*CHANGERS)
def ask_standing(person_id: int, action: str) -> str:
    with runtime().db.read() as session:
        find_person(session, person_id)
        person = standing_of(session, [person_id])[person_id]
        why = quality_reader.standing_why(person["why"])
        return render_template("console/standing.html", person=person, why=why, action=action)


@blueprint.post("/quality/annotators/<int:person_id>/<any(pause, resume):action>")
@require_role(*CHANGERS)
def set_standing(person_id: int, action: str) -> AnyResponse:
    act = pause if action == "pause" else resume
    with runtime().db.session() as session:
        changed = act(session, person_id, current_person().login, request.form.get("reason", ""))
        login = find_person(session, person_id).login
    if action == "pause":
        flash(
            _("%(login)s gets no more tasks until somebody lets them go on.", login=login)
            if changed
            else _("%(login)s was paused already; nothing was changed.", login=login)
        )
    else:
        flash(
            _("%(login)s may go on.", login=login)
            if changed
            else _("%(login)s may work already; nothing was changed.", login=login)
        )
    return redirect(url_for("quality.annotators"), 303)


@blueprint.get("/quality/library/<name>")
def library(name: str) -> Response:
    """uPlot's own files, as they lie in the installed wheel."""
    if name not in LIBRARY:
        raise NotFound(_("there is no file %(name)r of the charting library", name=name))
    return send_from_directory(_library_folder(), name, mimetype=LIBRARY[name], max_age=LIBRARY_AGE_S)


def _library_folder() -> Path:
    found = find_spec("youplot")
    if found is None or not found.submodule_search_locations:
        raise NotFound(_("the charting library is not installed; `make setup` does it"))
    return Path(found.submodule_search_locations[0]) / "vendor"


def _page(template: str, name: str) -> str:
    with runtime().db.read() as session:
        reader = _reader(session)
        return render_template(template, filters=reader.filters, table=TABLES[name](reader))


def _reader(session: Session) -> Reader:
    return Reader(session, _filters(), runtime().settings.quality)


def _filters() -> Filters:
    """What the address asks for.

    Raises:
        InvalidInput: a value that no link of ours has.
    """
    days, before = request.args.get("days", "28"), request.args.get("before", "")
    if days not in map(str, DAYS):
        raise InvalidInput(
            _("days=%(days)r; it is one of %(choices)s", days=days, choices=", ".join(map(str, DAYS))), param="days"
        )
    if before and not (before.isdecimal() and len(before) < 10):
        raise InvalidInput(
            _("before=%(before)r is no id of a row; follow the link “Older”", before=before), param="before"
        )
    sort = request.args.get("sort", "")
    if sort and sort not in SORTS:
        raise InvalidInput(
            _("sort=%(sort)r; it is one of %(choices)s", sort=sort, choices=", ".join(SORTS)), param="sort"
        )
    simulated = request.args.get("simulated", "0")
    if simulated not in ("0", "1"):
        raise InvalidInput(_("simulated=%(simulated)r; it is 0 or 1", simulated=simulated), param="simulated")
    rule = request.args.get("rule", "")[:60]
    return Filters(int(days), simulated == "1", rule, sort, int(before) if before else None)
