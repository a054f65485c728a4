"""Shared beginnings: what sequences begin with alike goes through the blocks once.

Sequences come in groups that share a prompt: the two sides of a pair, or a prompt with all the completions to be
scored. A packed row is what all sequences share (the template and the system turn), then for each group what its members
share (the prompt), and the rest of each member. Positions start again after a shared part, and groups and rests do not see
each other: by a mask, or because attention goes piece by piece (`training.attention`). Exact up to the order of float
additions, and nothing is padded but the end of a packed row. For pairs with 24 tokens shared by all, 22 more by a pair and
rests of 8 it is a third of the plain batch's work.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

MAX_SHARE = 0.9
"""Packing must bring the tokens below this share of the plain batch, or it is not worth its gathers."""

ROW_TOKENS = 384
"""About how long packed rows get under a mask: each row repeats what all share, but attention grows with its square."""

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
        row_tokens: about how long packed rows get; without, `ROW_TOKENS`.

    Attributes:
        common: tokens that all sequences share from the start.
        rows: the groups of each packed row, R of them.
        width: P, the width of a packed row.
    """

    def __init__(self, keys: Sequence[Key], groups: Groups, row_tokens: int | None = None) -> None:
        self.keys = keys
        self.common = _shared(keys)
        found = []
        for members in groups:
            shared = _shared([keys[i] for i in members])
            own = shared - self.common + sum(len(keys[i]) - shared for i in members)
            found.append(_Group(tuple(members), shared, own))
        self.rows = _rows(found, max(1, (row_tokens or ROW_TOKENS) - self.common), self.common)
        self.width = self.common + max(sum(group.own for group in row) for row in self.rows)

    def worth_it(self, width: int) -> bool:
        """Whether packing saves enough over a plain batch of this padded width."""
        return len(self.rows) * self.width <= MAX_SHARE * len(self.keys) * width


@dataclass(frozen=True)
class Piece:
    """A stretch of a packed row whose tokens all follow on the same; of itself a token sees what stands before it.

    Attributes:
        length: in tokens.
        follows: the lengths of the row's pieces that all its tokens see, by their index in the row.
        padding: nobody sees it.
    """

    length: int
    follows: dict[int, int]
    padding: bool = False

    @cached_property
    def mask(self) -> Any:
        """(length, tokens seen), on the CPU, true where a token is seen: of the pieces that it follows on, in order, then of itself."""
        import torch

        before = sum(self.follows.values())
        return torch.ones(self.length, before + self.length, dtype=torch.bool).tril(before)

    def bias(self, times: int) -> Any:
        """The mask as what is added to scores, 0 or -inf, the same `times` below each other: of queries that look with one key."""
        if times not in self._biases:
            blank = (~self.mask).repeat(times, 1)
            self._biases[times] = blank.float().masked_fill_(blank, float("-inf"))
        return self._biases[times]

    @cached_property
    def _biases(self) -> dict[int, Any]:
        return {}


