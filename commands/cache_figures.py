"""How often the semantic cache would take one question for another, and how often it knows one that is put in other words.

    python -m commands.cache_figures

Different questions: all pairs of the suites' prompts, seed and frozen, which are 912 different ones, many of them alike by intent; and the
pairs below that differ by a word. The same question: the pairs below. They are few and were written for this, so the shares that
are found are rough. Needs the guard's encoder (`make base`); takes about a minute.
"""

import sys
from collections.abc import Sequence

import numpy as np

from core.settings import get_settings
from evals.suites import benign, harmful
from reward.guard.encoder import Encoder, encoder_path
from serving.cache import literals_of

THRESHOLDS = (0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.99)

SAME = (
    ("How do I boil an egg?", "How can I boil an egg?"),
    ("How do I boil an egg?", "What is the best way to boil an egg?"),
    ("What is the capital of France?", "Which city is the capital of France?"),
    ("What is the capital of France?", "what's the capital of france"),
    ("Explain photosynthesis in simple words.", "Can you explain photosynthesis simply?"),
    ("How do I reset my password?", "I forgot my password, how can I reset it?"),
    ("Write a short poem about autumn.", "Please write a short poem about autumn."),
    ("What causes rain?", "Why does it rain?"),
    ("How many days are in a leap year?", "How many days does a leap year have?"),
    ("Recommend a book about the Roman Empire.", "Which book about the Roman Empire would you recommend?"),
    ("How do I remove a red wine stain from a carpet?", "How can I get a red wine stain out of a carpet?"),
    ("What should I pack for a week of hiking?", "What do I need to pack for a week-long hike?"),
    ("How do I undo the last commit in git?", "How can I undo my last git commit?"),
    ("Is it safe to eat raw salmon?", "Can I safely eat raw salmon?"),
    ("What is the difference between a virus and a bacterium?", "How do viruses and bacteria differ?"),
    ("How long does it take to learn the piano?", "How much time do you need to learn to play the piano?"),
)
"""The same question in other words."""

ONE_WORD = (
    ("What is the capital of Austria?", "What is the capital of Australia?"),
    ("How do I boil an egg?", "How do I fry an egg?"),
    ("How do I undo the last commit in git?", "How do I amend the last commit in git?"),
    ("Is it safe to eat raw salmon?", "Is it safe to eat raw chicken?"),
    ("Is it safe to eat raw salmon?", "Is it unsafe to eat raw salmon?"),
    ("Can dogs eat chocolate?", "Can cats eat chocolate?"),
    ("May I take 2 of these pills a day?", "May I take 20 of these pills a day?"),
    ("How do I turn the alarm on?", "How do I turn the alarm off?"),
    ("What is the largest planet?", "What is the smallest planet?"),
    ("Who wrote the first Harry Potter book?", "Who wrote the last Harry Potter book?"),
    ("Translate 'good morning' into Spanish.", "Translate 'good morning' into Portuguese."),
    ("How do I open a bank account in Italy?", "How do I close a bank account in Italy?"),
    ("Should I mix bleach and water?", "Should I mix bleach and vinegar?"),
    ("What are the side effects of ibuprofen?", "What are the side effects of paracetamol?"),
    ("Is the museum open on Sunday?", "Is the museum open on Monday?"),
    ("Why is my cat not eating?", "Why is my cat eating?"),
)
"""Different questions that differ by a word."""


def main() -> int:
    """Print the table."""
    settings = get_settings()
    encoder = Encoder(encoder_path(settings))
    prompts = list(
        dict.fromkeys(prompt.text for part in ("seed", "frozen") for of in (harmful, benign) for prompt in of(part))
    )
    known = np.array(encoder.sentences(prompts), dtype=np.float32)  # (N, H)
    exact = [str(literals_of(text)) for text in prompts]
    cosines = np.triu(known @ known.T, 1)
    rows, columns = np.nonzero(cosines >= min(THRESHOLDS))
    hits = np.array([cosines[i, j] for i, j in zip(rows, columns, strict=True) if exact[i] == exact[j]])
    same, one_word = (_cosines(encoder, pairs) for pairs in (SAME, ONE_WORD))
    n_pairs = len(prompts) * (len(prompts) - 1) // 2
    print(
        f"{len(prompts)} prompts, {n_pairs} pairs; {len(SAME)} pairs in other words; {len(ONE_WORD)} that differ by a word"
    )
    for limit in THRESHOLDS:
        print(
            f"{limit:5}: {int((hits >= limit).sum()):5} false hits of pairs, {sum(c >= limit for c in one_word):2} of one word,"
            f" {sum(c >= limit for c in same):2} of the same known"
        )
    return 0


def _cosines(encoder: Encoder, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Of each pair; -1 where numbers, negations or names differ."""
    found = []
    for one, other in pairs:
        a, b = (np.array(vector) for vector in encoder.sentences([one, other]))
        found.append(float(a @ b) if literals_of(one) == literals_of(other) else -1.0)
    return found


if __name__ == "__main__":
    sys.exit(main())
