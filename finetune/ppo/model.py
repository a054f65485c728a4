"""Policy, value model and reference on one frozen base: two LoRA adapters, and adapters off (or a third, frozen one).

What does not change is computed once. Completions that share a prompt go through the blocks with it once, and nothing is
padded (`training.prefix`). Where an adapter sits on the upper blocks only, the base's states below it are kept for the
rollouts that are learnt from: the reference's pass leaves them for the value model, and every epoch takes them up again.
Logits are computed for tokens of completions alone. Exact up to the order of float additions.

Memory of the kept states: tokens × hidden size × bytes, once for each of the two adapters that leaves blocks out.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import StageError
from core.settings import PpoSettings
from finetune.ppo.rollouts import Rollout
from finetune.start import IN_TRAINING, REFERENCE, Start
from training.attention import PackedAttention
from training.fused import fuse
from training.head import Said, token_logps
from training.lora import first_block, lora_config
from training.memory import recomputable, recomputed
from training.prefix import Key, Packing, Plan
from training.trunk import is_llama_shaped, run_blocks

POLICY, VALUE = IN_TRAINING, "value"  # PEFT saves the adapter "default" without a folder of its own
SCALED = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


class LoraActorCritic:
    """The models of PPO. Rows are rollouts; results are flat over their tokens, (M,), in the order of the rows.

    Args:
        model: a causal LM with its weights in place; it is frozen, and wrapped by PEFT.
        start: where the policy begins, and what its reference is.

    Attributes:
        policy: trainable parameters of the policy, by name.
        value: those of the value model and its head.

    Raises:
        StageError: a model of another shape than Llama's, or one that changes its logits after the head.
    """

    def __init__(self, model: Any, settings: PpoSettings, start: Start | None = None) -> None:
        from peft import get_peft_model
        from peft.tuners.lora import LoraLayer

        decoder = model.base_model
        if not is_llama_shaped(decoder) or any(getattr(model.config, name, None) is not None for name in SCALED):
            raise StageError(
                f"PPO takes decoders of Llama's shape with full attention; {model.config.model_type} is none."
                " Use DUNNOCK_UPDATE__METHOD=dpo with this base."
            )
        torch.manual_seed(settings.seed)  # LoRA's A is drawn
        tops = {POLICY: settings.lora_top_layers, VALUE: settings.value_top_layers}
        policy, value = (
            lora_config(model, rank=settings.lora_rank, top_layers=top, task="CAUSAL_LM") for top in tops.values()
        )
        self.first = {name: first_block(model, top) for name, top in tops.items()}
        model.requires_grad_(False)
        self.peft = get_peft_model(model, policy, adapter_name=POLICY)
        self.peft.add_adapter(VALUE, value)
        fuse(self.peft)
        self.attention = PackedAttention.find(decoder)
        start = start or Start()
        start.put_on(self.peft)
        self.reference = REFERENCE if start.held_to_parent else None
        self.first[REFERENCE] = self.first[POLICY]
        self.recomputed = recomputable(model, settings.gradient_checkpointing)
        self.peft.eval()  # no dropout: the first ratio of a step must be 1
        self.base, self.decoder, self.layers = model, decoder, list(decoder.layers)
        self.temperature = settings.temperature
        self.head = nn.Linear(model.config.hidden_size, 1, device=model.device)
        nn.init.zeros_(self.head.weight)  # values begin as 0
        nn.init.zeros_(self.head.bias)
        self._lora = [module for module in self.peft.modules() if isinstance(module, LoraLayer)]
        named = {name: p for name, p in self.peft.named_parameters() if ".lora_" in name}
        self.policy = {name: p for name, p in named.items() if f".{POLICY}." in name}
        self.value = {name: p for name, p in named.items() if f".{VALUE}." in name}
        self.value |= {f"head.{name}": p for name, p in self.head.named_parameters()}
        for parameter in (*self.policy.values(), *self.value.values()):
            parameter.requires_grad_(True)
        self._states: dict[int, dict[Key, Tensor]] = {first: {} for first in self.first.values() if first}

    # --- what PPO asks

    def reference_logps(self, rows: Sequence[Rollout]) -> Tensor:
        """log p of each token under the reference, without gradients."""
        with torch.no_grad():
            states = self._completion_states(rows, self.reference)
            logps: Tensor = self._token_logps(states, rows).logps
            return logps

    def policy_logps(self, rows: Sequence[Rollout], *, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """log p of each token under the policy, and where it is asked for the entropy before each token, in nats."""
        found = self._token_logps(self._completion_states(rows, POLICY), rows, entropy=entropy)
        return found.logps, found.entropy

    def values(self, rows: Sequence[Rollout]) -> Tensor:
        """The value model's guess before each token of what is still to come.

        The head reads states brought to a root mean square of 1: how large a base's are differs much, and with it how far
        a step of Adam would throw all values at once.
        """
        states = self._completion_states(rows, VALUE).float()
        found: Tensor = self.head(nn.functional.rms_norm(states, states.shape[-1:]))[:, 0]
        return found

    def forget(self) -> None:
        """Drop the states that are kept; call it when other rollouts come."""
        for kept in self._states.values():
            kept.clear()

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """While the block runs, the bare model speaks as the policy; on a CPU with packed weights, which are given back."""
        from policy.engine.packed import packed_with

        adapted = [layer for layer in self._lora if POLICY in layer.lora_A]
        with packed_with(self.base, adapted, POLICY) as merged:
            self._use(None if merged else POLICY)
            yield

    def save_policy(self, folder: Path) -> None:
        """Write the policy's adapter as PEFT does: safetensors and its config."""
        self.peft.save_pretrained(folder, selected_adapters=[POLICY])
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card

    # --- passes

    def _use(self, adapter: str | None) -> None:
        """Turn one adapter on, or none. PEFT's set_adapter would also switch gradients, of both adapters in turn."""
        for layer in self._lora:
            layer._active_adapter = [adapter] if adapter else []
            layer._disable_adapters = adapter is None

    def _completion_states(self, rows: Sequence[Rollout], adapter: str | None) -> Tensor:
        """(M, H) last states at the positions that each completion's tokens follow on."""
        keys = [(*row.prompt.ids, *row.ids[:-1]) for row in rows]
        plan = Plan(keys, _groups(rows), self.attention.row_tokens)
        packing = Packing(plan, max(map(len, keys)), self.base.device)
        first = max(self._states, default=0) if adapter is None else self.first[adapter]
        below = self._base_states(keys, packing, first)
        states = self._run(adapter, first, len(self.layers), below, packing)
        owners = [i for i, row in enumerate(rows) for _ in row.ids]
        columns = [len(row.prompt.ids) - 1 + t for row in rows for t in range(len(row.ids))]
        at = packing.packed_row[owners, 0], packing.packed_column[owners, columns]
        found: Tensor = states[at]
        return found

    def _base_states(self, keys: Sequence[Key], packing: Packing, cut: int) -> Tensor:
        """(R, P, H) states of the base below block `cut`, kept ones where all are kept."""
        if cut == 0:
            ids = nn.utils.rnn.pad_sequence([torch.tensor(key) for key in keys], batch_first=True)
            embedded: Tensor = self.decoder.embed_tokens(packing.pack(ids.to(self.base.device)))
            return embedded
        kept = self._states[cut]
        if all(key in kept for key in keys):
            packed: Tensor = packing.pack(nn.utils.rnn.pad_sequence([kept[key] for key in keys], batch_first=True))
            return packed
        lower = max((other for other in self._states if other < cut), default=0)
        with torch.no_grad():
            states = self._run(None, lower, cut, self._base_states(keys, packing, lower), packing, norm=False)
            for key, row in zip(keys, packing.unpack(states), strict=True):
                kept[key] = row[: len(key)].clone()
        return states

    def _run(
        self, adapter: str | None, first: int, last: int, states: Tensor, packing: Packing, *, norm: bool = True
    ) -> Tensor:
        """(R, P, H) through blocks first … last, with an adapter or none."""
        self._use(adapter)
        blocks = nn.ModuleList(self.layers[first:last])
        with recomputed(self.recomputed):
            found: Tensor = run_blocks(
                self.decoder, blocks, self.decoder.forward, norm=norm, inputs_embeds=states,
                use_cache=False, **self.attention.inputs(packing),
            ).last_hidden_state  # fmt: skip
        return found

    def _token_logps(self, states: Tensor, rows: Sequence[Rollout], *, entropy: bool = False) -> Said:
        """(M, H) → what is said of the tokens at the sampling temperature."""
        ids = torch.tensor([token for row in rows for token in row.ids], device=states.device)
        return token_logps(states, ids, self.base.get_output_embeddings(), self.temperature, entropy=entropy)


def _groups(rows: Sequence[Rollout]) -> list[list[int]]:
    """Rows of one prompt together."""
    found: dict[Key, list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(row.prompt.ids, []).append(i)
    return list(found.values())
