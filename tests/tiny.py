"""A tiny real base model and adapters, built in about a second from a config; no download, no fixture files.

`make_tiny_base` writes what a hub snapshot holds (safetensors, tokenizer, chat template), so everything that
takes the path of a base model takes this one. Its texts are noise, but repeatable noise.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SENTENCES = (
    "People judge a chat model, a reward model learns, and the policy is updated.",
    "How do I keep a dunnock safe in the garden during winter?",
    "Please write three short sentences about bread and butter.",
    "I cannot help with that, but here is something that is safe.",
    "What is the capital of France? The capital of France is Paris.",
    "Numbers: 0 1 2 3 4 5 6 7 8 9, and signs: ! ? . , ; : ( ) [ ] { }",
    "user assistant system prompt completion judgment correction preference",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MAX_VOCABULARY = 512
CONTEXT_TOKENS = 512
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_tiny_base(folder: Path, seed: int = 0, *, hidden_size: int = 64) -> Path:
    """Build and save a 2-layer Llama with a byte-level BPE tokenizer; returns `folder`.

    Args:
        folder: made if it does not exist.
        seed: of the weights; equal seeds give equal models.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)  # threads cannot speed up so small a model, and starve beside another busy process
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        initializer_range=0.2,  # wide, so that logits differ clearly and greedy text does not hang on rounding
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_adapter(
    base: Path, folder: Path, seed: int = 1, scale: float = 0.5, layers: list[int] | None = None
) -> Path:
    """Save a rank-4 LoRA adapter of `base` with random weights, strong enough to change greedy text.

    Args:
        scale: standard deviation of both LoRA factors; 0 gives an adapter that changes nothing.
        layers: blocks that are adapted; None means all.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=4, lora_alpha=4, lora_dropout=0.0, target_modules=LORA_TARGETS, layers_to_transform=layers,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    with _quiet_peft():
        model = get_peft_model(load_tiny(base), lora)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    return folder


def load_tiny(base: Path, adapter: Path | None = None) -> Any:
    """The model as transformers loads it, with the adapter as PEFT puts it on: what texts are compared with."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with _quiet_peft():
        return (model if adapter is None else PeftModel.from_pretrained(model, str(adapter))).eval()


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Hides that peft 0.21 asks transformers 5.23 for a property that it deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
