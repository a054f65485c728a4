"""Policy versions and what is active: register, promote, roll back.

The promotion table is append-only and its last row names the active version; `state` says the same per
version and the database allows one `active`. Both change in one transaction, so a reader sees either the
old or the new version and a crash leaves the old one.
"""

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.errors import Conflict, NotFound
from core.language import gettext
from policy.models import GateReport, PolicyVersion, Promotion

BASE_NAME = "base"


def active_version(session: Session) -> PolicyVersion:
    """The version that answers now.

    Raises:
        NotFound: none yet; `ensure_base_version` makes the first.
    """
    version = session.scalar(select(PolicyVersion).where(PolicyVersion.state == "active"))
    if version is None:
        raise NotFound(
            gettext("no policy version is active yet; run `make run` or `make demo` once"), code="no_active_policy"
        )
    return version


def find_version(session: Session, name: str) -> PolicyVersion:
    """The version of this name, or NotFound."""
    version = session.scalar(select(PolicyVersion).where(PolicyVersion.name == name))
    if version is None:
        raise NotFound(gettext("there is no policy version %(name)r", name=name), code="model_not_found", param="model")
    return version


def ensure_base_version(session: Session, base_model: str, base_sha256: str) -> PolicyVersion:
    """The version "base" (no adapter); active where nothing else is.

    Raises:
        Conflict: the weights are not those that this database's versions were trained on.
    """
    version = session.scalar(select(PolicyVersion).where(PolicyVersion.name == BASE_NAME))
    if version is None:
        version = PolicyVersion(name=BASE_NAME, state="retired", base_model=base_model, base_sha256=base_sha256)
        session.add(version)
        session.flush()
    if version.base_sha256 != base_sha256:
        raise Conflict(
            gettext(
                "this database was made with base model %(made)s (%(made_sha256)s…), but the settings name %(asked)s (%(asked_sha256)s…); adapters do not carry over. Use another database or the former base.",
                made=version.base_model,
                made_sha256=version.base_sha256[:12],
                asked=base_model,
                asked_sha256=base_sha256[:12],
            )
        )
    if session.scalar(select(Promotion.id).limit(1)) is None:
        _activate(session, version, None, kind="first", actor="system", reason="first version", once="first")
    return version


def register_candidate(
    session: Session,
    *,
    base: PolicyVersion,
    cycle_id: int,
    snapshot_id: int,
    adapter_path: str,
    adapter_sha256: str,
    reference: str,
    parent: str | None = None,
) -> PolicyVersion:
    """A candidate for a trained adapter, named after its cycle; the same cycle gives the same row.

    Args:
        parent: the version whose adapter it continues.
    """
    version = session.scalar(select(PolicyVersion).where(PolicyVersion.cycle_id == cycle_id))
    if version is None:
        version = PolicyVersion(
            name=f"v{cycle_id}", state="candidate", base_model=base.base_model, base_sha256=base.base_sha256,
            adapter_path=adapter_path, adapter_sha256=adapter_sha256, reference=reference,
            cycle_id=cycle_id, snapshot_id=snapshot_id,
            parent_id=find_version(session, parent).id if parent else None,
        )  # fmt: skip
        session.add(version)
        session.flush()
    return version


def promote(session: Session, version: PolicyVersion, *, actor: str, reason: str, once: str) -> Promotion:
    """Make a candidate active, on the strength of a gate report that passed.

    Args:
        once: names this promotion; a second call with the same name returns the first row and changes nothing.

    Raises:
        Conflict: the version has no passing gate report, or is refused.
    """
    done = session.scalar(select(Promotion).where(Promotion.once == once))
    if done is not None:
        return done
    report = session.scalar(select(GateReport).where(GateReport.policy_version_id == version.id))
    if report is None or not report.passed:
        found = gettext("no gate report") if report is None else gettext("a gate report that did not pass")
        raise Conflict(
            gettext(
                "%(name)s has %(found)s; only a version that passed the gate can be promoted",
                name=version.name,
                found=found,
            )
        )
    current = active_version(session)
    if current.id != report.incumbent_id:
        raise Conflict(
            gettext(
                "%(name)s was gated against another version than %(active)s, which is active now; gate it again",
                name=version.name,
                active=current.name,
            )
        )
    return _activate(
        session, version, current, kind="promote", actor=actor, reason=reason, once=once, gate_report_id=report.id
    )


def adopt(session: Session, version: PolicyVersion, *, actor: str, reason: str) -> Promotion:
    """Make a version active that was gated elsewhere: an edge device takes it over with the bundle that it came in."""
    current = session.scalar(select(PolicyVersion).where(PolicyVersion.state == "active"))
    session.add(version)
    session.flush()
    return _activate(session, version, current, kind="first", actor=actor, reason=reason)


def rollback(session: Session, *, actor: str, reason: str = "", to: str | None = None) -> Promotion:
    """Bring back the version that was active before (or a named one that once was): one row.

    Raises:
        Conflict: there is nothing to go back to, or the named version was never active.
    """
    current = active_version(session)
    history = session.scalars(select(Promotion).order_by(Promotion.id.desc())).all()
    been_active = {p.policy_version_id for p in history}
    if to is not None:
        target = find_version(session, to)
        if target.id not in been_active or target.id == current.id:
            raise Conflict(
                gettext("%(name)s is active already or never was; only a former version can be brought back", name=to)
            )
    else:
        target = former_version(session, current)
    return _activate(session, target, current, kind="rollback", actor=actor, reason=reason)


def former_version(session: Session, current: PolicyVersion) -> PolicyVersion:
    """The version before the promotion that made `current` active: a second rollback goes one further back.

    Raises:
        Conflict: there is none.
    """
    row = session.scalar(
        select(Promotion)
        .where(Promotion.policy_version_id == current.id, Promotion.kind != "rollback")
        .order_by(Promotion.id.desc())
    )
    former = session.get(PolicyVersion, row.former_id) if row is not None and row.former_id else None
    if former is None:
        raise Conflict(gettext("there is no version before %(name)s; nothing was changed", name=current.name))
    return former


def _activate(
    session: Session,
    version: PolicyVersion,
    former: PolicyVersion | None,
    *,
    kind: str,
    actor: str,
    reason: str,
    once: str | None = None,
    gate_report_id: int | None = None,
) -> Promotion:
    if former is not None:
        former.state = "retired"
        session.flush()  # before the other, so that there are never two
    version.state = "active"
    row = Promotion(
        kind=kind, policy_version_id=version.id, former_id=former.id if former else None,
        gate_report_id=gate_report_id, once=once, actor=actor, reason=reason,
    )  # fmt: skip
    session.add(row)
    session.flush()
    return row
