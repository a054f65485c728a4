"""What is new ranks above what was seen, and draws keep the rate."""

import random

from serving.novelty import ENOUGH, Novelty, share

USUAL = [
    f"how do I {verb} a {noun} at home" for verb in ("clean", "paint", "mend", "sell") for noun in ("bike", "door")
]


def known() -> Novelty:
    novelty, chance = Novelty(), random.Random(0)
    for _ in range(20 * ENOUGH):
        novelty.look(chance.choice(USUAL))
    return novelty


def test_nothing_is_new_before_anything_is_known() -> None:
    novelty = Novelty()
    assert [novelty.look(f"text number {i} of its own") for i in range(ENOUGH)] == [0.0] * ENOUGH
    assert novelty.look("quite another question about birds") > 0


def test_a_prompt_unlike_others_is_new_once() -> None:
    novelty = known()
    assert novelty.look("why do dunnocks sing in winter hedges") > 0.99
    for _ in range(500):
        usual = novelty.look("why do dunnocks sing in winter hedges")
    assert usual < 0.9
    assert novelty.look(USUAL[0]) < 0.9


def test_part_of_it_new_lies_between() -> None:
    scores = {}
    for name, text in {"old": USUAL[0], "part": f"{USUAL[0]} with dunnocks singing", "new": "dunnocks sing"}.items():
        scores[name] = known().look(text)
    assert scores["old"] < scores["part"] <= scores["new"]


def test_counts_fade() -> None:
    novelty = known()
    before = list(novelty._counts)
    novelty._n = 100_000 - 1
    novelty.look("")
    assert max(novelty._counts) == max(before) // 2


def test_the_draw_keeps_its_rate_and_prefers_the_new() -> None:
    even = [i / 1000 for i in range(1000)]
    assert abs(sum(share(rank, 0.1) for rank in even) / 1000 - 0.1) < 0.001
    assert share(1.0, 0.1) == 0.4
    assert share(0.5, 0.1) == 0.05
    assert share(1.0, 1.0) == 1.0
    assert share(0.0, 1.0) == 0.0
