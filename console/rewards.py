"""What the page about a reward model shows: the record of its evaluation as tables of figures, most of them drawn.

An older record may lack what a newer one has; its table is then left out, or says why it is empty.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from console import words
from console.figures import Column, Plot, Table
from core.errors import NotFound
from core.intervals import wilson
from core.language import N_, retold
from core.language import gettext as _
from feedback.quality.estimate import Estimate, Reason
from reward.models import RewardModel

REASONS = (
    N_("only %(n)s pairs are in the smaller half of the held-out clusters; %(least)s are needed"),
    N_("all %(n)s verdicts are on one side"),
    N_("there are no verdicts"),
    N_("only %(n)s rule has verdicts; at least two are needed to hold one out"),
    N_("no verdict is on a rule and a prompt that the other parts did not see"),
    N_("a part of the rules has fewer than %(least)s verdicts outside of it to fit a temperature on"),
    N_("only %(n)s verdicts on rules are to be trained on; at least %(least)s are needed"),
    N_("all %(n)s verdicts say the same, so there is nothing to tell apart"),
    N_("fewer than %(least)s pairs"),
    N_("there is no rule reward model to learn from"),
    N_("the rule reward model does not clear its bar, so there is nothing worth learning from it"),
    N_("only %(n)s answers are to be learnt from; at least %(least)s are needed"),
    N_("only %(n)s of the answers to learn from call a rule broken, or kept; at least %(least)s of each are needed"),
    N_("DUNNOCK_REWARD__GUARD is off"),
)
"""Why a figure is undefined, as `reward.evaluation` and `reward.rules` record it."""

NO_CATEGORY = N_("no category")
UNSCALED = N_("the record has none")


def find_reward(session: Session, reward_id: int) -> RewardModel:
    """The reward model of this id, or NotFound."""
    model = session.get(RewardModel, reward_id)
    if model is None:
        raise NotFound(_("there is no reward model %(n)s", n=reward_id))
    return model


def rewards_of(session: Session, cycle_id: int) -> list[RewardModel]:
    """The reward models that a cycle made, that of preferences first."""
    found = session.scalars(select(RewardModel).where(RewardModel.cycle_id == cycle_id))
    return sorted(found, key=lambda model: list(TABLES).index(model.kind))


def why(text: Any) -> str:
    """Why a figure is undefined, in the reader's language."""
    return retold(str(text), REASONS)


def tables(model: RewardModel) -> dict[str, Table]:
    """Everything that is recorded of a reward model, by the tables' names."""
    found = {}
    for name, make in TABLES[model.kind].items():
        table = make(model.evaluation or {})
        if table is not None:
            found[name] = Table(
                name, table.title, table.columns, table.rows, table.empty, table.note, table.plot,
                filters={"reward_id": model.id}, endpoint="rewards.table",
            )  # fmt: skip
    return found


def headline(model: RewardModel) -> dict[str, Estimate]:
    """The few figures that say what a reward model is worth."""
    found = model.evaluation or {}
    if model.kind == "rules":
        unseen = found.get("unseen") or {}
        return {
            "auc": _auc(unseen.get("auc") or unseen),
            "ece": _plain(unseen, "ece_scaled", "not_scaled"),
            "before": _plain(unseen, "ece"),
        }
    if model.kind == "guard":
        whole = found.get("whole") or {}
        return {
            "auc": _auc(whole.get("auc") or {}),
            "ece": _plain(whole, "ece"),
            "recall": _rate((found.get("on_the_way") or {}).get("recall")),
            "false_hits": _rate((found.get("on_the_way") or {}).get("false_hits")),
        }
    calibration = found.get("calibration") or {}
    return {
        "accuracy": Estimate(found.get("accuracy"), found.get("low"), found.get("high"), found.get("n") or 0),
        "length_only": Estimate(found.get("length_only"), n=found.get("n") or 0),
        "ece": _plain(calibration, "ece_scaled"),
        "before": _plain(calibration, "ece"),
    }  # fmt: skip


def _calibration(found: dict[str, Any], title: str, unit: str) -> Table | None:
    scaled = found.get("bins_scaled")
    bins = scaled if scaled is not None else found.get("bins")
    if not bins:
        return None
    rows = [
        {
            "band": f"{100 * b['low']:.0f}–{100 * b['high']:.0f}\u202f%",
            "said": Estimate(b["said"], n=b["n"]),
            "was": Estimate(b["was"], *wilson(b["was"] * b["n"], b["n"]), n=b["n"]),
        }
        for b in bins
    ]
    columns = [
        Column("band", _("Confidence")),
        Column("said", _("as sure as"), "share"),
        Column("was", _("was so"), "share"),
    ]
    note = (
        _("After temperature scaling; no prompt was fitted on and reported with the same temperature.")
        if scaled is not None
        else _("Before temperature scaling.")
    )
    return Table("calibration", title, columns, rows, note=note, plot=Plot(("said", "was"), unit, 0.0, 1.0))


def _pair_calibration(evaluation: dict[str, Any]) -> Table | None:
    return _calibration(
        evaluation.get("calibration") or {}, _("Is it right as often as it is sure?"), _("share of held-out pairs")
    )


def _rule_calibration(evaluation: dict[str, Any]) -> Table | None:
    return _calibration(
        evaluation.get("unseen") or {}, _("Are unseen rules broken as often as it says?"), _("share of verdicts")
    )


def _distribution(evaluation: dict[str, Any]) -> Table | None:
    found = evaluation.get("rewards") or {}
    edges, counts = found.get("edges") or [], found.get("counts") or {}
    if len(edges) < 2:
        return None
    rows = [
        {
            "band": f"{words.number(low, 1)} … {words.number(high, 1)}",
            "chosen": counts["chosen"][i],
            "rejected": counts["rejected"][i],
        }
        for i, (low, high) in enumerate(pairwise(edges))
    ]
    columns = [
        Column("band", _("Reward")),
        Column("chosen", _("chosen"), "number"),
        Column("rejected", _("rejected"), "number"),
    ]
    return Table(
        "rewards", _("Rewards of held-out completions"), columns, rows,
        plot=Plot(("chosen", "rejected"), _("completions"), 0.0),
    )  # fmt: skip


def _accuracies(rows: Sequence[dict[str, Any]], name: str, title: str, first: str, *, drawn: bool) -> Table | None:
    if not rows:
        return None
    cells = [
        {"name": row["name"] or _(NO_CATEGORY), "accuracy": Estimate(row["rate"], row["low"], row["high"], row["n"])}
        for row in rows
    ]
    columns = [Column("name", first, "text" if drawn else "user"), Column("accuracy", _("ranked as judged"), "share")]
    plot = Plot(("accuracy",), _("share of held-out pairs"), 0.0, 1.0) if drawn else None
    return Table(name, title, columns, cells, plot=plot)


def _by_length(evaluation: dict[str, Any]) -> Table | None:
    rows = [row | {"name": row["name"].replace("…", " … ").strip()} for row in evaluation.get("by_length") or []]
    title = _("By how much longer the chosen side is")
    return _accuracies(rows, "by-length", title, _("Characters more"), drawn=True)


def _by_category(evaluation: dict[str, Any]) -> Table | None:
    rows = evaluation.get("by_category") or []
    return _accuracies(rows, "by-category", _("By category"), _("Category"), drawn=False)


def _members(evaluation: dict[str, Any]) -> Table | None:
    found = evaluation.get("member_accuracies") or []
    if len(found) < 2:
        return None
    n = evaluation.get("n") or 0
    rows = [{"member": k + 1, "accuracy": Estimate(a, *wilson(a * n, n), n=n)} for k, a in enumerate(found)]
    columns = [Column("member", _("Member"), "number"), Column("accuracy", _("ranked as judged"), "share")]
    return Table("members", _("Each member alone"), columns, rows)


def _curve(evaluation: dict[str, Any]) -> Table | None:
    found = evaluation.get("learning_curve") or []
    if not found:
        return None
    rows = [
        {
            "share": words.percent(row["share"]),
            "n_train": row["n_train"],
            "accuracy": Estimate(None, undefined=Reason(why(row["undefined"])))
            if "undefined" in row
            else Estimate(row["accuracy"], row["low"], row["high"], row["n"]),
        }
        for row in found
    ]
    columns = [
        Column("share", _("Share of the prompts")),
        Column("n_train", _("pairs to train on"), "number"),
        Column("accuracy", _("ranked as judged"), "share"),
    ]
    return Table(
        "learning-curve", _("Would more judgments help?"), columns, rows,
        note=_("One member, trained anew on each share."), plot=Plot(("accuracy",), _("share of held-out pairs")),
    )  # fmt: skip


