"""The guard's model of a round: what its rule reward model says, distilled, registered, or why it was not.

Part of the stage `reward`, on the main rank alone: it takes seconds beside the minutes of what it learns from. A round without
one is no failed round.
"""

from pathlib import Path
from typing import Any

from sqlalchemy import select

from core.artifacts import hash_folder, new_folder, verify_folder
from core.errors import ArtifactError
from core.settings import RewardSettings
from feedback.dataset import load_pairs, load_rule_examples
from feedback.models import Snapshot
from feedback.rules.store import active_rules
from finetune.context import StageContext
from reward.guard.answers import gather, texts_of
from reward.guard.distil import BELOW_BAR, NO_TEACHER, train_guard, why_not
from reward.guard.encoder import Encoder, encoder_path
from reward.guard.student import Rule
from reward.models import RewardModel
from reward.rules import RuleScorer
from training.run import part_of

OFF = "DUNNOCK_REWARD__GUARD is off"


def make_guard(context: StageContext, snapshot: Snapshot, base: Path, settings: RewardSettings) -> dict[str, Any]:
    """Train and register the guard's model of this round, unless that is done.

    Returns:
        Its facts, as `reward.guard.distil.train_guard`; or {undefined: why there is none}.
    """
    with context.db.read() as session:
        of_cycle = select(RewardModel).where(RewardModel.cycle_id == context.cycle_id)
        found = {model.kind: model for model in session.scalars(of_cycle)}
        rules = [Rule(version.rule.slug, version.text) for version in active_rules(session)]
    relative = f"rewards/cycle-{context.cycle_id}-guard"
    folder = context.artifact_dir / relative
    if made := found.get("guard"):
        verify_folder(folder, made.sha256)
        return dict(made.evaluation)
    teacher = found.get("rules")
    if settings.guard == "off" or teacher is None:
        return {"undefined": OFF if settings.guard == "off" else NO_TEACHER}
    if settings.guard == "auto" and not teacher.clears_bar:
        return {"undefined": BELOW_BAR}
    try:
        encoder = Encoder(encoder_path(context.settings), context.settings.device)
    except ArtifactError as error:
        return {"undefined": error.message}
    facts = _distil(context, snapshot, base, settings, teacher, rules, encoder, folder)
    if "undefined" not in facts:
        with context.db.session() as session:
            session.add(
                RewardModel(
                    kind="guard", cycle_id=context.cycle_id, snapshot_id=snapshot.id, path=relative,
                    sha256=hash_folder(folder), evaluation=facts, clears_bar=facts["clears_bar"],
                )
            )  # fmt: skip
    return facts


def _distil(
    context: StageContext,
    snapshot: Snapshot,
    base: Path,
    settings: RewardSettings,
    teacher: RewardModel,
    rules: list[Rule],
    encoder: Encoder,
    folder: Path,
) -> dict[str, Any]:
    held = context.artifact_dir / snapshot.path
    place = context.artifact_dir / teacher.path
    verify_folder(place, teacher.sha256)
    sides = {split: load_rule_examples(held, split) for split in ("train", "heldout")}
    texts = {
        split: texts_of(load_pairs(held, split, ties=True), sides[split], heldout=split == "heldout") for split in sides
    }
    asked = gather(
        texts["train"], texts["heldout"], [*sides["train"], *sides["heldout"]], rules,
        RuleScorer.load(place, base, context.settings.device), settings.guard_asks,
        part_of(context.progress, 0.9, 0.97),
    )  # fmt: skip
    if why := why_not(asked):
        return {"undefined": why}
    with new_folder(folder) as out:
        return train_guard(
            asked, encoder, out, settings, teacher={"sha256": teacher.sha256, "clears_bar": teacher.clears_bar},
            snapshot_sha256=snapshot.content_sha256, progress=part_of(context.progress, 0.97, 1.0),
        )  # fmt: skip
