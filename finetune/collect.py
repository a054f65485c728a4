"""Stages `collect` and `rate`: the served policy answers the seed prompts, and the answers are judged.

`collect` asks the engine for a completion per seed prompt and makes a task that sets it against a
refusal: should this have been answered or not? People judge these tasks in the page. `rate`
is for the unattended demo only: the scripted annotator judges them, and everything it says is stored as
simulated. Both go on where a killed run stopped.
"""

import random
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from access.people import get_or_create_scripted
from core.messages import Message, user
from core.settings import CollectSettings
from evals.refusals import CATEGORIES, refusal
from evals.scripted import rate
from evals.suites import SuitePrompt, benign, harmful
from feedback.assignment.leases import claim_task
from feedback.judgments import submit_judgment
from feedback.kinds.frame import RuleVerdict
from feedback.kinds.pairwise import PairwiseForm
from feedback.models import Assignment, Completion, Task
from feedback.prompts import add_completion, add_prompt
from feedback.rules.store import active_rules
from feedback.tasks import create_task
from finetune.context import StageContext
from finetune.informative import rank_waiting
from policy.protocol import ChatReply, ChatRequest
from policy.versions import active_version

SCRIPTED_LOGIN = "scripted-annotator"
STORED_TOGETHER = 16
"""Rows of so many prompts in one transaction; a kill loses no more, and the next attempt makes them again."""


def collect(context: StageContext) -> dict[str, int | str]:
    """Completions of the active version for all seed prompts, and a task for each."""
    settings = CollectSettings(**context.stage_settings("collect"))
    prompts = [*harmful("seed", settings.prompts_per_suite), *benign("seed", settings.prompts_per_suite)]
    with context.db.session() as session:
        version = active_version(session)
        done = set(session.scalars(select(Completion.once).where(Completion.once.like(f"cycle:{context.cycle_id}:%"))))
    missing = [p for p in prompts if _once(context, p) not in done]
    context.ensure_loaded(version)
    requests = [request_of(version.name, p, i, settings) for i, p in enumerate(missing)]
    n_done = len(prompts) - len(missing)
    context.progress(n_done / len(prompts), f"{n_done}/{len(prompts)} completions")

    waiting: list[tuple[int, ChatReply]] = []

    def store() -> None:
        nonlocal n_done
        with context.db.session() as session:
            for i, reply in waiting:
                _store(session, context, missing[i], requests[i], reply, version.id)
        n_done += len(waiting)
        waiting.clear()
        context.progress(n_done / len(prompts), f"{n_done}/{len(prompts)} completions")

    def keep(i: int, reply: ChatReply) -> None:
        waiting.append((i, reply))
        if len(waiting) == STORED_TOGETHER:
            store()

    context.client.complete_many(requests, settings.concurrency, on_done=keep)
    store()
    pools = rank_waiting(context)
    return {"completions": len(prompts), "policy_version": version.name, "informative": pools["informative"]}


def request_of(model: str, prompt: SuitePrompt, seed: int, settings: CollectSettings) -> ChatRequest:
    """The call that asks a version to answer a prompt."""
    return ChatRequest(
        model=model, messages=(Message(role="user", content=prompt.text),), seed=seed,
        max_tokens=settings.max_completion_tokens, temperature=settings.temperature, top_p=settings.top_p,
    )  # fmt: skip


def details_of(request: ChatRequest, reply: ChatReply) -> dict[str, Any]:
    """What is stored of a reply beside its text; see `add_completion`."""
    return {
        "finish_reason": reply.finish_reason,
        "sampling": {"temperature": request.temperature, "top_p": request.top_p, "max_tokens": request.max_tokens, "seed": request.seed},
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "latency_s": reply.latency_s,
    }  # fmt: skip


def _once(context: StageContext, prompt: SuitePrompt) -> str:
    return f"cycle:{context.cycle_id}:{prompt.id}"


def _store(
    session: Session,
    context: StageContext,
    prompt: SuitePrompt,
    request: ChatRequest,
    reply: ChatReply,
    version_id: int,
) -> None:
    """One completion, the refusal set against it, and their task: together or not at all."""
    once = _once(context, prompt)
    row = add_prompt(session, user(prompt.text), "seed", category=prompt.category, harmful=prompt.harmful)
    details = details_of(request, reply)
    own = add_completion(session, row, reply.text, "rollout", policy_version_id=version_id, once=once, details=details)
    text = refusal(
        prompt.category if prompt.category in CATEGORIES else random.Random(once).choice([*CATEGORIES]), once
    )
    contrast = add_completion(session, row, text, "contrast", once=f"{once}:refusal")
    create_task(
        session,
        "pairwise",
        row.id,
        [own.id, contrast.id],
        source=once,
        why="seed prompt",
        required_n=context.settings.required_n,
    )


def rate_scripted(context: StageContext) -> dict[str, int]:
    """Judge this cycle's open tasks with the scripted annotator, through the same write path as people."""
    prefix = f"cycle:{context.cycle_id}:"
    references = {_once(context, p): p.reference for p in benign("seed")}
    with context.db.session() as session:
        annotator_id = get_or_create_scripted(session, SCRIPTED_LOGIN).id
        by_slug = {r.rule.slug: r.id for r in active_rules(session)}
        task_ids = session.scalars(
            select(Task.id).where(Task.source.like(f"{prefix}%"), Task.state == "live").order_by(Task.id)
        ).all()
    for start in range(0, len(task_ids), STORED_TOGETHER):
        some = task_ids[start : start + STORED_TOGETHER]
        with context.db.session() as session:
            for task_id in some:
                assignment = claim_task(session, task_id, annotator_id, lease_s=3600)
                if assignment is not None:
                    form = _form(assignment, by_slug, references)
                    submit_judgment(
                        session, token=assignment.lease_token, annotator_id=annotator_id, form=form,
                        latency_s=None, once=f"{prefix}scripted:{task_id}",
                    )  # fmt: skip
        n_done = start + len(some)
        context.progress(n_done / len(task_ids), f"{n_done}/{len(task_ids)} tasks judged (simulated)")
    return {"judgments": len(task_ids)}


def _form(assignment: Assignment, by_slug: dict[str, int], references: dict[str, str | None]) -> PairwiseForm:
    """The scripted annotator's opinion in terms of left and right, as the assignment shows them."""
    task, own = assignment.task, assignment.task.completions[0]
    opinion = rate(
        own.text,
        harmful=bool(own.prompt.harmful),
        category=own.prompt.category,
        seed=task.id,
        reference=references.get(task.source),
    )
    shown = assignment.shown_order.index(0)  # where the policy's own completion stands
    a, b = ("left", "right") if shown == 0 else ("right", "left")
    rule_id = by_slug.get(own.prompt.category or "")
    verdicts = [RuleVerdict(rule_version_id=rule_id, item=shown, verdict=opinion.verdict_a)] if rule_id else []
    return PairwiseForm(
        choice={"a": a, "b": b, "tie": "tie"}[opinion.choice],
        strength=opinion.strength,
        rule_verdicts=verdicts,
        corrections={shown: opinion.correction_a} if opinion.correction_a else {},
    )
