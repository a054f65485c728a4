"""The operators' pages: cycles, policy versions with their gate, promote, roll back, and the demo's report.

Reviewers, leads and admins read; leads and admins change. Whatever changes is a form with a CSRF token, is
written to the audit log, and, where it changes what is served, asks once on a page that says what will happen.
The pages work without a script; small ES modules add local times and live progress.
"""

from pathlib import Path

from flask import Blueprint, flash, jsonify, redirect, render_template, request, url_for
from flask_login import current_user
from sqlalchemy import select
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response

from access.audit import record
from access.views import current_person, require_role
from console import cycles, figures, policies, quality_reader, words
from console.demo_report import read_report
from console.figures import file_of
from console.rewards import rewards_of
from console.stage_facts import made_from
from console.steps import find_steps
from core.errors import Conflict, InvalidInput
from core.language import gettext
from core.web import runtime
from finetune.cycle import UNFINISHED, cancel_cycle, request_cycle, unfinished_cycle
from finetune.events import tell_promoted
from policy.models import PolicyVersion
from policy.versions import active_version, find_version, promote, rollback
from serving.routing import engine_client, make_ready

READERS = ("reviewer", "lead")  # an admin may do whatever a role may
CHANGERS = ("lead",)
MAX_REASON = 500
PROMPTS, MAX_PROMPTS = 20, 500  # of each suite, for a comparison of versions

blueprint = Blueprint(
    "console", __name__, template_folder="pages", static_folder="static", static_url_path="/console/static"
)


@blueprint.context_processor
def _for_templates() -> dict[str, object]:
    may_change = current_user.is_authenticated and current_user.may(*CHANGERS)  # error pages have nobody, at times
    return {
        "words": words, "figures": figures, "quality": quality_reader, "outcome_words": cycles.outcome_words,
        "made_from": made_from, "may_change": may_change,
    }  # fmt: skip


# Cycles ---------------------------------------------------------------------------------------------------------------


@blueprint.get("/cycles")
@require_role(*READERS)
def list_cycles() -> str:
    state = request.args.get("state", "")
    if state and state not in words.CYCLE_STATES:
        raise InvalidInput(
            gettext(
                "there is no cycle state %(state)r; it is one of %(choices)s",
                state=state,
                choices=", ".join(words.CYCLE_STATES),
            )
        )
    settings = runtime().settings
    with runtime().db.read() as session:
        rows, older = cycles.list_cycles(session, _before(), state or None)
        return render_template(
            "console/cycles.html",
            rows=rows,
            older=older,
            state=state,
            unfinished=unfinished_cycle(session),
            schedule=cycles.schedule_words(session, settings),
            has_report=_report_path().exists(),
        )


@blueprint.post("/cycles")
@require_role(*CHANGERS)
def start_cycle() -> Response:
    with runtime().db.session() as session:
        waiting = unfinished_cycle(session)
        cycle = waiting or request_cycle(session, runtime().settings, "manual")
        if waiting is None:
            record(session, current_person().login, "cycle.request", f"cycle:{cycle.id}", after={"reason": "manual"})
    if waiting is not None:
        flash(gettext("Cycle %(cycle)s is not finished yet, and one runs at a time; here it is.", cycle=cycle.id))
    return redirect(url_for("console.show_cycle", cycle_id=cycle.id), 303)


@blueprint.get("/cycles/<int:cycle_id>")
@require_role(*READERS)
def show_cycle(cycle_id: int) -> str:
    with runtime().db.read() as session:
        cycle = cycles.find_cycle(session, cycle_id)
        return render_template(
            "console/cycle.html",
            cycle=cycle,
            live=cycles.live_state(session, cycle),
            stages=cycles.stage_views(session, cycle),
            rewards=rewards_of(session, cycle_id),
            version=session.scalar(select(PolicyVersion).where(PolicyVersion.cycle_id == cycle_id)),
        )


@blueprint.get("/cycles/<int:cycle_id>.json")
@require_role(*READERS)
def cycle_json(cycle_id: int) -> Response:
    with runtime().db.read() as session:
        return jsonify(cycles.live_state(session, cycles.find_cycle(session, cycle_id)))


