"""Stage `compare`: two policy versions answer the same seed prompts, and people say which answers are better, blind.

In: the names of a candidate and an incumbent, fixed in the cycle. Out: a pair of completions for each prompt, and a task in
the pool `canary`, which annotators get before all others. Equal answers make no task. What people say is told by
`feedback.quality.versions`; nothing is promoted by it.
"""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.messages import user
from core.settings import CollectSettings
from evals.suites import SuitePrompt, benign, harmful
from feedback.models import Completion, Task
from feedback.prompts import add_completion, add_prompt
from feedback.tasks import create_task
from finetune.collect import STORED_TOGETHER, details_of, request_of
from finetune.context import StageContext
from policy.models import PolicyVersion
from policy.protocol import ChatReply, ChatRequest
from policy.versions import find_version

WHY = "two versions of the model answered"


def compare(context: StageContext) -> dict[str, int | str]:
    """Answers of both versions to all prompts that have none yet, and a task for each pair that differs."""
    settings = CollectSettings(**context.stage_settings("collect"))
    prompts = [*harmful("seed", settings.prompts_per_suite), *benign("seed", settings.prompts_per_suite)]
    names = context.stage_settings("compare")
    with context.db.read() as session:
        versions = [find_version(session, names[who]) for who in ("candidate", "incumbent")]
        done = set(session.scalars(select(Completion.once).where(Completion.once.like(f"cycle:{context.cycle_id}:%"))))
    for version in versions:
        context.ensure_loaded(version)
    missing = [prompt for prompt in prompts if _once(context, prompt, versions[0]) not in done]
    n_done = len(prompts) - len(missing)
    for start in range(0, len(missing), STORED_TOGETHER):
        some = missing[start : start + STORED_TOGETHER]
        asked = [request_of(v.name, prompt, start + n, settings) for n, prompt in enumerate(some) for v in versions]
        replies = context.client.complete_many(asked, settings.concurrency)
        answers = list(zip(asked, replies, strict=True))
        with context.db.session() as session:
            for n, prompt in enumerate(some):
                _store(session, context, prompt, versions, answers[2 * n : 2 * n + 2])
        n_done += len(some)
        context.progress(n_done / len(prompts), f"{n_done}/{len(prompts)} prompts answered twice")
    with context.db.read() as session:
        made = select(func.count(Task.id)).where(Task.source.like(f"cycle:{context.cycle_id}:%"))
        tasks = session.scalar(made) or 0
    told = {"candidate": versions[0].name, "incumbent": versions[1].name}
    return told | {"tasks": tasks, "alike": len(prompts) - tasks}


def _once(context: StageContext, prompt: SuitePrompt, version: PolicyVersion) -> str:
    return f"cycle:{context.cycle_id}:{prompt.id}:{version.name}"


def _store(
    session: Session,
    context: StageContext,
    prompt: SuitePrompt,
    versions: list[PolicyVersion],
    answers: list[tuple[ChatRequest, ChatReply]],
) -> None:
    """Both answers to a prompt and their task: together or not at all."""
    row = add_prompt(session, user(prompt.text), "seed", category=prompt.category, harmful=prompt.harmful)
    pair = [
        add_completion(
            session, row, reply.text, "rollout", policy_version_id=version.id, once=_once(context, prompt, version),
            details=details_of(request, reply),
        )
        for version, (request, reply) in zip(versions, answers, strict=True)
    ]  # fmt: skip
    if pair[0].text.strip() != pair[1].text.strip():
        create_task(
            session, "pairwise", row.id, [each.id for each in pair], source=f"cycle:{context.cycle_id}:{prompt.id}",
            pool="canary", required_n=context.settings.required_n, why=WHY,
        )  # fmt: skip
