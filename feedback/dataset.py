"""Snapshots: the frozen, hashed datasets that reward models and policies are trained on.

A snapshot is a folder `train.jsonl`, `heldout.jsonl`, `manifest.json`, and `rules-train.jsonl` and `rules-heldout.jsonl`
where there are verdicts on rules. A pair's row holds how much it weighs and the votes behind it, ties are among the rows,
and annotators are numbers that mean nothing outside of the snapshot. The manifest holds the flip rate of people's
judgments as it was then, which the update's label smoothing reads. Near-duplicate prompts are one
cluster (`feedback.near`) and a cluster is never split; which side it goes to hangs on its lowest hash alone, so that a
held-out prompt stays held out while data grows. Prompts of the frozen suites, and near-duplicates of them, are left
out. Doubles are one pair, and nobody weighs more than a share of the training side (`feedback.defences`). No time
stands in it: equal input, equal hash.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.artifacts import hash_folder, new_folder, verify_folder, write_json
from core.detectors import PII, redact
from core.errors import InvalidInput, NotFound
from core.settings import SnapshotSettings
from feedback.defences import hold_back, merge_doubles
from feedback.models import Snapshot, SnapshotJudgment
from feedback.near import clusters, prompt_text
from feedback.preferences import Gathered, Preference, Vote, as_voted, gather, weigh
from feedback.quality.flips import flip_rate
from feedback.quality.reliability import judgment_weights
from feedback.rule_examples import RuleExample

__all__ = [
    "Preference", "RuleExample", "Vote", "as_voted", "find_snapshot", "freeze", "load_pairs", "load_rule_examples", "weigh",
]  # fmt: skip

Row = TypeVar("Row", Preference, RuleExample)


def freeze(
    session: Session, artifact_dir: Path, settings: SnapshotSettings, *, frozen_prompts: Sequence[str] = ()
) -> Snapshot:
    """Freeze what the database holds now; the same content gives the same, existing snapshot.

    Args:
        frozen_prompts: texts that must never be trained on; they and their near-duplicates are left out.

    Raises:
        InvalidInput: nothing to freeze, or one side of the split is empty.
    """
    gathered = gather(
        session,
        include_simulated=settings.include_simulated,
        max_imported_pairs=settings.max_imported_pairs,
        weights=lambda acts: judgment_weights(
            session,
            acts,
            decay=settings.round_decay,
            simulated=settings.include_simulated,
            by_reliability=settings.reliability_weights,
        ),
    )
    counts = gathered.counts
    pairs = _clean_pairs(gathered, settings, counts)
    rules = [_redacted(example, counts, ("completion",)) for example in gathered.rules]
    cluster_of = clusters(
        [*(p.prompt for p in pairs), *(r.prompt for r in rules)], frozen_prompts, settings.near_duplicate_jaccard
    )
    train, heldout = _split(pairs, cluster_of, settings, counts)
    train, shares = hold_back(train, settings)
    if not _decided(train) or not _decided(heldout):
        raise InvalidInput(
            f"the snapshot would hold {len(_decided(train))} training and {len(_decided(heldout))} held-out pairs; both"
            f" sides need some. Left out: {dict(counts)}. Collect more judgments, or set"
            " DUNNOCK_SNAPSHOT__INCLUDE_SIMULATED=true for a trial."
        )
    rules_train, rules_heldout = _split(rules, cluster_of, settings, counts)
    manifest = _manifest(gathered, train, heldout, settings) | {
        "n_rules_train": len(rules_train),
        "n_rules_heldout": len(rules_heldout),
        "weights": gathered.weights.facts,
        "shares": shares,
        "flip_rate": flip_rate(session).plain(),
    }
    staging = artifact_dir / "snapshots" / ".staging"
    with new_folder(staging) as folder:
        _write_jsonl(folder / "train.jsonl", train)
        _write_jsonl(folder / "heldout.jsonl", heldout)
        if gathered.rules:
            _write_jsonl(folder / "rules-train.jsonl", rules_train)
            _write_jsonl(folder / "rules-heldout.jsonl", rules_heldout)
        write_json(folder / "manifest.json", manifest)
    return _register(session, artifact_dir, staging, manifest)


def find_snapshot(session: Session, snapshot_id: int) -> Snapshot:
    """The snapshot row of this id, or NotFound."""
    snapshot = session.get(Snapshot, snapshot_id)
    if snapshot is None:
        raise NotFound(f"there is no snapshot {snapshot_id}")
    return snapshot


def load_pairs(folder: Path, split: str, *, expected_sha256: str | None = None, ties: bool = False) -> list[Preference]:
    """The pairs of one split, "train" or "heldout".

    Args:
        ties: whether ties are among them. Only a reward model can learn from a pair without a better side.

    Raises:
        ArtifactError: the folder does not hash to `expected_sha256`.
    """
    if expected_sha256 is not None:
        verify_folder(folder, expected_sha256)
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    pairs = [Preference(**row | {"votes": [Vote(*vote) for vote in row.get("votes", ())]}) for row in rows]
    return pairs if ties else _decided(pairs)


def load_rule_examples(folder: Path, split: str) -> list[RuleExample]:
    """The verdicts on rules of one split; none where the snapshot has none, or is older than they are."""
    path = folder / f"rules-{split}.jsonl"
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [RuleExample(**json.loads(line)) for line in file]


def _decided(pairs: Sequence[Preference]) -> list[Preference]:
    return [pair for pair in pairs if not pair.tie]


def _clean_pairs(gathered: Gathered, settings: SnapshotSettings, counts: Counter[str]) -> list[Preference]:
    """Redacted pairs and ties, doubles as one, annotators as numbers."""
    pairs = [_redacted(p, counts, ("chosen", "rejected")) for p in [*gathered.preferences, *gathered.ties]]
    if settings.merge_doubles:
        pairs = merge_doubles(pairs, settings.near_duplicate_jaccard, counts)
    number = {who: n for n, who in enumerate(sorted({vote.annotator for p in pairs for vote in p.votes}))}
    return [replace(p, votes=[v._replace(annotator=number[v.annotator]) for v in p.votes]) for p in pairs]


def _redacted(row: Row, counts: Counter[str], names: Sequence[str]) -> Row:
    """A row whose prompt and texts of these names are redacted."""

    def clean(text: str) -> str:
        text, spans = redact(text, PII)
        counts["redactions"] += len(spans)
        return text

    prompt = [{"role": m["role"], "content": clean(m["content"])} for m in row.prompt]
    texts: dict[str, Any] = {name: clean(getattr(row, name)) for name in names}
    return replace(row, prompt=prompt, **texts)


def _split(
    rows: Sequence[Row], cluster_of: dict[str, str | None], settings: SnapshotSettings, counts: Counter[str]
) -> tuple[list[Row], list[Row]]:
    """Rows with the names of their clusters, to train on and held out; without those of frozen prompts."""
    train: list[Row] = []
    heldout: list[Row] = []
    for row in rows:
        cluster = cluster_of[prompt_text(row.prompt)]
        if cluster is None:
            counts["left_out_frozen_suite"] += 1
            continue
        (heldout if _share(cluster) < settings.heldout_frac else train).append(replace(row, cluster=cluster))
    return sorted(train, key=_order), sorted(heldout, key=_order)


def _order(row: Preference | RuleExample) -> tuple[str, ...]:
    if isinstance(row, Preference):
        return row.cluster, row.source, row.chosen, row.rejected
    return row.cluster, row.rule, row.rule_text, row.completion


def _share(cluster: str) -> float:
    """A number in [0, 1) that hangs on the cluster's name alone."""
    return int(cluster[:8], 16) / 2**32