@blueprint.get("/cycles/<int:cycle_id>/steps/<stage>")
@require_role(*READERS)
def show_steps(cycle_id: int, stage: str) -> str:
    """A part of the cycle's page, which its script puts in place while the stage runs."""
    with runtime().db.read() as session:
        found = cycles.find_stage_steps(session, cycles.find_cycle(session, cycle_id), stage)
        return render_template("console/steps.html", found=found)


@blueprint.get("/cycles/<int:cycle_id>/steps/<name>.<any(csv, json):form>")
@require_role(*READERS)
def steps_file(cycle_id: int, name: str, form: str) -> Response:
    with runtime().db.read() as session:
        found = cycles.find_stage_steps(session, cycles.find_cycle(session, cycle_id), name.partition("-")[0])
    return file_of(find_steps(found, name).table, form, f"dunnock-cycle-{cycle_id}-{name}")


@blueprint.post("/cycles/<int:cycle_id>/cancel")
@require_role(*CHANGERS)
def cancel(cycle_id: int) -> Response:
    login = current_person().login
    with runtime().db.session() as session:
        before = cycles.find_cycle(session, cycle_id).state
        cycle = cancel_cycle(session, cycle_id, login)
        if before in UNFINISHED:
            record(session, login, "cycle.cancel", f"cycle:{cycle_id}", {"state": before}, {"state": cycle.state})
    if before not in UNFINISHED:
        flash(
            gettext(
                "Cycle %(cycle)s had already ended (%(state)s); nothing was changed.",
                cycle=cycle_id,
                state=words.CYCLE_STATES[before][1],
            )
        )
    return redirect(url_for("console.show_cycle", cycle_id=cycle_id), 303)


# Policy versions ------------------------------------------------------------------------------------------------------


@blueprint.get("/policies")
@require_role(*READERS)
def list_policies() -> str:
    with runtime().db.read() as session:
        rows, older = policies.list_versions(session, _before())
        history, older_history = policies.list_history(session, _before("history_before"))
        return render_template(
            "console/policies.html",
            rows=rows,
            older=older,
            history=history,
            older_history=older_history,
            current=policies.current_version(session),
            former=policies.former_version(session),
        )


@blueprint.get("/policies/<name>")
@require_role(*READERS)
def show_policy(name: str) -> str:
    with runtime().db.read() as session:
        version = find_version(session, name)
        lineage = policies.lineage(session, version)
        report = lineage.report
        active = version.state == "active"
        return render_template(
            "console/policy.html",
            version=version,
            lineage=lineage,
            report=report,
            checks=policies.check_rows(report.checks) if report else [],
            compared=policies.compared(report, version) if report else [],
            rate_groups=policies.rate_groups,
            why_not=policies.why_not_promotable(session, version) if version.state == "candidate" else None,
            former=policies.former_version(session) if active else None,
            may_return=not active and policies.was_active(session, version),
        )


@blueprint.get("/policies/<name>/promote")
@require_role(*CHANGERS)
def ask_promote(name: str) -> str:
    with runtime().db.read() as session:
        version = find_version(session, name)
        policies.refuse_unpromotable(session, version)
        return render_template(
            "console/confirm.html", action="promote", target=version, current=active_version(session)
        )


@blueprint.post("/policies/<name>/promote")
@require_role(*CHANGERS)
def do_promote(name: str) -> Response:
    settings, login = runtime().settings, current_person().login
    with runtime().db.read() as session:
        version = find_version(session, name)
        policies.refuse_unpromotable(session, version)
    make_ready(engine_client(settings), version, settings)  # before anyone is sent to it, and with no lock held
    with runtime().db.session() as session:
        current = _locked_active(session)
        version = find_version(session, name)
        policies.refuse_unpromotable(session, version)
        tell_promoted(session, promote(session, version, actor=login, reason=_reason(), once=f"manual:{name}"))
        _audit(session, login, "policy.promote", current.name, name)
    flash(gettext("%(name)s is active now, instead of %(former)s.", name=name, former=current.name))
    return redirect(url_for("console.show_policy", name=name), 303)


@blueprint.get("/rollback")
@require_role(*CHANGERS)
def ask_rollback() -> str:
    with runtime().db.read() as session:
        current = active_version(session)
        to = request.args.get("to")
        target = find_version(session, to) if to else policies.former_version(session)
        if target is None:
            raise Conflict(
                gettext(
                    "%(name)s is the first version that was active; there is none to roll back to.", name=current.name
                )
            )
        if target.id == current.id or not policies.was_active(session, target):
            raise Conflict(
                gettext(
                    "%(name)s is active already, or never was; only a former version can be brought back.",
                    name=target.name,
                )
            )
        return render_template("console/confirm.html", action="rollback", target=target, current=current)


