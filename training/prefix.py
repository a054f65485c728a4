"""Shared beginnings: what sequences begin with alike goes through the blocks once.

Sequences come in groups that share a prompt: the two sides of a pair, or a prompt with all the completions to be
scored. A packed row is what all sequences share (the template and the system turn), then for each group what its members
share (the prompt), and the rest of each member. Positions start again after a shared part, and a mask hides groups and
rests from each other. Exact up to the order of float additions, and nothing is padded but the end of a packed row. For
pairs with 24 tokens shared by all, 22 more by a pair and rests of 8 it is a third of the plain batch's work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_SHARE = 0.9
"""Packing must bring the tokens below this share of the plain batch, or it is not worth its gathers."""

ROW_TOKENS = 384
"""About how long packed rows get: each row repeats what all share, but attention grows with its square."""

Key = tuple[int, ...]
"""The token ids of a sequence, without padding."""

Groups = Sequence[Sequence[int]]
"""Indices of the sequences of each group; every index once."""

NEAR = 8
"""Neighbours that share so many tokens beyond what all share are worth a group."""


@dataclass(frozen=True)
class _Group:
    """Members by their index; tokens they share from the start; and tokens they add to a row that holds the common part."""

    members: tuple[int, ...]
    shared: int
    own: int


class Plan:
    """Which sequences stand together in which packed row.

    Args:
        keys: the sequences, N of them.
        groups: indices of the sequences of each group; every index once.

    Attributes:
        common: tokens that all sequences share from the start.
        rows: the groups of each packed row, R of them.
        width: P, the width of a packed row.
    """

    def __init__(self, keys: Sequence[Key], groups: Groups) -> None:
        self.keys = keys
        self.common = _shared(keys)
        found = []
        for members in groups:
            shared = _shared([keys[i] for i in members])
            own = shared - self.common + sum(len(keys[i]) - shared for i in members)
            found.append(_Group(tuple(members), shared, own))
        self.rows = _rows(found, max(1, ROW_TOKENS - self.common))
        self.width = self.common + max(sum(group.own for group in row) for row in self.rows)

    def worth_it(self, width: int) -> bool:
        """Whether packing saves enough over a plain batch of this padded width."""
        return len(self.rows) * self.width <= MAX_SHARE * len(self.keys) * width


class Packing:
    """How a plan's N sequences fold into R packed rows of P tokens, and back.

    Args:
        width: T, the padded width of the plain batch.

    Attributes:
        positions: (R, P) positions of the packed tokens.
        mask: (R, 1, P, P), true where a token is seen.
    """

    def __init__(self, plan: Plan, width: int, device: Any) -> None:
        import torch

        shape, common = (len(plan.rows), plan.width), plan.common
        self.source_row, self.source_column, self.positions = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        self.mask = torch.eye(plan.width, dtype=torch.bool).repeat(len(plan.rows), 1, 1, 1)  # padding sees itself alone
        self.packed_row = torch.zeros(len(plan.keys), 1, dtype=torch.long)
        self.packed_column = torch.zeros(len(plan.keys), width, dtype=torch.long)
        self.packed_column[:, :common] = torch.arange(common)
        for r, row in enumerate(plan.rows):
            end = common + sum(group.own for group in row)
            self.mask[r, 0, :end, :end] = torch.ones(end, end, dtype=torch.bool).tril()
            self._place(r, 0, row[0].members[0], 0, common)
            at = common
            for group in row:
                begin, after = at, at + group.shared - common
                self._place(r, begin, group.members[0], common, group.shared)
                self.packed_row[list(group.members)] = r
                at = after
                for i in group.members:
                    rest = len(plan.keys[i]) - group.shared
                    self._place(r, at, i, group.shared, group.shared + rest)
                    self.packed_column[i, common : group.shared] = torch.arange(begin, after)
                    self.packed_column[i, group.shared : group.shared + rest] = torch.arange(at, at + rest)
                    self.mask[r, 0, at : at + rest, after:at] = False  # the members before
                    at += rest
                self.mask[r, 0, begin:at, common:begin] = False  # the groups before
        for name in ("source_row", "source_column", "positions", "mask", "packed_row", "packed_column"):
            setattr(self, name, getattr(self, name).to(device))

    def _place(self, row: int, at: int, source: int, first: int, last: int) -> None:
        """Columns first … last of a sequence stand from `at` on in a packed row."""
        end = at + last - first
        self.source_row[row, at:end] = source
        self.source_column[row, at:end] = self.source_column.new_tensor(range(first, last))
        self.positions[row, at:end] = self.source_column[row, at:end]

    def pack(self, states: Any) -> Any:
        """(N, T, …) → (R, P, …)."""
        return states[self.source_row, self.source_column]

    def unpack(self, states: Any) -> Any:
        """(R, P, …) → (N, T, …); what stood on padding is arbitrary."""
        return states[self.packed_row, self.packed_column]


def find_packing(keys: Sequence[Key], width: int, device: Any, groups: Groups | None = None) -> Packing | None:
    """A packing of a batch where it saves enough, else None.

    Args:
        groups: by default those of a trainer's batch, in which rows i and i + N/2 are a pair.
    """
    half = len(keys) // 2
    if not keys or (groups is None and len(keys) % 2):
        return None
    plan = Plan(keys, [(i, i + half) for i in range(half)] if groups is None else groups)
    return Packing(plan, width, device) if plan.worth_it(width) else None


def neighbours(keys: Sequence[Key]) -> list[list[int]]:
    """Groups of sequences that begin alike: those that lie next to each other when sorted, and share enough."""
    if not keys:
        return []
    enough = _shared(keys) + NEAR
    groups: list[list[int]] = []
    for i in sorted(range(len(keys)), key=keys.__getitem__):
        if groups and _shared([keys[groups[-1][0]], keys[i]]) >= enough:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _rows(groups: Sequence[_Group], room: int) -> list[list[_Group]]:
    """As few rows as need be, and all of about one width."""
    count = min(len(groups), max(1, -(-sum(group.own for group in groups) // room)))
    rows: list[list[int]] = [[] for _ in range(count)]
    filled = [0] * count
    for i in sorted(range(len(groups)), key=lambda i: -groups[i].own):
        r = filled.index(min(filled))
        rows[r].append(i)
        filled[r] += groups[i].own
    return [[groups[i] for i in sorted(row)] for row in rows if row]


def _shared(keys: Sequence[Key]) -> int:
    """How many tokens all sequences have in common from the start."""
    columns = enumerate(zip(*keys, strict=False))
    return next((i for i, column in columns if len(set(column)) > 1), min(map(len, keys)))