def _per_rule(evaluation: dict[str, Any]) -> Table | None:
    found = evaluation.get("per_rule") or []
    if not found:
        return None
    rows = [{"rule": row["rule"], "unseen": _auc(row["unseen"]), "seen": _auc(row["seen"])} for row in found]
    columns = [
        Column("rule", _("Rule"), "user"),
        Column("unseen", _("AUC, not having seen the rule"), "figure"),
        Column("seen", _("AUC, trained on the rule"), "figure"),
    ]
    return Table(
        "per-rule", _("By rule"), columns, rows, note=_("On prompts that it was not trained on. 0.5 is chance.")
    )


def _by_fraction(evaluation: dict[str, Any]) -> Table | None:
    found = evaluation.get("by_fraction") or []
    if not found:
        return None
    rows = [
        {
            "part": words.percent(row["frac"]), "auc": _auc(row["auc"]), "recall": _rate(row["recall"]),
            "false_hits": _rate(row["false_hits"]), "as_whole": _rate(row["as_whole"]),
        }
        for row in found
    ]  # fmt: skip
    columns = [
        Column("part", _("Of the text")),
        Column("auc", _("AUC"), "figure"),
        Column("recall", _("hit, of what breaks a rule"), "share"),
        Column("false_hits", _("hit, of what breaks none"), "share"),
        Column("as_whole", _("decided as on the whole"), "share"),
    ]
    note = _(
        "What the rule reward model says of the whole text is taken for right. A hit is at or above the threshold."
    )
    return Table("by-fraction", _("How much of a text it needs"), columns, rows, note=note)


def _guarded_rules(evaluation: dict[str, Any]) -> Table | None:
    found = evaluation.get("per_rule") or []
    if not found:
        return None
    rows = [_guarded(row) for row in found]
    columns = [
        Column("rule", _("Rule"), "user"),
        Column("auc", _("AUC"), "figure"),
        Column("threshold", _("Threshold"), "figure"),
        Column("recall", _("hit, of what breaks a rule"), "share"),
        Column("false_hits", _("hit, of what breaks none"), "share"),
    ]
    return Table(
        "per-rule", _("By rule"), columns, rows, note=_("On prompts that it was not trained on. 0.5 is chance.")
    )


def guarded_rule(evaluation: dict[str, Any], slug: str) -> dict[str, Any] | None:
    """What a guard's model is worth on one rule, on held-out prompts: auc, threshold, recall, false_hits; None where it was not measured."""
    row = next((row for row in evaluation.get("per_rule") or [] if row["rule"] == slug), None)
    return None if row is None else _guarded(row)


def _guarded(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "rule": row["rule"], "auc": _auc(row["auc"]), "threshold": Estimate(row["threshold"]),
        "recall": _rate(row.get("recall")), "false_hits": _rate(row.get("false_hits")),
    }  # fmt: skip


def _guard_calibration(evaluation: dict[str, Any]) -> Table | None:
    title = _("Are rules broken as often as it says, by the rule reward model?")
    return _calibration(evaluation.get("whole") or {}, title, _("share of answers"))


def _rate(found: dict[str, Any] | None) -> Estimate:
    if not found or found.get("rate") is None:
        return Estimate(None, undefined=Reason(why(UNSCALED)))
    return Estimate(found["rate"], found["low"], found["high"], found["n"])


def _auc(found: dict[str, Any]) -> Estimate:
    if "value" in found:
        return Estimate(found["value"], found["low"], found["high"], found["n"])
    return Estimate(None, n=found.get("n") or 0, undefined=Reason(why(found.get("undefined", UNSCALED))))


def _plain(found: dict[str, Any], key: str, reason: str = "undefined") -> Estimate:
    if found.get(key) is not None:
        return Estimate(found[key], n=found.get("n") or 0)
    return Estimate(None, undefined=Reason(why(found.get(reason) or found.get("undefined") or UNSCALED)))


Maker = Callable[[dict[str, Any]], Table | None]
PREFERENCE_TABLES: dict[str, Maker] = {
    "calibration": _pair_calibration,
    "rewards": _distribution,
    "by-length": _by_length,
    "by-category": _by_category,
    "members": _members,
    "learning-curve": _curve,
}
RULE_TABLES: dict[str, Maker] = {"calibration": _rule_calibration, "per-rule": _per_rule}
GUARD_TABLES: dict[str, Maker] = {
    "calibration": _guard_calibration,
    "by-fraction": _by_fraction,
    "per-rule": _guarded_rules,
}
TABLES = {"preference": PREFERENCE_TABLES, "rules": RULE_TABLES, "guard": GUARD_TABLES}
"""By kind of model, in the order in which they are told."""
