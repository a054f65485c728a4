"""What keeps few voices from drowning many: doubles are one pair, and nobody and nothing weighs more than its share.

`merge_doubles` makes one pair of those that ask the same and compare the same, with all their votes, one for each annotator.
`hold_back` takes weight off annotators, prompt clusters and categories that have more of it than the settings let them. Neither
knows who is right; where nothing comes twice and nobody has more than a share, both give back what they got.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from core.settings import SnapshotSettings
from feedback.near import representatives, words
from feedback.preferences import Preference, Vote, as_voted

LEAST_FACTOR = 0.2
"""The most that a share takes off: where a few do nearly all of the work, the rest must not come to count for all of it."""

EVEN_SHARES = 2
"""Where groups are so few that this many times an even share is more than the limit, that is the limit."""

DIGITS = 6


# Doubles --------------------------------------------------------------------------------------------------------------


def merge_doubles(pairs: Sequence[Preference], jaccard: float, counts: Counter[str]) -> list[Preference]:
    """One pair for all that are the same: conversations of equal words, and texts that are equal or near.

    Near prompts are not enough: a long instruction with another word at its end asks another thing. Nor are near texts, where
    the two sides of a pair are near each other: there a word is what the pair is about, and only equal sides are the same.

    Args:
        counts: how many pairs went into others is added, as merged_equal and merged_near.
    """
    by_prompt: dict[str, list[Preference]] = defaultdict(list)
    for pair in pairs:
        by_prompt[json.dumps([[m["role"], words(m["content"])] for m in pair.prompt])].append(pair)
    found: list[Preference] = []
    for some in by_prompt.values():
        found += some if len(some) == 1 else _merged_of_prompt(some, jaccard, counts)
    return found


def _merged_of_prompt(pairs: Sequence[Preference], jaccard: float, counts: Counter[str]) -> list[Preference]:
    known_by = representatives((text for pair in pairs for text in (pair.chosen, pair.rejected)), jaccard)
    groups: dict[frozenset[Hashable], list[tuple[Preference, Hashable]]] = defaultdict(list)
    for pair in pairs:
        chosen, rejected = _names(pair, known_by)
        groups[frozenset((chosen, rejected))].append((pair, chosen))
    return [_merged(group, counts) for group in groups.values()]


def _names(pair: Preference, known_by: Mapping[str, str]) -> tuple[Hashable, Hashable]:
    """What the sides are known by: the texts that stand for them, else their words, else themselves."""
    named = known_by[pair.chosen], known_by[pair.rejected]
    if named[0] != named[1]:
        return named
    said = tuple(words(pair.chosen)), tuple(words(pair.rejected))
    return said if said[0] != said[1] else ((pair.chosen, None), (pair.rejected, None))


def _merged(group: Sequence[tuple[Preference, Hashable]], counts: Counter[str]) -> Preference:
    """The pair that most votes are of, with all the votes. A pair from elsewhere has none, and gives way to one that has."""
    if len(group) == 1:
        return group[0][0]
    kept, side = min(group, key=lambda found: (-len(found[0].votes), _sides(found[0]), found[0].chosen))
    signs = [1.0 if chosen == side else -1.0 for _, chosen in group]
    counts.update(
        "merged_equal" if _sides(pair) == _sides(kept) else "merged_near" for pair, _ in group if pair is not kept
    )
    kept = replace(kept, simulated=any(pair.simulated for pair, _ in group))
    if kept.votes:
        return as_voted(kept, _one_each(group, signs))
    said_for = signs.count(1.0) / len(signs)
    if said_for == 1.0:
        return kept
    margin = math.fsum(s * pair.margin for s, (pair, _) in zip(signs, group, strict=True)) / len(group)
    if said_for < 0.5:
        kept, said_for, margin = kept.turned(), 1 - said_for, -margin
    return replace(kept, target=said_for, margin=0.0 if said_for == 0.5 else max(0.0, margin))


def _sides(pair: Preference) -> list[str]:
    return sorted((pair.chosen, pair.rejected))


def _one_each(group: Sequence[tuple[Preference, Hashable]], signs: Sequence[float]) -> list[Vote]:
    """A vote for each annotator: the mean of what they said, and the most that it weighs."""
    said: dict[int, list[Vote]] = defaultdict(list)
    for sign, (pair, _) in zip(signs, group, strict=True):
        for vote in pair.votes:
            said[vote.annotator].append(vote._replace(strength=sign * vote.strength))
    return [
        Vote(who, math.fsum(v.strength for v in votes) / len(votes), max(v.weight for v in votes))
        for who, votes in sorted(said.items())
    ]


# Shares ---------------------------------------------------------------------------------------------------------------


def hold_back(pairs: Sequence[Preference], settings: SnapshotSettings) -> tuple[list[Preference], dict[str, Any]]:
    """Pairs in which nobody and nothing weighs more than its share, and what was done, for the manifest.

    First annotators, then prompt clusters, then categories; a later one may move an earlier one's shares a little. An annotator's
    part of a pair is their vote's weight by the number of votes. Pairs without votes or category are of none that could be held.

    Returns:
        The pairs, in their order; and by "annotators", "prompts", "categories": how many there are (n), the largest share
        (most), the limit, how many were over it (held_back) and the largest share now (left).
    """
    found = list(pairs)
    facts: dict[str, Any] = {}
    by_annotator, facts["annotators"] = _factors(_of_annotators(found), settings.max_annotator_share)
    if by_annotator:
        found = [
            as_voted(pair, [_lighter(v, by_annotator.get(v.annotator, 1.0)) for v in pair.votes])
            if pair.votes
            else pair
            for pair in found
        ]
    for name, of, limit in (
        ("prompts", "cluster", settings.max_prompt_share),
        ("categories", "category", settings.max_category_share),
    ):
        masses: dict[Any, list[float]] = defaultdict(list)
        for pair in found:
            masses[getattr(pair, of) or None].append(pair.weight)
        factors, facts[name] = _factors(masses, limit)
        if factors:
            found = [_lighter_pair(pair, factors.get(getattr(pair, of), 1.0)) for pair in found]
    return found, facts


def _of_annotators(pairs: Sequence[Preference]) -> dict[Any, list[float]]:
    masses: dict[Any, list[float]] = defaultdict(list)
    for pair in pairs:
        for vote in pair.votes:
            masses[vote.annotator].append(vote.weight / len(pair.votes))
        if not pair.votes:
            masses[None].append(pair.weight)
    return masses


def _factors(parts: Mapping[Any, Sequence[float]], limit: float) -> tuple[dict[Any, float], dict[str, Any]]:
    """What to multiply the weight of groups over the limit by, and the facts; what is of no group stands under None.

    The limit holds of the sum that is left when all are held back, so that it is the largest share then.
    """
    masses = {name: math.fsum(some) for name, some in parts.items() if name is not None}
    free = math.fsum(parts.get(None, ()))
    if not masses:
        return {}, {"n": 0}
    limit = min(1.0, max(limit, EVEN_SHARES / len(masses)))
    total = math.fsum([free, *masses.values()])
    most = max(masses.values()) / total
    over: list[Any] = []
    left = total
    for name, mass in sorted(masses.items(), key=lambda item: (-item[1], str(item[0]))):
        if mass <= limit * left * (1 + 1e-9):
            break
        over.append(name)
        free_of_limit = total - math.fsum(masses[n] for n in over)
        left = free_of_limit / (1 - limit * len(over))
    factors = {name: round(max(LEAST_FACTOR, limit * left / masses[name]), DIGITS) for name in over}
    held = {name: mass * factors.get(name, 1.0) for name, mass in masses.items()}
    facts = {
        "n": len(masses), "most": round(most, 4), "limit": round(limit, 4), "held_back": len(over),
        "left": round(max(held.values()) / math.fsum([free, *held.values()]), 4),
    }  # fmt: skip
    return factors, facts


def _lighter(vote: Vote, factor: float) -> Vote:
    return vote._replace(weight=round(vote.weight * factor, DIGITS))


def _lighter_pair(pair: Preference, factor: float) -> Preference:
    if factor == 1.0:
        return pair
    return replace(pair, weight=round(pair.weight * factor, DIGITS), votes=[_lighter(v, factor) for v in pair.votes])