def _manifest(
    gathered: Gathered, train: list[Preference], heldout: list[Preference], settings: SnapshotSettings
) -> dict[str, Any]:
    both = _decided([*train, *heldout])
    return {
        "settings": settings.model_dump(),
        "n_train": len(_decided(train)),
        "n_heldout": len(_decided(heldout)),
        "n_ties": len(train) + len(heldout) - len(both),
        "n_annotators": len({vote.annotator for p in [*train, *heldout] for vote in p.votes}),
        "n_simulated": sum(p.simulated for p in both),
        "n_imported": sum(p.source.startswith("import:") for p in both),
        "n_clusters": len({p.cluster for p in both}),
        "counts": dict(sorted(gathered.counts.items())),
        "judgment_ids": sorted(gathered.judgment_ids),
    }


def _write_jsonl(path: Path, rows: Iterable[Preference | RuleExample]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(asdict(row), ensure_ascii=False, sort_keys=True) + "\n")


def _register(session: Session, artifact_dir: Path, staging: Path, manifest: dict[str, Any]) -> Snapshot:
    digest = hash_folder(staging)
    found = session.scalar(select(Snapshot).where(Snapshot.content_sha256 == digest))
    relative = f"snapshots/{digest[:16]}"
    target = artifact_dir / relative
    if not target.exists():
        staging.rename(target)
    if found is not None:
        return found
    snapshot = Snapshot(content_sha256=digest, path=relative, manifest=manifest)
    session.add(snapshot)
    session.flush()
    session.add_all(SnapshotJudgment(snapshot_id=snapshot.id, judgment_id=j) for j in manifest["judgment_ids"])
    return snapshot
