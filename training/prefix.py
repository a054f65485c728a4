"""Shared beginnings: what the rows of a batch begin with goes through the blocks once.

`one_row` builds a row from a prompt and its completions. `Packing` folds the rows of a trainer's finished batch, in
which rows i and i + N/2 are a pair: a packed row is what all rows share (the template and the system turn), then for
each pair what its two sides share (the prompt), the rest of the one, the rest of the other. Positions start again after
a shared part, and a mask hides pairs and rests from each other. Exact up to the order of float additions, and nothing
is padded but the end of a packed row. With 24 tokens shared by all, 22 more by a pair and rests of 8 it is a third of
the plain batch's work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_SHARE = 0.9
"""Packing must bring the tokens below this share of the plain batch, or it is not worth its gathers."""

ROW_TOKENS = 384
"""About how long packed rows get: each row repeats what all share, but attention grows with its square."""


def one_row(head: Sequence[int], tails: Sequence[Sequence[int]]) -> tuple[list[int], list[int], Any]:
    """A prompt and its completions as one row.

    Returns:
        T token ids, T positions (each tail's go on from the head's), and a (T, T) mask, true where a token is
        seen: the head and what came before in the same tail.
    """
    import torch

    ids, positions = [*head], [*range(len(head))]
    total = len(head) + sum(map(len, tails))
    seen = torch.ones(total, total, dtype=torch.bool).tril()
    for tail in tails:
        seen[len(ids) :, len(head) : len(ids)] = False  # all before this tail, and after the head
        positions += range(len(head), len(head) + len(tail))
        ids += tail
    return ids, positions, seen


class Packing:
    """How the N rows of one batch fold into R packed rows, and back.

    Args:
        keys: token ids of each row without padding, N of them; N is even.
        width: T, the padded width of the plain batch.

    Attributes:
        width: P, the width of a packed row.
        positions: (R, P) positions of the packed tokens.
        mask: (R, 1, P, P), true where a token is seen.
    """

    def __init__(self, keys: Sequence[tuple[int, ...]], width: int, device: Any) -> None:
        import torch

        half = len(keys) // 2
        common, plans = _plans(keys)
        rows = _rows(common, plans)
        self.width = max(common + sum(plans[i].own for i in row) for row in rows)
        self.source_row = torch.zeros(len(rows), self.width, dtype=torch.long)
        self.source_column = torch.zeros(len(rows), self.width, dtype=torch.long)
        self.positions = torch.zeros(len(rows), self.width, dtype=torch.long)
        self.mask = torch.eye(self.width, dtype=torch.bool).repeat(len(rows), 1, 1, 1)  # padding sees itself alone
        self.packed_row = torch.zeros(len(keys), 1, dtype=torch.long)
        self.packed_column = torch.zeros(len(keys), width, dtype=torch.long)
        self.packed_column[:, :common] = torch.arange(common)
        for r, row in enumerate(rows):
            end = common + sum(plans[i].own for i in row)
            self.mask[r, 0, :end, :end] = torch.ones(end, end, dtype=torch.bool).tril()
            self._place(r, 0, row[0], 0, common)
            at = common
            for i in row:
                plan, begin = plans[i], at
                for source, first, last in (
                    (i, common, plan.shared),
                    (i, plan.shared, plan.a),
                    (i + half, plan.shared, plan.b),
                ):
                    self._place(r, at, source, first, last)
                    self.packed_column[source, first:last] = torch.arange(at, at + last - first)
                    at += last - first
                self.packed_column[i + half, common : plan.shared] = self.packed_column[i, common : plan.shared]
                self.packed_row[[i, i + half]] = r
                self.mask[r, 0, begin:at, common:begin] = False  # the pairs before
                second = at - (plan.b - plan.shared)
                self.mask[r, 0, second:at, second - (plan.a - plan.shared) : second] = False  # the other side
        for name in ("source_row", "source_column", "positions", "mask", "packed_row", "packed_column"):
            setattr(self, name, getattr(self, name).to(device))

    def _place(self, row: int, at: int, source: int, first: int, last: int) -> None:
        """Columns first … last of a plain row stand from `at` on in a packed one."""
        end = at + last - first
        self.source_row[row, at:end] = source
        self.source_column[row, at:end] = self.source_column.new_tensor(range(first, last))
        self.positions[row, at:end] = self.source_column[row, at:end]

    def pack(self, states: Any) -> Any:
        """(N, T, H) → (R, P, H)."""
        return states[self.source_row, self.source_column]

    def unpack(self, states: Any) -> Any:
        """(R, P, H) → (N, T, H); what stood on padding is arbitrary."""
        return states[self.packed_row, self.packed_column]


def find_packing(keys: Sequence[tuple[int, ...]], width: int, device: Any) -> Packing | None:
    """A packing of this batch where it saves enough, else None."""
    if len(keys) % 2 or not keys:
        return None
    common, plans = _plans(keys)
    rows = _rows(common, plans)
    packed_width = max(common + sum(plans[i].own for i in row) for row in rows)
    if len(rows) * packed_width > MAX_SHARE * len(keys) * width:
        return None
    return Packing(keys, width, device)


@dataclass(frozen=True)
class _Plan:
    """A pair: tokens that its two sides share from the start, those of each side in all, and those it adds to a row."""

    shared: int
    a: int
    b: int
    own: int


def _plans(keys: Sequence[tuple[int, ...]]) -> tuple[int, list[_Plan]]:
    """How many tokens all rows share from the start, and the pairs."""
    half = len(keys) // 2
    common = _shared(keys)
    plans = []
    for a, b in zip(keys[:half], keys[half:], strict=True):
        shared = _shared((a, b))
        plans.append(_Plan(shared, len(a), len(b), len(a) + len(b) - shared - common))
    return common, plans


def _rows(common: int, plans: Sequence[_Plan]) -> list[list[int]]:
    """Which pairs stand in which packed row: as few rows as need be, and all of about one width."""
    room = max(1, ROW_TOKENS - common)
    count = min(len(plans), -(-sum(plan.own for plan in plans) // room))
    rows: list[list[int]] = [[] for _ in range(max(1, count))]
    filled = [0] * len(rows)
    for i in sorted(range(len(plans)), key=lambda i: -plans[i].own):
        r = filled.index(min(filled))
        rows[r].append(i)
        filled[r] += plans[i].own
    return [sorted(row) for row in rows if row]


def _shared(keys: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all sequences have in common from the start."""
    columns = enumerate(zip(*keys, strict=False))
    return next((i for i, column in columns if len(set(column)) > 1), min(map(len, keys)))