@blueprint.post("/rollback")
@require_role(*CHANGERS)
def do_rollback() -> Response:
    login = current_person().login
    with runtime().db.session() as session:
        current = _locked_active(session)
        _refuse_unseen(current)
        row = rollback(session, actor=login, reason=_reason(), to=request.form.get("to") or None)
        tell_promoted(session, row)
        target = session.get_one(PolicyVersion, row.policy_version_id)
        _audit(session, login, "policy.rollback", current.name, target.name)
    flash(gettext("%(name)s is active again, instead of %(former)s.", name=target.name, former=current.name))
    return redirect(url_for("console.show_policy", name=target.name), 303)


@blueprint.get("/policies/<name>/compare")
@require_role(*CHANGERS)
def ask_compare(name: str) -> str:
    with runtime().db.read() as session:
        current, target = active_version(session), find_version(session, name)
        policies.refuse_alone(target, current)
        return render_template(
            "console/compare.html",
            target=target,
            current=current,
            prompts=PROMPTS,
            most=MAX_PROMPTS,
            required_n=runtime().settings.required_n,
        )


@blueprint.post("/policies/<name>/compare")
@require_role(*CHANGERS)
def do_compare(name: str) -> Response:
    settings, login = runtime().settings, current_person().login
    prompts = request.form.get("prompts", type=int)
    if prompts is None or not 1 <= prompts <= MAX_PROMPTS:
        raise InvalidInput(gettext("prompts is a number from 1 to %(most)s", most=MAX_PROMPTS), param="prompts")
    with runtime().db.session() as session:
        current, target = active_version(session), find_version(session, name)
        _refuse_unseen(current)
        policies.refuse_alone(target, current)
        waiting = unfinished_cycle(session)
        cycle = waiting or request_cycle(
            session, settings, "compare", stages=["compare"], compare=(target.name, current.name),
            overrides={"collect": {"prompts_per_suite": prompts}},
        )  # fmt: skip
        if waiting is None:
            after = {"reason": "compare", "versions": [target.name, current.name], "prompts": prompts}
            record(session, login, "cycle.request", f"cycle:{cycle.id}", after=after)
    if waiting is not None:
        flash(gettext("Cycle %(cycle)s is not finished yet, and one runs at a time; here it is.", cycle=cycle.id))
    return redirect(url_for("console.show_cycle", cycle_id=cycle.id), 303)


# Reports --------------------------------------------------------------------------------------------------------------


@blueprint.get("/reports/demo")
@require_role(*READERS)
def demo_report() -> str:
    report = read_report(_report_path())
    checks = policies.check_rows(report.checks) if report else []
    return render_template("console/demo_report.html", report=report, checks=checks)


def _report_path() -> Path:
    return runtime().settings.var_dir / "reports" / "demo.json"


def _before(name: str = "before") -> int | None:
    """The id that a page of a list goes on from."""
    value = request.args.get(name, "")
    if value and not (value.isdecimal() and len(value) < 10):
        raise InvalidInput(
            gettext("%(name)s=%(value)r is no id of a row; follow the link “Older”", name=name, value=value), param=name
        )
    return int(value) if value else None


def _reason() -> str:
    return request.form.get("reason", "").strip()[:MAX_REASON]


def _refuse_unseen(current: PolicyVersion) -> None:
    """Raise Conflict where another version is active than when the page was opened."""
    seen = request.form.get("current")
    if seen != current.name:
        raise Conflict(
            gettext(
                "%(seen)s was active when you opened the page, now %(name)s is. Nothing was changed.",
                seen=seen or "–",
                name=current.name,
            )
        )


def _locked_active(session: Session) -> PolicyVersion:
    """The active version, its row locked where the database has such locks: two people's clicks come in turn."""
    session.scalar(select(PolicyVersion).where(PolicyVersion.state == "active").with_for_update())
    return active_version(session)


def _audit(session: Session, login: str, action: str, before: str, after: str) -> None:
    record(session, login, action, f"policy_version:{after}", {"active": before}, {"active": after})
