"""The scoring service: what a completion is worth, all reward models heard.

    score = mean − λ · sd − Σ w_rule · P(broken)

over the members of the preference ensemble and the rules that hold. One service holds all models on one base in memory,
scores many items together, and remembers scores by content (which models and rules, which conversation), so that asking
again costs nothing. It may be called from several threads; the model runs for one of them at a time.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.artifacts import verify_folder
from core.errors import ArtifactError, InvalidInput
from reward.members import Members
from reward.models import RewardModel
from reward.rules import RuleScorer
from reward.scoring import Item, RewardScorer, held_in, places_of, read_record
from training.device import Device
from training.encode import encode

KEPT_SCORES = 50_000
"""Scores that are remembered, the last used ones; a few hundred bytes each."""


@dataclass(frozen=True)
class RuleWeight:
    """A rule that holds: its lasting name, its words, and what breaking it for certain takes off a score."""

    name: str
    text: str
    weight: float


@dataclass(frozen=True)
class Score:
    """A completion's worth and what it is made of: `value` = mean − λ · sd − Σ w · broken."""

    value: float
    mean: float
    sd: float
    broken: dict[str, float]  # P(broken) by the rule's name


class RewardService:
    """Scores of completions, remembered.

    Args:
        preference: the ensemble.
        rules: the rule reward model; without one no rule is asked about.
        weights: the rules that hold.
        identity: what tells these models from others: their hashes.
        kept: how many scores are remembered; 0 for none.
    """

    def __init__(
        self,
        preference: RewardScorer,
        rules: RuleScorer | None = None,
        weights: Sequence[RuleWeight] = (),
        *,
        identity: str = "",
        kept: int = KEPT_SCORES,
    ) -> None:
        self.preference = preference
        self.rules = rules
        self.weights = [w for w in weights if w.weight > 0] if rules else []
        self._identity = json.dumps(
            [identity, preference.sd_weight, [(w.name, w.text, w.weight) for w in self.weights]]
        )
        self._kept = kept
        self._scores: OrderedDict[bytes, Score] = OrderedDict()
        self._model = threading.Lock()
        self._memory = threading.Lock()
        self.hits = self.misses = 0

    @classmethod
    def open(
        cls,
        artifact_dir: Path,
        base: Path,
        preference: RewardModel,
        rules: RewardModel | None = None,
        weights: Sequence[RuleWeight] = (),
        *,
        device: Device = "auto",
    ) -> "RewardService":
        """Load registered models, each checked against its recorded hash, onto one base.

        Raises:
            ArtifactError: a folder is damaged, of another kind, or does not fit this base.
        """
        models = [preference] if rules is None else [preference, rules]
        for model in models:
            verify_folder(artifact_dir / model.path, model.sha256)
        folder = artifact_dir / preference.path
        record = read_record(folder, "reward")
        places = places_of(folder, record)
        if rules is None:
            scorer = RewardScorer.on(Members.load(places, base, device, held_in(record)), folder, record)
            return cls(scorer, identity=preference.sha256)
        rules_folder = artifact_dir / rules.path
        rules_record = read_record(rules_folder, "rules")
        rules_places = places_of(rules_folder, rules_record)
        if held_in(record) != held_in(rules_record):
            raise ArtifactError(
                f"the reward model in {folder} was trained on a base in {held_in(record)} and that of rules in"
                f" {rules_folder} on one in {held_in(rules_record)}; they cannot share one in memory. Train both anew."
            )
        members = Members.load({**places, **rules_places}, base, device, held_in(record))
        return cls(
            RewardScorer.on(members.only(list(places)), folder, record),
            RuleScorer.on(members.only(list(rules_places)), rules_folder, rules_record),
            weights,
            identity=preference.sha256 + rules.sha256,
        )

    def score(self, items: Sequence[Item]) -> list[float]:
        """One score per (prompt, completion); an empty completion is one too.

        Raises:
            InvalidInput: a prompt has no turns.
        """
        return [found.value for found in self.explain(items)]

    def explain(self, items: Sequence[Item]) -> list[Score]:
        """The scores with what they are made of."""
        keys = [self._key(item) for item in items]
        found = self._remembered(keys)
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in found}
        if new:
            with self._model:
                found |= self._remembered(list(new), count=False)  # another thread may have been at the same ones
                left = {key: item for key, item in new.items() if key not in found}
                fresh = dict(zip(left, self._run(list(left.values())), strict=True))
            self._remember(fresh)
            found |= fresh
        return [found[key] for key in keys]

    def _run(self, items: Sequence[Item]) -> list[Score]:
        if not items:
            return []
        ids = [encode(self.preference.tokenizer, prompt, text) for prompt, text in items]
        members = self.preference.member_scores(ids)  # (K, N)
        mean, sd = members.mean(0).tolist(), (members - members.mean(0)).square().mean(0).sqrt().tolist()
        texts = [w.text for w in self.weights]
        broken = self.rules.p_broken(items, texts) if self.rules and texts else [[] for _ in items]
        return [
            Score(
                m - self.preference.sd_weight * s - sum(w.weight * p for w, p in zip(self.weights, each, strict=True)),
                m, s, {w.name: p for w, p in zip(self.weights, each, strict=True)},
            )
            for m, s, each in zip(mean, sd, broken, strict=True)
        ]  # fmt: skip

    def _key(self, item: Item) -> bytes:
        prompt, completion = item
        if not prompt:
            raise InvalidInput("a completion is scored for a prompt of at least one turn; this one has none")
        turns = [(turn["role"], turn["content"]) for turn in prompt]
        return hashlib.sha256(json.dumps([self._identity, turns, completion]).encode()).digest()

    def _remembered(self, keys: Sequence[bytes], *, count: bool = True) -> dict[bytes, Score]:
        with self._memory:
            found = {}
            for key in keys:
                if key in self._scores:
                    self._scores.move_to_end(key)
                    found[key] = self._scores[key]
            if count:
                hits = sum(key in found for key in keys)
                self.hits, self.misses = self.hits + hits, self.misses + len(keys) - hits
            return found

    def _remember(self, fresh: dict[bytes, Score]) -> None:
        with self._memory:
            self._scores |= fresh
            while len(self._scores) > self._kept:
                self._scores.popitem(last=False)
