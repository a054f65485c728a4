"""TRL's stock trainers at the same work: same base, pairs, LoRA, schedule and batches, without checkpointing.

Their defaults that would only slow them on a CPU are off: gradient checkpointing and saving; bf16 is measured on and off. The PPO trainer is that of the
last TRL that had one, which the child finds first on its path.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench.training import held_out
from bench.training.data import near_length
from bench.training.work import Work, clock, in_bf16
from core.settings import RewardSettings, UpdateSettings

SCORED_TOGETHER = 16


def train_reward(work: Work) -> dict[str, Any]:
    """TRL's RewardTrainer."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    from training.lora import lora_config

    with clock() as timed:
        model = AutoModelForSequenceClassification.from_pretrained(work.base, num_labels=1, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(work.base)
        model.config.pad_token_id = tokenizer.pad_token_id
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(
                **_arguments(work),
                max_length=None,
                center_rewards_coefficient=RewardSettings().center_rewards_coefficient,
            ),
            train_dataset=_pairs(work),
            processing_class=tokenizer,
            peft_config=lora_config(model, rank=work.lora_rank, top_layers=0, task="SEQ_CLS", save=["score"]),
        )
        trainer.train()
        timed.stop()
    trained = trainer.model.eval()

    def score(ids: list[list[int]]) -> list[float]:
        found: list[float] = []
        with torch.no_grad():
            for start in range(0, len(ids), SCORED_TOGETHER):
                some = tokenizer.pad({"input_ids": ids[start : start + SCORED_TOGETHER]}, return_tensors="pt")
                found += trained(**some).logits[:, 0].tolist()
        return found

    told = timed.told(len(trainer.train_dataset) * work.epochs, "pairs")
    return told | held_out.of_scores(score, tokenizer, work.pairs("heldout"))


def train_dpo(work: Work) -> dict[str, Any]:
    """TRL's DPOTrainer with the loss of a round; the reference in each step as by default, or computed before."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from training.lora import lora_config

    settings = UpdateSettings()
    with clock() as timed:
        model = AutoModelForCausalLM.from_pretrained(work.base, dtype=torch.float32)
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(
                **_arguments(work),
                max_length=None,
                beta=settings.beta,
                loss_type=["robust", "sft"],
                loss_weights=[1.0, settings.sft_weight],
                label_smoothing=0.05,
                precompute_ref_log_probs=work.variant == "reference",
            ),
            train_dataset=_pairs(work),
            processing_class=AutoTokenizer.from_pretrained(work.base),
            peft_config=lora_config(model, rank=work.lora_rank, top_layers=0, task="CAUSAL_LM"),
        )
        trainer.train()
        timed.stop()
    out = Path(work.folder) / "dpo-stock"
    trainer.model.save_pretrained(out)
    told = timed.told(len(trainer.train_dataset) * work.epochs, "pairs")
    return told | held_out.of_policy(out, Path(work.base), work.pairs("heldout"), settings.beta)


def train_ppo(work: Work) -> dict[str, Any]:
    """The experimental PPOTrainer; policy and value model each with LoRA on all layers, the reference by adapters off."""
    import torch
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    from training.encode import encode_prompt
    from training.lora import lora_config

    tokenizer = AutoTokenizer.from_pretrained(work.base, padding_side="left")
    tokenizer.pad_token = (
        tokenizer.unk_token
    )  # that of the base ends turns too, and the trainer masks it wherever it stands
    pairs = near_length(tokenizer, work.pairs("train"), work.prompts)
    prompts = [encode_prompt(tokenizer, pair.prompt) for pair in pairs for _ in range(work.samples_per_prompt)]
    batch = len(prompts)
    lengths: list[int] = []
    with clock() as timed, patch.object(ppo_trainer, "truncate_response", _noting(lengths, ppo_trainer)):
        policy = AutoModelForCausalLM.from_pretrained(work.base, dtype=torch.float32)
        value, judge = (
            AutoModelForSequenceClassification.from_pretrained(work.base, num_labels=1, dtype=torch.float32)
            for _ in range(2)
        )
        value_lora = lora_config(value, rank=work.lora_rank, top_layers=0, task="SEQ_CLS", save=["score"])
        trainer = PPOTrainer(
            args=PPOConfig(
                **_common(work),
                learning_rate=2e-4,
                per_device_train_batch_size=work.microbatch_size,
                gradient_accumulation_steps=batch // work.microbatch_size,
                num_mini_batches=batch // work.minibatch_size,
                total_episodes=batch * work.steps,
                local_rollout_forward_batch_size=batch,
                num_ppo_epochs=work.ppo_epochs,
                response_length=work.new_tokens,
                temperature=1.0,
                stop_token="eos",  # noqa: S106 (no secret)
                missing_eos_penalty=1.0,
                num_sample_generations=0,
                kl_coef=0.05,
            ),
            processing_class=tokenizer,
            model=policy,
            ref_model=None,
            reward_model=judge,
            value_model=get_peft_model(
                value, value_lora
            ).base_model.model,  # the classifier, its layers adapted in place
            train_dataset=Dataset.from_list([{"input_ids": ids} for ids in prompts]),
            eval_dataset=Dataset.from_list([{"input_ids": prompts[0]}]),
            peft_config=lora_config(policy, rank=work.lora_rank, top_layers=0, task="CAUSAL_LM"),
        )
        trainer.train()
        timed.stop()
    log = [row for row in trainer.state.log_history if "objective/kl" in row]
    return timed.told(batch * work.steps, "samples") | {
        "completion_tokens": sum(lengths) / len(lengths), "kl": log[-1]["objective/kl"],
        "prompt_tokens": sum(map(len, prompts)) / batch,
    }  # fmt: skip


def _noting(lengths: list[int], module: Any) -> Callable[..., Any]:
    """TRL's `truncate_response`, which notes how long the completions are."""
    plain = module.truncate_response

    def truncated(stop: int, pad: int, responses: Any) -> Any:
        kept = plain(stop, pad, responses)
        lengths.extend((kept != pad).sum(1).tolist())
        return kept

    return truncated


def _arguments(work: Work) -> dict[str, Any]:
    """What the trainers of pairs are told: our schedule, batches and seed."""
    return _common(work) | {
        "per_device_train_batch_size": work.batch_size, "num_train_epochs": work.epochs,
        "learning_rate": work.learning_rate, "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "logging_steps": 1,
    }  # fmt: skip


def _common(work: Work) -> dict[str, Any]:
    return {
        "output_dir": str(Path(work.folder) / "work"), "use_cpu": True, "bf16": in_bf16(work.precision), "gradient_checkpointing": False,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "seed": work.seed,
        "dataloader_pin_memory": False,
    }  # fmt: skip


def _pairs(work: Work) -> Any:
    """The training pairs as TRL's conversational preferences."""
    from datasets import Dataset

    def turn(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    return Dataset.from_list(
        [{"prompt": p.prompt, "chosen": turn(p.chosen), "rejected": turn(p.rejected)} for p in work.pairs("train")]
    )


TRAINERS: dict[str, Callable[[Work], dict[str, Any]]] = {
    "reward": train_reward,
    "dpo": train_dpo,
    "ppo": train_ppo,
}
