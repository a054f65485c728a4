"""Log-probabilities with a tiny model, against plain forwards worked out here."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from core.messages import user
from evals.prober import Prober
from tests.evals.items import ITEMS, kls_of, logps_of
from tests.tiny import load_tiny, make_tiny_adapter
from training.encode import encode_completion, encode_prompt


def plain(prober: Prober, model: Any, prompt: list[dict[str, str]], text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, V) log-probabilities and (T,) ids of a completion, one sequence at a time."""
    head = encode_prompt(prober.tokenizer, prompt)
    tail = encode_completion(prober.tokenizer, text, complete=False)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([head + tail])).logits[0]
    return logits[len(head) - 1 : -1].log_softmax(-1), torch.tensor(tail)


@pytest.mark.parametrize("as_base", [True, False])
def test_token_log_probabilities_equal_a_plain_forward(
    prober: Prober, base: Path, adapter: Path, *, as_base: bool
) -> None:
    model = load_tiny(base, None if as_base else adapter)
    found = logps_of(prober, ITEMS, as_base=as_base)
    for (prompt, text), logps in zip(ITEMS, found, strict=True):
        distribution, ids = plain(prober, model, prompt, text)
        expected = distribution[torch.arange(len(ids)), ids]
        assert logps.shape == expected.shape
        assert torch.allclose(logps, expected, atol=1e-4)
        assert bool((logps < 0).all())


def test_more_items_than_a_batch_come_back_in_their_order(prober: Prober) -> None:
    many = ITEMS * 9  # 36, in batches of 16
    found = logps_of(prober, many, as_base=False)
    assert len(found) == 36
    first = logps_of(prober, ITEMS, as_base=False)
    for i, logps in enumerate(found):
        assert torch.allclose(logps, first[i % 4], atol=1e-4)


def test_completions_of_one_prompt_share_a_row_and_do_not_see_each_other(prober: Prober) -> None:
    prompt = ITEMS[0][0]
    texts = ["In a hedge.", "", "In a tree, and in a hedge when it is cold.", "Butter"]
    together = prober.compare([(prompt, text) for text in texts], kl=4)
    for text, scored in zip(texts, together, strict=True):
        alone = prober.compare([(prompt, text)], kl=1)[0]
        assert torch.allclose(scored.candidate, alone.candidate, atol=1e-4)
        assert torch.allclose(scored.base, alone.base, atol=1e-4)
        assert scored.kl == pytest.approx(alone.kl, rel=1e-3, nan_ok=True)


@pytest.mark.parametrize("first", [0, 1])
def test_blocks_below_the_adapter_are_walked_once_for_both(base: Path, tmp_path: Path, first: int) -> None:
    adapter = make_tiny_adapter(base, tmp_path / "upper", layers=None if first == 0 else [1])
    prober = Prober(base, adapter, "cpu", torch.float32)
    assert prober.first_adapted == first
    for (prompt, text), scored in zip(ITEMS, prober.compare(ITEMS), strict=True):
        for model, logps in ((load_tiny(base, adapter), scored.candidate), (load_tiny(base), scored.base)):
            distribution, ids = plain(prober, model, prompt, text)
            assert torch.allclose(logps, distribution[torch.arange(len(ids)), ids], atol=1e-4)


def test_an_empty_completion_has_no_tokens(prober: Prober) -> None:
    empty, other = logps_of(prober, [(user("Hi"), ""), ITEMS[0]], as_base=True)
    assert len(empty) == 0
    assert len(other) > 5


def test_kl_equals_its_definition(prober: Prober, base: Path, adapter: Path) -> None:
    ours, theirs = load_tiny(base, adapter), load_tiny(base)
    found = kls_of(prober, ITEMS)
    for (prompt, text), kl in zip(ITEMS, found, strict=True):
        p, _ = plain(prober, ours, prompt, text)
        q, _ = plain(prober, theirs, prompt, text)
        expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum") / len(p)
        assert kl == pytest.approx(float(expected), rel=1e-3)
        assert kl > 0.01


def test_kl_of_the_base_with_itself_is_zero(alone: Prober, base: Path, tmp_path: Path) -> None:
    assert kls_of(alone, ITEMS) == pytest.approx([0.0] * 4, abs=1e-7)
    idle = make_tiny_adapter(base, tmp_path / "idle", scale=0.0)
    assert kls_of(Prober(base, idle, "cpu", torch.float32), ITEMS) == pytest.approx([0.0] * 4, abs=1e-7)


def test_a_stronger_adapter_is_further_away(base: Path, tmp_path: Path) -> None:
    found = []
    for scale in (0.1, 0.3, 0.6):
        adapter = make_tiny_adapter(base, tmp_path / str(scale), scale=scale)
        found.append(sum(kls_of(Prober(base, adapter, "cpu", torch.float32), ITEMS)))
    assert 0 < found[0] < found[1] < found[2]


def test_the_adapter_is_on_again_after_the_base_was_asked(prober: Prober) -> None:
    before = logps_of(prober, ITEMS[:1], as_base=False)[0]
    base = logps_of(prober, ITEMS[:1], as_base=True)[0]
    assert torch.equal(logps_of(prober, ITEMS[:1], as_base=False)[0], before)
    assert not torch.allclose(base, before, atol=1e-2)


def test_kl_is_worked_out_for_the_first_items_only(prober: Prober) -> None:
    prompt, text = ITEMS[0]
    items = [*ITEMS[:2], (prompt, "In a tree."), (prompt, text)]
    found = prober.compare(items, kl=2)
    assert [s.kl for s in found[:2]] == pytest.approx(kls_of(prober, ITEMS[:2]), rel=1e-4)
    assert all(math.isnan(s.kl) for s in found[2:])
    assert torch.allclose(found[3].candidate, found[0].candidate, atol=1e-4)
