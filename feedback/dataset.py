"""Snapshots: the frozen, hashed datasets that reward models and policies are trained on.

A snapshot is a folder `train.jsonl`, `heldout.jsonl`, `manifest.json`; the manifest holds the flip rate of people's
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
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.artifacts import hash_folder, new_folder, verify_folder, write_json
from core.errors import InvalidInput, NotFound
from core.settings import SnapshotSettings
from feedback.models import Snapshot, SnapshotJudgment
from feedback.preferences import Gathered, Preference, gather
from feedback.quality.flips import flip_rate
from feedback.redaction import redact

__all__ = ["Preference", "find_snapshot", "freeze", "load_pairs"]

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
        session, include_simulated=settings.include_simulated, max_imported_pairs=settings.max_imported_pairs
    )
    counts = gathered.counts
    pairs = _clean(gathered, counts)
    pairs = _cluster(pairs, frozen_prompts, settings.near_duplicate_jaccard, counts)
    heldout = [p for p in pairs if _share(p.cluster) < settings.heldout_frac]
    train = [p for p in pairs if _share(p.cluster) >= settings.heldout_frac]
    if not train or not heldout:
        raise InvalidInput(
            f"the snapshot would hold {len(train)} training and {len(heldout)} held-out pairs; both sides need some."
            f" Left out: {dict(counts)}. Collect more judgments, or set DUNNOCK_SNAPSHOT__INCLUDE_SIMULATED=true for a trial."
        )
    manifest = _manifest(gathered, train, heldout, settings) | {"flip_rate": flip_rate(session).plain()}
    staging = artifact_dir / "snapshots" / ".staging"
    with new_folder(staging) as folder:
        _write_jsonl(folder / "train.jsonl", train)
        _write_jsonl(folder / "heldout.jsonl", heldout)
        write_json(folder / "manifest.json", manifest)
    return _register(session, artifact_dir, staging, manifest)


def find_snapshot(session: Session, snapshot_id: int) -> Snapshot:
    """The snapshot row of this id, or NotFound."""
    snapshot = session.get(Snapshot, snapshot_id)
    if snapshot is None:
        raise NotFound(f"there is no snapshot {snapshot_id}")
    return snapshot


def load_pairs(folder: Path, split: str, *, expected_sha256: str | None = None) -> list[Preference]:
    """The pairs of one split, "train" or "heldout".

    Raises:
        ArtifactError: the folder does not hash to `expected_sha256`.
    """
    if expected_sha256 is not None:
        verify_folder(folder, expected_sha256)
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
        return [Preference(**json.loads(line)) for line in file]


def _clean(gathered: Gathered, counts: Counter[str]) -> list[Preference]:
    """Redacted pairs without doubles."""
    seen: set[tuple[str, str, str]] = set()
    pairs = []
    for pair in gathered.preferences:
        cleaned, n = _redacted(pair)
        counts["redactions"] += n
        key = (json.dumps(cleaned.prompt), cleaned.chosen, cleaned.rejected)
        if key in seen:
            counts["left_out_double"] += 1
            continue
        seen.add(key)
        pairs.append(cleaned)
    return pairs


def _redacted(pair: Preference) -> tuple[Preference, int]:
    total = 0

    def clean(text: str) -> str:
        nonlocal total
        text, n = redact(text)
        total += n
        return text

    prompt = [{"role": m["role"], "content": clean(m["content"])} for m in pair.prompt]
    return replace(pair, prompt=prompt, chosen=clean(pair.chosen), rejected=clean(pair.rejected)), total


def _cluster(
    pairs: list[Preference], frozen_prompts: Sequence[str], jaccard: float, counts: Counter[str]
) -> list[Preference]:
    """Give each pair the name of its prompt cluster; drop those that touch a frozen prompt."""
    from datasketch import MinHashLSH

    texts = sorted({_prompt_text(p.prompt) for p in pairs})
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
    kept = []
    for pair in pairs:
        text = _prompt_text(pair.prompt)
        if text in forbidden:
            counts["left_out_frozen_suite"] += 1
            continue
        kept.append(replace(pair, cluster=_name(find(text))))
    return sorted(kept, key=lambda p: (p.cluster, p.source, p.chosen, p.rejected))


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
    return {
        "settings": settings.model_dump(),
        "n_train": len(train),
        "n_heldout": len(heldout),
        "n_simulated": sum(p.simulated for p in [*train, *heldout]),
        "n_imported": sum(p.source.startswith("import:") for p in [*train, *heldout]),
        "n_clusters": len({p.cluster for p in [*train, *heldout]}),
        "counts": dict(sorted(gathered.counts.items())),
        "judgment_ids": sorted(gathered.judgment_ids),
    }


def _write_jsonl(path: Path, pairs: Iterable[Preference]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for pair in pairs:
            file.write(json.dumps(asdict(pair), ensure_ascii=False, sort_keys=True) + "\n")


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
