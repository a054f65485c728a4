"""Encoding: the base's chat template, and an end of turn only where the text came to its end."""

from typing import Any

import pytest

from core.messages import user
from tests.tiny import make_tiny_base
from training.encode import encode, encode_completion, encode_prompt


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(make_tiny_base(tmp_path_factory.mktemp("base")))


def test_a_prompt_ends_where_the_assistant_begins(tokenizer: Any) -> None:
    ids = encode_prompt(tokenizer, user("Where do birds sleep?"))
    assert tokenizer.decode(ids) == "<|im_start|>user\nWhere do birds sleep?<|im_end|>\n<|im_start|>assistant\n"
    assert all(isinstance(i, int) for i in ids)


def test_a_complete_text_ends_its_turn_and_a_cut_one_does_not(tokenizer: Any) -> None:
    whole = encode_completion(tokenizer, "In a hedge.")
    cut = encode_completion(tokenizer, "In a hedge.", complete=False)
    assert whole == [*cut, tokenizer.eos_token_id]
    assert tokenizer.decode(cut) == "In a hedge."
    assert encode_completion(tokenizer, "") == [tokenizer.eos_token_id]
    assert encode_completion(tokenizer, "", complete=False) == []


def test_prompt_and_completion_together_are_the_whole_conversation(tokenizer: Any) -> None:
    """The same ids as the template gives for the finished talk, up to the newline after the last turn."""
    prompt = [{"role": "system", "content": "Be brief."}, *user("Where do birds sleep?")]
    talk = [*prompt, {"role": "assistant", "content": "In a hedge."}]
    whole = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=False)
    ids = encode(tokenizer, prompt, "In a hedge.")
    assert whole[: len(ids)] == ids
    assert tokenizer.decode(whole[len(ids) :]) == "\n"
    assert encode(tokenizer, prompt, "In a hedge.", complete=False) == ids[:-1]


@pytest.mark.parametrize("text", [" leading", "trailing ", "é🐦\u2028", "\n\n", "a<|im_end|"])
def test_texts_come_back_as_they_were(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(encode_completion(tokenizer, text, complete=False)) == text
