"""Snapshots: the frozen, hashed datasets that reward models and policies are trained on.

A snapshot is a folder `train.jsonl`, `heldout.jsonl`, `manifest.json`, and `rules-train.jsonl` and `rules-heldout.jsonl`
where there are verdicts on rules. A pair's row holds how much it weighs and the votes behind it, ties are among the rows,
and annotators are numbers that mean nothing outside of the snapshot. The manifest holds the flip rate of people's
judgments as it was then, which the update's label smoothing reads. Near-duplicate prompts are one
cluster (MinHash LSH over word 3-grams; Broder 1997) and a cluster is never split; which side it goes to
hangs on its lowest hash alone, so that a held-out prompt stays held out while data grows. Prompts of the frozen
suites, and near-duplicates of them, are left out. No time stands in it: equal input, equal hash.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.artifacts import hash_folder, new_folder, verify_folder, write_json
from core.errors import InvalidInput, NotFound
from core.settings import SnapshotSettings
from feedback.models import Snapshot, SnapshotJudgment
from feedback.preferences import Gathered, Preference, Vote, gather, weigh
from feedback.quality.flips import flip_rate
from feedback.quality.reliability import judgment_weights
from feedback.redaction import redact
from feedback.rule_examples import RuleExample

__all__ = ["Preference", "RuleExample", "Vote", "find_snapshot", "freeze", "load_pairs", "load_rule_examples", "weigh"]

Row = TypeVar("Row", Preference, RuleExample)

PERMUTATIONS = 128
FIND_ALL = (0.02, 0.98)  # what false and missed hits weigh: hits are checked, missed ones would split a cluster


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
            session, acts, decay=settings.round_decay, simulated=settings.include_simulated
        ),
    )
    counts = gathered.counts
    pairs = _clean_pairs(gathered, counts)
    rules = [_redacted(example, counts, ("completion",)) for example in gathered.rules]
    clusters = _clusters(
        [*(p.prompt for p in pairs), *(r.prompt for r in rules)], frozen_prompts, settings.near_duplicate_jaccard
    )
    train, heldout = _split(pairs, clusters, settings, counts)
    if not _decided(train) or not _decided(heldout):
        raise InvalidInput(
            f"the snapshot would hold {len(_decided(train))} training and {len(_decided(heldout))} held-out pairs; both"
            f" sides need some. Left out: {dict(counts)}. Collect more judgments, or set"
            " DUNNOCK_SNAPSHOT__INCLUDE_SIMULATED=true for a trial."
        )
    rules_train, rules_heldout = _split(rules, clusters, settings, counts)
    manifest = _manifest(gathered, train, heldout, settings) | {
        "n_rules_train": len(rules_train),
        "n_rules_heldout": len(rules_heldout),
        "weights": gathered.weights.facts,
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


def _clean_pairs(gathered: Gathered, counts: Counter[str]) -> list[Preference]:
    """Redacted pairs and ties without doubles, annotators as numbers."""
    pairs = [*gathered.preferences, *gathered.ties]
    number = {who: n for n, who in enumerate(sorted({vote.annotator for p in pairs for vote in p.votes}))}
    seen: set[tuple[str, str, str]] = set()
    found = []
    for pair in pairs:
        cleaned = _redacted(pair, counts, ("chosen", "rejected"))
        key = (json.dumps(cleaned.prompt), cleaned.chosen, cleaned.rejected)
        if key in seen:
            counts["left_out_double"] += 1
            continue
        seen.add(key)
        votes = [vote._replace(annotator=number[vote.annotator]) for vote in cleaned.votes]
        found.append(replace(cleaned, votes=votes))
    return found


def _redacted(row: Row, counts: Counter[str], names: Sequence[str]) -> Row:
    """A row whose prompt and texts of these names are redacted."""

    def clean(text: str) -> str:
        text, n = redact(text)
        counts["redactions"] += n
        return text

    prompt = [{"role": m["role"], "content": clean(m["content"])} for m in row.prompt]
    texts: dict[str, Any] = {name: clean(getattr(row, name)) for name in names}
    return replace(row, prompt=prompt, **texts)


def _split(
    rows: Sequence[Row], clusters: dict[str, str | None], settings: SnapshotSettings, counts: Counter[str]
) -> tuple[list[Row], list[Row]]:
    """Rows with the names of their clusters, to train on and held out; without those of frozen prompts."""
    train: list[Row] = []
    heldout: list[Row] = []
    for row in rows:
        cluster = clusters[_prompt_text(row.prompt)]
        if cluster is None:
            counts["left_out_frozen_suite"] += 1
            continue
        (heldout if _share(cluster) < settings.heldout_frac else train).append(replace(row, cluster=cluster))
    return sorted(train, key=_order), sorted(heldout, key=_order)


def _order(row: Preference | RuleExample) -> tuple[str, ...]:
    if isinstance(row, Preference):
        return row.cluster, row.source, row.chosen, row.rejected
    return row.cluster, row.rule, row.rule_text, row.completion


def _clusters(
    prompts: Sequence[list[dict[str, str]]], frozen_prompts: Sequence[str], jaccard: float
) -> dict[str, str | None]:
    """The name of each prompt's cluster, by the prompt's text; None for one that touches a frozen prompt."""
    from datasketch import MinHashLSH

    texts = sorted({_prompt_text(prompt) for prompt in prompts})
    signatures = {text: _minhash(text) for text in texts}
    index = MinHashLSH(threshold=jaccard, num_perm=PERMUTATIONS, weights=FIND_ALL)
    for text, signature in signatures.items():
        index.insert(text, signature)

    def near(signature: Any) -> list[str]:
        return [text for text in index.query(signature) if signatures[text].jaccard(signature) >= jaccard]

    frozen = {_normal(f) for f in frozen_prompts}
    forbidden = {hit for text in frozen for hit in near(_minhash(text))}
    forbidden |= {text for text in texts if _last_turn(text) in frozen}
    root = {text: text for text in texts}

    def find(text: str) -> str:
        while root[text] != text:
            text = root[text]
        return text

    for text, signature in signatures.items():
        for other in near(signature):
            low, high = sorted((find(text), find(other)), key=_name)
            root[high] = low
    return {text: None if text in forbidden else _name(find(text)) for text in texts}


def _minhash(text: str) -> Any:
    from datasketch import MinHash

    words = text.split()
    signature = MinHash(num_perm=PERMUTATIONS)
    for gram in {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}:
        signature.update(gram.encode())
    return signature


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def _prompt_text(prompt: list[dict[str, str]]) -> str:
    return "\x1f ".join(_normal(m["content"]) for m in prompt if m["role"] != "system")


def _name(text: str) -> str:
    """A prompt's hash. The lowest of a cluster names it, so its share never rises and what is held out stays so."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _last_turn(text: str) -> str:
    return text.rsplit("\x1f ", 1)[-1].strip()


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