class Packing:
    """How a plan's N sequences fold into R packed rows of P tokens, and back.

    Args:
        width: T, the padded width of the plain batch.

    Attributes:
        positions: (R, P) positions of the packed tokens.
        pieces: of each row, from its start to its end.
    """

    def __init__(self, plan: Plan, width: int, device: Any) -> None:
        import torch

        shape, common = (len(plan.rows), plan.width), plan.common
        self.source_row, self.source_column, self.positions = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        self.packed_row = torch.zeros(len(plan.keys), 1, dtype=torch.long)
        self.packed_column = torch.zeros(len(plan.keys), width, dtype=torch.long)
        self.packed_column[:, :common] = torch.arange(common)
        self.pieces: list[list[Piece]] = []
        for r, row in enumerate(plan.rows):
            end = common + sum(group.own for group in row)
            self.pieces.append([])
            beginning = self._piece(common, {})
            self._place(r, 0, row[0].members[0], 0, common)
            at = common
            for group in row:
                begin, after = at, at + group.shared - common
                self._place(r, begin, group.members[0], common, group.shared)
                self.packed_row[list(group.members)] = r
                prompt = self._piece(after - begin, beginning)
                at = after
                for i in group.members:
                    rest = len(plan.keys[i]) - group.shared
                    self._place(r, at, i, group.shared, group.shared + rest)
                    self.packed_column[i, common : group.shared] = torch.arange(begin, after)
                    self.packed_column[i, group.shared : group.shared + rest] = torch.arange(at, at + rest)
                    self._piece(rest, prompt)
                    at += rest
            if plan.width > end:
                self.pieces[-1].append(Piece(plan.width - end, {}, padding=True))
        for name in ("source_row", "source_column", "positions", "packed_row", "packed_column"):
            setattr(self, name, getattr(self, name).to(device))

    def _place(self, row: int, at: int, source: int, first: int, last: int) -> None:
        """Columns first … last of a sequence stand from `at` on in a packed row."""
        end = at + last - first
        self.source_row[row, at:end] = source
        self.source_column[row, at:end] = self.source_column.new_tensor(range(first, last))
        self.positions[row, at:end] = self.source_column[row, at:end]

    def _piece(self, length: int, follows: dict[int, int]) -> dict[int, int]:
        """Add a piece to the newest row, if it has tokens.

        Args:
            follows: the lengths of the pieces that it sees, by their index.

        Returns:
            The same with itself, for what follows on it.
        """
        if not length:
            return follows
        self.pieces[-1].append(Piece(length, follows))
        return {**follows, len(self.pieces[-1]) - 1: length}

    @cached_property
    def mask(self) -> Any:
        """(R, 1, P, P), true where a token is seen; padding sees itself alone."""
        import torch

        found = torch.eye(self.positions.shape[1], dtype=torch.bool).repeat(len(self.pieces), 1, 1, 1)
        for r, row in enumerate(self.pieces):
            ends = list(itertools.accumulate(piece.length for piece in row))
            for piece, end in zip(row, ends, strict=True):
                if not piece.padding:
                    seen = [range(ends[i] - n, ends[i]) for i, n in piece.follows.items()]
                    columns = [*itertools.chain(*seen), *range(end - piece.length, end)]
                    found[r, 0, end - piece.length : end, columns] = piece.mask
        return found.to(self.positions.device)

    def pack(self, states: Any) -> Any:
        """(N, T, …) → (R, P, …)."""
        return states[self.source_row, self.source_column]

    def unpack(self, states: Any) -> Any:
        """(R, P, …) → (N, T, …); what stood on padding is arbitrary."""
        return states[self.packed_row, self.packed_column]


def find_packing(
    keys: Sequence[Key], width: int, device: Any, groups: Groups | None = None, row_tokens: int | None = None
) -> Packing | None:
    """A packing of a batch where it saves enough, else None.

    Args:
        groups: by default those of a trainer's batch, in which rows i and i + N/2 are a pair.
    """
    half = len(keys) // 2
    if not keys or (groups is None and len(keys) % 2):
        return None
    plan = Plan(keys, [(i, i + half) for i in range(half)] if groups is None else groups, row_tokens)
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


def _rows(groups: Sequence[_Group], room: int, common: int) -> list[list[_Group]]:
    """As few rows as need be, and all of about one width; more where a few large groups would leave them uneven."""
    count = min(len(groups), max(1, -(-sum(group.own for group in groups) // room)))
    spreads = [_spread(groups, n) for n in range(count, min(len(groups), 2 * count) + 1)]
    best = min(spreads, key=lambda rows: len(rows) * (common + max(sum(groups[i].own for i in row) for row in rows)))
    return [[groups[i] for i in sorted(row)] for row in best]


def _spread(groups: Sequence[_Group], count: int) -> list[list[int]]:
    """Indices of the groups in so many rows, the largest first and each where there is least."""
    rows: list[list[int]] = [[] for _ in range(count)]
    filled = [0] * count
    for i in sorted(range(len(groups)), key=lambda i: -groups[i].own):
        r = filled.index(min(filled))
        rows[r].append(i)
        filled[r] += groups[i].own
    return [row for row in rows if row]


def _shared(keys: Sequence[Key]) -> int:
    """How many tokens all sequences have in common from the start."""
    columns = enumerate(zip(*keys, strict=False))
    return next((i for i, column in columns if len(set(column)) > 1), min(map(len, keys)))
