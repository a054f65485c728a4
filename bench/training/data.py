"""The pairs that all trainers get: those of a file that `make import` takes, or made of the product's own seed prompts.

Both sides are short enough for `max_length_tokens`, so that no trainer drops or cuts any, and held-out pairs share no
conversation root with training pairs. Nothing of a file is copied into the repository.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.tools import NotDone
from core.errors import ImportRowError
from core.messages import user
from evals.refusals import refusal
from evals.suites import rows
from feedback.dataset import Preference
from feedback.exchange.importing import read_pair, read_rows
from training.encode import encode, encode_prompt

HELDOUT_FRAC = 0.2
PROMPT_TOKENS = 64
"""Of PPO's prompts, template included."""


def split_pairs(
    tokenizer: Any, data: Path | None, n_train: int, n_heldout: int, max_length_tokens: int, *, seed: int = 0
) -> tuple[list[Preference], list[Preference]]:
    """Pairs to train on and pairs that are held out, by conversation root.

    Where there are fewer than `n_train`, they come again with a number before the first turn, so that no two are alike.

    Raises:
        NotDone: no training pair, or fewer held-out pairs than wanted.
    """
    found = [replace(pair, cluster=_hash(root_of(pair))) for pair in (_from_file(data) if data else _from_seed())]
    random.Random(seed).shuffle(found)
    kept = [pair for pair in found if _tokens(tokenizer, pair) <= max_length_tokens]
    heldout = [pair for pair in kept if _is_heldout(pair, seed)]
    train = [pair for pair in kept if not _is_heldout(pair, seed)]
    if not train or len(heldout) < n_heldout:
        raise NotDone(
            f"{data or 'the seed prompts'}: {len(train)} training and {len(heldout)} held-out pairs of at most"
            f" {max_length_tokens} tokens; {n_train} and {n_heldout} are wanted"
        )
    more = (_numbered(pair, time) for time in range(2, 2 + n_train) for pair in train)
    longer = (pair for pair in more if _tokens(tokenizer, pair) <= max_length_tokens)
    train += [next(longer) for _ in range(n_train - len(train))]
    return train[:n_train], heldout[:n_heldout]


def near_length(tokenizer: Any, pairs: Sequence[Preference], n: int) -> list[Preference]:
    """The pairs with the `n` distinct prompts whose lengths come nearest to PROMPT_TOKENS."""
    distinct = {json.dumps(pair.prompt): pair for pair in pairs}

    def apart(pair: Preference) -> int:
        return abs(len(encode_prompt(tokenizer, pair.prompt)) - PROMPT_TOKENS)

    return sorted(distinct.values(), key=apart)[:n]


def write_pairs(folder: Path, split: str, pairs: Sequence[Preference]) -> None:
    """A file of pairs as `work.Work.pairs` reads it."""
    lines = [json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs]
    (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def root_of(pair: Preference) -> str:
    """What a conversation begins with: pairs of one root are of one conversation."""
    return " ".join(next(m["content"] for m in pair.prompt if m["role"] == "user").lower().split())


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_heldout(pair: Preference, seed: int) -> bool:
    digest = hashlib.sha256(f"{seed} {root_of(pair)}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELDOUT_FRAC


def _from_file(path: Path) -> Iterator[Preference]:
    for line, row in read_rows(path):
        try:
            _, pair = read_pair(row, line)
        except ImportRowError:
            continue  # the import reports these; here they are only no work
        yield Preference(pair.prompt, pair.chosen, pair.rejected, margin=1.0)


def _from_seed() -> Iterator[Preference]:
    """Refusals over answers to other questions where a prompt is harmful, and answers over refusals where it is not."""
    benign = [row for row in rows("benign") if row["part"] == "seed" and row.get("reference")]
    harmful = [row for row in rows("harmful") if row["part"] == "seed"]
    for i, row in enumerate(benign):
        yield Preference(user(row["text"]), row["reference"], refusal(row["category"], i), margin=1.0)
    for i, row in enumerate(harmful):
        answer = benign[i % len(benign)]["reference"]
        yield Preference(user(row["text"]), refusal(row["category"], i), answer, margin=1.0)


def _numbered(pair: Preference, number: int) -> Preference:
    first, *others = pair.prompt
    return replace(pair, prompt=[{**first, "content": f"({number}) {first['content']}"}, *others])


def _tokens(tokenizer: Any, pair: Preference) -> int:
    return max(len(encode(tokenizer, pair.prompt, text)) for text in (pair.chosen, pair.rejected))
