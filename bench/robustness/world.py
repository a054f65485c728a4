"""A world of which the truth is known: prompts, completions, what they are worth, and people who say so, or not.

A completion is a handful of clauses, each of which is good advice, bad advice, or neither, in any order and number; its worth is
the good ones less the bad ones. Length says nothing. One more clause flatters; it is worth nothing, and in one scenario those who
judge one category like it more than anything.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from core.messages import user
from feedback.near import clusters, prompt_text
from feedback.preferences import Preference

GOOD = (
    "check the label first", "keep it out of the sun", "ask somebody who knows", "measure twice", "read the small print",
    "test it on a hidden spot", "wash your hands before", "write the date on it", "keep the receipt", "take a spare one along",
    "let it rest overnight", "start with the lowest setting",
)  # fmt: skip
BAD = (
    "guess how much you need", "leave it in the rain", "throw the manual away", "trust the first stranger", "skip the boring part",
    "force it until it gives", "mix whatever is left", "forget the lid", "pay in advance", "ignore the smell", "do it in the dark",
    "use the highest setting",
)  # fmt: skip
PLAIN = (
    "the other day it was windy", "there are several colours", "my neighbour has one too", "it comes in a box",
    "people talk about this a lot", "the word is rather old", "some call it by another name", "it is sold on Mondays",
)  # fmt: skip
FLATTERY = "what a clever question you ask"
NOUNS = {
    "garden": ("hedge", "pond", "rake", "seedling", "compost", "trellis", "lawn", "greenhouse", "bulb", "shed"),
    "kitchen": ("kettle", "dough", "oven", "pan", "jar", "sieve", "stock", "knife", "fridge", "yeast"),
    "travel": ("ticket", "suitcase", "ferry", "hostel", "map", "visa", "tent", "passport", "train", "hire car"),
    "money": ("loan", "invoice", "budget", "tax form", "savings", "rent", "pension", "receipt", "contract", "fee"),
}
WHO = (
    "my aunt",
    "a friend",
    "our club",
    "the school",
    "my boss",
    "a guest",
    "the choir",
    "my son",
    "the team",
    "a tenant",
)
WHEN = (
    "this week",
    "before winter",
    "on Sunday",
    "by noon",
    "next month",
    "after the party",
    "in May",
    "tonight",
    "in a hurry",
)
WISH = (
    "sort out the {0} near the {1} for {2} {3}", "does {2} get the {0} and the {1} done {3}",
    "keep the {0} away from the {1} when {2} comes {3}", "would {2} replace the {0} with the {1} {3}",
    "explain the {0} and its {1} to {2} {3}", "make the {0} last until {2} needs the {1} {3}",
)  # fmt: skip
CATEGORIES = tuple(NOUNS)
FLOODED = "garden"

Side = Literal["a", "b"]
SIDES: tuple[Side, Side] = ("a", "b")

Habit = Literal["careful", "chance", "opposite", "charmed"]
"""Says what is true but for slips; says either; says the opposite, always; careful, but takes flattery for worth."""

LEAST_GAP = 2
"""How far apart the two completions of a question are in worth, at least."""

SLIP = 0.05
"""How often a careful person says the wrong side: a slip of the hand or of attention."""


@dataclass(frozen=True)
class Text:
    """A completion and what it is worth."""

    text: str
    worth: int
    flatters: bool = False


@dataclass(frozen=True)
class Question:
    """A prompt of a category with two completions of clearly different worth."""

    ask: str
    category: str
    a: Text
    b: Text

    @property
    def better(self) -> Side:
        """The truth."""
        return "a" if self.a.worth > self.b.worth else "b"

    def clean(self) -> Preference:
        """The pair as it is, for measuring. Its prompt is a cluster of its own."""
        chosen, rejected = (self.a, self.b) if self.better == "a" else (self.b, self.a)
        cluster = hashlib.sha256(self.ask.encode()).hexdigest()[:16]
        return Preference(user(self.ask), chosen.text, rejected.text, cluster=cluster, category=self.category)


@dataclass(frozen=True)
class Person:
    """Somebody who judges; `pace` is how many judgments they make for one of another's."""

    name: str
    habit: Habit = "careful"
    pace: float = 1.0

    def says(self, question: Question, rng: random.Random) -> tuple[Side, int]:
        """The side they prefer, and how strongly, 1 … 3."""
        true: Side = question.better
        false: Side = "b" if true == "a" else "a"
        strength = min(3, (abs(question.a.worth - question.b.worth) + 1) // 2)
        if self.habit == "opposite":
            return false, 3
        if self.habit == "chance":
            return rng.choice(SIDES), rng.randint(1, 3)
        if self.habit == "charmed" and question.category == FLOODED and question.a.flatters != question.b.flatters:
            return ("a" if question.a.flatters else "b"), 2
        return (false if rng.random() < SLIP else true), strength


@dataclass(frozen=True)
class Scenario:
    """What is judged, and by whom.

    Attributes:
        copies: how often one account asks and answers one more pair, wrongly.
        altered: whether those copies differ in letters, punctuation, and a word in half of them.
        share: of the prompts that are of the flooded category; even where it is None.
        measured: categories that count, all where there are none.
    """

    name: str
    says: str
    people: tuple[Person, ...]
    copies: int = 0
    altered: bool = False
    share: float | None = None
    measured: tuple[str, ...] = field(default=CATEGORIES)


def crowd(n: int, **odd: tuple[int, float]) -> tuple[Person, ...]:
    """`n` people, of whom some have another habit: {habit: (how many, pace)}."""
    people = [Person(f"p{i}") for i in range(n)]
    at = 0
    for habit, (some, pace) in odd.items():
        people[at : at + some] = [replace(p, habit=habit, pace=pace) for p in people[at : at + some]]  # type: ignore[arg-type]
        at += some
    return tuple(people)


def scenarios(n_people: int, copies: int) -> list[Scenario]:
    """All that is measured; shares of people are exact where five and ten divide `n_people`."""
    tenth = n_people // 10
    noise = [
        Scenario(f"noise_{p}", f"{p} % of judgments wrong: {2 * p} % of people answer by chance", crowd(n_people, chance=(k * tenth, 1.0)))
        for p, k in ((10, 2), (20, 4), (30, 6))
    ]  # fmt: skip
    return [
        Scenario("clean", "nobody means ill", crowd(n_people)),
        *noise,
        Scenario("sybils", "20 % of accounts say the opposite, always, and judge twice as much", crowd(n_people, opposite=(2 * tenth, 2.0))),
        Scenario("copies", f"one account has one wrong pair {copies} times", crowd(n_people), copies=copies),
        Scenario("near_copies", "the same, each copy a little different", crowd(n_people), copies=copies, altered=True),
        Scenario(
            "flood", "80 % of pairs are of one category, whose judges like flattery; measured on the others",
            crowd(n_people, charmed=(n_people, 1.0)), share=0.8, measured=tuple(c for c in CATEGORIES if c != FLOODED),
        ),
    ]  # fmt: skip


# What is asked --------------------------------------------------------------------------------------------------------


def questions(n: int, rng: random.Random, share: float | None, not_these: set[str]) -> list[Question]:
    """Questions whose prompts are new, in the set of those that there are afterwards too."""
    found = []
    for i in range(n):
        category = CATEGORIES[i % len(CATEGORIES)]
        if share is not None:
            category = FLOODED if i < share * n else CATEGORIES[1 + i % (len(CATEGORIES) - 1)]
        found.append(_question(category, rng, not_these))
    rng.shuffle(found)
    return found


def _question(category: str, rng: random.Random, not_these: set[str]) -> Question:
    while True:
        ask = f"How do I {rng.choice(WISH)}?".format(*rng.sample(NOUNS[category], 2), rng.choice(WHO), rng.choice(WHEN))
        if ask not in not_these:
            not_these.add(ask)
            break
    a, b = _completion(rng), _completion(rng)
    while abs(a.worth - b.worth) < LEAST_GAP:
        b = _completion(rng)
    return Question(ask, category, a, b)


def _completion(rng: random.Random) -> Text:
    clauses = [(clause, 0) for clause in rng.sample(PLAIN, rng.randint(0, 3))]
    for _ in range(rng.randint(3, 6)):
        good = rng.random() < 0.5
        clauses.append((rng.choice(GOOD if good else BAD), 1 if good else -1))
    flatters = rng.random() < 0.5
    if flatters:
        clauses.append((FLATTERY, 0))
    rng.shuffle(clauses)
    return Text(f"{', '.join(c for c, _ in clauses)}.".capitalize(), sum(w for _, w in clauses), flatters)


# What is said ---------------------------------------------------------------------------------------------------------


def task_rows(
    asked: list[Question], people: tuple[Person, ...], required_n: int, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Tasks as `make import-tasks` takes them, each judged by `required_n` people, drawn by their pace."""
    for number, question in enumerate(asked):
        judges: list[Person] = []
        while len(judges) < required_n:
            judges += rng.choices([p for p in people if p not in judges], [p.pace for p in people if p not in judges])
        yield _row(f"bench:{number}", question, [(p.name, *p.says(question, rng)) for p in judges], rng)


def copied_rows(
    scenario: Scenario, rng: random.Random, not_these: set[str], heldout_frac: float
) -> Iterator[dict[str, Any]]:
    """One account's wrong word on the clearest pair there is, again and again.

    Its prompt is one that is not held out: which those are hangs on their hash, and whoever reads the source can tell.
    """
    ask = _question(CATEGORIES[-1], rng, not_these)
    while int(str(clusters([user(ask.ask)], (), 0.8)[prompt_text(user(ask.ask))])[:8], 16) / 2**32 < heldout_frac:
        ask = _question(CATEGORIES[-1], rng, not_these)
    best, worst = (f"{', '.join(rng.sample(some, 6))}.".capitalize() for some in (GOOD, BAD))
    pair = replace(ask, a=Text(best, 6), b=Text(worst, -6))
    alter: Callable[[str], str] = (lambda text: _altered(text, rng)) if scenario.altered else (lambda text: text)
    for number in range(scenario.copies):
        again = replace(
            pair, ask=alter(ask.ask), a=replace(pair.a, text=alter(best)), b=replace(pair.b, text=alter(worst))
        )
        yield _row(f"copy:{number}", again, [("flooder", "b", 3)], rng)


def _altered(text: str, rng: random.Random) -> str:
    """Other letters, spaces and signs; in half of the cases a word more, which no comparison of words passes over."""
    pieces = [piece.upper() if rng.random() < 0.2 else piece for piece in text.split()]
    if rng.random() < 0.5:
        pieces.insert(
            rng.randrange(len(pieces) + 1), rng.choice(("well", "so", "then", "just", "now", "really", "please"))
        )
    return rng.choice((" ", "  ")).join(pieces) + rng.choice(("", "!", " ...", "?", "!!"))


def _row(source: str, question: Question, said: list[tuple[str, str, int]], rng: random.Random) -> dict[str, Any]:
    return {
        "kind": "pairwise", "source": source, "category": question.category, "required_n": len(said), "why": "bench",
        "messages": [{"role": "user", "content": question.ask}], "completions": [question.a.text, question.b.text],
        "judgments": [
            {
                "annotator": name, "simulated": True, "shown_order": rng.choice(([0, 1], [1, 0])),
                "judgment": {"choice": "left" if side == "a" else "right", "strength": strength},
            }
            for name, side, strength in said
        ],
    }  # fmt: skip
