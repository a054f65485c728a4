"""Proximal policy optimisation with LoRA: the policy learns from the reward model's scores of what it writes itself.

advantages   from scores and log-probabilities to per-token rewards, advantages and returns
loss         clipped losses, and what corrects for a sampler with other numerics
model        policy, value model and reference on one frozen base
rollouts     completions of the policy as it is now, by the model in training or by the engine
trainer      the loop: sample, score, learn; checkpoints, log, limits
update       the update stage's work: prompts in, an adapter out
"""
