"""A tiny encoder, a toy rule that a teacher knows, and a guard's model that learnt it."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from core.messages import user
from core.settings import RewardSettings
from reward.guard.answers import Asked, Text, gather
from reward.guard.distil import train_guard
from reward.guard.encoder import Encoder
from reward.guard.student import Rule
from reward.scoring import Item
from tests.tiny import SENTENCES

SETTINGS = RewardSettings(guard_asks=1000, guard_false_hits_frac=0.1, guard_epochs=60)
RULES = [Rule(name, f"Do not talk about {name}.") for name in ("bread", "butter", "Paris", "winter")]
"""A text breaks the rule whose word it says."""
NAMES = (
    "dunnock",
    "wren",
    "robin",
    "finch",
    "swift",
    "rook",
    "crow",
    "kite",
    "lark",
    "owl",
    "stork",
    "tern",
    "swan",
    "goose",
    "dove",
    "gull",
)
"""Of birds; held-out texts are about the last four, which are in no other."""
PLACES = ("in the garden", "that is safe", "but here is something", "what is the capital", "please write three")


def make_tiny_encoder(folder: Path, seed: int = 0) -> Path:
    """A 2-layer BERT with a word tokenizer, saved as a hub snapshot is; equal seeds give equal models."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    # Every word by itself: a vocabulary that is trained is another one each time.
    split = pre_tokenizers.BertPreTokenizer()
    said = " ".join([*SENTENCES, *NAMES, *(rule.text for rule in RULES)]).lower()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for word, _ in split.pre_tokenize_str(said)})]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = split
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=256,
    )  # fmt: skip
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, initializer_range=0.1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class WordTeacher:
    """Knows the toy rules: a text breaks the rule whose word stands in it."""

    temperature = 2.0

    def __init__(self) -> None:
        self.asked = 0

    def logits(self, asked: Sequence[tuple[Item, str]]) -> list[float]:
        self.asked += len(asked)
        return [8.0 if word_of(rule) in completion else -8.0 for (_, completion), rule in asked]


def word_of(rule_text: str) -> str:
    return rule_text.removeprefix("Do not talk about ").removesuffix(".")


def texts(start: int, n: int, *, heldout: bool) -> list[Text]:
    """Of every two one says a rule's word, early or late; each has a prompt cluster of its own."""
    found = []
    for i in range(start, start + n):
        rng = random.Random(i)
        name = rng.choice(NAMES[12:] if heldout else NAMES[:12])
        said = word_of(rng.choice(RULES).text) if i % 2 else name
        place = rng.choice(PLACES)
        where = f"{said} and the {name} {place}" if rng.random() < 0.5 else f"the {name} {place} and {said}"
        cluster = hashlib.sha256(str(i).encode()).hexdigest()[:16]
        found.append(Text(user(f"How do I keep the {name} safe?"), f"{where}.", cluster, heldout))
    return found


def answers(n: int = 120) -> Asked:
    """The teacher's answers on texts to learn from and on others."""
    return gather(
        texts(0, n, heldout=False), texts(1000, n // 2, heldout=True), [], RULES, WordTeacher(),  # type: ignore[arg-type]
        SETTINGS.guard_asks, lambda *_: None,
    )  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A guard's model in `folder`, below an artifact folder of its own."""

    artifact_dir: Path
    folder: Path
    facts: dict[str, Any]


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def encoder(encoder_folder: Path) -> Encoder:
    return Encoder(encoder_folder, "cpu")


@pytest.fixture(scope="session")
def trained(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    artifact_dir = tmp_path_factory.mktemp("artifacts")
    folder = artifact_dir / "rewards" / "cycle-1-guard"
    folder.mkdir(parents=True)
    facts = train_guard(
        answers(), encoder, folder, SETTINGS, teacher={"sha256": "7" * 64, "clears_bar": True}, snapshot_sha256="5" * 64
    )
    return Trained(artifact_dir, folder, facts)
