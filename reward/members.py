"""Members: several LoRA adapters, each with a scalar head, on one frozen base in memory.

What lies below the first adapted block is the same for all of them and is computed once for a batch, and once for a whole
training run. A sequence's value is the head's on two states side by side: the last token's, and the mean over all tokens, which
tells more of a long text than its last token does (docs/rewards.md has figures). Encoding is the caller's; nothing here knows of
people or rules. Not thread-safe: which adapter is on is a state of the model (`reward.scoring` takes turns).
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import ArtifactError, StageError
from core.settings import RewardSettings
from training.device import Device, find_device
from training.lora import first_block, lora_config
from training.memory import AS_USUAL, Held, load_base, recomputable, recomputed
from training.prefix import Groups, neighbours
from training.run import Progress, silent
from training.trunk import share_trunk

POOLING = "last and mean"
"""What a head reads; stands in the record of each model, so that one which reads something else is known as such."""
SCORE_BATCH = 32
PREPARE_GROUPS = 16
SCORE_TOKENS = 16_384
"""Most padded tokens of a batch that is only scored, so that long texts come in smaller batches."""


class Members:
    """K adapters and heads on one base. Make them with `fresh` or `load`.

    Attributes:
        tokenizer: the base's, padding on the right.
        names: the members, in order.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        names: Sequence[str],
        first: int,
        *,
        keep_mb: float,
        checkpointing: bool = False,
    ) -> None:
        from training.fused import fuse

        self.model = model.eval()  # there is no dropout; only gradients make the difference
        self.tokenizer = tokenizer
        self.names = list(names)
        fuse(model)
        self.trunk = share_trunk(model, first, keep_mb=keep_mb)
        self.decoder = model.get_base_model().base_model
        self.recomputed = recomputable(model.get_base_model(), checkpointing)

    @classmethod
    def fresh(cls, base: Path, n: int, settings: RewardSettings, device: Device) -> "Members":
        """`n` new members: all begin as the same function, their adapters' first factors drawn from seeds of their own."""
        import torch
        from peft import get_peft_model

        names = [f"member-{k}" for k in range(n)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            model, tokenizer = _classifier(base, device, Held.by(settings))  # its head is new, each member's a copy
            first = first_block(model, settings.lora_top_layers)
            config = lora_config(
                model, rank=settings.lora_rank, top_layers=settings.lora_top_layers, task="SEQ_CLS", save=["score"]
            )
            for k, name in enumerate(names):
                torch.manual_seed(settings.seed * 1_000_003 + k)
                if k:
                    model.add_adapter(name, config)
                else:
                    model = get_peft_model(model, config, adapter_name=name)
        return cls(
            model, tokenizer, names, first, keep_mb=settings.keep_mb, checkpointing=settings.gradient_checkpointing
        )

    @classmethod
    def load(cls, places: Mapping[str, Path], base: Path, device: Device = "auto", held: Held = AS_USUAL) -> "Members":
        """Members out of their folders, by name, all on one base, which is held as it was when they were trained.

        Raises:
            ArtifactError: adapters are missing or do not fit this base.
        """
        from peft import PeftConfig, PeftModel

        model, tokenizer = _classifier(base, device, held)
        first = math.inf
        for k, (name, place) in enumerate(places.items()):
            try:
                adapted = PeftConfig.from_pretrained(str(place)).layers_to_transform
                first = min(first, min(adapted) if adapted else 0)
                if k:
                    model.load_adapter(str(place), adapter_name=name)
                else:
                    model = PeftModel.from_pretrained(model, str(place), adapter_name=name)
            except (RuntimeError, ValueError, KeyError, OSError) as error:
                raise ArtifactError(
                    f"the adapter in {place} cannot be put on the base in {base.name}:"
                    f" {str(error).splitlines()[0] if str(error) else type(error).__name__}. A reward model is loaded onto"
                    " the base that it was trained on; train a new one for another base."
                ) from error
        return cls(model, tokenizer, list(places), int(first), keep_mb=math.inf)

    def only(self, names: Sequence[str]) -> "Members":
        """Some of the members, on the same base in memory."""
        view = copy.copy(self)
        view.names = list(names)
        return view

    def parameters(self, name: str) -> dict[str, Any]:
        """A member's adapter by name, turned on for training; its head stays as it was fitted, all others are frozen."""
        self.model.set_adapter(name)
        found = {n: p for n, p in self.model.named_parameters() if f".{name}." in n and ".lora_" in n}
        for n, p in self.model.named_parameters():
            p.requires_grad_(n in found)
        return found

    def prepare(self, ids: Sequence[list[int]], groups: Groups, progress: Progress = silent) -> None:
        """Compute what all members share of these sequences, some groups at a time, and keep it as far as there is room.

        Later batches only look it up, so what a batch gives does not hang on which batches came before it.
        """
        if self.trunk is None or not len(self.trunk.lower):
            return
        self.trunk.keeping = True
        order = sorted(range(len(groups)), key=lambda g: max(len(ids[i]) for i in groups[g]))
        for start in range(0, len(order), PREPARE_GROUPS):
            some = [groups[g] for g in order[start : start + PREPARE_GROUPS]]
            rows = [ids[i] for members in some for i in members]
            places = iter(range(len(rows)))
            inputs = self._inputs(rows)
            self.trunk.prepare(inputs["input_ids"], inputs["attention_mask"], [[next(places) for _ in m] for m in some])
            progress(0.0, f"frozen layers: {min(start + PREPARE_GROUPS, len(order))}/{len(order)}")
        self.trunk.keeping = False

    def forward(self, name: str, ids: Sequence[list[int]], groups: Groups | None = None) -> Any:
        """(N,) values of sequences under one member, fp32, with gradients where they are on.

        Args:
            groups: which sequences share a beginning, where the caller knows; else it is looked for.
        """
        import torch

        groups = neighbours([tuple(row) for row in ids]) if groups is None else groups

        self.model.set_adapter(name)
        head = self.head(name)
        states = self._pooled(ids, groups)
        return torch.nn.functional.linear(states, head.weight.float(), head.bias.float())[:, 0]

    def head(self, name: str) -> Any:
        """A member's own linear layer on the pooled states."""
        return self.model.get_base_model().score.modules_to_save[name]

    def set_head(self, name: str, weight: Any, bias: float) -> None:
        """(2H,) weights and a bias for a member's head."""
        import torch

        head = self.head(name)
        with torch.no_grad():
            head.weight.copy_(torch.as_tensor(weight)[None])
            head.bias.fill_(bias)

    def features(self, ids: Sequence[list[int]], progress: Progress = silent) -> Any:
        """(N, 2H) pooled states of sequences by the base alone, which is what members that learnt nothing yet have."""
        import torch

        found = torch.zeros(len(ids), 2 * self.model.config.hidden_size)
        with torch.no_grad(), self.model.disable_adapter():
            for rows, batch, groups in self._batches(ids, progress):
                found[batch] = self._pooled(rows, groups).cpu()
        if not found.isfinite().all():
            raise StageError(
                "the base's states of these texts are not all finite numbers; the run is stopped and nothing is registered."
                " Are the base's weights whole?"
            )
        return found

    def _pooled(self, ids: Sequence[list[int]], groups: Groups) -> Any:
        """(N, 2H) fp32: the last token's state, and the mean over all tokens."""
        import torch

        inputs = self._inputs(ids)
        hidden = self._hidden(inputs, groups).float()
        mask = inputs["attention_mask"]
        lengths = mask.sum(1)
        last = hidden[torch.arange(len(ids), device=hidden.device), lengths - 1]
        mean = (hidden * mask[..., None]).sum(1) / lengths[:, None]
        return torch.cat([last, mean], dim=1)

    def scores(self, ids: Sequence[list[int]], progress: Progress = silent) -> Any:
        """(K, N) values of all members, without gradients; sequences that begin alike are put together."""
        import torch

        found = torch.zeros(len(self.names), len(ids))
        with torch.no_grad():
            for rows, batch, groups in self._batches(ids, progress):
                for k, name in enumerate(self.names):
                    found[k, batch] = self.forward(name, rows, groups).cpu()
        return found

    def _batches(
        self, ids: Sequence[list[int]], progress: Progress
    ) -> Iterator[tuple[list[list[int]], list[int], Groups]]:
        """Sequences, their places and groups, batch by batch; what lies below the adapters is kept while a batch lasts."""
        known = set(self.trunk.states) if self.trunk is not None else set()
        done = 0
        for batch in _batches(sorted(range(len(ids)), key=lambda i: ids[i]), ids):
            rows = [ids[i] for i in batch]
            if self.trunk is not None:
                self.trunk.keeping = True  # for the other members of this batch
            yield rows, batch, neighbours([tuple(row) for row in rows])
            if self.trunk is not None:
                self.trunk.forget(known)
                self.trunk.keeping = False
            done += len(batch)
            progress(done / len(ids), f"completions scored: {done}/{len(ids)}")

    def release(self) -> None:
        """Free what training has kept of the frozen layers."""
        if self.trunk is not None:
            self.trunk.forget()

    def save(self, folder: Path) -> None:
        """Each member as a PEFT adapter in a folder of its name below `folder`."""
        for name in self.names:
            self.model.save_pretrained(folder, selected_adapters=[name])
        for card in folder.rglob("README.md"):
            card.unlink()  # PEFT's empty model card

    def _inputs(self, ids: Sequence[list[int]]) -> dict[str, Any]:
        import torch

        width = max(map(len, ids))
        pad = self.tokenizer.pad_token_id or 0
        device = self.model.device
        return {
            "input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in ids], device=device),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=device),
        }

    def _hidden(self, inputs: dict[str, Any], groups: Groups) -> Any:
        with recomputed(self.recomputed):
            if self.trunk is None:
                return self.decoder(**inputs, use_cache=False).last_hidden_state
            return self.trunk.forward(**inputs, groups=groups, use_cache=False).last_hidden_state


def _batches(order: list[int], ids: Sequence[list[int]]) -> list[list[int]]:
    """Runs of `order` of bounded length and area."""
    found: list[list[int]] = []
    width = 0
    for i in order:
        width = max(width, len(ids[i]))
        if found and len(found[-1]) < SCORE_BATCH and width * (len(found[-1]) + 1) <= SCORE_TOKENS:
            found[-1].append(i)
        else:
            found.append([i])
            width = len(ids[i])
    return found


def _classifier(base: Path, device: Device, held: Held) -> tuple[Any, Any]:
    import torch
    from transformers import AutoTokenizer

    model = load_base(base, find_device(device), held, classifier=True)
    width = 2 * model.config.hidden_size
    model.score = torch.nn.Linear(width, 1, device=model.device)  # fp32: small steps are lost in bf16
    tokenizer = AutoTokenizer.from_pretrained(base)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer
