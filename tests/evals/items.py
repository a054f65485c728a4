"""Prompts with completions, and what a prober says of them, for the tests of probers and measures."""

import torch

from core.messages import user
from evals.prober import Item, Prober

ITEMS = [
    (user("Where do birds sleep?"), "In a hedge, when it is dark and cold outside."),
    (user("What is the capital of France, please?"), "Paris."),
    ([{"role": "system", "content": "Be brief."}, *user("Bread?")], "Butter and bread, and people in the garden."),
    (user("Hi"), "No"),
]


def logps_of(prober: Prober, items: list[Item], *, as_base: bool) -> list[torch.Tensor]:
    return [s.base if as_base else s.candidate for s in prober.compare(items)]


def kls_of(prober: Prober, items: list[Item]) -> list[float]:
    return [s.kl for s in prober.compare(items, kl=len(items))]
