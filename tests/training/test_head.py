"""The head that scores labels only, against TRL's own: the same log-probabilities, loss and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import load_tiny, make_tiny_base
from training import head
from training.head import score_labels_only, token_logps
from training.lora import lora_config

IGNORED = -100


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def wrapped(base: Path) -> Any:
    """A model as TRL's trainers make it: an adapter, and the fused head in place of `forward`."""
    from peft import get_peft_model
    from trl.trainer.utils import add_fused_lm_head

    model = load_tiny(base)
    model = get_peft_model(model, lora_config(model, rank=2, top_layers=0, task="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "is_top1", "log_sum_sq_probs"))
    return model


def batch() -> dict[str, torch.Tensor]:
    """Three sequences, padded on the right; only completions have labels, and one has none at all."""
    ids = torch.randint(5, 300, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 12, [1] * 7 + [0] * 5, [1] * 9 + [0] * 3])
    labels = ids.clone()
    labels[0, :4] = labels[1, :5] = labels[1, 7:] = labels[2, :] = IGNORED
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


@pytest.fixture(params=[512, 4])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All positions in one chunk, and ten positions in chunks of four."""
    monkeypatch.setattr(head, "ROWS", request.param)


@pytest.mark.usefixtures("_chunks")
def test_log_probabilities_and_gradients_equal_those_of_trl(base: Path) -> None:
    ours, theirs = wrapped(base), wrapped(base)
    assert score_labels_only(ours, sum_sq=True)
    found, expected = ours(**batch(), fused_lm_head=True), theirs(**batch(), fused_lm_head=True)
    assert torch.allclose(found.log_probs, expected.log_probs, atol=1e-5)
    assert torch.allclose(found.loss, expected.loss, atol=1e-5)
    assert torch.equal(found.is_top1.bool(), expected.is_top1.bool())
    assert found.log_probs.shape == (3, 11)
    assert int((found.log_probs != 0).sum()) == 8 + 2
    assert torch.allclose(found.log_sum_sq_probs, expected.log_sum_sq_probs, atol=1e-5)

    weights = torch.rand((3, 11), generator=torch.Generator().manual_seed(2))
    for output in (found, expected):
        (output.log_probs * weights).sum().backward()
    gradients = [{n: p.grad for n, p in m.named_parameters() if p.requires_grad} for m in (ours, theirs)]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[1].items():
        assert torch.allclose(gradients[0][name], gradient, atol=1e-5), name
    assert max(float(g.abs().max()) for g in gradients[0].values()) > 1e-2


def test_log_probabilities_equal_a_plain_forward(base: Path) -> None:
    model = wrapped(base)
    score_labels_only(model)
    inputs = batch()
    found = model(**inputs, fused_lm_head=True).log_probs
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    logps = logits[:, :-1].log_softmax(-1)
    for row, position in (inputs["labels"][:, 1:] != IGNORED).nonzero().tolist():
        expected = logps[row, position, inputs["labels"][row, position + 1]]
        assert found[row, position].item() == pytest.approx(expected.item(), abs=1e-5)


def test_what_was_not_computed_is_nan_and_no_silent_zero(base: Path) -> None:
    model = wrapped(base)
    score_labels_only(model)
    output = model(**batch(), fused_lm_head=True)
    assert bool(output.entropy.isnan().all())
    assert bool(output.mean_logits.isnan().all())


def test_other_calls_take_the_way_they_took(base: Path) -> None:
    ours, theirs = wrapped(base), wrapped(base)
    score_labels_only(ours)
    inputs = batch()
    assert torch.equal(ours(**inputs).logits, theirs(**inputs).logits)
    assert torch.allclose(ours(**inputs).loss, theirs(**inputs).loss)


def test_what_is_said_of_tokens_by_hand() -> None:
    """Logits (0, ln 3) and (ln 4, 0): probabilities 1/4, 3/4 and 4/5, 1/5."""
    layer = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2))
    hidden = torch.tensor([[0.0, 3.0], [4.0, 1.0]]).log().nan_to_num(neginf=0.0)
    logps, _, top1, squares = token_logps(hidden, torch.tensor([0, 0]), layer, top1=True, squares=True)
    assert logps.exp().tolist() == pytest.approx([1 / 4, 4 / 5])
    assert top1.tolist() == [False, True]
    assert squares.exp().tolist() == pytest.approx([1 / 16 + 9 / 16, 16 / 25 + 1 / 25])
    assert token_logps(hidden, torch.tensor([0, 0]), layer)[1:] == (None, None, None)


def test_entropy_and_temperature_by_hand() -> None:
    """Logits (0, ln 3): probabilities 1/4 and 3/4, entropy ln 4 - 3/4 ln 3; at temperature 1/2 logits double: 1/10, 9/10."""
    head = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
    states = torch.tensor([[0.0, 3.0]]).log().nan_to_num(neginf=0.0)
    states[0, 0] = 0.0
    logps, entropy, *_ = token_logps(states, torch.tensor([1]), head, entropy=True)
    assert logps.exp().tolist() == pytest.approx([3 / 4])
    assert entropy is not None
    assert entropy.item() == pytest.approx(torch.tensor(4.0).log() - 0.75 * torch.tensor(3.0).log())
    cold, *_ = token_logps(states, torch.tensor([0]), head, 0.5)
    assert cold.exp().tolist() == pytest.approx([1 / 10])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_gradient_of_token_logps_is_that_of_autograd(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    monkeypatch.setattr("training.head.ROWS", 3)  # seven rows in three parts
    generator = torch.Generator().manual_seed(2)
    head = torch.nn.Linear(5, 11, bias=True).requires_grad_(False)
    states = torch.randn(7, 5, generator=generator).requires_grad_()
    ids, weights = torch.randint(0, 11, (7,), generator=generator), torch.randn(7, generator=generator)
    plain = (head(states) / temperature).log_softmax(-1)[torch.arange(7), ids]
    (expected,) = torch.autograd.grad((plain * weights).sum(), states)
    found, entropy, *_ = token_logps(states, ids, head, temperature, entropy=True)
    assert torch.allclose(found, plain, atol=1e-6)
    assert entropy is not None
    assert not entropy.requires_grad
    (gradient,) = torch.autograd.grad((found * weights).sum(), states)
    assert torch.allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["final_logit_softcapping", "logit_scale"])
def test_a_model_that_scales_its_logits_keeps_its_own_head(base: Path, name: str) -> None:
    model = wrapped(base)
    forward = model.get_base_model().forward
    setattr(model.get_base_model().config, name, 30.0)
    assert not score_labels_only(model)
    assert model.get_base_model().forward == forward
