"""Adding prompts and completions. Both are idempotent, so that a re-run stage or import adds nothing twice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.orm import Session

from core.db import table_of
from core.messages import conversation_hash
from feedback.models import Completion, Prompt, Task

_PROMPT = table_of(Prompt)
_MADE = insert(_PROMPT).returning(_PROMPT.c.id, sort_by_parameter_order=True)
_KNOWN = select(_PROMPT.c.messages_sha256, _PROMPT.c.id).where(
    _PROMPT.c.messages_sha256.in_(bindparam("digests", expanding=True))
)
# Not `IS NOT DISTINCT FROM`, which PostgreSQL looks up in no index.
_KNOWN_OF_HOUSE = _KNOWN.where(_PROMPT.c.tenant_id.is_(None))
_KNOWN_OF_TENANT = _KNOWN.where(_PROMPT.c.tenant_id == bindparam("tenant_id"))


@dataclass(frozen=True)
class Conversation:
    """Messages that somebody asked with; `tenant_id` None is the house."""

    tenant_id: int | None
    messages: list[dict[str, str]]


def add_prompt(
    session: Session,
    messages: list[dict[str, str]],
    source: str,
    *,
    category: str | None = None,
    harmful: bool | None = None,
    tenant_id: int | None = None,
) -> Prompt:
    """The prompt row of this conversation, made if it is new.

    Args:
        tenant_id: whose conversation it is; None for the house. Tenants share no prompts.

    What is known of it stays; what nobody has said yet, category or harm, is filled in, for its tasks too.
    """
    digest = conversation_hash(messages)
    # Not `IS NOT DISTINCT FROM`, which PostgreSQL looks up in no index.
    of_whom = Prompt.tenant_id.is_(None) if tenant_id is None else Prompt.tenant_id == tenant_id
    prompt = session.scalar(select(Prompt).where(of_whom, Prompt.messages_sha256 == digest))
    if prompt is None:
        plain = [{"role": m["role"], "content": m["content"]} for m in messages]
        prompt = Prompt(
            messages_sha256=digest, messages=plain, source=source, category=category, harmful=harmful,
            tenant_id=tenant_id,
        )  # fmt: skip
        session.add(prompt)
        session.flush()
        return prompt
    learnt: dict[str, Any] = {"category": category} if prompt.category is None and category is not None else {}
    if prompt.harmful is None and harmful is not None:
        learnt |= {"harmful": harmful}
    if learnt:
        _fill_in(session, prompt, learnt)
    return prompt


def add_prompts(session: Session, conversations: Sequence[Conversation], source: str) -> list[int]:
    """The ids of the prompt rows of many conversations, in their order, by few statements; made where they are new.

    Raises:
        IntegrityError: another transaction made one of them meanwhile; the next try finds it.
    """
    keys = [(each.tenant_id, conversation_hash(each.messages)) for each in conversations]
    known: dict[tuple[int | None, str], int] = {}
    for tenant_id in {tenant_id for tenant_id, _ in keys}:
        digests = list({digest for whose, digest in keys if whose == tenant_id})
        of_whom = {} if tenant_id is None else {"tenant_id": tenant_id}
        asked = _KNOWN_OF_HOUSE if tenant_id is None else _KNOWN_OF_TENANT
        found = session.connection().execute(asked, {"digests": digests, **of_whom})
        known |= {(tenant_id, digest): prompt_id for digest, prompt_id in found}
    fresh = {key: each for key, each in zip(keys, conversations, strict=True) if key not in known}
    if fresh:
        rows = [
            {
                "messages_sha256": digest, "tenant_id": tenant_id, "source": source,
                "messages": [{"role": m["role"], "content": m["content"]} for m in each.messages],
            }
            for (tenant_id, digest), each in fresh.items()
        ]  # fmt: skip
        made = session.connection().scalars(_MADE, rows)
        known |= dict(zip(fresh, made, strict=True))
    return [known[key] for key in keys]


def _fill_in(session: Session, prompt: Prompt, learnt: dict[str, Any]) -> None:
    for name, value in learnt.items():
        setattr(prompt, name, value)
    of_tasks = {("risky" if name == "harmful" else name): value for name, value in learnt.items()}
    session.execute(update(Task).where(Task.prompt_id == prompt.id).values(of_tasks))
    session.flush()


def add_completion(
    session: Session,
    prompt: Prompt,
    text: str,
    source: str,
    *,
    policy_version_id: int | None = None,
    once: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> Completion:
    """Store a completion, its tenant that of the prompt; with `once`, a second call of the same name returns the first row.

    Args:
        details: any of finish_reason, sampling, prompt_tokens, completion_tokens, latency_s.
    """
    if once is not None:
        found = session.scalar(select(Completion).where(Completion.once == once))
        if found is not None:
            return found
    completion = Completion(
        prompt_id=prompt.id, tenant_id=prompt.tenant_id, text=text, source=source, policy_version_id=policy_version_id,
        once=once, **(details or {}),
    )  # fmt: skip
    session.add(completion)
    session.flush()
    return completion
