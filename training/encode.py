"""One way from a conversation to token ids, for every trainer and scorer: the base's chat template."""

from typing import Any


def encode_prompt(tokenizer: Any, prompt: list[dict[str, str]]) -> list[int]:
    """Ids of a prompt up to where the assistant begins to speak."""
    return list(tokenizer.apply_chat_template(prompt, tokenize=True, add_generation_prompt=True, return_dict=False))


def encode_completion(tokenizer: Any, text: str, *, complete: bool = True) -> list[int]:
    """Ids of an assistant's text; a complete one ends with the end of turn, one cut at a token limit does not."""
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    return [*ids, tokenizer.eos_token_id] if complete else ids


def encode(tokenizer: Any, prompt: list[dict[str, str]], completion: str, *, complete: bool = True) -> list[int]:
    """Ids of prompt and completion together."""
    return encode_prompt(tokenizer, prompt) + encode_completion(tokenizer, completion, complete=complete)
